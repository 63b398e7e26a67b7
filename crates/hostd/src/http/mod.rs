//! The HTTP API: the route table, and nothing else.

mod auth;
mod body;
mod checkpoints;
mod error;
mod events;
mod exec;
mod files;
mod json;
mod keys;
pub(crate) mod limits;
mod linger;
mod network;
mod node;
mod observe;
mod origin;
mod path;
mod pty;
mod sandboxes;
mod serve;
mod spaces;
mod templates;
mod visible;
mod webhooks;

use crate::app::App;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post, put};
use limits::{BODY_LEN_MAX, EXEC_BODY_LEN_MAX, PTY_BODY_LEN_MAX};
use std::sync::Arc;

pub use serve::serve;

pub fn router(app: Arc<App>) -> Router {
    let exec_limit = DefaultBodyLimit::max(EXEC_BODY_LEN_MAX);
    let pty_limit = DefaultBodyLimit::max(PTY_BODY_LEN_MAX);
    let for_callers = Router::new()
        .route("/v1/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route(
            "/v1/sandboxes/{id}",
            get(sandboxes::inspect).patch(sandboxes::extend).delete(sandboxes::delete),
        )
        .route("/v1/sandboxes/{id}/fork", post(sandboxes::fork))
        .route("/v1/sandboxes/{id}/merge_into/{winner}", post(sandboxes::merge_into))
        .route("/v1/sandboxes/{id}/checkpoints", post(checkpoints::take).get(checkpoints::list_of_sandbox))
        .route("/v1/sandboxes/{id}/restore", post(checkpoints::restore))
        .route("/v1/sandboxes/{id}/network", get(network::view))
        .route("/v1/sandboxes/{id}/egress", put(network::set_egress))
        .route("/v1/sandboxes/{id}/freeze", post(spaces::freeze))
        .route("/v1/spaces", get(spaces::list))
        .route("/v1/spaces/{space}", get(spaces::inspect).delete(spaces::delete))
        .route("/v1/spaces/import", post(spaces::import))
        .route("/v1/spaces/{space}/resume", post(spaces::resume))
        .route("/v1/spaces/{space}/export", get(spaces::export))
        .route("/v1/checkpoints", get(checkpoints::list))
        .route("/v1/checkpoints/{checkpoint}", get(checkpoints::inspect).delete(checkpoints::delete))
        .route("/v1/checkpoints/{checkpoint}/fork", post(checkpoints::fork))
        .route("/v1/sandboxes/{id}/exec", post(exec::exec).layer(exec_limit))
        .route(
            "/v1/sandboxes/{id}/files",
            get(files::download).put(files::upload).delete(files::changes::remove),
        )
        .route("/v1/sandboxes/{id}/files/stat", get(files::stat))
        .route("/v1/sandboxes/{id}/files/list", get(files::list::list))
        .route("/v1/sandboxes/{id}/files/mkdir", post(files::changes::make_directory))
        .route("/v1/sandboxes/{id}/files/move", post(files::changes::rename))
        .route("/v1/sandboxes/{id}/files/watch", get(files::watch::watch))
        .route("/v1/sandboxes/{id}/execs", get(exec::list))
        .route("/v1/sandboxes/{id}/execs/{exec}", delete(exec::cancel))
        .route("/v1/sandboxes/{id}/pty", post(pty::create).get(pty::list).layer(pty_limit))
        .route("/v1/sandboxes/{id}/pty/{pty}/attach", get(pty::attach))
        .route("/v1/sandboxes/{id}/pty/{pty}/read", post(pty::read))
        .route("/v1/sandboxes/{id}/pty/{pty}/input", post(pty::input))
        .route("/v1/sandboxes/{id}/pty/{pty}/resize", post(pty::resize))
        .route("/v1/sandboxes/{id}/pty/{pty}/kill", post(pty::kill))
        .route("/v1/sandboxes/{id}/ping", get(sandboxes::ping))
        .route("/v1/sandboxes/{id}/replay", get(exec::replay))
        .route("/v1/templates", get(templates::list))
        .route("/v1/templates/{name}", get(templates::inspect))
        .route("/v1/capacity", get(node::capacity))
        .route("/v1/events", get(events::events))
        .route("/v1/usage", get(node::usage))
        .route("/v1/webhooks", post(webhooks::create).get(webhooks::list))
        .route("/v1/webhooks/{webhook}", delete(webhooks::remove))
        .route_layer(from_fn_with_state(app.clone(), visible::require_visible));
    let for_operator = Router::new()
        .route("/v1/templates/{name}", post(templates::take).delete(templates::remove))
        .route("/metrics", get(node::metrics))
        .route("/v1/keys", post(keys::create).get(keys::list))
        .route("/v1/keys/{key}", delete(keys::revoke))
        .route("/v1/keys/{key}/rotate", post(keys::rotate))
        .route_layer(from_fn(auth::require_operator));
    let for_callers =
        for_callers.merge(for_operator).route_layer(from_fn_with_state(app.clone(), auth::require_key));
    Router::new()
        .route("/v1/healthz", get(node::healthz))
        .route("/openapi.json", get(node::openapi))
        .merge(for_callers)
        .fallback(error::unknown_path)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .layer(from_fn_with_state(app.clone(), origin::refuse_foreign_pages))
        .layer(from_fn_with_state(app.clone(), observe::observe))
        .with_state(app)
}
