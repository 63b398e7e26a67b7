//! Changes of the tree: folders made, entries moved and removed.

use super::entry;
use super::path::shown;
use super::{Context, Outcome, Stop};
use podflare_wire::files::{Entry, Kind};
use rustix::fs::{CWD, Mode, chmod, mkdir};
use rustix::io::Errno;
use std::fs;
use std::path::Path;

const MODE_NEW: u32 = 0o755;

/// Makes a folder and its parents; one that is there already stays as it is.
pub(super) fn make_directory(path: &Path, mode: Option<u32>) -> Outcome<Entry> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).context(|| shown(parent))?;
    }
    match mkdir(path, Mode::from_raw_mode(MODE_NEW)) {
        Ok(()) => {
            if let Some(mode) = mode {
                chmod(path, Mode::from_raw_mode(mode & entry::MODE_MASK)).context(|| shown(path))?;
            }
        }
        Err(Errno::EXIST) if path.is_dir() => {}
        Err(errno) => return Err(errno).context(|| shown(path)),
    }
    entry::of(path)
}

/// As rename(2): a file that has the name is replaced, and a symbolic link is moved itself.
pub(super) fn rename(from: &Path, to: &Path) -> Outcome<Entry> {
    entry::of(from)?;
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).context(|| shown(parent))?;
    }
    rustix::fs::renameat(CWD, from, CWD, to).context(|| format!("{} to {}", from.display(), to.display()))?;
    entry::of(to)
}

/// Removes an entry, a symbolic link itself.
pub(super) fn remove(path: &Path, recursive: bool) -> Outcome<()> {
    if path.components().next_back() == Some(std::path::Component::RootDir) {
        return Err(Stop::new(Errno::BUSY, "the root folder stays"));
    }
    let is_folder = entry::of(path)?.kind == Kind::Directory;
    let removed = match (is_folder, recursive) {
        (false, _) => fs::remove_file(path),
        (true, false) => fs::remove_dir(path),
        (true, true) => fs::remove_dir_all(path),
    };
    removed.context(|| shown(path))
}
