//! Watches: what happens to files, as a stream of events. To watch is not to use: the sandbox may idle meanwhile.

use super::super::error::ApiError;
use super::super::exec::{HEARTBEAT, ndjson};
use super::super::path::Ids;
use super::query::Query;
use super::{entry, guest_since};
use crate::app::App;
use crate::sandbox::events::write_line;
use crate::sandbox::files::{FileError, Operation};
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use podflare_wire::files::{Answer, Request};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The answer begins when everything is watched: what happens after it is told.
pub(in super::super) async fn watch(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    query: Query,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let request = Request::Watch { path: query.path("path")?, recursive: query.flag("recursive")? };
    let mut operation = Operation::begin(&app, &id, &request).await?;
    let Answer::Watching = operation.answer().await? else { return Err(FileError::Protocol.into()) };
    let body = Body::from_stream(lines(operation, app.settings.heartbeat));
    Ok((Extension(guest_since(begun)), ndjson(body)).into_response())
}

/// Ends when what is watched is gone.
fn lines(operation: Operation, heartbeat: Duration) -> impl Stream<Item = Result<Bytes, FileError>> {
    stream::try_unfold((operation, heartbeat), async |(mut operation, heartbeat)| {
        let answer = match timeout(heartbeat, operation.event()).await {
            Ok(answer) => answer?,
            Err(_) => return Ok(Some((Bytes::from_static(HEARTBEAT), (operation, heartbeat)))),
        };
        match answer {
            Answer::Events(events) => {
                let mut text = Vec::new();
                for event in &events {
                    write_line(&entry::event(event), &mut text);
                }
                Ok(Some((Bytes::from(text), (operation, heartbeat))))
            }
            Answer::Done => Ok(None),
            _ => Err(FileError::Protocol),
        }
    })
}
