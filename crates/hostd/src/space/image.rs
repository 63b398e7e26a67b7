//! What tells one root disk image from another.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes at its start: the superblock of an ext4 is in them, with a random id, the time at which it was made, and the one
/// at which it was last written.
const START_LEN: usize = 4096;

/// Of an image: its length, and its first bytes. Reading gigabytes at each start would tell no more of images that
/// [nobody writes to](crate::template::Definition::rootfs).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDigest(String);

impl ImageDigest {
    /// Of an image file or a block device.
    pub fn read(path: &Path) -> io::Result<ImageDigest> {
        let mut file = File::open(path)?;
        let len = file.seek(SeekFrom::End(0))?;
        let mut start = vec![0; START_LEN.min(usize::try_from(len).unwrap_or(START_LEN))];
        file.read_exact_at(&mut start, 0)?;
        let digest = Sha256::new().chain_update(len.to_le_bytes()).chain_update(start).finalize();
        Ok(ImageDigest(digest.iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn images_are_told_apart_by_their_length_and_their_start() {
        let dir = tempfile::tempdir().unwrap();
        let digest = |content: &[u8]| {
            let path = dir.path().join("image");
            fs::write(&path, content).unwrap();
            ImageDigest::read(&path).unwrap()
        };
        let image = digest(&[7; 8192]);
        assert_eq!(image, digest(&[7; 8192]));
        assert_ne!(image, digest(&[7; 8193]));
        let mut other = [7; 8192];
        other[1024] = 8;
        assert_ne!(image, digest(&other));
        assert_ne!(digest(b""), digest(b"x"));
    }
}
