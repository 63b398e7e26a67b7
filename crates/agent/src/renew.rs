//! Makes a copied machine its own: kernel entropy, wall clock, host name, machine id, network. The first
//! failure ends it.
//!
//! Not renewed, on purpose: `/etc/hostname`. Nothing reads it after boot, and the write would cost
//! every copy a block of its own. The machine id lies in memory (see `init`).

use crate::entropy;
use crate::network;
use podflare_wire::guest::{ENTROPY_LEN, NetworkIdentity, Renewal};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::os::fd::AsFd;

pub(crate) const MACHINE_ID: &str = "/etc/machine-id";

/// How far the wall clock may be ahead of what it is told and stays as it is: a time is late by as long
/// as its message was on the way, and programs take a step back badly.
const AHEAD_MAX_NS: i128 = 50_000_000;

/// The longest host name that Linux takes, in bytes.
const HOSTNAME_LEN_MAX: usize = 64;

const NS_PER_S: u64 = 1_000_000_000;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RenewError {
    #[error("A renewal carries {ENTROPY_LEN} bytes of entropy, this one {0}")]
    EntropyLen(usize),
    #[error("A host name of {0} bytes is not between 1 and {HOSTNAME_LEN_MAX}")]
    HostnameLen(usize),
    #[error("The wall clock cannot be set to {0} ns after 1970")]
    TimeOutOfRange(u64),
    #[error("Could not renew the kernel's random numbers: {0}")]
    Entropy(Errno),
    #[error("Could not set the wall clock: {0}")]
    Clock(Errno),
    #[error("Could not set the host name: {0}")]
    Hostname(Errno),
    #[error("Could not draw a machine id: {0}")]
    MachineId(Errno),
    #[error("Could not give the machine its place in the network: {0}")]
    Network(Errno),
}

/// What a renewal changes outside this process.
pub(crate) trait Machine {
    fn add_entropy(&mut self, entropy: &[u8; ENTROPY_LEN]) -> Result<(), Errno>;
    fn clock(&self) -> Timespec;
    fn set_clock(&mut self, time: Timespec) -> Result<(), Errno>;
    fn set_hostname(&mut self, hostname: &str) -> Result<(), Errno>;
    /// 32 hexadecimal digits. Fails where there is no such file, which is for the caller to judge.
    fn set_machine_id(&mut self, id: &str) -> Result<(), Errno>;
    /// Resets the connections that the machine had as somebody else.
    fn set_network(&mut self, identity: &NetworkIdentity) -> Result<(), Errno>;
}

/// A microVM's kernel, which belongs to this agent alone.
#[derive(Debug, Default)]
pub(crate) struct OwnKernel {
    /// What the machine is in the network, since this agent has made it that.
    network: Option<NetworkIdentity>,
}

/// A development machine. Its kernel was not copied and is not this agent's to change.
#[derive(Debug)]
pub(crate) struct SharedKernel;

impl Machine for OwnKernel {
    fn add_entropy(&mut self, entropy: &[u8; ENTROPY_LEN]) -> Result<(), Errno> {
        let urandom = rustix::fs::open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        entropy::add(urandom.as_fd(), entropy)?;
        entropy::reseed(urandom.as_fd())
    }

    fn clock(&self) -> Timespec {
        clock_gettime(ClockId::Realtime)
    }

    fn set_clock(&mut self, time: Timespec) -> Result<(), Errno> {
        clock_settime(ClockId::Realtime, time)
    }

    fn set_hostname(&mut self, hostname: &str) -> Result<(), Errno> {
        rustix::system::sethostname(hostname.as_bytes())
    }

    fn set_machine_id(&mut self, id: &str) -> Result<(), Errno> {
        // Not waiting for the reader of a pipe that somebody has put in its place.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(MACHINE_ID, flags, Mode::empty())?;
        // All of it in one write: whoever reads meanwhile finds the former one, or this one.
        rustix::io::pwrite(&file, format!("{id}\n").as_bytes(), 0)?;
        Ok(())
    }

    fn set_network(&mut self, identity: &NetworkIdentity) -> Result<(), Errno> {
        network::renew(identity, self.network.as_ref())?;
        self.network = Some(*identity);
        Ok(())
    }
}

impl Machine for SharedKernel {
    fn add_entropy(&mut self, _: &[u8; ENTROPY_LEN]) -> Result<(), Errno> {
        Ok(())
    }

    fn clock(&self) -> Timespec {
        clock_gettime(ClockId::Realtime)
    }

    fn set_clock(&mut self, _: Timespec) -> Result<(), Errno> {
        Ok(())
    }

    fn set_hostname(&mut self, _: &str) -> Result<(), Errno> {
        Ok(())
    }

    fn set_machine_id(&mut self, _: &str) -> Result<(), Errno> {
        Ok(())
    }

    fn set_network(&mut self, _: &NetworkIdentity) -> Result<(), Errno> {
        Ok(())
    }
}

/// Everything of a renewal but the REPL's own generators.
pub(crate) fn renew(machine: &mut impl Machine, renewal: &Renewal) -> Result<(), RenewError> {
    let len = renewal.entropy.len();
    let entropy = renewal.entropy.as_slice().try_into().map_err(|_| RenewError::EntropyLen(len))?;
    let hostname_len = renewal.hostname.len();
    if !(1..=HOSTNAME_LEN_MAX).contains(&hostname_len) {
        return Err(RenewError::HostnameLen(hostname_len));
    }
    let time = timespec(renewal.unix_time_ns)?;
    machine.add_entropy(entropy).map_err(RenewError::Entropy)?;
    set_clock_to(machine, time)?;
    machine.set_hostname(&renewal.hostname).map_err(RenewError::Hostname)?;
    let id = draw_machine_id().map_err(RenewError::MachineId)?;
    // Where the user's code has taken the file away, nobody is to be told apart by it.
    machine.set_machine_id(&id).ok();
    if let Some(identity) = &renewal.network {
        machine.set_network(identity).map_err(RenewError::Network)?;
    }
    Ok(())
}

/// Sets the wall clock, unless it is right but for a moment that it is ahead.
pub(crate) fn set_clock(machine: &mut impl Machine, unix_time_ns: u64) -> Result<(), RenewError> {
    set_clock_to(machine, timespec(unix_time_ns)?)
}

fn set_clock_to(machine: &mut impl Machine, time: Timespec) -> Result<(), RenewError> {
    let ahead_ns = nanoseconds(machine.clock()) - nanoseconds(time);
    if (0..=AHEAD_MAX_NS).contains(&ahead_ns) {
        return Ok(());
    }
    machine.set_clock(time).map_err(RenewError::Clock)
}

fn nanoseconds(time: Timespec) -> i128 {
    i128::from(time.tv_sec) * i128::from(NS_PER_S) + i128::from(time.tv_nsec)
}

/// From the renewed kernel, like every other random number: what hostd sent stays a secret of the kernel.
fn draw_machine_id() -> Result<String, Errno> {
    let mut id = [0; 16];
    getrandom(&mut id, GetRandomFlags::empty())?;
    Ok(format!("{:032x}", u128::from_be_bytes(id)))
}

fn timespec(unix_time_ns: u64) -> Result<Timespec, RenewError> {
    let tv_sec = i64::try_from(unix_time_ns / NS_PER_S);
    let tv_nsec = (unix_time_ns % NS_PER_S).try_into();
    match (tv_sec, tv_nsec) {
        (Ok(tv_sec), Ok(tv_nsec)) => Ok(Timespec { tv_sec, tv_nsec }),
        _ => Err(RenewError::TimeOutOfRange(unix_time_ns)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[derive(Debug, Default)]
    struct FakeMachine {
        clock_ns: u64,
        done: Vec<String>,
        ids: Vec<String>,
        fails_at: Option<&'static str>,
    }

    impl FakeMachine {
        fn step(&mut self, name: &str, value: &str) -> Result<(), Errno> {
            if self.fails_at == Some(name) {
                return Err(Errno::PERM);
            }
            self.done.push(format!("{name} {value}"));
            Ok(())
        }
    }

    impl Machine for FakeMachine {
        fn add_entropy(&mut self, entropy: &[u8; ENTROPY_LEN]) -> Result<(), Errno> {
            self.step("entropy", &entropy[0].to_string())
        }

        fn clock(&self) -> Timespec {
            timespec(self.clock_ns).unwrap()
        }

        fn set_clock(&mut self, time: Timespec) -> Result<(), Errno> {
            self.step("clock", &format!("{}.{:09}", time.tv_sec, time.tv_nsec))
        }

        fn set_hostname(&mut self, hostname: &str) -> Result<(), Errno> {
            self.step("hostname", hostname)
        }

        fn set_machine_id(&mut self, id: &str) -> Result<(), Errno> {
            self.ids.push(id.to_owned());
            self.step("machine id of digits:", &id.len().to_string())
        }

        fn set_network(&mut self, identity: &NetworkIdentity) -> Result<(), Errno> {
            self.step("network", &identity.address.to_string())
        }
    }

    fn renewal() -> Renewal {
        Renewal {
            entropy: vec![7; ENTROPY_LEN],
            unix_time_ns: 1_700_000_000_000_000_042,
            hostname: "pod".into(),
            network: Some(NetworkIdentity {
                mac: [2, 0, 198, 18, 0, 9],
                address: Ipv4Addr::new(198, 18, 0, 9),
                gateway: Ipv4Addr::new(198, 18, 0, 1),
            }),
        }
    }

    #[test]
    fn a_renewal_sets_entropy_clock_host_name_machine_id_and_network() {
        let mut machine = FakeMachine::default();
        renew(&mut machine, &renewal()).unwrap();
        let done = [
            "entropy 7",
            "clock 1700000000.000000042",
            "hostname pod",
            "machine id of digits: 32",
            "network 198.18.0.9",
        ];
        assert_eq!(machine.done, done);
    }

    #[test]
    fn a_host_without_a_network_changes_nothing_of_the_machines() {
        let mut machine = FakeMachine::default();
        renew(&mut machine, &Renewal { network: None, ..renewal() }).unwrap();
        assert_eq!(machine.done.last().unwrap(), "machine id of digits: 32");
    }

    #[test]
    fn every_renewal_draws_a_machine_id_and_a_machine_without_the_file_is_renewed_too() {
        let mut machine = FakeMachine { fails_at: Some("machine id of digits:"), ..FakeMachine::default() };
        renew(&mut machine, &renewal()).unwrap();
        renew(&mut machine, &renewal()).unwrap();
        assert!(machine.ids[0] != machine.ids[1]);
        let is_digit = |digit: char| digit.is_ascii_digit() || ('a'..='f').contains(&digit);
        assert!(machine.ids.iter().all(|id| id.chars().all(is_digit)), "{:?}", machine.ids);
    }

    #[test]
    fn the_first_step_that_fails_ends_the_renewal() {
        for (fails_at, error, done) in [
            ("entropy", RenewError::Entropy(Errno::PERM), 0),
            ("clock", RenewError::Clock(Errno::PERM), 1),
            ("hostname", RenewError::Hostname(Errno::PERM), 2),
            ("network", RenewError::Network(Errno::PERM), 4),
        ] {
            let mut machine = FakeMachine { fails_at: Some(fails_at), ..FakeMachine::default() };
            assert_eq!(renew(&mut machine, &renewal()), Err(error));
            assert_eq!(machine.done.len(), done);
        }
    }

    #[test]
    fn a_wall_clock_that_is_a_moment_ahead_is_not_set_back() {
        const TOLD_NS: u64 = 1_700_000_000_000_000_000;
        let moment = u64::try_from(AHEAD_MAX_NS).unwrap();
        for (clock_ns, is_set) in [
            (TOLD_NS - 1, true),
            (TOLD_NS, false),
            (TOLD_NS + moment, false),
            (TOLD_NS + moment + 1, true),
            (0, true),
        ] {
            let mut machine = FakeMachine { clock_ns, ..FakeMachine::default() };
            set_clock(&mut machine, TOLD_NS).unwrap();
            assert_eq!(!machine.done.is_empty(), is_set, "{clock_ns}");
        }
    }

    #[test]
    fn a_renewal_with_bad_contents_changes_nothing() {
        let short = Renewal { entropy: vec![7; ENTROPY_LEN - 1], ..renewal() };
        let nameless = Renewal { hostname: String::new(), ..renewal() };
        let long = Renewal { hostname: "x".repeat(HOSTNAME_LEN_MAX + 1), ..renewal() };
        for (bad, error) in [
            (short, RenewError::EntropyLen(ENTROPY_LEN - 1)),
            (nameless, RenewError::HostnameLen(0)),
            (long, RenewError::HostnameLen(HOSTNAME_LEN_MAX + 1)),
        ] {
            let mut machine = FakeMachine::default();
            assert_eq!(renew(&mut machine, &bad), Err(error));
            assert_eq!(machine.done, [""; 0]);
        }
    }
}
