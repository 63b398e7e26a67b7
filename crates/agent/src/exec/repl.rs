//! The one Python REPL: starts it, hands it code and seeds, and starts another when it dies.
//!
//! ```text
//!             Ready            run               Done
//!   Starting ───────▶ Idle ──────────▶ Busy ─────────────▶ Idle
//!       │ ended         │ ended          │ ended
//!       ▼               ▼                ▼
//!     Absent        Starting again, and the next call (or this one) is told
//! ```
//!
//! `Absent` is left by the next call, so that a broken Python is not started in a loop.
//! The other side is `repl.py`; the two agree on the frames that are written down there.

use super::{Workplace, signal_group};
use crate::output::{Backlog, Capture};
use podflare_wire::guest::{ExecContext, OutputStream, ReplRenewal};
use rustix::fs::{MemfdFlags, OFlags, memfd_create};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitStatus;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::process::Child;

pub(crate) const SEED_LEN: usize = 64;

const SOURCE: &str = include_str!("../repl/repl.py");

/// Runs the source that a descriptor holds, so that it neither lies in a file nor fills `ps`. It must
/// import nothing from the directory, which `-c` puts first on the path: a `struct.py` of the user
/// would keep every later REPL from starting.
const BOOTSTRAP: &str = "import sys; del sys.path[0]; \
    exec(compile(open(int(sys.argv[1]), 'rb').read(), '<podflare>', 'exec'))";

/// Asks a busy REPL to renew itself. Ignored by default, so it harms neither a REPL that has not set
/// its handler yet nor a program that the user's code has put in its place with exec.
const RENEWAL_SIGNAL: Signal = Signal::URG;

/// For setpriv(1), which becomes Python: an agent that is started again after its end must not share
/// the machine with the former one's REPL. An idle one ends by itself, a busy one only so.
const ENDS_WITH_THE_AGENT: [&str; 2] = ["--pdeathsig", "KILL"];

const COMMAND_EXEC: u8 = 1;
const COMMAND_RENEW: u8 = 2;
const REPLY_READY: u8 = 1;
const REPLY_DONE: u8 = 2;
const REPLY_RENEWED: u8 = 3;
const REPLY_LEN: usize = 9;

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartReplError {
    #[error("Could not make the pipes of the Python process: {0}")]
    Pipes(#[source] io::Error),
    #[error("Could not start setpriv and python3: {0}")]
    Spawn(#[source] io::Error),
}

#[derive(Debug, thiserror::Error)]
#[error("Could not hand fresh entropy to the Python process: {0}")]
pub(crate) struct RenewReplError(#[source] Errno);

#[derive(Debug)]
pub(crate) struct Repl {
    process: Option<Process>,
    /// Output that belongs to no call yet.
    backlog: Backlog,
    /// Why the variables are gone, for the next call.
    loss: Option<ExitStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplEvent {
    /// There is output to take.
    Output,
    /// Nothing for the outside: it has become ready, or has taken more of a long command.
    Progress,
    /// The call has ended, with this exit code.
    Done(i32),
    Ended(ExitStatus),
}

/// One call.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) code: String,
    pub(crate) context: ExecContext,
}

/// What an ended process leaves.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) capture: Capture,
    /// It ended before it could take code.
    pub(crate) never_ready: bool,
    /// The call that it was never given.
    pub(crate) waiting_cell: Option<Cell>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    pid: Pid,
    capture: Capture,
    commands: Sender,
    /// `None` when the process has closed it: it is ending, or has become another program.
    replies: Option<Receiver>,
    seeds_pipe: OwnedFd,
    state: State,
    /// A call that waits until the process is idle and renewed.
    waiting_cell: Option<Cell>,
    /// What did not fit into the pipe yet.
    unsent: Vec<u8>,
    /// How many calls it has been given. A reply to an earlier one than the last is a repetition.
    calls: u32,
    /// How many seeds it has been given, and which was the last that it has acknowledged.
    seeds: u32,
    seeds_applied: u32,
    /// The process has closed the pipe of seeds, and so must not run anything new.
    takes_no_seeds: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Idle,
    Busy,
}

impl Repl {
    /// Nothing runs yet; [`Repl::start`] changes that.
    pub(crate) fn new() -> Repl {
        Repl { process: None, backlog: Backlog::default(), loss: None }
    }

    pub(crate) fn start(&mut self, workplace: &Workplace) -> Result<(), StartReplError> {
        self.process = Some(Process::start(workplace)?);
        Ok(())
    }

    /// Runs code as soon as the process is idle and renewed. Starts a process if there is none.
    pub(crate) fn run(&mut self, cell: Cell, workplace: &Workplace) -> Result<(), StartReplError> {
        if self.process.is_none() {
            self.start(workplace)?;
        }
        if let Some(process) = &mut self.process {
            process.capture.rest();
            process.waiting_cell = Some(cell);
            process.run_waiting_cell();
        }
        Ok(())
    }

    /// What the next call is to be told first: output since the last one, and why its variables are gone.
    pub(crate) fn take_backlog(&mut self) -> (Vec<(OutputStream, Vec<u8>)>, Option<ExitStatus>) {
        (self.backlog.take(), self.loss.take())
    }

    pub(crate) async fn event(&mut self, has_room: bool) -> io::Result<ReplEvent> {
        match &mut self.process {
            Some(process) => process.event(has_room).await,
            None => std::future::pending().await,
        }
    }

    pub(crate) fn capture(&mut self) -> Option<&mut Capture> {
        self.process.as_mut().map(|process| &mut process.capture)
    }

    /// Keeps output that was written while no call ran.
    pub(crate) fn take_idle_output(&mut self) {
        if let Some(process) = &mut self.process {
            process.capture.take(usize::MAX, |stream, data| self.backlog.push(stream, data));
        }
    }

    /// The process has ended. Its output is still to be taken from what remains.
    pub(crate) fn bury(&mut self) -> Option<Remains> {
        let Process { capture, state, waiting_cell, .. } = self.process.take()?;
        Some(Remains { capture, never_ready: state == State::Starting, waiting_cell })
    }

    pub(crate) fn remember_loss(&mut self, status: ExitStatus) {
        self.loss = Some(status);
    }

    /// Makes the process's generators its own, at the latest before it runs anything new.
    pub(crate) fn renew(&mut self, seed: &[u8; SEED_LEN]) -> Result<(), RenewReplError> {
        // One that starts later is seeded by the renewed kernel.
        let Some(process) = &mut self.process else { return Ok(()) };
        let number = process.seeds + 1;
        match rustix::io::write(&process.seeds_pipe, &[&number.to_le_bytes(), &seed[..]].concat()) {
            Ok(_) => {}
            Err(Errno::PIPE) => {
                process.refuse_new_code();
                return Ok(());
            }
            Err(errno) => return Err(RenewReplError(errno)),
        }
        process.seeds = number;
        if process.state == State::Busy {
            process.signal(RENEWAL_SIGNAL);
        } else {
            process.send(COMMAND_RENEW, number, &[]);
        }
        Ok(())
    }

    /// What has become of the last renewal, unless that is still to be waited for.
    pub(crate) fn renewal(&self) -> Option<ReplRenewal> {
        match &self.process {
            Some(process) if process.takes_no_seeds && process.state == State::Busy => {
                Some(ReplRenewal::Pending)
            }
            Some(process) if !process.is_renewed() => None,
            Some(_) | None => Some(ReplRenewal::Done),
        }
    }

    /// Takes back a call that the process has not been given yet.
    pub(crate) fn withdraw(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.waiting_cell.take().is_some())
    }

    /// Raises KeyboardInterrupt in the running call.
    pub(crate) fn interrupt(&self) {
        if let Some(process) = &self.process {
            process.signal(Signal::INT);
        }
    }

    /// Signals also the processes that the REPL has started: as a terminal's Ctrl-C does, it reaches
    /// what `os.system` waits for.
    pub(crate) fn signal_all(&self, signal: Signal) {
        if let Some(process) = &self.process {
            // Its group exists only since its `setsid`; before that it has started nothing.
            signal_group(process.pid, signal);
            process.signal(signal);
        }
    }
}

impl Process {
    fn start(workplace: &Workplace) -> Result<Process, StartReplError> {
        let (capture, sinks) = Capture::new().map_err(StartReplError::Pipes)?;
        let pipes = Pipes::new().map_err(StartReplError::Pipes)?;
        let mut command = workplace.command("setpriv");
        command.args(ENDS_WITH_THE_AGENT).arg("python3").arg("-c").arg(BOOTSTRAP);
        command.stdout(sinks.stdout).stderr(sinks.stderr);
        for end in &pipes.inherited {
            command.arg(end.as_raw_fd().to_string());
        }
        command.arg(RENEWAL_SIGNAL.as_raw().to_string());
        let (child, pid) = workplace.spawn(&mut command).map_err(StartReplError::Spawn)?;
        Ok(Process {
            child,
            pid,
            capture,
            commands: pipes.commands,
            replies: Some(pipes.replies),
            seeds_pipe: pipes.seeds,
            state: State::Starting,
            waiting_cell: None,
            unsent: Vec::new(),
            calls: 0,
            seeds: 0,
            seeds_applied: 0,
            takes_no_seeds: false,
        })
    }

    async fn event(&mut self, has_room: bool) -> io::Result<ReplEvent> {
        tokio::select! {
            biased;
            reply = read_reply(self.replies.as_ref()) => Ok(self.digest(reply)),
            result = self.commands.writable(), if !self.unsent.is_empty() => {
                result?;
                self.send_more();
                Ok(ReplEvent::Progress)
            }
            status = self.child.wait() => Ok(ReplEvent::Ended(status?)),
            result = self.capture.readable(), if has_room => result.map(|()| ReplEvent::Output),
        }
    }

    fn digest(&mut self, reply: Reply) -> ReplEvent {
        match (reply, self.state) {
            (Reply::Frame(REPLY_READY, ..), State::Starting) => self.state = State::Idle,
            (Reply::Frame(REPLY_RENEWED, number, _), _) => self.seeds_applied = number,
            (Reply::Frame(REPLY_DONE, number, exit_code), State::Busy) if number == self.calls => {
                self.state = State::Idle;
                if self.takes_no_seeds {
                    self.refuse_new_code();
                } else if !self.is_renewed() {
                    self.send(COMMAND_RENEW, self.seeds, &[]);
                }
                return ReplEvent::Done(exit_code);
            }
            // A repetition.
            (Reply::Frame(REPLY_READY, ..), _) => {}
            (Reply::Frame(REPLY_DONE, number, _), _) if (1..=self.calls).contains(&number) => {}
            (Reply::End, _) => self.replies = None,
            // The user's code has written to the pipe: only a new process is sound.
            (Reply::Frame(..) | Reply::Garbage, _) => self.signal(Signal::KILL),
        }
        self.run_waiting_cell();
        ReplEvent::Progress
    }

    /// What runs may go on to its end. After it only a new process is sound, which the end of this
    /// one brings about.
    fn refuse_new_code(&mut self) {
        self.takes_no_seeds = true;
        if self.state != State::Busy {
            self.signal(Signal::KILL);
        }
    }

    /// One that has ended meanwhile needs no signal; its id is its own until its end is noticed here.
    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).ok();
    }

    fn run_waiting_cell(&mut self) {
        if self.state == State::Idle
            && self.is_renewed()
            && let Some(Cell { code, context }) = self.waiting_cell.take()
        {
            self.state = State::Busy;
            self.calls += 1;
            let surroundings = surroundings(&context);
            let lens =
                [surroundings.len(), context.stdin.len()].map(|len| u32::try_from(len).unwrap_or(u32::MAX));
            let [surroundings_len, stdin_len] = lens.map(u32::to_le_bytes);
            let parts = [&surroundings_len[..], &stdin_len, &surroundings, &context.stdin, code.as_bytes()];
            self.send(COMMAND_EXEC, self.calls, &parts);
        }
    }

    fn is_renewed(&self) -> bool {
        self.seeds_applied == self.seeds && !self.takes_no_seeds
    }

    /// Sends a command, or as much of it as the pipe takes now. `limits::REQUEST_FRAME_LEN_MAX` bounds it.
    fn send(&mut self, kind: u8, number: u32, parts: &[&[u8]]) {
        let body_len: usize = parts.iter().map(|part| part.len()).sum();
        let len = u32::try_from(body_len).unwrap_or(u32::MAX);
        self.unsent.reserve(1 + 2 * size_of::<u32>() + body_len);
        self.unsent.push(kind);
        self.unsent.extend_from_slice(&number.to_le_bytes());
        self.unsent.extend_from_slice(&len.to_le_bytes());
        for part in parts {
            self.unsent.extend_from_slice(part);
        }
        self.send_more();
    }

    fn send_more(&mut self) {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match self.commands.try_write(&self.unsent[sent..]) {
                Ok(len) => sent += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The process is ending, which its exit status will tell.
                Err(_) => sent = self.unsent.len(),
            }
        }
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            self.unsent.shrink_to(4096);
        }
    }
}

/// A call's directory, or nothing, and its variables, with a zero between two. None of them has one within.
fn surroundings(context: &ExecContext) -> Vec<u8> {
    let mut surroundings = context.cwd.clone().unwrap_or_default();
    for (name, value) in &context.env {
        surroundings.push('\0');
        surroundings.push_str(name);
        surroundings.push('=');
        surroundings.push_str(value);
    }
    surroundings.into_bytes()
}

enum Reply {
    /// Kind, number of what is answered, exit code.
    Frame(u8, u32, i32),
    Garbage,
    End,
}

async fn read_reply(replies: Option<&Receiver>) -> Reply {
    let Some(replies) = replies else { return std::future::pending().await };
    loop {
        if replies.readable().await.is_err() {
            return Reply::End;
        }
        let mut reply = [0; REPLY_LEN];
        match replies.try_read(&mut reply) {
            Ok(REPLY_LEN) => {
                let [kind, n0, n1, n2, n3, exit_code @ ..] = reply;
                let number = u32::from_le_bytes([n0, n1, n2, n3]);
                return Reply::Frame(kind, number, i32::from_le_bytes(exit_code));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return Reply::End,
            Ok(_) => return Reply::Garbage,
        }
    }
}

struct Pipes {
    commands: Sender,
    replies: Receiver,
    seeds: OwnedFd,
    /// The runner's source and its ends of the three pipes, in the order of its arguments.
    inherited: [OwnedFd; 4],
}

impl Pipes {
    fn new() -> io::Result<Pipes> {
        let mut source = File::from(memfd_create("repl.py", MemfdFlags::CLOEXEC)?);
        source.write_all(SOURCE.as_bytes())?;
        source.rewind()?;
        let (their_commands, commands) = pipe_with(PipeFlags::CLOEXEC)?;
        let (replies, their_replies) = pipe_with(PipeFlags::CLOEXEC)?;
        let (their_seeds, seeds) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&seeds, OFlags::NONBLOCK)?;
        let inherited = [OwnedFd::from(source), their_commands, their_replies, their_seeds];
        for end in &inherited {
            // The agent starts nothing else before it closes them.
            fcntl_setfd(end, FdFlags::empty())?;
        }
        let commands = Sender::from_owned_fd(commands)?;
        let replies = Receiver::from_owned_fd(replies)?;
        Ok(Pipes { commands, replies, seeds, inherited })
    }
}
