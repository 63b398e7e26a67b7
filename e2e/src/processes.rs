//! What processes there are, by the kernel's account.

use std::path::PathBuf;

/// Processes of this program. Zombies count too: a process that nobody reaps is a leak.
pub fn of_program(name: &str) -> Vec<u32> {
    let mut pids: Vec<u32> = all().filter(|pid| command_name(*pid).as_deref() == Some(name)).collect();
    pids.sort_unstable();
    pids
}

/// Those of these VMMs whose machines are frozen, as a template's is: they have no vCPU and no thread for one.
pub fn frozen(vmms: &[u32]) -> Vec<u32> {
    vmms.iter().copied().filter(|pid| thread_count(*pid) == 1).collect()
}

/// Descriptors that a process holds.
pub fn descriptor_count(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Threads of a process.
pub fn thread_count(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
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
