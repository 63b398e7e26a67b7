//! A network in memory: it takes every decision and lets nothing through.

use super::driver::{Answer, Change, Driver, DriverError, InterfaceId, Resolved, Revision, Usage};
use super::egress::{Cidr, Egress};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending, ready};
use podflare_wire::guest::NetworkIdentity;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A copy of it is the same network.
#[derive(Debug, Clone)]
pub struct FakeDriver {
    subnet: Cidr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    interfaces: BTreeMap<InterfaceId, Interface>,
    refuses_changes: bool,
}

/// What is known of an interface.
#[derive(Debug, Clone)]
pub struct Interface {
    pub identity: NetworkIdentity,
    pub egress: Egress,
    pub revision: Revision,
    pub resolved: Vec<Resolved>,
    pub is_shut: bool,
}

impl FakeDriver {
    pub fn new(subnet: Cidr) -> FakeDriver {
        FakeDriver { subnet, state: Arc::default() }
    }

    /// Those that have not been forgotten.
    pub fn interfaces(&self) -> BTreeMap<InterfaceId, Interface> {
        self.lock().interfaces.clone()
    }

    /// From now on, or no longer.
    pub fn refuse_changes(&self, refuses: bool) {
        self.lock().refuses_changes = refuses;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for FakeDriver {
    fn subnet(&self) -> Cidr {
        self.subnet
    }

    fn make(&self, id: InterfaceId, identity: NetworkIdentity) -> Answer<'_, Option<OwnedFd>> {
        let interface =
            Interface { identity, egress: Egress::On, revision: 0, resolved: Vec::new(), is_shut: false };
        self.lock().interfaces.insert(id, interface);
        ready(Ok(None)).boxed()
    }

    fn set_egress(&self, change: Change) -> Answer<'_, ()> {
        let mut state = self.lock();
        if state.refuses_changes {
            return ready(Err(DriverError::Ended)).boxed();
        }
        if let Some(interface) = state.interfaces.get_mut(&change.id) {
            interface.is_shut = change.to == Egress::Off;
            interface.egress = change.to;
            interface.revision = change.revision;
            interface.resolved.clear();
        }
        ready(Ok(())).boxed()
    }

    fn shut(&self, id: InterfaceId) -> Answer<'_, ()> {
        if let Some(interface) = self.lock().interfaces.get_mut(&id) {
            interface.is_shut = true;
        }
        ready(Ok(())).boxed()
    }

    fn set_resolved(
        &self,
        id: InterfaceId,
        revision: Revision,
        add: Vec<Resolved>,
        remove: Vec<Resolved>,
    ) -> Answer<'_, ()> {
        if let Some(interface) =
            self.lock().interfaces.get_mut(&id).filter(|interface| interface.revision == revision)
        {
            interface.resolved.retain(|resolved| !remove.contains(resolved));
            interface.resolved.extend(add);
        }
        ready(Ok(())).boxed()
    }

    fn usage(&self, _: InterfaceId) -> Answer<'_, Usage> {
        ready(Ok(Usage::default())).boxed()
    }

    fn usages(&self) -> Answer<'_, HashMap<InterfaceId, Usage>> {
        ready(Ok(HashMap::new())).boxed()
    }

    fn disconnect(&self, _: Vec<Ipv4Addr>) -> Answer<'_, ()> {
        ready(Ok(())).boxed()
    }

    fn forget(&self, gone: Vec<InterfaceId>) -> Answer<'_, ()> {
        let mut state = self.lock();
        for id in gone {
            state.interfaces.remove(&id);
        }
        ready(Ok(())).boxed()
    }

    fn watch(&self) -> BoxFuture<'_, Infallible> {
        pending().boxed()
    }

    fn close(&self) -> Answer<'_, ()> {
        ready(Ok(())).boxed()
    }
}
