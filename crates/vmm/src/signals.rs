//! How the work of devices goes on outside of them: an interrupt for the guest, an event for the main
//! thread. Shared by the main thread and the vCPUs' threads.

use crate::devices::Due;
use crate::kvm::vm::InterruptLines;
use std::os::fd::{AsRawFd, RawFd};
use vmm_sys_util::eventfd::EventFd;

#[derive(Debug)]
pub(crate) struct Signals {
    lines: InterruptLines,
    /// A vCPU has stopped by itself.
    ended: EventFd,
    /// A round of all queues is due. It stays signalled while vCPUs stop and start again: a fork loses
    /// none.
    round: EventFd,
}

impl Signals {
    pub(crate) fn new(lines: InterruptLines) -> std::io::Result<Signals> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Signals { lines, ended: event()?, round: event()? })
    }

    pub(crate) fn ended_fd(&self) -> RawFd {
        self.ended.as_raw_fd()
    }

    pub(crate) fn round_fd(&self) -> RawFd {
        self.round.as_raw_fd()
    }

    pub(crate) fn settle(&self, due: Due) {
        if let Some(gsi) = due.interrupt {
            self.lines.raise(gsi);
        }
        if due.round {
            signal(&self.round);
        }
    }

    pub(crate) fn vcpu_ended(&self) {
        signal(&self.ended);
    }

    /// From now on another round is due only if somebody says so again.
    pub(crate) fn take_round(&self) {
        // Fails only where no round is due.
        self.round.read().ok();
    }
}

fn signal(event: &EventFd) {
    // Fails only when it has been signalled so often that its counter is full, which it still says.
    event.write(1).ok();
}
