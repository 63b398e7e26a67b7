//! The sandboxes' network: who has which address, who may reach what, and who is asked for names.
//!
//! Each machine has an [`Interface`] of its own, from its thaw to its end. A few are made ahead, so that neither a create
//! nor a fork waits for the kernel. The [`driver`] makes and switches them; the [rules](egress) are pure.

pub mod dns;
pub mod driver;
pub mod egress;
pub mod fake;
pub mod linux;
mod resolved;

use crate::chain::chain;
use driver::{Change, Driver, DriverError, Gone, InterfaceId, Usage};
use egress::{Cidr, Egress};
use podflare_wire::guest::NetworkIdentity;
use resolved::Names;
use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::time::sleep;

/// Interfaces that are made ahead, and how many of them may be missing while people wait for something else: making one
/// takes processor time.
const READY: usize = 16;
const READY_MIN: usize = 8;

/// The pause after one could not be made.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What is left of interfaces that are gone is removed in lots: each takes a run of nft.
const FORGET_AT: usize = 64;

/// Interfaces that are gone are closed in small lots, so that whoever comes meanwhile does not wait for all of them; in
/// larger ones the more there are, so that they never become many.
const CLOSE_MIN: usize = 1;
const CLOSE_PART: usize = 8;

/// Addresses at the beginning of the subnet that no sandbox gets: the network's own, the gateway's, the templates'.
const KEPT_FIRST: u32 = 16;

/// And at its end: the link's.
const KEPT_LAST: u32 = 4;

/// Every sandbox's way out, and where it asks for names.
pub fn gateway_of(subnet: Cidr) -> Ipv4Addr {
    subnet.nth(1)
}

/// A handle to the network; copies are the same network.
#[derive(Debug, Clone)]
pub struct Network(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    driver: Box<dyn Driver>,
    next_id: AtomicU32,
    /// Plain mutexes: held for look-ups and swaps, never across an await.
    addresses: Mutex<VecDeque<Ipv4Addr>>,
    ready: Mutex<VecDeque<Interface>>,
    wanted: Notify,
    /// Whose address it is.
    members: Mutex<HashMap<Ipv4Addr, Arc<Member>>>,
    gone: Mutex<Vec<Gone>>,
    /// Interfaces that are gone. To close one waits for the kernel; until then its address is taken.
    to_close: Mutex<Vec<Closing>>,
}

/// A machine's place in the network. When the last owner is gone, so is the place.
#[derive(Debug, Clone)]
pub struct Interface(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    member: Arc<Member>,
    tap: Option<OwnedFd>,
    network: Arc<Shared>,
}

#[derive(Debug)]
struct Closing {
    tap: Option<OwnedFd>,
    address: Ipv4Addr,
}

/// What is known of an interface.
#[derive(Debug)]
struct Member {
    id: InterfaceId,
    identity: NetworkIdentity,
    policy: Mutex<Policy>,
    /// Held while the rules are changed, so that changes come one after the other.
    changing: tokio::sync::Mutex<()>,
    /// One permit for each question that may be looked up for it at once.
    questions: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Policy {
    egress: Egress,
    revision: u32,
    names: Names,
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("All addresses of the sandboxes' network are taken")]
    NoAddress,
    #[error(transparent)]
    Driver(#[from] DriverError),
}

impl Network {
    /// No sandbox has a network.
    pub fn none() -> Network {
        Network(None)
    }

    pub fn new(driver: Box<dyn Driver>) -> Network {
        let subnet = driver.subnet();
        let last = subnet.size().saturating_sub(KEPT_LAST);
        let addresses = (KEPT_FIRST..last).map(|offset| subnet.nth(offset)).collect();
        Network(Some(Arc::new(Shared {
            driver,
            next_id: AtomicU32::new(0),
            addresses: Mutex::new(addresses),
            ready: Mutex::default(),
            wanted: Notify::new(),
            members: Mutex::default(),
            gone: Mutex::default(),
            to_close: Mutex::default(),
        })))
    }

    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// What a template is in the network, so that its copies need only change the address.
    pub fn template_identity(&self) -> Option<NetworkIdentity> {
        let subnet = self.0.as_ref()?.driver.subnet();
        Some(identity(subnet, subnet.nth(2)))
    }

    /// A place for a machine; none on a host without a network.
    pub async fn interface(&self, egress: &Egress) -> Result<Option<Interface>, NetworkError> {
        let Some(shared) = &self.0 else { return Ok(None) };
        let ready = lock(&shared.ready).pop_front();
        shared.wanted.notify_one();
        let interface = match ready {
            Some(interface) => interface,
            None => Interface::make(shared).await?,
        };
        interface.set_egress(egress).await?;
        Ok(Some(interface))
    }

    /// Takes away what would outlive hostd.
    pub async fn close(&self) {
        let Some(shared) = &self.0 else { return };
        if let Err(error) = shared.driver.close().await {
            tracing::warn!(error = %chain(&error), "Could not remove the rules of the sandboxes' network");
        }
    }

    /// Keeps interfaces ready, and forgets those that are gone, for as long as it is polled. `quiet` resolves when this
    /// disturbs nobody.
    pub async fn keep<F: Future<Output = ()>>(&self, quiet: impl Fn() -> F) -> std::convert::Infallible {
        let Some(shared) = &self.0 else { return std::future::pending().await };
        loop {
            let ready = lock(&shared.ready).len();
            if ready >= READY && lock(&shared.to_close).is_empty() {
                shared.wanted.notified().await;
                continue;
            }
            if ready >= READY_MIN {
                quiet().await;
            }
            if ready < READY {
                match Interface::make(shared).await {
                    Ok(interface) => lock(&shared.ready).push_back(interface),
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "Could not make an interface for a sandbox");
                        sleep(RETRY_PAUSE).await;
                    }
                }
            }
            shared.forget_gone().await;
        }
    }
}

impl Shared {
    async fn forget_gone(&self) {
        let to_close = {
            let mut to_close = lock(&self.to_close);
            let count = CLOSE_MIN.max(to_close.len() / CLOSE_PART).min(to_close.len());
            to_close.drain(..count).collect::<Vec<_>>()
        };
        let (taps, addresses): (Vec<_>, Vec<_>) =
            to_close.into_iter().map(|closing| (closing.tap, closing.address)).unzip();
        if !taps.is_empty() {
            // A panic could not be handled better than by going on.
            tokio::task::spawn_blocking(|| drop(taps)).await.ok();
        }
        // At the end: an address is used again as late as possible.
        lock(&self.addresses).extend(addresses);
        let gone = {
            let mut gone = lock(&self.gone);
            if gone.len() < FORGET_AT {
                return;
            }
            std::mem::take(&mut *gone)
        };
        if let Err(error) = self.driver.forget(gone).await {
            tracing::warn!(error = %chain(&error), "Could not remove what is left of sandboxes in the network");
        }
    }

    fn member(&self, address: Ipv4Addr) -> Option<Arc<Member>> {
        lock(&self.members).get(&address).cloned()
    }
}

impl Interface {
    async fn make(network: &Arc<Shared>) -> Result<Interface, NetworkError> {
        let address = lock(&network.addresses).pop_front().ok_or(NetworkError::NoAddress)?;
        let id = InterfaceId(network.next_id.fetch_add(1, Ordering::Relaxed));
        let identity = identity(network.driver.subnet(), address);
        let member = Arc::new(Member {
            id,
            identity,
            policy: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            questions: Arc::new(Semaphore::new(dns::QUESTIONS_EACH_MAX)),
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

    /// What the machine's card is plugged into.
    pub fn tap(&self) -> Option<BorrowedFd<'_>> {
        self.0.tap.as_ref().map(AsFd::as_fd)
    }

    pub fn egress(&self) -> Egress {
        self.0.member.policy().egress.clone()
    }

    /// Holds for every packet from the answer on, also for connections that are open.
    pub async fn set_egress(&self, egress: &Egress) -> Result<(), NetworkError> {
        let member = &self.0.member;
        let _changing = member.changing.lock().await;
        let (from, revision) = {
            let policy = member.policy();
            (policy.egress.clone(), policy.revision + 1)
        };
        if from == *egress {
            return Ok(());
        }
        let change = Change { id: member.id, identity: member.identity, revision, from, to: egress.clone() };
        self.0.network.driver.set_egress(change).await?;
        *member.policy() = Policy { egress: egress.clone(), revision, names: Names::default() };
        Ok(())
    }

    pub async fn usage(&self) -> Result<Usage, NetworkError> {
        Ok(self.0.network.driver.usage(self.0.member.id).await?)
    }
}

impl Member {
    fn policy(&self) -> MutexGuard<'_, Policy> {
        lock(&self.policy)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let address = self.member.identity.address;
        let policy = self.member.policy();
        let list_revision = matches!(policy.egress, Egress::Allow(_)).then_some(policy.revision);
        lock(&self.network.gone).push(Gone { id: self.member.id, list_revision });
        lock(&self.network.members).remove(&address);
        lock(&self.network.to_close).push(Closing { tap: self.tap.take(), address });
        self.network.wanted.notify_one();
    }
}

fn identity(subnet: Cidr, address: Ipv4Addr) -> NetworkIdentity {
    NetworkIdentity { mac: mac_of(address), address, gateway: gateway_of(subnet) }
}

/// The card's address follows from the network address, so that no two in one network are the same.
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x00, a, b, c, d]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
