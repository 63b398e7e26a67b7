//! What the kernel says of the host's memory: the one place that reads it.

use crate::pool::policy::Memory;

const MEMINFO: &str = "/proc/meminfo";

/// `None` if the kernel does not say.
pub(super) fn memory() -> Option<Memory> {
    parse(&std::fs::read_to_string(MEMINFO).ok()?)
}

fn parse(meminfo: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Memory { total: bytes("MemTotal")?, available: bytes("MemAvailable")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_and_available_memory_are_read_in_bytes() {
        let text =
            "MemTotal:        3000000 kB\nMemFree:  7 kB\nMemAvailable:    1000000 kB\nHugePages_Total: 0\n";
        assert_eq!(parse(text), Some(Memory { total: 3_072_000_000, available: 1_024_000_000 }));
        assert_eq!(parse("MemTotal: 1 kB\n"), None);
        assert_eq!(parse("MemTotal: x kB\nMemAvailable: 18446744073709551615 kB\n"), None);
    }

    #[test]
    fn this_host_says_how_much_it_has() {
        let memory = memory().unwrap();
        assert!(memory.available <= memory.total);
    }
}
