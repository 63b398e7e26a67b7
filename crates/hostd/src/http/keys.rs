//! The host's keys, for whoever runs it: parse, pass on, answer.

use super::error::ApiError;
use super::json::JsonBody;
use super::path::Ids;
use crate::app::App;
use crate::sandbox::events::unix_time_ms;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use podflare_api::key::{CreateKey, KeyCreated, KeyList};
use std::sync::Arc;

pub(super) async fn create(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<CreateKey>,
) -> Result<Json<KeyCreated>, ApiError> {
    Ok(Json(app.keys.create(&request.tier, request.name, unix_time_ms()).await?))
}

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<KeyList> {
    Json(KeyList { keys: app.keys.list() })
}

pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Ids(key): Ids<String>,
) -> Result<StatusCode, ApiError> {
    app.keys.revoke(&key, unix_time_ms()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn rotate(
    State(app): State<Arc<App>>,
    Ids(key): Ids<String>,
) -> Result<Json<KeyCreated>, ApiError> {
    Ok(Json(app.keys.rotate(&key).await?))
}
