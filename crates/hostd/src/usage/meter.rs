//! How much of a sandbox has been counted: pure, over times and counters that are passed in.

use crate::network::driver::Usage as Traffic;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

/// What has been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    pub sandboxes: u64,
    pub sandbox_ms: u64,
    pub ram_mib_ms: u64,
    pub executions: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

impl AddAssign for Used {
    fn add_assign(&mut self, more: Used) {
        self.sandboxes += more.sandboxes;
        self.sandbox_ms += more.sandbox_ms;
        self.ram_mib_ms += more.ram_mib_ms;
        self.executions += more.executions;
        self.sent_bytes += more.sent_bytes;
        self.received_bytes += more.received_bytes;
    }
}

/// One sandbox's. It counts from its lease on: before, the sandbox is nobody's.
#[derive(Debug, Default)]
pub struct Meter {
    /// None before the lease.
    until: Option<Instant>,
    is_counted: bool,
    executions: u32,
    traffic: Traffic,
}

/// A sandbox as it is now.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    pub now: Instant,
    pub ram_mib: u32,
    pub executions: u32,
}

impl Meter {
    pub fn start(&mut self, now: Instant) {
        self.until.get_or_insert(now);
    }

    /// What has come since the last time; `None` before the lease.
    pub fn read(&mut self, reading: Reading) -> Option<Used> {
        let Reading { now, ram_mib, executions } = reading;
        let until = self.until.as_mut()?;
        let sandbox_ms = whole_ms(now.saturating_duration_since(*until));
        // What is less than a millisecond is left for the next time.
        *until += Duration::from_millis(sandbox_ms);
        let used = Used {
            sandboxes: u64::from(!std::mem::replace(&mut self.is_counted, true)),
            sandbox_ms,
            ram_mib_ms: sandbox_ms.saturating_mul(ram_mib.into()),
            executions: executions.saturating_sub(self.executions).into(),
            ..Used::default()
        };
        self.executions = executions;
        Some(used)
    }

    /// What has gone over the network since the last time; nothing before the lease.
    pub fn read_traffic(&mut self, traffic: Traffic) -> Used {
        if self.until.is_none() {
            return Used::default();
        }
        let former = std::mem::replace(&mut self.traffic, traffic);
        Used {
            sent_bytes: traffic.sent_bytes.saturating_sub(former.sent_bytes),
            received_bytes: traffic.received_bytes.saturating_sub(former.received_bytes),
            ..Used::default()
        }
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reading(now: Instant, executions: u32) -> Reading {
        Reading { now, ram_mib: 512, executions }
    }

    #[test]
    fn nothing_is_counted_before_the_lease_and_nothing_twice() {
        let start = Instant::now();
        let mut meter = Meter::default();
        assert_eq!(meter.read(reading(start, 0)), None);
        meter.start(start);
        let second = start + Duration::from_secs(1);
        let first = meter.read(reading(second, 3)).unwrap();
        let expected =
            Used { sandboxes: 1, sandbox_ms: 1000, ram_mib_ms: 512_000, executions: 3, ..Used::default() };
        assert_eq!(first, expected);
        assert_eq!(meter.read(reading(second, 3)), Some(Used::default()));
        let traffic = |bytes: u64| Traffic { sent_bytes: bytes, received_bytes: 2 * bytes, connections: 1 };
        assert_eq!(meter.read_traffic(traffic(10)).sent_bytes, 10);
        let more = meter.read_traffic(traffic(15));
        assert_eq!((more.sent_bytes, more.received_bytes), (5, 10));
        assert_eq!(Meter::default().read_traffic(traffic(7)), Used::default());
    }

    proptest! {
        #[test]
        fn however_often_it_is_read_the_whole_is_the_same(steps in proptest::collection::vec(0_u64..5_000_000, 1..20)) {
            let start = Instant::now();
            let mut meter = Meter::default();
            meter.start(start);
            let (mut now, mut total) = (start, Used::default());
            for step in steps {
                now += Duration::from_micros(step);
                total += meter.read(reading(now, 0)).unwrap();
            }
            prop_assert_eq!(total.sandbox_ms, whole_ms(now - start));
            prop_assert_eq!(total.sandboxes, 1);
        }
    }
}
