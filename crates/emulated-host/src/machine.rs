//! How big the emulated host is, and whether this machine can carry it.

use std::fs;
use std::num::NonZero;
use std::thread;

const MEMORY_MIB_MIN: u64 = 3 * 1024;
const MEMORY_MIB_MAX: u64 = 12 * 1024;
/// One processor would be slower for nothing; more than four emulated ones were never measured.
const PROCESSORS_MIN: usize = 2;
const PROCESSORS_MAX: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    pub memory_mib: u64,
    pub processors: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("Cannot read /proc/meminfo")]
    MemoryInfo,
    #[error(
        "The emulated host needs {needed_mib} MiB of memory and only {available_mib} MiB are free; \
         end other programs or use a bigger machine"
    )]
    NotEnoughMemory { needed_mib: u64, available_mib: u64 },
}

/// This machine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub total_mib: u64,
    pub available_mib: u64,
}

impl Memory {
    pub fn of_this_machine() -> Result<Memory, MachineError> {
        let text = fs::read_to_string("/proc/meminfo").map_err(|_| MachineError::MemoryInfo)?;
        Memory::parse(&text).ok_or(MachineError::MemoryInfo)
    }

    fn parse(text: &str) -> Option<Memory> {
        let mib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
            Some(kib / 1024)
        };
        Some(Memory { total_mib: mib("MemTotal:")?, available_mib: mib("MemAvailable:")? })
    }
}

impl Machine {
    /// Half of this machine's memory, within limits.
    pub fn fitting_this_machine() -> Result<Machine, MachineError> {
        let processors = thread::available_parallelism().map_or(PROCESSORS_MIN, NonZero::get);
        Machine::fitting(Memory::of_this_machine()?, processors)
    }

    fn fitting(memory: Memory, processors: usize) -> Result<Machine, MachineError> {
        if memory.available_mib < MEMORY_MIB_MIN {
            let available_mib = memory.available_mib;
            return Err(MachineError::NotEnoughMemory { needed_mib: MEMORY_MIB_MIN, available_mib });
        }
        Ok(Machine {
            memory_mib: (memory.total_mib / 2)
                .clamp(MEMORY_MIB_MIN, MEMORY_MIB_MAX)
                .min(memory.available_mib),
            processors: processors.clamp(PROCESSORS_MIN, PROCESSORS_MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emulated_host_takes_half_within_limits() {
        let fitting = |total_mib, available_mib, processors| {
            let machine = Machine::fitting(Memory { total_mib, available_mib }, processors).unwrap();
            (machine.memory_mib, machine.processors)
        };
        assert_eq!(fitting(16384, 16000, 8), (8192, 4));
        assert_eq!(fitting(4096, 3500, 1), (3072, 2));
        assert_eq!(fitting(65536, 60000, 3), (12288, 3));
        assert_eq!(fitting(16384, 4000, 2), (4000, 2));
    }

    #[test]
    fn too_little_memory_is_said_before_anything_starts() {
        let error = Machine::fitting(Memory { total_mib: 4096, available_mib: 1000 }, 2).unwrap_err();
        assert!(error.to_string().contains("3072 MiB"), "{error}");
    }

    #[test]
    fn memory_is_read_in_mebibytes() {
        let text = "MemTotal:       2097152 kB\nMemFree: 1 kB\nMemAvailable:   1048576 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { total_mib: 2048, available_mib: 1024 }));
        assert_eq!(Memory::parse("nothing"), None);
    }
}
