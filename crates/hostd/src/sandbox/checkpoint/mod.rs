//! A checkpoint: a frozen copy of a sandbox's machine that is kept, so that other copies can be made of it.
//!
//! ```text
//!   sandbox ──fork──▶ kept ──────────────────────────────────────▶ ended
//!                      │   deleted, too old, machine lost,
//!                      │   sandbox deleted, shutdown
//!                      └──fork──▶ sandboxes: new ones (`fork`), or its own sandbox's next (`restore`)
//! ```
//!
//! It never runs, so it costs no processor time, and of memory and disk only what its sandbox changes later.
//! One task ([`task`]) sees it to its end. It belongs to a sandbox's id and not to a machine: what ends,
//! merges or restores that sandbox is the [registry](super::registry)'s matter.

pub mod fork;
pub mod take;
mod task;

use super::Lineage;
use super::fork::Heritage;
use super::state::{EndCause, Terms};
use crate::network::egress::Egress;
use crate::space::base::Origin;
use crate::template::Shape;
use crate::tenant::Tenant;
use crate::vmm::Machine;
use podflare_api::checkpoint::CheckpointView;
use podflare_api::id::{CheckpointId, SandboxId};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::mpsc;

/// A handle to a checkpoint, which may have ended.
#[derive(Debug, Clone)]
pub struct Checkpoint(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: CheckpointId,
    name: Option<String>,
    machine: Arc<dyn Machine>,
    /// A plain mutex: it is held for a look or a change, never across an await.
    sandbox: Mutex<SandboxId>,
    shape: Arc<Shape>,
    origin: Arc<Origin>,
    generation: u32,
    /// The sandbox's, as they were. The checkpoint may live as long.
    terms: Terms,
    /// What the sandbox was allowed to reach.
    egress: Egress,
    created_at_ms: u64,
    tenant: Tenant,
    /// Unbounded, but who sends to it takes the checkpoint's id away first.
    endings: mpsc::UnboundedSender<EndCause>,
    /// Known before `endings` is closed.
    end_cause: OnceLock<EndCause>,
}

impl Checkpoint {
    pub fn id(&self) -> &CheckpointId {
        &self.0.id
    }

    pub fn machine(&self) -> &Arc<dyn Machine> {
        &self.0.machine
    }

    /// Whose it is.
    pub fn tenant(&self) -> &Tenant {
        &self.0.tenant
    }

    /// What its copies may reach.
    pub fn egress(&self) -> &Egress {
        &self.0.egress
    }

    /// The sandbox whose checkpoint it is.
    pub fn sandbox(&self) -> MutexGuard<'_, SandboxId> {
        self.0.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn give_to(&self, sandbox: SandboxId) {
        *self.sandbox() = sandbox;
    }

    /// Ends the checkpoint; the answer does not wait for it. Copies that are being made of it are made.
    pub fn end(&self, cause: EndCause) {
        // One that has ended need not be told.
        self.0.endings.send(cause).ok();
    }

    /// Resolves when the checkpoint has ended.
    pub async fn ended(&self) {
        self.0.endings.closed().await;
    }

    pub fn end_cause(&self) -> Option<&EndCause> {
        self.0.end_cause.get()
    }

    /// What copies of it have from it.
    pub(super) fn heritage(&self) -> Heritage {
        let lineage = Lineage {
            shape: self.0.shape.clone(),
            origin: self.0.origin.clone(),
            space: None,
            parent: Some(self.sandbox().clone()),
            checkpoint: Some(self.0.id.clone()),
            generation: self.0.generation + 1,
        };
        Heritage { lineage, terms: self.0.terms }
    }

    pub fn view(&self) -> CheckpointView {
        let checkpoint = &self.0;
        let life_ms = u64::try_from(checkpoint.terms.life.as_millis()).unwrap_or(u64::MAX);
        CheckpointView {
            id: checkpoint.id.clone(),
            name: checkpoint.name.clone(),
            sandbox: self.sandbox().clone(),
            template: checkpoint.shape.template.clone(),
            generation: checkpoint.generation,
            created_at_ms: checkpoint.created_at_ms,
            expires_at_ms: checkpoint.created_at_ms.saturating_add(life_ms),
        }
    }
}
