//! What reading one image may take, whoever made it: all that an archive can make long is charged here, wherever
//! it stands, before it is kept or followed.

use super::OciError;

/// Headers of tar files, of the archive and of all layers, those included that only announce the next one. Real
/// images have up to three for each file.
const HEADERS_MAX: u64 = 8_000_000;
/// Names of files, directories and links, hard ones too, also those that a later layer takes away.
const NAMES_MAX: u64 = 2_000_000;
/// Names, paths, links and attributes in memory.
const BYTES_MAX: u64 = 256 << 20;
/// Names on the way to a file, with those of links that are followed, for all files together: links are short, and
/// what they make of a path is not.
const STEPS_MAX: u64 = 1_000_000_000;
/// Directories within each other.
const DEPTH_MAX: usize = 256;

#[derive(Debug, Clone)]
pub(crate) struct Budget {
    headers: u64,
    names: u64,
    bytes: u64,
    steps: u64,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { headers: HEADERS_MAX, names: NAMES_MAX, bytes: BYTES_MAX, steps: STEPS_MAX }
    }
}

impl Budget {
    pub(crate) fn header(&mut self) -> Result<(), OciError> {
        take(&mut self.headers, 1, "tar headers", HEADERS_MAX)
    }

    /// One that is kept.
    pub(crate) fn name(&mut self, name: &[u8]) -> Result<(), OciError> {
        take(&mut self.names, 1, "files", NAMES_MAX)?;
        self.bytes(name.len())
    }

    /// Kept, besides names.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<(), OciError> {
        take(&mut self.bytes, len as u64, "bytes of names", BYTES_MAX)
    }

    pub(crate) fn step(&mut self) -> Result<(), OciError> {
        take(&mut self.steps, 1, "names on the ways to its files", STEPS_MAX)
    }

    pub(crate) fn attributes(&mut self, attributes: &[(String, Vec<u8>)]) -> Result<(), OciError> {
        self.bytes(attributes.iter().map(|(name, value)| name.len() + value.len()).sum())
    }
}

/// `depth` is that of the directory which something is to lie in.
pub(crate) fn check_depth(depth: usize) -> Result<(), OciError> {
    match depth > DEPTH_MAX {
        true => Err(OciError::TooMuch { what: "directories within each other", max: DEPTH_MAX as u64 }),
        false => Ok(()),
    }
}

fn take(left: &mut u64, count: u64, what: &'static str, max: u64) -> Result<(), OciError> {
    *left = left.checked_sub(count).ok_or(OciError::TooMuch { what, max })?;
    Ok(())
}

#[cfg(test)]
impl Budget {
    /// One that is soon used up.
    pub(crate) fn small(headers: u64, names: u64, bytes: u64, steps: u64) -> Budget {
        Budget { headers, names, bytes, steps }
    }
}
