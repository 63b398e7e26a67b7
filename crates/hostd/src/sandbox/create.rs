//! A new sandbox: a member of a pool, or a copy of the template made on demand. A template that nobody has used lately,
//! or not in that size, is booted first, once for all who wait.

use super::Sandbox;
use super::admission::Busy;
use super::copies::{CREATE_LIMITS, CopyError};
use super::events::unix_time_ms;
use super::grow::{GrowError, disk_gib, grow};
use super::registry::InsertError;
use super::state::{EndCause, Terms};
use crate::app::App;
use crate::network::NetworkError;
use crate::network::egress::{Egress, EgressError};
use crate::phases::Phases;
use crate::slots::NoSlot;
use crate::template::boot::BootError;
use crate::template::shelf::UseError;
use crate::template::variant::{InUse, Variant};
use crate::template::{Availability, Shape, Template};
use crate::tenant::Tenant;
use podflare_api::event::Happening;
use podflare_api::sandbox::{CreateSandbox, SandboxCreated, SandboxView};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Sandboxes that may end in the very moment in which they are given out, before a create gives up.
const ATTEMPTS: usize = 3;

/// How long a create waits for a template to boot. The published SDK waits 30 s for its answer.
const BOOT_WAIT: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error(transparent)]
    Use(#[from] UseError),
    #[error("The template is not ready: {why}")]
    NotReady { why: String },
    #[error(
        "The template {template:?} boots, with {ram_mib} MiB and {vcpus} vCPUs; try again in a few seconds"
    )]
    Boots { template: String, ram_mib: u32, vcpus: u8 },
    #[error("Could not boot the template for this")]
    Boot(#[source] Arc<BootError>),
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("Could not make a sandbox")]
    Copy(#[source] CopyError),
    #[error("Could not make a sandbox with a disk of that size")]
    Grow(#[source] GrowError),
    #[error("{ATTEMPTS} sandboxes ended as soon as they were made")]
    Ended,
    #[error("The sandbox's `egress` cannot be understood")]
    Egress(#[from] EgressError),
    #[error("Could not set what the sandbox may reach, so there is none")]
    Network(#[source] NetworkError),
}

impl From<CopyError> for CreateError {
    fn from(error: CopyError) -> CreateError {
        match error {
            CopyError::SourceEnded => {
                CreateError::NotReady { why: "its machine has just ended and boots again".to_owned() }
            }
            error => CreateError::Copy(error),
        }
    }
}

pub async fn create(
    app: &Arc<App>,
    tenant: &Tenant,
    request: &CreateSandbox,
) -> Result<(SandboxCreated, Phases), CreateError> {
    let egress = request.egress.as_ref().map(Egress::parse).transpose()?.unwrap_or_default();
    let terms = app.settings.terms.terms(request.timeout_seconds, request.idle_timeout_seconds);
    let terms = Terms { persistent: request.persistent.unwrap_or(terms.persistent), ..terms };
    let terms = tenant.tier().map_or(terms, |tier| tier.terms(terms));
    let sizes = tenant.tier().map_or(app.settings.sizes, |tier| app.settings.sizes.within(tier));
    let disk_max = app.settings.disk_gib_max;
    let disk_gib_max = tenant.tier().map_or(disk_max, |tier| disk_max.min(tier.rootfs_gb_max));
    for _ in 0..ATTEMPTS {
        let slot = app.room.take(tenant, 1)?;
        let name = request.template.as_deref();
        let variant = app.templates.use_for_create(app, name, [request.ram_mib, request.vcpus], sizes)?;
        let Some((sandbox, mut phases)) = claim_or_copy(app, &variant, &egress).await? else { continue };
        let disk_gib = disk_gib(request.rootfs_gb, sandbox.shape().disk_gib, disk_gib_max);
        if disk_gib > sandbox.shape().disk_gib {
            let begun = Instant::now();
            let unclaimed = Unclaimed(Some(&sandbox));
            match grow(&sandbox, disk_gib).await {
                Ok(()) => unclaimed.keep(),
                // Another may do better.
                Err(_) if sandbox.has_ended() => continue,
                Err(error) => return Err(CreateError::Grow(error)),
            }
            phases = phases.with("grow", begun.elapsed());
        }
        sandbox.lease(terms, Instant::now().into_std(), unix_time_ms(), slot);
        match app.registry.insert(std::slice::from_ref(&sandbox)) {
            Ok(()) => {
                let (sandbox, template) = (sandbox.view(), sandbox.shape().template.clone());
                app.journal.record(tenant, Happening::Created { sandbox: sandbox.id.clone(), template });
                return Ok((created(sandbox), phases));
            }
            Err(InsertError::Ended) => {}
            Err(InsertError::Closed) => {
                sandbox.end(EndCause::Shutdown);
                return Err(NoSlot::ShuttingDown.into());
            }
        }
    }
    Err(CreateError::Ended)
}

/// A sandbox that ends if it is not handed out after all, also because nobody waits for it any more.
struct Unclaimed<'a>(Option<&'a Sandbox>);

impl Unclaimed<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unclaimed<'_> {
    fn drop(&mut self) {
        if let Some(sandbox) = self.0 {
            sandbox.end(EndCause::Surplus);
        }
    }
}

/// None if the variant has gone meanwhile, and there may be another.
async fn claim_or_copy(
    app: &Arc<App>,
    variant: &InUse,
    egress: &Egress,
) -> Result<Option<(Sandbox, Phases)>, CreateError> {
    let begun = Instant::now();
    let claimed = variant.pool.claim();
    app.activity.touch();
    if let Some(member) = claimed {
        let claimed = begun.elapsed();
        let unclaimed = Unclaimed(Some(&member));
        member.set_egress(egress).await.map_err(CreateError::Network)?;
        unclaimed.keep();
        let phases = Phases::default().with("claim", claimed);
        return Ok(Some((member, phases.with("egress", begun.elapsed() - claimed))));
    }
    let Some(template) = booted(app, variant).await? else { return Ok(None) };
    let boot = begun.elapsed();
    let _turn = app.admission.turn(1).await?;
    let wait = begun.elapsed() - boot;
    let begun = Instant::now();
    let (sandbox, times) = app.copy_template(&template, egress, CREATE_LIMITS).await?;
    variant.pool.count_miss(begun.elapsed());
    let phases = Phases::default().with("boot", boot).with("wait", wait);
    Ok(Some((sandbox, times.record(phases))))
}

/// Waits for a variant that boots, but for the default one, which boots with the host.
async fn booted(app: &App, variant: &Arc<Variant>) -> Result<Option<Arc<Template>>, CreateError> {
    let availability = match Arc::ptr_eq(variant, app.templates.default()) {
        true => variant.availability(),
        false => timeout(BOOT_WAIT, variant.booted()).await.map_err(|_| {
            let Shape { template, memory_mib, vcpus, .. } = Shape::clone(&variant.shape);
            CreateError::Boots { template, ram_mib: memory_mib, vcpus }
        })?,
    };
    match availability {
        Availability::Ready(template) => Ok(Some(template)),
        Availability::Not(why) => Err(CreateError::NotReady { why: why.into_owned() }),
        Availability::Gone(Some(error)) => Err(CreateError::Boot(error)),
        Availability::Gone(None) => Ok(None),
    }
}

pub(crate) fn created(view: SandboxView) -> SandboxCreated {
    tracing::debug!(id = %view.id, "Created a sandbox");
    SandboxCreated {
        id: view.id,
        state: view.state,
        template: view.template,
        ram_mib: view.ram_mib,
        rootfs_gb: view.rootfs_gb,
        vcpus: view.vcpus,
        timeout_seconds: view.timeout_seconds,
        idle_timeout_seconds: view.idle_timeout_seconds,
        persistent: view.persistent,
        egress: view.egress,
    }
}
