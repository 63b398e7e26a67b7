//! A machine's place in the network, and what it may reach from there.

use super::driver::{Change, Former, InterfaceId, Revision, Usage};
use super::egress::{Cidr, Egress};
use super::resolved::{Difference, Names};
use super::{Closing, NetworkError, Shared, dns, gateway_of, lock};
use crate::chain::chain;
use podflare_wire::guest::NetworkIdentity;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// When the last owner is gone, so is the place.
#[derive(Debug, Clone)]
pub struct Interface(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    member: Arc<Member>,
    tap: Option<OwnedFd>,
    network: Arc<Shared>,
}

/// What is known of an interface.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: InterfaceId,
    identity: NetworkIdentity,
    /// A plain mutex: held for look-ups and swaps, never across an await.
    policy: Mutex<Policy>,
    /// Held while the rules are changed, so that changes come one after the other.
    changing: tokio::sync::Mutex<()>,
    /// One permit for each question that may be looked up for it at once, and for each connection that may ask.
    pub(super) questions: Arc<Semaphore>,
    pub(super) connections: Arc<Semaphore>,
}

#[derive(Debug, Default)]
pub(super) struct Policy {
    pub(super) egress: Egress,
    revision: Revision,
    /// Whether the rules are known to be in place. Where they are not, the interface is down.
    is_unknown: bool,
    names: Names,
}

impl Interface {
    pub(super) async fn make(network: &Arc<Shared>) -> Result<Interface, NetworkError> {
        let address = lock(&network.addresses).pop_front().ok_or(NetworkError::NoAddress)?;
        let id = InterfaceId(network.next_id.fetch_add(1, Ordering::Relaxed));
        let identity = identity(network.driver.subnet(), address);
        let member = Arc::new(Member {
            id,
            identity,
            policy: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            questions: Arc::new(Semaphore::new(dns::QUESTIONS_EACH_MAX)),
            connections: Arc::new(Semaphore::new(dns::CONNECTIONS_EACH_MAX)),
        });
        // Gives the address back, too, if the rest fails.
        let mut owned = Owned { member: member.clone(), tap: None, network: network.clone() };
        owned.tap = network.driver.make(id, identity).await?;
        lock(&network.members).insert(address, member);
        Ok(Interface(Arc::new(owned)))
    }

    pub fn identity(&self) -> NetworkIdentity {
        self.0.member.identity
    }

    pub fn id(&self) -> InterfaceId {
        self.0.member.id
    }

    /// What the machine's card is plugged into.
    pub fn tap(&self) -> Option<BorrowedFd<'_>> {
        self.0.tap.as_ref().map(AsFd::as_fd)
    }

    pub fn egress(&self) -> Egress {
        self.0.member.policy().egress.clone()
    }

    /// Holds for every packet from the answer on, also for connections that are open. A change that fails leaves nothing
    /// that is let through.
    pub async fn set_egress(&self, egress: &Egress) -> Result<(), NetworkError> {
        if self.0.member.is_at(egress) {
            return Ok(());
        }
        let (interface, egress) = (self.clone(), egress.clone());
        // A change goes to its end, also when whoever asked for it has gone.
        let change = tokio::spawn(async move { interface.0.change_egress(egress).await });
        change.await.map_err(|_| NetworkError::Lost)?
    }

    pub async fn usage(&self) -> Result<Usage, NetworkError> {
        Ok(self.0.network.driver.usage(self.0.member.id).await?)
    }
}

impl Owned {
    async fn change_egress(&self, egress: Egress) -> Result<(), NetworkError> {
        let member = &self.member;
        let _changing = member.changing.lock().await;
        if member.is_at(&egress) {
            return Ok(());
        }
        let from = member.policy().former();
        let revision = self.network.next_revision();
        let change = Change { id: member.id, identity: member.identity, revision, from, to: egress.clone() };
        let changed = self.network.driver.set_egress(change).await;
        let is_unknown = changed.is_err();
        let egress = if is_unknown { Egress::Off } else { egress };
        *member.policy() = Policy { egress, revision, is_unknown, names: Names::default() };
        if is_unknown && let Err(error) = self.network.driver.shut(member.id).await {
            tracing::error!(error = %chain(&error), "Could not cut a sandbox off whose rules could not be changed");
        }
        Ok(changed?)
    }
}

impl Member {
    pub(super) fn policy(&self) -> MutexGuard<'_, Policy> {
        lock(&self.policy)
    }

    fn is_at(&self, egress: &Egress) -> bool {
        let policy = self.policy();
        !policy.is_unknown && policy.egress == *egress
    }

    /// Lets a sandbox with a list through to what a name stands for, unless the list has been changed meanwhile: then the
    /// answer leads nowhere.
    pub(super) async fn let_through(
        &self,
        network: &Shared,
        egress: &Egress,
        found: Vec<super::driver::Resolved>,
        ttl: Duration,
    ) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        let (revision, difference) = {
            let mut policy = self.policy();
            if policy.egress != *egress {
                return Ok(());
            }
            (policy.revision, policy.names.learn(found, ttl, Instant::now()))
        };
        self.carry_out(network, revision, difference).await
    }

    /// No longer lets through what has run out.
    pub(super) async fn expire_names(&self, network: &Shared) -> Result<(), NetworkError> {
        if !self.policy().names.has_expired(Instant::now()) {
            return Ok(());
        }
        let _changing = self.changing.lock().await;
        let (revision, difference) = {
            let mut policy = self.policy();
            (policy.revision, policy.names.learn([], Duration::ZERO, Instant::now()))
        };
        self.carry_out(network, revision, difference).await
    }

    async fn carry_out(
        &self,
        network: &Shared,
        revision: Revision,
        difference: Difference,
    ) -> Result<(), NetworkError> {
        let Difference { add, remove } = difference;
        if add.is_empty() && remove.is_empty() {
            return Ok(());
        }
        let set = network.driver.set_resolved(self.id, revision, add.clone(), remove.clone()).await;
        if set.is_err() {
            self.policy().names.undo(&Difference { add, remove }, Instant::now());
        }
        Ok(set?)
    }
}

impl Policy {
    fn former(&self) -> Former {
        match self.is_unknown {
            true => Former::Unknown,
            false => Former::Known { egress: self.egress.clone(), revision: self.revision },
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let address = self.member.identity.address;
        lock(&self.network.members).remove(&address);
        lock(&self.network.to_close).push(Closing { id: self.member.id, tap: self.tap.take(), address });
        self.network.wanted.notify_one();
    }
}

pub(super) fn identity(subnet: Cidr, address: Ipv4Addr) -> NetworkIdentity {
    NetworkIdentity { mac: mac_of(address), address, gateway: gateway_of(subnet) }
}

/// The card's address follows from the network address, so that no two in one network are the same.
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x00, a, b, c, d]
}
