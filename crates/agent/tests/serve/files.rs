//! The file server: whole files or none, and errors that say what they are.

use crate::client::{Agent, eventually};
use podflare_wire::codec::{FRAME_PREFIX_LEN, decode, encode_frame};
use podflare_wire::files::{
    Answer, CHUNK_PREFIX_LEN, Content, DATA_LEN_MAX, Entry, Event, EventKind, FRAME_LEN_MAX, Kind,
    OPERATIONS_MAX, Range, Request, chunk_len, chunk_prefix,
};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const ERANGE: i32 = 34;
const ENOTEMPTY: i32 = 39;
const EOPNOTSUPP: i32 = 95;

struct Operation(UnixStream);

impl Operation {
    fn begin(agent: &Agent, request: &Request) -> Operation {
        let mut stream = agent.connect_to_files();
        stream.write_all(&encode_frame(request)).unwrap();
        Operation(stream)
    }

    fn answer(&mut self) -> Answer {
        let mut prefix = [0; FRAME_PREFIX_LEN];
        self.0.read_exact(&mut prefix).unwrap();
        let len = u32::from_le_bytes(prefix) as usize;
        assert!(len <= FRAME_LEN_MAX);
        let mut frame = vec![0; len];
        self.0.read_exact(&mut frame).unwrap();
        decode(&frame).unwrap()
    }

    fn send(&mut self, content: &[u8]) {
        for chunk in content.chunks(DATA_LEN_MAX) {
            self.0.write_all(&chunk_prefix(chunk.len())).unwrap();
            self.0.write_all(chunk).unwrap();
        }
    }

    fn end(&mut self) {
        self.0.write_all(&chunk_prefix(0)).unwrap();
    }

    /// Everything up to the end; `None` if it does not come.
    fn content(&mut self) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        loop {
            let mut prefix = [0; CHUNK_PREFIX_LEN];
            self.0.read_exact(&mut prefix).ok()?;
            let start = content.len();
            match chunk_len(prefix).unwrap() {
                0 => return Some(content),
                len => content.resize(start + len, 0),
            }
            self.0.read_exact(&mut content[start..]).unwrap();
        }
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn ask(agent: &Agent, request: &Request) -> Answer {
    Operation::begin(agent, request).answer()
}

fn write(agent: &Agent, path: &[u8], content: &[u8], mode: Option<u32>) -> Answer {
    let mut operation = Operation::begin(agent, &Request::Write { path: path.to_vec(), mode });
    operation.send(content);
    operation.end();
    operation.answer()
}

fn read(agent: &Agent, path: &[u8], range: Option<Range>) -> (Content, Vec<u8>) {
    let mut operation = Operation::begin(agent, &Request::Read { path: path.to_vec(), range });
    let Answer::Content(about) = operation.answer() else { panic!("no content") };
    (about, operation.content().unwrap())
}

fn entry(answer: Answer) -> Entry {
    match answer {
        Answer::Entry(entry) => entry,
        answer => panic!("{answer:?}"),
    }
}

fn errno(answer: &Answer) -> i32 {
    match answer {
        Answer::Failed(failure) => failure.errno,
        answer => panic!("{answer:?}"),
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with("agent.sock"));
    names.sort();
    names
}

/// Bytes that repeat nowhere near.
fn some_content(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 2_654_435_761) >> 13).to_le_bytes()[0]).collect()
}

#[test]
fn a_file_comes_back_as_it_went() {
    let agent = Agent::start();
    for len in [0, 1, DATA_LEN_MAX - 1, DATA_LEN_MAX, DATA_LEN_MAX + 1, 3 * DATA_LEN_MAX + 7, 20_000_000] {
        let content = some_content(len);
        let written = entry(write(&agent, b"new/folder/file", &content, None));
        assert_eq!((written.size, written.mode, written.kind), (len as u64, 0o644, Kind::File));
        assert_eq!(written.path, bytes(&agent.home.path().join("new/folder/file")));
        let (about, read) = read(&agent, b"new/folder/file", None);
        assert_eq!(about.len, Some(len as u64));
        assert!(read == content, "{len} bytes");
    }
    assert_eq!(names(&agent.home.path().join("new/folder")), ["file"]);
}

#[test]
fn a_file_that_is_replaced_keeps_its_mode_unless_told() {
    let agent = Agent::start();
    let path = agent.home.path().join("script");
    std::fs::write(&path, "old").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
    assert_eq!(entry(write(&agent, b"script", b"new", None)).mode, 0o4755);
    assert_eq!(entry(write(&agent, b"script", b"newer", Some(0o600))).mode, 0o600);
    assert_eq!(entry(write(&agent, b"other", b"", Some(0o777))).mode, 0o777);
    assert_eq!(std::fs::read(&path).unwrap(), b"newer");
}

#[test]
fn a_write_that_breaks_off_leaves_nothing_and_the_old_file() {
    let agent = Agent::start();
    let home = agent.home.path();
    std::fs::write(home.join("old"), "old").unwrap();
    for name in ["old", "new"] {
        let request = Request::Write { path: name.into(), mode: None };
        let mut operation = Operation::begin(&agent, &request);
        operation.send(&some_content(1_000_000));
        // Nobody sees it before its end.
        assert_eq!(names(home), ["old"]);
        drop(operation);
    }
    // As many as there may be at once: those before have ended when these are served.
    for _ in 0..OPERATIONS_MAX {
        entry(ask(&agent, &Request::Stat { path: "old".into() }));
    }
    assert_eq!(names(home), ["old"]);
    assert_eq!(std::fs::read(home.join("old")).unwrap(), b"old");
}

#[test]
fn readers_of_a_file_that_is_replaced_see_the_old_or_the_new_one_whole() {
    let agent = Agent::start();
    let path = agent.home.path().join("file");
    std::fs::write(&path, vec![b'a'; 500_000]).unwrap();
    for byte in [b'b', b'c', b'd'] {
        let replacement = vec![byte; 500_000];
        let mut operation = Operation::begin(&agent, &Request::Write { path: "file".into(), mode: None });
        for part in replacement.chunks(100_000) {
            operation.send(part);
            let seen = std::fs::read(&path).unwrap();
            assert!(seen.len() == 500_000 && seen.iter().all(|seen| *seen == byte - 1));
        }
        operation.end();
        entry(operation.answer());
        assert!(std::fs::read(&path).unwrap() == replacement);
    }
}

#[test]
fn a_write_through_a_link_replaces_what_it_points_to() {
    let agent = Agent::start();
    let home = agent.home.path();
    symlink("folder/real", home.join("link")).unwrap();
    let written = entry(write(&agent, b"link", b"content", None));
    assert_eq!(written.path, bytes(&home.join("folder/real")));
    assert_eq!(std::fs::read(home.join("folder/real")).unwrap(), b"content");
    assert!(home.join("link").is_symlink());
    let link = entry(ask(&agent, &Request::Stat { path: "link".into() }));
    assert_eq!((link.kind, link.target), (Kind::Symlink, Some(b"folder/real".to_vec())));
    assert_eq!(read(&agent, b"link", None).1, b"content");
    symlink("circle", home.join("circle")).unwrap();
    assert_eq!(errno(&write(&agent, b"circle", b"", None)), 40);
}

#[test]
fn a_part_of_a_file_may_be_read() {
    let agent = Agent::start();
    let content = some_content(300_000);
    write(&agent, b"file", &content, None);
    for (range, offset, expected) in [
        (Range::From { first: 299_990 }, 299_990, &content[299_990..]),
        (Range::Between { first: 10, last: 200_000 }, 10, &content[10..=200_000]),
        (Range::Suffix { len: 100_000 }, 200_000, &content[200_000..]),
    ] {
        let (about, read) = read(&agent, b"file", Some(range));
        assert_eq!((about.offset, about.len), (Some(offset), Some(expected.len() as u64)));
        assert_eq!(about.entry.size, 300_000);
        assert!(read == expected, "{range:?}");
    }
    let beyond = Request::Read { path: "file".into(), range: Some(Range::From { first: 300_000 }) };
    assert_eq!(errno(&ask(&agent, &beyond)), ERANGE);
}

#[test]
fn a_file_without_a_size_is_read_whole() {
    let agent = Agent::start();
    let (about, content) = read(&agent, b"/proc/self/status", Some(Range::From { first: 3 }));
    assert!(content.starts_with(b"Name:"));
    assert_eq!((about.offset, about.len), (None, Some(content.len() as u64)));
    // One that is longer than a chunk.
    let (about, content) = read(&agent, b"/proc/kallsyms", None);
    assert!(content.len() > DATA_LEN_MAX);
    assert_eq!((about.len, content.last()), (None, Some(&b'\n')));
}

#[test]
fn a_file_that_shrinks_while_it_is_read_has_no_end() {
    let agent = Agent::start();
    // More than is on its way at once.
    write(&agent, b"file", &some_content(20_000_000), None);
    let mut operation = Operation::begin(&agent, &Request::Read { path: "file".into(), range: None });
    assert!(matches!(operation.answer(), Answer::Content(Content { len: Some(20_000_000), .. })));
    std::fs::write(agent.home.path().join("file"), "short").unwrap();
    assert_eq!(operation.content(), None);
}

#[test]
fn every_error_is_linuxs_own() {
    let agent = Agent::start();
    let home = agent.home.path();
    std::fs::create_dir(home.join("folder")).unwrap();
    std::fs::write(home.join("folder/file"), "").unwrap();
    let pipe = home.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let path = |path: &str| path.as_bytes().to_vec();
    let read = |of: &str| Request::Read { path: path(of), range: None };
    for (request, expected) in [
        (read("missing"), ENOENT),
        (read("folder"), EISDIR),
        (read("folder/file/x"), ENOTDIR),
        (read("pipe"), EOPNOTSUPP),
        (read("/dev/zero"), EOPNOTSUPP),
        (read(""), 22),
        (read("nul\0inside"), 22),
        (Request::Write { path: path("folder"), mode: None }, EISDIR),
        (Request::Write { path: path("pipe"), mode: None }, EOPNOTSUPP),
        (Request::Write { path: path("folder/file/x"), mode: None }, ENOTDIR),
        (Request::Write { path: path("new/"), mode: None }, EISDIR),
        (Request::Stat { path: path("missing") }, ENOENT),
        (Request::List { path: path("folder/file"), depth: 1 }, ENOTDIR),
        (Request::MakeDirectory { path: path("folder/file"), mode: None }, EEXIST),
        (Request::Move { from: path("missing"), to: path("x") }, ENOENT),
        (Request::Move { from: path("pipe"), to: path("folder") }, EISDIR),
        (Request::Remove { path: path("folder"), recursive: false }, ENOTEMPTY),
        (Request::Remove { path: path("missing"), recursive: true }, ENOENT),
        (Request::Remove { path: path("/"), recursive: true }, 16),
        (Request::Watch { path: path("missing"), recursive: false }, ENOENT),
    ] {
        assert_eq!(errno(&ask(&agent, &request)), expected, "{request:?}");
    }
    assert_eq!(names(home), ["folder", "pipe"]);
}

#[test]
fn a_failure_is_told_to_one_who_is_still_sending() {
    let agent = Agent::start();
    let mut operation = Operation::begin(&agent, &Request::Write { path: "no/../.".into(), mode: None });
    // Far more than is on its way at once.
    operation.send(&some_content(10_000_000));
    operation.end();
    assert!(matches!(operation.answer(), Answer::Failed(_)));
}

#[test]
fn a_listing_goes_as_deep_as_it_is_told_and_follows_no_links() {
    let agent = Agent::start();
    let home = agent.home.path();
    for (path, content) in [("tree/b/deep/file", "1"), ("tree/a", "22"), ("tree/b/c", "")] {
        write(&agent, path.as_bytes(), content.as_bytes(), None);
    }
    symlink(".", home.join("tree/circle")).unwrap();
    let list = |depth| {
        let mut operation = Operation::begin(&agent, &Request::List { path: "tree".into(), depth });
        let mut paths = Vec::new();
        loop {
            match operation.answer() {
                Answer::Entries(entries) => paths.extend(entries.into_iter().map(|entry| {
                    let path = String::from_utf8(entry.path).unwrap();
                    path.strip_prefix(&format!("{}/tree/", home.display())).unwrap().to_owned()
                })),
                Answer::Listed { truncated } => {
                    assert!(!truncated);
                    return paths;
                }
                answer => panic!("{answer:?}"),
            }
        }
    };
    assert_eq!(list(1), ["a", "b", "circle"]);
    assert_eq!(list(0), list(1));
    assert_eq!(list(2), ["a", "b", "b/c", "b/deep", "circle"]);
    assert_eq!(list(u32::MAX), ["a", "b", "b/c", "b/deep", "b/deep/file", "circle"]);
}

#[test]
fn an_empty_folder_is_listed_without_an_empty_message() {
    let agent = Agent::start();
    ask(&agent, &Request::MakeDirectory { path: "empty".into(), mode: None });
    let listed = ask(&agent, &Request::List { path: "empty".into(), depth: 1 });
    assert_eq!(listed, Answer::Listed { truncated: false });
}

#[test]
fn a_name_that_is_not_unicode_is_a_name() {
    let agent = Agent::start();
    entry(write(&agent, b"odd/\xff\n\xe2\x82", b"content", None));
    assert_eq!(read(&agent, b"odd/\xff\n\xe2\x82", None).1, b"content");
    let mut operation = Operation::begin(&agent, &Request::List { path: "odd".into(), depth: 1 });
    let Answer::Entries(entries) = operation.answer() else { panic!("no entries") };
    assert!(entries[0].path.ends_with(b"odd/\xff\n\xe2\x82"));
}

#[test]
fn the_tree_is_changed_as_mkdir_mv_and_rm_do() {
    let agent = Agent::start();
    let home = agent.home.path();
    let make = |mode| Request::MakeDirectory { path: "a/b/c".into(), mode };
    assert_eq!(entry(ask(&agent, &make(Some(0o2770)))).mode, 0o2770);
    assert_eq!(entry(ask(&agent, &make(Some(0o700)))).mode, 0o2770, "one that is there stays as it is");
    write(&agent, b"a/file", b"content", None);
    let moved = ask(&agent, &Request::Move { from: "a/file".into(), to: "new/place".into() });
    assert_eq!(entry(moved).path, bytes(&home.join("new/place")));
    assert_eq!(std::fs::read(home.join("new/place")).unwrap(), b"content");
    symlink("new", home.join("link")).unwrap();
    for (path, recursive) in [("link", true), ("a/b/c", false), ("a", true)] {
        assert_eq!(ask(&agent, &Request::Remove { path: path.into(), recursive }), Answer::Done);
    }
    assert_eq!(names(home), ["new"]);
    assert_eq!(names(&home.join("new")), ["place"]);
}

/// Events until one of this kind and path, paths below the home.
fn events_until(agent: &Agent, operation: &mut Operation, kind: EventKind, path: &str) -> Vec<Event> {
    let mut seen = Vec::new();
    loop {
        let Answer::Events(events) = operation.answer() else { panic!("no events, but {seen:?}") };
        seen.extend(events);
        let path = bytes(&agent.home.path().join(path));
        if seen.iter().any(|event| event.kind == kind && event.path == path) {
            return seen;
        }
    }
}

#[test]
fn a_watch_tells_what_happens_also_in_folders_that_are_new() {
    let agent = Agent::start();
    let home = agent.home.path();
    std::fs::create_dir_all(home.join("tree/old")).unwrap();
    let request = Request::Watch { path: "tree".into(), recursive: true };
    let mut operation = Operation::begin(&agent, &request);
    assert_eq!(operation.answer(), Answer::Watching);
    std::fs::write(home.join("tree/old/file"), "x").unwrap();
    events_until(&agent, &mut operation, EventKind::CloseWrite, "tree/old/file");
    std::fs::create_dir_all(home.join("tree/new/folder")).unwrap();
    std::fs::write(home.join("tree/new/folder/file"), "x").unwrap();
    events_until(&agent, &mut operation, EventKind::Create, "tree/new/folder/file");
    std::fs::rename(home.join("tree/new"), home.join("tree/moved")).unwrap();
    let seen = events_until(&agent, &mut operation, EventKind::MovedTo, "tree/moved");
    let cookies: Vec<u32> = seen.iter().filter(|event| event.cookie != 0).map(|event| event.cookie).collect();
    assert_eq!(cookies.len(), 2);
    assert_eq!(cookies[0], cookies[1]);
    std::fs::write(home.join("tree/moved/folder/later"), "").unwrap();
    events_until(&agent, &mut operation, EventKind::Create, "tree/moved/folder/later");
    std::fs::remove_dir_all(home.join("tree")).unwrap();
    events_until(&agent, &mut operation, EventKind::Delete, "tree");
    assert_eq!(operation.answer(), Answer::Done, "what is gone is no longer watched");
}

#[test]
fn a_watch_of_one_file_tells_of_it_alone() {
    let agent = Agent::start();
    let home = agent.home.path();
    std::fs::write(home.join("file"), "").unwrap();
    let mut operation = Operation::begin(&agent, &Request::Watch { path: "file".into(), recursive: false });
    assert_eq!(operation.answer(), Answer::Watching);
    std::fs::write(home.join("other"), "").unwrap();
    std::fs::write(home.join("file"), "x").unwrap();
    let seen = events_until(&agent, &mut operation, EventKind::CloseWrite, "file");
    assert!(seen.iter().all(|event| event.path == bytes(&home.join("file"))), "{seen:?}");
}

#[test]
fn code_runs_while_files_are_written_and_read() {
    let agent = Agent::start();
    let mut client = agent.client();
    let mut stalled: Vec<Operation> = (0..OPERATIONS_MAX)
        .map(|i| {
            let request = Request::Write { path: format!("file-{i}").into(), mode: None };
            let mut operation = Operation::begin(&agent, &request);
            operation.send(b"so far");
            operation
        })
        .collect();
    assert_eq!(client.eval("print(6 * 7)"), "42\n");
    for operation in &mut stalled {
        operation.end();
        assert_eq!(entry(operation.answer()).size, 6);
    }
}

#[test]
fn an_idle_file_server_has_no_thread() {
    let agent = Agent::start();
    agent.client();
    let threads = || {
        let status = agent.process_file("status");
        let line = status.lines().find(|line| line.starts_with("Threads:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
    };
    let before = threads();
    let request = Request::Write { path: "file".into(), mode: None };
    let mut operation = Operation::begin(&agent, &request);
    operation.send(b"x");
    eventually(|| (threads() == before + 1).then_some(()));
    operation.end();
    entry(operation.answer());
    drop(operation);
    eventually(|| (threads() == before).then_some(()));
}

#[test]
fn what_is_no_request_is_closed() {
    let agent = Agent::start();
    for nonsense in [&b"\xff\xff\xff\xff"[..], b"\x01\x00\x00\x00\xff", b"\x00\x00\x00\x00"] {
        let mut stream = agent.connect_to_files();
        stream.write_all(nonsense).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    entry(write(&agent, b"file", b"content", None));
}
