//! Messages to the kernel's network: as much of netlink(7) as a guest needs.

use rustix::io::Errno;
use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::os::fd::OwnedFd;

// From linux/netlink.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

/// `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

/// What the kernel sends at once, at most, when it lists something.
const PART_LEN: usize = 32 * 1024;

/// Which of the kernel's services.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Service {
    Route,
    SockDiag,
}

#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
}

/// Messages that are sent together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
    count: u32,
}

impl Netlink {
    pub(crate) fn open(service: Service) -> Result<Netlink, Errno> {
        let protocol = match service {
            // rtnetlink is the netlink protocol 0.
            Service::Route => None,
            Service::SockDiag => Some(SOCK_DIAG),
        };
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        Ok(Netlink { socket })
    }

    /// Has the kernel carry out all messages, in their order. The first error ends it, but not what comes after it in
    /// the batch.
    pub(crate) fn carry_out(&self, mut batch: Batch) -> Result<(), Errno> {
        batch.finish_message();
        // Only the last one is acknowledged; an error is told of any.
        batch.set_last_flags(NLM_F_ACK);
        rustix::net::send(&self.socket, &batch.bytes, SendFlags::empty())?;
        let mut part = [0; 4096];
        loop {
            let (_, len) = rustix::net::recv(&self.socket, &mut part[..], RecvFlags::empty())?;
            for message in messages(&part[..len]) {
                match message.error() {
                    Some(0) if message.sequence() == batch.count => return Ok(()),
                    Some(0) => {}
                    Some(error) => return Err(Errno::from_raw_os_error(-error)),
                    None => return Err(Errno::BADMSG),
                }
            }
        }
    }

    /// Asks for a list, and hands each entry's body to `take`.
    pub(crate) fn list(&self, kind: u16, body: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), Errno> {
        let mut batch = Batch::default();
        batch.message(kind, NLM_F_DUMP, body);
        batch.finish_message();
        rustix::net::send(&self.socket, &batch.bytes, SendFlags::empty())?;
        let mut part = vec![0; PART_LEN];
        loop {
            let (_, len) = rustix::net::recv(&self.socket, &mut part[..], RecvFlags::empty())?;
            for message in messages(&part[..len]) {
                match (message.kind(), message.error()) {
                    (NLMSG_DONE, _) => return Ok(()),
                    (_, Some(error)) => return Err(Errno::from_raw_os_error(-error)),
                    _ => take(message.body()),
                }
            }
        }
    }
}

impl Batch {
    /// Begins a message with its fixed part.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, body: &[u8]) {
        self.finish_message();
        self.last = self.bytes.len();
        self.count += 1;
        self.bytes.extend([0; 4]); // its length
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend(self.count.to_ne_bytes());
        self.bytes.extend([0; 4]); // the sender's port
        self.bytes.extend(body);
    }

    /// Adds an attribute to the message.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish_message(&mut self) {
        let len = u32::try_from(self.bytes.len() - self.last).unwrap_or(u32::MAX);
        if let Some(field) = self.bytes.get_mut(self.last..self.last + 4) {
            field.copy_from_slice(&len.to_ne_bytes());
        }
    }

    fn set_last_flags(&mut self, flags: u16) {
        let at = self.last + 6;
        if let Some(field) = self.bytes.get_mut(at..at + 2) {
            let flags = u16::from_ne_bytes([field[0], field[1]]) | flags;
            field.copy_from_slice(&flags.to_ne_bytes());
        }
    }
}

/// A message of the kernel.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn kind(&self) -> u16 {
        u16::from_ne_bytes([self.0[4], self.0[5]])
    }

    fn sequence(&self) -> u32 {
        u32::from_ne_bytes([self.0[8], self.0[9], self.0[10], self.0[11]])
    }

    fn body(&self) -> &'a [u8] {
        &self.0[HEADER_LEN..]
    }

    /// The error that it tells: 0 in an acknowledgement, negative otherwise.
    fn error(&self) -> Option<i32> {
        let code = self.body().first_chunk()?;
        (self.kind() == NLMSG_ERROR).then(|| i32::from_ne_bytes(*code))
    }
}

/// The whole messages among these bytes, each with a header at least.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        if len < HEADER_LEN {
            return None;
        }
        let message = bytes.get(..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message(message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_batch_are_as_long_as_they_say() {
        let mut batch = Batch::default();
        batch.message(16, 0, &[1; 16]);
        batch.attribute(1, &[2; 6]);
        batch.message(20, 0, &[3; 8]);
        batch.finish_message();
        batch.set_last_flags(NLM_F_ACK);
        let seen: Vec<_> = messages(&batch.bytes)
            .map(|message| (message.kind(), message.0.len(), message.sequence()))
            .collect();
        assert_eq!(seen, [(16, 16 + 16 + 12, 1), (20, 16 + 8, 2)]);
        let flags = |at: usize| u16::from_ne_bytes([batch.bytes[at + 6], batch.bytes[at + 7]]);
        assert_eq!((flags(0), flags(44)), (NLM_F_REQUEST, NLM_F_REQUEST | NLM_F_ACK));
    }

    #[test]
    fn the_kernel_answers_and_says_no_to_what_it_does_not_know() {
        const RTM_GETLINK: u16 = 18;
        let netlink = Netlink::open(Service::Route).unwrap();
        let mut loopback = 0;
        netlink.list(RTM_GETLINK, &[0; 16], |_| loopback += 1).unwrap();
        assert!(loopback > 0);
        let mut batch = Batch::default();
        batch.message(0xfff0, 0, &[0; 16]);
        assert!(netlink.carry_out(batch).is_err());
    }

    #[test]
    fn a_part_that_is_cut_off_holds_no_message() {
        assert_eq!(messages(&[]).count(), 0);
        assert_eq!(messages(&[20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(messages(&[4; 40]).count(), 0);
    }
}
