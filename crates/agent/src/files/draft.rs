//! A file that is being written, which nobody sees before it is whole.
//!
//! It has no name: when its thread ends, in whatever way, or its machine's copy drops it, nothing is left. Where the file
//! system knows no nameless files it has one beside its target, and loses it unless the agent is killed.

use super::path::shown;
use super::{Context, Outcome, Stop};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Stat, Uid, fchmod, fchown, fstat, linkat, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Names that may be taken already, before giving up.
const NAMES_MAX: usize = 16;

const HIDDEN: Mode = Mode::RUSR.union(Mode::WUSR);

pub(super) struct Draft {
    file: File,
    folder: OwnedFd,
    /// Of a draft that cannot be nameless, or while it gets its place.
    name: Option<String>,
}

impl Draft {
    pub(super) fn create(folder: &Path) -> Outcome<Draft> {
        let created = Draft::create_nameless(folder).or_else(|errno| match errno {
            // The file system, or the kernel, does not know them.
            Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL => Draft::create_named(folder),
            errno => Err(errno),
        });
        created.context(|| shown(folder))
    }

    fn create_nameless(folder: &Path) -> Result<Draft, Errno> {
        let folder = open_folder(folder)?;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&folder, ".", flags, HIDDEN)?.into();
        Ok(Draft { file, folder, name: None })
    }

    fn create_named(folder: &Path) -> Result<Draft, Errno> {
        let folder = open_folder(folder)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let (file, name) = with_free_name(|name| openat(&folder, name, flags, HIDDEN))?;
        Ok(Draft { file: file.into(), folder, name: Some(name) })
    }

    pub(super) fn write(&mut self, bytes: &[u8], target: &Path) -> Outcome<()> {
        self.file.write_all(bytes).context(|| shown(target))
    }

    pub(super) fn set_mode(&self, mode: u32) -> Result<(), Errno> {
        fchmod(&self.file, Mode::from_raw_mode(mode))
    }

    pub(super) fn set_owner(&self, uid: u32, gid: u32) -> Result<(), Errno> {
        fchown(&self.file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
    }

    /// Gives the file its place, in one step for everybody who looks.
    pub(super) fn publish(mut self, target: &Path) -> Outcome<Stat> {
        let Some(target_name) = target.file_name() else {
            return Err(Stop::new(Errno::ISDIR, shown(target)));
        };
        self.put(target_name).context(|| shown(target))?;
        fstat(&self.file).context(|| shown(target))
    }

    fn put(&mut self, target: &OsStr) -> Result<(), Errno> {
        if self.name.is_none() {
            // What exists already can only be replaced by something that has a name.
            match self.link(target) {
                Err(Errno::EXIST) => self.name = Some(with_free_name(|name| self.link(OsStr::new(name)))?.1),
                linked => return linked,
            }
        }
        if let Some(name) = &self.name {
            renameat(&self.folder, name, &self.folder, target)?;
            self.name = None;
        }
        Ok(())
    }

    fn link(&self, name: &OsStr) -> Result<(), Errno> {
        let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, nameless, &self.folder, name, AtFlags::SYMLINK_FOLLOW)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            unlinkat(&self.folder, name, AtFlags::empty()).ok();
        }
    }
}

fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Does something under a new name, with others as long as they are taken.
fn with_free_name<T>(mut act: impl FnMut(&str) -> Result<T, Errno>) -> Result<(T, String), Errno> {
    for _ in 0..NAMES_MAX {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let name = format!(".podflare-{:016x}.part", u64::from_ne_bytes(random));
        match act(&name) {
            Err(Errno::EXIST) => {}
            acted => return acted.map(|acted| (acted, name)),
        }
    }
    Err(Errno::EXIST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_with_and_without_a_name_comes_to_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file");
        for create in [Draft::create_named, Draft::create_nameless] {
            for content in ["new", "replaced"] {
                let mut draft = create(folder.path()).unwrap();
                draft.write(content.as_bytes(), &target).unwrap();
                draft.publish(&target).unwrap();
                assert_eq!(std::fs::read_to_string(&target).unwrap(), content);
            }
            drop(create(folder.path()).unwrap());
            let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
            assert_eq!(names.len(), 1, "{names:?}");
            std::fs::remove_file(&target).unwrap();
        }
    }

    #[test]
    fn a_draft_that_cannot_be_put_in_its_place_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("folder");
        std::fs::create_dir(&target).unwrap();
        for create in [Draft::create_named, Draft::create_nameless] {
            create(folder.path()).unwrap().publish(&target).unwrap_err();
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}
