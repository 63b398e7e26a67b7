//! Disk layers: files without a name, which vanish with the last process that reads them.

use crate::vmm::VmmError;
use podflare_api::id::SandboxId;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, open, openat, unlinkat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A new empty file in `dir` that no path leads to.
pub(super) fn create(dir: &Path) -> Result<OwnedFd, VmmError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match open(dir, flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file),
        // Some file systems have no nameless files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => create_named(dir, flags),
        Err(errno) => Err(errno),
    }
    .map_err(|errno| VmmError::CreateLayer { path: dir.to_owned(), source: errno.into() })
}

fn create_named(dir: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = dir.join(format!("layer-{}", SandboxId::random()));
    let flags = flags | OFlags::CREATE | OFlags::EXCL;
    let file = openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR)?;
    unlinkat(CWD, &path, AtFlags::empty())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_leaves_nothing_in_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        for file in [create(dir.path()).unwrap(), create_named(dir.path(), OFlags::RDWR).unwrap()] {
            rustix::io::write(&file, b"block").unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
