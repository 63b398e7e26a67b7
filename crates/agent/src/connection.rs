//! One connection of hostd: frames in and out, with one write for all that a turn of the loop has to say.
//!
//! Knows nothing of what the messages mean. There are two kinds of stream: vsock in a microVM, and a
//! Unix socket for development and tests.

use podflare_wire::codec::{DecodeError, FrameReader, encode_frame};
use podflare_wire::guest::{Event, Request};
use podflare_wire::limits::REQUEST_FRAME_LEN_MAX;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixListener;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// Bytes read from a connection at a time.
const READ_LEN: usize = 64 * 1024;

/// A buffer that a burst has made larger than this is given back.
const OUTGOING_KEPT_LEN_MAX: usize = 128 * 1024;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

#[derive(Debug)]
pub(crate) enum Listener {
    Vsock(VsockListener),
    Unix(UnixListener),
}

impl Listener {
    pub(crate) fn vsock(port: u32) -> io::Result<Listener> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map(Listener::Vsock)
    }

    pub(crate) fn unix(path: &Path) -> io::Result<Listener> {
        UnixListener::bind(path).map(Listener::Unix)
    }

    /// The next connection. Only the host may have one: programs in the guest reach vsock too.
    pub(crate) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Listener::Unix(listener) => Box::new(listener.accept().await?.0),
            Listener::Vsock(listener) => Box::new(accept_from_host(listener).await?),
        })
    }

    /// As `accept`, for a thread of its own.
    pub(crate) async fn accept_blocking(&self) -> io::Result<OwnedFd> {
        Ok(match self {
            Listener::Unix(listener) => listener.accept().await?.0.into_std()?.into(),
            Listener::Vsock(listener) => accept_from_host(listener).await?.into(),
        })
    }
}

async fn accept_from_host(listener: &VsockListener) -> io::Result<VsockStream> {
    loop {
        let (stream, peer) = poll_fn(|context| listener.poll_accept(context)).await?;
        if peer.cid() == VMADDR_CID_HOST {
            return Ok(stream);
        }
    }
}

/// Where bytes arrive, of one connection after the other. One that each connection made for itself would be 16 pages
/// that every copy of a machine has to bring in and to clear before it can be renewed.
#[derive(Debug)]
pub(crate) struct ReadBuffer(Box<[u8]>);

impl ReadBuffer {
    pub(crate) fn new() -> ReadBuffer {
        ReadBuffer(vec![0; READ_LEN].into_boxed_slice())
    }
}

/// The other side has closed the connection, or it was reset.
#[derive(Debug)]
pub(crate) struct Gone;

pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    incoming: FrameReader,
    outgoing: Vec<u8>,
    /// How much of `outgoing` the stream has taken.
    sent: usize,
    /// How much of `outgoing` waits for something to follow it.
    greeting_len: usize,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connection").field("unsent", &self.unsent()).finish_non_exhaustive()
    }
}

impl Connection {
    /// The greeting is sent with the first event that follows it. By itself it would be an exit from the guest, and
    /// wake hostd for nothing.
    pub(crate) fn new(stream: Box<dyn Stream>, greeting: &Event) -> Connection {
        let incoming = FrameReader::new(REQUEST_FRAME_LEN_MAX);
        let outgoing = encode_frame(greeting);
        let greeting_len = outgoing.len();
        Connection { stream, incoming, outgoing, sent: 0, greeting_len }
    }

    /// Adds an event to the next write.
    pub(crate) fn send(&mut self, event: &Event) {
        self.outgoing.extend_from_slice(&encode_frame(event));
    }

    pub(crate) fn next_request(&mut self) -> Result<Option<Request>, DecodeError> {
        self.incoming.next_message()
    }

    /// Bytes that the stream has not taken yet.
    pub(crate) fn unsent(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// Writes as much as the stream takes now, without waiting.
    pub(crate) async fn flush(&mut self) -> Result<(), Gone> {
        poll_fn(|context| Poll::Ready(self.poll_write(context))).await
    }

    /// Writes until something has arrived.
    pub(crate) async fn received(&mut self, buffer: &mut ReadBuffer) -> Result<(), Gone> {
        poll_fn(|context| {
            if let Err(gone) = self.poll_write(context) {
                return Poll::Ready(Err(gone));
            }
            let mut buffer = ReadBuf::new(&mut buffer.0);
            match Pin::new(&mut *self.stream).poll_read(context, &mut buffer) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.incoming.push(buffer.filled());
                    Poll::Ready(Ok(()))
                }
                Poll::Ready(_) => Poll::Ready(Err(Gone)),
            }
        })
        .await
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Result<(), Gone> {
        if self.outgoing.len() == self.greeting_len {
            return Ok(());
        }
        self.greeting_len = 0;
        while self.sent < self.outgoing.len() {
            match Pin::new(&mut *self.stream).poll_write(context, &self.outgoing[self.sent..]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(len)) if len > 0 => self.sent += len,
                Poll::Ready(_) => return Err(Gone),
            }
        }
        self.outgoing.clear();
        self.outgoing.shrink_to(OUTGOING_KEPT_LEN_MAX);
        self.sent = 0;
        Ok(())
    }
}
