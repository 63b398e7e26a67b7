//! fork(2), as a microVM needs it: the copy is a child of this process's parent, and comes with a pidfd.

use rustix::process::Pid;
use std::os::fd::{FromRawFd, OwnedFd};

#[derive(Debug)]
pub(crate) enum Side {
    Source { copy: Pid, pidfd: OwnedFd },
    Copy,
}

#[derive(Debug, thiserror::Error)]
#[error("The kernel could not copy the process")]
pub(crate) struct CopyError(#[source] std::io::Error);

/// Copies this process. Only the calling thread is copied. Its callers have parked every other thread of ours,
/// so that none owns anything or holds a lock; a kernel's own worker that KVM may show among the process's
/// threads holds no lock of ours either.
pub(crate) fn copy_process() -> Result<Side, CopyError> {
    let mut pidfd: libc::c_int = -1;
    let args = libc::clone_args {
        flags: u64::from((libc::CLONE_PARENT | libc::CLONE_PIDFD).cast_unsigned()),
        pidfd: (&raw mut pidfd).addr() as u64,
        child_tid: 0,
        parent_tid: 0,
        // The signal at the copy's end is that of its sibling, this process.
        exit_signal: 0,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: without a stack and without CLONE_VM this is fork(2): the copy returns here with memory
    // of its own. No other thread holds a lock that it could inherit. `args` outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match i32::try_from(result).ok().map(Pid::from_raw) {
        Some(None) => Ok(Side::Copy),
        Some(Some(copy)) if result > 0 => {
            // SAFETY: the kernel has just put a new descriptor here that nobody else knows.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Source { copy, pidfd })
        }
        Some(Some(_)) | None => Err(CopyError(std::io::Error::last_os_error())),
    }
}
