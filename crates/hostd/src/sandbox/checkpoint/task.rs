//! The one task that owns a checkpoint: it waits for its end, whatever brings that about.

use super::Checkpoint;
use crate::app::App;
use crate::sandbox::state::EndCause;
use crate::slots::Slots;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Sees a checkpoint to its end. `slot` is its part of the host, given back when nothing is left of it.
pub(super) fn own(
    app: &Arc<App>,
    checkpoint: Checkpoint,
    endings: mpsc::UnboundedReceiver<EndCause>,
    slot: Slots,
) {
    let app = app.clone();
    let expires = Instant::now() + checkpoint.0.terms.life;
    tokio::spawn(async move {
        let cause = wait_for_end(&checkpoint, endings, expires).await;
        app.registry.retire_checkpoint(checkpoint.id(), &cause);
        match &cause {
            EndCause::MachineEnded(_) => tracing::warn!(id = %checkpoint.id(), %cause, "A checkpoint ended"),
            _ => tracing::debug!(id = %checkpoint.id(), %cause, "A checkpoint ended"),
        }
        app.tear_down(checkpoint.id().as_str(), &**checkpoint.machine(), &cause).await;
        drop(slot);
    });
}

async fn wait_for_end(
    checkpoint: &Checkpoint,
    mut endings: mpsc::UnboundedReceiver<EndCause>,
    expires: Instant,
) -> EndCause {
    let cause = tokio::select! {
        cause = endings.recv() => cause.unwrap_or(EndCause::Shutdown),
        ending = checkpoint.machine().ended() => EndCause::MachineEnded(ending.to_string()),
        () = sleep_until(expires) => EndCause::LifeOver(checkpoint.0.terms.life),
    };
    // Only here.
    checkpoint.0.end_cause.set(cause.clone()).ok();
    cause
}
