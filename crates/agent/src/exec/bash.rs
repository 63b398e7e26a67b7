//! One `bash -c` for one execution: a process group of its own, no input, both outputs captured.

use super::{Workplace, signal_group};
use crate::output::Capture;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::process::ExitStatus;
use tokio::process::Child;

/// By its path: a search would be another reason for fork(2), as `Workplace` says.
const BASH: &str = "/bin/bash";

/// Longer code does not fit into an argument of execve(2) (128 KiB with the final zero on Linux).
const ARGUMENT_LEN_MAX: usize = 128 * 1024 - 1;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartBashError {
    #[error("The code contains a NUL byte, which bash cannot take")]
    NulByte,
    #[error("Could not capture bash's output: {0}")]
    Capture(#[source] io::Error),
    #[error("Could not keep the code in memory: {0}")]
    Script(#[source] io::Error),
    #[error("Could not start bash: {0}")]
    Spawn(#[source] io::Error),
}

#[derive(Debug)]
pub(crate) struct Bash {
    child: Child,
    leader: Pid,
    capture: Capture,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BashEvent {
    /// There is output to take.
    Output,
    Ended(ExitStatus),
}

impl Bash {
    pub(crate) fn start(code: &str, workplace: &Workplace<'_>) -> Result<Bash, StartBashError> {
        if code.contains('\0') {
            return Err(StartBashError::NulByte);
        }
        let (capture, sinks) = Capture::new().map_err(StartBashError::Capture)?;
        let mut command = workplace.command(BASH);
        command.process_group(0).stdout(sinks.stdout).stderr(sinks.stderr).arg("-c");
        let script = if code.len() <= ARGUMENT_LEN_MAX {
            command.arg(code);
            None
        } else {
            let script = script(code).map_err(StartBashError::Script)?;
            // Only a builtin reads the file, and it is closed before the code runs: the code sees
            // the same `$0`, descriptors and line numbers as that of a short `bash -c`.
            let fd = script.as_raw_fd();
            command.arg(format!("eval \"exec {fd}<&-;$(</proc/self/fd/{fd})\""));
            Some(script)
        };
        let (child, leader) = workplace.spawn(&mut command).map_err(StartBashError::Spawn)?;
        drop(script);
        Ok(Bash { child, leader, capture })
    }

    /// Waits for what happens next; output is only looked at if there is room for it.
    pub(crate) async fn event(&mut self, has_room: bool) -> io::Result<BashEvent> {
        tokio::select! {
            biased;
            status = self.child.wait() => Ok(BashEvent::Ended(status?)),
            result = self.capture.readable(), if has_room => result.map(|()| BashEvent::Output),
        }
    }

    pub(crate) fn capture(&mut self) -> &mut Capture {
        &mut self.capture
    }

    /// After its end: processes that it has left in the background keep their pipes.
    pub(crate) fn into_capture(self) -> Capture {
        self.capture
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal_group(self.leader, signal);
    }
}

/// A file that the next process inherits. Nothing else is started before it is closed again.
fn script(code: &str) -> io::Result<File> {
    let mut script = File::from(memfd_create("script", MemfdFlags::empty())?);
    script.write_all(code.as_bytes())?;
    Ok(script)
}
