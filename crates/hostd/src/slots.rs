//! Room for sandboxes and checkpoints: on the host, in its memory and on its disk, and within what their tenant may have.

use crate::headroom::{Headroom, Short};
use crate::tenant::Tenant;
use crate::tenant::quota::{Exceeded, Taken};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// The host's room. It closes with the host.
#[derive(Debug)]
pub struct Room {
    /// One permit for each sandbox that may exist beside the pool's, and for each checkpoint.
    permits: Arc<Semaphore>,
    max: u32,
    headroom: Headroom,
}

/// Some of it, kept by holding it.
#[derive(Debug)]
pub struct Slots {
    host: OwnedSemaphorePermit,
    own: Option<Taken>,
    tenant: Tenant,
}

/// Why there is no more room.
#[derive(Debug, thiserror::Error)]
pub enum NoSlot {
    #[error(
        "This host has no room for that: its limit is {max} sandboxes and checkpoints; end some or try later"
    )]
    Full { max: u32 },
    #[error(transparent)]
    Short(#[from] Short),
    #[error("This key may have {max} sandboxes and checkpoints at once, and has {taken}; end some first")]
    OfTenant { max: u32, taken: u32 },
    #[error("The host is shutting down")]
    ShuttingDown,
}

impl From<Exceeded> for NoSlot {
    fn from(Exceeded { max, taken }: Exceeded) -> NoSlot {
        NoSlot::OfTenant { max, taken }
    }
}

impl Room {
    pub fn new(max: u32, headroom: Headroom) -> Room {
        Room { permits: Arc::new(Semaphore::new(max as usize)), max, headroom }
    }

    pub fn take(&self, tenant: &Tenant, count: u32) -> Result<Slots, NoSlot> {
        self.headroom.check(count)?;
        let own = tenant.sandboxes().map(|quota| quota.take(count)).transpose()?;
        Ok(Slots { host: self.permits(count)?, own, tenant: tenant.clone() })
    }

    /// For what takes another's place. For as long as the former has not been torn down, there are two, which its tenant need not
    /// have room for.
    pub fn take_for_heir(&self, tenant: &Tenant) -> Result<Slots, NoSlot> {
        self.headroom.check(1)?;
        let host = self.permits(1)?;
        Ok(Slots { host, own: tenant.sandboxes().map(|quota| quota.replace()), tenant: tenant.clone() })
    }

    fn permits(&self, count: u32) -> Result<OwnedSemaphorePermit, NoSlot> {
        self.permits.clone().try_acquire_many_owned(count).map_err(|error| match error {
            TryAcquireError::Closed => NoSlot::ShuttingDown,
            TryAcquireError::NoPermits => NoSlot::Full { max: self.max },
        })
    }

    pub fn is_full(&self) -> bool {
        self.permits.available_permits() == 0
    }

    pub fn close(&self) {
        self.permits.close();
    }
}

impl Slots {
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// One of them, unless none is left.
    pub fn split_one(&mut self) -> Option<Slots> {
        let host = self.host.split(1)?;
        let own = self.own.as_mut().and_then(Taken::split_one);
        Some(Slots { host, own, tenant: self.tenant.clone() })
    }
}
