//! `merge_into`: the winner's machine takes the parent's place; nothing is copied.

use super::registry::FindError;
use crate::app::App;

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
    app.registry.merge(parent, winner)?;
    tracing::debug!(parent, winner, "Merged a sandbox");
    Ok(())
}
