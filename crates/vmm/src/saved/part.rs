//! One part of a saved machine, and the only place that reads and writes its file.
//!
//! ```text
//!   0         4096                        4096 + data length        end of file
//!   ┌─────────┬────────────────────────────┬───────────────────────┐
//!   │ header  │ data, in blocks of 4 KiB   │ index                 │
//!   └─────────┴────────────────────────────┴───────────────────────┘
//! ```
//!
//! The header is written last: a file that was not finished is none. Its checksum is over the rest of the
//! header and the index, and the index has a checksum for each chunk of the data; so it names the whole
//! content, and is the part's [`Digest`].

use super::SavedError;
use podflare_wire::codec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What data is counted in: a page of memory, a block of the disk.
pub(crate) const BLOCK_LEN: usize = 4096;

/// Data under one checksum.
pub(super) const CHUNK_LEN: usize = 256 * BLOCK_LEN;

pub(super) const VERSION: u32 = 1;

/// The longest index: every other page of the largest memory, with room.
const INDEX_LEN_MAX: u64 = 256 << 20;

const HEADER_LEN: usize = BLOCK_LEN;
const MAGIC: [u8; 8] = *b"PODFSAVE";
const DIGEST_AT: usize = 32;
const DIGEST_LEN: usize = 32;

/// BLAKE3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Digest([u8; DIGEST_LEN]);

impl Digest {
    fn of(bytes: &[u8]) -> Digest {
        Digest(blake3::hash(bytes).into())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    State,
    Memory,
    Disk,
}

impl Part {
    fn number(self) -> u32 {
        match self {
            Part::State => 1,
            Part::Memory => 2,
            Part::Disk => 3,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::State => "saved state",
            Part::Memory => "saved memory",
            Part::Disk => "saved disk",
        })
    }
}

/// A part that is complete.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub(super) digest: Digest,
    /// The length of its file.
    pub(super) bytes: u64,
}

/// Writes a part without data.
pub(super) fn write(file: File, part: Part, index: &impl Serialize) -> Result<Written, SavedError> {
    PartWriter::new(file, part).finish(index)
}

/// Reads a part without data.
pub(super) fn read<T: DeserializeOwned>(file: File, part: Part) -> Result<(T, Digest), SavedError> {
    let (reader, index) = PartReader::open(file, part)?;
    if reader.data_blocks() > 0 {
        return Err(SavedError::Malformed { part, detail: "it has data" });
    }
    Ok((index, reader.digest))
}

#[derive(Debug)]
pub(super) struct PartWriter {
    file: File,
    part: Part,
    /// What has been written of the data.
    data_len: u64,
    chunk: Vec<u8>,
    chunks: Vec<Digest>,
}

impl PartWriter {
    /// The file is empty.
    pub(super) fn new(file: File, part: Part) -> PartWriter {
        PartWriter { file, part, data_len: 0, chunk: Vec::new(), chunks: Vec::new() }
    }

    pub(super) fn part(&self) -> Part {
        self.part
    }

    /// Appends a block of data.
    pub(super) fn push(&mut self, block: &[u8]) -> Result<(), SavedError> {
        debug_assert_eq!(block.len(), BLOCK_LEN);
        self.chunk.extend_from_slice(block);
        if self.chunk.len() >= CHUNK_LEN { self.flush() } else { Ok(()) }
    }

    /// Writes the index and the header.
    pub(super) fn finish(mut self, index: &impl Serialize) -> Result<Written, SavedError> {
        self.flush()?;
        let index = codec::encode(&(&self.chunks, index));
        let index_len = byte_len(index.len());
        if index_len > INDEX_LEN_MAX {
            return Err(SavedError::Malformed { part: self.part, detail: "its index would be too long" });
        }
        let mut header = Header { data_len: self.data_len, index_len }.encode(self.part);
        let digest = digest_of(&header, &index);
        header[DIGEST_AT..][..DIGEST_LEN].copy_from_slice(&digest.0);
        self.write_at(&index, byte_len(HEADER_LEN) + self.data_len)?;
        self.write_at(&header, 0)?;
        Ok(Written { digest, bytes: byte_len(HEADER_LEN) + self.data_len + index_len })
    }

    fn flush(&mut self) -> Result<(), SavedError> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.write_at(&self.chunk, byte_len(HEADER_LEN) + self.data_len)?;
        self.data_len += byte_len(self.chunk.len());
        self.chunks.push(Digest::of(&self.chunk));
        self.chunk.clear();
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), SavedError> {
        let failed = |source| SavedError::File { part: self.part, source };
        self.file.write_all_at(bytes, offset).map_err(failed)
    }
}

/// A part whose header and index are whole.
#[derive(Debug)]
pub(super) struct PartReader {
    file: File,
    part: Part,
    data_len: u64,
    chunks: Vec<Digest>,
    digest: Digest,
}

impl PartReader {
    pub(super) fn open<T: DeserializeOwned>(file: File, part: Part) -> Result<(PartReader, T), SavedError> {
        let failed = |source| SavedError::File { part, source };
        let actual = file.metadata().map_err(failed)?.len();
        if actual < byte_len(HEADER_LEN) {
            return Err(SavedError::NotAPart { part });
        }
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0).map_err(failed)?;
        let Header { data_len, index_len } = Header::decode(&header, part)?;
        let expected = byte_len(HEADER_LEN).saturating_add(data_len).saturating_add(index_len);
        if actual != expected {
            return Err(SavedError::Length { part, actual, expected });
        }
        let malformed = |detail| SavedError::Malformed { part, detail };
        if index_len > INDEX_LEN_MAX || data_len % byte_len(BLOCK_LEN) != 0 {
            return Err(malformed("its lengths are not possible"));
        }
        let mut index = vec![0; usize::try_from(index_len).unwrap_or(0)];
        file.read_exact_at(&mut index, byte_len(HEADER_LEN) + data_len).map_err(failed)?;
        let mut digest = [0; DIGEST_LEN];
        digest.copy_from_slice(&header[DIGEST_AT..][..DIGEST_LEN]);
        header[DIGEST_AT..][..DIGEST_LEN].fill(0);
        let digest = Digest(digest);
        if digest_of(&header, &index) != digest {
            return Err(SavedError::Index { part });
        }
        let (chunks, index) = codec::decode::<(Vec<Digest>, T)>(&index)
            .map_err(|_| malformed("its index is not one of this version"))?;
        if byte_len(chunks.len()) != data_len.div_ceil(byte_len(CHUNK_LEN)) {
            return Err(malformed("it has not one checksum for each chunk"));
        }
        Ok((PartReader { file, part, data_len, chunks, digest }, index))
    }

    pub(super) fn part(&self) -> Part {
        self.part
    }

    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

    pub(super) fn data_blocks(&self) -> u64 {
        self.data_len / byte_len(BLOCK_LEN)
    }

    /// The data may be mapped or read from here as it is.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Where a block of the data is in the file.
    pub(super) fn offset_of(block: u64) -> u64 {
        byte_len(HEADER_LEN) + block * byte_len(BLOCK_LEN)
    }

    /// Data from a block on, not compared with its checksum.
    pub(super) fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), SavedError> {
        let failed = |source| SavedError::File { part: self.part, source };
        self.file.read_exact_at(buffer, PartReader::offset_of(block)).map_err(failed)
    }

    /// A chunk that is as it was written.
    pub(super) fn chunk(&self, chunk: usize) -> Result<Vec<u8>, SavedError> {
        let start = byte_len(chunk).saturating_mul(byte_len(CHUNK_LEN));
        let len = self.data_len.saturating_sub(start).min(byte_len(CHUNK_LEN));
        let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read(start / byte_len(BLOCK_LEN), &mut data)?;
        if self.chunks.get(chunk) != Some(&Digest::of(&data)) {
            return Err(SavedError::Chunk { part: self.part, chunk: byte_len(chunk) });
        }
        Ok(data)
    }

    /// Compares all data with its checksums.
    pub(super) fn verify(&self) -> Result<(), SavedError> {
        (0..self.chunks.len()).try_for_each(|chunk| self.chunk(chunk).map(drop))
    }
}

struct Header {
    data_len: u64,
    index_len: u64,
}

impl Header {
    /// Without the checksum, whose place is zeros.
    fn encode(&self, part: Part) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&part.number().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.data_len.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.index_len.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_LEN], part: Part) -> Result<Header, SavedError> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let half = |at: usize| {
            let mut half = [0; 4];
            half.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(half)
        };
        if bytes[..8] != MAGIC {
            return Err(SavedError::NotAPart { part });
        }
        if half(8) != VERSION {
            return Err(SavedError::Version { part, found: half(8) });
        }
        if half(12) != part.number() {
            return Err(SavedError::NotAPart { part });
        }
        Ok(Header { data_len: word(16), index_len: word(24) })
    }
}

fn digest_of(header: &[u8; HEADER_LEN], index: &[u8]) -> Digest {
    Digest(blake3::Hasher::new().update(header).update(index).finalize().into())
}

pub(super) fn byte_len(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "part_tests.rs"]
mod tests;
