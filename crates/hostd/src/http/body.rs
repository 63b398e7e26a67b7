//! Request bodies as streams, with a bound on how long nothing may come of them.

use super::limits::BODY_IDLE_TIMEOUT;
use axum::body::{Body, Bytes};
use futures_util::stream::{self, Stream, StreamExt};
use std::error::Error;
use tokio::time::timeout;

/// Nothing more came of a body.
#[derive(Debug, thiserror::Error)]
#[error("nothing more of it came for {} s", BODY_IDLE_TIMEOUT.as_secs())]
pub(super) struct Stalled;

/// The body, broken off when its sender stands still.
pub(super) fn within_time(body: Body) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send {
    stream::unfold(body.into_data_stream(), async |mut chunks| {
        let chunk = match timeout(BODY_IDLE_TIMEOUT, chunks.next()).await {
            Ok(chunk) => chunk?,
            Err(_) => Err(axum::Error::new(Stalled)),
        };
        Some((chunk, chunks))
    })
}

/// Whether a body could not be read because its sender stood still.
pub(super) fn has_stalled(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source()).any(|error| error.is::<Stalled>())
}
