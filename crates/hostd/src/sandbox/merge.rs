//! `merge_into`: the winner's machine takes the parent's place; nothing is copied.

use super::registry::FindError;
use super::state::EndCause;
use crate::app::App;
use podflare_api::id::SandboxId;

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("A sandbox cannot be merged into itself")]
    SameSandbox,
    #[error(transparent)]
    Find(#[from] FindError),
}

pub fn merge_into(app: &App, parent: &str, winner: &str) -> Result<(), MergeError> {
    if parent == winner {
        return Err(MergeError::SameSandbox);
    }
    let winner_id: SandboxId = winner.parse().map_err(|_| FindError::Unknown)?;
    let loser = app.registry.replace(parent, winner)?;
    loser.end(EndCause::ReplacedBy(winner_id));
    tracing::debug!(parent, winner, "Merged a sandbox");
    Ok(())
}
