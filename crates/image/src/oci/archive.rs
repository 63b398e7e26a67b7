//! The archive itself: files by name, read in place.

use super::OciError;
use super::blob::{copy_bounded, decompressed};
use super::budget::Budget;
use super::layer::{self, Entry, Kind, plain_path};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Manifests and configurations.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// A link in an archive of an older `docker save` leads to a layer, not to another link.
const LINKS_MAX: usize = 4;

#[derive(Debug)]
pub(crate) struct Archive {
    file: File,
    members: HashMap<Vec<u8>, Member>,
}

#[derive(Debug)]
enum Member {
    File { offset: u64, size: u64 },
    Link(Vec<u8>),
}

impl Archive {
    /// One that is compressed as a whole is unpacked first, into `scratch`.
    pub(crate) fn open(
        path: &Path,
        scratch: &Path,
        bytes_max: u64,
        budget: &mut Budget,
    ) -> Result<Archive, OciError> {
        let packed = File::open(path).map_err(OciError::Read)?;
        let file = unpacked(&packed, scratch, bytes_max)?.unwrap_or(packed);
        let mut members = HashMap::new();
        layer::each(&file, "archive", budget, &mut |Entry { path, kind, .. }, budget| {
            let member = match kind {
                Kind::File { offset, size } => Member::File { offset, size },
                Kind::Symlink(target) => {
                    budget.bytes(target.len())?;
                    Member::Link(target)
                }
                _ => return Ok(()),
            };
            let name = plain_path(&path)?.join(&b'/');
            budget.name(&name)?;
            // Which of them counts would depend on who reads it.
            if members.insert(name.clone(), member).is_some() {
                let name = String::from_utf8_lossy(&name).into_owned();
                return Err(OciError::malformed("archive", format!("{name:?} is in it twice")));
            }
            Ok(())
        })?;
        Ok(Archive { file, members })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name.as_bytes())
    }

    /// A file's contents, to be read from the beginning.
    pub(crate) fn reader(&self, name: &str) -> Result<Slice<'_>, OciError> {
        let mut path = name.as_bytes().to_vec();
        for _ in 0..LINKS_MAX {
            match self.members.get(&path) {
                Some(Member::File { offset, size }) => {
                    return Ok(Slice { file: &self.file, offset: *offset, len: *size });
                }
                Some(Member::Link(target)) => path = beside(&path, target)?,
                None => break,
            }
        }
        Err(OciError::malformed("archive", format!("it has no {name:?}")))
    }

    /// A small file.
    pub(crate) fn document(&self, name: &str) -> Result<Vec<u8>, OciError> {
        let reader = self.reader(name)?;
        if reader.len > DOCUMENT_BYTES_MAX {
            return Err(OciError::TooMuch { what: "bytes in a document", max: DOCUMENT_BYTES_MAX });
        }
        let mut contents = Vec::new();
        reader.take(DOCUMENT_BYTES_MAX).read_to_end(&mut contents).map_err(OciError::Read)?;
        Ok(contents)
    }
}

/// None if it is not compressed.
fn unpacked(packed: &File, scratch: &Path, bytes_max: u64) -> Result<Option<File>, OciError> {
    let len = packed.metadata().map_err(OciError::Read)?.len();
    let (reader, is_compressed) = decompressed(Slice { file: packed, offset: 0, len })?;
    if !is_compressed {
        return Ok(None);
    }
    let mut unpacked = tempfile::tempfile_in(scratch).map_err(OciError::Write)?;
    copy_bounded(reader, &mut unpacked, bytes_max)?;
    Ok(Some(unpacked))
}

/// Where a relative link leads.
fn beside(link: &[u8], target: &[u8]) -> Result<Vec<u8>, OciError> {
    let mut path: Vec<&[u8]> = link.split(|byte| *byte == b'/').collect();
    path.pop();
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(path.pop()),
            _ => path.push(part),
        }
    }
    match Path::new(std::ffi::OsStr::from_bytes(target)).is_absolute() {
        true => Err(OciError::malformed("archive", "it has a link to an absolute path")),
        false => Ok(path.join(&b'/')),
    }
}

/// A part of a file.
#[derive(Debug, Clone)]
pub(crate) struct Slice<'a> {
    pub(crate) file: &'a File,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.len).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += count as u64;
        self.len -= count as u64;
        Ok(count)
    }
}
