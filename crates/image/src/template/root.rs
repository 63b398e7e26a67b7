//! A root directory as its guest will see it. What is in it may be hostile: a link in it leads to a place in it,
//! whatever it says, and never to one of this machine.
//!
//! All that this process itself opens or makes in an image goes through here.

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, open, openat2, statat, unlinkat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// Without any link.
const PLAIN: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Root> {
        Ok(Root(open(path, DIRECTORY, Mode::empty())?))
    }

    /// A file that can be executed, with all links followed as the guest will follow them.
    pub(crate) fn has_program(&self, path: &str) -> bool {
        let find = || -> Result<bool, Errno> {
            let file = openat2(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), IN_ROOT)?;
            let mode = fstat(&file)?.st_mode;
            Ok(FileType::from_raw_mode(mode).is_file() && mode & 0o111 != 0)
        };
        find().unwrap_or(false)
    }

    /// Whether a plain file has more bytes, with all links followed.
    pub(crate) fn is_longer(&self, path: &str, bytes_max: u64) -> bool {
        let len = self.file(path).and_then(|file| Ok(file.metadata()?.len()));
        len.is_ok_and(|len| len > bytes_max)
    }

    /// The contents of a plain file, with all links followed; none if there is none, or if it has more bytes.
    pub(crate) fn read(&self, path: &str, bytes_max: u64) -> Option<Vec<u8>> {
        let mut contents = Vec::new();
        self.file(path).ok()?.take(bytes_max + 1).read_to_end(&mut contents).ok()?;
        (contents.len() as u64 <= bytes_max).then_some(contents)
    }

    fn file(&self, path: &str) -> io::Result<File> {
        // Without waiting for anybody, should it be a pipe.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(openat2(&self.0, path, flags, Mode::empty(), IN_ROOT)?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Makes a directory, and those above it, as far as they are missing. Links to directories are followed.
    pub(crate) fn make_directory(&self, path: &str, mode: u32) -> io::Result<()> {
        self.directory(Path::new(path), mode, IN_ROOT).map(drop)
    }

    /// A directory that something is mounted on: neither it nor one above it is a link, since whoever mounts would
    /// follow it out of the root.
    pub(crate) fn make_mount_point(&self, path: &str) -> io::Result<()> {
        self.directory(Path::new(path), 0o755, PLAIN).map(drop)
    }

    /// A file that another is mounted on, in directories that are none of them links. A link in its place goes.
    pub(crate) fn make_mounted_file(&self, path: &str) -> io::Result<()> {
        let path = Path::new(path);
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = self.directory(above, 0o755, PLAIN)?;
        match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => return Ok(()),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_symlink() => {
                unlinkat(&directory, name, AtFlags::empty())?;
            }
            Ok(_) => return Err(io::Error::other("it is neither a file nor a link")),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat2(&directory, name, flags, Mode::from_raw_mode(0o644), PLAIN)?;
        Ok(fchmod(&file, Mode::from_raw_mode(0o644))?)
    }

    fn directory(&self, path: &Path, mode: u32, resolve: ResolveFlags) -> io::Result<OwnedFd> {
        // `RESOLVE_BENEATH` takes no absolute path.
        let inside: &Path = match path.strip_prefix("/").unwrap_or(path) {
            root if root.as_os_str().is_empty() => Path::new("."),
            inside => inside,
        };
        match openat2(&self.0, inside, DIRECTORY, Mode::empty(), resolve) {
            Err(Errno::NOENT) => {}
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(io::Error::other("it is to be a directory, and is a link or a file"));
            }
            found => return Ok(found?),
        }
        let (Some(above), Some(Component::Normal(name))) = (inside.parent(), inside.components().next_back())
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let above = self.directory(above, 0o755, resolve)?;
        match mkdirat(&above, name, Mode::from_raw_mode(mode)) {
            Err(Errno::EXIST) => return Err(io::Error::other("it is a link that leads nowhere")),
            made => made?,
        }
        let made = openat2(&above, name, DIRECTORY, Mode::empty(), PLAIN)?;
        // Whatever the umask is.
        fchmod(&made, Mode::from_raw_mode(mode))?;
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    /// A root, and a directory of this machine that its links lead to.
    fn roots() -> (tempfile::TempDir, tempfile::TempDir, Root) {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("file"), "of this machine").unwrap();
        let opened = Root::open(root.path()).unwrap();
        (root, outside, opened)
    }

    fn is_untouched(outside: &tempfile::TempDir) -> bool {
        fs::read_dir(outside.path()).unwrap().count() == 1
            && fs::read(outside.path().join("file")).unwrap() == b"of this machine"
    }

    #[test]
    fn a_link_is_never_followed_out_of_the_root() {
        let (root, outside, opened) = roots();
        for (name, target) in
            [("absolute", outside.path().to_owned()), ("up", Path::new("../../../..").into())]
        {
            symlink(target, root.path().join(name)).unwrap();
        }
        let up = format!("/up{}", outside.path().display());
        for place in ["/absolute", &up] {
            assert_eq!(opened.read(&format!("{place}/file"), 100), None, "{place}");
            opened.make_mount_point(&format!("{place}/made")).unwrap_err();
            opened.make_mounted_file(&format!("{place}/made")).unwrap_err();
        }
        assert!(opened.make_directory("/absolute/made", 0o755).is_err(), "the link leads nowhere");
        opened.make_directory(&format!("{up}/made"), 0o755).unwrap();
        assert!(is_untouched(&outside));
        assert!(root.path().join(outside.path().strip_prefix("/").unwrap()).join("made").is_dir());
    }

    #[test]
    fn a_link_in_place_of_a_mounted_file_goes_and_its_target_stays() {
        let (root, outside, opened) = roots();
        fs::create_dir(root.path().join("etc")).unwrap();
        let resolv_conf = root.path().join("etc/resolv.conf");
        symlink(outside.path().join("file"), &resolv_conf).unwrap();
        opened.make_mounted_file("/etc/resolv.conf").unwrap();
        assert!(fs::symlink_metadata(&resolv_conf).unwrap().is_file() && is_untouched(&outside));
        fs::write(&resolv_conf, "kept").unwrap();
        opened.make_mounted_file("/etc/resolv.conf").unwrap();
        assert_eq!(fs::read(&resolv_conf).unwrap(), b"kept");
        opened.make_mounted_file("/etc").unwrap_err();
    }

    #[test]
    fn what_is_missing_is_made_with_its_permissions() {
        let (root, _outside, opened) = roots();
        opened.make_directory("/var/tmp", 0o1777).unwrap();
        opened.make_directory("/var/tmp", 0o755).unwrap();
        let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("var"), mode("var/tmp")), (0o755, 0o1777));
        symlink("var", root.path().join("link")).unwrap();
        opened.make_directory("/link/other", 0o700).unwrap();
        assert_eq!(mode("var/other"), 0o700);
        opened.make_mount_point("/link/other").unwrap_err();
    }

    #[test]
    fn only_plain_files_are_read_and_none_that_are_too_long() {
        let (root, _outside, opened) = roots();
        fs::write(root.path().join("long"), "12345").unwrap();
        let pipe = root.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(
            opened.is_longer("/long", 4) && !opened.is_longer("/long", 5) && !opened.is_longer("/none", 0)
        );
        assert_eq!(opened.read("/long", 5).as_deref(), Some(&b"12345"[..]));
        for path in ["/long", "/pipe", "/", "/none"] {
            assert_eq!(opened.read(path, 4), None, "{path}");
        }
    }
}
