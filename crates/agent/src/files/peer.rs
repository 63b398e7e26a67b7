//! hostd's side of one operation, as a thread waits for it.

use super::{Outcome, Stop};
use podflare_wire::codec::{FRAME_PREFIX_LEN, decode, encode_frame};
use podflare_wire::files::{
    Answer, CHUNK_PREFIX_LEN, DATA_LEN_MAX, FRAME_LEN_MAX, Failure, Request, chunk_len, chunk_prefix,
};
use rustix::net::Shutdown;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long hostd may neither send nor take anything that is waited for. hostd itself has less patience with its clients.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) struct Peer {
    /// A socket; only plain reads and writes are made of it.
    stream: BufReader<File>,
}

impl Peer {
    pub(super) fn new(stream: OwnedFd) -> io::Result<Peer> {
        rustix::io::ioctl_fionbio(&stream, false)?;
        set_socket_timeout(&stream, Timeout::Recv, Some(PATIENCE))?;
        set_socket_timeout(&stream, Timeout::Send, Some(PATIENCE))?;
        Ok(Peer { stream: BufReader::new(File::from(stream)) })
    }

    /// The one request; `None` if it does not come, or is none.
    pub(super) fn request(&mut self) -> Option<Request> {
        let mut prefix = [0; FRAME_PREFIX_LEN];
        self.stream.read_exact(&mut prefix).ok()?;
        let len = u32::from_le_bytes(prefix) as usize;
        if len > FRAME_LEN_MAX {
            return None;
        }
        let mut frame = vec![0; len];
        self.stream.read_exact(&mut frame).ok()?;
        decode(&frame).ok()
    }

    pub(super) fn send(&mut self, answer: &Answer) -> Outcome<()> {
        self.send_bytes(&encode_frame(answer))
    }

    pub(super) fn send_bytes(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.stream.get_mut().write_all(bytes).map_err(|_| Stop::Gone)
    }

    /// The next bytes of a file's content, which are in the buffer then; `None` at its end.
    pub(super) fn next_chunk<'a>(&mut self, buffer: &'a mut [u8]) -> Outcome<Option<&'a [u8]>> {
        let mut prefix = [0; CHUNK_PREFIX_LEN];
        self.stream.read_exact(&mut prefix).map_err(|_| Stop::Gone)?;
        let len = chunk_len(prefix).ok_or(Stop::Gone)?;
        let chunk = buffer.get_mut(..len).ok_or(Stop::Gone)?;
        if chunk.is_empty() {
            return Ok(None);
        }
        self.stream.read_exact(chunk).map_err(|_| Stop::Gone)?;
        Ok(Some(chunk))
    }

    /// Says why, and takes what hostd is still sending until it has read that: closed before, the stream might be reset
    /// and the reason lost.
    pub(super) fn fail(mut self, failure: Failure) {
        if self.send(&Answer::Failed(failure)).is_err() {
            return;
        }
        if rustix::net::shutdown(self.as_fd(), Shutdown::Write).is_ok() {
            // hostd has nothing left to say, or is gone.
            io::copy(&mut self.stream, &mut io::sink()).ok();
        }
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

/// Content on its way to hostd: a frame may stand before the first chunk, so that a short file is one write.
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    chunk_at: usize,
}

impl Outgoing {
    pub(super) fn new() -> Outgoing {
        Outgoing { bytes: Vec::with_capacity(2 * DATA_LEN_MAX), chunk_at: 0 }
    }

    /// Fills a chunk with up to so many bytes by `read`, which gets where in the chunk they go, and tells how many it got.
    pub(super) fn fill(
        &mut self,
        len_max: usize,
        mut read: impl FnMut(&mut [u8], usize) -> Outcome<usize>,
    ) -> Outcome<usize> {
        self.chunk_at = self.bytes.len();
        let content_at = self.chunk_at + CHUNK_PREFIX_LEN;
        let len_max = len_max.min(DATA_LEN_MAX);
        self.bytes.resize(content_at + len_max, 0);
        let mut len = 0;
        while len < len_max {
            match read(&mut self.bytes[content_at + len..], len)? {
                0 => break,
                more => len += more,
            }
        }
        self.bytes.truncate(content_at + len);
        self.bytes[self.chunk_at..content_at].copy_from_slice(&chunk_prefix(len));
        if len == 0 {
            self.bytes.truncate(self.chunk_at);
        }
        Ok(len)
    }

    /// Puts a frame before everything.
    pub(super) fn begin_with(&mut self, answer: &Answer) {
        self.bytes.splice(0..0, encode_frame(answer));
    }

    pub(super) fn end(&mut self) {
        self.bytes.extend_from_slice(&chunk_prefix(0));
    }

    pub(super) fn send(&mut self, peer: &mut Peer) -> Outcome<()> {
        peer.send_bytes(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }
}
