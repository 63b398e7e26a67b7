//! Executions as streams of events, and their history.

use super::error::ApiError;
use super::json::JsonBody;
use super::path::Ids;
use crate::app::App;
use crate::phases::Phases;
use crate::pool::activity::Executing;
use crate::sandbox::call::Call;
use crate::sandbox::execution::{GRANT_BATCH_LEN, Taken};
use crate::sandbox::registry::FindError;
use crate::sandbox::{Begun, ExecError, Reader, execs};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream::{self, Stream};
use podflare_api::exec::{EXEC_ID_HEADER, ExecList, ExecRequest};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// A blank line, which clients skip: it shows that the execution goes on.
pub(super) const HEARTBEAT: &[u8] = b"\n";

/// The answer starts at once, before the code does: clients wait 30 s for a first byte, and the code may
/// be queued behind other code for longer.
pub(super) async fn exec(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    JsonBody(request): JsonBody<ExecRequest>,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let call = Call::new(request).map_err(ExecError::from)?;
    let reader = start(&app, &id, call)?;
    let exec_id = [(EXEC_ID_HEADER, reader.id.to_string())];
    // How long it will wait behind other code is not known yet.
    let phases = Phases::default().with("submit", begun.elapsed());
    let events = EventStream::new(reader, app.settings.heartbeat, app.activity.execute());
    Ok((Extension(phases), exec_id, ndjson(Body::from_stream(events))).into_response())
}

/// A sandbox that ends when it has just been found may have been replaced by a merge or a restore:
/// then the other runs it.
fn start(app: &App, id: &str, call: Call) -> Result<Reader, ExecError> {
    let mut call = Box::new(call);
    for _ in 0..2 {
        match app.registry.find(id)?.exec(call)? {
            Begun::Reading(reader) => return Ok(reader),
            Begun::Ended(unsent) => call = unsent,
        }
    }
    Err(FindError::Unknown.into())
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
) -> Result<Json<ExecList>, ApiError> {
    Ok(Json(execs::list(&app, &id).await?))
}

/// The same answer whether the execution runs, waits, has ended or never was: it does not run on.
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Ids((id, exec)): Ids<(String, String)>,
) -> Result<StatusCode, ApiError> {
    execs::cancel(&app, &id, &exec)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn replay(State(app): State<Arc<App>>, Ids(id): Ids<String>) -> Result<Response, ApiError> {
    let events = app.registry.find(&id)?.replay();
    Ok(ndjson(Body::from_stream(stream::iter(events.into_iter().map(Ok::<_, Infallible>)))))
}

pub(super) fn ndjson(body: Body) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
    ];
    (headers, body).into_response()
}

/// The body of an execution's answer. It is polled as the client reads, and reports that back.
struct EventStream {
    reader: Reader,
    heartbeat: Duration,
    silence: Pin<Box<Sleep>>,
    taken: Taken,
    _executing: Executing,
}

impl EventStream {
    fn new(reader: Reader, heartbeat: Duration, executing: Executing) -> EventStream {
        let silence = Box::pin(sleep(heartbeat));
        EventStream { reader, heartbeat, silence, taken: Taken::default(), _executing: executing }
    }

    fn take(&mut self, output_len: u32, events_len: usize) {
        self.taken.output_len += output_len;
        self.taken.events_len += events_len;
        if self.taken.output_len >= GRANT_BATCH_LEN || self.taken.events_len >= GRANT_BATCH_LEN as usize {
            self.reader.report(std::mem::take(&mut self.taken));
        }
    }
}

impl Stream for EventStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let bytes = match this.reader.events.poll_recv(context) {
            Poll::Ready(Some(chunk)) => {
                this.take(chunk.output_len, chunk.events.len());
                chunk.events
            }
            Poll::Ready(None) => {
                this.reader.finish();
                return Poll::Ready(None);
            }
            Poll::Pending => {
                ready!(this.silence.as_mut().poll(context));
                Bytes::from_static(HEARTBEAT)
            }
        };
        let next = Instant::now() + this.heartbeat;
        this.silence.as_mut().reset(next);
        Poll::Ready(Some(Ok(bytes)))
    }
}
