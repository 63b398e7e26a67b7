//! File operations: one stream to the guest's file server for each, past the sandbox's task.
//!
//! Only sandboxes that are registered are found here, and those have confirmed their renewal.

use super::registry::FindError;
use super::{InUse, Sandbox};
use crate::app::App;
use crate::pool::activity::Executing;
use crate::printable::printable;
use crate::vmm::{GuestStream, VmmError};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use podflare_wire::codec::{FRAME_PREFIX_LEN, decode, encode_frame};
use podflare_wire::files::{
    Answer, CHUNK_PREFIX_LEN, DATA_LEN_MAX, Entry, FILES_PORT, FRAME_LEN_MAX, Failure, OPERATIONS_MAX,
    Request, chunk_len, chunk_prefix,
};
use rustix::io::Errno;
use std::error::Error;
use std::fmt;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// How long a guest may neither answer nor take anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the reason for a lost stream may take to be known.
const ENDING_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("{OPERATIONS_MAX} file operations are under way in this sandbox; wait for one to end")]
    TooMany,
    #[error("Could not reach the sandbox's file server")]
    Connect(#[source] VmmError),
    #[error("{context}: {}", describe(*.errno))]
    Failed { errno: Errno, context: String },
    #[error("the body could not be read; the file is as it was")]
    Body(#[source] Box<dyn Error + Send + Sync>),
    #[error("The sandbox's file server has not answered within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("The sandbox's file server has closed the connection: its agent died and is started again")]
    Lost,
    #[error("The sandbox's file server does not keep to the protocol")]
    Protocol,
}

/// What a guest says has gone wrong, in words of this host.
impl From<Failure> for FileError {
    fn from(failure: Failure) -> FileError {
        // The kernel's own range.
        let errno = if (1..4096).contains(&failure.errno) { failure.errno } else { 5 };
        FileError::Failed { errno: Errno::from_raw_os_error(errno), context: printable(&failure.context) }
    }
}

fn describe(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// An operation under way. The sandbox is in use for as long as this is held, or until it only watches.
pub struct Operation {
    incoming: Incoming,
    outgoing: WriteHalf<Box<dyn GuestStream>>,
    sandbox: Sandbox,
    _place: OwnedSemaphorePermit,
    in_use: Option<(InUse, Executing)>,
}

/// What comes from the guest. Its futures may be dropped: what has arrived is kept.
struct Incoming {
    read: ReadHalf<Box<dyn GuestStream>>,
    buffer: BytesMut,
    chunk_left: usize,
}

impl Operation {
    /// Sends a request to the guest's file server.
    pub async fn begin(app: &App, id: &str, request: &Request) -> Result<Operation, FileError> {
        Operation::connect(app, id)?.send(request).await
    }

    /// The same in a sandbox that nobody knows yet.
    pub async fn begin_unregistered(sandbox: &Sandbox, request: &Request) -> Result<Operation, FileError> {
        let place = sandbox.file_place().ok_or(FileError::TooMany)?;
        let stream = sandbox.machine().connect(FILES_PORT).map_err(FileError::Connect)?;
        Operation::new(stream, sandbox.clone(), place, None).send(request).await
    }

    async fn send(mut self, request: &Request) -> Result<Operation, FileError> {
        let frame = encode_frame(request);
        // One that does not take it may have said why.
        timeout(PATIENCE, self.outgoing.write_all(&frame)).await.map_err(|_| FileError::Silent)?.ok();
        Ok(self)
    }

    fn new(
        stream: Box<dyn GuestStream>,
        sandbox: Sandbox,
        place: OwnedSemaphorePermit,
        in_use: Option<(InUse, Executing)>,
    ) -> Operation {
        let (read, outgoing) = tokio::io::split(stream);
        let incoming = Incoming { read, buffer: BytesMut::new(), chunk_left: 0 };
        Operation { incoming, outgoing, sandbox, _place: place, in_use }
    }

    /// A sandbox that ends when it has just been found may have been replaced by a merge or a restore.
    fn connect(app: &App, id: &str) -> Result<Operation, FileError> {
        for _ in 0..2 {
            let sandbox = app.registry.find(id)?;
            let place = sandbox.file_place().ok_or(FileError::TooMany)?;
            let in_use = Some((sandbox.begin_use(), app.activity.execute()));
            let stream = match sandbox.machine().connect(FILES_PORT) {
                Ok(stream) => stream,
                Err(VmmError::Ended) => continue,
                Err(error) => return Err(FileError::Connect(error)),
            };
            return Ok(Operation::new(stream, sandbox, place, in_use));
        }
        Err(FindError::Unknown.into())
    }

    /// The next answer, which may take as long as guests may.
    pub async fn answer(&mut self) -> Result<Answer, FileError> {
        let answer = timeout(PATIENCE, self.incoming.answer()).await.unwrap_or(Err(FileError::Silent));
        explained(&self.sandbox, answer).await
    }

    /// From now on it only watches: the sandbox may idle, from this moment on or from the last `touch`.
    pub fn only_watch(&mut self) {
        self.in_use = None;
    }

    /// The sandbox is in use at this moment.
    pub fn touch(&self) {
        drop(self.sandbox.begin_use());
    }

    /// The next answer of a watch, which may be long in coming.
    pub async fn event(&mut self) -> Result<Answer, FileError> {
        let answer = self.incoming.answer().await;
        explained(&self.sandbox, answer).await
    }

    /// More of a file's content; `None` at its end.
    pub async fn content(&mut self) -> Result<Option<Bytes>, FileError> {
        let content = timeout(PATIENCE, self.incoming.content()).await.unwrap_or(Err(FileError::Silent));
        explained(&self.sandbox, content).await
    }

    /// Writes a body, whole or not at all.
    pub async fn write<E: Into<Box<dyn Error + Send + Sync>>>(
        mut self,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<Entry, FileError> {
        // It may have ended before the guest refuses it.
        let mut body = pin!(body.fuse());
        let Operation { incoming, outgoing, .. } = &mut self;
        let answer = {
            let mut answer = pin!(incoming.answer());
            tokio::select! {
                biased;
                early = &mut answer => early,
                sent = send(outgoing, &mut body) => match sent {
                    Ok(()) | Err(SendError::Closed) => {
                        timeout(PATIENCE, answer).await.unwrap_or(Err(FileError::Silent))
                    }
                    Err(SendError::Silent) => Err(FileError::Silent),
                    Err(SendError::Body(error)) => return Err(FileError::Body(error)),
                },
            }
        };
        match explained(&self.sandbox, answer).await? {
            Answer::Entry(entry) => Ok(entry),
            _ => Err(FileError::Protocol),
        }
    }
}

/// A stream ends when its machine does, and the sandbox knows more.
async fn explained<T>(sandbox: &Sandbox, result: Result<T, FileError>) -> Result<T, FileError> {
    if !matches!(result, Err(FileError::Lost)) {
        return result;
    }
    timeout(ENDING_TIMEOUT, sandbox.ended()).await.ok();
    match sandbox.end_cause() {
        Some(cause) => Err(FindError::Ended { seconds_ago: 0, cause: cause.clone() }.into()),
        None => Err(FileError::Lost),
    }
}

enum SendError {
    /// The guest takes no more.
    Closed,
    Silent,
    Body(Box<dyn Error + Send + Sync>),
}

async fn send<E: Into<Box<dyn Error + Send + Sync>>>(
    outgoing: &mut WriteHalf<Box<dyn GuestStream>>,
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<(), SendError> {
    while let Some(bytes) = body.next().await {
        let mut bytes = bytes.map_err(|error| SendError::Body(error.into()))?;
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(DATA_LEN_MAX));
            send_chunk(outgoing, part).await?;
        }
    }
    send_chunk(outgoing, Bytes::new()).await
}

async fn send_chunk(outgoing: &mut WriteHalf<Box<dyn GuestStream>>, chunk: Bytes) -> Result<(), SendError> {
    let prefix = chunk_prefix(chunk.len());
    let mut chunk = Buf::chain(&prefix[..], chunk);
    let written = timeout(PATIENCE, outgoing.write_all_buf(&mut chunk)).await;
    written.map_err(|_| SendError::Silent)?.map_err(|_| SendError::Closed)
}

impl Incoming {
    async fn answer(&mut self) -> Result<Answer, FileError> {
        loop {
            if let Some(prefix) = self.buffer.first_chunk::<FRAME_PREFIX_LEN>() {
                let len = u32::from_le_bytes(*prefix) as usize;
                if len > FRAME_LEN_MAX {
                    return Err(FileError::Protocol);
                }
                if self.buffer.len() >= FRAME_PREFIX_LEN + len {
                    let frame = self.buffer.split_to(FRAME_PREFIX_LEN + len);
                    return match decode(&frame[FRAME_PREFIX_LEN..]).map_err(|_| FileError::Protocol)? {
                        Answer::Failed(failure) => Err(failure.into()),
                        answer if tells_nothing(&answer) => Err(FileError::Protocol),
                        answer => Ok(answer),
                    };
                }
            }
            self.fill().await?;
        }
    }

    async fn content(&mut self) -> Result<Option<Bytes>, FileError> {
        loop {
            if self.chunk_left == 0
                && let Some(prefix) = self.buffer.first_chunk::<CHUNK_PREFIX_LEN>()
            {
                self.chunk_left = chunk_len(*prefix).ok_or(FileError::Protocol)?;
                self.buffer.advance(CHUNK_PREFIX_LEN);
                if self.chunk_left == 0 {
                    return Ok(None);
                }
            }
            if self.chunk_left > 0 && !self.buffer.is_empty() {
                let bytes = self.buffer.split_to(self.buffer.len().min(self.chunk_left)).freeze();
                self.chunk_left -= bytes.len();
                return Ok(Some(bytes));
            }
            self.fill().await?;
        }
    }

    /// Waits for more. Nothing is asked for that is not needed, so the buffer stays about as long as a frame.
    async fn fill(&mut self) -> Result<(), FileError> {
        self.buffer.reserve(DATA_LEN_MAX);
        match self.read.read_buf(&mut self.buffer).await {
            Ok(len) if len > 0 => Ok(()),
            Ok(_) | Err(_) => Err(FileError::Lost),
        }
    }
}

/// A guest could go on with such for ever, and nobody would notice.
fn tells_nothing(answer: &Answer) -> bool {
    match answer {
        Answer::Entries(entries) => entries.is_empty(),
        Answer::Events(events) => events.is_empty(),
        _ => false,
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation").field("unread", &self.incoming.buffer.len()).finish_non_exhaustive()
    }
}
