//! Terminals of a sandbox: what is asked of the guest's agent, each on a stream of its own. Nothing is kept here.

use super::call::{CallError, checked_cwd, checked_env};
use super::registry::FindError;
use super::{Attached, Sandbox};
use crate::app::App;
use crate::chain::chain;
use crate::http::limits::TERMINAL_CLIENTS_MAX;
use crate::printable::printable;
use crate::vmm::{GuestStream, VmmError};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::BytesMut;
use podflare_api::id::PtyId;
use podflare_api::pty::{CreatePty, PtyChunk, PtyInfo, PtyRead};
use podflare_wire::codec::{DecodeError, FrameReader, encode_frame};
use podflare_wire::limits::{
    TERMINAL_ARGUMENTS_MAX, TERMINAL_COMMAND_LEN_MAX, TERMINAL_CONNECTIONS_MAX, TERMINAL_EVENT_LEN_MAX,
    TERMINAL_INPUT_LEN_MAX, TERMINAL_READ_LEN_MAX, TERMINAL_SIDE_MAX,
};
use podflare_wire::terminal::{Cause, Command, Event, Program, Request, Size, TERMINAL_PORT};
use std::fmt;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// How long a guest may take to answer, beside the time that it was given.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest time that a read may wait for output: clients give up after it.
const READ_TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// How long after its streams the end of a sandbox may be noticed.
const END_NOTICE: Duration = Duration::from_secs(1);

/// Bytes read from a stream at a time.
const READ_LEN: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(
        "Give one of `shellCmd` and `argv`, not empty, without NUL characters, of at most {TERMINAL_COMMAND_LEN_MAX} bytes and {TERMINAL_ARGUMENTS_MAX} arguments"
    )]
    Command,
    #[error("`cols` and `rows` must be within 1 to {TERMINAL_SIDE_MAX}")]
    Size,
    #[error("`data_b64` is not base64")]
    NotBase64(#[source] base64::DecodeError),
    #[error("The input has {len} bytes; the most is {TERMINAL_INPUT_LEN_MAX}")]
    InputTooLong { len: usize },
    #[error("`max_bytes` must be within 1 to {TERMINAL_READ_LEN_MAX}")]
    ReadLen,
    #[error("{TERMINAL_CONNECTIONS_MAX} clients are at terminals of this sandbox already")]
    TooMany,
    #[error(
        "{TERMINAL_CLIENTS_MAX} clients are at terminals of this host already; try again when some have left, or read a terminal's output without waiting"
    )]
    HostFull,
    #[error("The sandbox's guest cannot be reached")]
    Connect(#[source] VmmError),
    #[error("The stream to the sandbox's guest broke")]
    Io(#[from] std::io::Error),
    #[error("The sandbox's guest closed its stream: its agent, and with it all terminals, may have ended")]
    Closed,
    #[error("The sandbox's guest does not keep to the protocol")]
    Protocol,
    #[error("The sandbox's guest does not keep to the protocol")]
    Decode(#[from] DecodeError),
    #[error("The sandbox's guest has not answered in time")]
    Silent,
    #[error("{message}")]
    Refused { cause: Cause, message: String },
}

/// What the guest says on one stream. For as long as it is held, the sandbox is not idle.
pub struct Terminal {
    stream: Box<dyn GuestStream>,
    frames: FrameReader,
    buffer: BytesMut,
    sandbox: Sandbox,
    _attached: Attached,
    _place: OwnedSemaphorePermit,
    _host_place: Option<OwnedSemaphorePermit>,
}

/// Starts a program in a new terminal.
pub async fn create(app: &App, id: &str, request: CreatePty) -> Result<(PtyId, Terminal), TerminalError> {
    let program = program(request)?;
    let name = PtyId::random();
    let request = Request::Create { terminal: name.to_string(), program };
    match ask_for_answer(app, id, &request, Duration::ZERO).await? {
        (terminal, Event::Ready) => Ok((name, terminal)),
        _ => Err(TerminalError::Protocol),
    }
}

/// All output of a terminal that is kept, and what comes.
pub async fn attach(app: &App, id: &str, terminal: String) -> Result<Terminal, TerminalError> {
    match ask_for_answer(app, id, &Request::Attach { terminal }, Duration::ZERO).await? {
        (terminal, Event::Ready) => Ok(terminal),
        _ => Err(TerminalError::Protocol),
    }
}

pub async fn read(app: &App, id: &str, terminal: String, read: &PtyRead) -> Result<PtyChunk, TerminalError> {
    let len_max = Some(read.max_bytes).filter(|len| (1..=TERMINAL_READ_LEN_MAX).contains(len));
    let len_max = len_max.ok_or(TerminalError::ReadLen)?;
    let patience = Duration::from_millis(read.timeout_ms).min(READ_TIMEOUT_MAX);
    let timeout_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    let request = Request::Read { terminal, since_seq: read.since_seq, len_max, timeout_ms };
    match ask_for_answer(app, id, &request, patience).await?.1 {
        Event::Chunk(chunk) => Ok(PtyChunk {
            data_b64: BASE64_STANDARD.encode(&chunk.data),
            next_seq: chunk.next_seq,
            exit_code: chunk.exit_code,
            truncated: chunk.truncated,
        }),
        _ => Err(TerminalError::Protocol),
    }
}

pub async fn input(app: &App, id: &str, terminal: String, data_b64: &str) -> Result<(), TerminalError> {
    let data = BASE64_STANDARD.decode(data_b64).map_err(TerminalError::NotBase64)?;
    if data.len() > TERMINAL_INPUT_LEN_MAX {
        return Err(TerminalError::InputTooLong { len: data.len() });
    }
    done(app, id, &Request::Input { terminal, data }).await
}

pub async fn resize(
    app: &App,
    id: &str,
    terminal: String,
    cols: u16,
    rows: u16,
) -> Result<(), TerminalError> {
    done(app, id, &Request::Resize { terminal, size: size(cols, rows)? }).await
}

pub async fn kill(app: &App, id: &str, terminal: String) -> Result<(), TerminalError> {
    done(app, id, &Request::Kill { terminal }).await
}

pub async fn list(app: &App, id: &str) -> Result<Vec<PtyInfo>, TerminalError> {
    let Event::Terminals(terminals) = ask_for_answer(app, id, &Request::List, Duration::ZERO).await?.1 else {
        return Err(TerminalError::Protocol);
    };
    let infos = terminals.into_iter().map(|terminal| {
        Ok(PtyInfo {
            pty_id: terminal.terminal.parse().map_err(|_| TerminalError::Protocol)?,
            cmd_label: terminal.label,
            created_at_ms: terminal.created_at_ms,
            exit_code: terminal.exit_code,
        })
    });
    infos.collect()
}

async fn done(app: &App, id: &str, request: &Request) -> Result<(), TerminalError> {
    match ask_for_answer(app, id, request, Duration::ZERO).await?.1 {
        Event::Done => Ok(()),
        _ => Err(TerminalError::Protocol),
    }
}

/// Asks, and once more if another machine has taken the sandbox's place meanwhile: a merge or a restore, which has the terminals,
/// too, as they were.
async fn ask_for_answer(
    app: &App,
    id: &str,
    request: &Request,
    patience: Duration,
) -> Result<(Terminal, Event), TerminalError> {
    let sandbox = app.registry.find(id)?;
    let attempt = async |sandbox: &Sandbox| {
        let mut terminal = ask_of(app, sandbox, request).await?;
        let event = terminal.answer(patience).await?;
        Ok::<_, TerminalError>((terminal, event))
    };
    match attempt(&sandbox).await {
        Err(error) if error.is_of_a_lost_guest() => {
            // Its end may be noticed a moment after its streams are cut.
            if timeout(END_NOTICE, sandbox.ended()).await.is_err() {
                return Err(error);
            }
            attempt(&app.registry.find(id)?).await
        }
        answered => answered,
    }
}

/// What is registered has confirmed its renewal.
async fn ask_of(app: &App, sandbox: &Sandbox, request: &Request) -> Result<Terminal, TerminalError> {
    let place = sandbox.terminal_place().ok_or(TerminalError::TooMany)?;
    let host_place = match waits(request) {
        true => Some(app.terminal_clients.clone().try_acquire_owned().map_err(|_| TerminalError::HostFull)?),
        false => None,
    };
    let mut stream = sandbox.machine().connect(TERMINAL_PORT).map_err(TerminalError::Connect)?;
    let sent = timeout(ANSWER_TIMEOUT, stream.write_all(&encode_frame(request))).await;
    sent.map_err(|_| TerminalError::Silent)??;
    let frames = FrameReader::new(TERMINAL_EVENT_LEN_MAX);
    let buffer = BytesMut::with_capacity(READ_LEN);
    let _attached = sandbox.attach();
    Ok(Terminal {
        stream,
        frames,
        buffer,
        sandbox: sandbox.clone(),
        _attached,
        _place: place,
        _host_place: host_place,
    })
}

/// Whether it stays for as long as its client likes, and not just until the guest has answered.
fn waits(request: &Request) -> bool {
    match request {
        Request::Create { .. } | Request::Attach { .. } => true,
        Request::Read { timeout_ms, .. } => *timeout_ms > 0,
        Request::Input { .. } | Request::Resize { .. } | Request::Kill { .. } | Request::List => false,
    }
}

impl TerminalError {
    /// What the guest says, or that it says nothing: no fault of the request.
    pub fn is_of_the_guest(&self) -> bool {
        self.is_of_a_lost_guest()
            || matches!(
                self,
                TerminalError::Refused { .. }
                    | TerminalError::Silent
                    | TerminalError::Protocol
                    | TerminalError::Decode(_)
            )
    }

    /// The machine may be gone.
    fn is_of_a_lost_guest(&self) -> bool {
        matches!(self, TerminalError::Connect(_) | TerminalError::Io(_) | TerminalError::Closed)
    }
}

impl Terminal {
    /// Why there are no more events than these, in the sandbox's own words if it has ended.
    pub async fn explain(&mut self, error: &TerminalError) -> String {
        let ended = error.is_of_a_lost_guest() && timeout(END_NOTICE, self.sandbox.ended()).await.is_ok();
        match self.sandbox.end_cause().filter(|_| ended) {
            Some(cause) => format!("the sandbox has ended: {cause}"),
            None => chain(error),
        }
    }

    /// The first event, which says whether the request was served.
    async fn answer(&mut self, patience: Duration) -> Result<Event, TerminalError> {
        timeout(patience + ANSWER_TIMEOUT, self.next()).await.map_err(|_| TerminalError::Silent)?
    }

    /// The next event. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Event, TerminalError> {
        loop {
            match self.frames.next_message()? {
                Some(Event::Failed { cause, message }) => {
                    return Err(TerminalError::Refused { cause, message: printable(&message) });
                }
                Some(event) => return Ok(event),
                None => {}
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(TerminalError::Closed);
            }
            self.frames.push(&self.buffer);
            self.buffer.clear();
        }
    }
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}

fn program(request: CreatePty) -> Result<Program, TerminalError> {
    let CreatePty { shell_cmd, argv, cols, rows, env, cwd } = request;
    let command = match (shell_cmd, argv) {
        (Some(line), None) if fits([&line]) => Command::Shell(line),
        (None, Some(argv)) if fits(&argv) => Command::Argv(argv),
        _ => return Err(TerminalError::Command),
    };
    Ok(Program { command, size: size(cols, rows)?, env: checked_env(env)?, cwd: checked_cwd(cwd)? })
}

fn fits<'a>(arguments: impl IntoIterator<Item = &'a String, IntoIter: Clone>) -> bool {
    let arguments = arguments.into_iter();
    let len: usize = arguments.clone().map(String::len).sum();
    arguments.clone().next().is_some_and(|program| !program.is_empty())
        && arguments.clone().count() <= TERMINAL_ARGUMENTS_MAX
        && len <= TERMINAL_COMMAND_LEN_MAX
        && !arguments.clone().any(|argument| argument.contains('\0'))
}

fn size(cols: u16, rows: u16) -> Result<Size, TerminalError> {
    let sides = 1..=TERMINAL_SIDE_MAX;
    if sides.contains(&cols) && sides.contains(&rows) {
        Ok(Size { cols, rows })
    } else {
        Err(TerminalError::Size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut CreatePty)) -> String {
        let mut request =
            CreatePty { shell_cmd: Some("ls".into()), cols: 80, rows: 24, ..CreatePty::default() };
        assert!(program(request.clone()).is_ok());
        change(&mut request);
        program(request).unwrap_err().to_string()
    }

    #[test]
    fn a_program_that_cannot_be_is_refused() {
        let argv = |arguments: Vec<String>| {
            move |it: &mut CreatePty| *it = CreatePty { shell_cmd: None, argv: Some(arguments), ..it.clone() }
        };
        for text in [
            refusal(|it| it.argv = Some(vec!["ls".into()])),
            refusal(|it| it.shell_cmd = None),
            refusal(|it| it.shell_cmd = Some(String::new())),
            refusal(|it| it.shell_cmd = Some("a\0".into())),
            refusal(|it| it.shell_cmd = Some("x".repeat(TERMINAL_COMMAND_LEN_MAX + 1))),
            refusal(argv(Vec::new())),
            refusal(argv(vec![String::new()])),
            refusal(argv(vec!["a".into(); TERMINAL_ARGUMENTS_MAX + 1])),
        ] {
            assert!(text.contains("shellCmd"), "{text}");
        }
        assert!(refusal(|it| it.cols = 0).contains("cols"));
        assert!(refusal(|it| it.rows = TERMINAL_SIDE_MAX + 1).contains("rows"));
        assert!(refusal(|it| it.cwd = Some("relative".into())).contains("cwd"));
        assert!(refusal(|it| it.env = vec![("A=".into(), String::new())]).contains("variable"));
    }
}
