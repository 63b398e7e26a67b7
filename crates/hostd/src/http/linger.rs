//! Connections are not closed while their clients send.
//!
//! A client that is refused before all of its body was read may still be sending, and many read nothing before
//! they have sent all. A connection that is closed with bytes unread is reset, and its answer lost on the way. So what the
//! server leaves is read, and thrown away, until the client has closed it, too.

use super::limits::{LINGER_IDLE_TIMEOUT, LINGER_TIMEOUT};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Bytes that are thrown away at a time.
const BUFFER_LEN: usize = 16 * 1024;

/// A stream that is given back when it is dropped.
pub(super) struct Lent {
    stream: Option<TcpStream>,
    back: Option<oneshot::Sender<TcpStream>>,
}

pub(super) fn lend(stream: TcpStream) -> (Lent, oneshot::Receiver<TcpStream>) {
    let (sender, back) = oneshot::channel();
    (Lent { stream: Some(stream), back: Some(sender) }, back)
}

/// Takes what still comes on a stream whose answers have all been sent.
pub(super) async fn linger(mut stream: TcpStream) {
    let mut buffer = vec![0; BUFFER_LEN];
    let rest =
        async { while let Ok(Ok(1..)) = timeout(LINGER_IDLE_TIMEOUT, stream.read(&mut buffer)).await {} };
    timeout(LINGER_TIMEOUT, rest).await.ok();
}

impl Lent {
    /// It is there until this is dropped.
    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        self.get_mut().stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(stream), Some(back)) = (self.stream.take(), self.back.take()) {
            // Who lent it may want it no more.
            back.send(stream).ok();
        }
    }
}

impl AsyncRead for Lent {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Lent {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}
