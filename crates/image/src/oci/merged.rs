//! Writes a tree as one tar file: each name once, and after the directory that it is in.

use super::OciError;
use super::archive::Slice;
use super::budget::Budget;
use super::layer::PATH_LEN_MAX;
use super::tree::{Contents, Node, Tree};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tar::{Builder, EntryType, Header};

const BLOCK_BYTES: u64 = 512;
/// Longer ones have a header of their own.
const FIELD_LEN: usize = 100;
/// What a record of an extended header takes besides its key and value, at most.
const RECORD_LEN: usize = 32;

/// `layers` are the unpacked ones, as the tree numbers them. Of `bytes_max` each header takes its part.
pub(crate) fn write(
    tree: &Tree,
    layers: &[File],
    to: File,
    bytes_max: u64,
    budget: &mut Budget,
) -> Result<(), OciError> {
    let tar = Builder::new(BufWriter::new(to));
    // The tar file's end are two blocks.
    let room = bytes_max.saturating_sub(2 * BLOCK_BYTES);
    let mut writer = Writer { tar, layers, room, bytes_max, written: HashMap::new(), budget };
    let mut path: Vec<u8> = Vec::new();
    // The names that are left in each directory on the way, and how much of the path is that directory's.
    let mut open = vec![(tree.names(tree.root()).iter(), 0)];
    while let Some((names, len)) = open.last_mut() {
        path.truncate(*len);
        let Some((name, id)) = names.next() else {
            open.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if path.len() > PATH_LEN_MAX {
            return Err(OciError::TooMuch { what: "bytes in a path", max: PATH_LEN_MAX as u64 });
        }
        let node = tree.node(*id);
        writer.append(*id, node, &path)?;
        if let Contents::Directory(names) = &node.contents {
            open.push((names.iter(), path.len()));
        }
    }
    let mut to = writer.tar.into_inner().map_err(OciError::Write)?;
    to.flush().map_err(OciError::Write)
}

struct Writer<'a> {
    tar: Builder<BufWriter<File>>,
    layers: &'a [File],
    room: u64,
    bytes_max: u64,
    /// Where files are that hard links lead to.
    written: HashMap<usize, Vec<u8>>,
    budget: &'a mut Budget,
}

impl Writer<'_> {
    fn append(&mut self, id: usize, node: &Node, path: &[u8]) -> Result<(), OciError> {
        let as_path = |bytes: &'_ [u8]| Path::new(OsStr::from_bytes(bytes)).to_owned();
        let name = as_path(path);
        let mut header = header(node);
        self.take(BLOCK_BYTES + long(path.len()))?;
        if let Some(first) = self.written.get(&id).cloned() {
            self.take(long(first.len()))?;
            header.set_entry_type(EntryType::Link);
            return self.tar.append_link(&mut header, name, as_path(&first)).map_err(OciError::Write);
        }
        if node.is_shared {
            self.budget.bytes(path.len())?;
            self.written.insert(id, path.to_vec());
        }
        let attributes: Vec<(String, &[u8])> = node
            .meta
            .attributes
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), &value[..]))
            .collect();
        if !attributes.is_empty() {
            let len: usize =
                attributes.iter().map(|(name, value)| name.len() + value.len() + RECORD_LEN).sum();
            self.take(BLOCK_BYTES + blocks(len as u64))?;
            let extensions = attributes.iter().map(|(name, value)| (&name[..], *value));
            self.tar.append_pax_extensions(extensions).map_err(OciError::Write)?;
        }
        let appended = match &node.contents {
            Contents::Directory(_) | Contents::Fifo => self.tar.append_data(&mut header, name, io::empty()),
            Contents::Symlink(target) => {
                self.take(long(target.len()))?;
                self.tar.append_link(&mut header, name, as_path(target))
            }
            Contents::File { layer, offset, size } => {
                self.take(blocks(*size))?;
                let contents = Slice { file: &self.layers[*layer], offset: *offset, len: *size };
                self.tar.append_data(&mut header, name, contents)
            }
        };
        appended.map_err(OciError::Write)
    }

    /// Of what may be written.
    fn take(&mut self, bytes: u64) -> Result<(), OciError> {
        let left = self.room.checked_sub(bytes);
        self.room = left.ok_or(OciError::TooMuch { what: "bytes", max: self.bytes_max })?;
        Ok(())
    }
}

/// What a path takes besides its entry's header.
fn long(len: usize) -> u64 {
    if len < FIELD_LEN { 0 } else { BLOCK_BYTES + blocks(len as u64 + 1) }
}

fn blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES)
}

fn header(node: &Node) -> Header {
    let mut header = Header::new_gnu();
    let (kind, size) = match &node.contents {
        Contents::Directory(_) => (EntryType::Directory, 0),
        Contents::File { size, .. } => (EntryType::Regular, *size),
        Contents::Symlink(_) => (EntryType::Symlink, 0),
        Contents::Fifo => (EntryType::Fifo, 0),
    };
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(node.meta.mode);
    header.set_uid(node.meta.uid.into());
    header.set_gid(node.meta.gid.into());
    header.set_mtime(node.meta.mtime_s);
    header
}
