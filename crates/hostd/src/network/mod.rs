//! The sandboxes' network: who has which address, who may reach what, and who is asked for names.
//!
//! Each machine has an [`Interface`] of its own, from its thaw to its end. A few are made ahead, so that neither a create
//! nor a fork waits for the kernel. The [`driver`] makes and switches them; the [rules](egress) are pure.

pub mod dns;
pub mod driver;
pub mod egress;
pub mod fake;
mod interface;
pub mod linux;
mod resolved;

use crate::chain::chain;
use driver::{Driver, DriverError, InterfaceId, Revision, Usage};
use egress::{Cidr, Egress};
pub use interface::{Interface, mac_of};
use interface::{Member, identity};
use podflare_wire::guest::NetworkIdentity;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{interval, sleep};

/// Interfaces that are made ahead, and how many of them may be missing while people wait for something else: making one
/// takes processor time.
const READY: usize = 16;
const READY_MIN: usize = 8;

/// The pause after one could not be made.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What is left of interfaces that are gone is removed in lots: each takes a run of nft.
const FORGET_AT: usize = 64;

/// Interfaces whose last counters are kept for who asks.
const DEPARTED_MAX: usize = 65_536;

/// Interfaces that are gone are closed in small lots, so that whoever comes meanwhile does not wait for all of them; in
/// larger ones the more there are, so that they never become many.
const CLOSE_MIN: usize = 1;
const CLOSE_PART: usize = 8;

/// How often names are looked through for those that have run out.
const EXPIRY_PERIOD: Duration = Duration::from_secs(30);

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
    revisions: AtomicU32,
    /// Plain mutexes: held for look-ups and swaps, never across an await.
    addresses: Mutex<VecDeque<Ipv4Addr>>,
    ready: Mutex<VecDeque<Interface>>,
    wanted: Notify,
    /// Whose address it is.
    members: Mutex<HashMap<Ipv4Addr, Arc<Member>>>,
    gone: Mutex<Vec<InterfaceId>>,
    /// What has gone through interfaces that are forgotten, until somebody asks.
    departed: Mutex<HashMap<InterfaceId, Usage>>,
    /// Interfaces that are gone. To close one waits for the kernel; until then its address is taken.
    to_close: Mutex<Vec<Closing>>,
}

/// What is left of an interface.
#[derive(Debug)]
struct Closing {
    id: InterfaceId,
    tap: Option<OwnedFd>,
    address: Ipv4Addr,
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("All addresses of the sandboxes' network are taken")]
    NoAddress,
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("The change was lost")]
    Lost,
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
            revisions: AtomicU32::new(0),
            addresses: Mutex::new(addresses),
            ready: Mutex::default(),
            wanted: Notify::new(),
            members: Mutex::default(),
            gone: Mutex::default(),
            departed: Mutex::default(),
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

    /// What has gone through each interface, and, told this once, through those that are gone.
    pub async fn usages(&self) -> Result<HashMap<InterfaceId, Usage>, NetworkError> {
        let Some(shared) = &self.0 else { return Ok(HashMap::new()) };
        let mut usages = shared.driver.usages().await?;
        usages.extend(std::mem::take(&mut *lock(&shared.departed)));
        Ok(usages)
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
    pub async fn keep<F: Future<Output = ()>>(&self, quiet: impl Fn() -> F) -> Infallible {
        let Some(shared) = &self.0 else { return std::future::pending().await };
        tokio::select! {
            never = shared.keep_ready(quiet) => never,
            never = shared.expire_names() => never,
            never = shared.driver.watch() => never,
        }
    }
}

impl Shared {
    async fn keep_ready<F: Future<Output = ()>>(self: &Arc<Shared>, quiet: impl Fn() -> F) -> Infallible {
        let shared = self;
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

    async fn expire_names(&self) -> Infallible {
        let mut ticks = interval(EXPIRY_PERIOD);
        loop {
            ticks.tick().await;
            let members: Vec<Arc<Member>> = lock(&self.members).values().cloned().collect();
            for member in members {
                if let Err(error) = member.expire_names(self).await {
                    tracing::warn!(error = %chain(&error), "Could not shut a sandbox off from names that have run out");
                }
            }
        }
    }

    async fn forget_gone(&self) {
        let to_close = {
            let mut to_close = lock(&self.to_close);
            let count = CLOSE_MIN.max(to_close.len() / CLOSE_PART).min(to_close.len());
            to_close.drain(..count).collect::<Vec<_>>()
        };
        self.close_all(to_close).await;
        let gone = {
            let mut gone = lock(&self.gone);
            if gone.len() < FORGET_AT {
                return;
            }
            std::mem::take(&mut *gone)
        };
        if let Ok(usages) = self.driver.usages().await {
            let departed = gone.iter().filter_map(|id| Some((*id, *usages.get(id)?)));
            let mut kept = lock(&self.departed);
            let room = DEPARTED_MAX.saturating_sub(kept.len());
            kept.extend(departed.take(room));
        }
        if let Err(error) = self.driver.forget(gone.clone()).await {
            tracing::warn!(error = %chain(&error), "Could not remove what is left of sandboxes in the network");
            lock(&self.gone).extend(gone);
        }
    }

    async fn close_all(&self, to_close: Vec<Closing>) {
        if to_close.is_empty() {
            return;
        }
        let ids: Vec<InterfaceId> = to_close.iter().map(|closing| closing.id).collect();
        // A machine that is still ending must not outlive its rules.
        for id in &ids {
            if let Err(error) = self.driver.shut(*id).await {
                tracing::warn!(error = %chain(&error), "Could not take a sandbox's interface down");
            }
        }
        let (taps, addresses): (Vec<_>, Vec<_>) =
            to_close.into_iter().map(|closing| (closing.tap, closing.address)).unzip();
        // A panic could not be handled better than by going on.
        tokio::task::spawn_blocking(|| drop(taps)).await.ok();
        if let Err(error) = self.driver.disconnect(addresses.clone()).await {
            tracing::warn!(error = %chain(&error), "Connections of sandboxes that are gone are left to run out");
        }
        // At the end: an address is used again as late as possible.
        lock(&self.addresses).extend(addresses);
        lock(&self.gone).extend(ids);
    }

    /// None is zero, which is the mark of connections that no list has let through.
    fn next_revision(&self) -> Revision {
        loop {
            let revision = self.revisions.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if revision != 0 {
                return revision;
            }
        }
    }

    fn member(&self, address: Ipv4Addr) -> Option<Arc<Member>> {
        lock(&self.members).get(&address).cloned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
