//! Writes a tree as one tar file: each name once, and after the directory that it is in.

use super::OciError;
use super::archive::Slice;
use super::layer::PATH_LEN_MAX;
use super::tree::{Contents, Node, Tree};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// `layers` are the unpacked ones, as the tree numbers them.
pub(crate) fn write(tree: &Tree, layers: &[File], to: File, bytes_max: u64) -> Result<(), OciError> {
    let mut writer = Writer {
        tar: Builder::new(BufWriter::new(to)),
        layers,
        room: bytes_max,
        bytes_max,
        written: HashMap::new(),
    };
    let mut open = vec![(tree.root(), Vec::new())];
    while let Some((id, path)) = open.pop() {
        let node = tree.node(id);
        if !path.is_empty() {
            writer.append(id, node, &path)?;
        }
        let Contents::Directory(names) = &node.contents else { continue };
        // The first name is taken from the end first.
        for (name, id) in names.iter().rev() {
            let path = if path.is_empty() { name.clone() } else { [&path[..], b"/", name].concat() };
            if path.len() > PATH_LEN_MAX {
                return Err(OciError::TooMuch { what: "bytes in a path", max: PATH_LEN_MAX as u64 });
            }
            open.push((*id, path));
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
}

impl Writer<'_> {
    fn append(&mut self, id: usize, node: &Node, path: &[u8]) -> Result<(), OciError> {
        let as_path = |bytes: &'_ [u8]| Path::new(OsStr::from_bytes(bytes)).to_owned();
        let name = as_path(path);
        let mut header = header(node);
        if let Some(first) = self.written.get(&id) {
            header.set_entry_type(EntryType::Link);
            return self.tar.append_link(&mut header, name, as_path(first)).map_err(OciError::Write);
        }
        if node.is_shared {
            self.written.insert(id, path.to_vec());
        }
        let attributes: Vec<(String, &[u8])> = node
            .meta
            .attributes
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), &value[..]))
            .collect();
        if !attributes.is_empty() {
            let extensions = attributes.iter().map(|(name, value)| (&name[..], *value));
            self.tar.append_pax_extensions(extensions).map_err(OciError::Write)?;
        }
        let appended = match &node.contents {
            Contents::Directory(_) | Contents::Fifo => self.tar.append_data(&mut header, name, io::empty()),
            Contents::Symlink(target) => self.tar.append_link(&mut header, name, as_path(target)),
            Contents::File { layer, offset, size } => {
                let left = self.room.checked_sub(*size);
                self.room = left.ok_or(OciError::TooMuch { what: "bytes", max: self.bytes_max })?;
                let contents = Slice { file: &self.layers[*layer], offset: *offset, len: *size };
                self.tar.append_data(&mut header, name, contents)
            }
        };
        appended.map_err(OciError::Write)
    }
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
