//! Spaces: sandboxes that are on the disk and not in memory.
//!
//! ```text
//!   sandbox ──fork──▶ twin ──save──▶ folder ──▶ ready ──resume──▶ sandbox
//!      └─ ends when the folder is complete         ▲                 │ its machine or its host is lost
//!                                                  └─────────────────┘
//! ```
//!
//! A Space is a folder ([`folder`]) that holds what differs from its [`base`]. The sandbox that was frozen ends when the
//! folder is complete, and goes on as it was if it cannot be. A Space that was resumed is hidden, and removed when the
//! sandbox is closed: if its machine is lost, or the host, the Space is there again, as it was frozen.
//!
//! What is on the disk is the truth; this is what is known of it. A host that starts finds every Space whose folder is
//! complete, and removes those that are not.

pub mod base;
mod folder;
pub mod freeze;
pub mod image;
mod parts;
pub mod resume;
pub mod seal;
pub mod transfer;

use crate::chain::chain;
use crate::sandbox::agent::GuestIdentity;
use crate::sandbox::state::EndCause;
use crate::template::kept::Ingredients;
use crate::template::{Shape, Template};
use crate::tenant::Tenant;
use crate::vmm::Vmm;
use base::{Base, BaseError, Bases};
use folder::{Draft, Folders};
use podflare_api::id::{KeyId, SpaceId};
use podflare_api::space::SpaceView;
use seal::SealingKey;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Of the manifests, and of what is meant by the other files beside them.
const FORMAT: u32 = 1;

#[derive(Debug)]
pub struct Spaces {
    folders: Folders,
    bases: Bases,
    key: Option<Arc<SealingKey>>,
    /// A plain mutex: it is held for look-ups and changes, never across an await.
    all: Mutex<HashMap<SpaceId, Entry>>,
    pub(crate) wishes: mpsc::UnboundedSender<freeze::Wish>,
    /// Held by whoever fulfils them.
    wished: tokio::sync::Mutex<mpsc::UnboundedReceiver<freeze::Wish>>,
}

#[derive(Debug)]
struct Entry {
    key: Option<KeyId>,
    phase: Phase,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Known(Arc<Manifest>),
    /// Another program's, which says why this one cannot use it.
    Foreign(String),
    /// Not there yet.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Writing,
    Ready,
    Resuming,
    /// A sandbox goes on with it.
    Resumed,
}

/// What a Space's folder says of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// The version of the program that made it.
    program: String,
    /// Whose it is; none for the operator's.
    key: Option<KeyId>,
    /// What it is to be laid over.
    base: String,
    /// The key that it is sealed with.
    sealed_with: Option<String>,
    view: SpaceView,
}

/// What can be read of any version's manifest.
#[derive(Debug, Deserialize)]
struct AnyManifest {
    format: u32,
    program: String,
    key: Option<KeyId>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    #[error("Space not found")]
    Unknown,
    #[error("Space not found: it has been resumed")]
    Resumed,
    #[error("This Space cannot be used: {0}")]
    Foreign(String),
}

/// Why a tenant can have no more Spaces.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("This key may have {max} Spaces at once, and has {taken}; delete or resume some first")]
pub struct TooMany {
    pub max: u32,
    pub taken: u32,
}

impl Spaces {
    /// What is in a host's folder of data. Folders that are not complete are removed.
    pub fn read(data_dir: &Path, key: Option<Arc<SealingKey>>) -> io::Result<Arc<Spaces>> {
        let folders = Folders::new(data_dir.join("spaces"));
        let mut all = HashMap::new();
        for name in folders.read()? {
            let Ok(id) = name.parse::<SpaceId>() else { continue };
            match read(&folders, &name) {
                Ok(entry) => drop(all.insert(id, entry)),
                Err(error) => tracing::error!(%id, %error, "The manifest of a Space cannot be read"),
            }
        }
        let bases = Bases::read(Folders::new(data_dir.join("bases")), key.clone())?;
        let (wishes, wished) = mpsc::unbounded_channel();
        let wished = tokio::sync::Mutex::new(wished);
        Ok(Arc::new(Spaces { folders, bases, key, all: Mutex::new(all), wishes, wished }))
    }

    /// Those that a tenant can resume, oldest first.
    pub fn visible(&self, tenant: &Tenant) -> Vec<SpaceView> {
        let all = self.lock();
        let ready = all.values().filter(|entry| entry.phase == Phase::Ready && entry.is_visible(tenant));
        let mut views: Vec<SpaceView> =
            ready.filter_map(Entry::known).map(|known| known.view.clone()).collect();
        views.sort_by(|a, b| (a.frozen_at_ms, &a.id).cmp(&(b.frozen_at_ms, &b.id)));
        views
    }

    /// How many there are on the disk, those included that a sandbox goes on with.
    pub fn len(&self) -> usize {
        self.lock().values().filter(|entry| entry.phase != Phase::Writing).count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an id names, or has named since the start, a Space that is there for this tenant.
    pub fn check_visible(&self, id: &str, tenant: &Tenant) -> Result<(), FindError> {
        let id: SpaceId = id.parse().map_err(|_| FindError::Unknown)?;
        let is_visible = self.lock().get(&id).is_some_and(|entry| entry.is_visible(tenant));
        if is_visible { Ok(()) } else { Err(FindError::Unknown) }
    }

    pub fn find(&self, id: &str) -> Result<SpaceView, FindError> {
        let id: SpaceId = id.parse().map_err(|_| FindError::Unknown)?;
        let all = self.lock();
        let entry = all.get(&id).ok_or(FindError::Unknown)?;
        entry.manifest().map(|manifest| manifest.view.clone())
    }

    /// Removes a Space; a sandbox that goes on with it is not harmed.
    pub async fn delete(self: &Arc<Self>, id: &str) {
        let Ok(id) = id.parse::<SpaceId>() else { return };
        let gone = {
            let mut all = self.lock();
            // What is being written is not there yet, and what goes on is its sandbox's.
            let is_there = |entry: &Entry| matches!(entry.phase, Phase::Ready | Phase::Resuming);
            if all.get(&id).is_some_and(is_there) { all.remove(&id) } else { None }
        };
        if gone.is_some() {
            self.remove_folder(id).await;
        }
    }

    /// A sandbox that went on with a Space has ended.
    pub async fn sandbox_ended(self: &Arc<Self>, id: &SpaceId, cause: &EndCause) {
        let is_lost =
            matches!(cause, EndCause::MachineEnded(_) | EndCause::AgentLost(_) | EndCause::Shutdown);
        {
            let mut all = self.lock();
            let Some(entry) = all.get_mut(id).filter(|entry| entry.phase == Phase::Resumed) else { return };
            if is_lost {
                entry.phase = Phase::Ready;
                tracing::warn!(%id, %cause, "A Space can be resumed again, because its sandbox was lost");
                return;
            }
            all.remove(id);
        }
        self.remove_folder(id.clone()).await;
    }

    /// The template that was booted of the same on this host before.
    pub async fn kept_template(
        &self,
        vmm: &dyn Vmm,
        ingredients: &Ingredients,
        shape: &Arc<Shape>,
        identity: GuestIdentity,
    ) -> Option<Template> {
        self.bases.template(vmm, ingredients, shape, identity).await
    }

    /// Keeps a template for the next start, unless nobody could tell then that it is the same.
    pub async fn keep_template(self: &Arc<Self>, template: &Template) -> Result<(), BaseError> {
        if !template.origin.can_be_kept() {
            return Ok(());
        }
        self.bases.of(&template.origin, &*template.machine).await?;
        // The one before it, if it is no longer of use.
        let spaces = self.clone();
        let removed = tokio::task::spawn_blocking(move || spaces.remove_unneeded_bases());
        // As above.
        removed.await.ok();
        Ok(())
    }

    /// Keeps no more of templates that are gone. Removes what is left of them.
    pub fn forget_templates(&self, is_gone: impl Fn(&str) -> bool) {
        self.bases.forget_templates(is_gone);
        self.remove_unneeded_bases();
    }

    /// Keeps no more of a template.
    pub async fn forget_template(self: &Arc<Self>, name: String) {
        let spaces = self.clone();
        let forgotten = tokio::task::spawn_blocking(move || spaces.forget_templates(|gone| gone == name));
        // It does not panic, and is cancelled only with the runtime.
        forgotten.await.ok();
    }

    /// Ends the machines that Spaces are resumed with.
    pub async fn close(&self) {
        self.bases.close().await;
    }

    /// A place for a new Space of a tenant, until it is dropped or filled.
    fn reserve(self: &Arc<Self>, tenant: &Tenant) -> Result<Reserved, TooMany> {
        let key = tenant.key().cloned();
        let mut all = self.lock();
        let is_counted = |entry: &&Entry| entry.key == key && entry.phase != Phase::Resumed;
        let taken = u32::try_from(all.values().filter(is_counted).count()).unwrap_or(u32::MAX);
        if let Some(max) = tenant.tier().map(|tier| tier.spaces_max).filter(|max| taken >= *max) {
            return Err(TooMany { max, taken });
        }
        let id = SpaceId::random();
        let entry = Entry { key, phase: Phase::Writing, content: Content::None };
        all.insert(id.clone(), entry);
        Ok(Reserved { spaces: self.clone(), id, is_filled: false })
    }

    /// A Space to be resumed. Nobody else gets it meanwhile, unless it is kept.
    fn claim(self: &Arc<Self>, id: &str, keep: bool) -> Result<Claimed, FindError> {
        let id: SpaceId = id.parse().map_err(|_| FindError::Unknown)?;
        let mut all = self.lock();
        let entry = all.get_mut(&id).ok_or(FindError::Unknown)?;
        let manifest = entry.manifest()?.clone();
        if !keep {
            entry.phase = Phase::Resuming;
        }
        Ok(Claimed { spaces: self.clone(), id, manifest, keep, is_resumed: false })
    }

    async fn remove_folder(self: &Arc<Self>, id: SpaceId) {
        let spaces = self.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let removed = spaces.folders.remove(id.as_str());
            if let Err(error) = removed {
                tracing::warn!(%id, error = %chain(&error), "Could not remove all of a Space");
            }
            spaces.remove_unneeded_bases();
        });
        // It does not panic, and is cancelled only with the runtime.
        removed.await.ok();
    }

    fn remove_unneeded_bases(&self) {
        let needed: Vec<Arc<Manifest>> = {
            let all = self.lock();
            if all.values().any(|entry| matches!(entry.content, Content::Foreign(_))) {
                // It needs one of them, and nobody knows which.
                return;
            }
            all.values().filter_map(Entry::known).cloned().collect()
        };
        self.bases.remove_unneeded(|id| needed.iter().any(|manifest| manifest.base == id));
    }

    fn set_phase(&self, id: &SpaceId, phase: Phase) {
        if let Some(entry) = self.lock().get_mut(id) {
            entry.phase = phase;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SpaceId, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(folders: &Folders, name: &str) -> io::Result<Entry> {
    let AnyManifest { format, program, key } = folders.manifest(name)?;
    let content = match format {
        FORMAT => Content::Known(Arc::new(folders.manifest(name)?)),
        _ => Content::Foreign(format!(
            "podflare {program} froze it in format {format}, and this is podflare {}, which reads format {FORMAT}",
            env!("CARGO_PKG_VERSION")
        )),
    };
    Ok(Entry { key, phase: Phase::Ready, content })
}

impl Entry {
    fn is_visible(&self, tenant: &Tenant) -> bool {
        self.phase != Phase::Writing && (tenant.is_operator() || self.key.as_ref() == tenant.key())
    }

    fn known(&self) -> Option<&Arc<Manifest>> {
        match &self.content {
            Content::Known(manifest) => Some(manifest),
            Content::Foreign(_) | Content::None => None,
        }
    }

    /// Of one that can be resumed.
    fn manifest(&self) -> Result<&Arc<Manifest>, FindError> {
        match (&self.content, self.phase) {
            (_, Phase::Resuming | Phase::Resumed) => Err(FindError::Resumed),
            (Content::Known(manifest), Phase::Ready) => Ok(manifest),
            (Content::Foreign(reason), _) => Err(FindError::Foreign(reason.clone())),
            (_, Phase::Writing) | (Content::None, _) => Err(FindError::Unknown),
        }
    }
}

/// A place for a Space that is being written.
#[derive(Debug)]
struct Reserved {
    spaces: Arc<Spaces>,
    id: SpaceId,
    is_filled: bool,
}

impl Reserved {
    fn begin(&self) -> io::Result<Draft> {
        self.spaces.folders.begin(self.id.as_str())
    }

    /// It is on the disk, and there for everyone who may see it.
    fn fill(mut self, manifest: Manifest) {
        self.is_filled = true;
        if let Some(entry) = self.spaces.lock().get_mut(&self.id) {
            entry.content = Content::Known(Arc::new(manifest));
            entry.phase = Phase::Ready;
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.is_filled {
            self.spaces.lock().remove(&self.id);
        }
    }
}

/// A Space that is being resumed. It is as it was before if that comes to nothing.
#[derive(Debug)]
struct Claimed {
    spaces: Arc<Spaces>,
    id: SpaceId,
    manifest: Arc<Manifest>,
    keep: bool,
    is_resumed: bool,
}

impl Claimed {
    fn folder(&self) -> PathBuf {
        self.spaces.folders.path(self.id.as_str())
    }

    fn base(&self) -> Result<Arc<Base>, BaseError> {
        self.spaces.bases.find(&self.manifest.base)
    }

    /// A sandbox goes on with it.
    fn resumed(mut self) -> SpaceId {
        self.is_resumed = true;
        if !self.keep {
            self.spaces.set_phase(&self.id, Phase::Resumed);
        }
        self.id.clone()
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if !self.is_resumed && !self.keep {
            self.spaces.set_phase(&self.id, Phase::Ready);
        }
    }
}
