//! A VMM's process by its pidfd: waiting for its end, killing it, reaping it.

use crate::readiness::readable;
use crate::vmm::Ending;
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub(super) struct Child(AsyncFd<OwnedFd>);

impl Child {
    /// Takes a pidfd, which must be that of a child of this process: a VMM that has been taken over
    /// may send any.
    pub(super) fn new(pidfd: OwnedFd) -> io::Result<Child> {
        wait(&pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)?;
        Ok(Child(readable(pidfd)?))
    }

    /// Waits for the end of the process and reaps it.
    pub(super) async fn reap(&self) -> io::Result<Ending> {
        loop {
            let mut guard = self.0.readable().await?;
            match wait(self.0.get_ref(), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)? {
                Some(status) => return Ok(ending(&status)),
                None => guard.clear_ready(),
            }
        }
    }

    pub(super) fn kill(&self) {
        if let Err(errno) = pidfd_send_signal(self.0.get_ref(), Signal::KILL)
            && errno != Errno::SRCH
        {
            tracing::error!(%errno, "Could not kill a VMM");
        }
    }
}

fn wait(pidfd: &OwnedFd, options: WaitIdOptions) -> io::Result<Option<WaitIdStatus>> {
    Ok(waitid(WaitId::PidFd(pidfd.as_fd()), options)?)
}

fn ending(status: &WaitIdStatus) -> Ending {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ending::Exited { code },
        (None, Some(signal)) => Ending::Killed { signal },
        (None, None) => Ending::Lost { detail: "its process is gone".to_owned() },
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::{Command, Stdio};

    /// A process that stands in for a VMM, by its pid and pidfd. It ends with this one.
    pub(in crate::vmm::process) fn stand_in() -> (u32, OwnedFd) {
        #[expect(clippy::zombie_processes, reason = "the code under test reaps it by its pidfd")]
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        std::mem::forget(child.stdin.take());
        (child.id(), pidfd)
    }

    #[tokio::test]
    async fn a_killed_child_is_reaped_with_its_signal() {
        let child = Child::new(stand_in().1).unwrap();
        child.kill();
        assert_eq!(child.reap().await.unwrap(), Ending::Killed { signal: Signal::KILL.as_raw() });
        assert!(child.reap().await.is_err(), "it is gone");
    }

    #[tokio::test]
    async fn a_process_that_is_no_child_is_refused() {
        let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        assert!(Child::new(own).is_err());
    }
}
