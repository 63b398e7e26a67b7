//! Resuming: a copy of the base, with the Space laid over it, is copied and made its own as any other.

use super::base::{BaseError, Origin, key_of};
use super::parts::Parts;
use super::{Claimed, FindError};
use crate::app::App;
use crate::network::egress::{Egress, EgressError};
use crate::phases::Phases;
use crate::sandbox::admission::Busy;
use crate::sandbox::copies::{self, CopyError, FORK_LIMITS};
use crate::sandbox::create::created;
use crate::sandbox::events::unix_time_ms;
use crate::sandbox::registry::InsertError;
use crate::sandbox::state::{EndCause, Terms};
use crate::sandbox::{Lineage, Sandbox};
use crate::slots::NoSlot;
use crate::template::Shape;
use crate::tenant::Tenant;
use crate::vmm::{Fork, Machine, VmmError};
use podflare_api::event::Happening;
use podflare_api::sandbox::SandboxCreated;
use podflare_api::space::{ResumeSpace, SpaceView};
use podflare_wire::control::Fault;
use std::io;
use std::sync::Arc;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    #[error("The sandbox's `egress` cannot be understood")]
    Egress(#[from] EgressError),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("This Space cannot be resumed here; it is as it was")]
    Base(#[from] BaseError),
    #[error("Could not open the Space's files; it is as it was")]
    Files(#[source] io::Error),
    #[error("This Space cannot be resumed here; it is as it was")]
    Overlay(#[source] VmmError),
    #[error("Could not make a sandbox of the Space; it is as it was")]
    Copy(#[from] CopyError),
    #[error("The sandbox ended at once; the Space is as it was")]
    Ended,
}

impl ResumeError {
    /// It will not do here, however often it is tried.
    pub fn is_about_the_space(&self) -> bool {
        let is_unusable =
            |error: &VmmError| matches!(error, VmmError::Unusable(unusable) if unusable.fault != Fault::Host);
        match self {
            ResumeError::Base(BaseError::Load(error)) | ResumeError::Overlay(error) => is_unusable(error),
            ResumeError::Base(error) => matches!(
                error,
                BaseError::Missing { .. }
                    | BaseError::Image { .. }
                    | BaseError::Protocol { .. }
                    | BaseError::Key { .. }
            ),
            ResumeError::Files(error) => error.kind() == io::ErrorKind::InvalidData,
            _ => false,
        }
    }
}

pub async fn resume(
    app: &Arc<App>,
    tenant: &Tenant,
    id: &str,
    request: &ResumeSpace,
) -> Result<(SandboxCreated, Phases), ResumeError> {
    let asked = request.egress.as_ref().map(Egress::parse).transpose()?;
    let space = app.spaces.claim(id, request.keep)?;
    let manifest = space.manifest.clone();
    let view = &manifest.view;
    let egress = match asked {
        Some(egress) => egress,
        None => Egress::parse(&view.egress)?,
    };
    let terms = terms(app, tenant, view, request);
    let slot = app.room.take(tenant, 1)?;
    let begun = Instant::now();
    let _turn = app.admission.turn(1).await?;
    let wait = begun.elapsed();
    let begun = Instant::now();
    let base = space.base()?;
    let machine = laid_over(app, &space).await?;
    let load = begun.elapsed();
    let copied = copies::copy_one(&*machine, FORK_LIMITS, app.means(&egress)).await;
    // Its pages are shared with the copy, which has all of them.
    drop(machine.end());
    let (copy, times) = copied?;
    let shape = Arc::new(shape(view));
    let lineage = Lineage {
        origin: Origin::of_base(base, shape.clone()),
        shape,
        space: (!request.keep).then(|| space.id.clone()),
        parent: None,
        checkpoint: None,
        generation: view.generation + 1,
    };
    // Whatever becomes of the sandbox from now on becomes of the Space.
    let space_id = space.resumed();
    let sandbox = app.launch(copy, lineage);
    sandbox.lease(terms, Instant::now().into_std(), unix_time_ms(), slot);
    register(app, &sandbox)?;
    let view = sandbox.view();
    app.journal.record(tenant, Happening::Resumed { sandbox: view.id.clone(), space: space_id });
    let phases = Phases::default().with("wait", wait).with("load", load);
    Ok((created(view), times.record(phases)))
}

/// What is not asked for is as it was; but for `persistent`, as the published protocol has it.
fn terms(app: &App, tenant: &Tenant, view: &SpaceView, request: &ResumeSpace) -> Terms {
    let life = request.timeout_seconds.unwrap_or(view.timeout_seconds);
    let idle = request.idle_timeout_seconds.unwrap_or(view.idle_timeout_seconds);
    let persistent = request.persistent.unwrap_or(false);
    let terms = Terms { persistent, ..app.settings.terms.terms(Some(life), Some(idle)) };
    tenant.tier().map_or(terms, |tier| tier.terms(terms))
}

fn shape(view: &SpaceView) -> Shape {
    Shape {
        template: view.template.clone(),
        vcpus: view.vcpus,
        memory_mib: view.ram_mib,
        disk_gib: view.rootfs_gb,
    }
}

/// The Space's machine, frozen.
async fn laid_over(app: &App, space: &Claimed) -> Result<Arc<dyn Machine>, ResumeError> {
    let base = space.base()?;
    let template = base.machine_to_copy(app.vmm()).await?;
    let key = key_of(app.spaces.key.as_ref(), space.manifest.sealed_with.as_deref())?;
    let (folder, id) = (space.folder(), space.id.clone());
    // The work does not panic, and is cancelled only with the runtime.
    let opened =
        spawn_blocking(move || Parts { folder: &folder, name: id.as_str(), key: key.as_deref() }.open())
            .await;
    let files = opened.map_err(|_| BaseError::ShuttingDown)?.map_err(ResumeError::Files)?;
    let Fork { copy, done } = template.fork().map_err(CopyError::of_source)?;
    let overlaid = copy.overlay(&files);
    done.await.map_err(CopyError::of_source)?;
    overlaid.await.map_err(ResumeError::Overlay)?;
    Ok(copy)
}

fn register(app: &App, sandbox: &Sandbox) -> Result<(), ResumeError> {
    match app.registry.insert(std::slice::from_ref(sandbox)) {
        Ok(()) => Ok(()),
        Err(InsertError::Ended) => Err(ResumeError::Ended),
        Err(InsertError::Closed) => {
            sandbox.end(EndCause::Shutdown);
            Err(NoSlot::ShuttingDown.into())
        }
    }
}
