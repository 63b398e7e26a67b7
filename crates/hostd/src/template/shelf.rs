//! What templates there are, and which of them are booted in which sizes: one plain lock, never held across an await.

use super::DEFAULT;
use super::definition::Definition;
use super::folder::TEMPLATES_MAX;
use super::keep;
use super::policy::{self, Place, Room};
use super::size::{Size, SizeLimits};
use super::variant::{Availability, InUse, Variant};
use crate::app::App;
use crate::config::Settings;
use crate::sandbox::Sandbox;
use crate::sandbox::state::EndCause;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, Semaphore};

/// Members that the pool of any variant but the default one has when nothing is asked of it.
const POOL_TARGET: usize = 1;

#[derive(Debug)]
pub struct Shelf {
    default: Arc<Variant>,
    inner: Mutex<Inner>,
    /// Wakes who keeps the pools.
    wake: Arc<Notify>,
    /// One variant boots at a time, beside the default one, until its own code runs: that may wait for long.
    pub(super) boots: Semaphore,
    /// One template is taken at a time.
    pub(super) takes: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// All but the default one, by name.
    definitions: BTreeMap<String, Arc<Definition>>,
    /// All but the default one; at most as many as the host may keep.
    variants: Vec<Arc<Variant>>,
    /// What is being taken, unless it was removed meanwhile.
    taking: Option<Arc<Variant>>,
    closed: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum UseError {
    #[error("template {name:?} not found; this host has: {}", known.join(", "))]
    Unknown { name: String, known: Vec<String> },
    #[error(
        "The host keeps {max} templates and sizes beside its default one, and all of them are in use; try again in a few \
         seconds"
    )]
    AllInUse { max: usize },
    #[error("The host knows {TEMPLATES_MAX} templates already; remove some")]
    TooMany,
    #[error("The host is shutting down")]
    ShuttingDown,
}

#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error("the template \"{DEFAULT}\" is always there and cannot be removed")]
    Default,
    #[error(transparent)]
    Unknown(#[from] UseError),
}

impl Shelf {
    /// `definitions` are all but the default one.
    pub fn new(settings: &Settings, definitions: Vec<Definition>) -> Shelf {
        let wake = Arc::new(Notify::new());
        let image = Definition::of_image(settings);
        let (size, pool_size) = (image.size, settings.pool_size as usize);
        let named = definitions.into_iter().map(|found| (found.name.clone(), Arc::new(found)));
        let inner = Inner { definitions: named.collect(), ..Inner::default() };
        Shelf {
            default: Arc::new(Variant::new(Arc::new(image), size, pool_size, wake.clone())),
            inner: Mutex::new(inner),
            wake,
            boots: Semaphore::new(1),
            takes: Arc::default(),
        }
    }

    /// `default` in its own size: it is always there, and always booted.
    pub fn default(&self) -> &Arc<Variant> {
        &self.default
    }

    /// All templates, `default` first.
    pub fn definitions(&self) -> Vec<Arc<Definition>> {
        let others: Vec<_> = self.lock().definitions.values().cloned().collect();
        std::iter::once(self.default.definition.clone()).chain(others).collect()
    }

    /// All that are booted or boot: the default one first, then the others, the last used first.
    pub fn variants(&self) -> Vec<Arc<Variant>> {
        let mut others = self.lock().variants.clone();
        others.sort_by_cached_key(|variant| std::cmp::Reverse(variant.usage().last));
        std::iter::once(self.default.clone()).chain(others).collect()
    }

    pub fn find(&self, name: &str) -> Result<Arc<Definition>, UseError> {
        self.lock().find(name, &self.default.definition)
    }

    /// The variant that a create is for. One that is not there begins to boot.
    pub fn use_for_create(
        &self,
        app: &Arc<App>,
        name: Option<&str>,
        [ram_mib, vcpus]: [Option<u32>; 2],
        limits: SizeLimits,
    ) -> Result<InUse, UseError> {
        let mut inner = self.lock();
        let definition = inner.find(name.unwrap_or(DEFAULT), &self.default.definition)?;
        let size = limits.fit(ram_mib, vcpus, definition.size);
        self.use_variant(&mut inner, app, &definition, size)
    }

    /// Makes this the template that is being taken, whose own size begins to boot. Nobody else has it before
    /// [`Taking::finish`].
    pub(super) fn begin_take(&self, app: &Arc<App>, definition: Definition) -> Result<Taking<'_>, UseError> {
        let mut inner = self.lock();
        if !inner.definitions.contains_key(&definition.name) && inner.definitions.len() >= TEMPLATES_MAX {
            return Err(UseError::TooMany);
        }
        // A build that is there already is not booted twice.
        let same = inner.definitions.get(&definition.name).filter(|former| ***former == definition);
        let definition = same.cloned().unwrap_or_else(|| Arc::new(definition));
        let variant = self.use_variant(&mut inner, app, &definition, definition.size)?;
        inner.taking = Some(variant.clone());
        Ok(Taking { shelf: self, variant })
    }

    /// Its sandboxes go on. A boot of it ends, also if it was only being taken.
    pub fn remove(&self, name: &str) -> Result<(), RemoveError> {
        let mut inner = self.lock();
        if name == DEFAULT {
            return Err(RemoveError::Default);
        }
        let taking = inner.taking.take_if(|variant| variant.definition.name == name);
        if let Some(variant) = &taking {
            inner.let_go_of(&variant.definition);
        }
        match inner.definitions.remove(name) {
            Some(definition) => inner.let_go_of(&definition),
            None if taking.is_some() => {}
            None => drop(inner.find(name, &self.default.definition)?),
        }
        Ok(())
    }

    /// A variant has ended by itself: the next create makes another.
    pub(super) fn drop_variant(&self, variant: &Arc<Variant>) {
        self.lock().variants.retain(|other| !Arc::ptr_eq(other, variant));
    }

    /// A sandbox has ended, which may have been a member of a pool.
    pub fn forget(&self, sandbox: &Sandbox) {
        for variant in self.variants() {
            variant.pool.forget(sandbox);
        }
    }

    /// Resolves when a pool, or what it is filled from, has changed.
    pub(crate) async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Nothing boots any more, and what there is ends.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        // In the same breath: what was put on the shelf in between would go on unseen.
        let others = std::mem::take(&mut inner.variants);
        drop(inner);
        let variants = std::iter::once(self.default.clone()).chain(others);
        let template = self.default.set(Availability::Not("shutting down".into()));
        for variant in variants {
            variant.let_go();
            for member in variant.pool.close() {
                member.end(EndCause::Shutdown);
            }
        }
        if let Availability::Ready(template) = template {
            drop(template.machine.end());
        }
    }

    fn use_variant(
        &self,
        inner: &mut Inner,
        app: &Arc<App>,
        definition: &Arc<Definition>,
        size: Size,
    ) -> Result<InUse, UseError> {
        let is_wanted =
            |variant: &&Arc<Variant>| Arc::ptr_eq(&variant.definition, definition) && variant.size() == size;
        if inner.closed {
            return Err(UseError::ShuttingDown);
        }
        let mut there = std::iter::once(&self.default).chain(&inner.variants);
        if let Some(variant) = there.find(is_wanted) {
            return Ok(InUse::new(variant.clone()));
        }
        inner.make_room(app.settings.templates_max as usize)?;
        let pool_target = POOL_TARGET.min(app.settings.pool_size as usize);
        let variant = Arc::new(Variant::new(definition.clone(), size, pool_target, self.wake.clone()));
        inner.variants.push(variant.clone());
        tokio::spawn(keep::keep_while_needed(app.clone(), variant.clone()));
        Ok(InUse::new(variant))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn find(&self, name: &str, default: &Arc<Definition>) -> Result<Arc<Definition>, UseError> {
        if name == DEFAULT {
            return Ok(default.clone());
        }
        self.definitions.get(name).cloned().ok_or_else(|| UseError::Unknown {
            name: name.to_owned(),
            known: std::iter::once(DEFAULT.to_owned()).chain(self.definitions.keys().cloned()).collect(),
        })
    }

    fn make_room(&mut self, max: usize) -> Result<(), UseError> {
        let place = |variant: &Arc<Variant>| {
            let usage = variant.usage();
            let boots = matches!(variant.availability(), Availability::Not(_));
            Place { last_used: usage.last, in_use: boots || usage.users > 0 }
        };
        let places: Vec<Place> = self.variants.iter().map(place).collect();
        match policy::make_room(&places, max) {
            Room::Free => {}
            Room::Of(index) => {
                let variant = self.variants.remove(index);
                tracing::info!(template = variant.shape.template, size = ?variant.size(), "Made room for another");
                variant.let_go();
            }
            Room::None => return Err(UseError::AllInUse { max }),
        }
        Ok(())
    }

    fn let_go_of(&mut self, definition: &Arc<Definition>) {
        for gone in self.variants.extract_if(.., |variant| Arc::ptr_eq(&variant.definition, definition)) {
            gone.let_go();
        }
    }
}

/// A template on its way onto the shelf.
#[derive(Debug)]
pub(super) struct Taking<'a> {
    shelf: &'a Shelf,
    pub(super) variant: InUse,
}

impl Taking<'_> {
    /// From now on sandboxes are made of it, and the former build of its name goes. False if it was removed meanwhile.
    pub(super) fn finish(&self) -> bool {
        let mut inner = self.shelf.lock();
        if inner.taking.is_none() {
            return false;
        }
        let definition = &self.variant.definition;
        let former = inner.definitions.insert(definition.name.clone(), definition.clone());
        if let Some(former) = former.filter(|former| !Arc::ptr_eq(former, definition)) {
            inner.let_go_of(&former);
        }
        true
    }

    pub(super) fn was_removed(&self) -> bool {
        self.shelf.lock().taking.is_none()
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.shelf.lock().taking = None;
    }
}
