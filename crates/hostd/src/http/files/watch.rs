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
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How often the sandbox is said to be in use, however many events there are.
const TOUCH_INTERVAL: Duration = Duration::from_secs(1);

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
    operation.only_watch();
    let watch = Watch { operation, heartbeat: app.settings.heartbeat, touched: begun };
    let body = Body::from_stream(lines(watch));
    Ok((Extension(guest_since(begun.into())), ndjson(body)).into_response())
}

struct Watch {
    operation: Operation,
    heartbeat: Duration,
    /// When the sandbox was last said to be in use.
    touched: Instant,
}

/// Ends when what is watched is gone.
fn lines(watch: Watch) -> impl Stream<Item = Result<Bytes, FileError>> {
    stream::try_unfold(watch, async |mut watch| {
        let answer = match timeout(watch.heartbeat, watch.operation.event()).await {
            Ok(answer) => answer?,
            Err(_) => return Ok(Some((Bytes::from_static(HEARTBEAT), watch))),
        };
        match answer {
            Answer::Events(events) => {
                watch.touch();
                let mut text = Vec::new();
                for event in &events {
                    write_line(&entry::event(event), &mut text);
                }
                Ok(Some((Bytes::from(text), watch)))
            }
            Answer::Done => Ok(None),
            _ => Err(FileError::Protocol),
        }
    })
}

impl Watch {
    /// Somebody learns of what happens in the sandbox, and so uses it.
    fn touch(&mut self) {
        if self.touched.elapsed() >= TOUCH_INTERVAL {
            self.operation.touch();
            self.touched = Instant::now();
        }
    }
}
