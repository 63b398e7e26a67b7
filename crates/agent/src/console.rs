//! Lines for the machine's console: the only place where the agent itself writes text.

use std::fs::OpenOptions;
use std::io::Write;

/// Kernel log level "critical": shown on the console also by a quiet kernel.
const LEVEL: u8 = 2;

/// Says one line. Through the kernel's log, so that it stands in order among the kernel's own lines;
/// before /dev exists, and on a development machine, on the standard error.
pub(crate) fn say(line: &str) {
    let in_kernel_log = rustix::process::getpid().is_init()
        && OpenOptions::new()
            .write(true)
            .open("/dev/kmsg")
            // Each write is a record of its own, so this must be one.
            .and_then(|mut log| log.write_all(format!("<{LEVEL}>podflare: {line}\n").as_bytes()))
            .is_ok();
    if !in_kernel_log {
        // With neither there is nowhere left to say it.
        writeln!(std::io::stderr(), "podflare: {line}").ok();
    }
}
