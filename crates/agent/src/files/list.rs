//! What is in a folder, and in those below it: by name, each before what is in it.

use super::path::shown;
use super::peer::Peer;
use super::{Context, Outcome, entry};
use podflare_wire::codec::encode;
use podflare_wire::files::{Answer, BATCH_LEN, Entry, Kind, LIST_DEPTH_MAX, LIST_ENTRIES_MAX};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::vec;

pub(super) fn list(peer: &mut Peer, path: &Path, depth: u32) -> Outcome<()> {
    let depth = depth.clamp(1, LIST_DEPTH_MAX) as usize;
    let mut left = LIST_ENTRIES_MAX;
    let (names, mut truncated) = names(path, left).context(|| shown(path))?;
    let mut open: Vec<(PathBuf, vec::IntoIter<OsString>)> = vec![(path.to_owned(), names.into_iter())];
    let mut batch = Batch::default();
    while let Some((folder, names)) = open.last_mut() {
        let Some(name) = names.next() else {
            open.pop();
            continue;
        };
        if left == 0 {
            truncated = true;
            break;
        }
        let path = folder.join(name);
        // It may be gone by now.
        let Ok(entry) = entry::of(&path) else { continue };
        left -= 1;
        // Links are not followed, so there are no circles.
        let is_folder = entry.kind == Kind::Directory;
        batch.push(entry, peer)?;
        if is_folder && open.len() < depth {
            // What cannot be read has been named at least.
            let (names, cut) = self::names(&path, left).unwrap_or_default();
            truncated |= cut;
            open.push((path, names.into_iter()));
        }
    }
    batch.send(peer)?;
    peer.send(&Answer::Listed { truncated })
}

/// So many of the names in a folder, sorted, and whether there are more.
fn names(folder: &Path, max: usize) -> io::Result<(Vec<OsString>, bool)> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        if names.len() == max {
            names.sort();
            return Ok((names, true));
        }
        names.push(entry?.file_name());
    }
    names.sort();
    Ok((names, false))
}

#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    len: usize,
}

impl Batch {
    fn push(&mut self, entry: Entry, peer: &mut Peer) -> Outcome<()> {
        self.len += encode(&entry).len();
        self.entries.push(entry);
        if self.len >= BATCH_LEN { self.send(peer) } else { Ok(()) }
    }

    fn send(&mut self, peer: &mut Peer) -> Outcome<()> {
        self.len = 0;
        let entries = std::mem::take(&mut self.entries);
        if entries.is_empty() { Ok(()) } else { peer.send(&Answer::Entries(entries)) }
    }
}
