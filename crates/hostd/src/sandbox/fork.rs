//! Children of a running sandbox: all of them ready, or none.

use super::Lineage;
use super::copies::{self, CopyError};
use super::events::unix_time_ms;
use super::registry::{AlreadyEnded, FindError};
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
    let mut slots = app.acquire_slots(n)?;
    source.touch();
    let (copies, times) = copies::copy(&**source.machine(), n).await?;

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
    let ids = children.iter().map(|child| child.identity().id.clone()).collect();
    if app.registry.insert(&children) == Err(AlreadyEnded) {
        for child in children {
            child.end(super::state::EndCause::Deleted);
        }
        return Err(ForkError::ChildEnded);
    }
    tracing::debug!(id, n, "Forked a sandbox");
    Ok((ids, times.record(Phases::default())))
}
