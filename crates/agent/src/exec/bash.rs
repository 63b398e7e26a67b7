//! One `bash -c` for one execution: a process group of its own, both outputs captured, its input in memory.

use super::{EnterError, Workplace, signal_group};
use crate::output::Capture;
use podflare_wire::guest::ExecContext;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::Child;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

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
    #[error("Could not keep the input in memory: {0}")]
    Stdin(#[source] io::Error),
    #[error(transparent)]
    Enter(#[from] EnterError),
    #[error("Could not start bash: {0}")]
    Spawn(#[source] io::Error),
}

/// How long the output of processes that bash does not wait for, as in `exec > >(tee log)`, may be
/// silent after its end before it is taken as complete: twice as long as bash itself has run, since machines
/// differ much in how long they take to start a `tee`. And how long it is read on at most.
const SILENCE_MIN: Duration = Duration::from_millis(20);
const SILENCE_MAX: Duration = Duration::from_millis(250);
const READ_ON_MAX: Duration = SILENCE_MAX;

#[derive(Debug)]
pub(crate) struct Bash {
    child: Child,
    leader: Pid,
    capture: Capture,
    started: Instant,
    ended: Option<Ended>,
}

/// bash itself has ended, others still hold its pipes.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    silence: Duration,
    silent_at: Instant,
    read_until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BashEvent {
    /// There is output to take.
    Output,
    /// It has ended; what output remains is to be taken, and then it is to be left.
    Ended(ExitStatus),
}

impl Bash {
    pub(crate) fn start(
        code: &str,
        context: &ExecContext,
        workplace: &Workplace,
    ) -> Result<Bash, StartBashError> {
        if code.contains('\0') {
            return Err(StartBashError::NulByte);
        }
        let (capture, sinks) = Capture::new().map_err(StartBashError::Capture)?;
        let mut command = workplace.command(BASH);
        command.process_group(0).stdout(sinks.stdout).stderr(sinks.stderr).args(["-c", "--"]);
        command.envs(context.env.iter().map(|(name, value)| (name, value)));
        if !context.stdin.is_empty() {
            command.stdin(Stdio::from(input(&context.stdin).map_err(StartBashError::Stdin)?));
        }
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
        let (child, leader) = workplace
            .within(context, |workplace| workplace.spawn(&mut command))?
            .map_err(StartBashError::Spawn)?;
        drop(script);
        Ok(Bash { child, leader, capture, started: Instant::now(), ended: None })
    }

    /// Waits for what happens next; output is only looked at if there is room for it.
    pub(crate) async fn event(&mut self, has_room: bool) -> io::Result<BashEvent> {
        let Some(ended) = &mut self.ended else {
            tokio::select! {
                biased;
                status = self.child.wait() => return self.read_on(status?),
                result = self.capture.readable(), if has_room => return result.map(|()| BashEvent::Output),
            }
        };
        if !self.capture.has_writers() {
            return Ok(BashEvent::Ended(ended.status));
        }
        tokio::select! {
            biased;
            result = self.capture.readable(), if has_room => {
                ended.silent_at = Instant::now() + ended.silence;
                result.map(|()| BashEvent::Output)
            }
            () = sleep_until(ended.silent_at.min(ended.read_until)) => Ok(BashEvent::Ended(ended.status)),
        }
    }

    fn read_on(&mut self, status: ExitStatus) -> io::Result<BashEvent> {
        if !self.capture.has_writers() {
            return Ok(BashEvent::Ended(status));
        }
        let now = Instant::now();
        let silence = (2 * (now - self.started)).clamp(SILENCE_MIN, SILENCE_MAX);
        let (silent_at, read_until) = (now + silence, now + READ_ON_MAX);
        self.ended = Some(Ended { status, silence, silent_at, read_until });
        Ok(BashEvent::Output)
    }

    pub(crate) fn capture(&mut self) -> &mut Capture {
        &mut self.capture
    }

    /// Lets it, and what it has left in the background, run on. Nobody reads their output. Its time is still
    /// limited.
    pub(crate) fn leave(mut self, times_out: Option<Instant>, kill_after: Duration) {
        self.capture.abandon();
        if self.ended.is_some() {
            return;
        }
        tokio::spawn(async move {
            if let Some(times_out) = times_out
                && timeout_at(times_out, self.child.wait()).await.is_err()
            {
                signal_group(self.leader, Signal::TERM);
                if timeout(kill_after, self.child.wait()).await.is_err() {
                    signal_group(self.leader, Signal::KILL);
                }
            }
            self.child.wait().await
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // After its end its id may be another's.
        if self.ended.is_none() {
            signal_group(self.leader, signal);
        }
    }
}

/// A file and not a pipe: nobody has to feed it, and a process that does not read it holds up nothing.
fn input(bytes: &[u8]) -> io::Result<File> {
    let mut input = File::from(memfd_create("stdin", MemfdFlags::CLOEXEC)?);
    input.write_all(bytes)?;
    input.rewind()?;
    Ok(input)
}

/// A file that the next process inherits. Nothing else is started before it is closed again.
fn script(code: &str) -> io::Result<File> {
    let mut script = File::from(memfd_create("script", MemfdFlags::empty())?);
    script.write_all(code.as_bytes())?;
    Ok(script)
}
