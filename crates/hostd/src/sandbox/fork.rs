//! Children of a running sandbox: all of them ready, or none.

use super::admission::Busy;
use super::copies::{self, CopyError, FORK_LIMITS};
use super::events::unix_time_ms;
use super::registry::{FindError, InsertError};
use super::state::EndCause;
use super::{Lineage, Sandbox};
use crate::app::{App, NoSlot};
use crate::phases::Phases;
use podflare_api::id::SandboxId;
use podflare_api::sandbox::FORK_CHILDREN_MAX;
use std::sync::Arc;
use tokio::time::Instant;

#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    #[error("n is {n}; it must be 1 to {FORK_CHILDREN_MAX}")]
    Count { n: u32 },
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("Could not fork the sandbox; all its new children were ended")]
    Copy(#[from] CopyError),
    #[error("A child ended at once, so all were ended")]
    ChildEnded,
}

pub async fn fork(app: &Arc<App>, id: &str, n: u32) -> Result<(Vec<SandboxId>, Phases), ForkError> {
    if !(1..=FORK_CHILDREN_MAX).contains(&n) {
        return Err(ForkError::Count { n });
    }
    let source = app.registry.find(id)?;
    match fork_sandbox(app, &source, n).await {
        Err(ForkError::Copy(CopyError::SourceEnded)) => {}
        // What was being copied of it may have failed before itself did.
        Err(ForkError::Copy(_)) if source.has_ended() => {}
        result => return result,
    }
    source.ended().await;
    // A merge has put another in its place, or this says why there is none.
    let heir = app.registry.find(id)?;
    fork_sandbox(app, &heir, n).await
}

async fn fork_sandbox(
    app: &Arc<App>,
    source: &Sandbox,
    n: u32,
) -> Result<(Vec<SandboxId>, Phases), ForkError> {
    let mut slots = app.acquire_slots(n)?;
    let _forking = source.begin_fork();
    let begun = Instant::now();
    let _turn = app.admission.turn(n).await?;
    let wait = begun.elapsed();
    let (copies, times) = copies::copy(&**source.machine(), n, FORK_LIMITS).await?;

    let (parent, terms) = {
        let identity = source.identity();
        (identity.id.clone(), identity.terms)
    };
    let lineage = Lineage {
        shape: source.lineage().shape.clone(),
        parent: Some(parent),
        generation: source.lineage().generation + 1,
    };
    let children: Vec<_> = copies.into_iter().map(|copy| app.launch(copy, lineage.clone())).collect();
    for child in &children {
        if let Some(slot) = slots.split(1) {
            child.lease(terms, Instant::now().into_std(), unix_time_ms(), slot);
        }
    }
    if let Err(error) = app.registry.insert(&children) {
        let (cause, error) = match error {
            InsertError::Ended => (EndCause::Deleted, ForkError::ChildEnded),
            InsertError::Closed => (EndCause::Shutdown, NoSlot::ShuttingDown.into()),
        };
        for child in children {
            child.end(cause.clone());
        }
        return Err(error);
    }
    let ids = children.iter().map(|child| child.identity().id.clone()).collect();
    tracing::debug!(parent = ?lineage.parent, n, "Forked a sandbox");
    Ok((ids, times.record(Phases::default().with("wait", wait))))
}
