//! Folders that are complete or not there, whenever the host is ended: each is written under a hidden name and then
//! renamed, and is hidden again before it is removed. What has a hidden name at the start was on its way in or out.
//!
//! ```text
//!   <data>/spaces/<id>   manifest.json  state  memory  disk
//!   <data>/bases/<id>    manifest.json  state  memory  disk  rootfs
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const MANIFEST: &str = "manifest.json";

/// The longest manifest that is read.
const MANIFEST_LEN_MAX: u64 = 1 << 20;

/// Folders by their names.
#[derive(Debug, Clone)]
pub(super) struct Folders {
    path: PathBuf,
}

/// A folder that is being written. It is removed if it is not published.
#[derive(Debug)]
pub(super) struct Draft {
    path: PathBuf,
    published: PathBuf,
    is_published: bool,
}

impl Folders {
    pub(super) fn new(path: PathBuf) -> Folders {
        Folders { path }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// All names, after what was on its way has been removed.
    pub(super) fn read(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            match entry.file_name().into_string() {
                Ok(name) if name.starts_with('.') => fs::remove_dir_all(entry.path())?,
                Ok(name) => names.push(name),
                // None of ours.
                Err(_) => {}
            }
        }
        names.sort();
        Ok(names)
    }

    pub(super) fn begin(&self, name: &str) -> io::Result<Draft> {
        // What was in guests' memory is for nobody else on this machine.
        let mut private = DirBuilder::new();
        private.mode(0o700);
        private.recursive(true).create(&self.path)?;
        let path = self.path.join(format!(".new-{name}"));
        private.recursive(false).create(&path)?;
        Ok(Draft { path, published: self.path(name), is_published: false })
    }

    /// Nothing is there any more when this returns, or after the next start if the host is ended meanwhile.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        let hidden = self.path.join(format!(".old-{name}"));
        match fs::rename(self.path(name), &hidden) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        sync_folder(&self.path)?;
        fs::remove_dir_all(hidden)
    }

    pub(super) fn manifest<T: DeserializeOwned>(&self, name: &str) -> io::Result<T> {
        let path = self.path(name).join(MANIFEST);
        if fs::metadata(&path)?.len() > MANIFEST_LEN_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the manifest is too long"));
        }
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }
}

impl Draft {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it the folder of its name, with all that is in it on the disk.
    pub(super) fn publish(mut self, manifest: &impl Serialize) -> io::Result<()> {
        let mut file = File::create_new(self.path.join(MANIFEST))?;
        file.write_all(&serde_json::to_vec_pretty(manifest)?)?;
        file.sync_all()?;
        sync_folder(&self.path)?;
        fs::rename(&self.path, &self.published)?;
        self.is_published = true;
        self.published.parent().map_or(Ok(()), sync_folder)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_published {
            // What cannot be removed now is removed at the next start.
            fs::remove_dir_all(&self.path).ok();
        }
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders() -> (tempfile::TempDir, Folders) {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::new(dir.path().join("spaces"));
        (dir, folders)
    }

    #[test]
    fn only_what_was_published_is_there() {
        let (_dir, folders) = folders();
        assert!(folders.read().unwrap().is_empty());
        folders.begin("one").unwrap().publish(&1).unwrap();
        drop(folders.begin("two").unwrap());
        assert_eq!(folders.read().unwrap(), ["one"]);
        assert_eq!(folders.manifest::<u32>("one").unwrap(), 1);
        assert_eq!(fs::read_dir(&folders.path).unwrap().count(), 1);
    }

    #[test]
    fn nobody_else_on_the_machine_may_look_into_a_folder() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, folders) = folders();
        folders.begin("one").unwrap().publish(&1).unwrap();
        for path in [folders.path.clone(), folders.path("one")] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn what_was_on_its_way_when_a_host_was_ended_is_removed_at_the_next_start() {
        let (_dir, folders) = folders();
        folders.begin("one").unwrap().publish(&1).unwrap();
        std::mem::forget(folders.begin("two").unwrap());
        fs::create_dir(folders.path(".old-three")).unwrap();
        assert_eq!(folders.read().unwrap(), ["one"]);
        assert_eq!(fs::read_dir(&folders.path).unwrap().count(), 1);
    }

    #[test]
    fn what_is_removed_is_gone_and_need_not_be_there() {
        let (_dir, folders) = folders();
        folders.begin("one").unwrap().publish(&1).unwrap();
        for _ in 0..2 {
            folders.remove("one").unwrap();
            assert!(folders.read().unwrap().is_empty());
        }
    }

    #[test]
    fn a_manifest_that_is_too_long_is_not_read() {
        let (_dir, folders) = folders();
        let len = usize::try_from(MANIFEST_LEN_MAX).unwrap();
        folders.begin("one").unwrap().publish(&"x".repeat(len)).unwrap();
        assert!(folders.manifest::<String>("one").is_err());
    }
}
