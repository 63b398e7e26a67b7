//! What guests tell of files, as the API tells it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use podflare_api::file::{FileEntry, FileEvent, FileEventKind, FileKind};
use podflare_wire::files::{Entry, Event, EventKind, Kind};

/// What a path in a query is made of.
const IN_QUERY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub(super) fn view(entry: &Entry) -> FileEntry {
    let (path, encoded_path) = text(&entry.path);
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    FileEntry {
        path,
        encoded_path,
        name,
        kind: match entry.kind {
            Kind::File => FileKind::File,
            Kind::Directory => FileKind::Directory,
            Kind::Symlink => FileKind::Symlink,
            Kind::Special => FileKind::Special,
        },
        size_bytes: entry.size,
        mode: format!("{:04o}", entry.mode),
        uid: entry.uid,
        gid: entry.gid,
        modified_at_ms: entry.modified_ns.div_euclid(1_000_000),
        target: entry.target.as_ref().map(|target| String::from_utf8_lossy(target).into_owned()),
    }
}

pub(super) fn event(event: &Event) -> FileEvent {
    let (path, encoded_path) = text(&event.path);
    let kind = match event.kind {
        EventKind::Create => FileEventKind::Create,
        EventKind::Modify => FileEventKind::Modify,
        EventKind::CloseWrite => FileEventKind::CloseWrite,
        EventKind::Attributes => FileEventKind::Attributes,
        EventKind::Delete => FileEventKind::Delete,
        EventKind::MovedFrom => FileEventKind::MovedFrom,
        EventKind::MovedTo => FileEventKind::MovedTo,
        EventKind::Overflow => FileEventKind::Overflow,
    };
    FileEvent { kind, path, encoded_path, is_directory: event.is_directory, cookie: event.cookie }
}

/// A path as text, and as a query takes it if text cannot tell it.
fn text(path: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(path) {
        Ok(path) => (path.to_owned(), None),
        Err(_) => (String::from_utf8_lossy(path).into_owned(), Some(encode(path))),
    }
}

fn encode(path: &[u8]) -> String {
    let mut encoded = String::new();
    for part in path.utf8_chunks() {
        encoded.extend(utf8_percent_encode(part.valid(), IN_QUERY));
        for byte in part.invalid() {
            encoded.push_str(percent_encoding::percent_encode_byte(*byte));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_text_comes_back_by_its_encoding() {
        assert_eq!(text("/root/ü".as_bytes()), ("/root/ü".to_owned(), None));
        let (shown, encoded) = text(b"/root/a b\xff+%");
        assert_eq!(shown, "/root/a b\u{fffd}+%");
        assert_eq!(encoded.as_deref(), Some("/root/a%20b%FF%2B%25"));
    }

    #[test]
    fn a_mode_has_four_digits_and_a_time_is_rounded_down() {
        let entry = Entry {
            path: b"/".to_vec(),
            kind: Kind::Directory,
            size: 0,
            mode: 0o755,
            uid: 0,
            gid: 0,
            inode: 2,
            modified_ns: -1,
            target: None,
        };
        let view = view(&entry);
        assert_eq!((view.mode.as_str(), view.modified_at_ms, view.name.as_str()), ("0755", -1, ""));
    }
}
