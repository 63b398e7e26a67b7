//! The HTTP API: the route table, and nothing else.

mod auth;
mod error;
mod exec;
mod json;
mod node;
mod observe;
mod sandboxes;

use crate::app::App;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use podflare_wire::limits::CODE_LEN_MAX;
use std::sync::Arc;

/// The longest body of most requests, in bytes.
const BODY_LEN_MAX: usize = 64 * 1024;

/// The longest body of an execution: its code, with room for what JSON must escape.
const EXEC_BODY_LEN_MAX: usize = 2 * CODE_LEN_MAX;

pub fn router(app: Arc<App>) -> Router {
    let exec_limit = DefaultBodyLimit::max(EXEC_BODY_LEN_MAX);
    let for_callers = Router::new()
        .route("/v1/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route("/v1/sandboxes/{id}", get(sandboxes::inspect).delete(sandboxes::delete))
        .route("/v1/sandboxes/{id}/fork", post(sandboxes::fork))
        .route("/v1/sandboxes/{id}/merge_into/{winner}", post(sandboxes::merge_into))
        .route("/v1/sandboxes/{id}/exec", post(exec::exec).layer(exec_limit))
        .route("/v1/sandboxes/{id}/replay", get(exec::replay))
        .route("/v1/capacity", get(node::capacity))
        .route_layer(from_fn_with_state(app.clone(), auth::require_key));
    Router::new()
        .route("/v1/healthz", get(node::healthz))
        .route("/openapi.json", get(node::openapi))
        .merge(for_callers)
        .fallback(error::unknown_path)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .layer(from_fn(observe::observe))
        .with_state(app)
}
