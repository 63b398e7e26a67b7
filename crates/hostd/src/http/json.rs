//! Request bodies of JSON.
//!
//! A body must say that it is JSON, and none is the empty object. That keeps no web page out: a browser
//! sends an empty body for any page. `origin.rs` does.

use super::body::at_a_pace;
use super::error::ApiError;
use super::limits::{BODY_LEN_MAX, LONG_BODY_TURN_TIMEOUT};
use crate::app::App;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// A body that has been read and understood. An empty one is the empty object, whatever it says it is.
#[derive(Debug)]
pub(super) struct JsonBody<T>(pub(super) T);

#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("send a JSON body, with the header `content-type: application/json`")]
    NotJson,
    #[error("the body could not be read")]
    Read(#[source] BytesRejection),
    #[error("too many long bodies are being read; try again in a few seconds")]
    Crowded,
    #[error("the body cannot be understood")]
    Malformed(#[source] serde_json::Error),
}

impl<T: DeserializeOwned> FromRequest<Arc<App>> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<JsonBody<T>, ApiError> {
        let is_json = is_json(request.headers());
        let _place = place_for(request.body().size_hint().upper(), &app.long_bodies).await?;
        let request = request.map(|body| Body::from_stream(at_a_pace(body)));
        let bytes = Bytes::from_request(request, app).await.map_err(BodyError::Read)?;
        let text = match &bytes[..] {
            b"" => b"{}",
            _ if !is_json => return Err(BodyError::NotJson.into()),
            text => text,
        };
        Ok(JsonBody(serde_json::from_slice(text).map_err(BodyError::Malformed)?))
    }
}

/// A place among the long bodies, for a body that may be one.
async fn place_for(
    len_max: Option<u64>,
    places: &Semaphore,
) -> Result<Option<SemaphorePermit<'_>>, BodyError> {
    let is_short = len_max.is_some_and(|len| len <= BODY_LEN_MAX as u64);
    if is_short {
        return Ok(None);
    }
    let turn = timeout(LONG_BODY_TURN_TIMEOUT, places.acquire()).await.map_err(|_| BodyError::Crowded)?;
    // The semaphore is never closed.
    Ok(turn.ok())
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media_type| media_type.trim().eq_ignore_ascii_case("application/json"))
}
