//! The only place where an error becomes a status code, and the one body that all errors have.

use super::auth::AuthError;
use super::json::{BodyError, Stalled};
use super::origin::OriginError;
use crate::app::NoSlot;
use crate::chain::chain;
use crate::sandbox::ExecError;
use crate::sandbox::copies::CopyError;
use crate::sandbox::create::CreateError;
use crate::sandbox::fork::ForkError;
use crate::sandbox::merge::MergeError;
use crate::sandbox::ping::PingError;
use crate::sandbox::registry::FindError;
use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::http::header::RETRY_AFTER;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use podflare_api::error::ErrorBody;
use std::error::Error;
use std::time::Duration;

/// When to ask a host again that has too many copies to make.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    text: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, error: &dyn Error) -> ApiError {
        let text = chain(error);
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %text, "A request failed");
        }
        ApiError { status, text, retry_after: None }
    }

    /// The template is not ready.
    pub(super) fn unavailable(why: String) -> ApiError {
        ApiError { status: StatusCode::SERVICE_UNAVAILABLE, text: why, retry_after: None }
    }

    /// It will do later what it cannot do now.
    fn busy(error: &dyn Error) -> ApiError {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        ApiError { status, text: error.to_string(), retry_after: Some(BUSY_RETRY_AFTER) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry_after = self.retry_after.map(|after| [(RETRY_AFTER, after.as_secs())]);
        (self.status, retry_after, Json(ErrorBody { error: self.text })).into_response()
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, &error)
    }
}

impl From<OriginError> for ApiError {
    fn from(error: OriginError) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, &error)
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> ApiError {
        let status = match &error {
            BodyError::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            BodyError::Read(rejection) => status_of_rejection(rejection),
            BodyError::Malformed(_) => StatusCode::BAD_REQUEST,
            BodyError::Crowded => return ApiError::busy(&error),
        };
        ApiError::new(status, &error)
    }
}

/// A body over its limit, or one with which its sender stood still or that it broke off.
fn status_of_rejection(rejection: &BytesRejection) -> StatusCode {
    let rejected: &(dyn Error + 'static) = rejection;
    let mut causes = std::iter::successors(Some(rejected), |error| (*error).source());
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        _ if causes.any(|error| error.is::<Stalled>()) => StatusCode::REQUEST_TIMEOUT,
        _ => StatusCode::BAD_REQUEST,
    }
}

impl From<FindError> for ApiError {
    fn from(error: FindError) -> ApiError {
        ApiError::new(status_of_find(&error), &error)
    }
}

fn status_of_find(error: &FindError) -> StatusCode {
    match error {
        FindError::Unknown | FindError::Ended { .. } => StatusCode::NOT_FOUND,
    }
}

fn status_of_no_slot(error: &NoSlot) -> StatusCode {
    match error {
        NoSlot::Full { .. } | NoSlot::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> ApiError {
        let status = match &error {
            CreateError::UnknownTemplate { .. } => StatusCode::NOT_FOUND,
            CreateError::NotReady { .. } => StatusCode::SERVICE_UNAVAILABLE,
            CreateError::NoSlot(error) => status_of_no_slot(error),
            CreateError::Busy(error) => return ApiError::busy(error),
            CreateError::Copy(_) | CreateError::Ended => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

impl From<ForkError> for ApiError {
    fn from(error: ForkError) -> ApiError {
        let status = match &error {
            ForkError::Count { .. } => StatusCode::BAD_REQUEST,
            ForkError::Find(error) => status_of_find(error),
            ForkError::NoSlot(error) => status_of_no_slot(error),
            ForkError::Busy(error) => return ApiError::busy(error),
            // Twice: the sandbox, and what was merged into it.
            ForkError::Copy(CopyError::SourceEnded) => StatusCode::NOT_FOUND,
            ForkError::Copy(_) | ForkError::ChildEnded => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

impl From<MergeError> for ApiError {
    fn from(error: MergeError) -> ApiError {
        let status = match &error {
            MergeError::SameSandbox => StatusCode::BAD_REQUEST,
            MergeError::Find(error) => status_of_find(error),
        };
        ApiError::new(status, &error)
    }
}

impl From<PingError> for ApiError {
    fn from(error: PingError) -> ApiError {
        let status = match &error {
            PingError::Find(error) => status_of_find(error),
            PingError::Silent => StatusCode::GATEWAY_TIMEOUT,
            PingError::AgentRestarts => StatusCode::SERVICE_UNAVAILABLE,
            PingError::TooMany => StatusCode::TOO_MANY_REQUESTS,
        };
        ApiError::new(status, &error)
    }
}

impl From<ExecError> for ApiError {
    fn from(error: ExecError) -> ApiError {
        let status = match &error {
            ExecError::CodeTooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ExecError::Full => StatusCode::TOO_MANY_REQUESTS,
            ExecError::Find(error) => status_of_find(error),
        };
        ApiError::new(status, &error)
    }
}

pub(super) async fn unknown_path(uri: Uri) -> ApiError {
    let text = format!("there is nothing at {}; GET /openapi.json lists what there is", uri.path());
    ApiError { status: StatusCode::NOT_FOUND, text, retry_after: None }
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let text = format!("{} does not take {method}; GET /openapi.json lists what it takes", uri.path());
    ApiError { status: StatusCode::METHOD_NOT_ALLOWED, text, retry_after: None }
}
