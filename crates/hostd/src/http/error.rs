//! The only place where an error becomes a status code, and the one body that all errors have.

use super::auth::NotOperator;
use super::body::is_late;
use super::events::TooManyFollowers;
use super::files::{self, query::QueryError};
use super::json::BodyError;
use super::origin::OriginError;
use crate::chain::chain;
use crate::sandbox::ExecError;
use crate::sandbox::call::CallError;
use crate::sandbox::checkpoint::take::TakeError;
use crate::sandbox::copies::CopyError;
use crate::sandbox::create::CreateError;
use crate::sandbox::files::FileError;
use crate::sandbox::fork::ForkError;
use crate::sandbox::merge::MergeError;
use crate::sandbox::network::SetEgressError;
use crate::sandbox::ping::PingError;
use crate::sandbox::registry::{FindCheckpointError, FindError};
use crate::sandbox::restore::RestoreError;
use crate::sandbox::terminal::TerminalError;
use crate::slots::NoSlot;
use crate::space::FindError as SpaceError;
use crate::space::base::BaseError;
use crate::space::freeze::FreezeError;
use crate::space::resume::ResumeError;
use crate::space::transfer::{ExportError, ImportError};
use crate::store::StoreError;
use crate::template::folder::FolderError;
use crate::template::shelf::{RemoveError, UseError};
use crate::template::take::TakeError as TakeTemplateError;
use crate::tenant::{AuthError, KeyError};
use crate::webhook::WebhookError;
use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::http::header::RETRY_AFTER;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use podflare_api::error::ErrorBody;
use podflare_api::sandbox::ChildFailure;
use podflare_wire::terminal::Cause;
use std::error::Error;
use std::io::ErrorKind;
use std::time::Duration;

/// When to ask a host again that has too many copies to make.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    text: String,
    retry_after: Option<Duration>,
    code: Option<String>,
    failures: Vec<ChildFailure>,
}

impl ApiError {
    fn new(status: StatusCode, error: &dyn Error) -> ApiError {
        let text = chain(error);
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %text, "A request failed");
        }
        ApiError::of_text(status, text)
    }

    /// The template is not ready.
    pub(super) fn unavailable(why: String) -> ApiError {
        ApiError::of_text(StatusCode::SERVICE_UNAVAILABLE, why)
    }

    /// It will do later what it cannot do now.
    fn busy(error: &dyn Error) -> ApiError {
        let busy = ApiError::of_text(StatusCode::SERVICE_UNAVAILABLE, error.to_string());
        ApiError { retry_after: Some(BUSY_RETRY_AFTER), ..busy }
    }

    fn of_text(status: StatusCode, text: String) -> ApiError {
        ApiError { status, text, retry_after: None, code: None, failures: Vec::new() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let retry_after = self.retry_after.map(|after| [(RETRY_AFTER, after.as_secs())]);
        let body = ErrorBody { error: self.text, code: self.code, failures: self.failures };
        (self.status, retry_after, Json(body)).into_response()
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, &error)
    }
}

impl From<NotOperator> for ApiError {
    fn from(error: NotOperator) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, &error)
    }
}

impl From<std::fmt::Error> for ApiError {
    fn from(error: std::fmt::Error) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, &error)
    }
}

impl From<TooManyFollowers> for ApiError {
    fn from(error: TooManyFollowers) -> ApiError {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, &error)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, &error)
    }
}

impl From<WebhookError> for ApiError {
    fn from(error: WebhookError) -> ApiError {
        let status = match &error {
            WebhookError::Url | WebhookError::Events => StatusCode::BAD_REQUEST,
            WebhookError::Unknown => StatusCode::NOT_FOUND,
            WebhookError::TooMany => StatusCode::CONFLICT,
            WebhookError::Random(_) | WebhookError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

impl From<KeyError> for ApiError {
    fn from(error: KeyError) -> ApiError {
        let status = match &error {
            KeyError::Tier { .. } | KeyError::Name { .. } => StatusCode::BAD_REQUEST,
            KeyError::Unknown => StatusCode::NOT_FOUND,
            KeyError::TooMany => StatusCode::CONFLICT,
            KeyError::Random(_) | KeyError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
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

/// A body over its limit, or one that did not come in time or that its sender broke off.
fn status_of_rejection(rejection: &BytesRejection) -> StatusCode {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        _ if is_late(rejection) => StatusCode::REQUEST_TIMEOUT,
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

impl From<FindCheckpointError> for ApiError {
    fn from(error: FindCheckpointError) -> ApiError {
        ApiError::new(status_of_find_checkpoint(&error), &error)
    }
}

fn status_of_find_checkpoint(error: &FindCheckpointError) -> StatusCode {
    match error {
        FindCheckpointError::Unknown | FindCheckpointError::Ended { .. } => StatusCode::NOT_FOUND,
    }
}

impl From<&NoSlot> for ApiError {
    fn from(error: &NoSlot) -> ApiError {
        match error {
            NoSlot::OfTenant { .. } => ApiError::new(StatusCode::TOO_MANY_REQUESTS, error),
            NoSlot::Full { .. } | NoSlot::ShuttingDown => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error)
            }
            NoSlot::Short(_) => ApiError::busy(error),
        }
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> ApiError {
        let status = match &error {
            CreateError::Use(UseError::AllInUse { .. }) | CreateError::Boots { .. } => {
                return ApiError::busy(&error);
            }
            CreateError::Use(error) => status_of_use(error),
            CreateError::NotReady { .. } => StatusCode::SERVICE_UNAVAILABLE,
            CreateError::NoSlot(error) => return error.into(),
            CreateError::Busy(error) => return ApiError::busy(error),
            CreateError::Egress(_) => StatusCode::BAD_REQUEST,
            CreateError::Boot(_)
            | CreateError::Copy(_)
            | CreateError::Grow(_)
            | CreateError::Ended
            | CreateError::Network(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

fn status_of_use(error: &UseError) -> StatusCode {
    match error {
        UseError::Unknown { .. } => StatusCode::NOT_FOUND,
        UseError::AllInUse { .. } | UseError::TooMany | UseError::ShuttingDown => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

impl From<UseError> for ApiError {
    fn from(error: UseError) -> ApiError {
        ApiError::new(status_of_use(&error), &error)
    }
}

impl From<TakeTemplateError> for ApiError {
    fn from(error: TakeTemplateError) -> ApiError {
        let status = match &error {
            TakeTemplateError::Default => StatusCode::CONFLICT,
            TakeTemplateError::NoFolder
            | TakeTemplateError::Folder {
                source: FolderError::NoSuchFolder { .. } | FolderError::Name { .. },
                ..
            } => StatusCode::NOT_FOUND,
            TakeTemplateError::Folder { .. } | TakeTemplateError::Removed { .. } => StatusCode::CONFLICT,
            TakeTemplateError::Use(error) => status_of_use(error),
            TakeTemplateError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            TakeTemplateError::Boot { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

impl From<RemoveError> for ApiError {
    fn from(error: RemoveError) -> ApiError {
        let status = match &error {
            RemoveError::Default => StatusCode::CONFLICT,
            RemoveError::Unknown(error) => status_of_use(error),
        };
        ApiError::new(status, &error)
    }
}

impl From<ForkError> for ApiError {
    fn from(error: ForkError) -> ApiError {
        let status = match &error {
            ForkError::Count { .. } => StatusCode::BAD_REQUEST,
            ForkError::Find(error) => status_of_find(error),
            ForkError::FindCheckpoint(error) => status_of_find_checkpoint(error),
            ForkError::NoSlot(error) => return error.into(),
            ForkError::Busy(error) => return ApiError::busy(error),
            // Twice: the sandbox, and what was merged into it.
            ForkError::Copy(CopyError::SourceEnded) => StatusCode::NOT_FOUND,
            ForkError::Copy(_) | ForkError::Children { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let answer = ApiError::new(status, &error);
        match error {
            ForkError::Children { failures, .. } => ApiError { failures, ..answer },
            _ => answer,
        }
    }
}

impl From<TakeError> for ApiError {
    fn from(error: TakeError) -> ApiError {
        let status = match &error {
            TakeError::NameTooLong { .. } => StatusCode::BAD_REQUEST,
            TakeError::TooMany => StatusCode::TOO_MANY_REQUESTS,
            TakeError::Find(error) => status_of_find(error),
            TakeError::NoSlot(error) => return error.into(),
            TakeError::Busy(error) => return ApiError::busy(error),
            // Twice: the sandbox, and what was put in its place.
            TakeError::Copy(CopyError::SourceEnded) => StatusCode::NOT_FOUND,
            TakeError::Copy(_) | TakeError::Ended(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

impl From<RestoreError> for ApiError {
    fn from(error: RestoreError) -> ApiError {
        let status = match &error {
            RestoreError::OfAnother { .. } => StatusCode::BAD_REQUEST,
            RestoreError::Find(error) => status_of_find(error),
            RestoreError::FindCheckpoint(error) => status_of_find_checkpoint(error),
            RestoreError::NoSlot(error) => return error.into(),
            RestoreError::Busy(error) => return ApiError::busy(error),
            RestoreError::Copy(_) | RestoreError::CopyEnded => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

impl From<SpaceError> for ApiError {
    fn from(error: SpaceError) -> ApiError {
        ApiError::new(status_of_space(&error), &error)
    }
}

fn status_of_space(error: &SpaceError) -> StatusCode {
    match error {
        SpaceError::Unknown | SpaceError::Resumed => StatusCode::NOT_FOUND,
        SpaceError::Foreign(_) => StatusCode::CONFLICT,
    }
}

impl From<FreezeError> for ApiError {
    fn from(error: FreezeError) -> ApiError {
        let status = match &error {
            error if error.is_disk_full() => StatusCode::INSUFFICIENT_STORAGE,
            FreezeError::Find(error) => status_of_find(error),
            FreezeError::Already | FreezeError::Used => StatusCode::CONFLICT,
            FreezeError::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            FreezeError::Busy(error) => return ApiError::busy(error),
            FreezeError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            FreezeError::Copy(CopyError::SourceEnded) => StatusCode::NOT_FOUND,
            FreezeError::Copy(_)
            | FreezeError::Base(_)
            | FreezeError::Save(_)
            | FreezeError::Timeout
            | FreezeError::Folder(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

impl From<ResumeError> for ApiError {
    fn from(error: ResumeError) -> ApiError {
        let status = match &error {
            ResumeError::Egress(_) => StatusCode::BAD_REQUEST,
            ResumeError::Find(error) => status_of_space(error),
            ResumeError::NoSlot(error) => return error.into(),
            ResumeError::Busy(error) => return ApiError::busy(error),
            error if error.is_about_the_space() => StatusCode::CONFLICT,
            ResumeError::Base(_)
            | ResumeError::Files(_)
            | ResumeError::Overlay(_)
            | ResumeError::Copy(_)
            | ResumeError::Ended => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

impl From<ExportError> for ApiError {
    fn from(error: ExportError) -> ApiError {
        let status = match &error {
            ExportError::Find(error) => status_of_space(error),
            ExportError::Base(BaseError::Key { .. } | BaseError::Missing { .. }) => StatusCode::CONFLICT,
            ExportError::Base(_) | ExportError::Files(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

impl From<ImportError> for ApiError {
    fn from(error: ImportError) -> ApiError {
        let status = match &error {
            ImportError::Malformed(_) | ImportError::Body(_) => StatusCode::BAD_REQUEST,
            ImportError::TooLarge { .. }
            | ImportError::Format { .. }
            | ImportError::NoImage { .. }
            | ImportError::OtherBase { .. }
            | ImportError::Base(_)
            | ImportError::Overlay(_) => StatusCode::CONFLICT,
            ImportError::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            ImportError::Folder(error) if error.kind() == ErrorKind::StorageFull => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            ImportError::Folder(_) => StatusCode::INTERNAL_SERVER_ERROR,
            ImportError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        };
        ApiError::new(status, &error)
    }
}

impl From<MergeError> for ApiError {
    fn from(error: MergeError) -> ApiError {
        let status = match &error {
            MergeError::SameSandbox | MergeError::OtherTenant => StatusCode::BAD_REQUEST,
            MergeError::Find(error) => status_of_find(error),
            MergeError::Network(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

impl From<SetEgressError> for ApiError {
    fn from(error: SetEgressError) -> ApiError {
        let status = match &error {
            SetEgressError::Egress(_) => StatusCode::BAD_REQUEST,
            SetEgressError::Find(error) => status_of_find(error),
            SetEgressError::NoNetwork => StatusCode::CONFLICT,
            SetEgressError::Change(_) | SetEgressError::Usage(_) => StatusCode::INTERNAL_SERVER_ERROR,
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
            ExecError::Call(CallError::CodeTooLong { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            ExecError::Call(_) => StatusCode::BAD_REQUEST,
            ExecError::Full => StatusCode::TOO_MANY_REQUESTS,
            ExecError::Find(error) => status_of_find(error),
        };
        ApiError::new(status, &error)
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, &error)
    }
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> ApiError {
        let status = match &error {
            FileError::Find(error) => status_of_find(error),
            FileError::TooMany => StatusCode::TOO_MANY_REQUESTS,
            FileError::Failed { errno, .. } => {
                let (code, status) = files::status_of_errno(*errno);
                let answer = ApiError::of_text(status, error.to_string());
                return ApiError { code: Some(code), ..answer };
            }
            FileError::Body(error) if is_late(&**error) => StatusCode::REQUEST_TIMEOUT,
            FileError::Body(_) => StatusCode::BAD_REQUEST,
            FileError::Silent => StatusCode::GATEWAY_TIMEOUT,
            FileError::Lost => StatusCode::SERVICE_UNAVAILABLE,
            FileError::Connect(_) | FileError::Protocol => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

impl From<TerminalError> for ApiError {
    fn from(error: TerminalError) -> ApiError {
        let status = match &error {
            TerminalError::Find(error) => status_of_find(error),
            TerminalError::Call(_)
            | TerminalError::Command
            | TerminalError::Size
            | TerminalError::NotBase64(_)
            | TerminalError::InputTooLong { .. }
            | TerminalError::ReadLen => StatusCode::BAD_REQUEST,
            TerminalError::Refused { cause, .. } => match cause {
                Cause::NotFound => StatusCode::NOT_FOUND,
                Cause::TooMany => StatusCode::TOO_MANY_REQUESTS,
                Cause::Exited | Cause::Unread => StatusCode::CONFLICT,
                Cause::Invalid => StatusCode::BAD_REQUEST,
                Cause::Unable => StatusCode::INTERNAL_SERVER_ERROR,
            },
            TerminalError::TooMany | TerminalError::HostFull => StatusCode::TOO_MANY_REQUESTS,
            TerminalError::Silent => StatusCode::GATEWAY_TIMEOUT,
            // The sandbox is there, and its agent is started again.
            TerminalError::Connect(_) | TerminalError::Io(_) | TerminalError::Closed => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            TerminalError::Protocol | TerminalError::Decode(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, &error)
    }
}

pub(super) async fn unknown_path(uri: Uri) -> ApiError {
    let text = format!("there is nothing at {}; GET /openapi.json lists what there is", uri.path());
    ApiError::of_text(StatusCode::NOT_FOUND, text)
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let text = format!("{} does not take {method}; GET /openapi.json lists what it takes", uri.path());
    ApiError::of_text(StatusCode::METHOD_NOT_ALLOWED, text)
}
