//! `merge_into`: the winner's machine takes the parent's place; nothing is copied. What may be reached is the id's, and
//! so the winner's becomes what the parent's was.

use super::network::find_for_change;
use super::registry::FindError;
use crate::app::App;
use crate::network::NetworkError;
use podflare_api::event::Happening;

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("A sandbox cannot be merged into itself")]
    SameSandbox,
    #[error("The two sandboxes are of different keys")]
    OtherTenant,
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("Could not set what the winner may reach; nothing was merged, and the winner reaches nothing")]
    Network(#[from] NetworkError),
}

pub async fn merge_into(app: &App, parent: &str, winner: &str) -> Result<(), MergeError> {
    if parent == winner {
        return Err(MergeError::SameSandbox);
    }
    // In the order of their names, so that two merges never wait for each other.
    let [first, second] = if parent < winner { [parent, winner] } else { [winner, parent] };
    let (first, _first_turn) = find_for_change(app, first).await?;
    let (second, _second_turn) = find_for_change(app, second).await?;
    let [loser, heir] = if parent < winner { [first, second] } else { [second, first] };
    if heir.tenant().key() != loser.tenant().key() {
        return Err(MergeError::OtherTenant);
    }
    let former = heir.egress();
    heir.set_egress(&loser.egress()).await?;
    if let Err(error) = app.registry.merge(parent, winner) {
        heir.set_egress(&former).await?;
        return Err(error.into());
    }
    if let (Ok(sandbox), Ok(winner)) = (parent.parse(), winner.parse()) {
        app.journal.record(&heir.tenant(), Happening::Merged { sandbox, winner });
    }
    tracing::debug!(parent, winner, "Merged a sandbox");
    Ok(())
}
