//! What virtual machines cost their host, by the host kernel's account: memory of all kinds, processor time
//! and exits from the guests. Reads only; the one thing that it changes is that debugfs is mounted.

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use std::collections::BTreeMap;
use std::fs;

/// Where KVM keeps its counters, one folder a virtual machine.
const DEBUGFS: &str = "/sys/kernel/debug";

/// The smallest nameless mapping that can only be a guest's memory.
const GUEST_MEMORY_MIN: u64 = 64 << 20;

/// The kinds of memory in /proc/meminfo that grow with each virtual machine.
pub const MEMORY_KINDS: [&str; 6] =
    ["AnonPages", "PageTables", "SecPageTables", "SUnreclaim", "KernelStack", "Percpu"];

/// The whole host's memory, in KiB, by the names of /proc/meminfo.
#[derive(Debug, Clone)]
pub struct HostMemory(BTreeMap<String, i64>);

#[expect(clippy::unwrap_used, reason = "a figure that cannot be read must fail the measurement")]
impl HostMemory {
    /// # Panics
    /// When /proc/meminfo cannot be read.
    pub fn now() -> HostMemory {
        let line = |line: &str| {
            let (name, rest) = line.split_once(':')?;
            Some((name.to_owned(), rest.split_whitespace().next()?.parse().ok()?))
        };
        HostMemory(fs::read_to_string("/proc/meminfo").unwrap().lines().filter_map(line).collect())
    }

    /// A kind that this kernel does not count is 0.
    pub fn kib(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or_default()
    }
}

/// Memory of one process, in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessMemory {
    pub resident: u64,
    pub proportional: u64,
    pub private_dirty: u64,
    /// What no file backs.
    pub anonymous: u64,
    pub page_tables: u64,
}

#[expect(clippy::unwrap_used, reason = "a figure that cannot be read must fail the measurement")]
impl ProcessMemory {
    /// # Panics
    /// When the process is gone.
    pub fn of(pid: u32) -> ProcessMemory {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        ProcessMemory {
            resident: field(&rollup, "Rss:"),
            proportional: field(&rollup, "Pss:"),
            private_dirty: field(&rollup, "Private_Dirty:"),
            anonymous: field(&rollup, "Anonymous:"),
            page_tables: field(&status, "VmPTE:"),
        }
    }

    /// The mean of several processes.
    pub fn mean_of(pids: &[u32]) -> ProcessMemory {
        let all: Vec<_> = pids.iter().map(|&pid| ProcessMemory::of(pid)).collect();
        let mean =
            |field: fn(&ProcessMemory) -> u64| all.iter().map(field).sum::<u64>() / (all.len() as u64).max(1);
        ProcessMemory {
            resident: mean(|memory| memory.resident),
            proportional: mean(|memory| memory.proportional),
            private_dirty: mean(|memory| memory.private_dirty),
            anonymous: mean(|memory| memory.anonymous),
            page_tables: mean(|memory| memory.page_tables),
        }
    }
}

/// Private dirty memory of a process in KiB, by what the kernel calls the mapping.
///
/// # Panics
/// When the process is gone.
#[expect(clippy::unwrap_used, reason = "a figure that cannot be read must fail the measurement")]
pub fn private_dirty_by_mapping(pid: u32) -> BTreeMap<String, u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut sums, mut mapping) = (BTreeMap::new(), String::new());
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["Private_Dirty:", kib, _] => {
                *sums.entry(mapping.clone()).or_default() += kib.parse::<u64>().unwrap();
            }
            [range, _, _, _, _, ref name @ ..] if range.contains('-') => {
                let (start, end) = range.split_once('-').unwrap();
                let address = |text| u64::from_str_radix(text, 16).unwrap();
                let is_guest = name.is_empty() && address(end) - address(start) >= GUEST_MEMORY_MIN;
                mapping = if is_guest { "guest memory".into() } else { name.join(" ") };
            }
            _ => {}
        }
    }
    sums.retain(|_, kib| *kib > 0);
    sums
}

/// What processes have used of the processors since they began.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessorUse {
    pub busy_ns: u64,
    /// How often one of their threads was put on a processor.
    pub runs: u64,
}

impl ProcessorUse {
    /// Of all threads of these processes; what has ended counts nothing.
    pub fn of(pids: &[u32]) -> ProcessorUse {
        let threads = pids.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")));
        let mut sum = ProcessorUse::default();
        for thread in threads.flatten().flatten() {
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let mut words = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
            sum.busy_ns += words.next().unwrap_or(0);
            sum.runs += words.nth(1).unwrap_or(0);
        }
        sum
    }

    /// What has been used since that earlier moment.
    pub fn since(self, earlier: ProcessorUse) -> ProcessorUse {
        ProcessorUse {
            busy_ns: self.busy_ns.saturating_sub(earlier.busy_ns),
            runs: self.runs.saturating_sub(earlier.runs),
        }
    }
}

/// The whole host's processors: time with something to do, and time without, in clock ticks.
///
/// # Panics
/// When /proc/stat cannot be read.
#[expect(clippy::unwrap_used, reason = "a figure that cannot be read must fail the measurement")]
pub fn host_ticks() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let line = stat.lines().next().unwrap();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).map(|word| word.parse().unwrap()).collect();
    let idle = ticks[3] + ticks[4];
    (ticks.iter().sum::<u64>() - idle, idle)
}

/// KVM's counters of these processes' virtual machines, added up by name. Empty where debugfs is not to be had.
pub fn kvm_counters(pids: &[u32]) -> BTreeMap<String, u64> {
    match mount("debugfs", DEBUGFS, "debugfs", MountFlags::empty(), None) {
        Ok(()) | Err(Errno::BUSY) => {}
        Err(_) => return BTreeMap::new(),
    }
    let mut sums = BTreeMap::new();
    let machines = fs::read_dir(format!("{DEBUGFS}/kvm")).into_iter().flatten().flatten();
    for machine in machines {
        let name = machine.file_name().to_string_lossy().into_owned();
        let owner = name.split_once('-').and_then(|(pid, _)| pid.parse().ok());
        if !owner.is_some_and(|pid| pids.contains(&pid)) {
            continue;
        }
        for counter in fs::read_dir(machine.path()).into_iter().flatten().flatten() {
            let text = fs::read_to_string(counter.path()).unwrap_or_default();
            if let Ok(value) = text.trim().parse::<u64>() {
                *sums.entry(counter.file_name().to_string_lossy().into_owned()).or_default() += value;
            }
        }
    }
    sums
}
