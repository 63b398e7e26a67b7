//! What a sandbox may reach, while it runs.

use super::Sandbox;
use super::registry::FindError;
use crate::app::App;
use crate::network::egress::{Egress, EgressError};
use crate::network::{Interface, NetworkError};
use podflare_api::network::{Egress as Wanted, NetworkView};
use tokio::sync::OwnedMutexGuard;

#[derive(Debug, thiserror::Error)]
pub enum SetEgressError {
    #[error("`egress` cannot be understood")]
    Egress(#[from] EgressError),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("this host has no network for its sandboxes; its log says why")]
    NoNetwork,
    #[error("Could not change what the sandbox may reach; it reaches nothing until a change succeeds")]
    Change(#[source] NetworkError),
    #[error("Could not read the counters of the sandbox's network")]
    Usage(#[source] NetworkError),
}

pub async fn set_egress(app: &App, id: &str, wanted: &Wanted) -> Result<NetworkView, SetEgressError> {
    let egress = Egress::parse(wanted)?;
    let (sandbox, turn) = find_for_change(app, id).await?;
    if sandbox.interface().is_none() && egress != Egress::Off {
        return Err(SetEgressError::NoNetwork);
    }
    sandbox.set_egress(&egress).await.map_err(SetEgressError::Change)?;
    drop(turn);
    tracing::debug!(id, ?egress, "Changed what a sandbox may reach");
    view(app, id).await
}

/// The sandbox of that name, and the turn to change what it may reach. A merge or a restore may have put another in its place
/// while the turn was waited for.
pub(super) async fn find_for_change(
    app: &App,
    id: &str,
) -> Result<(Sandbox, OwnedMutexGuard<()>), FindError> {
    loop {
        let sandbox = app.registry.find(id)?;
        let turn = sandbox.egress_turn().lock_owned().await;
        if app.registry.find(id)?.is(&sandbox) {
            return Ok((sandbox, turn));
        }
    }
}

pub async fn view(app: &App, id: &str) -> Result<NetworkView, SetEgressError> {
    let sandbox = app.registry.find(id)?;
    let usage = match sandbox.interface() {
        Some(interface) => interface.usage().await.map_err(SetEgressError::Usage)?,
        None => Default::default(),
    };
    Ok(NetworkView {
        egress: sandbox.egress().view(),
        address: sandbox.interface().map(Interface::identity).map(|identity| identity.address),
        sent_bytes: usage.sent_bytes,
        received_bytes: usage.received_bytes,
        connections: usage.connections,
    })
}
