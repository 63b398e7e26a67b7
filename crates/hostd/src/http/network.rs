//! What a sandbox may reach: parse, pass on, answer.

use super::error::ApiError;
use super::json::JsonBody;
use super::path::Ids;
use crate::app::App;
use crate::sandbox::network;
use axum::Json;
use axum::extract::State;
use podflare_api::network::{NetworkView, SetEgress};
use std::sync::Arc;

pub(super) async fn view(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
) -> Result<Json<NetworkView>, ApiError> {
    Ok(Json(network::view(&app, &id).await?))
}

pub(super) async fn set_egress(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    JsonBody(request): JsonBody<SetEgress>,
) -> Result<Json<NetworkView>, ApiError> {
    Ok(Json(network::set_egress(&app, &id, &request.egress).await?))
}
