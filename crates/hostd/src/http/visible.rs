//! What is another tenant's is not there: an answer about it is the one about an id that nobody has, before anything else of the
//! request is looked at.

use super::auth::Caller;
use super::error::ApiError;
use crate::app::App;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

pub(super) async fn require_visible(
    State(app): State<Arc<App>>,
    Caller(tenant): Caller,
    method: Method,
    ids: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    // What is not even text names nothing, and the route says so.
    let Ok(ids) = ids else { return Ok(next.run(request).await) };
    for (name, id) in &ids {
        let found = match name {
            "id" | "winner" => app.registry.check_visible(id, &tenant).map_err(ApiError::from),
            "checkpoint" => app.registry.check_checkpoint_visible(id, &tenant).map_err(ApiError::from),
            "space" => app.spaces.check_visible(id, &tenant).map_err(ApiError::from),
            _ => Ok(()),
        };
        match found {
            Ok(()) => {}
            // To end what is not there is no mistake.
            Err(_) if is_end(&method, request.uri().path(), id) => {
                return Ok(StatusCode::NO_CONTENT.into_response());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(next.run(request).await)
}

/// Whether a request is to end the very thing with this id.
fn is_end(method: &Method, path: &str, id: &str) -> bool {
    method == Method::DELETE && path.strip_suffix(id).is_some_and(|rest| rest.ends_with('/'))
}
