//! What is known of a file.

use super::path::shown;
use super::{Context, Outcome};
use podflare_wire::files::{Entry, Kind};
use rustix::fs::{AtFlags, CWD, FileType, Stat, statat};
use rustix::io::Errno;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Permissions with the set-id and sticky bits.
pub(super) const MODE_MASK: u32 = 0o7777;

/// The entry itself, also of a symbolic link.
pub(super) fn of(path: &Path) -> Outcome<Entry> {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).context(|| shown(path))?;
    Ok(from_stat(path, &stat))
}

/// As `of`; `None` if there is nothing.
pub(super) fn stat_if_any(path: &Path) -> Outcome<Option<Stat>> {
    match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno).context(|| shown(path)),
    }
}

pub(super) fn from_stat(path: &Path, stat: &Stat) -> Entry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Special,
    };
    let target = (kind == Kind::Symlink).then(|| rustix::fs::readlink(path, Vec::new()).ok()).flatten();
    Entry {
        path: path.as_os_str().as_bytes().to_vec(),
        kind,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        mode: stat.st_mode & MODE_MASK,
        uid: stat.st_uid,
        gid: stat.st_gid,
        inode: stat.st_ino,
        modified_ns: modified_ns(stat),
        target: target.map(|target| target.into_bytes()),
    }
}

fn modified_ns(stat: &Stat) -> i64 {
    let nanoseconds = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}
