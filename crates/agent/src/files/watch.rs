//! What happens to files, as inotify(7) tells it, until hostd closes the connection.

use super::path::shown;
use super::peer::Peer;
use super::{Context, Outcome, Stop};
use podflare_wire::codec::encode;
use podflare_wire::files::{Answer, BATCH_LEN, Event, EventKind, WATCHES_MAX};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Bytes of events that are read at a time.
const READ_LEN: usize = 16 * 1024;

/// Entries of one folder that is new that are told one by one.
const FOUND_MAX: usize = 10_000;

const WATCHED: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::EXCL_UNLINK);

pub(super) fn watch(peer: &mut Peer, path: &Path, recursive: bool) -> Outcome<()> {
    let mut watcher = Watcher::new(path, recursive)?;
    peer.send(&Answer::Watching)?;
    let mut buffer = vec![MaybeUninit::uninit(); READ_LEN];
    while watcher.lives() {
        wait(&watcher.inotify, peer)?;
        for batch in batches(watcher.read(&mut buffer)?) {
            peer.send(&Answer::Events(batch))?;
        }
    }
    peer.send(&Answer::Done)
}

/// Waits for events. hostd has nothing more to say: whatever comes of it is the end.
fn wait(inotify: &OwnedFd, peer: &Peer) -> Outcome<()> {
    let mut waited =
        [PollFd::new(inotify, PollFlags::IN), PollFd::from_borrowed_fd(peer.as_fd(), PollFlags::IN)];
    match poll(&mut waited, None) {
        Ok(_) if waited[1].revents().is_empty() => Ok(()),
        Err(Errno::INTR) => Ok(()),
        Ok(_) | Err(_) => Err(Stop::Gone),
    }
}

/// Each fits into a frame.
fn batches(events: Vec<Event>) -> Vec<Vec<Event>> {
    let mut batches = vec![Vec::new()];
    let mut len = 0;
    for event in events {
        if len >= BATCH_LEN {
            batches.push(Vec::new());
            len = 0;
        }
        len += encode(&event).len();
        if let Some(batch) = batches.last_mut() {
            batch.push(event);
        }
    }
    batches.retain(|batch| !batch.is_empty());
    batches
}

struct Watcher {
    inotify: OwnedFd,
    /// What is watched, by its number: folders, or the one file.
    paths: HashMap<i32, PathBuf>,
    root: i32,
    recursive: bool,
}

/// An event as it was read, on its own.
struct Raw {
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<Vec<u8>>,
}

impl Watcher {
    fn new(path: &Path, recursive: bool) -> Outcome<Watcher> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).context(|| shown(path))?;
        let root = inotify::add_watch(&inotify, path, WATCHED).context(|| shown(path))?;
        let mut watcher =
            Watcher { inotify, paths: HashMap::from([(root, path.to_owned())]), root, recursive };
        if recursive {
            watcher.watch_below(path, |_, _| Ok(()))?;
        }
        Ok(watcher)
    }

    fn lives(&self) -> bool {
        self.paths.contains_key(&self.root)
    }

    /// All events that there are now, up to a buffer full of them.
    fn read(&mut self, buffer: &mut [MaybeUninit<u8>]) -> Outcome<Vec<Event>> {
        let mut raw = Vec::new();
        let mut reader = Reader::new(self.inotify.as_fd(), buffer);
        loop {
            match reader.next() {
                Ok(event) => raw.push(Raw {
                    watch: event.wd(),
                    flags: event.events(),
                    cookie: event.cookie(),
                    name: event.file_name().map(|name| name.to_bytes().to_vec()),
                }),
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(_) => return Err(Stop::Gone),
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        let mut events = Vec::new();
        for raw in raw {
            self.take(&raw, &mut events);
        }
        Ok(events)
    }

    fn take(&mut self, raw: &Raw, events: &mut Vec<Event>) {
        if raw.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.overflow(events);
        }
        let Some(watched) = self.paths.get(&raw.watch) else { return };
        let path = match &raw.name {
            Some(name) => watched.join(OsStr::from_bytes(name)),
            None => watched.clone(),
        };
        let is_directory = raw.flags.contains(ReadFlags::ISDIR);
        if let Some(kind) = self.kind(raw) {
            events.push(Event {
                kind,
                path: path.as_os_str().as_bytes().to_vec(),
                is_directory,
                cookie: raw.cookie,
            });
        }
        if raw.flags.contains(ReadFlags::IGNORED) {
            self.paths.remove(&raw.watch);
        }
        if !self.recursive || !is_directory {
            return;
        }
        if raw.flags.contains(ReadFlags::MOVED_FROM) {
            self.forget_below(&path);
        } else if raw.flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            self.add_folder(&path, events);
        }
    }

    /// The root's own end is told by itself, that of all others by their folders.
    fn kind(&self, raw: &Raw) -> Option<EventKind> {
        let is_root_itself = raw.watch == self.root && raw.name.is_none();
        let is_named = raw.name.is_some() || is_root_itself;
        let kinds = [
            (ReadFlags::CREATE, EventKind::Create),
            (ReadFlags::MODIFY, EventKind::Modify),
            (ReadFlags::CLOSE_WRITE, EventKind::CloseWrite),
            (ReadFlags::ATTRIB, EventKind::Attributes),
            (ReadFlags::DELETE, EventKind::Delete),
            (ReadFlags::MOVED_FROM, EventKind::MovedFrom),
            (ReadFlags::MOVED_TO, EventKind::MovedTo),
            (ReadFlags::DELETE_SELF, EventKind::Delete),
            (ReadFlags::MOVE_SELF, EventKind::MovedFrom),
        ];
        let kind = kinds.into_iter().find(|(flag, _)| raw.flags.contains(*flag)).map(|(_, kind)| kind);
        kind.filter(|_| is_named)
    }

    /// A folder that is new here, with what is in it already: some of it may have been told, none of it is left out.
    fn add_folder(&mut self, path: &Path, events: &mut Vec<Event>) {
        let mut found = Vec::new();
        let watched = self.add(path).and_then(|()| {
            self.watch_below(path, |path, is_directory| {
                if found.len() == FOUND_MAX {
                    return Err(Stop::new(Errno::NOSPC, "too much is in it already"));
                }
                found.push((path.to_owned(), is_directory));
                Ok(())
            })
        });
        for (path, is_directory) in found {
            let path = path.as_os_str().as_bytes().to_vec();
            events.push(Event { kind: EventKind::Create, path, is_directory, cookie: 0 });
        }
        // One that is gone again is no loss.
        if let Err(Stop::Failed(failure)) = watched
            && failure.errno != Errno::NOENT.raw_os_error()
        {
            self.overflow(events);
        }
    }

    fn overflow(&self, events: &mut Vec<Event>) {
        let path = self.paths.get(&self.root).map(|path| path.as_os_str().as_bytes().to_vec());
        let path = path.unwrap_or_default();
        events.push(Event { kind: EventKind::Overflow, path, is_directory: false, cookie: 0 });
    }

    fn add(&mut self, path: &Path) -> Outcome<()> {
        if self.paths.len() == WATCHES_MAX {
            let context = format!("{} holds more than {WATCHES_MAX} folders", path.display());
            return Err(Stop::new(Errno::NOSPC, context));
        }
        let flags = WATCHED | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        let watch = inotify::add_watch(&self.inotify, path, flags).context(|| shown(path))?;
        self.paths.insert(watch, path.to_owned());
        Ok(())
    }

    /// Watches all folders below one that is watched, and tells what is in them.
    fn watch_below(&mut self, path: &Path, mut found: impl FnMut(&Path, bool) -> Outcome<()>) -> Outcome<()> {
        let mut folders = VecDeque::from([path.to_owned()]);
        while let Some(folder) = folders.pop_front() {
            // It may be no folder, or gone by now.
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let path = entry.path();
                found(&path, is_directory)?;
                if is_directory {
                    self.add(&path)?;
                    folders.push_back(path);
                }
            }
        }
        Ok(())
    }

    fn forget_below(&mut self, path: &Path) {
        for (watch, _) in self.paths.extract_if(|_, watched| watched.starts_with(path)) {
            // It may have ended by itself.
            inotify::remove_watch(&self.inotify, watch).ok();
        }
    }
}
