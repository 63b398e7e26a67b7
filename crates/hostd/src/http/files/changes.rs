//! Folders made, entries moved and removed.

use super::super::error::ApiError;
use super::super::path::Ids;
use super::super::sandboxes::Timed;
use super::query::Query;
use super::{ask_for_entry, guest_since};
use crate::app::App;
use crate::phases::Phases;
use crate::sandbox::files::{FileError, Operation};
use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use podflare_api::file::FileEntry;
use podflare_wire::files::{Answer, Request};
use std::sync::Arc;
use std::time::Instant;

pub(in super::super) async fn make_directory(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    query: Query,
) -> Result<Timed<FileEntry>, ApiError> {
    let request = Request::MakeDirectory { path: query.path("path")?, mode: query.mode()? };
    ask_for_entry(&app, &id, &request).await
}

pub(in super::super) async fn rename(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    query: Query,
) -> Result<Timed<FileEntry>, ApiError> {
    let request = Request::Move { from: query.path("from")?, to: query.path("to")? };
    ask_for_entry(&app, &id, &request).await
}

pub(in super::super) async fn remove(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    query: Query,
) -> Result<(Extension<Phases>, StatusCode), ApiError> {
    let begun = Instant::now();
    let request = Request::Remove { path: query.path("path")?, recursive: query.flag("recursive")? };
    match Operation::begin(&app, &id, &request).await?.answer().await? {
        Answer::Done => Ok((Extension(guest_since(begun)), StatusCode::NO_CONTENT)),
        _ => Err(FileError::Protocol.into()),
    }
}
