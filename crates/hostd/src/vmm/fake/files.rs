//! The file server of a fake guest: the real protocol over a tree in memory, without links, owners and special files.
//!
//! `/slow` is a file that never ends, `/full` a folder without space, and `/broken` one whose files cannot be read to their end.
//! Of `/silent` is told, for ever, that there is nothing to tell; in `/busy` something happens every 45 s.

use super::{Core, stand_still_if_so};
use podflare_wire::codec::{FRAME_PREFIX_LEN, decode, encode_frame};
use podflare_wire::files::{
    Answer, CHUNK_PREFIX_LEN, Content, DATA_LEN_MAX, Entry, Event, EventKind, FRAME_LEN_MAX, Failure, Kind,
    Range, Request, chunk_len, chunk_prefix,
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;

/// What a fake guest has on its disk, by absolute path.
pub(super) type Files = BTreeMap<Vec<u8>, File>;

#[derive(Debug, Clone)]
pub(super) struct File {
    /// `None` for a folder.
    content: Option<Arc<[u8]>>,
    mode: u32,
}

const HOME: &[u8] = b"/root";
const FULL: &[u8] = b"/full/";
const SLOW: &[u8] = b"/slow";
const BROKEN: &[u8] = b"/broken/";
/// The one file in `BROKEN` whose length is not known before.
const BROKEN_UNSIZED: &[u8] = b"/broken/unsized";
const SILENT: &[u8] = b"/silent";
const BUSY: &[u8] = b"/busy";
const BUSY_INTERVAL: Duration = Duration::from_secs(45);

/// Serves one operation.
pub(super) async fn serve(mut stream: DuplexStream, core: &Arc<Core>) {
    stand_still_if_so(core).await;
    let Some(request) = next_request(&mut stream).await else { return };
    let answered = match request {
        Request::List { path, .. } if path == SILENT => {
            tell_forever(&mut stream, &Answer::Entries(Vec::new())).await
        }
        Request::Watch { path, .. } if path == SILENT => {
            send(&mut stream, &Answer::Watching).await;
            tell_forever(&mut stream, &Answer::Events(Vec::new())).await
        }
        Request::Read { path, range } => read(&mut stream, core, absolute(&path), range).await,
        Request::Write { path, mode } => write(&mut stream, core, absolute(&path), mode).await,
        Request::Watch { path, .. } => watch(&mut stream, core, &absolute(&path)).await,
        Request::List { path, depth } => match list(core, &absolute(&path), depth) {
            Ok(entries) => {
                for entries in entries.chunks(100) {
                    send(&mut stream, &Answer::Entries(entries.to_vec())).await;
                }
                Ok(Answer::Listed { truncated: false })
            }
            Err(failure) => Err(failure),
        },
        Request::Stat { path } => entry(core, &absolute(&path)).map(Answer::Entry),
        Request::MakeDirectory { path, mode } => make_directory(core, absolute(&path), mode),
        Request::Move { from, to } => rename(core, &absolute(&from), absolute(&to)),
        Request::GrowRoot { bytes } => grow_root(core, bytes),
        Request::Remove { path, recursive } => remove(core, &absolute(&path), recursive),
    };
    send(&mut stream, &answered.unwrap_or_else(Answer::Failed)).await;
}

async fn next_request(stream: &mut DuplexStream) -> Option<Request> {
    let mut prefix = [0; FRAME_PREFIX_LEN];
    stream.read_exact(&mut prefix).await.ok()?;
    let mut frame = vec![0; (u32::from_le_bytes(prefix) as usize).min(FRAME_LEN_MAX)];
    stream.read_exact(&mut frame).await.ok()?;
    decode(&frame).ok()
}

async fn send(stream: &mut DuplexStream, answer: &Answer) {
    // hostd may have gone.
    stream.write_all(&encode_frame(answer)).await.ok();
}

/// Until hostd has gone.
async fn tell_forever(stream: &mut DuplexStream, answer: &Answer) -> Result<Answer, Failure> {
    while stream.write_all(&encode_frame(answer)).await.is_ok() {}
    Ok(Answer::Done)
}

fn failure(errno: Errno, path: &[u8]) -> Failure {
    Failure { errno: errno.raw_os_error(), context: String::from_utf8_lossy(path).into_owned() }
}

fn absolute(path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") { path.to_vec() } else { [HOME, b"/", path].concat() }
}

fn parent(path: &[u8]) -> &[u8] {
    &path[..path.iter().rposition(|byte| *byte == b'/').unwrap_or(0)]
}

fn is_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
}

fn describe(path: &[u8], file: &File) -> Entry {
    Entry {
        path: path.to_vec(),
        kind: if file.content.is_some() { Kind::File } else { Kind::Directory },
        size: file.content.as_ref().map_or(0, |content| content.len() as u64),
        mode: file.mode,
        uid: 0,
        gid: 0,
        inode: 1,
        modified_ns: 1_700_000_000_000_000_000,
        target: None,
    }
}

fn entry(core: &Core, path: &[u8]) -> Result<Entry, Failure> {
    core.guest().files.get(path).map(|file| describe(path, file)).ok_or_else(|| failure(Errno::NOENT, path))
}

/// Puts a file and its folders into the tree.
fn put(core: &Core, path: Vec<u8>, content: Option<Arc<[u8]>>, mode: u32) -> Result<Entry, Failure> {
    let mut guest = core.guest();
    let mut folder = parent(&path);
    while !folder.is_empty() {
        let made = File { content: None, mode: 0o755 };
        if guest.files.entry(folder.to_vec()).or_insert(made).content.is_some() {
            return Err(failure(Errno::NOTDIR, folder));
        }
        folder = parent(folder);
    }
    let file = File { content, mode };
    let entry = describe(&path, &file);
    guest.files.insert(path.clone(), file);
    drop(guest);
    // Nobody may watch.
    core.file_events.send(Event { kind: EventKind::Create, path, is_directory: false, cookie: 0 }).ok();
    Ok(entry)
}

async fn write(
    stream: &mut DuplexStream,
    core: &Core,
    path: Vec<u8>,
    mode: Option<u32>,
) -> Result<Answer, Failure> {
    let before = core.guest().files.get(&path).cloned();
    if before.as_ref().is_some_and(|before| before.content.is_none()) {
        return Err(failure(Errno::ISDIR, &path));
    }
    let mut content = Vec::new();
    loop {
        let mut prefix = [0; CHUNK_PREFIX_LEN];
        let broken = |_| failure(Errno::IO, &path);
        stream.read_exact(&mut prefix).await.map_err(broken)?;
        let start = content.len();
        match chunk_len(prefix) {
            Some(0) => break,
            len => content.resize(start + len.unwrap_or(0), 0),
        }
        stream.read_exact(&mut content[start..]).await.map_err(broken)?;
        if path.starts_with(FULL) {
            return Err(failure(Errno::NOSPC, &path));
        }
    }
    let mode = mode.unwrap_or(before.map_or(0o644, |before| before.mode));
    put(core, path, Some(content.into()), mode).map(Answer::Entry)
}

/// Its last answer is the chunk of no bytes, which no frame follows.
async fn read(
    stream: &mut DuplexStream,
    core: &Core,
    path: Vec<u8>,
    range: Option<Range>,
) -> Result<Answer, Failure> {
    if path == SLOW {
        let file = File { content: Some(Arc::default()), mode: 0o644 };
        let about = Content { entry: describe(&path, &file), offset: None, len: None };
        send(stream, &Answer::Content(about)).await;
        return std::future::pending().await;
    }
    if path.starts_with(BROKEN) {
        break_off(stream, &path).await;
        return Ok(Answer::Done);
    }
    let entry = entry(core, &path)?;
    let content = core.guest().files.get(&path).and_then(|file| file.content.clone());
    let content = content.ok_or_else(|| failure(Errno::ISDIR, &path))?;
    let size = content.len() as u64;
    let part = match range {
        None => 0..size,
        Some(Range::From { first }) => first..size,
        Some(Range::Between { first, last }) => first..size.min(last.saturating_add(1)),
        Some(Range::Suffix { len }) => size.saturating_sub(len)..size,
    };
    if range.is_some() && part.is_empty() {
        return Err(failure(Errno::RANGE, &path));
    }
    let offset = range.map(|_| part.start);
    send(stream, &Answer::Content(Content { entry, offset, len: Some(part.end - part.start) })).await;
    let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    for chunk in content[index(part.start)..index(part.end)].chunks(DATA_LEN_MAX) {
        stream.write_all(&chunk_prefix(chunk.len())).await.ok();
        stream.write_all(chunk).await.ok();
    }
    stream.write_all(&chunk_prefix(0)).await.ok();
    // What would be sent now is read by nobody.
    Ok(Answer::Done)
}

/// Sends one chunk of two, and nothing more.
async fn break_off(stream: &mut DuplexStream, path: &[u8]) {
    let file = File { content: Some(Arc::default()), mode: 0o644 };
    let len = (path != BROKEN_UNSIZED).then_some(2 * DATA_LEN_MAX as u64);
    let about = Content { entry: describe(path, &file), offset: None, len };
    send(stream, &Answer::Content(about)).await;
    stream.write_all(&chunk_prefix(DATA_LEN_MAX)).await.ok();
    stream.write_all(&[b'x'; DATA_LEN_MAX]).await.ok();
    stream.shutdown().await.ok();
}

async fn watch(stream: &mut DuplexStream, core: &Core, path: &[u8]) -> Result<Answer, Failure> {
    if path == BUSY {
        send(stream, &Answer::Watching).await;
        let event = Event { kind: EventKind::Modify, path: path.to_vec(), is_directory: true, cookie: 0 };
        loop {
            sleep(BUSY_INTERVAL).await;
            send(stream, &Answer::Events(vec![event.clone()])).await;
        }
    }
    entry(core, path)?;
    let mut events = core.file_events.subscribe();
    send(stream, &Answer::Watching).await;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            // hostd has nothing more to say: it has gone.
            _ = stream.read_u8() => return Ok(Answer::Done),
        };
        let event = match event {
            Ok(event) if is_below(&event.path, path) => event,
            Ok(_) => continue,
            Err(RecvError::Lagged(_)) => {
                Event { kind: EventKind::Overflow, path: path.to_vec(), is_directory: false, cookie: 0 }
            }
            Err(RecvError::Closed) => return Ok(Answer::Done),
        };
        send(stream, &Answer::Events(vec![event])).await;
    }
}

fn list(core: &Core, path: &[u8], depth: u32) -> Result<Vec<Entry>, Failure> {
    if entry(core, path)?.kind != Kind::Directory {
        return Err(failure(Errno::NOTDIR, path));
    }
    let is_near = |other: &[u8]| {
        let below = other.len().checked_sub(path.len() + 1).map(|len| &other[other.len() - len..]);
        below.is_some_and(|below| below.iter().filter(|byte| **byte == b'/').count() < depth as usize)
    };
    let guest = core.guest();
    let below = guest.files.iter().filter(|(other, _)| is_below(other, path) && is_near(other));
    Ok(below.map(|(other, file)| describe(other, file)).collect())
}

fn make_directory(core: &Core, path: Vec<u8>, mode: Option<u32>) -> Result<Answer, Failure> {
    let found = core.guest().files.get(&path).map(|file| (file.content.is_some(), describe(&path, file)));
    match found {
        Some((true, _)) => Err(failure(Errno::EXIST, &path)),
        Some((false, entry)) => Ok(Answer::Entry(entry)),
        None => put(core, path, None, mode.unwrap_or(0o755)).map(Answer::Entry),
    }
}

fn rename(core: &Core, from: &[u8], to: Vec<u8>) -> Result<Answer, Failure> {
    let moved = core.guest().files.remove(from).ok_or_else(|| failure(Errno::NOENT, from))?;
    put(core, to, moved.content, moved.mode).map(Answer::Entry)
}

fn grow_root(core: &Core, bytes: u64) -> Result<Answer, Failure> {
    let mut guest = core.guest();
    if guest.disk_bytes < bytes || core.world.refuses_growth.load(Ordering::SeqCst) {
        return Err(failure(Errno::TIMEDOUT, b"the disk"));
    }
    guest.file_system_bytes = bytes;
    Ok(Answer::Done)
}

fn remove(core: &Core, path: &[u8], recursive: bool) -> Result<Answer, Failure> {
    entry(core, path)?;
    let mut guest = core.guest();
    let holds_more = guest.files.keys().any(|other| is_below(other, path));
    if holds_more && !recursive {
        return Err(failure(Errno::NOTEMPTY, path));
    }
    guest.files.retain(|other, _| other != path && !is_below(other, path));
    Ok(Answer::Done)
}
