//! `merge_into`: the winner's machine takes the parent's place; nothing is copied. What may be reached is the id's, and
//! so the winner's becomes what the parent's was.

use super::registry::FindError;
use crate::app::App;
use crate::network::NetworkError;

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("A sandbox cannot be merged into itself")]
    SameSandbox,
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("Could not set what the winner may reach; nothing was merged")]
    Network(#[from] NetworkError),
}

pub async fn merge_into(app: &App, parent: &str, winner: &str) -> Result<(), MergeError> {
    if parent == winner {
        return Err(MergeError::SameSandbox);
    }
    let egress = app.registry.find(parent)?.egress();
    app.registry.find(winner)?.set_egress(&egress).await?;
    app.registry.merge(parent, winner)?;
    tracing::debug!(parent, winner, "Merged a sandbox");
    Ok(())
}
