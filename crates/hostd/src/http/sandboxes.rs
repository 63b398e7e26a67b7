//! Making, copying, merging, ending and looking at sandboxes: parse, pass on, answer.

use super::auth::Caller;
use super::error::ApiError;
use super::json::JsonBody;
use super::path::Ids;
use crate::app::App;
use crate::phases::Phases;
use crate::sandbox::{create, extend, fork, merge, ping};
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use podflare_api::sandbox::{
    CreateSandbox, ExtendSandbox, ForkRequest, Forked, SandboxCreated, SandboxList, SandboxView,
};
use std::sync::Arc;
use std::time::Instant;

/// An answer, and what it took.
pub(super) type Timed<T> = (Extension<Phases>, Json<T>);

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(tenant): Caller,
    JsonBody(request): JsonBody<CreateSandbox>,
) -> Result<Timed<SandboxCreated>, ApiError> {
    let (created, phases) = create::create(&app, &tenant, &request).await?;
    Ok((Extension(phases), Json(created)))
}

pub(super) async fn list(State(app): State<Arc<App>>, Caller(tenant): Caller) -> Json<SandboxList> {
    let visible = app.registry.visible(&tenant);
    let mut sandboxes: Vec<SandboxView> = visible.iter().map(|sandbox| sandbox.view()).collect();
    sandboxes.sort_by(|a, b| (a.created_at_ms, &a.id).cmp(&(b.created_at_ms, &b.id)));
    Json(SandboxList { sandboxes })
}

pub(super) async fn inspect(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
) -> Result<Json<SandboxView>, ApiError> {
    Ok(Json(app.registry.find(&id)?.view()))
}

pub(super) async fn extend(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    JsonBody(request): JsonBody<ExtendSandbox>,
) -> Result<Json<SandboxView>, ApiError> {
    Ok(Json(extend::extend(&app, &id, &request)?))
}

/// One round trip to the guest's agent, whose time is the answer.
pub(super) async fn ping(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
) -> Result<(Extension<Phases>, StatusCode), ApiError> {
    let took = ping::ping(&app, &id).await?;
    Ok((Extension(Phases::default().with("guest", took)), StatusCode::NO_CONTENT))
}

/// The same answer where there is no such sandbox: the published SDK's `with` block would fail otherwise.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    id: Result<Ids<String>, ApiError>,
) -> (Extension<Phases>, StatusCode) {
    let begun = Instant::now();
    if let Ok(Ids(id)) = id {
        app.registry.delete(&id);
        app.activity.touch();
    }
    // The machine is ended off the path.
    (Extension(Phases::default().with("remove", begun.elapsed())), StatusCode::NO_CONTENT)
}

pub(super) async fn fork(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    JsonBody(request): JsonBody<ForkRequest>,
) -> Result<Timed<Forked>, ApiError> {
    let (forked, phases) = fork::fork(&app, &id, &request).await?;
    app.activity.touch();
    Ok((Extension(phases), Json(forked)))
}

pub(super) async fn merge_into(
    State(app): State<Arc<App>>,
    Ids((parent, winner)): Ids<(String, String)>,
) -> Result<(Extension<Phases>, StatusCode), ApiError> {
    let begun = Instant::now();
    merge::merge_into(&app, &parent, &winner).await?;
    app.activity.touch();
    Ok((Extension(Phases::default().with("swap", begun.elapsed())), StatusCode::NO_CONTENT))
}
