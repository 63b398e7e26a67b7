//! Files of a sandbox: whole ones in and out, and the pieces of the tree.

pub(super) mod changes;
mod entry;
pub(super) mod list;
pub(super) mod query;
mod range;
pub(super) mod watch;

use super::body::within_time;
use super::error::ApiError;
use super::path::Ids;
use super::sandboxes::Timed;
use crate::app::App;
use crate::phases::Phases;
use crate::sandbox::files::{FileError, Operation};
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream::{self, Stream};
use podflare_api::file::FileEntry;
use podflare_wire::files::{Answer, Content, Entry, Request as FileRequest};
use query::Query;
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Linux's name of an error, and what it is in HTTP.
pub(super) fn status_of_errno(errno: Errno) -> (String, StatusCode) {
    let (name, status) = match errno {
        Errno::NOENT => ("ENOENT", StatusCode::NOT_FOUND),
        Errno::ISDIR => ("EISDIR", StatusCode::CONFLICT),
        Errno::NOTDIR => ("ENOTDIR", StatusCode::CONFLICT),
        Errno::EXIST => ("EEXIST", StatusCode::CONFLICT),
        Errno::NOTEMPTY => ("ENOTEMPTY", StatusCode::CONFLICT),
        Errno::XDEV => ("EXDEV", StatusCode::CONFLICT),
        Errno::BUSY => ("EBUSY", StatusCode::CONFLICT),
        Errno::TXTBSY => ("ETXTBSY", StatusCode::CONFLICT),
        Errno::OPNOTSUPP => ("EOPNOTSUPP", StatusCode::CONFLICT),
        Errno::ACCESS => ("EACCES", StatusCode::FORBIDDEN),
        Errno::PERM => ("EPERM", StatusCode::FORBIDDEN),
        Errno::ROFS => ("EROFS", StatusCode::FORBIDDEN),
        Errno::INVAL => ("EINVAL", StatusCode::BAD_REQUEST),
        Errno::NAMETOOLONG => ("ENAMETOOLONG", StatusCode::BAD_REQUEST),
        Errno::LOOP => ("ELOOP", StatusCode::BAD_REQUEST),
        Errno::RANGE => ("ERANGE", StatusCode::RANGE_NOT_SATISFIABLE),
        Errno::NOSPC => ("ENOSPC", StatusCode::INSUFFICIENT_STORAGE),
        Errno::DQUOT => ("EDQUOT", StatusCode::INSUFFICIENT_STORAGE),
        Errno::FBIG => ("EFBIG", StatusCode::INSUFFICIENT_STORAGE),
        Errno::MFILE => ("EMFILE", StatusCode::SERVICE_UNAVAILABLE),
        Errno::NFILE => ("ENFILE", StatusCode::SERVICE_UNAVAILABLE),
        Errno::NOMEM => ("ENOMEM", StatusCode::SERVICE_UNAVAILABLE),
        Errno::IO => ("EIO", StatusCode::INTERNAL_SERVER_ERROR),
        other => return (format!("errno {}", other.raw_os_error()), StatusCode::INTERNAL_SERVER_ERROR),
    };
    (name.to_owned(), status)
}

/// Sends a request that one entry answers.
async fn ask_for_entry(app: &App, id: &str, request: &FileRequest) -> Result<Timed<FileEntry>, ApiError> {
    let begun = Instant::now();
    match Operation::begin(app, id, request).await?.answer().await? {
        Answer::Entry(entry) => Ok(told(&entry, begun)),
        _ => Err(FileError::Protocol.into()),
    }
}

fn told(entry: &Entry, begun: Instant) -> Timed<FileEntry> {
    (Extension(guest_since(begun)), Json(entry::view(entry)))
}

fn guest_since(begun: Instant) -> Phases {
    Phases::default().with("guest", begun.elapsed())
}

pub(super) async fn stat(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    query: Query,
) -> Result<Timed<FileEntry>, ApiError> {
    ask_for_entry(&app, &id, &FileRequest::Stat { path: query.path("path")? }).await
}

/// The body is the file. It is read as fast as the guest writes it, and is never whole in memory.
pub(super) async fn upload(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    query: Query,
    request: Request,
) -> Result<Timed<FileEntry>, ApiError> {
    let begun = Instant::now();
    let write = FileRequest::Write { path: query.path("path")?, mode: query.mode()? };
    let operation = Operation::begin(&app, &id, &write).await?;
    let entry = operation.write(within_time(request.into_body())).await?;
    Ok(told(&entry, begun))
}

pub(super) async fn download(
    State(app): State<Arc<App>>,
    Ids(id): Ids<String>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let request = FileRequest::Read { path: query.path("path")?, range: range::asked_for(&headers) };
    let mut operation = Operation::begin(&app, &id, &request).await?;
    let Answer::Content(content) = operation.answer().await? else {
        return Err(FileError::Protocol.into());
    };
    let status = if content.offset.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let headers = headers_of(&content)?;
    let body = Body::from_stream(content_of(operation, content.len));
    Ok((status, headers, Extension(guest_since(begun)), body).into_response())
}

fn headers_of(content: &Content) -> Result<HeaderMap, FileError> {
    let Content { entry, offset, len } = content;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let mut put = |name, text: String| {
        // Digits and a few ASCII signs.
        headers.insert(name, HeaderValue::try_from(text).map_err(|_| FileError::Protocol)?);
        Ok::<(), FileError>(())
    };
    put(ETAG, format!("\"{:x}-{:x}-{:x}\"", entry.inode, entry.modified_ns, entry.size))?;
    // HTTP's dates end with the year 9999.
    let modified_s = u64::try_from(entry.modified_ns / 1_000_000_000).unwrap_or_default();
    put(LAST_MODIFIED, httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(modified_s)))?;
    if let Some(len) = len {
        put(CONTENT_LENGTH, len.to_string())?;
    }
    if let (Some(first), Some(len)) = (offset, len) {
        let last = first.checked_add(*len).and_then(|end| end.checked_sub(1)).ok_or(FileError::Protocol)?;
        put(CONTENT_RANGE, format!("bytes {first}-{last}/{}", entry.size))?;
    }
    Ok(headers)
}

/// A file's bytes as the client takes them, as many as were announced.
fn content_of(operation: Operation, len: Option<u64>) -> impl Stream<Item = Result<Bytes, FileError>> {
    stream::try_unfold((operation, len), async |(mut operation, mut left)| {
        let Some(bytes) = operation.content().await? else {
            return if left.unwrap_or(0) == 0 { Ok(None) } else { Err(FileError::Protocol) };
        };
        if let Some(left) = &mut left {
            *left = left.checked_sub(bytes.len() as u64).ok_or(FileError::Protocol)?;
        }
        Ok(Some((bytes, (operation, left))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use podflare_wire::files::Kind;

    fn content(modified_ns: i64) -> Content {
        let entry = Entry {
            path: b"/root/a".to_vec(),
            kind: Kind::File,
            size: 10,
            mode: 0o644,
            uid: 0,
            gid: 0,
            inode: 12,
            modified_ns,
            target: None,
        };
        Content { entry, offset: Some(2), len: Some(3) }
    }

    #[test]
    fn a_part_says_which_it_is() {
        let headers = headers_of(&content(1_700_000_000_123_456_789)).unwrap();
        assert_eq!(headers["content-range"], "bytes 2-4/10");
        assert_eq!(headers["content-length"], "3");
        assert_eq!(headers["last-modified"], "Tue, 14 Nov 2023 22:13:20 GMT");
        assert_eq!(headers["etag"], "\"c-17979cfe3d85cd15-a\"");
    }

    #[test]
    fn any_time_of_a_guest_is_a_date() {
        for modified_ns in [i64::MIN, -1, 0, i64::MAX] {
            headers_of(&content(modified_ns)).unwrap();
        }
        let hostile = Content { offset: Some(u64::MAX), len: Some(u64::MAX), ..content(0) };
        assert!(headers_of(&hostile).is_err());
    }
}
