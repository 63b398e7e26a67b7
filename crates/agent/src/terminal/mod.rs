//! The guest's terminals: one short conversation on each connection, and one long for each attachment.
//!
//! A connection that is cut ends nothing. Whoever attaches reads at its own speed, at a place of its own: one that is
//! slower than the output skips what is no longer kept, and holds up neither the terminal nor another.

pub(crate) mod launch;
mod process;
mod ring;

use crate::connection::{Listener, Stream};
use crate::console::say;
use crate::exec::Workplace;
use podflare_wire::codec::{FrameReader, encode_frame};
use podflare_wire::limits::{
    OUTPUT_CHUNK_LEN_MAX, TERMINAL_CONNECTIONS_MAX, TERMINAL_REQUEST_LEN_MAX, TERMINALS_MAX,
};
use podflare_wire::terminal::{Cause, Chunk, Event, Program, Request};
use process::{Next, Terminal};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long a connection may take to say what it is for.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

const READ_LEN: usize = 4096;

/// Why something is not done.
#[derive(Debug)]
pub(crate) struct Refusal(Cause, String);

#[derive(Debug)]
struct Terminals {
    workplace: Arc<Workplace>,
    /// In the order of their making.
    all: Mutex<Vec<Arc<Terminal>>>,
}

/// A connection on which a request has come.
struct Conversation {
    read: ReadHalf<Box<dyn Stream>>,
    write: WriteHalf<Box<dyn Stream>>,
}

/// Serves connections for ever.
pub(crate) async fn serve(listener: Listener, workplace: Arc<Workplace>) {
    let terminals = Arc::new(Terminals { workplace, all: Mutex::default() });
    let places = Arc::new(Semaphore::new(TERMINAL_CONNECTIONS_MAX));
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let (terminals, place) = (terminals.clone(), places.clone().try_acquire_owned().ok());
                tokio::spawn(async move {
                    // The other side has gone, or says nothing.
                    converse(stream, &terminals, place.is_some()).await.ok();
                });
            }
            Err(error) => {
                say(&format!("Could not accept a connection to a terminal: {error}"));
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: Box<dyn Stream>, terminals: &Terminals, has_place: bool) -> io::Result<()> {
    let (read, write) = tokio::io::split(stream);
    let mut conversation = Conversation { read, write };
    // Also where there is no place: an answer to what was not read yet could be lost with the connection.
    let request = timeout(REQUEST_TIMEOUT, conversation.request()).await??;
    if !has_place {
        let message = format!("{TERMINAL_CONNECTIONS_MAX} clients use terminals of this sandbox already");
        return conversation.say(&Event::Failed { cause: Cause::TooMany, message }).await;
    }
    match terminals.answer(request, &mut conversation).await {
        Ok(said) => said,
        Err(Refusal(cause, message)) => conversation.say(&Event::Failed { cause, message }).await,
    }
}

impl Terminals {
    async fn answer(
        &self,
        request: Request,
        conversation: &mut Conversation,
    ) -> Result<io::Result<()>, Refusal> {
        let event = match request {
            Request::Create { terminal, program } => {
                let terminal = self.create(terminal, program)?;
                return Ok(conversation.follow(&terminal).await);
            }
            Request::Attach { terminal } => return Ok(conversation.follow(&*self.find(&terminal)?).await),
            Request::Read { terminal, since_seq, len_max, timeout_ms } => {
                let terminal = self.find(&terminal)?;
                let patience = Duration::from_millis(u64::from(timeout_ms));
                let chunk = read(&terminal, since_seq, len_max as usize, patience);
                tokio::select! {
                    chunk = chunk => Event::Chunk(chunk?),
                    () = conversation.is_over() => return Ok(Ok(())),
                }
            }
            Request::Input { terminal, data } => {
                self.find(&terminal)?.input(&data).await?;
                Event::Done
            }
            Request::Resize { terminal, size } => {
                self.find(&terminal)?.resize(size)?;
                Event::Done
            }
            Request::Kill { terminal } => {
                self.find(&terminal)?.kill();
                Event::Done
            }
            Request::List => {
                let listed = self.all().iter().map(|terminal| terminal.describe()).collect();
                Event::Terminals(listed)
            }
        };
        Ok(conversation.say(&event).await)
    }

    /// A new terminal takes the place of the first that has exited, if there are as many as there may be.
    fn create(&self, name: String, program: Program) -> Result<Arc<Terminal>, Refusal> {
        let mut all = self.all();
        if all.iter().any(|terminal| terminal.name == name) {
            return Err(Refusal(Cause::Invalid, "There is a terminal of this name".to_owned()));
        }
        let exited = all.iter().position(|terminal| terminal.has_exited());
        if all.len() >= TERMINALS_MAX && exited.is_none() {
            let message = format!("Programs run in {TERMINALS_MAX} terminals of this sandbox already");
            return Err(Refusal(Cause::TooMany, message));
        }
        let terminal = Terminal::start(name, program, &self.workplace)?;
        if let Some(exited) = exited.filter(|_| all.len() >= TERMINALS_MAX) {
            all.remove(exited);
        }
        all.push(terminal.clone());
        Ok(terminal)
    }

    fn find(&self, name: &str) -> Result<Arc<Terminal>, Refusal> {
        let found = self.all().iter().find(|terminal| terminal.name == name).cloned();
        found.ok_or_else(|| Refusal(Cause::NotFound, "terminal not found".to_owned()))
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Terminal>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Output from a place on, as soon as there is any, or what there is when the time is over.
async fn read(
    terminal: &Terminal,
    since_seq: u64,
    len_max: usize,
    patience: Duration,
) -> Result<Chunk, Refusal> {
    let deadline = Instant::now() + patience;
    let mut changes = terminal.watch();
    let (end, _) = terminal.end();
    if since_seq > end {
        let message = format!("The terminal has put out {end} bytes; there are none after {since_seq}");
        return Err(Refusal(Cause::Invalid, message));
    }
    loop {
        changes.borrow_and_update();
        let (seq, data) = match terminal.next(since_seq, len_max) {
            Next::Output { seq, data } => (seq, data),
            Next::Exited(_) => (since_seq, Vec::new()),
            Next::Nothing => match timeout_at(deadline, changes.changed()).await {
                Ok(_) => continue,
                Err(_) => (since_seq, Vec::new()),
            },
        };
        let next_seq = seq + data.len() as u64;
        let (end, exit_code) = terminal.end();
        let exit_code = exit_code.filter(|_| next_seq == end);
        return Ok(Chunk { data, next_seq, exit_code, truncated: seq > since_seq });
    }
}

impl Conversation {
    async fn request(&mut self) -> io::Result<Request> {
        let mut frames = FrameReader::new(TERMINAL_REQUEST_LEN_MAX);
        let mut buffer = [0; READ_LEN];
        loop {
            if let Some(request) = frames.next_message().map_err(io::Error::other)? {
                return Ok(request);
            }
            match self.read.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len => frames.push(&buffer[..len]),
            }
        }
    }

    async fn say(&mut self, event: &Event) -> io::Result<()> {
        self.write.write_all(&encode_frame(event)).await
    }

    /// Tells all output that is kept, and what comes, to the end.
    async fn follow(&mut self, terminal: &Terminal) -> io::Result<()> {
        self.say(&Event::Ready).await?;
        let mut changes = terminal.watch();
        let mut place = 0;
        loop {
            changes.borrow_and_update();
            match terminal.next(place, OUTPUT_CHUNK_LEN_MAX) {
                Next::Output { seq, data } => {
                    place = seq + data.len() as u64;
                    self.say(&Event::Output { seq, data }).await?;
                }
                Next::Exited(exit_code) => return self.say(&Event::Exited { exit_code }).await,
                Next::Nothing => tokio::select! {
                    changed = changes.changed() => changed.map_err(io::Error::other)?,
                    () = self.is_over() => return Ok(()),
                },
            }
        }
    }

    /// Resolves when the other side has closed the connection. It has nothing more to say.
    async fn is_over(&mut self) {
        while matches!(self.read.read(&mut [0; 64]).await, Ok(1..)) {}
    }
}
