//! Listings. They are written as the guest tells them, so that a long one is never whole in memory.

use super::super::error::ApiError;
use super::super::path::Ids;
use super::query::Query;
use super::{entry, guest_since};
use crate::app::App;
use crate::sandbox::files::{FileError, Operation};
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use podflare_wire::files::{Answer, Entry, LIST_ENTRIES_MAX, Request};
use std::sync::Arc;
use std::time::Instant;

pub(in super::super) async fn list(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    query: Query,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let depth = query.number("depth")?.unwrap_or(1);
    let request = Request::List { path: query.path("path")?, depth };
    let mut operation = Operation::begin(&app, &id, &request).await?;
    // A failure is the first answer.
    let first = operation.answer().await?;
    let headers = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let body = Body::from_stream(text(Listing::Begun(operation, first)));
    Ok((headers, Extension(guest_since(begun)), body).into_response())
}

/// How far a listing has been written.
enum Listing {
    Begun(Operation, Answer),
    /// So many entries have been.
    Open(Operation, usize),
    Ended,
}

fn text(listing: Listing) -> impl Stream<Item = Result<Bytes, FileError>> {
    stream::try_unfold(listing, async |listing| {
        let (operation, answer, written, mut text) = match listing {
            Listing::Begun(operation, first) => (operation, first, 0, b"{\"entries\":[".to_vec()),
            Listing::Open(mut operation, written) => {
                let answer = operation.answer().await?;
                (operation, answer, written, Vec::new())
            }
            Listing::Ended => return Ok(None),
        };
        let next = match answer {
            Answer::Entries(entries) if written + entries.len() <= LIST_ENTRIES_MAX => {
                write_entries(&entries, written, &mut text)?;
                Listing::Open(operation, written + entries.len())
            }
            Answer::Listed { truncated } => {
                text.extend_from_slice(format!("],\"truncated\":{truncated}}}").as_bytes());
                Listing::Ended
            }
            _ => return Err(FileError::Protocol),
        };
        Ok(Some((Bytes::from(text), next)))
    })
}

fn write_entries(entries: &[Entry], written: usize, text: &mut Vec<u8>) -> Result<(), FileError> {
    for (index, entry) in entries.iter().enumerate() {
        if written + index > 0 {
            text.push(b',');
        }
        serde_json::to_writer(&mut *text, &entry::view(entry)).map_err(|_| FileError::Protocol)?;
    }
    Ok(())
}
