//! What the network asks of the host's kernel, or of the fake that stands for it.

use super::egress::{Cidr, Egress};
use futures_util::future::BoxFuture;
use podflare_wire::guest::NetworkIdentity;
use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

/// The name of an interface, by its number: no two ever have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceId(pub u32);

/// What a list lets through by names: an address that one of them stands for, to one port or to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resolved {
    pub address: Ipv4Addr,
    pub port: Option<u16>,
}

/// What has gone through an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub connections: u64,
}

/// Names a change, from 1. No two interfaces ever have the same, so that a connection which one list has let through is
/// looked at again by every other.
pub type Revision = u32;

/// A change of what an interface lets through.
#[derive(Debug, Clone)]
pub struct Change {
    pub id: InterfaceId,
    pub identity: NetworkIdentity,
    pub revision: Revision,
    pub from: Former,
    pub to: Egress,
}

/// What an interface lets through before a change.
#[derive(Debug, Clone)]
pub enum Former {
    Known {
        egress: Egress,
        revision: Revision,
    },
    /// A change has failed, perhaps half-way.
    Unknown,
}

pub type Answer<'a, T> = BoxFuture<'a, Result<T, DriverError>>;

pub trait Driver: Send + Sync + fmt::Debug {
    /// The network that sandboxes have their addresses from.
    fn subnet(&self) -> Cidr;

    /// Makes an interface that lets out what is public. It goes when its descriptor has no owner any more; `None`
    /// where machines have no real one.
    fn make(&self, id: InterfaceId, identity: NetworkIdentity) -> Answer<'_, Option<OwnedFd>>;

    /// Holds for every packet after the answer.
    fn set_egress(&self, change: Change) -> Answer<'_, ()>;

    /// Lets nothing through, whatever the rules are.
    fn shut(&self, id: InterfaceId) -> Answer<'_, ()>;

    /// Lets an interface with a list through to these addresses, and no longer to those.
    fn set_resolved(
        &self,
        id: InterfaceId,
        revision: Revision,
        add: Vec<Resolved>,
        remove: Vec<Resolved>,
    ) -> Answer<'_, ()>;

    fn usage(&self, id: InterfaceId) -> Answer<'_, Usage>;

    /// Of all interfaces that anything has gone through.
    fn usages(&self) -> Answer<'_, HashMap<InterfaceId, Usage>>;

    /// Forgets the connections of addresses that nobody has any more, so that they are not another's.
    fn disconnect(&self, addresses: Vec<Ipv4Addr>) -> Answer<'_, ()>;

    /// Forgets the rules and counters of interfaces that are gone.
    fn forget(&self, gone: Vec<InterfaceId>) -> Answer<'_, ()>;

    /// Keeps up what others may take away, for as long as it is polled.
    fn watch(&self) -> BoxFuture<'_, Infallible>;

    /// Takes away what would stay when this process has ended.
    fn close(&self) -> Answer<'_, ()>;
}

#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("Could not make the interface of a sandbox: {step}")]
    Make { step: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("Could not set an interface up or down")]
    Switch(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("Could not run nft, of the package nftables")]
    RunNft(#[source] std::io::Error),
    #[error("nft refused a rule: {message}")]
    Nft { message: String },
    #[error("nft listed what cannot be read")]
    Listing(#[source] serde_json::Error),
    #[error("Could not forget connections")]
    Connections(#[source] std::io::Error),
    #[error("The thread that owns the sandboxes' network has ended")]
    Ended,
    #[error("The thread that runs nft has failed")]
    Thread(#[from] tokio::task::JoinError),
}
