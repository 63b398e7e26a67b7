//! A frozen machine in files.

use podflare_wire::control::Fault;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

/// Three parts that belong together, open.
#[derive(Debug)]
pub struct SavedFiles {
    parts: [File; 3],
}

/// What a machine that was saved whole is made of again.
#[derive(Debug)]
pub struct LoadSpec {
    pub files: SavedFiles,
    /// The image file or block device that it was booted with.
    pub rootfs: PathBuf,
}

/// Files are of no use to a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unusable {
    pub fault: Fault,
    pub reason: String,
}

impl SavedFiles {
    /// State, memory and disk.
    pub fn new(parts: [File; 3]) -> SavedFiles {
        SavedFiles { parts }
    }

    pub fn parts(&self) -> &[File; 3] {
        &self.parts
    }

    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        self.parts.each_ref().map(File::as_fd)
    }

    /// Returns when all of it is on the disk, and says how many bytes that are.
    pub fn sync(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for part in &self.parts {
            part.sync_all()?;
            bytes += part.metadata()?.len();
        }
        Ok(bytes)
    }
}
