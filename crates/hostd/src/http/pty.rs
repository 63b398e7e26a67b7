//! Terminals as streams of events, and what is done with them.

use super::error::ApiError;
use super::exec::{HEARTBEAT, ndjson};
use super::json::JsonBody;
use super::path::Ids;
use crate::app::App;
use crate::chain::chain;
use crate::sandbox::events::line;
use crate::sandbox::terminal::{self, Terminal, TerminalError};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream::{self, Stream};
use podflare_api::pty::{CreatePty, PtyChunk, PtyEvent, PtyInfo, PtyInput, PtyRead, PtyResize};
use podflare_wire::terminal::Event;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A terminal's events on their way to one client.
struct Events {
    terminal: Terminal,
    heartbeat: Duration,
    first: Option<Bytes>,
    ended: bool,
}

/// What the guest cannot do is told in the answer's stream: so the published SDK shows it.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    JsonBody(request): JsonBody<CreatePty>,
) -> Result<Response, ApiError> {
    match terminal::create(&app, &id, request).await {
        Ok((session_id, terminal)) => Ok(events(&app, terminal, line(&PtyEvent::PtyReady { session_id }))),
        Err(failure) if failure.is_of_the_guest() => {
            Ok(ndjson(Body::from(line(&PtyEvent::PtyError { message: chain(&failure) }))))
        }
        Err(failure) => Err(failure.into()),
    }
}

pub(super) async fn attach(
    State(app): State<Arc<App>>,
    Ids((id, pty)): Ids<(String, String)>,
) -> Result<Response, ApiError> {
    let terminal = terminal::attach(&app, &id, pty).await?;
    // So that the client knows at once that it is attached: the program may say nothing for long.
    Ok(events(&app, terminal, Bytes::from_static(HEARTBEAT)))
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
) -> Result<Json<Vec<PtyInfo>>, ApiError> {
    Ok(Json(terminal::list(&app, &id).await?))
}

pub(super) async fn read(
    State(app): State<Arc<App>>,
    Ids((id, pty)): Ids<(String, String)>,
    JsonBody(request): JsonBody<PtyRead>,
) -> Result<Json<PtyChunk>, ApiError> {
    Ok(Json(terminal::read(&app, &id, pty, &request).await?))
}

pub(super) async fn input(
    State(app): State<Arc<App>>,
    Ids((id, pty)): Ids<(String, String)>,
    JsonBody(request): JsonBody<PtyInput>,
) -> Result<StatusCode, ApiError> {
    terminal::input(&app, &id, pty, &request.data_b64).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn resize(
    State(app): State<Arc<App>>,
    Ids((id, pty)): Ids<(String, String)>,
    JsonBody(request): JsonBody<PtyResize>,
) -> Result<StatusCode, ApiError> {
    terminal::resize(&app, &id, pty, request.cols, request.rows).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn kill(
    State(app): State<Arc<App>>,
    Ids((id, pty)): Ids<(String, String)>,
) -> Result<StatusCode, ApiError> {
    terminal::kill(&app, &id, pty).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Read from the guest only as the client reads: a slow one is left behind by the guest's agent, not by memory here.
fn events(app: &App, terminal: Terminal, first: Bytes) -> Response {
    let events = Events { terminal, heartbeat: app.settings.heartbeat, first: Some(first), ended: false };
    ndjson(Body::from_stream(lines(events)))
}

fn lines(events: Events) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(events, async |mut events| {
        let line = events.next_line().await?;
        Some((Ok(line), events))
    })
}

impl Events {
    async fn next_line(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if self.ended {
            return None;
        }
        let Ok(said) = timeout(self.heartbeat, self.terminal.next()).await else {
            return Some(Bytes::from_static(HEARTBEAT));
        };
        let event = event(&mut self.terminal, said).await;
        self.ended = matches!(event, PtyEvent::PtyExit { .. } | PtyEvent::PtyError { .. });
        Some(line(&event))
    }
}

async fn event(terminal: &mut Terminal, said: Result<Event, TerminalError>) -> PtyEvent {
    match said {
        Ok(Event::Output { seq, data }) => PtyEvent::PtyData { data_b64: BASE64_STANDARD.encode(data), seq },
        Ok(Event::Exited { exit_code }) => PtyEvent::PtyExit { data: exit_code },
        Ok(_) => error(terminal, &TerminalError::Protocol).await,
        Err(failure) => error(terminal, &failure).await,
    }
}

async fn error(terminal: &mut Terminal, failure: &TerminalError) -> PtyEvent {
    PtyEvent::PtyError { message: terminal.explain(failure).await }
}
