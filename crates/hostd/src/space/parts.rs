//! How the three parts of a saved machine lie in a folder: as they are, or sealed. A machine is saved into files and made of
//! files that are as they are; those of sealed ones have no name, and are gone with their last user.

use super::seal::SealingKey;
use crate::vmm::SavedFiles;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub(super) const NAMES: [&str; 3] = ["state", "memory", "disk"];

/// Where parts are, and what they are sealed with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) folder: &'a Path,
    /// By which the folder goes when it is complete.
    pub(super) name: &'a str,
    pub(super) key: Option<&'a SealingKey>,
}

impl Parts<'_> {
    /// Files for a machine to be written into.
    pub(super) fn create(&self) -> io::Result<SavedFiles> {
        let open = |name: &str| match self.key {
            Some(_) => nameless(self.folder, name),
            None => new_file(self.folder, name),
        };
        NAMES.map(open).into_iter().collect::<io::Result<Vec<_>>>().and_then(whole)
    }

    /// Has all that was written on the disk, and says how many bytes that are.
    pub(super) fn finish(&self, files: &SavedFiles) -> io::Result<u64> {
        let Some(key) = self.key else { return files.sync() };
        let mut bytes = 0;
        for (part, mut plain) in NAMES.into_iter().zip(files.parts()) {
            let mut sealed = new_file(self.folder, part)?;
            plain.rewind()?;
            key.seal(&self.name_of(part), &mut plain, &mut sealed)?;
            sealed.sync_all()?;
            bytes += sealed.metadata()?.len();
        }
        Ok(bytes)
    }

    /// What was written there, for a machine to be made of.
    pub(super) fn open(&self) -> io::Result<SavedFiles> {
        let open = |part: &str| {
            let mut stored = File::open(self.folder.join(part))?;
            let Some(key) = self.key else { return Ok(stored) };
            let mut plain = nameless(self.folder, part)?;
            key.open(&self.name_of(part), &mut stored, &mut plain)?;
            Ok(plain)
        };
        NAMES.map(open).into_iter().collect::<io::Result<Vec<_>>>().and_then(whole)
    }

    fn name_of(&self, part: &str) -> String {
        format!("{}/{part}", self.name)
    }
}

fn whole(files: Vec<File>) -> io::Result<SavedFiles> {
    let parts: Result<[File; 3], _> = files.try_into();
    parts.map(SavedFiles::new).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn new_file(folder: &Path, name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600).open(folder.join(name))
}

fn nameless(folder: &Path, part: &str) -> io::Result<File> {
    let name = format!(".plain-{part}-{}", uuid());
    let file = new_file(folder, &name)?;
    std::fs::remove_file(folder.join(name))?;
    Ok(file)
}

fn uuid() -> String {
    podflare_api::id::SpaceId::random().to_string()
}
