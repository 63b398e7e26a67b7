//! Brings the loopback interface up, with one rtnetlink message; the kernel then gives it 127.0.0.1.

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The loopback interface is the first of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

// From linux/netlink.h, linux/rtnetlink.h and linux/if.h.
const RTM_NEWLINK: u16 = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const IFF_UP: u32 = 1;

/// `struct nlmsghdr`, then `struct ifinfomsg`.
const MESSAGE_LEN: u32 = 16 + 16;

pub(crate) fn up() -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC;
    // rtnetlink is the netlink protocol 0.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::send(&socket, &set_up_message(), SendFlags::empty())?;
    let mut answer = [0; 64];
    let (_, len) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    acknowledged(&answer[..len])
}

fn set_up_message() -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(MESSAGE_LEN.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]); // sequence number, port
    message.extend([0; 4]); // address family, padding, device type
    message.extend(LOOPBACK_INDEX.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // which flags to change
    message
}

/// An acknowledgement is an error message with the error 0.
fn acknowledged(answer: &[u8]) -> Result<(), Errno> {
    let kind = answer.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    let error = answer.get(16..20).and_then(|error| error.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(Errno::from_raw_os_error(-error)),
        _ => Err(Errno::BADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_as_long_as_it_says() {
        assert_eq!(set_up_message().len(), MESSAGE_LEN as usize);
    }

    #[test]
    fn only_error_zero_is_an_acknowledgement() {
        let answer = |kind: u16, error: i32| {
            let mut answer = vec![0; 36];
            answer[4..6].copy_from_slice(&kind.to_ne_bytes());
            answer[16..20].copy_from_slice(&error.to_ne_bytes());
            answer
        };
        assert_eq!(acknowledged(&answer(NLMSG_ERROR, 0)), Ok(()));
        assert_eq!(acknowledged(&answer(NLMSG_ERROR, -1)), Err(Errno::PERM));
        assert_eq!(acknowledged(&answer(RTM_NEWLINK, 0)), Err(Errno::BADMSG));
        assert_eq!(acknowledged(&[]), Err(Errno::BADMSG));
    }
}
