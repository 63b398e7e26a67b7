//! Has the kernel forget connections: netlink messages of its connection tracking, as linux/netfilter/nfnetlink.h and
//! nfnetlink_conntrack.h have them. Kernels before 6.11 forget by mark or all, not by address, so each is asked for and
//! deleted by itself.

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::net::Ipv4Addr;

/// `NFNL_SUBSYS_CTNETLINK << 8`, with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;

const ERROR: u16 = 2;
const DONE: u16 = 3;

const FLAG_REQUEST: u16 = 0x001;
const FLAG_ACK: u16 = 0x004;
const FLAG_DUMP: u16 = 0x300;

const AF_INET: u8 = 2;

/// `CTA_TUPLE_ORIG`, in it `CTA_TUPLE_IP`, and in that `CTA_IP_V4_SRC`.
const PATH_TO_SOURCE: [u16; 3] = [1, 1, 1];
const TYPE_MASK: u16 = 0x3fff;

/// `struct nlmsghdr`, and with `struct nfgenmsg` behind it.
const HEADER_LEN: usize = 16;
const BODY_OFFSET: usize = HEADER_LEN + 4;

const ENOENT: i32 = 2;

/// Forgets all connections that were begun from these addresses, in the calling thread's network.
pub(super) fn forget(addresses: &[Ipv4Addr]) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut found = Vec::new();
    ask(&socket, GET, FLAG_DUMP, &[], |message| {
        let tuple = attribute(message, PATH_TO_SOURCE[0]);
        if let Some(tuple) =
            tuple.filter(|tuple| source_of(tuple).is_some_and(|source| addresses.contains(&source)))
        {
            found.push(tuple.to_vec());
        }
    })?;
    for tuple in found {
        match ask(&socket, DELETE, FLAG_ACK, &encode(PATH_TO_SOURCE[0] | NESTED, &tuple), |_| ()) {
            // It has run out meanwhile.
            Err(error) if error.raw_os_error() == Some(ENOENT) => {}
            result => result?,
        }
    }
    Ok(())
}

const NESTED: u16 = 0x8000;

/// Sends a request, and hands over what the answers carry until the last.
fn ask(socket: &Socket, kind: u16, flags: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    socket.send(&request(kind, flags, body), 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while let Some((kind, content, after)) = next_message(rest) {
            match kind {
                DONE => return Ok(()),
                ERROR => return errno(content),
                _ => each(content.get(BODY_OFFSET - HEADER_LEN..).unwrap_or_default()),
            }
            rest = after;
        }
    }
}

fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(BODY_OFFSET + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(BODY_OFFSET + body.len());
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((FLAG_REQUEST | flags).to_ne_bytes());
    // Sequence and port number: one question at a time needs none.
    message.extend([0; 8]);
    message.extend([AF_INET, 0, 0, 0]);
    message.extend(body);
    message
}

fn encode(kind: u16, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + content.len()).unwrap_or(u16::MAX);
    [&len.to_ne_bytes(), &kind.to_ne_bytes(), content].concat()
}

/// Its kind, what is behind its header, and what is behind it.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let content = bytes.get(HEADER_LEN..len)?;
    Some((kind, content, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// `struct nlmsgerr`: nothing went wrong if the number is zero.
fn errno(content: &[u8]) -> io::Result<()> {
    match content.first_chunk().map(|number| i32::from_ne_bytes(*number)) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// What the attribute of this kind carries.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let content = bytes.get(4..len)?;
        if kind & TYPE_MASK == wanted {
            return Some(content);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

fn source_of(tuple: &[u8]) -> Option<Ipv4Addr> {
    let source = attribute(attribute(tuple, PATH_TO_SOURCE[1])?, PATH_TO_SOURCE[2])?;
    Some(Ipv4Addr::from(*source.first_chunk::<4>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_address_that_a_connection_was_begun_from_is_found() {
        let source = Ipv4Addr::new(198, 18, 0, 9);
        let addresses = [encode(1, &source.octets()), encode(2, &[203, 0, 113, 1])].concat();
        let tuple = [encode(1 | NESTED, &addresses), encode(2, &[6, 0, 0, 0])].concat();
        let body = [encode(3, &[0; 4]), encode(1 | NESTED, &tuple)].concat();
        assert_eq!(source_of(attribute(&body, 1).unwrap()), Some(source));
    }

    #[test]
    fn a_message_is_told_from_the_next() {
        let message = request(DELETE, FLAG_ACK, &[7; 8]);
        let two = [message.clone(), message].concat();
        let (kind, content, rest) = next_message(&two).unwrap();
        assert_eq!((kind, content.len(), rest.len()), (DELETE, 12, 28));
        assert!(next_message(rest).unwrap().2.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some((_, content, _)) = next_message(&bytes) {
                errno(content).ok();
                attribute(content, 1).and_then(source_of);
            }
        }
    }
}
