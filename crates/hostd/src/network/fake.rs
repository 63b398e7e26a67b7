//! A network in memory: it takes every decision and lets nothing through.

use super::driver::{Answer, Change, Driver, Gone, InterfaceId, Resolved, Usage};
use super::egress::{Cidr, Egress};
use futures_util::FutureExt;
use futures_util::future::ready;
use podflare_wire::guest::NetworkIdentity;
use std::collections::BTreeMap;
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
}

/// What is known of an interface.
#[derive(Debug, Clone)]
pub struct Interface {
    pub identity: NetworkIdentity,
    pub egress: Egress,
    pub revision: u32,
    pub resolved: Vec<Resolved>,
}

impl FakeDriver {
    pub fn new(subnet: Cidr) -> FakeDriver {
        FakeDriver { subnet, state: Arc::default() }
    }

    /// Those that have not been forgotten.
    pub fn interfaces(&self) -> BTreeMap<InterfaceId, Interface> {
        self.lock().interfaces.clone()
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
        let interface = Interface { identity, egress: Egress::On, revision: 0, resolved: Vec::new() };
        self.lock().interfaces.insert(id, interface);
        ready(Ok(None)).boxed()
    }

    fn set_egress(&self, change: Change) -> Answer<'_, ()> {
        if let Some(interface) = self.lock().interfaces.get_mut(&change.id) {
            interface.egress = change.to;
            interface.revision = change.revision;
            interface.resolved.clear();
        }
        ready(Ok(())).boxed()
    }

    fn set_resolved(
        &self,
        id: InterfaceId,
        revision: u32,
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

    fn forget(&self, gone: Vec<Gone>) -> Answer<'_, ()> {
        let mut state = self.lock();
        for gone in gone {
            state.interfaces.remove(&gone.id);
        }
        ready(Ok(())).boxed()
    }

    fn close(&self) -> Answer<'_, ()> {
        ready(Ok(())).boxed()
    }
}
