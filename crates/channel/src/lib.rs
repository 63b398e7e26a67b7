//! A Unix `SOCK_SEQPACKET` socket pair that carries whole messages, with descriptors beside them.
//!
//! hostd and its VMMs talk over one such channel each. Bytes in, bytes out: what they mean is
//! `podflare-wire`'s affair. All calls are non-blocking unless [`Channel::wait_readable`] is used first.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The most descriptors in one message.
pub const DESCRIPTORS_MAX: usize = 8;

/// Room that a socket keeps for messages that were sent and not yet received, in bytes.
const SEND_BUFFER_LEN: usize = 512 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("The other side has closed the channel")]
    Closed,
    #[error("No message is waiting, or there is no room for one")]
    WouldBlock,
    #[error("A message of over {limit} bytes arrived")]
    TooLong { limit: usize },
    #[error("A message came with more descriptors than its reader takes")]
    TooManyDescriptors,
    #[error("Could not use the channel")]
    Os(#[from] Errno),
}

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Two connected ends; neither is inherited by a program that this one starts.
    pub fn pair() -> Result<(Channel, Channel), ChannelError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        for end in [&one, &other] {
            sockopt::set_socket_send_buffer_size(end, SEND_BUFFER_LEN)?;
        }
        Ok((Channel(one), Channel(other)))
    }

    /// An end that another program made with [`Channel::pair`].
    pub fn from_fd(fd: OwnedFd) -> Channel {
        Channel(fd)
    }

    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Sends one message. Descriptors are duplicated into the message; the sender keeps its own.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(ChannelError::TooManyDescriptors);
        }
        if !descriptors.is_empty() {
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
            debug_assert!(fits, "the buffer has room for every message within the limit");
        }
        match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN) => Err(ChannelError::WouldBlock),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(ChannelError::Closed),
            Err(errno) => Err(ChannelError::Os(errno)),
        }
    }

    /// Receives one message of at most `len_max` bytes and the descriptors that came with it.
    pub fn receive(&self, len_max: usize) -> Result<(Vec<u8>, Vec<OwnedFd>), ChannelError> {
        let mut bytes = vec![0; len_max];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
                Ok(received) => break received,
                Err(Errno::AGAIN) => return Err(ChannelError::WouldBlock),
                // Said once, when the other side has closed without reading everything; what it had
                // sent before still follows, and then the end.
                Err(Errno::CONNRESET) => {}
                Err(errno) => return Err(ChannelError::Os(errno)),
            }
        };
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                descriptors.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(ChannelError::TooManyDescriptors);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(ChannelError::TooLong { limit: len_max });
        }
        if received.bytes == 0 {
            return Err(ChannelError::Closed);
        }
        bytes.truncate(received.bytes);
        Ok((bytes, descriptors))
    }

    /// Blocks until a message waits or the other side is closed.
    pub fn wait_readable(&self) -> Result<(), ChannelError> {
        loop {
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(ChannelError::Os(errno)),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn a_message_and_its_descriptor_arrive_together() {
        let (here, there) = Channel::pair().unwrap();
        let mut file =
            std::fs::File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.write_all(b"through the wall").unwrap();
        here.send(b"look", &[file.as_fd()]).unwrap();
        drop(file);

        let (bytes, mut descriptors) = there.receive(16).unwrap();
        assert_eq!(bytes, b"look");
        let mut file = std::fs::File::from(descriptors.pop().unwrap());
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the wall");
    }

    #[test]
    fn messages_wait_for_a_reader_and_keep_their_bounds() {
        let (here, there) = Channel::pair().unwrap();
        here.send(b"one", &[]).unwrap();
        here.send(b"two", &[]).unwrap();
        assert_eq!(there.receive(16).unwrap().0, b"one");
        assert_eq!(there.receive(16).unwrap().0, b"two");
        assert!(matches!(there.receive(16), Err(ChannelError::WouldBlock)));
    }

    #[test]
    fn the_other_side_learns_of_the_end() {
        let (here, there) = Channel::pair().unwrap();
        drop(here);
        assert!(matches!(there.receive(16), Err(ChannelError::Closed)));
        assert!(matches!(there.send(b"x", &[]), Err(ChannelError::Closed)));
    }

    #[test]
    fn the_last_words_of_a_side_that_did_not_listen_arrive() {
        let (here, there) = Channel::pair().unwrap();
        here.send(b"a question", &[]).unwrap();
        there.send(b"last words", &[]).unwrap();
        drop(there);
        assert_eq!(here.receive(16).unwrap().0, b"last words");
        assert!(matches!(here.receive(16), Err(ChannelError::Closed)));
    }

    #[test]
    fn a_message_over_the_limit_is_refused() {
        let (here, there) = Channel::pair().unwrap();
        here.send(&[0; 17], &[]).unwrap();
        assert!(matches!(there.receive(16), Err(ChannelError::TooLong { limit: 16 })));
    }

    #[test]
    fn more_descriptors_than_a_message_takes_are_refused() {
        let (here, _there) = Channel::pair().unwrap();
        let fd = here.as_fd();
        assert!(matches!(here.send(b"x", &[fd; DESCRIPTORS_MAX + 1]), Err(ChannelError::TooManyDescriptors)));
    }
}
