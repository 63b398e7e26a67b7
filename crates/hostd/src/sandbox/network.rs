//! What a sandbox may reach, while it runs.

use super::registry::FindError;
use crate::app::App;
use crate::network::egress::{Egress, EgressError};
use crate::network::{Interface, NetworkError};
use podflare_api::network::{Egress as Wanted, NetworkView};

#[derive(Debug, thiserror::Error)]
pub enum SetEgressError {
    #[error("`egress` cannot be understood")]
    Egress(#[from] EgressError),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("this host has no network for its sandboxes; its log says why")]
    NoNetwork,
    #[error("Could not change what the sandbox may reach; it is as it was")]
    Network(#[from] NetworkError),
}

pub async fn set_egress(app: &App, id: &str, wanted: &Wanted) -> Result<NetworkView, SetEgressError> {
    let egress = Egress::parse(wanted)?;
    let sandbox = app.registry.find(id)?;
    if sandbox.interface().is_none() && egress != Egress::Off {
        return Err(SetEgressError::NoNetwork);
    }
    sandbox.set_egress(&egress).await?;
    tracing::debug!(id, ?egress, "Changed what a sandbox may reach");
    view(app, id).await
}

pub async fn view(app: &App, id: &str) -> Result<NetworkView, SetEgressError> {
    let sandbox = app.registry.find(id)?;
    let usage = match sandbox.interface() {
        Some(interface) => interface.usage().await?,
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
