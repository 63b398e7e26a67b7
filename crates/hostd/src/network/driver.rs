//! What the network asks of the host's kernel, or of the fake that stands for it.

use super::egress::{Cidr, Egress};
use futures_util::future::BoxFuture;
use podflare_wire::guest::NetworkIdentity;
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

/// A change of what an interface lets through.
#[derive(Debug, Clone)]
pub struct Change {
    pub id: InterfaceId,
    pub identity: NetworkIdentity,
    /// Counts the changes of this interface, from 1: connections of an earlier one are looked at again.
    pub revision: u32,
    pub from: Egress,
    pub to: Egress,
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

    /// Lets an interface with a list through to these addresses, and no longer to those.
    fn set_resolved(
        &self,
        id: InterfaceId,
        revision: u32,
        add: Vec<Resolved>,
        remove: Vec<Resolved>,
    ) -> Answer<'_, ()>;

    fn usage(&self, id: InterfaceId) -> Answer<'_, Usage>;

    /// Forgets what was kept for interfaces that are gone: those with a list, by their last revision, and the others.
    fn forget(&self, gone: Vec<Gone>) -> Answer<'_, ()>;

    /// Takes away what would stay when this process has ended.
    fn close(&self) -> Answer<'_, ()>;
}

/// An interface that is gone.
#[derive(Debug, Clone, Copy)]
pub struct Gone {
    pub id: InterfaceId,
    pub list_revision: Option<u32>,
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
    #[error("The thread that owns the sandboxes' network has ended")]
    Ended,
    #[error("The thread that runs nft has failed")]
    Thread(#[from] tokio::task::JoinError),
}
