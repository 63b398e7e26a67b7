//! Writes an initramfs: an uncompressed cpio archive ("newc") that depends on its contents alone.

use std::collections::BTreeMap;
use std::io::{self, Write};

const REGULAR_FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const TRAILER: &str = "TRAILER!!!";

/// An archive being put together. Paths have no leading slash; directories come by themselves.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    /// Sorted, so that a directory stands before what it holds.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    contents: Vec<u8>,
}

impl Archive {
    pub(crate) fn file(&mut self, path: &str, permissions: u32, contents: Vec<u8>) {
        for (slash, _) in path.match_indices('/') {
            let directory = Entry { mode: DIRECTORY | 0o755, contents: Vec::new() };
            self.entries.entry(path[..slash].to_owned()).or_insert(directory);
        }
        self.entries.insert(path.to_owned(), Entry { mode: REGULAR_FILE | permissions, contents });
    }

    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut inode = 0;
        for (path, entry) in &self.entries {
            inode += 1;
            write_entry(out, inode, path, entry)?;
        }
        write_entry(out, 0, TRAILER, &Entry { mode: 0, contents: Vec::new() })
    }
}

fn write_entry(out: &mut impl Write, inode: u32, path: &str, entry: &Entry) -> io::Result<()> {
    let too_long = |_| io::Error::new(io::ErrorKind::FileTooLarge, "a file of an initramfs is over 4 GiB");
    let size = u32::try_from(entry.contents.len()).map_err(too_long)?;
    let name_size = u32::try_from(path.len() + 1).map_err(too_long)?;
    let links = 1;
    // inode, mode, uid, gid, links, mtime, size, four device numbers, length of the name, checksum
    let fields = [inode, entry.mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut header = String::from("070701");
    for field in fields {
        header.push_str(&format!("{field:08X}"));
    }
    header.push_str(path);
    header.push('\0');
    out.write_all(header.as_bytes())?;
    out.write_all(padding(header.len()))?;
    out.write_all(&entry.contents)?;
    out.write_all(padding(entry.contents.len()))
}

fn padding(length: usize) -> &'static [u8] {
    &[0; 3][..length.wrapping_neg() % 4]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(archive: &Archive) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_order_of_adding_does_not_matter() {
        let mut one = Archive::default();
        one.file("init", 0o755, b"i".to_vec());
        one.file("bin/busybox", 0o755, b"b".to_vec());
        let mut other = Archive::default();
        other.file("bin/busybox", 0o755, b"b".to_vec());
        other.file("init", 0o755, b"i".to_vec());
        assert_eq!(bytes(&one), bytes(&other));
    }

    #[test]
    fn directories_stand_before_their_files_and_all_is_aligned() {
        let mut archive = Archive::default();
        archive.file("a/b/c", 0o644, b"12345".to_vec());
        let bytes = bytes(&archive);
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let places = ["a\0", "a/b\0", "a/b/c\0", TRAILER].map(|name| text.find(name).unwrap());
        assert!(places.is_sorted(), "{places:?}");
        assert!(text.starts_with("070701"));
    }
}
