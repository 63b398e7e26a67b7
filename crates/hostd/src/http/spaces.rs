//! Freezing, resuming, sending, removing and looking at Spaces: parse, pass on, answer.

use super::auth::Caller;
use super::body::within_time;
use super::error::ApiError;
use super::json::JsonBody;
use super::path::Ids;
use super::sandboxes::Timed;
use crate::app::App;
use crate::space::{FindError, freeze, resume, transfer};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::TryStreamExt;
use podflare_api::sandbox::SandboxCreated;
use podflare_api::space::{ResumeSpace, SpaceList, SpaceView};
use std::io;
use std::sync::Arc;

pub(super) async fn freeze(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
) -> Result<Timed<SpaceView>, ApiError> {
    // Also if its client goes away: what was begun is either done or undone.
    let frozen = tokio::spawn(async move { freeze::freeze(&app, &id).await }).await;
    let (view, phases) = frozen.map_err(|_| freeze::FreezeError::ShuttingDown)??;
    Ok((Extension(phases), Json(view)))
}

pub(super) async fn list(State(app): State<Arc<App>>, Caller(tenant): Caller) -> Json<SpaceList> {
    Json(SpaceList { spaces: app.spaces.visible(&tenant) })
}

pub(super) async fn inspect(
    State(app): State<Arc<App>>,
    id: Result<Ids<String>, ApiError>,
) -> Result<Json<SpaceView>, ApiError> {
    Ok(Json(app.spaces.find(&space_id(id)?)?))
}

/// The same answer where there is no such Space, as for sandboxes.
pub(super) async fn delete(State(app): State<Arc<App>>, id: Result<Ids<String>, ApiError>) -> StatusCode {
    if let Ok(Ids(id)) = id {
        app.spaces.delete(&id).await;
        app.activity.touch();
    }
    StatusCode::NO_CONTENT
}

pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Caller(tenant): Caller,
    id: Result<Ids<String>, ApiError>,
    JsonBody(request): JsonBody<ResumeSpace>,
) -> Result<Timed<SandboxCreated>, ApiError> {
    let (created, phases) = resume::resume(&app, &tenant, &space_id(id)?, &request).await?;
    app.activity.touch();
    Ok((Extension(phases), Json(created)))
}

/// The Space as one file. It is cut off if it cannot be read to its end.
pub(super) async fn export(
    State(app): State<Arc<App>>,
    id: Result<Ids<String>, ApiError>,
) -> Result<Response, ApiError> {
    let id = space_id(id)?;
    let stream = transfer::export(&app, &id).await?;
    let name = format!("attachment; filename=\"{id}.tar\"");
    let headers = [(CONTENT_TYPE, "application/x-tar".to_owned()), (CONTENT_DISPOSITION, name)];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// The body is the file, of any length.
pub(super) async fn import(
    State(app): State<Arc<App>>,
    Caller(tenant): Caller,
    request: Request,
) -> Result<Json<SpaceView>, ApiError> {
    let body = within_time(request.into_body()).map_err(io::Error::other);
    let view = transfer::import(&app, &tenant, body).await?;
    app.activity.touch();
    Ok(Json(view))
}

/// What is not even text names no Space.
fn space_id(id: Result<Ids<String>, ApiError>) -> Result<String, FindError> {
    id.map(|Ids(id)| id).map_err(|_| FindError::Unknown)
}
