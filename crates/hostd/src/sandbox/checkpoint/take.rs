//! A new checkpoint: a fork of a sandbox that is left frozen. The sandbox pauses as for any fork and runs on.

use super::{Checkpoint, Shared, task};
use crate::app::App;
use crate::phases::Phases;
use crate::sandbox::Sandbox;
use crate::sandbox::admission::Busy;
use crate::sandbox::copies::{CopyError, CopyTimes, FORK_LIMITS};
use crate::sandbox::events::unix_time_ms;
use crate::sandbox::registry::{FindError, KeepError};
use crate::sandbox::state::EndCause;
use crate::slots::NoSlot;
use podflare_api::checkpoint::{CHECKPOINT_NAME_LEN_MAX, CHECKPOINTS_MAX, CheckpointView};
use podflare_api::id::CheckpointId;
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("The name has {len} characters; the most is {CHECKPOINT_NAME_LEN_MAX}")]
    NameTooLong { len: usize },
    #[error("This sandbox has {CHECKPOINTS_MAX} checkpoints, which is the most; delete one first")]
    TooMany,
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("Could not checkpoint the sandbox")]
    Copy(#[from] CopyError),
    #[error("The checkpoint ended at once because {0}")]
    Ended(EndCause),
}

pub async fn take(
    app: &Arc<App>,
    id: &str,
    name: Option<String>,
) -> Result<(CheckpointView, Phases), TakeError> {
    if let Some(len) =
        name.as_ref().map(|name| name.chars().count()).filter(|len| *len > CHECKPOINT_NAME_LEN_MAX)
    {
        return Err(TakeError::NameTooLong { len });
    }
    let source = app.registry.find(id)?;
    match take_of(app, &source, name.clone()).await {
        Err(TakeError::Copy(CopyError::SourceEnded)) => {}
        result => return result,
    }
    source.ended().await;
    // A merge or a restore has put another in its place, or this says why there is none.
    let heir = app.registry.find(id)?;
    take_of(app, &heir, name).await
}

async fn take_of(
    app: &Arc<App>,
    source: &Sandbox,
    name: Option<String>,
) -> Result<(CheckpointView, Phases), TakeError> {
    // Asked again when it is there: others may be made meanwhile.
    if !app.registry.has_room_for_checkpoint(&source.identity().id) {
        return Err(TakeError::TooMany);
    }
    let slot = app.room.take(&source.tenant(), 1)?;
    let _in_use = source.begin_use();
    let begun = Instant::now();
    let _turn = app.admission.turn(1).await?;
    let wait = begun.elapsed();
    if !app.registry.names(source) {
        return Err(CopyError::SourceEnded.into());
    }
    let twin = source.machine().fork().map_err(CopyError::of_source)?;
    let [limit, _] = FORK_LIMITS;
    let fork = timeout(limit, twin.done)
        .await
        .map_err(|_| CopyError::Timeout { limit })?
        .map_err(CopyError::of_source)?;

    let (endings, receiver) = mpsc::unbounded_channel();
    let checkpoint = {
        let identity = source.identity();
        Checkpoint(Arc::new(Shared {
            id: CheckpointId::random(),
            name,
            machine: twin.copy,
            sandbox: Mutex::new(identity.id.clone()),
            shape: source.shape().clone(),
            origin: source.lineage().origin.clone(),
            generation: source.lineage().generation,
            terms: identity.terms,
            egress: source.egress(),
            created_at_ms: unix_time_ms(),
            tenant: slot.tenant().clone(),
            endings,
            end_cause: OnceLock::new(),
        }))
    };
    task::own(app, checkpoint.clone(), receiver, slot);
    keep(app, &checkpoint, source)?;
    let view = checkpoint.view();
    tracing::debug!(id = %view.id, sandbox = %view.sandbox, "Took a checkpoint");
    Ok((view, CopyTimes::of_fork(fork).record(Phases::default().with("wait", wait))))
}

/// Registers the checkpoint, or ends it.
fn keep(app: &App, checkpoint: &Checkpoint, source: &Sandbox) -> Result<(), TakeError> {
    let Err(error) = app.registry.keep(checkpoint, source) else { return Ok(()) };
    let (cause, error) = match error {
        KeepError::TooMany => (EndCause::Deleted, TakeError::TooMany),
        KeepError::NoSandbox(error) => (EndCause::Deleted, error.into()),
        KeepError::Ended(cause) => (cause.clone(), TakeError::Ended(cause)),
        KeepError::Closed => (EndCause::Shutdown, NoSlot::ShuttingDown.into()),
    };
    checkpoint.end(cause);
    Err(error)
}
