//! Output of a process: both its pipes, read no more often than needed, and what a REPL wrote unasked.
//!
//! A pipe is watched only once `FIRST_LOOK` has passed since an execution began, or `PACE` since it was last
//! looked at. A short execution is then one wake-up of the agent (its end), not three, and one packet to the
//! host; a flood of lines travels in large pieces. What the bytes mean, and how many may be sent, is not known here.

use podflare_wire::guest::OutputStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep_until};

/// How long the first output of an execution may wait for its end: what it takes to print in an emulated host.
const FIRST_LOOK: Duration = Duration::from_millis(20);

/// How long later output may wait for more of it, or for the end.
const PACE: Duration = Duration::from_millis(2);

/// A pipe holds this much between two looks, so that the pace does not slow a flood down.
const PIPE_LEN: usize = 256 * 1024;

/// The most bytes of one read.
const READ_LEN_MAX: usize = 64 * 1024;

/// Output that a REPL may keep for its next call, in bytes.
const BACKLOG_LEN_MAX: usize = 64 * 1024;

/// The reading ends of a process's standard output and error.
#[derive(Debug)]
pub(crate) struct Capture {
    sources: [Source; 2],
    next_look: Instant,
}

/// The ends that the process gets.
#[derive(Debug)]
pub(crate) struct Sinks {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

#[derive(Debug)]
struct Source {
    stream: OutputStream,
    pipe: OwnedFd,
    /// A duplicate of `pipe`, only while it is watched: leaving epoll is what keeps the agent asleep.
    watch: Option<Receiver>,
    at_end: bool,
}

impl Capture {
    pub(crate) fn new() -> io::Result<(Capture, Sinks)> {
        let (out, stdout) = Source::new(OutputStream::Stdout)?;
        let (err, stderr) = Source::new(OutputStream::Stderr)?;
        let capture = Capture { sources: [out, err], next_look: Instant::now() + FIRST_LOOK };
        Ok((capture, Sinks { stdout, stderr }))
    }

    /// Leaves the pipes alone for a while: an execution has just begun, and may soon end.
    pub(crate) fn rest(&mut self) {
        self.look_again_after(FIRST_LOOK);
    }

    fn look_again_after(&mut self, pause: Duration) {
        self.next_look = Instant::now() + pause;
        for source in &mut self.sources {
            source.watch = None;
        }
    }

    /// Until there is something to [`Capture::take`].
    pub(crate) async fn readable(&mut self) -> io::Result<()> {
        if Instant::now() < self.next_look {
            sleep_until(self.next_look).await;
        }
        for source in self.sources.iter_mut().filter(|source| !source.at_end) {
            source.watch()?;
        }
        let [out, err] = &self.sources;
        tokio::select! {
            result = out.readable() => result,
            result = err.readable() => result,
        }
    }

    /// Hands over what waits in the pipes at this moment, up to `room` bytes, and rests. What a
    /// background process keeps writing meanwhile is left for the next look, so this always ends.
    pub(crate) fn take(&mut self, mut room: usize, mut sink: impl FnMut(OutputStream, Vec<u8>)) {
        for source in &mut self.sources {
            let mut waiting = source.waiting().min(room);
            if waiting == 0 && source.watch.is_some() && room > 0 {
                // Ready without any bytes is how the end of the pipe shows.
                waiting = 1;
            }
            room -= waiting;
            while waiting > 0 {
                let Some(data) = source.read(waiting.min(READ_LEN_MAX)) else { break };
                waiting -= data.len();
                sink(source.stream, data);
            }
        }
        self.look_again_after(PACE);
    }

    /// Whether more output may come than waits in the pipes at this moment.
    pub(crate) fn has_writers(&self) -> bool {
        let [out, err] = &self.sources;
        let mut pipes = [&out.pipe, &err.pipe].map(|pipe| PollFd::new(pipe, PollFlags::empty()));
        let looked = poll(&mut pipes, Some(&Timespec::default()));
        looked.is_err() || pipes.iter().any(|pipe| !pipe.revents().contains(PollFlags::HUP))
    }

    /// Reads on into nowhere until every writer has closed its end: processes that an execution has
    /// left in the background must not die of a broken pipe.
    pub(crate) fn abandon(self) {
        for source in self.sources {
            if source.at_end || source.waiting() == 0 && source.reads_end() {
                continue;
            }
            tokio::spawn(async move {
                let mut pipe = Receiver::from_owned_fd_unchecked(source.pipe)?;
                tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await
            });
        }
    }
}

impl Source {
    fn new(stream: OutputStream) -> io::Result<(Source, OwnedFd)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&reader, OFlags::NONBLOCK)?;
        // Refused only when the user has many large pipes; the usual size then works as well.
        fcntl_setpipe_size(&reader, PIPE_LEN).ok();
        Ok((Source { stream, pipe: reader, watch: None, at_end: false }, writer))
    }

    fn watch(&mut self) -> io::Result<()> {
        if self.watch.is_none() {
            self.watch = Some(Receiver::from_owned_fd_unchecked(self.pipe.try_clone()?)?);
        }
        Ok(())
    }

    async fn readable(&self) -> io::Result<()> {
        match &self.watch {
            Some(watch) => watch.readable().await,
            None => std::future::pending().await,
        }
    }

    fn waiting(&self) -> usize {
        let waiting = rustix::io::ioctl_fionread(&self.pipe).unwrap_or(0);
        usize::try_from(waiting).unwrap_or(usize::MAX)
    }

    fn reads_end(&self) -> bool {
        matches!(rustix::io::read(&self.pipe, &mut [0; 1][..]), Ok(0))
    }

    fn read(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut data = Vec::with_capacity(len);
        loop {
            match rustix::io::read(&self.pipe, rustix::buffer::spare_capacity(&mut data)) {
                Err(Errno::INTR) => {}
                Ok(0) => {
                    self.at_end = true;
                    return None;
                }
                Ok(_) => return Some(data),
                Err(_) => return None,
            }
        }
    }
}

/// What a REPL's threads and children wrote while it had no call: the last of it.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    pieces: VecDeque<(OutputStream, Vec<u8>)>,
    len: usize,
}

impl Backlog {
    pub(crate) fn push(&mut self, stream: OutputStream, data: Vec<u8>) {
        self.len += data.len();
        match self.pieces.back_mut() {
            Some((last, piece)) if *last == stream => piece.extend_from_slice(&data),
            _ => self.pieces.push_back((stream, data)),
        }
        while self.len > BACKLOG_LEN_MAX
            && let Some((_, oldest)) = self.pieces.front_mut()
        {
            let excess = (self.len - BACKLOG_LEN_MAX).min(oldest.len());
            oldest.drain(..excess);
            self.len -= excess;
            if oldest.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    pub(crate) fn take(&mut self) -> Vec<(OutputStream, Vec<u8>)> {
        std::mem::take(self).pieces.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_keeps_the_last_bytes_in_their_order() {
        let mut backlog = Backlog::default();
        backlog.push(OutputStream::Stdout, vec![b'a'; 10]);
        backlog.push(OutputStream::Stderr, vec![b'b'; 10]);
        backlog.push(OutputStream::Stdout, vec![b'c'; BACKLOG_LEN_MAX - 5]);
        let pieces = backlog.take();
        assert_eq!(pieces[0], (OutputStream::Stderr, vec![b'b'; 5]));
        assert_eq!(pieces[1], (OutputStream::Stdout, vec![b'c'; BACKLOG_LEN_MAX - 5]));
        assert_eq!(pieces.len(), 2);
        assert_eq!(backlog.take(), []);
    }
}
