//! `podflare shell`.
//!
//! Threads read the keyboard, the host and the signals, and tell the main one, which alone writes to the terminal and
//! gives it back, however this ends.

use crate::api::{Client, PtyStream};
use crate::args::Shell;
use crate::interrupt;
use crate::output::Output;
use crate::queries::Filter;
use crate::terminal::{self, Raw};
use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use podflare_api::id::{PtyId, SandboxId};
use podflare_api::pty::{CreatePty, PtyEvent};
use podflare_emulated_host::places::Places;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// A host that is well says something at least every ten seconds.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Keys that are sent at once; the host takes at most 32 KiB.
const INPUT_LEN: usize = 16 * 1024;

/// News that wait while the terminal is slow. Then the host waits too, and skips what is too much.
const NEWS_MAX: usize = 16;

/// A pause after which what comes is new.
const FORMER_PAUSE: Duration = Duration::from_millis(200);

const BELL: &[u8] = b"\x07";

/// What the main thread is told.
enum News {
    Output(Vec<u8>),
    /// The host is there.
    Heartbeat,
    /// Keys that the host has not taken.
    Unheard,
    Exited(i32),
    /// Asked to end, or nobody is at the keyboard any more.
    Interrupted,
    Failed(anyhow::Error),
}

/// A terminal in a sandbox.
#[derive(Clone)]
struct Remote {
    client: Client,
    sandbox: SandboxId,
    pty: PtyId,
}

pub(crate) fn run(args: &Shell, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    terminal::check()?;
    let (remote, stream) = open(args, Client::of(&args.host, places)?)?;
    let former = args.attach.is_some().then(Filter::default);
    let ended = session(&remote, stream, former);
    let goes_on = || format!("`podflare shell {} --attach {}` returns to it", remote.sandbox, remote.pty);
    match ended {
        Ok(News::Exited(code)) => Ok(ExitCode::from(u8::try_from(code & 0xff)?)),
        Ok(_) => {
            output.note(&format!("The program goes on: {}", goes_on()));
            Ok(ExitCode::from(interrupt::EXIT_CODE))
        }
        Err(error) => {
            Err(error.context(format!("The terminal was lost; if it is still there, {}", goes_on())))
        }
    }
}

fn open(args: &Shell, client: Client) -> anyhow::Result<(Remote, PtyStream)> {
    let sandbox = args.sandbox.clone();
    if let Some(pty) = args.attach.clone() {
        let stream = client.attach_pty(&sandbox, &pty)?;
        let remote = Remote { client, sandbox, pty };
        // One that has exited has no size, but output.
        remote.fit().ok();
        return Ok((remote, stream));
    }
    let program =
        if args.program.is_empty() { &["/bin/bash".into(), "-l".into()] } else { &args.program[..] };
    let size = terminal::size();
    let request = CreatePty {
        argv: Some(program.to_vec()),
        cols: size.cols,
        rows: size.rows,
        env: args.term.clone().map(|term| ("TERM".to_owned(), term)).into_iter().collect(),
        ..CreatePty::default()
    };
    let mut stream = client.create_pty(&sandbox, &request)?;
    loop {
        match stream.next()? {
            Some(PtyEvent::PtyReady { session_id: pty }) => {
                return Ok((Remote { client, sandbox, pty }, stream));
            }
            Some(PtyEvent::PtyError { message }) => bail!(message),
            Some(_) => bail!("The host does not begin with the terminal's name"),
            None => {}
        }
    }
}

/// Everything between the two terminals, up to the program's exit, an interrupt or a failure. `former` is for what comes first
/// of a terminal that has been used before.
fn session(remote: &Remote, stream: PtyStream, former: Option<Filter>) -> anyhow::Result<News> {
    let (tell, news) = sync_channel(NEWS_MAX);
    let told = tell.clone();
    // Nobody listens any more once this has returned; so it is everywhere below.
    interrupt::tells(move || drop(told.send(News::Interrupted)))?;
    let raw = Raw::enter()?;
    let resized = remote.clone();
    // A size that the host has not taken is told with the next change.
    interrupt::on_resize(move || drop(resized.fit()))?;
    // The size may have changed before.
    remote.fit().ok();
    let (typing, told) = (remote.clone(), tell.clone());
    thread::spawn(move || typing.keys(&told));
    thread::spawn(move || events(stream, &tell));
    let ended = show(&news, former);
    if !matches!(ended, Ok(News::Exited(_))) {
        raw.leave_programs_modes();
    }
    ended
}

fn show(news: &Receiver<News>, mut former: Option<Filter>) -> anyhow::Result<News> {
    let mut stdout = io::stdout();
    let mut write = |bytes: &[u8]| {
        stdout.write_all(bytes).and_then(|()| stdout.flush()).context("Cannot write to the terminal")
    };
    loop {
        let patience = if former.is_some() { FORMER_PAUSE } else { SILENCE_MAX };
        match news.recv_timeout(patience) {
            Ok(News::Output(bytes)) => match &mut former {
                Some(filter) => write(&filter.pass(&bytes))?,
                None => write(&bytes)?,
            },
            // What is kept comes in one go.
            Err(RecvTimeoutError::Timeout) if former.is_some() => {
                write(&former.take().map(Filter::finish).unwrap_or_default())?;
            }
            Ok(News::Unheard) => write(BELL)?,
            Ok(News::Heartbeat) => {}
            Ok(News::Failed(error)) => return Err(error),
            Ok(end @ (News::Exited(_) | News::Interrupted)) => return Ok(end),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                bail!("The host has said nothing for {} s", SILENCE_MAX.as_secs())
            }
        }
    }
}

/// Takes what the host says, up to its end.
fn events(mut stream: PtyStream, tell: &SyncSender<News>) {
    loop {
        let news = match stream.next() {
            Ok(None) => News::Heartbeat,
            Ok(Some(PtyEvent::PtyData { data_b64, .. })) => match BASE64_STANDARD.decode(data_b64) {
                Ok(bytes) => News::Output(bytes),
                Err(error) => News::Failed(anyhow!(error).context("Cannot understand the host")),
            },
            Ok(Some(PtyEvent::PtyExit { data })) => News::Exited(data),
            Ok(Some(PtyEvent::PtyError { message })) => News::Failed(anyhow!(message)),
            Ok(Some(PtyEvent::PtyReady { .. })) => News::Failed(anyhow!("The host begins again")),
            Err(error) => News::Failed(error),
        };
        let is_last = matches!(news, News::Exited(_) | News::Failed(_));
        if tell.send(news).is_err() || is_last {
            return;
        }
    }
}

impl Remote {
    /// Types what is typed here, for as long as there is a keyboard.
    fn keys(&self, tell: &SyncSender<News>) {
        let mut buffer = vec![0; INPUT_LEN];
        loop {
            let news = match io::stdin().read(&mut buffer) {
                Ok(len @ 1..) => match self.client.input_pty(&self.sandbox, &self.pty, &buffer[..len]) {
                    Ok(()) => continue,
                    Err(_) => News::Unheard,
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => News::Interrupted,
            };
            let is_last = matches!(news, News::Interrupted);
            if tell.send(news).is_err() || is_last {
                return;
            }
        }
    }

    /// Gives the terminal in the sandbox this one's size.
    fn fit(&self) -> anyhow::Result<()> {
        self.client.resize_pty(&self.sandbox, &self.pty, &terminal::size())
    }
}
