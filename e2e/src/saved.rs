//! A machine in files.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// Its three parts. They have no names, and vanish with whoever uses them last.
#[derive(Debug)]
pub struct Saved {
    pub state: File,
    pub memory: File,
    pub disk: File,
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
impl Saved {
    pub(crate) fn empty() -> Saved {
        let file = || tempfile::tempfile().unwrap();
        Saved { state: file(), memory: file(), disk: file() }
    }

    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        self.parts().map(File::as_fd)
    }

    pub fn parts(&self) -> [&File; 3] {
        [&self.state, &self.memory, &self.disk]
    }

    /// Bytes of each.
    pub fn lens(&self) -> [u64; 3] {
        self.parts().map(|file| file.metadata().unwrap().len())
    }

    /// Bytes of all three.
    pub fn len(&self) -> u64 {
        self.lens().iter().sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Turns all bits of one byte of a file around.
///
/// # Panics
/// When the file cannot be read and written.
#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
pub fn flip_byte(file: &File, offset: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
}
