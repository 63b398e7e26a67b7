//! Memory or a disk as runs of blocks of 4 KiB, each with data or all zeros. What is in no run is as in the
//! base; without one it is zeros in memory, and the base disk's on a disk.

use super::SavedError;
use super::part::{BLOCK_LEN, CHUNK_LEN, Digest, Part, PartReader, PartWriter, Written};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::ops::Range;

const CHUNK_BLOCKS: u64 = (CHUNK_LEN / BLOCK_LEN) as u64;

const ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// Its blocks follow each other in the data, behind those of the runs before.
    Data,
    Zeros,
}

/// Blocks that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) kind: Kind,
}

impl Run {
    pub(super) fn range(self) -> Range<u64> {
        self.first..self.first + self.count
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    /// Block numbers are below this.
    end: u64,
    /// Ascending, each behind the end of the one before.
    runs: Vec<Run>,
}

/// Writes blocks in ascending order, those that differ from a base if there is one.
#[derive(Debug)]
pub(super) struct BlocksWriter {
    writer: PartWriter,
    index: Index,
    base: Option<Cursor>,
}

impl BlocksWriter {
    pub(super) fn new(file: File, part: Part, end: u64, base: Option<BlocksReader>) -> BlocksWriter {
        BlocksWriter {
            writer: PartWriter::new(file, part),
            index: Index { end, runs: Vec::new() },
            base: base.map(Cursor::new),
        }
    }

    /// The block has this content.
    pub(super) fn put(&mut self, block: u64, content: &[u8]) -> Result<(), SavedError> {
        if content == ZEROS {
            return self.put_zeros(block);
        }
        if let Some(base) = &mut self.base
            && let Stored::Data(stored) = base.get(block)?
            && stored == content
        {
            return Ok(());
        }
        self.writer.push(content)?;
        self.add(block, Kind::Data);
        Ok(())
    }

    /// The block is all zeros.
    pub(super) fn put_zeros(&mut self, block: u64) -> Result<(), SavedError> {
        let stored = match &mut self.base {
            Some(base) => base.get(block)?,
            None => Stored::Nothing,
        };
        let is_so_already = match stored {
            Stored::Zeros => true,
            Stored::Nothing => self.writer.part() == Part::Memory,
            Stored::Data(_) => false,
        };
        if !is_so_already {
            self.add(block, Kind::Zeros);
        }
        Ok(())
    }

    /// Whether the block is in a run of the base. Blocks are asked for in ascending order, too.
    pub(super) fn base_has(&mut self, block: u64) -> bool {
        self.base.as_mut().is_some_and(|base| base.run_of(block).is_some())
    }

    pub(super) fn finish(self) -> Result<Written, SavedError> {
        self.writer.finish(&self.index)
    }

    fn add(&mut self, block: u64, kind: Kind) {
        match self.index.runs.last_mut() {
            Some(run) if run.kind == kind && run.first + run.count == block => run.count += 1,
            _ => self.index.runs.push(Run { first: block, count: 1, kind }),
        }
    }
}

/// Blocks that were saved. Every run is within the bounds, and has its data in the file.
#[derive(Debug)]
pub(crate) struct BlocksReader {
    reader: PartReader,
    index: Index,
}

impl BlocksReader {
    pub(super) fn open(file: File, part: Part) -> Result<BlocksReader, SavedError> {
        let (reader, index) = PartReader::open::<Index>(file, part)?;
        let malformed = |detail| SavedError::Malformed { part, detail };
        let (mut end, mut data) = (0, 0_u64);
        for run in &index.runs {
            let run_end = run.first.checked_add(run.count).filter(|&run_end| run_end <= index.end);
            let Some(run_end) = run_end else { return Err(malformed("a run is out of bounds")) };
            if run.first < end || run.count == 0 {
                return Err(malformed("its runs are not in order"));
            }
            end = run_end;
            if run.kind == Kind::Data {
                data = data.saturating_add(run.count);
            }
        }
        if data != reader.data_blocks() {
            return Err(malformed("its runs and its data differ in length"));
        }
        Ok(BlocksReader { reader, index })
    }

    pub(super) fn part(&self) -> Part {
        self.reader.part()
    }

    pub(super) fn digest(&self) -> Digest {
        self.reader.digest()
    }

    pub(super) fn end(&self) -> u64 {
        self.index.end
    }

    /// Each run, and for one with data the number of its first block in the data.
    pub(super) fn runs(&self) -> impl Iterator<Item = (Run, u64)> + Clone {
        self.index.runs.iter().scan(0, |data, &run| {
            let at = *data;
            if run.kind == Kind::Data {
                *data += run.count;
            }
            Some((run, at))
        })
    }

    /// Content from a block of the data on, not compared with its checksum.
    pub(super) fn read(&self, block: u64, buffer: &mut [u8]) -> Result<(), SavedError> {
        self.reader.read(block, buffer)
    }

    pub(super) fn file(&self) -> &File {
        self.reader.file()
    }

    pub(super) fn offset_of(block: u64) -> u64 {
        PartReader::offset_of(block)
    }

    pub(super) fn verify(&self) -> Result<(), SavedError> {
        self.reader.verify()
    }
}

/// What a base has for a block.
enum Stored<'a> {
    Nothing,
    Zeros,
    Data(&'a [u8]),
}

/// Goes through a base in ascending order, and compares what it reads with its checksums: a wrong byte there would
/// become one of the machine's.
#[derive(Debug)]
struct Cursor {
    base: BlocksReader,
    /// The run that comes next, and the number of its first block in the data.
    next: usize,
    data: u64,
    chunk: Option<(u64, Vec<u8>)>,
}

impl Cursor {
    fn new(base: BlocksReader) -> Cursor {
        Cursor { base, next: 0, data: 0, chunk: None }
    }

    /// The run that a block is in.
    fn run_of(&mut self, block: u64) -> Option<Run> {
        loop {
            let run = *self.base.index.runs.get(self.next)?;
            if run.range().end > block {
                return (run.first <= block).then_some(run);
            }
            self.next += 1;
            if run.kind == Kind::Data {
                self.data += run.count;
            }
        }
    }

    fn get(&mut self, block: u64) -> Result<Stored<'_>, SavedError> {
        let Some(run) = self.run_of(block) else { return Ok(Stored::Nothing) };
        if run.kind == Kind::Zeros {
            return Ok(Stored::Zeros);
        }
        let data = self.data + (block - run.first);
        let number = data / CHUNK_BLOCKS;
        if !matches!(&self.chunk, Some((loaded, _)) if *loaded == number) {
            let chunk = self.base.reader.chunk(usize::try_from(number).unwrap_or(usize::MAX))?;
            self.chunk = Some((number, chunk));
        }
        let start = usize::try_from(data % CHUNK_BLOCKS).unwrap_or(0) * BLOCK_LEN;
        let content = self.chunk.as_ref().and_then(|(_, chunk)| chunk.get(start..start + BLOCK_LEN));
        Ok(content.map_or(Stored::Nothing, Stored::Data))
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
