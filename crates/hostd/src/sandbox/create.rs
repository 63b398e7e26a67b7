//! A new sandbox: a member of the pool, or a copy of the template made on demand. Never a boot.

use super::copies::CopyError;
use super::events::unix_time_ms;
use crate::app::{App, NoSlot};
use crate::phases::Phases;
use crate::template::{self, Availability};
use podflare_api::sandbox::{CreateSandbox, SandboxCreated};
use std::sync::Arc;
use tokio::time::Instant;

#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("template {name:?} not found; this host has: {}", template::DEFAULT)]
    UnknownTemplate { name: String },
    #[error("The template is not ready: {why}")]
    NotReady { why: String },
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    #[error("Could not make a sandbox")]
    Copy(#[from] CopyError),
}

pub async fn create(
    app: &Arc<App>,
    request: &CreateSandbox,
) -> Result<(SandboxCreated, Phases), CreateError> {
    if let Some(name) = &request.template
        && name != template::DEFAULT
    {
        return Err(CreateError::UnknownTemplate { name: name.clone() });
    }
    let slot = app.acquire_slots(1)?;
    let begun = Instant::now();
    let (sandbox, phases) = match app.pool.claim() {
        Some(sandbox) => (sandbox, Phases::default().with("claim", begun.elapsed())),
        None => {
            let template = match app.template() {
                Availability::Ready(template) => template,
                Availability::Not(why) => return Err(CreateError::NotReady { why: why.into_owned() }),
            };
            let (sandbox, times) = app.copy_template(&template).await?;
            (sandbox, times.record(Phases::default()))
        }
    };
    let terms = app.settings.terms.terms(request.timeout_seconds, request.idle_timeout_seconds);
    sandbox.lease(terms, Instant::now().into_std(), unix_time_ms(), slot);
    // It may have ended in this very moment. It is then like one that ends in the next.
    app.registry.insert(std::slice::from_ref(&sandbox)).ok();
    let view = sandbox.view();
    tracing::debug!(id = %view.id, "Created a sandbox");
    let created = SandboxCreated {
        id: view.id,
        state: view.state,
        template: view.template,
        ram_mib: view.ram_mib,
        rootfs_gb: view.rootfs_gb,
        vcpus: view.vcpus,
        timeout_seconds: view.timeout_seconds,
        idle_timeout_seconds: view.idle_timeout_seconds,
        // There are no Spaces and no network devices yet: the answer says so.
        persistent: false,
        egress: false,
    };
    Ok((created, phases))
}
