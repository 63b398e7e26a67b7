//! How big the emulated host is, and whether this machine can carry it.

use std::fs;

const MEMORY_MIB_MIN: u64 = 3 * 1024;
const MEMORY_MIB_MAX: u64 = 12 * 1024;
/// With two, QEMU's software processor now and then delivers one's interrupt to the other in the few
/// instructions after a guest's exit in which the guest's GS base is still loaded, and the kernel dies of
/// it (seen with QEMU 7.2 and kernels 6.1 and 6.12, with QEMU 10.0 and kernel 6.1). With one it has not.
const PROCESSORS: usize = 1;

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
        Machine::fitting(Memory::of_this_machine()?)
    }

    fn fitting(memory: Memory) -> Result<Machine, MachineError> {
        if memory.available_mib < MEMORY_MIB_MIN {
            let available_mib = memory.available_mib;
            return Err(MachineError::NotEnoughMemory { needed_mib: MEMORY_MIB_MIN, available_mib });
        }
        Ok(Machine {
            memory_mib: (memory.total_mib / 2)
                .clamp(MEMORY_MIB_MIN, MEMORY_MIB_MAX)
                .min(memory.available_mib),
            processors: PROCESSORS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emulated_host_takes_half_within_limits() {
        let fitting = |total_mib, available_mib| {
            Machine::fitting(Memory { total_mib, available_mib }).unwrap().memory_mib
        };
        assert_eq!(fitting(16384, 16000), 8192);
        assert_eq!(fitting(4096, 3500), 3072);
        assert_eq!(fitting(65536, 60000), 12288);
        assert_eq!(fitting(16384, 4000), 4000);
    }

    #[test]
    fn too_little_memory_is_said_before_anything_starts() {
        let error = Machine::fitting(Memory { total_mib: 4096, available_mib: 1000 }).unwrap_err();
        assert!(error.to_string().contains("3072 MiB"), "{error}");
    }

    #[test]
    fn memory_is_read_in_mebibytes() {
        let text = "MemTotal:       2097152 kB\nMemFree: 1 kB\nMemAvailable:   1048576 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { total_mib: 2048, available_mib: 1024 }));
        assert_eq!(Memory::parse("nothing"), None);
    }
}
