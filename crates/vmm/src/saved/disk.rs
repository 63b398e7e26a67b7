//! The disk in a file. It is read in place when the machine is taken up: the file becomes a layer of the disk.

use super::SavedError;
use super::blocks::{BlocksReader, BlocksWriter, Kind};
use super::part::{BLOCK_LEN, Part, Written, byte_len};
use super::state::SavedState;
use crate::devices::virtio::block::disk::{Disk, DiskError, Extent};
use std::fs::File;

/// What is read at once.
const READ_LEN: usize = 1 << 20;

/// Writes what is on the disk. A base is of any machine with the same base image.
pub(super) fn save(disk: &Disk, file: File, base: Option<BlocksReader>) -> Result<Written, SavedError> {
    let failed = |source| SavedError::File { part: Part::Disk, source };
    if let Some(base) = base.as_ref().filter(|base| base.end() > disk.blocks()) {
        let old = base.end().saturating_mul(byte_len(BLOCK_LEN));
        return Err(DiskError::Shorter { old, bytes: disk.bytes() }.into());
    }
    let mut writer = BlocksWriter::new(file, Part::Disk, disk.blocks(), base);
    let mut buffer = vec![0; READ_LEN];
    let mut block = 0;
    while block < disk.blocks() {
        let (extent, count) = disk.extent(block, READ_LEN);
        match extent {
            Extent::Untouched => {
                for block in block..block + count {
                    if writer.base_has(block) {
                        let content = &mut buffer[..BLOCK_LEN];
                        disk.read_blocks(block, content).map_err(failed)?;
                        writer.put(block, content)?;
                    }
                }
            }
            Extent::Zeros => (block..block + count).try_for_each(|block| writer.put_zeros(block))?,
            Extent::Written => {
                let content = &mut buffer[..usize::try_from(count).unwrap_or(0) * BLOCK_LEN];
                disk.read_blocks(block, content).map_err(failed)?;
                for (block, content) in (block..).zip(content.chunks(BLOCK_LEN)) {
                    writer.put(block, content)?;
                }
            }
        }
        block += count;
    }
    writer.finish()
}

/// Whether the saved blocks are those of a disk of the saved length.
pub(super) fn check(state: &SavedState, blocks: &BlocksReader) -> Result<(), SavedError> {
    let block_len = byte_len(BLOCK_LEN);
    if state.disk_bytes % block_len != 0 || blocks.end() != state.disk_bytes / block_len {
        return Err(SavedError::Malformed { part: Part::Disk, detail: "it is of a disk of another length" });
    }
    Ok(())
}

impl Disk {
    /// Gives the disk the saved content, as far as there is any. Its length is the saved one's.
    pub(super) fn overlay(&mut self, blocks: &BlocksReader) -> Result<(), DiskError> {
        let file = blocks.file().try_clone().map_err(DiskError::Saved)?;
        // Data begins a whole number of blocks from the start of the file.
        let in_file = |block| BlocksReader::offset_of(block) / byte_len(BLOCK_LEN);
        let runs = blocks.runs().map(|(run, block)| {
            let place = (run.kind == Kind::Data).then(|| in_file(block));
            (run.range(), place)
        });
        self.lay_over(file, runs)
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
