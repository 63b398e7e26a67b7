//! What Spaces are compared with: the machine of a template, saved whole when the first of its sandboxes is frozen.
//!
//! A Space holds what differs from its base, and is resumed as a copy of it. So a base is kept for as long as there is a
//! Space of it, whatever becomes of the template; its root disk image is kept with it, by another link to the file.

use super::folder::{Draft, Folders};
use super::image::ImageDigest;
use super::parts::Parts;
use super::seal::SealingKey;
use crate::chain::chain;
use crate::sandbox::agent::GuestIdentity;
use crate::sandbox::events::unix_time_ms;
use crate::template::kept::Ingredients;
use crate::template::{Shape, Template};
use crate::vmm::{LoadSpec, Machine, SavedFiles, Vmm, VmmError};
use futures_util::FutureExt;
use podflare_wire::guest::PROTOCOL;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

const ROOTFS: &str = "rootfs";

/// How long a machine is held that nobody asks for.
const HELD: Duration = Duration::from_secs(60);

/// The most bases that are kept for the sake of their templates.
const TEMPLATES_KEPT_MAX: usize = 16;

/// What the sandboxes of one boot of a template have in common.
#[derive(Debug)]
pub struct Origin {
    rootfs: PathBuf,
    shape: Arc<Shape>,
    ingredients: Option<Ingredients>,
    /// For as long as there is one.
    template: Mutex<Option<Booted>>,
    base: OnceCell<Arc<Base>>,
}

#[derive(Debug, Clone)]
struct Booted {
    machine: Weak<dyn Machine>,
    hot_pages: u64,
    rested: bool,
}

/// One that is on the disk.
#[derive(Debug)]
pub struct Base {
    id: String,
    folder: PathBuf,
    manifest: Manifest,
    /// The host's.
    key: Option<Arc<SealingKey>>,
    machine: tokio::sync::Mutex<Loaded>,
    /// Its template is gone.
    is_forgotten: AtomicBool,
}

/// Its machine, loaded when it is first asked for, and held for a while after it was last asked for.
#[derive(Debug, Default)]
struct Loaded {
    machine: Option<Weak<dyn Machine>>,
    held: Option<Arc<dyn Machine>>,
    asked_for: Option<Instant>,
}

/// What a base's folder says of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Of the agent in the guest.
    protocol: u32,
    image: ImageDigest,
    /// Where the image is, if it could not be kept in the folder.
    rootfs: Option<PathBuf>,
    /// Milliseconds since 1970-01-01 UTC.
    saved_at_ms: u64,
    /// The key that it is sealed with.
    sealed_with: Option<String>,
    /// The template that it is the machine of.
    template: Option<KeptTemplate>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KeptTemplate {
    name: String,
    vcpus: u8,
    memory_mib: u32,
    ingredients: Ingredients,
    hot_pages: u64,
    rested: bool,
}

impl Manifest {
    /// The root disk image that it was booted with.
    pub(super) fn image(&self) -> &ImageDigest {
        &self.image
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error("Could not read or write what its template's sandboxes have in common")]
    Folder(#[from] io::Error),
    #[error("Could not save what its template's sandboxes have in common")]
    Save(#[source] VmmError),
    #[error("What its template's sandboxes have in common cannot be taken up here")]
    Load(#[source] VmmError),
    #[error("What its template's sandboxes have in common ({id}) is not there any more")]
    Missing { id: String },
    #[error(
        "The root disk {} is another than the one that its template was booted with ({found}, and not {expected})",
        path.display()
    )]
    Image { path: PathBuf, found: ImageDigest, expected: ImageDigest },
    #[error(
        "Its guest speaks version {found} of the agent's protocol; this program speaks version {PROTOCOL}"
    )]
    Protocol { found: u32 },
    #[error(
        "It is sealed with the key {sealed_with}, which this host has not; PODFLARE_SPACES_KEY_FILE names the file with it"
    )]
    Key { sealed_with: String },
    #[error("The host is shutting down")]
    ShuttingDown,
}

impl Origin {
    pub fn new(rootfs: PathBuf, shape: Arc<Shape>, ingredients: Option<Ingredients>) -> Arc<Origin> {
        let (template, base) = (Mutex::default(), OnceCell::new());
        Arc::new(Origin { rootfs, shape, ingredients, template, base })
    }

    pub(super) fn of_base(base: Arc<Base>, shape: Arc<Shape>) -> Arc<Origin> {
        let (rootfs, template) = (base.rootfs(), Mutex::default());
        Arc::new(Origin { rootfs, shape, ingredients: None, template, base: OnceCell::new_with(Some(base)) })
    }

    /// The template's machine from now on, how many pages its copies bring in, and whether it has come to rest.
    pub fn set_template(&self, machine: &Arc<dyn Machine>, hot_pages: u64, rested: bool) {
        *self.lock_template() = Some(Booted { machine: Arc::downgrade(machine), hot_pages, rested });
    }

    /// Whether it is known what it was booted of.
    pub(super) fn can_be_kept(&self) -> bool {
        self.ingredients.is_some()
    }

    /// Its machine, and as what it is kept; unless it has ended.
    fn template(&self) -> Option<(Arc<dyn Machine>, Option<KeptTemplate>)> {
        let Booted { machine, hot_pages, rested } = self.lock_template().clone()?;
        let Shape { template, vcpus, memory_mib, .. } = Shape::clone(&self.shape);
        let kept = self.ingredients.clone().map(|ingredients| KeptTemplate {
            name: template,
            vcpus,
            memory_mib,
            ingredients,
            hot_pages,
            rested,
        });
        machine.upgrade().map(|machine| (machine, kept))
    }

    fn lock_template(&self) -> MutexGuard<'_, Option<Booted>> {
        self.template.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct Bases {
    folders: Folders,
    key: Option<Arc<SealingKey>>,
    there: Mutex<HashMap<String, Arc<Base>>>,
}

impl Bases {
    /// Those of a folder. One that cannot be read stays where it is: there may be Spaces of it.
    pub(super) fn read(folders: Folders, key: Option<Arc<SealingKey>>) -> io::Result<Bases> {
        let mut there = HashMap::new();
        for id in folders.read()? {
            match folders.manifest(&id) {
                Ok(manifest) => {
                    let folder = folders.path(&id);
                    there.insert(id.clone(), Base::new(id, folder, manifest, key.clone()));
                }
                Err(error) => tracing::warn!(id, %error, "The manifest of a base cannot be read"),
            }
        }
        Ok(Bases { folders, key, there: Mutex::new(there) })
    }

    /// The base of an origin. If there is none yet, it is made of its template, or of a frozen machine if that is gone.
    pub(super) async fn of(&self, origin: &Origin, frozen: &dyn Machine) -> Result<Arc<Base>, BaseError> {
        origin.base.get_or_try_init(|| self.save(origin, frozen)).await.cloned()
    }

    /// A folder for one that comes from elsewhere.
    pub(super) fn begin(&self, id: &str) -> io::Result<Draft> {
        self.folders.begin(id)
    }

    /// Takes one that comes from elsewhere, and is complete but for its image. It is kept for no template: only its Spaces
    /// are known to be its sender's.
    pub(super) fn adopt(
        &self,
        id: &str,
        draft: Draft,
        manifest: Manifest,
        rootfs: &Path,
        key: Option<&SealingKey>,
    ) -> io::Result<()> {
        let rootfs = keep_image(&draft, rootfs)?;
        let sealed_with = key.map(|key| key.id().to_owned());
        let saved_at_ms = unix_time_ms();
        let manifest = Manifest { rootfs, saved_at_ms, sealed_with, template: None, ..manifest };
        draft.publish(&manifest)?;
        let base = Base::new(id.to_owned(), self.folders.path(id), manifest, self.key.clone());
        self.lock().insert(id.to_owned(), base);
        Ok(())
    }

    pub(super) fn find(&self, id: &str) -> Result<Arc<Base>, BaseError> {
        self.lock().get(id).cloned().ok_or_else(|| BaseError::Missing { id: id.to_owned() })
    }

    /// The template that was booted of the same, if it is there and can be taken up.
    pub(super) async fn template(
        &self,
        vmm: &dyn Vmm,
        ingredients: &Ingredients,
        shape: &Arc<Shape>,
        identity: GuestIdentity,
    ) -> Option<Template> {
        let is_it = |kept: &KeptTemplate| kept.ingredients == *ingredients;
        let base = self.lock().values().find(|base| base.kept().is_some_and(is_it)).cloned()?;
        let KeptTemplate { hot_pages, rested, .. } = base.kept()?.clone();
        match base.machine(vmm).await {
            Ok(machine) => {
                let origin = Origin::of_base(base, shape.clone());
                Some(Template { shape: shape.clone(), identity, machine, origin, hot_pages, rested })
            }
            Err(error) => {
                let (id, error) = (&base.id, chain(&error));
                tracing::warn!(id, error, "A template that was kept cannot be taken up, and boots");
                base.is_forgotten.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// Keeps no more bases for the sake of these templates.
    pub(super) fn forget_templates(&self, is_gone: impl Fn(&str) -> bool) {
        for base in self.lock().values() {
            if base.kept().is_some_and(|kept| is_gone(&kept.name)) {
                base.is_forgotten.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Removes the bases that nobody needs: no Space, by their ids, no sandbox that may be frozen, and no template.
    pub(super) fn remove_unneeded(&self, is_needed: impl Fn(&str) -> bool) {
        let mut there = self.lock();
        let kept = kept_for_templates(&there);
        let is_unneeded = |id: &String, base: &mut Arc<Base>| {
            !is_needed(id) && !kept.contains(id) && Arc::strong_count(base) == 1
        };
        let unneeded: Vec<_> = there.extract_if(is_unneeded).collect();
        drop(there);
        for (id, _) in unneeded {
            if let Err(error) = self.folders.remove(&id) {
                tracing::warn!(id, error = %chain(&error), "Could not remove a base");
            }
        }
    }

    /// Ends the machines.
    pub(super) async fn close(&self) {
        let bases: Vec<_> = self.lock().drain().map(|(_, base)| base).collect();
        for base in bases {
            drop(base.machine.lock().await.held.take());
        }
    }

    async fn save(&self, origin: &Origin, frozen: &dyn Machine) -> Result<Arc<Base>, BaseError> {
        let (template, kept) = origin.template().unzip();
        let twin = match template.map(|template| template.fork()) {
            Some(Ok(fork)) => fork.done.await.ok().map(|_| fork.copy),
            // It has ended meanwhile.
            Some(Err(_)) | None => None,
        };
        let kept = kept.flatten().filter(|_| twin.is_some());
        // What is a template's is nobody's secret; what is made of a sandbox's machine is as the sandbox is.
        let key = self.key.clone().filter(|_| twin.is_none());
        let id = random_id();
        let (folders, name, rootfs, sealed_with) =
            (self.folders.clone(), id.clone(), origin.rootfs.clone(), key.clone());
        let begun = blocking(move || begin(&folders, &name, &rootfs, kept, sealed_with.as_deref()));
        let (draft, files, manifest) = begun.await?;
        let source = twin.as_deref().unwrap_or(frozen);
        let saved = source.save(&files, None).await.map_err(BaseError::Save);
        if let Some(twin) = &twin {
            drop(twin.end());
        }
        saved?;
        let (name, written) = (id.clone(), manifest.clone());
        let bytes = blocking(move || {
            let parts = Parts { folder: draft.path(), name: &name, key: key.as_deref() };
            let bytes = parts.finish(&files)?;
            draft.publish(&written)?;
            Ok(bytes)
        })
        .await?;
        tracing::info!(id, bytes, "Saved what Spaces of a template are compared with");
        let base = Base::new(id.clone(), self.folders.path(&id), manifest, self.key.clone());
        self.lock().insert(id, base.clone());
        Ok(base)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Base>>> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of each template in one size only the newest, and not too many.
fn kept_for_templates(there: &HashMap<String, Arc<Base>>) -> HashSet<String> {
    let mut newest_first: Vec<&Arc<Base>> = there.values().collect();
    newest_first.sort_by_key(|base| std::cmp::Reverse((base.manifest.saved_at_ms, &base.id)));
    let mut seen = HashSet::new();
    let is_first = |base: &&&Arc<Base>| {
        base.kept().is_some_and(|kept| seen.insert((kept.name.clone(), kept.vcpus, kept.memory_mib)))
    };
    newest_first.iter().filter(is_first).take(TEMPLATES_KEPT_MAX).map(|base| base.id.clone()).collect()
}

fn begin(
    folders: &Folders,
    id: &str,
    rootfs: &Path,
    template: Option<KeptTemplate>,
    key: Option<&SealingKey>,
) -> io::Result<(Draft, SavedFiles, Manifest)> {
    let draft = folders.begin(id)?;
    let files = Parts { folder: draft.path(), name: id, key }.create()?;
    let image = ImageDigest::read(rootfs)?;
    let rootfs = keep_image(&draft, rootfs)?;
    let sealed_with = key.map(|key| key.id().to_owned());
    let saved_at_ms = unix_time_ms();
    let manifest = Manifest { protocol: PROTOCOL, image, rootfs, saved_at_ms, sealed_with, template };
    Ok((draft, files, manifest))
}

/// Says where the image is if it cannot be kept in the folder.
fn keep_image(draft: &Draft, rootfs: &Path) -> io::Result<Option<PathBuf>> {
    let rootfs = fs::canonicalize(rootfs)?;
    let is_linked = fs::hard_link(&rootfs, draft.path().join(ROOTFS)).is_ok();
    Ok((!is_linked).then_some(rootfs))
}

/// The key that something was sealed with; none if it was not.
pub(super) fn key_of(
    here: Option<&Arc<SealingKey>>,
    sealed_with: Option<&str>,
) -> Result<Option<Arc<SealingKey>>, BaseError> {
    let Some(sealed_with) = sealed_with else { return Ok(None) };
    let key = here.filter(|key| key.id() == sealed_with).cloned();
    key.map(Some).ok_or_else(|| BaseError::Key { sealed_with: sealed_with.to_owned() })
}

impl Base {
    fn new(id: String, folder: PathBuf, manifest: Manifest, key: Option<Arc<SealingKey>>) -> Arc<Base> {
        let machine = tokio::sync::Mutex::new(Loaded::default());
        Arc::new(Base { id, folder, manifest, key, machine, is_forgotten: AtomicBool::new(false) })
    }

    /// The template that it is kept for.
    fn kept(&self) -> Option<&KeptTemplate> {
        self.manifest.template.as_ref().filter(|_| !self.is_forgotten.load(Ordering::Relaxed))
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// What is said of it elsewhere.
    pub(super) fn exported(&self) -> Manifest {
        Manifest { rootfs: None, sealed_with: None, template: None, ..self.manifest.clone() }
    }

    pub(super) async fn files(self: &Arc<Self>) -> Result<SavedFiles, BaseError> {
        let base = self.clone();
        // The work does not panic, and is cancelled only with the runtime.
        spawn_blocking(move || base.files_blocking()).await.map_err(|_| BaseError::ShuttingDown)?
    }

    pub(super) fn files_blocking(&self) -> Result<SavedFiles, BaseError> {
        let key = key_of(self.key.as_ref(), self.manifest.sealed_with.as_deref())?;
        Ok(Parts { folder: &self.folder, name: &self.id, key: key.as_deref() }.open()?)
    }

    /// Its machine, frozen, which others may ask for soon.
    pub(super) async fn machine_to_copy(
        self: &Arc<Self>,
        vmm: &dyn Vmm,
    ) -> Result<Arc<dyn Machine>, BaseError> {
        let machine = self.machine(vmm).await?;
        let mut loaded = self.machine.lock().await;
        loaded.asked_for = Some(Instant::now());
        if loaded.held.replace(machine.clone()).is_none() {
            tokio::spawn(let_go_when_unused(Arc::downgrade(self)));
        }
        Ok(machine)
    }

    /// Its machine, frozen, for as long as somebody has it.
    async fn machine(self: &Arc<Self>, vmm: &dyn Vmm) -> Result<Arc<dyn Machine>, BaseError> {
        let mut loaded = self.machine.lock().await;
        let lives = |machine: &Arc<dyn Machine>| machine.ended().now_or_never().is_none();
        if let Some(machine) = loaded.machine.as_ref().and_then(Weak::upgrade).filter(lives) {
            return Ok(machine);
        }
        let Manifest { protocol, image: expected, .. } = self.manifest.clone();
        if protocol != PROTOCOL {
            return Err(BaseError::Protocol { found: protocol });
        }
        let path = self.rootfs();
        let looked_at = path.clone();
        let found = blocking(move || ImageDigest::read(&looked_at)).await?;
        if found != expected {
            return Err(BaseError::Image { path, found, expected });
        }
        let load = LoadSpec { files: self.files().await?, rootfs: path };
        let (machine, done) = vmm.load(&load).map_err(BaseError::Load)?;
        done.await.map_err(BaseError::Load)?;
        loaded.machine = Some(Arc::downgrade(&machine));
        Ok(machine)
    }

    fn rootfs(&self) -> PathBuf {
        self.manifest.rootfs.clone().unwrap_or_else(|| self.folder.join(ROOTFS))
    }
}

async fn let_go_when_unused(base: Weak<Base>) {
    loop {
        sleep(HELD).await;
        let Some(base) = base.upgrade() else { return };
        let mut loaded = base.machine.lock().await;
        if loaded.asked_for.is_none_or(|asked_for| asked_for.elapsed() >= HELD) {
            loaded.held = None;
            return;
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, BaseError> {
    // The work does not panic, and is cancelled only with the runtime.
    spawn_blocking(work).await.map_err(|_| BaseError::ShuttingDown)?.map_err(BaseError::Folder)
}

fn random_id() -> String {
    // The part of another id that is random.
    podflare_api::id::SpaceId::random().as_str().replace("spc_", "base_")
}
