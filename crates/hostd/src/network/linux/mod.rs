//! The network on a Linux host: TAP interfaces and a packet filter in a network namespace of their own, and one link
//! from there to the host's network.
//!
//! ```text
//!   guest ── TAP ──▶ ┌ the sandboxes' namespace ─────────┐      ┌ the host's ─────────────┐
//!   guest ── TAP ──▶ │ who may reach whom; DNS           │ link │ not this host itself;   │ ──▶ Internet
//!   guest ── TAP ──▶ │ (no interface reaches another)    │ ───▶ │ address translation     │
//!                    └───────────────────────────────────┘      └─────────────────────────┘
//! ```
//!
//! The namespace has no name and so goes with hostd and its machines, whatever ends them. In the host's own network
//! there are the link, which goes with the namespace, and one table of rules, which hostd replaces at its next start.

mod connections;
mod guard;
mod listing;
mod namespace;
mod rules;
#[expect(unsafe_code, reason = "three ioctls of /dev/net/tun")]
mod tap;

use super::driver::{Answer, Change, Driver, DriverError, Former, InterfaceId, Resolved, Revision, Usage};
use super::egress::{Cidr, Egress};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryStreamExt};
use guard::Guard;
use listing::Residue;
use namespace::{Namespace, nft, nft_list};
use podflare_wire::guest::NetworkIdentity;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rules::{UPLINK, tap_name};
use rustix::io::Errno;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use tokio::time::sleep;

/// The link's end in the host's own network, and what the table of rules there is called.
const LINK: &str = "podflare0";

/// The TAP interfaces' own address on their wires, which no two of them share.
const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];

/// How long the link of a hostd that was killed may take to go.
const LINK_ATTEMPTS: u32 = 50;
const LINK_PAUSE: Duration = Duration::from_millis(200);

const DNS_PORT: u16 = 53;

/// Packets that wait for a guest: what one that reads none takes of the host's memory is bounded by it.
const TAP_QUEUE_LEN: u32 = 128;

#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    #[error("Could not make a network namespace; hostd needs CAP_NET_ADMIN and CAP_SYS_ADMIN for it")]
    Namespace(#[source] std::io::Error),
    #[error("Could not speak with the kernel's network")]
    Netlink(#[source] std::io::Error),
    #[error(
        "The interface {LINK} is there already: another hostd runs, or something else has taken its name"
    )]
    LinkExists,
    #[error("Could not set up the link between the sandboxes' network and the host's: {step}")]
    Link { step: &'static str, source: rtnetlink::Error },
    #[error("Could not write {path}")]
    Setting { path: &'static str, source: std::io::Error },
    #[error("Could not listen for DNS questions")]
    Dns(#[source] std::io::Error),
    #[error(transparent)]
    Driver(#[from] DriverError),
}

#[derive(Debug)]
pub struct LinuxDriver {
    namespace: Namespace,
    subnet: Cidr,
    /// Sees to the rules in the host's own network.
    guard: Guard,
}

/// Where sandboxes ask for names: sockets in their namespace.
#[derive(Debug)]
pub struct DnsSockets {
    pub udp: UdpSocket,
    pub tcp: TcpListener,
}

impl LinuxDriver {
    /// Makes the network. The last four addresses of the subnet are the link's, the first ones are kept for gateways.
    /// What is in `never` is reached in no mode.
    pub async fn set_up(
        subnet: Cidr,
        gateway: Ipv4Addr,
        never: Vec<Cidr>,
    ) -> Result<(LinuxDriver, DnsSockets), SetUpError> {
        let (namespace, file) = Namespace::new().await.map_err(SetUpError::Namespace)?;
        let (connection, host, _) = rtnetlink::new_connection().map_err(SetUpError::Netlink)?;
        let connection = tokio::spawn(connection);
        let outer = subnet.nth(subnet.size() - 3);
        let inner = subnet.nth(subnet.size() - 2);
        let guard = set_up_host(&host, file.as_raw_fd(), subnet, [outer, inner]).await?;
        connection.abort();
        let sockets = namespace.run(move |handle| async move {
            Ok(set_up_namespace(&handle, subnet, gateway, &never, [outer, inner]).await)
        });
        let sockets = sockets.await??;
        Ok((LinuxDriver { namespace, subnet, guard }, sockets))
    }

    async fn list(&self, what: &'static [&'static str]) -> Result<Vec<u8>, DriverError> {
        self.namespace.run(move |_| async { nft_list(what) }).await
    }

    async fn residue(&self, ids: &[InterfaceId]) -> Result<Residue, DriverError> {
        let listing = self.list(&["table", "ip", "podflare"]).await?;
        listing::residue(&listing, ids).map_err(DriverError::Listing)
    }

    async fn switch(&self, id: InterfaceId, to: Switch) -> Result<(), DriverError> {
        self.namespace.run(move |handle| switch(handle, id, to)).await
    }

    async fn run_nft(&self, script: String) -> Result<(), DriverError> {
        if script.is_empty() {
            return Ok(());
        }
        self.namespace.run(move |_| async move { nft(&script) }).await
    }
}

/// In the host's own network: the link, the way to the sandboxes, and the rules.
async fn set_up_host(
    host: &Handle,
    namespace: i32,
    subnet: Cidr,
    [outer, inner]: [Ipv4Addr; 2],
) -> Result<Guard, SetUpError> {
    let failed = |step| move |source| SetUpError::Link { step, source };
    make_link(host).await?;
    let uplink = index_of(host, UPLINK).await.map_err(failed("to find its inner end"))?;
    let enter = LinkUnspec::new_with_index(uplink).setns_by_fd(namespace).build();
    host.link().set(enter).execute().await.map_err(failed("to hand its inner end over"))?;
    let link = index_of(host, LINK).await.map_err(failed("to find its outer end"))?;
    host.address().add(link, outer.into(), 30).execute().await.map_err(failed("to address its outer end"))?;
    let up = LinkUnspec::new_with_index(link).up().build();
    host.link().set(up).execute().await.map_err(failed("to bring its outer end up"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(subnet.nth(0), subnet.prefix_len())
        .output_interface(link)
        .gateway(inner);
    host.route().add(route.build()).execute().await.map_err(failed("to make the way to sandboxes known"))?;
    // Nothing is passed on before the rules say what.
    let guard = Guard::set_up(LINK, rules::host(LINK, subnet)).await?;
    write_setting("/proc/sys/net/ipv4/ip_forward")?;
    Ok(guard)
}

/// The link of a hostd that was killed goes with its last machine.
async fn make_link(host: &Handle) -> Result<(), SetUpError> {
    for _ in 0..LINK_ATTEMPTS {
        match host.link().add(LinkVeth::new(LINK, UPLINK).build()).execute().await {
            Err(error) if is_of(&error, Errno::EXIST) => sleep(LINK_PAUSE).await,
            made => return made.map_err(|source| SetUpError::Link { step: "to make it", source }),
        }
    }
    Err(SetUpError::LinkExists)
}

fn is_of(error: &rtnetlink::Error, errno: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno.raw_os_error())
}

async fn set_up_namespace(
    handle: &Handle,
    subnet: Cidr,
    gateway: Ipv4Addr,
    never: &[Cidr],
    [outer, inner]: [Ipv4Addr; 2],
) -> Result<DnsSockets, SetUpError> {
    let failed = |step| move |source| SetUpError::Link { step, source };
    // Nothing here speaks IPv6: every interface made from now on is without. And who says on its wire that it has another
    // address gets no answer, and so no place in the table of neighbours that all sandboxes share.
    for path in [
        "/proc/sys/net/ipv6/conf/all/disable_ipv6",
        "/proc/sys/net/ipv6/conf/default/disable_ipv6",
        "/proc/sys/net/ipv4/conf/all/rp_filter",
        "/proc/sys/net/ipv4/ip_forward",
    ] {
        match write_setting(path) {
            Err(SetUpError::Setting { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            written => written?,
        }
    }
    let loopback = index_of(handle, "lo").await.map_err(failed("to find the loopback interface"))?;
    let up = LinkUnspec::new_with_index(loopback).up().build();
    handle.link().set(up).execute().await.map_err(failed("to bring the loopback interface up"))?;
    let address = handle.address().add(loopback, gateway.into(), 32);
    address.execute().await.map_err(failed("to address the gateway"))?;
    let uplink = index_of(handle, UPLINK).await.map_err(failed("to find its inner end"))?;
    handle
        .address()
        .add(uplink, inner.into(), 30)
        .execute()
        .await
        .map_err(failed("to address its inner end"))?;
    let up = LinkUnspec::new_with_index(uplink).up().build();
    handle.link().set(up).execute().await.map_err(failed("to bring its inner end up"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(outer).output_interface(uplink);
    handle.route().add(route.build()).execute().await.map_err(failed("to make the way out known"))?;
    nft(&rules::namespace(subnet, gateway, never))?;
    let address = (gateway, DNS_PORT);
    let udp = UdpSocket::bind(address).map_err(SetUpError::Dns)?;
    let tcp = TcpListener::bind(address).map_err(SetUpError::Dns)?;
    udp.set_nonblocking(true).map_err(SetUpError::Dns)?;
    tcp.set_nonblocking(true).map_err(SetUpError::Dns)?;
    Ok(DnsSockets { udp, tcp })
}

/// Switches a setting of the calling thread's namespace on.
fn write_setting(path: &'static str) -> Result<(), SetUpError> {
    std::fs::write(path, "1").map_err(|source| SetUpError::Setting { path, source })
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let link = handle.link().get().match_name(name.to_owned()).execute().try_next().await?;
    Ok(link.map(|link| link.header.index).unwrap_or_default())
}

async fn make_tap(
    handle: Handle,
    id: InterfaceId,
    identity: NetworkIdentity,
) -> Result<Option<OwnedFd>, DriverError> {
    let name = tap_name(id);
    let make = |step, source| DriverError::Make { step, source };
    let failed = |step| move |error: rtnetlink::Error| make(step, error.into());
    let tap = tap::make(&name).map_err(|errno| make("to open it", errno.into()))?;
    let index = index_of(&handle, &name).await.map_err(failed("to find it"))?;
    let link = LinkUnspec::new_with_index(index)
        .address(GATEWAY_MAC.to_vec())
        .append_extra_attribute(LinkAttribute::TxQueueLen(TAP_QUEUE_LEN));
    handle.link().set(link.build()).execute().await.map_err(failed("to address it"))?;
    bring_up(&handle, index, identity).await.map_err(failed("to bring it up"))?;
    Ok(Some(tap))
}

/// Brings an interface up and makes the machine behind it known, which is forgotten whenever it goes down. Nobody on
/// the wire is asked who has the address.
async fn bring_up(handle: &Handle, index: u32, identity: NetworkIdentity) -> Result<(), rtnetlink::Error> {
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    let neighbour = handle.neighbours().add(index, identity.address.into());
    let neighbour = neighbour.state(NeighbourState::Permanent).link_layer_address(&identity.mac);
    neighbour.replace().execute().await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(identity.address, 32)
        .scope(RouteScope::Link)
        .output_interface(index);
    handle.route().add(route.build()).replace().execute().await
}

#[derive(Debug, Clone, Copy)]
enum Switch {
    /// Nothing goes through an interface that is down, whoever has its descriptor.
    Down,
    Up(NetworkIdentity),
}

/// One that is gone is down.
async fn switch(handle: Handle, id: InterfaceId, to: Switch) -> Result<(), DriverError> {
    let failed = |error: rtnetlink::Error| DriverError::Switch(error.into());
    let index = match index_of(&handle, &tap_name(id)).await {
        Err(error) if matches!(to, Switch::Down) && is_of(&error, Errno::NODEV) => return Ok(()),
        found => found.map_err(failed)?,
    };
    let switched = match to {
        Switch::Down => handle.link().set(LinkUnspec::new_with_index(index).down().build()).execute().await,
        Switch::Up(identity) => bring_up(&handle, index, identity).await,
    };
    switched.map_err(failed)
}

impl Driver for LinuxDriver {
    fn subnet(&self) -> Cidr {
        self.subnet
    }

    fn make(&self, id: InterfaceId, identity: NetworkIdentity) -> Answer<'_, Option<OwnedFd>> {
        self.namespace.run(move |handle| make_tap(handle, id, identity)).boxed()
    }

    /// Down comes first and up last: nothing slips through between two sets of rules.
    fn set_egress(&self, change: Change) -> Answer<'_, ()> {
        async move {
            let is_off = change.to == Egress::Off;
            let (was_off, residue) = match &change.from {
                Former::Known { egress, .. } => (*egress == Egress::Off, None),
                Former::Unknown => {
                    self.switch(change.id, Switch::Down).await?;
                    (true, Some(self.residue(&[change.id]).await?))
                }
            };
            if is_off && !was_off {
                self.switch(change.id, Switch::Down).await?;
            }
            self.run_nft(rules::change(&change, residue)).await?;
            if was_off && !is_off {
                self.switch(change.id, Switch::Up(change.identity)).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn shut(&self, id: InterfaceId) -> Answer<'_, ()> {
        self.switch(id, Switch::Down).boxed()
    }

    fn set_resolved(
        &self,
        id: InterfaceId,
        revision: Revision,
        add: Vec<Resolved>,
        remove: Vec<Resolved>,
    ) -> Answer<'_, ()> {
        self.run_nft(rules::resolved(id, revision, &add, &remove)).boxed()
    }

    fn usage(&self, id: InterfaceId) -> Answer<'_, Usage> {
        async move { Ok(self.usages().await?.remove(&id).unwrap_or_default()) }.boxed()
    }

    fn usages(&self) -> Answer<'_, HashMap<InterfaceId, Usage>> {
        async move {
            let sent = self.list(&["set", "ip", "podflare", "sent"]).await?;
            let received = self.list(&["set", "ip", "podflare", "received"]).await?;
            let connections = self.list(&["set", "ip", "podflare", "connections"]).await?;
            listing::usages([&sent, &received, &connections]).map_err(DriverError::Listing)
        }
        .boxed()
    }

    /// In both networks that a connection goes through.
    fn disconnect(&self, addresses: Vec<Ipv4Addr>) -> Answer<'_, ()> {
        async move {
            let inner = addresses.clone();
            let forget = move |addresses: &[Ipv4Addr]| {
                connections::forget(addresses).map_err(DriverError::Connections)
            };
            self.namespace.run(move |_| async move { forget(&inner) }).await?;
            tokio::task::spawn_blocking(move || forget(&addresses)).await?
        }
        .boxed()
    }

    fn forget(&self, gone: Vec<InterfaceId>) -> Answer<'_, ()> {
        async move {
            let residue = self.residue(&gone).await?;
            self.run_nft(rules::forget(&residue)).await
        }
        .boxed()
    }

    fn watch(&self) -> BoxFuture<'_, Infallible> {
        self.guard.watch().boxed()
    }

    fn close(&self) -> Answer<'_, ()> {
        // In the host's own network: everything else goes with the namespace.
        async { tokio::task::spawn_blocking(|| nft(&rules::remove_host(LINK))).await? }.boxed()
    }
}
