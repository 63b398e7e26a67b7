//! One terminal: a program that leads a session of its own, and what it has put out.
//!
//! [`launch`](super::launch) makes the session and the terminal its controlling one, and becomes the program.

use super::Refusal;
use super::launch::{LAUNCH, SELF};
use super::ring::Ring;
use crate::exec::{Workplace, exit_code, signal_group};
use podflare_wire::guest::{ExecContext, excerpt};
use podflare_wire::limits::TERMINAL_RING_LEN;
use podflare_wire::terminal::{Cause, Command, Program, Size, Terminal as Listed};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcgetpgrp, tcsetattr, tcsetwinsize};
use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::timeout;

/// Bytes read from a terminal at a time.
const READ_LEN: usize = 64 * 1024;

/// How long the program may leave input unread that the kernel has no room for.
const INPUT_TIMEOUT: Duration = Duration::from_secs(5);

/// When to look again at a terminal that no process holds open, though its program lives.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);

/// What a login has, beside the environment of all code.
const LOGIN: [(&str, &str); 4] =
    [("TERM", "xterm-256color"), ("SHELL", "/bin/bash"), ("USER", "root"), ("LOGNAME", "root")];

#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) name: String,
    label: String,
    created_at_ms: u64,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    /// Held while one input is written, so that it stays in one piece.
    typing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    /// Until the program's end; then its process id may be another's.
    live: Option<Live>,
    exit_code: Option<i32>,
}

#[derive(Debug, Clone)]
struct Live {
    /// A duplicate of the terminal's master, for all but its output.
    master: Arc<Sender>,
    leader: Pid,
}

/// What there is for a reader at a place.
#[derive(Debug)]
pub(crate) enum Next {
    Output { seq: u64, data: Vec<u8> },
    Exited(i32),
    Nothing,
}

impl Terminal {
    /// Starts a program. Its output is taken by a task of its own, whether anybody reads it or not.
    pub(crate) fn start(
        name: String,
        program: Program,
        workplace: &Workplace,
    ) -> Result<Arc<Terminal>, Refusal> {
        let failed =
            |error: io::Error| Refusal(Cause::Unable, format!("The terminal could not be opened: {error}"));
        let (master, slave) = open(program.size).map_err(|error| failed(error.into()))?;
        let mut command = workplace.command(SELF);
        command.arg(LAUNCH);
        let label = match &program.command {
            Command::Shell(line) => {
                command.args(["/bin/bash", "-lc", line]);
                line.clone()
            }
            Command::Argv(arguments) => {
                command.args(arguments);
                arguments.join(" ")
            }
        };
        let context = ExecContext { env: program.env, cwd: program.cwd, ..ExecContext::default() };
        command.envs(LOGIN).envs(context.env.iter().map(|(name, value)| (name, value)));
        let stdio = || slave.try_clone().map(Stdio::from);
        command.stdin(stdio().map_err(failed)?).stdout(stdio().map_err(failed)?);
        command.stderr(Stdio::from(slave));
        // Not pipes, but read and written as if they were.
        let output =
            Receiver::from_owned_fd_unchecked(master.try_clone().map_err(failed)?).map_err(failed)?;
        let master = Arc::new(Sender::from_owned_fd_unchecked(master).map_err(failed)?);
        let (child, leader) = workplace
            .within(&context, |workplace| workplace.spawn(&mut command))
            .map_err(|error| Refusal(Cause::Invalid, error.to_string()))?
            .map_err(|error| {
                Refusal(Cause::Unable, format!("The terminal's program could not be started: {error}"))
            })?;
        let live = Live { master, leader };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let terminal = Arc::new(Terminal {
            name,
            label: excerpt(&label).to_owned(),
            created_at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            state: Mutex::new(State { ring: Ring::default(), live: Some(live), exit_code: None }),
            changed: watch::Sender::new(()),
            typing: tokio::sync::Mutex::default(),
        });
        tokio::spawn(run(terminal.clone(), child, output));
        Ok(terminal)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn next(&self, from: u64, len_max: usize) -> Next {
        let state = self.state();
        let (seq, data) = state.ring.read(from, len_max);
        match state.exit_code {
            _ if !data.is_empty() => Next::Output { seq, data },
            Some(exit_code) => Next::Exited(exit_code),
            None => Next::Nothing,
        }
    }

    /// Where its output ends at this moment, and the exit code if that is all of it.
    pub(crate) fn end(&self) -> (u64, Option<i32>) {
        let state = self.state();
        (state.ring.end(), state.exit_code)
    }

    pub(crate) fn has_exited(&self) -> bool {
        self.state().exit_code.is_some()
    }

    pub(crate) fn describe(&self) -> Listed {
        Listed {
            terminal: self.name.clone(),
            label: self.label.clone(),
            created_at_ms: self.created_at_ms,
            exit_code: self.state().exit_code,
        }
    }

    pub(crate) async fn input(&self, data: &[u8]) -> Result<(), Refusal> {
        let Live { master, .. } = self.live()?;
        let write = async {
            let _turn = self.typing.lock().await;
            let mut rest = data;
            while !rest.is_empty() {
                master.writable().await?;
                match master.try_write(rest) {
                    Ok(len) => rest = &rest[len..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            io::Result::Ok(())
        };
        match timeout(INPUT_TIMEOUT, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Refusal(Cause::Exited, format!("The terminal takes no input: {error}"))),
            Err(_) => {
                let message = "The program does not read its input, and the terminal holds no more of it";
                Err(Refusal(Cause::Unread, message.to_owned()))
            }
        }
    }

    pub(crate) fn resize(&self, size: Size) -> Result<(), Refusal> {
        let Live { master, .. } = self.live()?;
        tcsetwinsize(&*master, winsize(size)).map_err(|error| Refusal(Cause::Unable, error.to_string()))
    }

    /// Kills the program's process group, and what it has put in the foreground: as the end of a real terminal does it,
    /// but for good. What is in the background loses its terminal.
    pub(crate) fn kill(&self) {
        let state = self.state();
        let Some(Live { master, leader }) = &state.live else { return };
        if let Ok(foreground) = tcgetpgrp(&**master)
            && foreground != *leader
        {
            signal_group(foreground, Signal::KILL);
        }
        signal_group(*leader, Signal::KILL);
        // Before it has made its session it has no group of its own.
        rustix::process::kill_process(*leader, Signal::KILL).ok();
    }

    fn live(&self) -> Result<Live, Refusal> {
        let exited = || Refusal(Cause::Exited, "The program in this terminal has ended".to_owned());
        self.state().live.clone().ok_or_else(exited)
    }

    /// Takes what the terminal holds at this moment.
    fn take(&self, output: &Receiver, buffer: &mut [u8]) -> io::Result<usize> {
        let len = output.try_read(buffer)?;
        self.keep(&buffer[..len]);
        Ok(len)
    }

    fn keep(&self, output: &[u8]) {
        self.state().ring.push(output);
        self.changed.send_replace(());
    }

    /// Held for a few instructions, never across an await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a program's output until its end.
async fn run(terminal: Arc<Terminal>, mut child: Child, output: Receiver) {
    let mut buffer = vec![0; READ_LEN];
    let status = loop {
        tokio::select! {
            biased;
            status = child.wait() => break status,
            // An error comes again with the reading.
            _ = output.readable() => match terminal.take(&output, &mut buffer) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // No process holds it open.
                Ok(0) | Err(_) => {
                    if let Ok(status) = timeout(REOPEN_PAUSE, child.wait()).await {
                        break status;
                    }
                }
            }
        }
    };
    // From here on its process id may be another's.
    terminal.state().live = None;
    drain(&output, &mut buffer, |last| terminal.keep(last));
    // With the last hold on the master, unless an input is under way, what is left of the session is hung up.
    drop(output);
    terminal.state().exit_code = Some(status.map_or(-1, |status: ExitStatus| exit_code(status)));
    terminal.changed.send_replace(());
}

/// Takes what there is, whether the runtime has heard of it or not.
fn drain(output: &Receiver, buffer: &mut [u8], mut keep: impl FnMut(&[u8])) {
    let mut left = TERMINAL_RING_LEN;
    while let Ok(len @ 1..) = retry_on_intr(|| rustix::io::read(output, &mut *buffer)) {
        keep(&buffer[..len]);
        // What the program has left in the background may write for ever.
        left = left.saturating_sub(len);
        if left == 0 {
            break;
        }
    }
}

fn open(size: Size) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    let mut modes = tcgetattr(&slave)?;
    // So that backspace takes away a whole character.
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(&slave, OptionalActions::Now, &modes)?;
    tcsetwinsize(&master, winsize(size))?;
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok((master, slave))
}

fn winsize(size: Size) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_output_is_taken_though_the_runtime_has_not_heard_of_it() {
        let (master, slave) = open(Size { cols: 80, rows: 24 }).unwrap();
        let output = Receiver::from_owned_fd_unchecked(master).unwrap();
        rustix::io::write(&slave, b"last words").unwrap();
        drop(slave);
        // Nothing has been awaited since: the runtime says that there is nothing.
        let unheard = output.try_read(&mut [0; 16]).unwrap_err();
        assert_eq!(unheard.kind(), io::ErrorKind::WouldBlock);
        let mut kept: Vec<u8> = Vec::new();
        drain(&output, &mut [0; 4], |last| kept.extend(last));
        assert_eq!(kept, b"last words");
    }
}
