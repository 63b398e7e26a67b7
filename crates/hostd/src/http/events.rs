//! What happens to sandboxes, as a list and as a stream.

use super::auth::Caller;
use super::error::ApiError;
use super::exec::{HEARTBEAT, ndjson};
use super::files::query::Query;
use crate::app::App;
use crate::chain::chain;
use crate::sandbox::events::write_line;
use crate::tenant::Tenant;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use podflare_api::event::{EVENTS_LISTED_MAX, EventList, LifecycleEvent};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};

#[derive(Debug, thiserror::Error)]
#[error("too many clients follow the events of this host; list them instead, or try again later")]
pub(super) struct TooManyFollowers;

pub(super) async fn events(
    State(app): State<Arc<App>>,
    Caller(tenant): Caller,
    query: Query,
) -> Result<Response, ApiError> {
    let since = query.whole("since")?.unwrap_or(0);
    if query.flag("follow")? {
        let Ok(place) = app.followers.clone().try_acquire_owned() else {
            return Err(TooManyFollowers.into());
        };
        let follower = Follower { changes: app.journal.watch(), app, tenant, since, _place: place };
        return Ok(ndjson(Body::from_stream(follower.lines())));
    }
    let max = query.number("limit")?.unwrap_or(EVENTS_LISTED_MAX);
    let events = app.journal.after(&tenant, since, max).await?;
    Ok(Json(EventList { events }).into_response())
}

/// One client, and how far it has read.
struct Follower {
    changes: watch::Receiver<u64>,
    app: Arc<App>,
    tenant: Tenant,
    since: u64,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    /// Ends with the journal, and where it cannot be read: then the client comes again.
    fn lines(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, async |mut follower| {
            let lines = follower.next().await?;
            Some((Ok(lines), follower))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        let heartbeat = Instant::now() + self.app.settings.heartbeat;
        loop {
            self.changes.borrow_and_update();
            let events = match self.app.journal.after(&self.tenant, self.since, EVENTS_LISTED_MAX).await {
                Ok(events) => events,
                Err(error) => {
                    tracing::error!(error = %chain(&error), "Could not read the events that somebody follows");
                    return None;
                }
            };
            if let Some(LifecycleEvent { seq, .. }) = events.last() {
                self.since = *seq;
                let mut lines = Vec::new();
                events.iter().for_each(|event| write_line(event, &mut lines));
                return Some(lines.into());
            }
            // What has come may be another key's, of which this client hears nothing.
            match timeout_at(heartbeat, self.changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(Bytes::from_static(HEARTBEAT)),
            }
        }
    }
}
