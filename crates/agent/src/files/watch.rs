//! What happens to files, as inotify(7) tells it, until hostd closes the connection.

use super::path::shown;
use super::peer::Peer;
use super::{Context, Outcome, Stop};
use podflare_wire::codec::encode;
use podflare_wire::files::{Answer, BATCH_LEN, Event, EventKind, Failure, WATCHES_MAX};
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
        let mut batch = Batch::default();
        for raw in watcher.read(&mut buffer)? {
            watcher.take(&raw, &mut |event| batch.push(event, peer))?;
        }
        batch.send(peer)?;
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

/// Events that are told together: as many as fit into a frame, however many follow of one reading.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    len: usize,
}

impl Batch {
    fn push(&mut self, event: Event, peer: &mut Peer) -> Outcome<()> {
        self.len += encode(&event).len();
        self.events.push(event);
        if self.len >= BATCH_LEN { self.send(peer) } else { Ok(()) }
    }

    fn send(&mut self, peer: &mut Peer) -> Outcome<()> {
        self.len = 0;
        let events = std::mem::take(&mut self.events);
        if events.is_empty() { Ok(()) } else { peer.send(&Answer::Events(events)) }
    }
}

/// Where an event goes as soon as it is known.
type Tell<'a> = &'a mut dyn FnMut(Event) -> Outcome<()>;

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
    fn read(&self, buffer: &mut [MaybeUninit<u8>]) -> Outcome<Vec<Raw>> {
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
        Ok(raw)
    }

    fn take(&mut self, raw: &Raw, tell: Tell<'_>) -> Outcome<()> {
        if raw.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.look_again(tell);
        }
        let Some(watched) = self.paths.get(&raw.watch) else { return Ok(()) };
        let path = match &raw.name {
            Some(name) => watched.join(OsStr::from_bytes(name)),
            None => watched.clone(),
        };
        let is_directory = raw.flags.contains(ReadFlags::ISDIR);
        if let Some(kind) = self.kind(raw) {
            let path = path.as_os_str().as_bytes().to_vec();
            tell(Event { kind, path, is_directory, cookie: raw.cookie })?;
        }
        if raw.flags.contains(ReadFlags::IGNORED) {
            self.paths.remove(&raw.watch);
        }
        if !self.recursive || !is_directory {
            return Ok(());
        }
        if raw.flags.contains(ReadFlags::MOVED_FROM) {
            self.forget_below(&path);
        } else if raw.flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            self.add_folder(&path, tell)?;
        }
        Ok(())
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
    fn add_folder(&mut self, path: &Path, tell: Tell<'_>) -> Outcome<()> {
        let mut left = FOUND_MAX;
        let watched = match self.add(path) {
            Ok(()) => self.watch_below(path, |path, is_directory| {
                left = left
                    .checked_sub(1)
                    .ok_or_else(|| Stop::new(Errno::NOSPC, "too much is in it already"))?;
                let path = path.as_os_str().as_bytes().to_vec();
                tell(Event { kind: EventKind::Create, path, is_directory, cookie: 0 })
            }),
            failed => failed,
        };
        match watched {
            Err(Stop::Failed(failure)) if !is_gone(&failure) => tell(self.overflow()),
            Err(Stop::Gone) => Err(Stop::Gone),
            _ => Ok(()),
        }
    }

    /// Events were lost, and with them folders that are new, have moved or are gone. It is told when all that there
    /// is now is watched: who then lists misses nothing.
    fn look_again(&mut self, tell: Tell<'_>) -> Outcome<()> {
        let lost = self.overflow();
        let path = self.paths.get(&self.root).cloned().unwrap_or_default();
        let root = inotify::add_watch(&self.inotify, &path, WATCHED);
        let before = std::mem::take(&mut self.paths);
        // If there is something else in its place now, or nothing, then what is watched is gone.
        if root == Ok(self.root) {
            self.paths.insert(self.root, path.clone());
            if self.recursive {
                // What cannot be watched for being too much is told of already.
                self.watch_below(&path, |_, _| Ok(())).ok();
            }
        }
        for watch in before.into_keys().filter(|watch| !self.paths.contains_key(watch)) {
            // It may have ended by itself.
            inotify::remove_watch(&self.inotify, watch).ok();
        }
        tell(lost)
    }

    fn overflow(&self) -> Event {
        let path = self.paths.get(&self.root).map(|path| path.as_os_str().as_bytes().to_vec());
        let path = path.unwrap_or_default();
        Event { kind: EventKind::Overflow, path, is_directory: false, cookie: 0 }
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
                if !is_directory {
                    continue;
                }
                match self.add(&path) {
                    Ok(()) => folders.push_back(path),
                    Err(Stop::Failed(failure)) if is_gone(&failure) => {}
                    failed => return failed,
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

/// Whether it is that a folder is there no more, or something else in its place, which is no loss.
fn is_gone(failure: &Failure) -> bool {
    [Errno::NOENT, Errno::NOTDIR].iter().any(|errno| errno.raw_os_error() == failure.errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podflare_wire::files::FRAME_LEN_MAX;
    use std::fs;

    /// What is told of all events up to now, names below the folder.
    fn told(watcher: &mut Watcher, root: &Path) -> Vec<(EventKind, String)> {
        let mut told = Vec::new();
        for raw in read(watcher) {
            watcher.take(&raw, &mut |event| keep(&mut told, &event, root)).unwrap();
        }
        told
    }

    fn keep(told: &mut Vec<(EventKind, String)>, event: &Event, root: &Path) -> Outcome<()> {
        let path = Path::new(OsStr::from_bytes(&event.path)).strip_prefix(root).unwrap();
        told.push((event.kind, path.display().to_string()));
        Ok(())
    }

    fn read(watcher: &Watcher) -> Vec<Raw> {
        watcher.read(&mut vec![MaybeUninit::uninit(); READ_LEN]).unwrap()
    }

    /// Loses all events up to now, as a queue that is full does.
    fn lose(watcher: &mut Watcher, root: &Path) -> Vec<(EventKind, String)> {
        read(watcher);
        let mut told = Vec::new();
        let overflow = Raw { watch: -1, flags: ReadFlags::QUEUE_OVERFLOW, cookie: 0, name: None };
        watcher.take(&overflow, &mut |event| keep(&mut told, &event, root)).unwrap();
        told
    }

    #[test]
    fn a_folder_that_goes_away_while_the_tree_is_walked_is_overlooked() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["kept", "removed", "replaced"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let mut watcher = Watcher::new(root, false).unwrap();
        let walked = watcher.watch_below(root, |path, _| {
            if !path.ends_with("kept") {
                fs::remove_dir(path).unwrap();
            }
            if path.ends_with("replaced") {
                fs::write(path, "").unwrap();
            }
            Ok(())
        });
        walked.unwrap();
        read(&watcher);
        fs::write(root.join("kept/file"), "").unwrap();
        assert_eq!(told(&mut watcher, root)[0], (EventKind::Create, "kept/file".to_owned()));
    }

    #[test]
    fn what_has_changed_while_events_were_lost_is_watched_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let elsewhere = tempfile::tempdir().unwrap();
        for name in ["old", "left/below"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        let mut watcher = Watcher::new(root, true).unwrap();
        fs::create_dir_all(root.join("new/below")).unwrap();
        fs::rename(root.join("old"), root.join("new/moved")).unwrap();
        fs::rename(root.join("left"), elsewhere.path().join("left")).unwrap();
        assert_eq!(lose(&mut watcher, root), [(EventKind::Overflow, String::new())]);
        told(&mut watcher, root);
        for name in ["new/below/file", "new/moved/file"] {
            fs::write(root.join(name), "").unwrap();
            assert_eq!(told(&mut watcher, root)[0], (EventKind::Create, name.to_owned()));
        }
        fs::write(elsewhere.path().join("left/below/file"), "").unwrap();
        assert_eq!(told(&mut watcher, root), [], "what is no longer below is nobody's");
        assert!(watcher.lives());
    }

    #[test]
    fn a_watch_whose_folder_goes_while_events_are_lost_ends() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("root");
        for replaced in [false, true] {
            fs::create_dir_all(&root).unwrap();
            let mut watcher = Watcher::new(&root, true).unwrap();
            // Another one may get the number of one that is gone.
            fs::rename(&root, parent.path().join(format!("away-{replaced}"))).unwrap();
            if replaced {
                fs::create_dir(&root).unwrap();
            }
            assert_eq!(lose(&mut watcher, &root), [(EventKind::Overflow, String::new())]);
            assert!(!watcher.lives());
        }
    }

    #[test]
    fn events_are_told_before_they_are_more_than_a_message_holds() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut peer = Peer::new(theirs.into()).unwrap();
        let name = "x".repeat(250);
        let told = std::thread::spawn(move || lens_of_frames(ours));
        let mut batch = Batch::default();
        for number in 0..1_000 {
            let path = format!("/{}{number}", [name.as_str(); 16].join("/")).into_bytes();
            let event = Event { kind: EventKind::Create, path, is_directory: false, cookie: 0 };
            batch.push(event, &mut peer).unwrap();
            assert!(batch.len < BATCH_LEN);
        }
        batch.send(&mut peer).unwrap();
        // Nothing more is nothing to tell.
        batch.send(&mut peer).unwrap();
        drop(peer);
        let lens = told.join().unwrap();
        assert!(lens.iter().all(|len| (100..=FRAME_LEN_MAX).contains(len)), "{lens:?}");
        assert!(lens.len() > 100);
    }

    fn lens_of_frames(mut stream: impl std::io::Read) -> Vec<usize> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let mut rest = &bytes[..];
        let mut lens = Vec::new();
        while let Some((prefix, after)) = rest.split_first_chunk() {
            let len = u32::from_le_bytes(*prefix) as usize;
            lens.push(len);
            rest = &after[len..];
        }
        lens
    }
}
