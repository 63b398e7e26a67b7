//! Taking, using, ending and looking at checkpoints: parse, pass on, answer.

use super::auth::Caller;
use super::error::ApiError;
use super::json::JsonBody;
use super::path::Ids;
use super::sandboxes::Timed;
use crate::app::App;
use crate::phases::Phases;
use crate::sandbox::checkpoint::{Checkpoint, fork, take};
use crate::sandbox::registry::FindCheckpointError;
use crate::sandbox::restore;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use podflare_api::checkpoint::{CheckpointList, CheckpointRequest, CheckpointView, RestoreRequest};
use podflare_api::sandbox::{ForkRequest, Forked};
use std::sync::Arc;

pub(super) async fn take(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    JsonBody(request): JsonBody<CheckpointRequest>,
) -> Result<Timed<CheckpointView>, ApiError> {
    let (view, phases) = take::take(&app, &id, request.name).await?;
    app.activity.touch();
    Ok((Extension(phases), Json(view)))
}

pub(super) async fn list_of_sandbox(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
) -> Result<Json<CheckpointList>, ApiError> {
    Ok(listed(&app.registry.checkpoints_of(&id)?))
}

pub(super) async fn list(State(app): State<Arc<App>>, Caller(tenant): Caller) -> Json<CheckpointList> {
    listed(&app.registry.visible_checkpoints(&tenant))
}

fn listed(checkpoints: &[Checkpoint]) -> Json<CheckpointList> {
    Json(CheckpointList { checkpoints: checkpoints.iter().map(Checkpoint::view).collect() })
}

pub(super) async fn inspect(
    State(app): State<Arc<App>>,
    id: Result<Ids<String>, ApiError>,
) -> Result<Json<CheckpointView>, ApiError> {
    Ok(Json(app.registry.find_checkpoint(&checkpoint_id(id)?)?.view()))
}

/// The same answer where there is no such checkpoint, as for sandboxes.
pub(super) async fn delete(State(app): State<Arc<App>>, id: Result<Ids<String>, ApiError>) -> StatusCode {
    if let Ok(Ids(id)) = id {
        app.registry.delete_checkpoint(&id);
        app.activity.touch();
    }
    StatusCode::NO_CONTENT
}

pub(super) async fn fork(
    State(app): State<Arc<App>>,
    id: Result<Ids<String>, ApiError>,
    JsonBody(request): JsonBody<ForkRequest>,
) -> Result<Timed<Forked>, ApiError> {
    let (forked, phases) = fork::fork(&app, &checkpoint_id(id)?, &request).await?;
    app.activity.touch();
    Ok((Extension(phases), Json(forked)))
}

pub(super) async fn restore(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    JsonBody(request): JsonBody<RestoreRequest>,
) -> Result<(Extension<Phases>, StatusCode), ApiError> {
    let phases = restore::restore(&app, &id, &request.checkpoint).await?;
    app.activity.touch();
    Ok((Extension(phases), StatusCode::NO_CONTENT))
}

/// What is not even text names no checkpoint.
fn checkpoint_id(id: Result<Ids<String>, ApiError>) -> Result<String, FindCheckpointError> {
    id.map(|Ids(id)| id).map_err(|_| FindCheckpointError::Unknown)
}
