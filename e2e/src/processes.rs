//! What processes there are, by the kernel's account.

use std::path::PathBuf;

/// Processes of this program. Zombies count too: a process that nobody reaps is a leak.
pub fn of_program(name: &str) -> Vec<u32> {
    let mut pids: Vec<u32> = all().filter(|pid| command_name(*pid).as_deref() == Some(name)).collect();
    pids.sort_unstable();
    pids
}

/// Descriptors that a process holds.
pub fn descriptor_count(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Proportional and private dirty memory of a process, in KiB.
///
/// # Panics
/// When the process is gone.
pub fn memory_kib(pid: u32) -> (u64, u64) {
    (rollup_kib(pid, "Pss:"), rollup_kib(pid, "Private_Dirty:"))
}

/// Memory that a process has touched and that no file backs, in KiB.
///
/// # Panics
/// When the process is gone.
pub fn anonymous_kib(pid: u32) -> u64 {
    rollup_kib(pid, "Anonymous:")
}

#[expect(clippy::unwrap_used, reason = "a figure that cannot be read must fail the measurement")]
fn rollup_kib(pid: u32, field: &str) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn all() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The first fifteen characters of the program's name, as the kernel keeps it.
fn command_name(pid: u32) -> Option<String> {
    let path: PathBuf = format!("/proc/{pid}/comm").into();
    std::fs::read_to_string(path).ok().map(|name| name.trim_end().to_owned())
}
