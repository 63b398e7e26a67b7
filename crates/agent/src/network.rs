//! The guest's place in the network: one card with one address, everything behind one gateway.
//!
//! A copy wakes up with its source's address and connections. Both go before it is handed out: the peers know
//! nothing of the copy, and the host lets nothing out that does not come from the copy's own address.

use crate::netlink::{Batch, Netlink, Service};
use podflare_wire::guest::NetworkIdentity;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const INTERFACE: &str = "eth0";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How a file begins that is not the user's own.
const RESOLV_CONF_MARK: &str = "# Written at the sandbox's start; without this line it is left alone.\n";

// From linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h and linux/if.h.
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;

/// The only address of its network: everybody else is behind the gateway.
const PREFIX_LEN: u8 = 32;

/// `struct ifaddrmsg`.
const ADDRESS_MESSAGE_LEN: usize = 8;

// From linux/sock_diag.h and linux/inet_diag.h. The older request lists both families at once.
const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DESTROY: u16 = 21;
const IPPROTO_TCP: u8 = 6;
const TCP_LISTEN: u32 = 10;
const TCP_TIME_WAIT: u32 = 6;

/// `struct inet_diag_sockid`, which comes behind four bytes in what is listed, and its addresses.
const SOCKET_ID_LEN: usize = 48;
const SOURCE: std::ops::Range<usize> = 4..20;

/// Gives the machine another identity in place of the `former` one, if that is known. A machine whose card the user
/// has taken away, or that has none, is left without.
pub(crate) fn renew(identity: &NetworkIdentity, former: Option<&NetworkIdentity>) -> Result<(), Errno> {
    if former == Some(identity) {
        return Ok(());
    }
    reset_connections()?;
    let netlink = Netlink::open(Service::Route)?;
    let Some(index) = interface_index()? else { return Ok(()) };
    let former_addresses = match former {
        Some(former) => vec![former.address],
        None => addresses(&netlink, index)?,
    };
    netlink.carry_out(place(index, identity, former))?;
    for address in former_addresses.iter().filter(|address| **address != identity.address) {
        let mut batch = Batch::default();
        change_address(&mut batch, RTM_DELADDR, 0, index, *address);
        match netlink.carry_out(batch) {
            // The user has removed it.
            Ok(()) | Err(Errno::ADDRNOTAVAIL) => {}
            Err(errno) => return Err(errno),
        }
    }
    if former.is_none_or(|former| former.gateway != identity.gateway) {
        name_the_resolver(identity.gateway);
    }
    Ok(())
}

/// The new address comes before the former one goes: without any the routes would go, too.
fn place(index: u32, identity: &NetworkIdentity, former: Option<&NetworkIdentity>) -> Batch {
    let mut batch = Batch::default();
    set_up(&mut batch, index);
    batch.attribute(IFLA_ADDRESS, &identity.mac);
    change_address(&mut batch, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, identity.address);
    if former.is_none_or(|former| former.gateway != identity.gateway) {
        let mut route = vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST];
        route.extend(RTNH_F_ONLINK.to_ne_bytes());
        batch.message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &route);
        batch.attribute(RTA_GATEWAY, &identity.gateway.octets());
        batch.attribute(RTA_OIF, &index.to_ne_bytes());
    }
    batch
}

/// Adds the message that brings an interface up; it takes attributes.
pub(crate) fn set_up(batch: &mut Batch, index: u32) {
    let mut body = vec![0; 4]; // address family, padding, device type
    body.extend(index.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes()); // which flags to change
    batch.message(RTM_NEWLINK, 0, &body);
}

fn change_address(batch: &mut Batch, kind: u16, flags: u16, index: u32, address: Ipv4Addr) {
    let mut body = vec![AF_INET, PREFIX_LEN, 0, 0]; // flags, scope
    body.extend(index.to_ne_bytes());
    batch.message(kind, flags, &body);
    batch.attribute(IFA_LOCAL, &address.octets());
}

fn interface_index() -> Result<Option<u32>, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    match rustix::net::netdevice::name_to_index(&socket, INTERFACE) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The addresses that this agent, or one before it, has given the interface.
fn addresses(netlink: &Netlink, index: u32) -> Result<Vec<Ipv4Addr>, Errno> {
    let mut found = Vec::new();
    let mut request = [0; ADDRESS_MESSAGE_LEN];
    request[0] = AF_INET;
    netlink.list(RTM_GETADDR, &request, |body| {
        let is_ours = body.get(1) == Some(&PREFIX_LEN)
            && body.get(4..8).is_some_and(|bytes| bytes == index.to_ne_bytes());
        let local = attribute(body.get(ADDRESS_MESSAGE_LEN..).unwrap_or_default(), IFA_LOCAL);
        if let (true, Some(local)) = (is_ours, local.and_then(|value| value.first_chunk::<4>())) {
            found.push(Ipv4Addr::from(*local));
        }
    })?;
    Ok(found)
}

/// The first attribute of that kind.
fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..len)?;
        if u16::from_ne_bytes([k0, k1]) == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

/// Resets every TCP connection that leaves the machine. The peer hears of none: the host lets nothing out from an
/// address that is not the machine's.
fn reset_connections() -> Result<(), Errno> {
    let netlink = Netlink::open(Service::SockDiag)?;
    let mut request = vec![0; 4 + SOCKET_ID_LEN];
    let states = !(1_u32 << TCP_LISTEN | 1 << TCP_TIME_WAIT);
    request.extend(states.to_ne_bytes());
    request.extend([0; 4]); // no further tables
    let mut connections = Vec::new();
    netlink.list(TCPDIAG_GETSOCK, &request, |body| connections.extend(connection_that_leaves(body)))?;
    for (family, id) in connections {
        let mut body = vec![family, IPPROTO_TCP, 0, 0];
        body.extend(u32::MAX.to_ne_bytes());
        body.extend(id);
        let mut batch = Batch::default();
        batch.message(SOCK_DESTROY, 0, &body);
        match netlink.carry_out(batch) {
            // It has ended by itself meanwhile.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The family and the id of a listed connection, unless both of its ends are in this machine.
fn connection_that_leaves(body: &[u8]) -> Option<(u8, [u8; SOCKET_ID_LEN])> {
    let family = *body.first()?;
    let id: [u8; SOCKET_ID_LEN] = *body.get(4..)?.first_chunk()?;
    let source: [u8; 16] = *id.get(SOURCE)?.first_chunk()?;
    let source = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::from(*source.first_chunk()?)),
        _ => IpAddr::V6(Ipv6Addr::from(source)).to_canonical(),
    };
    (!source.is_loopback()).then_some((family, id))
}

/// What the user has made of the file is the user's.
fn name_the_resolver(gateway: Ipv4Addr) {
    let is_users = fs::read_to_string(RESOLV_CONF)
        .is_ok_and(|text| !text.trim().is_empty() && !text.starts_with(RESOLV_CONF_MARK));
    if !is_users {
        let text = format!("{RESOLV_CONF_MARK}nameserver {gateway}\n");
        // A machine without the file, or with a full disk, has no names. It has everything else.
        fs::write(RESOLV_CONF, text).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(family: u8, source: &[u8]) -> Vec<u8> {
        let mut body = vec![family, 1, 0, 0, 0, 80, 0, 81];
        body.extend(source);
        body.resize(72, 0);
        body
    }

    #[test]
    fn connections_within_the_machine_stay_and_all_others_are_reset() {
        const AF_INET6: u8 = 10;
        let mapped = |address: [u8; 4]| Ipv4Addr::from(address).to_ipv6_mapped().octets();
        for (family, source, leaves) in [
            (AF_INET, &[127, 0, 0, 1][..], false),
            (AF_INET, &[198, 18, 0, 9], true),
            (AF_INET6, &Ipv6Addr::LOCALHOST.octets(), false),
            (AF_INET6, &mapped([127, 0, 0, 1]), false),
            (AF_INET6, &mapped([198, 18, 0, 9]), true),
        ] {
            assert_eq!(connection_that_leaves(&listed(family, source)).is_some(), leaves, "{source:?}");
        }
        assert_eq!(connection_that_leaves(&[AF_INET; 20]), None);
    }

    #[test]
    fn attributes_are_found_and_lengths_that_lie_are_survived() {
        let mut bytes = vec![5, 0, 1, 0, 9, 0, 0, 0];
        bytes.extend([8, 0, 2, 0, 198, 18, 0, 9]);
        assert_eq!(attribute(&bytes, 2), Some(&[198, 18, 0, 9][..]));
        assert_eq!(attribute(&bytes, 3), None);
        assert_eq!(attribute(&[0, 0, 2, 0], 2), None);
        assert_eq!(attribute(&[255, 0, 2, 0], 2), None);
    }
}
