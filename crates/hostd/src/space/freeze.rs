//! Freezing: the sandbox pauses for one fork, its twin is written, and the sandbox ends when all of it is on the disk. If
//! that cannot be, or it was used meanwhile, it goes on as if nothing had been.

use super::base::BaseError;
use super::folder::Draft;
use super::parts::Parts;
use super::seal::SealingKey;
use super::{FORMAT, Manifest, Reserved, TooMany};
use crate::app::App;
use crate::chain::chain;
use crate::phases::Phases;
use crate::sandbox::Sandbox;
use crate::sandbox::admission::Busy;
use crate::sandbox::copies::{CopyError, CopyTimes, FORK_LIMITS};
use crate::sandbox::events::unix_time_ms;
use crate::sandbox::registry::FindError;
use crate::sandbox::state::{EndCause, Terms};
use crate::vmm::{Machine, SavedFiles, VmmError};
use futures_util::future::join_all;
use podflare_api::id::SpaceId;
use podflare_api::space::SpaceView;
use podflare_wire::control::Fault;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

/// How long the writing of one machine may take.
const SAVE_LIMIT: Duration = Duration::from_secs(600);

/// A sandbox whose time is over, and why. It waits to be frozen or to be told that it cannot be.
#[derive(Debug)]
pub struct Wish {
    pub sandbox: Sandbox,
    pub cause: EndCause,
}

#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("The sandbox is being frozen already")]
    Already,
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("Could not copy the sandbox; it goes on")]
    Copy(#[from] CopyError),
    #[error("Could not write the sandbox's template; the sandbox goes on")]
    Base(#[from] BaseError),
    #[error("Could not write the sandbox; it goes on")]
    Save(#[source] VmmError),
    #[error("Writing the sandbox took longer than {} s; it goes on", SAVE_LIMIT.as_secs())]
    Timeout,
    #[error("Could not keep what was written of the sandbox; it goes on")]
    Folder(#[from] io::Error),
    #[error("The sandbox was used while it was frozen, so it goes on")]
    Used,
    #[error("The host is shutting down")]
    ShuttingDown,
}

impl FreezeError {
    /// The host's disk has no room.
    pub fn is_disk_full(&self) -> bool {
        let is_full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
        match self {
            FreezeError::Folder(error) | FreezeError::Base(BaseError::Folder(error)) => is_full(error),
            FreezeError::Save(error) | FreezeError::Base(BaseError::Save(error)) => is_of_full_disk(error),
            _ => false,
        }
    }
}

/// A VMM can only say so in words.
fn is_of_full_disk(error: &VmmError) -> bool {
    let words = io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()).to_string();
    let words = words.split(" (os").next().unwrap_or_default();
    matches!(error, VmmError::Unusable(unusable) if unusable.fault == Fault::Host && unusable.reason.contains(words))
}

/// Freezes a sandbox because somebody asks for it.
pub async fn freeze(app: &Arc<App>, id: &str) -> Result<(SpaceView, Phases), FreezeError> {
    let source = app.registry.find(id)?;
    // A merge or a restore waits, and finds that there is nothing left to replace.
    let turn = source.egress_turn();
    let _turn = turn.lock().await;
    if !app.registry.names(&source) {
        // Another has its id, or this says why there is none.
        drop(app.registry.find(id)?);
        return Err(FreezeError::Used);
    }
    let _freezing = source.begin_freeze().ok_or(FreezeError::Already)?;
    freeze_now(app, &source, None).await
}

/// Freezes the sandboxes whose time is over, for as long as it is polled.
pub async fn keep(app: &Arc<App>) -> Infallible {
    let mut wished = app.spaces.wished.lock().await;
    loop {
        let Some(Wish { sandbox, cause }) = wished.recv().await else { return std::future::pending().await };
        let app = app.clone();
        tokio::spawn(async move { fulfil(&app, &sandbox, cause).await });
    }
}

async fn fulfil(app: &Arc<App>, sandbox: &Sandbox, cause: EndCause) {
    // A lifetime is over whatever is done.
    let unused_since = matches!(cause, EndCause::Idle(_)).then(Instant::now);
    match freeze_now(app, sandbox, unused_since).await {
        Ok((space, _)) => tracing::info!(sandbox = %space.sandbox, space = %space.id, "Froze a sandbox"),
        Err(error) => {
            let id = sandbox.identity().id.clone();
            match error {
                FreezeError::Used => tracing::debug!(%id, "A sandbox was used while it was frozen"),
                error => tracing::warn!(%id, error = %chain(&error), "Could not freeze a sandbox"),
            }
            sandbox.not_frozen();
        }
    }
}

/// Freezes all that are to outlive the host, as far as there is time.
pub async fn freeze_all(app: &Arc<App>, limit: Duration) {
    let persistent = app.registry.all().into_iter().filter(|sandbox| sandbox.identity().terms.persistent);
    let freezes = persistent.map(async |sandbox| {
        let id = sandbox.identity().id.clone();
        match freeze_now(app, &sandbox, None).await {
            Ok((space, _)) => tracing::info!(sandbox = %id, space = %space.id, "Froze a sandbox"),
            Err(error) => tracing::error!(%id, error = %chain(&error), "Could not freeze a sandbox"),
        }
    });
    if timeout(limit, join_all(freezes)).await.is_err() {
        tracing::error!(?limit, "Not all persistent sandboxes could be frozen in time");
    }
}

/// `unused_since` is when it had been idle for so long; it goes on if it was used since.
async fn freeze_now(
    app: &Arc<App>,
    source: &Sandbox,
    unused_since: Option<Instant>,
) -> Result<(SpaceView, Phases), FreezeError> {
    let reserved = app.spaces.reserve(&source.tenant())?;
    // The semaphore is never closed.
    let write_turn = app.freezes.acquire().await.ok();
    let begun = Instant::now();
    let turn = app.admission.turn(1).await?;
    let wait = begun.elapsed();
    let twin = source.machine().fork().map_err(CopyError::of_source)?;
    let [limit, _] = FORK_LIMITS;
    let forked = timeout(limit, twin.done).await.map_err(|_| CopyError::Timeout { limit })?;
    let times = CopyTimes::of_fork(forked.map_err(CopyError::of_source)?);
    drop(turn);
    let frozen_at_ms = unix_time_ms();
    let begun = Instant::now();
    let written = write(app, source, &*twin.copy, &reserved, frozen_at_ms).await;
    drop(twin.copy.end());
    drop(write_turn);
    let manifest = written?;
    let phases = times.record(Phases::default().with("wait", wait)).with("write", begun.elapsed());
    if !source.end_frozen(reserved.id.clone(), unused_since).await {
        let (spaces, id) = (reserved.spaces.clone(), reserved.id.clone());
        drop(reserved);
        spaces.remove_folder(id).await;
        return Err(FreezeError::Used);
    }
    let view = manifest.view.clone();
    reserved.fill(manifest);
    Ok((view, phases))
}

/// Writes a twin's folder, to the disk.
async fn write(
    app: &Arc<App>,
    source: &Sandbox,
    twin: &dyn Machine,
    reserved: &Reserved,
    frozen_at_ms: u64,
) -> Result<Manifest, FreezeError> {
    let key = app.spaces.key.clone();
    let draft = reserved.begin()?;
    let files = Parts { folder: draft.path(), name: reserved.id.as_str(), key: key.as_deref() }.create()?;
    let base = app.spaces.bases.of(&source.lineage().origin, twin).await?;
    let base_files = base.files().await?;
    let saved = timeout(SAVE_LIMIT, twin.save(&files, Some(&base_files))).await;
    saved.map_err(|_| FreezeError::Timeout)?.map_err(FreezeError::Save)?;
    let manifest = |bytes| Manifest {
        format: FORMAT,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        key: source.tenant().key().cloned(),
        base: base.id().to_owned(),
        sealed_with: key.as_ref().map(|key| key.id().to_owned()),
        view: view(source, reserved.id.clone(), bytes, frozen_at_ms),
    };
    publish(draft, files, (reserved.id.clone(), key.clone()), manifest).await
}

/// It is complete when this returns, whenever the host is ended.
async fn publish(
    draft: Draft,
    files: SavedFiles,
    (id, key): (SpaceId, Option<Arc<SealingKey>>),
    manifest: impl FnOnce(u64) -> Manifest,
) -> Result<Manifest, FreezeError> {
    let (draft, bytes) = blocking(move || {
        let parts = Parts { folder: draft.path(), name: id.as_str(), key: key.as_deref() };
        let bytes = parts.finish(&files)?;
        Ok((draft, bytes))
    })
    .await?;
    let manifest = manifest(bytes);
    let written = manifest.clone();
    blocking(move || draft.publish(&written)).await?;
    Ok(manifest)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, FreezeError> {
    // The work does not panic, and is cancelled only with the runtime.
    spawn_blocking(work).await.map_err(|_| FreezeError::ShuttingDown)?.map_err(FreezeError::Folder)
}

fn view(source: &Sandbox, id: SpaceId, bytes: u64, frozen_at_ms: u64) -> SpaceView {
    let (shape, identity) = (source.shape(), source.identity());
    let Terms { life, idle, .. } = identity.terms;
    SpaceView {
        id,
        sandbox: identity.id.clone(),
        template: shape.template.clone(),
        ram_mib: shape.memory_mib,
        rootfs_gb: shape.disk_gib,
        vcpus: shape.vcpus,
        generation: source.lineage().generation,
        frozen_at_ms,
        bytes,
        egress: source.egress().view(),
        timeout_seconds: life.as_secs(),
        idle_timeout_seconds: idle.as_secs(),
    }
}
