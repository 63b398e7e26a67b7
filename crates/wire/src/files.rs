//! hostd ↔ the agent's file server: one vsock stream for each operation.
//!
//! hostd connects to [`FILES_PORT`] and sends one frame with a [`Request`]; the agent answers with frames of
//! [`Answer`], and either side closes when it has all that it wants. A file's content travels after the request
//! (`Write`) or after `Answer::Content` (`Read`) in chunks: `u32` length (little endian, at most [`DATA_LEN_MAX`]), then so
//! many bytes. A chunk of no bytes is the end: without it, what has arrived is not the whole, and a write has no effect. Once
//! content has begun no answer follows in its place: a file that cannot be read on ends without its end.
//!
//! Nothing of this knows of renewals: hostd opens such streams to sandboxes that have confirmed theirs. Paths are bytes, as
//! Linux has them; relative ones start in the home of the sandbox's user.

use serde::{Deserialize, Serialize};

/// The file server's vsock port.
pub const FILES_PORT: u32 = 5556;

/// The longest path, in bytes; Linux takes no longer one.
pub const PATH_LEN_MAX: usize = 4095;

/// The most bytes of content in one chunk.
pub const DATA_LEN_MAX: usize = 64 * 1024;

/// Bytes of a chunk's length.
pub const CHUNK_PREFIX_LEN: usize = 4;

/// The longest frame, in either direction: a request with two paths, or what [`BATCH_LEN`] allows.
pub const FRAME_LEN_MAX: usize = 64 * 1024;

/// Entries or events in one frame take about so many bytes, with room for a long one that goes over it.
pub const BATCH_LEN: usize = 32 * 1024;

/// Entries in one listing.
pub const LIST_ENTRIES_MAX: usize = 100_000;

/// How deep a listing goes.
pub const LIST_DEPTH_MAX: u32 = 1024;

/// Folders that one operation may watch.
pub const WATCHES_MAX: usize = 4096;

/// File operations at once in one guest.
pub const OPERATIONS_MAX: usize = 32;

/// hostd → agent, once for each stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Answered with `Content` and chunks.
    Read { path: Vec<u8>, range: Option<Range> },
    /// Followed by chunks; answered with `Entry` when the file is in its place. Parents are made. Without a mode, a
    /// file that is replaced keeps its own.
    Write { path: Vec<u8>, mode: Option<u32> },
    /// Answered with `Entry`, of a symbolic link itself.
    Stat { path: Vec<u8> },
    /// Answered with `Entries`, as often as it takes, then `Listed`.
    List { path: Vec<u8>, depth: u32 },
    /// Answered with `Entry`. Parents are made, and one that exists is success.
    MakeDirectory { path: Vec<u8>, mode: Option<u32> },
    /// Answered with `Entry`, as rename(2) does it.
    Move { from: Vec<u8>, to: Vec<u8> },
    /// Answered with `Done`.
    Remove { path: Vec<u8>, recursive: bool },
    /// Waits until the root disk has so many bytes, and grows its file system to as many. Answered with `Done`.
    GrowRoot { bytes: u64 },
    /// Answered with `Watching`, then `Events`, until hostd closes; `Done` if what is watched is gone.
    Watch { path: Vec<u8>, recursive: bool },
}

/// A part of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Range {
    From { first: u64 },
    Between { first: u64, last: u64 },
    Suffix { len: u64 },
}

/// agent → hostd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Content(Content),
    Entry(Entry),
    /// One at least, as are events: what tells nothing could be told for ever.
    Entries(Vec<Entry>),
    /// All entries have been sent, or `LIST_ENTRIES_MAX` of them.
    Listed {
        truncated: bool,
    },
    Watching,
    Events(Vec<Event>),
    Done,
    /// The operation had no effect, but for a recursive removal that was under way.
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub entry: Entry,
    /// Where the content begins in the file, if a range was asked for and applies.
    pub offset: Option<u64>,
    /// Bytes that follow. `None` if nobody knows: files of /proc have no size.
    pub len: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub size: u64,
    /// Permissions with the set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub inode: u64,
    /// Nanoseconds since 1970-01-01 UTC.
    pub modified_ns: i64,
    /// Of a symbolic link.
    pub target: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    /// A pipe, a socket or a device.
    Special,
}

/// Something happened to a file, as inotify(7) tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub kind: EventKind,
    pub path: Vec<u8>,
    pub is_directory: bool,
    /// Joins the two events of a move; 0 for all others.
    pub cookie: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    Create,
    Modify,
    /// A file that was open for writing has been closed.
    CloseWrite,
    /// Permissions, owner or times.
    Attributes,
    Delete,
    MovedFrom,
    MovedTo,
    /// Events were lost, or there are more folders than can be watched: only a new look tells what there is.
    Overflow,
}

/// Why an operation was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The number of Linux's error.
    pub errno: i32,
    /// What was tried, and with what.
    pub context: String,
}

/// What stands before a chunk of so many bytes.
pub fn chunk_prefix(len: usize) -> [u8; CHUNK_PREFIX_LEN] {
    debug_assert!(len <= DATA_LEN_MAX, "a chunk has at most {DATA_LEN_MAX} bytes");
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

/// The length of the chunk that follows, unless it is longer than any may be.
pub fn chunk_len(prefix: [u8; CHUNK_PREFIX_LEN]) -> Option<usize> {
    let len = u32::from_le_bytes(prefix) as usize;
    (len <= DATA_LEN_MAX).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};
    use proptest::prelude::*;

    #[test]
    fn a_chunk_is_as_long_as_it_says_up_to_the_limit() {
        assert_eq!(chunk_len(chunk_prefix(DATA_LEN_MAX)), Some(DATA_LEN_MAX));
        assert_eq!(chunk_len(chunk_prefix(0)), Some(0));
        assert_eq!(chunk_len([1, 0, 1, 0]), None);
        assert_eq!(chunk_len([255; 4]), None);
    }

    #[test]
    fn the_longest_request_fits_into_a_frame() {
        let path = vec![b'x'; PATH_LEN_MAX];
        let request = Request::Move { from: path.clone(), to: path };
        assert!(encode(&request).len() <= FRAME_LEN_MAX);
    }

    #[test]
    fn a_full_batch_with_one_more_long_entry_fits_into_a_frame() {
        let path = vec![b'x'; PATH_LEN_MAX];
        let entry = Entry {
            path: path.clone(),
            kind: Kind::Symlink,
            size: u64::MAX,
            mode: u32::MAX,
            uid: u32::MAX,
            gid: u32::MAX,
            inode: u64::MAX,
            modified_ns: i64::MIN,
            target: Some(path),
        };
        assert!(BATCH_LEN + encode(&entry).len() + 16 <= FRAME_LEN_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            drop(decode::<Request>(&bytes));
            drop(decode::<Answer>(&bytes));
        }
    }
}
