//! Changes of the tree: folders made, entries moved and removed.

use super::entry;
use super::path::{ends_in_dots, ends_in_slash, shown, without_slashes};
use super::{Context, Outcome, Stop};
use podflare_wire::files::Entry;
use rustix::fs::{CWD, FileType, Mode, Stat, chmod, mkdir, stat};
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
    let root = root()?;
    must_be_apart_from(&root, from)?.ok_or(Errno::NOENT).context(|| shown(from))?;
    must_be_apart_from(&root, to)?;
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).context(|| shown(parent))?;
    }
    rustix::fs::renameat(CWD, from, CWD, to).context(|| format!("{} to {}", from.display(), to.display()))?;
    entry::of(to)
}

/// Removes an entry, a symbolic link itself.
pub(super) fn remove(path: &Path, recursive: bool) -> Outcome<()> {
    remove_apart_from(&root()?, path, recursive)
}

fn root() -> Outcome<Stat> {
    stat("/").context(|| "/".into())
}

fn remove_apart_from(root: &Stat, path: &Path, recursive: bool) -> Outcome<()> {
    let found = must_be_apart_from(root, path)?.ok_or(Errno::NOENT).context(|| shown(path))?;
    let is_folder = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    let removed = match (is_folder, recursive) {
        (false, _) => fs::remove_file(path),
        (true, false) => fs::remove_dir(path),
        (true, true) => fs::remove_dir_all(path),
    };
    removed.context(|| shown(path))
}

/// What has this name, if anything. It must be an entry of its own: neither the root folder, by whatever name, nor
/// what a path reaches by `.`, `..`, or a symbolic link with a slash behind it, which names what the link leads to.
fn must_be_apart_from(root: &Stat, path: &Path) -> Outcome<Option<Stat>> {
    if ends_in_dots(path) {
        let context = format!("{} ends in . or .., say the folder's own name", path.display());
        return Err(Stop::new(Errno::INVAL, context));
    }
    // Without its slashes the root folder has no name left.
    let own = without_slashes(path);
    let found = entry::stat_if_any(if own.as_os_str().is_empty() { path } else { own })?;
    let Some(found) = found else { return Ok(None) };
    if ends_in_slash(path) && FileType::from_raw_mode(found.st_mode) == FileType::Symlink {
        let context = format!("{} is a symbolic link, say it without the slash", own.display());
        return Err(Stop::new(Errno::NOTDIR, context));
    }
    if (found.st_dev, found.st_ino) == (root.st_dev, root.st_ino) {
        return Err(Stop::new(Errno::BUSY, format!("{} is the root folder, which stays", path.display())));
    }
    Ok(Some(found))
}

/// Nothing here may reach beyond its own folder if what it tests is broken: the root folder of a test is one
/// of its own, and the machine's is only looked at.
#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Tree {
            let tree = Tree(tempfile::tempdir().unwrap());
            fs::create_dir_all(tree.at("home/folder")).unwrap();
            fs::write(tree.at("home/file"), "kept").unwrap();
            symlink("..", tree.at("home/link")).unwrap();
            tree
        }

        fn at(&self, path: &str) -> std::path::PathBuf {
            // Not `Path::join`, which is free to change how a path is written.
            format!("{}/{path}", self.0.path().display()).into()
        }

        fn root(&self) -> Stat {
            stat(self.0.path()).unwrap()
        }
    }

    fn errno<T>(outcome: Outcome<T>) -> Option<i32> {
        match outcome {
            Err(Stop::Failed(failure)) => Some(failure.errno),
            _ => None,
        }
    }

    #[test]
    fn the_root_folder_is_not_removed_by_any_of_its_names() {
        let tree = Tree::new();
        for (name, expected) in [
            ("", Errno::BUSY),
            ("//", Errno::BUSY),
            (".", Errno::INVAL),
            ("./", Errno::INVAL),
            ("home/..", Errno::INVAL),
            ("home/..//", Errno::INVAL),
            ("home/folder/../..", Errno::INVAL),
            ("home/link/.", Errno::INVAL),
            ("home/link/", Errno::NOTDIR),
            ("home/link/home/link//", Errno::NOTDIR),
        ] {
            for recursive in [false, true] {
                let removed = remove_apart_from(&tree.root(), &tree.at(name), recursive);
                assert_eq!(errno(removed), Some(expected.raw_os_error()), "{name}");
            }
        }
        assert_eq!(fs::read_to_string(tree.at("home/file")).unwrap(), "kept");
    }

    #[test]
    fn the_machines_own_root_folder_is_known_by_its_names() {
        for (name, expected) in [("/", Errno::BUSY), ("///", Errno::BUSY), ("/.", Errno::INVAL)] {
            let found = must_be_apart_from(&root().unwrap(), Path::new(name));
            assert_eq!(errno(found), Some(expected.raw_os_error()), "{name}");
        }
        // Known by what it is, also where it has another name.
        let found = must_be_apart_from(&stat("/usr").unwrap(), Path::new("/usr"));
        assert_eq!(errno(found), Some(Errno::BUSY.raw_os_error()));
    }

    #[test]
    fn what_is_in_the_root_folder_goes_by_its_own_name_and_a_link_itself() {
        let tree = Tree::new();
        let remove = |name| remove_apart_from(&tree.root(), &tree.at(name), true).unwrap();
        remove("home/link/home/link");
        assert!(!tree.at("home/link").exists());
        remove("home/../home/folder/");
        assert!(!tree.at("home/folder").exists());
        remove("home");
        assert_eq!(fs::read_dir(tree.0.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_moved_from_or_to_a_name_that_ends_in_dots() {
        let tree = Tree::new();
        for (from, to) in [
            ("home/folder/..", "new"),
            ("home/link/", "new"),
            ("home/file", "new/folder/.."),
            ("home/file", "new/."),
        ] {
            let moved = errno(rename(&tree.at(from), &tree.at(to)));
            assert!([Errno::INVAL, Errno::NOTDIR].map(|errno| Some(errno.raw_os_error())).contains(&moved));
        }
        assert!(!tree.at("new").exists(), "no folder is made for what is refused");
        rename(&tree.at("home/folder"), &tree.at("new/folder/")).unwrap();
    }
}
