//! Request bodies.
//!
//! A body must say that it is JSON. A web page can make a browser send other bodies to a host on
//! loopback without asking, but not this one.

use super::error::ApiError;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;

/// A body that has been read and understood. An empty one is the empty object.
#[derive(Debug)]
pub(super) struct JsonBody<T>(pub(super) T);

#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("send a JSON body, with the header `content-type: application/json`")]
    NotJson,
    #[error("the body could not be read")]
    Read(#[source] BytesRejection),
    #[error("the body cannot be understood")]
    Malformed(#[source] serde_json::Error),
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<JsonBody<T>, ApiError> {
        if !is_json(request.headers()) {
            return Err(BodyError::NotJson.into());
        }
        let bytes = Bytes::from_request(request, state).await.map_err(BodyError::Read)?;
        let text = if bytes.is_empty() { b"{}" } else { &bytes[..] };
        Ok(JsonBody(serde_json::from_slice(text).map_err(BodyError::Malformed)?))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("application/json"))
}
