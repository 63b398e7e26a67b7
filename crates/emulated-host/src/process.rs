//! A process that outlives the command that started it: remembered in a file, told from a later process
//! with the same number, and ended without harm to any other.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// A process number, with the time of its start (in clock ticks since boot) so that it means one process only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pid: u32,
    started_ticks: u64,
}

impl ProcessId {
    /// `None` if there is no such process.
    pub fn of(pid: u32) -> Option<ProcessId> {
        Some(ProcessId { pid, started_ticks: started_ticks(pid)? })
    }

    pub fn pid(self) -> u32 {
        self.pid
    }

    pub fn is_alive(self) -> bool {
        self.open().is_some()
    }

    /// Sends the signal; nothing happens if the process has ended.
    pub fn signal(self, signal: Signal) -> io::Result<()> {
        let Some(pidfd) = self.open() else { return Ok(()) };
        match pidfd_send_signal(pidfd, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Whether the process has ended within the time.
    pub fn wait_until_gone(self, patience: Duration) -> io::Result<bool> {
        match self.open() {
            Some(pidfd) => wait_for_end(&pidfd, patience),
            None => Ok(true),
        }
    }

    /// A handle on exactly this process, unless it has ended.
    fn open(self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Checked after opening: from now on the number cannot come to mean another process.
        (started_ticks(self.pid) == Some(self.started_ticks)).then_some(pidfd)
    }
}

/// Whether the process behind the handle has ended within the time.
pub(crate) fn wait_for_end(pidfd: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result? > 0),
        }
    }
}

/// Field 22 of `/proc/PID/stat`; `None` for a process that has ended, also if nobody has waited for it yet.
fn started_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name, which may hold spaces and brackets.
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_ended_and_its_end_is_seen() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        assert!(process.is_alive());
        assert!(!process.wait_until_gone(Duration::ZERO).unwrap());
        process.signal(Signal::KILL).unwrap();
        assert!(process.wait_until_gone(Duration::from_secs(60)).unwrap());
        assert!(!process.is_alive());
        child.wait().unwrap();
        process.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn a_later_process_with_the_same_number_is_another_one() {
        let mut mine = ProcessId::of(std::process::id()).unwrap();
        mine.started_ticks -= 1;
        assert!(!mine.is_alive());
        mine.signal(Signal::KILL).unwrap();
    }
}
