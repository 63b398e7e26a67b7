//! `restore`: a copy of a checkpoint takes its sandbox's place. The checkpoint stays.

use super::admission::Busy;
use super::copies::{self, CopyError, FORK_LIMITS};
use super::events::unix_time_ms;
use super::fork::Heritage;
use super::network::find_for_change;
use super::registry::{self, FindCheckpointError, FindError, InsertError};
use super::state::EndCause;
use crate::app::App;
use crate::phases::Phases;
use crate::slots::NoSlot;
use podflare_api::event::Happening;
use podflare_api::id::{CheckpointId, SandboxId};
use std::sync::Arc;
use tokio::time::Instant;

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(
        "{checkpoint} is a checkpoint of {sandbox}, and a sandbox is restored to one of its own; fork it instead"
    )]
    OfAnother { checkpoint: CheckpointId, sandbox: SandboxId },
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    FindCheckpoint(#[from] FindCheckpointError),
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("Could not copy the checkpoint; the sandbox is as it was")]
    Copy(#[from] CopyError),
    #[error("The copy of the checkpoint ended at once; the sandbox is as it was")]
    CopyEnded,
}

pub async fn restore(app: &Arc<App>, id: &str, wanted: &CheckpointId) -> Result<Phases, RestoreError> {
    let sandbox = app.registry.find(id)?;
    let checkpoint = app.registry.find_checkpoint(wanted.as_str())?;
    if !sandbox.tenant().sees(checkpoint.tenant()) {
        return Err(FindCheckpointError::Unknown.into());
    }
    let owner = checkpoint.sandbox().clone();
    if owner.as_str() != id {
        return Err(RestoreError::OfAnother { checkpoint: wanted.clone(), sandbox: owner });
    }
    let slot = app.room.take_for_heir(&sandbox.tenant())?;
    let _in_use = sandbox.begin_use();
    let begun = Instant::now();
    let _turn = app.admission.turn(1).await?;
    let wait = begun.elapsed();
    // It may have been deleted meanwhile, and its machine be there for a moment more.
    app.registry.find_checkpoint(wanted.as_str())?;
    // Until the copy is in its place. A merge may have put another there, which is not restored any more.
    let (sandbox, _egress_turn) = find_for_change(app, id).await?;
    // The id's, as it is now, and not the checkpoint's: what has been forbidden since stays forbidden.
    let egress = sandbox.egress();
    let copied = copies::copy_one(&**checkpoint.machine(), FORK_LIMITS, app.means(&egress)).await;
    let (copy, times) = match copied {
        Err(CopyError::SourceEnded) => {
            checkpoint.ended().await;
            app.registry.find_checkpoint(wanted.as_str())?;
            return Err(CopyError::SourceEnded.into());
        }
        result => result?,
    };
    let Heritage { lineage, terms } = checkpoint.heritage();
    let heir = app.launch(copy, lineage);
    heir.lease(terms, Instant::now().into_std(), unix_time_ms(), slot);
    if let Err(error) = app.registry.restore(id, &heir, wanted) {
        let (cause, error) = match error {
            registry::RestoreError::Heir(InsertError::Closed) => {
                (EndCause::Shutdown, NoSlot::ShuttingDown.into())
            }
            registry::RestoreError::Heir(InsertError::Ended) => (EndCause::Deleted, RestoreError::CopyEnded),
            registry::RestoreError::Find(error) => (EndCause::Deleted, error.into()),
        };
        heir.end(cause);
        return Err(error);
    }
    let restored = Happening::Restored { sandbox: heir.identity().id.clone(), checkpoint: wanted.clone() };
    app.journal.record(&heir.tenant(), restored);
    tracing::debug!(id, checkpoint = %wanted, "Restored a sandbox");
    Ok(times.record(Phases::default().with("wait", wait)))
}
