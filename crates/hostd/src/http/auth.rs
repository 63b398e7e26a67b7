//! Who calls: whom the key is of, or the operator where nobody is asked for one.

use super::error::ApiError;
use crate::app::App;
use crate::tenant::Tenant;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use std::convert::Infallible;
use std::sync::Arc;

/// Only for whoever runs the host.
#[derive(Debug, thiserror::Error)]
#[error("only the operator's key may do this: PODFLARE_ADMIN_KEY of the host")]
pub(super) struct NotOperator;

pub(super) async fn require_key(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let tenant = app.keys.authenticate(header)?;
    request.extensions_mut().insert(Caller(tenant));
    Ok(next.run(request).await)
}

pub(super) async fn require_operator(
    Caller(tenant): Caller,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if !tenant.is_operator() {
        return Err(NotOperator.into());
    }
    Ok(next.run(request).await)
}

/// On whose behalf a request is made.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub(super) Tenant);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Infallible> {
        #[expect(
            clippy::expect_used,
            reason = "a route without a key would be a hole, found by its first request"
        )]
        Ok(parts.extensions.get::<Caller>().cloned().expect("every route that asks who calls requires a key"))
    }
}
