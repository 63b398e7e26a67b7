//! What the kernel says of the machine that it runs on: here or in the emulated host, where sandboxes run.

use rustix::system::uname;
use serde::Serialize;
use std::fs;
use std::num::NonZero;
use std::thread::available_parallelism;

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
}

impl Machine {
    pub(crate) fn this() -> Machine {
        Machine {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "of unknown make".into()),
            processors: available_parallelism().map_or(1, NonZero::get),
            memory_mib: memory_kib().unwrap_or(0) / 1024,
            kernel: uname().release().to_string_lossy().into_owned(),
        }
    }
}

fn memory_kib() -> Option<u64> {
    field("/proc/meminfo", "MemTotal")?.strip_suffix("kB")?.trim().parse().ok()
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
