//! A template in one size: its machine once that has booted, and its pool.

use super::boot::BootError;
use super::definition::Definition;
use super::size::Size;
use super::{Shape, Template};
use crate::pool::Pool;
use std::borrow::Cow;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Its keeper ([`super::keep`]) alone changes its availability; the [shelf](super::shelf) says when it has to go.
#[derive(Debug)]
pub struct Variant {
    pub definition: Arc<Definition>,
    pub shape: Arc<Shape>,
    pub pool: Pool,
    availability: watch::Sender<Availability>,
    has_to_go: watch::Sender<bool>,
    usage: Mutex<Usage>,
}

/// Whether sandboxes can be made of a variant.
#[derive(Debug, Clone)]
pub enum Availability {
    /// In words that fit after "not ready:".
    Not(Cow<'static, str>),
    Ready(Arc<Template>),
    /// For good: it did not boot, or it is no longer needed. It is not on the shelf any more.
    Gone(Option<Arc<BootError>>),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// Creates that wait for it or copy it, and the like.
    pub(super) users: usize,
    pub(super) last: Instant,
}

/// A variant in use: it does not have to make room for another meanwhile.
#[derive(Debug)]
pub struct InUse(Arc<Variant>);

impl Variant {
    pub(super) fn new(
        definition: Arc<Definition>,
        size: Size,
        pool_target: usize,
        wake: Arc<Notify>,
    ) -> Variant {
        let shape = Shape {
            template: definition.name.clone(),
            vcpus: size.vcpus,
            memory_mib: size.ram_mib,
            disk_gib: definition.disk_gib,
        };
        Variant {
            definition,
            shape: Arc::new(shape),
            pool: Pool::new(pool_target, wake),
            availability: watch::Sender::new(Availability::Not(Cow::Borrowed(
                "starting: the template boots",
            ))),
            has_to_go: watch::Sender::new(false),
            usage: Mutex::new(Usage { users: 0, last: Instant::now() }),
        }
    }

    pub fn size(&self) -> Size {
        Size { ram_mib: self.shape.memory_mib, vcpus: self.shape.vcpus }
    }

    pub fn availability(&self) -> Availability {
        self.availability.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<Availability> {
        self.availability.subscribe()
    }

    /// How its boot ended, as soon as it has.
    pub async fn booted(&self) -> Availability {
        let mut changes = self.watch();
        let booted = changes.wait_for(|now| !matches!(now, Availability::Not(_))).await;
        // The sender is this one's own.
        booted.map_or(Availability::Gone(None), |now| now.clone())
    }

    pub(super) fn set(&self, availability: Availability) -> Availability {
        let former = self.availability.send_replace(availability);
        self.pool.wake();
        former
    }

    /// Tells its keeper to end what there is of it.
    pub(super) fn let_go(&self) {
        self.has_to_go.send_replace(true);
    }

    /// Resolves when it has to go.
    pub(super) async fn until_let_go(&self) {
        // The sender is this one's own.
        self.has_to_go.subscribe().wait_for(|has_to_go| *has_to_go).await.ok();
    }

    pub(super) fn usage(&self) -> Usage {
        *self.lock_usage()
    }

    fn lock_usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InUse {
    /// Only the shelf may say that it is there to be used.
    pub(super) fn new(variant: Arc<Variant>) -> InUse {
        let mut usage = variant.lock_usage();
        usage.users += 1;
        usage.last = Instant::now();
        drop(usage);
        InUse(variant)
    }
}

impl Deref for InUse {
    type Target = Arc<Variant>;

    fn deref(&self) -> &Arc<Variant> {
        &self.0
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut usage = self.0.lock_usage();
        usage.users -= 1;
        usage.last = Instant::now();
    }
}
