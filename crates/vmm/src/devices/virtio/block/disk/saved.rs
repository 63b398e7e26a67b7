//! What to save a disk and to take it up again needs of it: what its blocks are, and content of a file in the place
//! of theirs.

use super::{BLOCK_LEN, Disk, DiskError, LAYERS_MAX, Layer, Place, byte_len};
use std::fs::File;
use std::io;
use std::ops::Range;

/// What is in blocks that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What the base image has: they have never been written.
    Untouched,
    Zeros,
    Written,
}

impl Disk {
    /// What is in a block, and in how many from it on, of at most `len` bytes.
    pub(crate) fn extent(&self, block: u64, len: usize) -> (Extent, u64) {
        let left = usize::try_from(self.bytes - block * BLOCK_LEN).unwrap_or(len);
        let (place, len) = self.run(block * BLOCK_LEN, len.min(left));
        let extent = match place {
            Place::Base => Extent::Untouched,
            Place::Zero => Extent::Zeros,
            Place::Layer { .. } => Extent::Written,
        };
        (extent, byte_len(len) / BLOCK_LEN)
    }

    pub(crate) fn read_blocks(&self, block: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_at(block * BLOCK_LEN, buffer)
    }

    /// Whether there is room for what [`Disk::lay_over`] adds to a disk that becomes as long as this.
    pub(crate) fn check_lay_over(&self, bytes: u64) -> Result<(), DiskError> {
        if bytes < self.bytes {
            return Err(DiskError::Shorter { old: self.bytes, bytes });
        }
        self.slot_of_ancestor().map(drop)
    }

    /// Has blocks read from where they are in a file, which is never written again, or as zeros. The ranges are on the
    /// disk.
    pub(crate) fn lay_over(
        &mut self,
        file: File,
        ranges: impl Iterator<Item = (Range<u64>, Option<u64>)>,
    ) -> Result<(), DiskError> {
        let slot = self.slot_of_ancestor()?;
        let mut blocks = 0;
        for (range, in_file) in ranges {
            for (index, block) in (0..).zip(range) {
                if let Some(freed) = self.forget(block) {
                    self.punch(&(freed..freed + 1));
                }
                if let Some(first) = in_file {
                    self.map.set(block, Place::Layer { layer: slot, block: first + index });
                    blocks += 1;
                }
            }
        }
        if blocks > 0 {
            let layer = Some(Layer { file, blocks });
            match self.layers.get_mut(usize::from(slot)) {
                Some(vacant) => *vacant = layer,
                None => self.layers.push(layer),
            }
        }
        Ok(())
    }

    /// The first slot without a layer.
    fn slot_of_ancestor(&self) -> Result<u16, DiskError> {
        let slot = self.layers.iter().position(Option::is_none).unwrap_or(self.layers.len());
        match u16::try_from(slot) {
            Ok(slot) if usize::from(slot) < LAYERS_MAX => Ok(slot),
            _ => Err(DiskError::TooManyLayers),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
