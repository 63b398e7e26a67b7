//! Children of a running sandbox: all of them ready or none, unless the client takes fewer.

use super::admission::Busy;
use super::copies::{self, CopyError, FORK_LIMITS, Outcomes, OwnCopy};
use super::events::unix_time_ms;
use super::registry::{FindCheckpointError, FindError, InsertError};
use super::state::{EndCause, Terms};
use super::{Lineage, Sandbox};
use crate::app::App;
use crate::chain::chain;
use crate::network::egress::Egress;
use crate::phases::Phases;
use crate::slots::{NoSlot, Slots};
use crate::tenant::Tenant;
use crate::vmm::Machine;
use podflare_api::event::Happening;
use podflare_api::id::SandboxId;
use podflare_api::sandbox::{ChildFailure, FORK_CHILDREN_MAX, ForkRequest, Forked};
use std::sync::Arc;
use tokio::time::Instant;

#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    #[error("n is {n}; it must be 1 to {FORK_CHILDREN_MAX}")]
    Count { n: u32 },
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    FindCheckpoint(#[from] FindCheckpointError),
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("Could not fork; there are no children")]
    Copy(#[from] CopyError),
    #[error("Could not make {} of {n} children, so there are none; {}", failures.len(), first_of(failures))]
    Children { n: u32, failures: Vec<ChildFailure> },
}

fn first_of(failures: &[ChildFailure]) -> String {
    failures.first().map(|failure| format!("child {}: {}", failure.child, failure.error)).unwrap_or_default()
}

impl Lineage {
    fn forked(&self, sandbox: SandboxId) -> Happening {
        let Lineage { parent, checkpoint, .. } = self;
        // Whatever is forked has an id.
        let parent = parent.clone().unwrap_or_else(|| sandbox.clone());
        Happening::Forked { sandbox, parent, checkpoint: checkpoint.clone() }
    }
}

/// What children have from what they are copies of.
#[derive(Debug)]
pub(super) struct Heritage {
    pub(super) lineage: Lineage,
    pub(super) terms: Terms,
}

pub async fn fork(app: &Arc<App>, id: &str, request: &ForkRequest) -> Result<(Forked, Phases), ForkError> {
    let source = app.registry.find(id)?;
    match fork_sandbox(app, &source, request).await {
        Err(ForkError::Copy(CopyError::SourceEnded)) => {}
        // What was being copied of it may have failed before itself did.
        Err(ForkError::Copy(_)) if source.has_ended() => {}
        result => return result,
    }
    source.ended().await;
    // A merge or a restore has put another in its place, or this says why there is none.
    let heir = app.registry.find(id)?;
    fork_sandbox(app, &heir, request).await
}

async fn fork_sandbox(
    app: &Arc<App>,
    source: &Sandbox,
    request: &ForkRequest,
) -> Result<(Forked, Phases), ForkError> {
    let _in_use = source.begin_use();
    let machine = || match app.registry.names(source) {
        true => Ok((source.machine().clone(), source.egress())),
        false => Err(CopyError::SourceEnded.into()),
    };
    make_children(app, source.tenant(), machine, request, || {
        let identity = source.identity();
        let lineage = Lineage {
            shape: source.shape().clone(),
            origin: source.lineage().origin.clone(),
            space: None,
            parent: Some(identity.id.clone()),
            checkpoint: None,
            generation: source.lineage().generation + 1,
        };
        Heritage { lineage, terms: identity.terms }
    })
    .await
}

/// Makes sandboxes of copies of a machine, which are the tenant's and may reach what it may. It is asked for when its turn has come, because
/// that of a sandbox that was replaced or deleted meanwhile may run on for a moment. What the copies inherit is asked for when they are
/// there: until then, a merge may change it.
pub(super) async fn make_children(
    app: &Arc<App>,
    tenant: Tenant,
    source: impl FnOnce() -> Result<(Arc<dyn Machine>, Egress), ForkError>,
    request: &ForkRequest,
    heritage: impl FnOnce() -> Heritage,
) -> Result<(Forked, Phases), ForkError> {
    let ForkRequest { n, partial } = *request;
    if !(1..=FORK_CHILDREN_MAX).contains(&n) {
        return Err(ForkError::Count { n });
    }
    let slots = app.room.take(&tenant, n)?;
    let begun = Instant::now();
    let _turn = app.admission.turn(n).await?;
    let wait = begun.elapsed();
    let (machine, egress) = source()?;
    let (outcomes, times) = copies::copy(&*machine, n, FORK_LIMITS, app.means(&egress)).await?;
    let mut family = Family { n, partial, children: Vec::new(), failures: Vec::new() };
    let copies = family.sort(outcomes)?;
    if family.is_failed() {
        return Err(family.into_error());
    }
    let heritage = heritage();
    family.launch(app, copies, &heritage, slots);
    let lineage = heritage.lineage;
    family.register(app)?;
    family.failures.sort_by_key(|failure| failure.child);
    let children: Vec<SandboxId> =
        family.children.iter().map(|(_, child)| child.identity().id.clone()).collect();
    for sandbox in &children {
        app.journal.record(&tenant, lineage.forked(sandbox.clone()));
    }
    tracing::debug!(n, failures = family.failures.len(), "Forked");
    let forked = Forked { children, failures: family.failures };
    Ok((forked, times.record(Phases::default().with("wait", wait))))
}

/// Children in the making, by their numbers.
struct Family {
    n: u32,
    partial: bool,
    children: Vec<(u32, Sandbox)>,
    failures: Vec<ChildFailure>,
}

impl Family {
    /// Sorts the copies that live from the children that could not be made. A source that has ended meanwhile
    /// may have an heir: where all are wanted, all are to be the heir's.
    fn sort(&mut self, outcomes: Outcomes) -> Result<Vec<(u32, OwnCopy)>, CopyError> {
        let mut copies = Vec::with_capacity(outcomes.len());
        for (child, outcome) in (0..).zip(outcomes) {
            match outcome {
                Ok(copy) => copies.push((child, copy)),
                Err(CopyError::SourceEnded) if !self.partial => return Err(CopyError::SourceEnded),
                Err(error) => self.failures.push(ChildFailure { child, error: chain(&error) }),
            }
        }
        Ok(copies)
    }

    /// More children have failed than the client takes.
    fn is_failed(&self) -> bool {
        let failures_max = if self.partial { self.n as usize - 1 } else { 0 };
        self.failures.len() > failures_max
    }

    fn into_error(self) -> ForkError {
        ForkError::Children { n: self.n, failures: self.failures }
    }

    /// Makes copies sandboxes, each with its slot. The slots of the others are given back.
    fn launch(&mut self, app: &Arc<App>, copies: Vec<(u32, OwnCopy)>, heritage: &Heritage, mut slots: Slots) {
        for (number, copy) in copies {
            let child = app.launch(copy, heritage.lineage.clone());
            if let Some(slot) = slots.split_one() {
                child.lease(heritage.terms, Instant::now().into_std(), unix_time_ms(), slot);
            }
            self.children.push((number, child));
        }
    }

    /// Registers all children, but those that have ended since: they have failed, too.
    fn register(&mut self, app: &App) -> Result<(), ForkError> {
        loop {
            let children: Vec<Sandbox> = self.children.iter().map(|(_, child)| child.clone()).collect();
            match app.registry.insert(&children) {
                Ok(()) => return Ok(()),
                Err(InsertError::Closed) => {
                    self.end(&EndCause::Shutdown);
                    return Err(NoSlot::ShuttingDown.into());
                }
                Err(InsertError::Ended) => {}
            }
            for (child, ended) in self.children.extract_if(.., |(_, child)| child.has_ended()) {
                let error = ended.end_cause().map(ToString::to_string).unwrap_or_default();
                self.failures
                    .push(ChildFailure { child, error: format!("it ended at once because {error}") });
            }
            if self.is_failed() {
                self.end(&EndCause::Deleted);
                self.failures.sort_by_key(|failure| failure.child);
                let failures = std::mem::take(&mut self.failures);
                return Err(ForkError::Children { n: self.n, failures });
            }
        }
    }

    fn end(&self, cause: &EndCause) {
        for (_, child) in &self.children {
            child.end(cause.clone());
        }
    }
}
