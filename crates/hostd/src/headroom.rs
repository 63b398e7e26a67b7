//! Whether the host can take more machines without harm to those that run: pure rules over what it has left.
//!
//! Machines get memory and disk when they first touch them, so that many fit that could not all be full. What is left
//! therefore says little of what they will want, and a reserve has to: below it nothing new is made.

use crate::pool::policy::Memory;
use crate::vmm::Vmm;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What a copy has touched when it has answered its first call, with some room.
const COPY_BYTES: u64 = 16 << 20;

/// The reserve where none is set: this part of what the host has, but no more than this.
const RESERVE_SHARE: u64 = 16;
const MEMORY_RESERVE_MAX: u64 = 4 << 30;
const DISK_RESERVE_MAX: u64 = 1 << 30;

/// For how long a reading is good.
const READING_AGE_MAX: Duration = Duration::from_secs(1);

/// Of the file system with the machines' disks, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub total: u64,
    pub free: u64,
}

/// What is to stay free, in bytes; a share of what there is where nothing is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reserves {
    pub memory: Option<u64>,
    pub disk: Option<u64>,
}

/// What the host has left.
#[derive(Debug)]
pub struct Headroom {
    vmm: Arc<dyn Vmm>,
    reserves: Reserves,
    /// A plain mutex: held for a reading, never across an await.
    reading: Mutex<Option<(Instant, Reading)>>,
}

/// None of what is not known.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    memory: Option<Memory>,
    disk: Option<Disk>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Short {
    #[error(
        "This host has {available_mib} MiB of memory left, and keeps {reserve_mib} of them for what runs; end some \
         sandboxes or try later"
    )]
    Memory { available_mib: u64, reserve_mib: u64 },
    #[error(
        "This host has {free_mib} MiB of disk left, and keeps {reserve_mib} of them for what runs; end some sandboxes \
         or try later"
    )]
    Disk { free_mib: u64, reserve_mib: u64 },
}

impl Headroom {
    pub fn new(vmm: Arc<dyn Vmm>, reserves: Reserves) -> Headroom {
        Headroom { vmm, reserves, reading: Mutex::default() }
    }

    /// Whether there is room for so many machines more.
    pub fn check(&self, count: u32) -> Result<(), Short> {
        let mut last = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, reading)) = *last
            && at.elapsed() < READING_AGE_MAX
            && check(reading, self.reserves, count).is_ok()
        {
            return Ok(());
        }
        // Nobody is refused by an old reading: what was short then may have become free.
        let reading = Reading { memory: self.vmm.memory(), disk: self.vmm.disk() };
        *last = Some((Instant::now(), reading));
        check(reading, self.reserves, count)
    }
}

fn check(Reading { memory, disk }: Reading, reserves: Reserves, count: u32) -> Result<(), Short> {
    let reserve = |set: Option<u64>, total: u64, max: u64| set.unwrap_or((total / RESERVE_SHARE).min(max));
    if let Some(Memory { total, available }) = memory {
        let reserve = reserve(reserves.memory, total, MEMORY_RESERVE_MAX);
        if available < reserve.saturating_add(u64::from(count) * COPY_BYTES) {
            return Err(Short::Memory { available_mib: available >> 20, reserve_mib: reserve >> 20 });
        }
    }
    if let Some(Disk { total, free }) = disk {
        let reserve = reserve(reserves.disk, total, DISK_RESERVE_MAX);
        if free < reserve {
            return Err(Short::Disk { free_mib: free >> 20, reserve_mib: reserve >> 20 });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn memory(available: u64) -> Reading {
        Reading { memory: Some(Memory { total: 16 * GIB, available }), disk: None }
    }

    fn disk(free: u64) -> Reading {
        Reading { memory: None, disk: Some(Disk { total: 64 * GIB, free }) }
    }

    #[test]
    fn what_is_not_known_limits_nothing() {
        assert_eq!(check(Reading::default(), Reserves::default(), u32::MAX), Ok(()));
    }

    #[test]
    fn a_sixteenth_of_the_memory_stays_free_besides_what_the_copies_take() {
        let check = |available, count| check(memory(available), Reserves::default(), count);
        assert_eq!(check(GIB + COPY_BYTES, 1), Ok(()));
        assert_eq!(check(GIB + COPY_BYTES, 2), Err(Short::Memory { available_mib: 1040, reserve_mib: 1024 }));
        assert!(check(0, 0).is_err());
    }

    #[test]
    fn a_gib_of_a_large_disk_stays_free() {
        assert_eq!(check(disk(GIB), Reserves::default(), 1), Ok(()));
        let short = check(disk(GIB - 1), Reserves::default(), 1);
        assert_eq!(short, Err(Short::Disk { free_mib: 1023, reserve_mib: 1024 }));
    }

    #[test]
    fn a_reserve_that_is_set_counts_instead() {
        let reserves = Reserves { memory: Some(2 * GIB), disk: Some(0) };
        assert!(check(memory(2 * GIB), reserves, 1).is_err());
        assert_eq!(check(disk(0), reserves, 1), Ok(()));
    }
}
