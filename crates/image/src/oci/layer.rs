//! Reads the headers of a plain tar file, each length checked before it is believed.
//!
//! The `tar` crate knows the fields of a header. What it would read without a bound, long names and extended
//! attributes, is read here.

use super::OciError;
use super::budget::Budget;
use super::tree::Meta;
use std::fs::File;
use std::os::unix::fs::FileExt;
use tar::{EntryType, Header};

const BLOCK_BYTES: u64 = 512;
/// All that stands before one entry and is about it: long names, extended headers.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
pub(crate) const PATH_LEN_MAX: usize = 4096;
const NAME_LEN_MAX: usize = 255;
/// Of an attribute's value, as the kernel takes it (XATTR_SIZE_MAX). Its name may be as long as a file's.
const ATTRIBUTE_LEN_MAX: usize = 64 * 1024;
/// What of the extended attributes means anything to a Linux that did not make them.
const ATTRIBUTES: [&str; 2] = ["security.capability", "user."];

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) meta: Meta,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Directory,
    /// Where its contents are in the tar file.
    File {
        offset: u64,
        size: u64,
    },
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Fifo,
    Device,
}

/// What stands before an entry and is about it.
#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime_s: Option<u64>,
    attributes: Vec<(String, Vec<u8>)>,
    /// Read so far.
    bytes: u64,
}

/// Hands over each entry, in order, with the budget that its headers are charged to. `what` is for messages.
pub(crate) fn each(
    file: &File,
    what: &str,
    budget: &mut Budget,
    take: &mut dyn FnMut(Entry, &mut Budget) -> Result<(), OciError>,
) -> Result<(), OciError> {
    let len = file.metadata().map_err(OciError::Read)?.len();
    let mut tar = Tar { file, len, offset: 0, what };
    let mut extension = Extension::default();
    while let Some(header) = tar.header()? {
        budget.header()?;
        let kind = header.entry_type();
        match kind {
            EntryType::XGlobalHeader => drop(tar.skip(tar.size_of(&header)?)?),
            EntryType::XHeader => tar.read_extended(&header, &mut extension)?,
            EntryType::GNULongName => extension.path = Some(tar.long_name(&header, &mut extension)?),
            EntryType::GNULongLink => extension.link = Some(tar.long_name(&header, &mut extension)?),
            _ => take(tar.entry(&header, std::mem::take(&mut extension))?, budget)?,
        }
    }
    Ok(())
}

struct Tar<'a> {
    file: &'a File,
    len: u64,
    offset: u64,
    what: &'a str,
}

impl Tar<'_> {
    /// The next one; none at the end.
    fn header(&mut self) -> Result<Option<Header>, OciError> {
        if self.offset >= self.len {
            return Ok(None);
        }
        let mut header = Header::new_old();
        self.file.read_exact_at(header.as_mut_bytes(), self.offset).map_err(OciError::Read)?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let mut sealed = header.clone();
        sealed.set_cksum();
        let is_sound = header.cksum().is_ok_and(|sum| sealed.cksum().is_ok_and(|right| sum == right));
        if !is_sound {
            return Err(self.malformed(format!("there is no tar header at byte {}", self.offset)));
        }
        self.offset += BLOCK_BYTES;
        Ok(Some(header))
    }

    fn entry(&mut self, header: &Header, extension: Extension) -> Result<Entry, OciError> {
        let path = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extension.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let link = link.unwrap_or_default();
        let kind = match header.entry_type() {
            // So the oldest tar files write directories.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                let size = extension.size.map_or_else(|| self.size_of(header), Ok)?;
                Kind::File { offset: self.skip(size)?, size }
            }
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link),
            EntryType::Link => Kind::HardLink(link),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device,
            _ => {
                let kind = char::from(header.entry_type().as_byte());
                let name = String::from_utf8_lossy(&path).into_owned();
                return Err(self.malformed(format!("{name:?} is an entry of the unknown type {kind:?}")));
            }
        };
        let number = |given: Option<u64>, field: &[u8], value: std::io::Result<u64>| match given {
            Some(number) => Ok(number),
            None if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
            None => value.map_err(|error| self.malformed(error.to_string())),
        };
        let id = |given, field: &[u8], value| {
            let id = number(given, field, value)?;
            u32::try_from(id).map_err(|_| self.malformed(format!("{id} is no user's or group's number")))
        };
        let fields = header.as_old();
        let meta = Meta {
            mode: header.mode().map_err(|error| self.malformed(error.to_string()))? & 0o7777,
            uid: id(extension.uid, &fields.uid, header.uid())?,
            gid: id(extension.gid, &fields.gid, header.gid())?,
            mtime_s: number(extension.mtime_s, &fields.mtime, header.mtime())?,
            attributes: extension.attributes,
        };
        Ok(Entry { path, kind, meta })
    }

    fn size_of(&self, header: &Header) -> Result<u64, OciError> {
        header.entry_size().map_err(|error| self.malformed(error.to_string()))
    }

    /// Gives where the contents begin.
    fn skip(&mut self, size: u64) -> Result<u64, OciError> {
        let start = self.offset;
        let end = start.checked_add(size).filter(|end| *end <= self.len);
        let end =
            end.ok_or_else(|| self.malformed(format!("{size} bytes at {start} are more than it has")))?;
        self.offset = end.next_multiple_of(BLOCK_BYTES);
        Ok(start)
    }

    fn read(&mut self, header: &Header, extension: &mut Extension) -> Result<Vec<u8>, OciError> {
        let size = self.size_of(header)?;
        extension.bytes = extension.bytes.saturating_add(size);
        if extension.bytes > EXTENSION_BYTES_MAX {
            return Err(OciError::TooMuch { what: "bytes in a header", max: EXTENSION_BYTES_MAX });
        }
        let offset = self.skip(size)?;
        let mut contents = vec![0; usize::try_from(size).unwrap_or_default()];
        self.file.read_exact_at(&mut contents, offset).map_err(OciError::Read)?;
        Ok(contents)
    }

    fn long_name(&mut self, header: &Header, extension: &mut Extension) -> Result<Vec<u8>, OciError> {
        let mut name = self.read(header, extension)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn read_extended(&mut self, header: &Header, extension: &mut Extension) -> Result<(), OciError> {
        let contents = self.read(header, extension)?;
        for (key, value) in records(&contents).map_err(|reason| self.malformed(reason))? {
            let number = || {
                let text = std::str::from_utf8(value).ok()?;
                // Of a time, whole seconds are enough.
                text.split('.').next()?.parse::<u64>().ok()
            };
            let number = || number().ok_or_else(|| self.malformed(format!("{key} has no number")));
            match key {
                "path" => extension.path = Some(value.to_vec()),
                "linkpath" => extension.link = Some(value.to_vec()),
                "size" => extension.size = Some(number()?),
                "uid" => extension.uid = Some(number()?),
                "gid" => extension.gid = Some(number()?),
                // Before 1970 is as good as then.
                "mtime" => extension.mtime_s = Some(number().unwrap_or_default()),
                _ if key.starts_with("GNU.sparse.") => {
                    return Err(self.malformed("it has sparse files, which no layer has"));
                }
                _ => {
                    let name = key.strip_prefix("SCHILY.xattr.");
                    let kept = name.filter(|name| ATTRIBUTES.iter().any(|kept| name.starts_with(kept)));
                    if kept.is_some_and(|name| name.len() > NAME_LEN_MAX || value.len() > ATTRIBUTE_LEN_MAX) {
                        return Err(self.malformed("an extended attribute is too long"));
                    }
                    extension.attributes.extend(kept.map(|name| (name.to_owned(), value.to_vec())));
                }
            }
        }
        Ok(())
    }

    fn malformed(&self, reason: impl Into<String>) -> OciError {
        OciError::malformed(self.what, reason)
    }
}

/// The records of an extended header: `LENGTH KEY=VALUE\n`, where the length is that of the whole record.
fn records(mut contents: &[u8]) -> Result<Vec<(&str, &[u8])>, &'static str> {
    const WRONG: &str = "an extended header cannot be understood";
    let mut records = Vec::new();
    while !contents.is_empty() {
        let space = contents.iter().position(|byte| *byte == b' ').ok_or(WRONG)?;
        let len = std::str::from_utf8(&contents[..space]).ok().and_then(|len| len.parse::<usize>().ok());
        let len = len.filter(|len| *len > space && *len <= contents.len()).ok_or(WRONG)?;
        let (record, rest) = contents.split_at(len);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or(WRONG)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(WRONG)?;
        records.push((std::str::from_utf8(&record[..equals]).map_err(|_| WRONG)?, &record[equals + 1..]));
        contents = rest;
    }
    Ok(records)
}

/// The names on a path, without those that mean nothing. None may lead upwards.
pub(crate) fn plain_path(path: &[u8]) -> Result<Vec<&[u8]>, OciError> {
    let refuse = |reason: &str| {
        let shown = String::from_utf8_lossy(&path[..path.len().min(NAME_LEN_MAX)]).into_owned();
        Err(OciError::malformed("tar file", format!("{shown:?} {reason}")))
    };
    if path.len() > PATH_LEN_MAX || path.contains(&0) {
        return refuse("is no path");
    }
    let names: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    if names.iter().any(|name| *name == b"..") {
        return refuse("leads out of its directory");
    }
    if names.iter().any(|name| name.len() > NAME_LEN_MAX) {
        return refuse("has a name that is too long");
    }
    Ok(names)
}
