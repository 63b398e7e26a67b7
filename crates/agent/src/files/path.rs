//! Paths as hostd sends them.

use super::{Context, Outcome, Stop};
use podflare_wire::files::PATH_LEN_MAX;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// As many symbolic links as Linux follows in one path.
const LINKS_MAX: usize = 40;

/// The path, from the home if it is relative. `..` means what it means to Linux.
pub(super) fn resolve(home: &Path, path: &[u8]) -> Outcome<PathBuf> {
    if path.is_empty() {
        return Err(Stop::new(Errno::INVAL, "the path is empty"));
    }
    if path.contains(&0) {
        return Err(Stop::new(Errno::INVAL, "the path holds a NUL"));
    }
    if path.len() > PATH_LEN_MAX {
        return Err(Stop::new(Errno::NAMETOOLONG, format!("a path has at most {PATH_LEN_MAX} bytes")));
    }
    Ok(home.join(OsStr::from_bytes(path)))
}

/// Where a file of this path lies, or would: the last name's symbolic links are followed, also to nothing.
pub(super) fn follow_links(path: &Path) -> Outcome<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match rustix::fs::readlink(&path, Vec::new()) {
            Ok(target) => {
                let target = std::ffi::OsString::from_vec(target.into_bytes());
                path = path.parent().unwrap_or(Path::new("/")).join(target);
            }
            // It is not a link, or nothing at all.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(path),
            Err(errno) => return Err(errno).context(|| shown(&path)),
        }
    }
    Err(Errno::LOOP).context(|| shown(&path))
}

/// Whether it can only be a directory's.
pub(super) fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

/// Whether its last name is `.` or `..`, which `Path` would partly hide.
pub(super) fn ends_in_dots(path: &Path) -> bool {
    let path = without_slashes(path).as_os_str().as_bytes();
    matches!(path.rsplit(|byte| *byte == b'/').next(), Some(b"." | b".."))
}

/// The path without the slashes behind it, and so empty for the root folder.
pub(super) fn without_slashes(path: &Path) -> &Path {
    let bytes = path.as_os_str().as_bytes();
    let len = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    Path::new(OsStr::from_bytes(&bytes[..len]))
}

pub(super) fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_starts_in_the_home() {
        let home = Path::new("/root");
        assert_eq!(resolve(home, b"a/../b").unwrap(), Path::new("/root/a/../b"));
        assert_eq!(resolve(home, b"/etc/x").unwrap(), Path::new("/etc/x"));
        assert_eq!(resolve(home, b"\xff").unwrap().as_os_str().as_bytes(), b"/root/\xff");
    }

    #[test]
    fn the_last_name_is_seen_as_it_is_written() {
        for path in ["/.", "/..", "/a/.", "/a/..", "/a/..//", ".", "..", "/a/./"] {
            assert!(ends_in_dots(Path::new(path)), "{path}");
        }
        for path in ["/", "", "/a", "/a/...", "/.a", "/a..", "/../a", "/./a/"] {
            assert!(!ends_in_dots(Path::new(path)), "{path}");
        }
        assert_eq!(without_slashes(Path::new("/a/b//")).as_os_str(), "/a/b");
        assert_eq!(without_slashes(Path::new("//")).as_os_str(), "");
    }

    #[test]
    fn what_linux_would_not_take_is_refused() {
        let home = Path::new("/root");
        for (path, errno) in [
            (Vec::new(), Errno::INVAL),
            (b"/a\0b".to_vec(), Errno::INVAL),
            (vec![b'x'; PATH_LEN_MAX + 1], Errno::NAMETOOLONG),
        ] {
            let stop = resolve(home, &path).unwrap_err();
            assert!(matches!(stop, Stop::Failed(failure) if failure.errno == errno.raw_os_error()));
        }
    }
}
