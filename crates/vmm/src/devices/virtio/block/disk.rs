//! A disk that forks in O(1): copy-on-write in blocks of 4 KiB over a read-only base image.
//!
//! Each microVM writes to one layer file of its own. The map in memory says for each block where its
//! content is: in the base, in a layer's file, or nowhere (zeros).
//!
//! ```text
//!      source                                copy
//!      map:  b0 → base                       map:  b0 → base            the map is memory, so
//!            b1 → layer 0, block 0                 b1 → layer 0, 0      fork(2) copies it
//!            b2 → layer 0, block 2                 b2 → layer 1, 0
//!
//!      layer 0 (the source's own)            layer 1 (the copy's own)
//!      ┌─────┬─────┬─────┐                   ┌─────┐
//!      │  0  │  1  │  2  │                   │  0  │  b2, written after the fork
//!      └─────┴─────┴─────┘                   └─────┘
//!       shared      ▲ private: written
//!      ◀───────────▶│ after the fork
//!               watermark
//! ```
//!
//! A fork moves nothing and touches no file. The source puts its watermark at the end of its layer
//! ([`Disk::seal`]); from then on it overwrites only blocks behind the watermark, and gives a new block
//! to what it would have overwritten before it. The copy makes the layer it was born with an ancestor, to
//! be read and never written, and starts an empty one ([`Disk::adopt_layer`]). So a block that two disks
//! can read is never written again, whichever of them lives on, and in whatever order they fork. Layer
//! files have no name: the kernel frees one with the last disk that reads it, and a disk closes an
//! ancestor as soon as its own map has nothing left in it. The file of a saved disk is an ancestor like any other
//! ([`Disk::lay_over`]).
//!
//! Processes that share a layer also share its file offset, so all access is positioned. That is why
//! content goes through a slice, at the price of a copy, and not straight into guest memory: positioned
//! access to volatile memory would take unsafe code.

mod saved;

pub(crate) use saved::Extent;

use super::allocator::Allocator;
use super::map::{BLOCK_LEN, BlockMap, Place};
use podflare_wire::limits::DISK_GIB_MAX;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Layers that one disk reads; each costs an open file. A disk is that deep only when each of so many
/// generations has left something in it that no later one has overwritten.
pub(crate) const LAYERS_MAX: usize = 256;

/// `BLOCK_LEN` for lengths in memory.
const BLOCK_BYTES: usize = 4096;

const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("Could not find out how long the base image is")]
    BaseLength(#[source] io::Error),
    #[error("A disk of {bytes} bytes cannot hold a base image of {base_bytes} bytes")]
    BaseTooLong { bytes: u64, base_bytes: u64 },
    #[error("A disk of {bytes} bytes is not a multiple of {BLOCK_LEN} bytes")]
    Unaligned { bytes: u64 },
    #[error("A disk of {old} bytes cannot become one of {bytes} bytes; the most is {DISK_GIB_MAX} GiB")]
    NotLarger { old: u64, bytes: u64 },
    #[error("A disk of {old} bytes cannot become one of {bytes} bytes: disks do not shrink")]
    Shorter { old: u64, bytes: u64 },
    #[error("Could not take the file of a saved disk")]
    Saved(#[source] io::Error),
    #[error("The disk already reads {LAYERS_MAX} layers, the most it can; fork from an earlier generation")]
    TooManyLayers,
}

/// See the module's own words.
#[derive(Debug)]
pub(crate) struct Disk {
    bytes: u64,
    base: File,
    base_bytes: u64,
    map: BlockMap,
    /// Slots of closed layers are empty and used again; the map refers to layers by slot.
    layers: Vec<Option<Layer>>,
    /// The slot of the only layer that is ever written.
    own: u16,
    allocator: Allocator,
}

#[derive(Debug)]
struct Layer {
    file: File,
    /// Blocks of this disk's map that are in this layer.
    blocks: u64,
}

impl Disk {
    /// `base` may be a file or a block device, and shorter than the disk; `layer` is empty.
    pub(crate) fn new(base: File, layer: File, bytes: u64) -> Result<Disk, DiskError> {
        let base_bytes = (&base).seek(SeekFrom::End(0)).map_err(DiskError::BaseLength)?;
        if base_bytes > bytes {
            return Err(DiskError::BaseTooLong { bytes, base_bytes });
        }
        let unaligned = DiskError::Unaligned { bytes };
        if !bytes.is_multiple_of(BLOCK_LEN) {
            return Err(unaligned);
        }
        let blocks = usize::try_from(bytes / BLOCK_LEN).map_err(|_| unaligned)?;
        Ok(Disk {
            bytes,
            base,
            base_bytes,
            map: BlockMap::new(blocks),
            layers: vec![Some(Layer { file: layer, blocks: 0 })],
            own: 0,
            allocator: Allocator::default(),
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The length of the base image.
    pub(crate) fn base_bytes(&self) -> u64 {
        self.base_bytes
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.bytes / BLOCK_LEN
    }

    /// Makes the disk longer; what is new reads as zeros. A disk of the same length stays as it is.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), DiskError> {
        if !bytes.is_multiple_of(BLOCK_LEN) {
            return Err(DiskError::Unaligned { bytes });
        }
        let not_larger = DiskError::NotLarger { old: self.bytes, bytes };
        if bytes > u64::from(DISK_GIB_MAX) << 30 {
            return Err(not_larger);
        }
        let Some(more) = bytes.checked_sub(self.bytes) else { return Err(not_larger) };
        let Ok(blocks) = usize::try_from(more / BLOCK_LEN) else { return Err(not_larger) };
        if blocks > 0 {
            self.map.grow(blocks);
            self.bytes = bytes;
        }
        Ok(())
    }

    /// In the source, just before it is copied: what has been written is shared from now on. An error if
    /// the copy would have no room for a layer; nothing has changed then.
    pub(crate) fn seal(&mut self) -> Result<(), DiskError> {
        self.slot_of_next_layer()?;
        self.allocator.seal();
        Ok(())
    }

    /// In the copy, before its first write: writes go to `layer`, an empty file, from now on.
    pub(crate) fn adopt_layer(&mut self, layer: File) -> Result<(), DiskError> {
        let slot = self.slot_of_next_layer()?;
        self.close_if_unused(self.own);
        let own = Some(Layer { file: layer, blocks: 0 });
        match self.layers.get_mut(usize::from(slot)) {
            Some(vacant) => *vacant = own,
            None => self.layers.push(own),
        }
        self.own = slot;
        self.allocator = Allocator::default();
        Ok(())
    }

    /// The first slot without a layer, or with an own one that nothing is in.
    fn slot_of_next_layer(&self) -> Result<u16, DiskError> {
        let is_unused = |slot: &Option<Layer>| slot.as_ref().is_none_or(|layer| layer.blocks == 0);
        let slot = self.layers.iter().position(is_unused).unwrap_or(self.layers.len());
        match u16::try_from(slot) {
            Ok(slot) if usize::from(slot) < LAYERS_MAX => Ok(slot),
            _ => Err(DiskError::TooManyLayers),
        }
    }

    /// Bytes that this disk's own layer holds.
    pub(crate) fn layer_bytes(&self) -> u64 {
        self.allocator.held() * BLOCK_LEN
    }

    /// Layers that this disk reads, its own included.
    pub(crate) fn layers(&self) -> usize {
        self.layers.iter().flatten().count()
    }

    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, byte_len(buffer.len()))?;
        let mut position = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let (place, len) = self.run(position, rest.len());
            let (run, tail) = rest.split_at_mut(len);
            self.read_run(place, position, run)?;
            position += byte_len(len);
            rest = tail;
        }
        Ok(())
    }

    /// On an error, what was to be written has its old content, its new content, or, where it was
    /// overwritten in place, some of each; nothing else has changed.
    pub(crate) fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_range(offset, byte_len(data.len()))?;
        let head_len = data.len().min(usize::try_from(to_next_block(offset)).unwrap_or(0));
        let (head, rest) = data.split_at(head_len);
        let (whole, tail) = rest.split_at(rest.len() / BLOCK_BYTES * BLOCK_BYTES);
        let whole_start = offset + byte_len(head.len());
        self.write_part(offset, head)?;
        self.write_blocks(whole_start / BLOCK_LEN, whole)?;
        self.write_part(whole_start + byte_len(whole.len()), tail)
    }

    /// Frees the blocks that are wholly in the range; they read as zeros. The rest of the range stays.
    pub(crate) fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.check_range(offset, len)?;
        let first = offset.div_ceil(BLOCK_LEN);
        let end = (offset + len) / BLOCK_LEN;
        let mut hole = 0..0;
        // From the last to the first, so that freed blocks are given out again in ascending order.
        for block in (first..end).rev() {
            let Some(freed) = self.forget(block) else { continue };
            if freed + 1 == hole.start {
                hole.start = freed;
            } else {
                self.punch(&hole);
                hole = freed..freed + 1;
            }
        }
        self.punch(&hole);
        Ok(())
    }

    /// Makes the whole range read as zeros.
    pub(crate) fn write_zeroes(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.check_range(offset, len)?;
        let head_len = len.min(to_next_block(offset));
        let tail_len = (len - head_len) % BLOCK_LEN;
        self.write_part(offset, zeros(head_len))?;
        self.write_part(offset + len - tail_len, zeros(tail_len))?;
        self.discard(offset + head_len, len - head_len - tail_len)
    }

    /// Whether a range is wholly on the disk.
    pub(super) fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the disk")),
        }
    }

    /// The place of the block at `position`, and how many of the next `len` bytes continue in it.
    fn run(&self, position: u64, len: usize) -> (Place, usize) {
        let first = position / BLOCK_LEN;
        let end = (position + byte_len(len)).div_ceil(BLOCK_LEN);
        let place = self.map.get(first);
        let run_end =
            (first + 1..end).find(|&block| self.map.get(block) != place.after(block - first)).unwrap_or(end);
        let run_len = usize::try_from(run_end * BLOCK_LEN - position).unwrap_or(len);
        (place, run_len.min(len))
    }

    fn read_run(&self, place: Place, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        match place {
            Place::Zero => buffer.fill(0),
            Place::Base => {
                let left = self.base_bytes.saturating_sub(position);
                let in_base = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let (content, beyond) = buffer.split_at_mut(in_base);
                self.base.read_exact_at(content, position)?;
                beyond.fill(0);
            }
            Place::Layer { layer, block } => {
                let offset = block * BLOCK_LEN + position % BLOCK_LEN;
                self.layer(layer)?.file.read_exact_at(buffer, offset)?;
            }
        }
        Ok(())
    }

    /// Writes within one block. A block that cannot be overwritten in place is copied with the change.
    fn write_part(&mut self, position: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let block = position / BLOCK_LEN;
        if let Some(target) = self.private_block(block) {
            let offset = target * BLOCK_LEN + position % BLOCK_LEN;
            return self.layer(self.own)?.file.write_all_at(data, offset);
        }
        let mut content = ZEROS;
        self.read_at(block * BLOCK_LEN, &mut content)?;
        let start = usize::try_from(position % BLOCK_LEN).unwrap_or(0);
        content[start..start + data.len()].copy_from_slice(data);
        self.write_blocks(block, &content)
    }

    /// Writes whole blocks, each run that is contiguous in the layer file at once.
    fn write_blocks(&mut self, first: u64, data: &[u8]) -> io::Result<()> {
        let targets = self.targets(first, data.len() / BLOCK_BYTES)?;
        let mut done = 0;
        for run in targets.chunk_by(|a, b| a + 1 == *b) {
            let bytes = &data[done * BLOCK_BYTES..][..run.len() * BLOCK_BYTES];
            let block = first + byte_len(done);
            if let Err(error) = self.layer(self.own)?.file.write_all_at(bytes, run[0] * BLOCK_LEN) {
                self.release_unused(block, &targets[done..]);
                return Err(error);
            }
            for (block, &target) in (block..).zip(run) {
                self.place_in_own_layer(block, target);
            }
            done += run.len();
        }
        Ok(())
    }

    /// The block of the own layer that each of the disk's blocks is to be written to.
    fn targets(&mut self, first: u64, count: usize) -> io::Result<Vec<u64>> {
        let blocks = first..first + byte_len(count);
        let fresh_count = blocks.clone().filter(|&block| self.private_block(block).is_none()).count();
        let fresh = self.allocator.allocate(fresh_count).ok_or(io::ErrorKind::StorageFull)?;
        let mut fresh = fresh.into_iter();
        Ok(blocks.filter_map(|block| self.private_block(block).or_else(|| fresh.next())).collect())
    }

    /// The block of the own layer that holds this block, if no copy of this disk can read it.
    fn private_block(&self, block: u64) -> Option<u64> {
        match self.map.get(block) {
            Place::Layer { layer, block } if layer == self.own && self.allocator.is_private(block) => {
                Some(block)
            }
            _ => None,
        }
    }

    fn place_in_own_layer(&mut self, block: u64, target: u64) {
        if self.private_block(block) == Some(target) {
            return;
        }
        self.leave_layer(self.map.get(block));
        self.map.set(block, Place::Layer { layer: self.own, block: target });
        if let Some(layer) = &mut self.layers[usize::from(self.own)] {
            layer.blocks += 1;
        }
    }

    /// Takes back what was allocated for a write that did not happen.
    fn release_unused(&mut self, first: u64, targets: &[u64]) {
        for (block, &target) in (first..).zip(targets) {
            if self.private_block(block) != Some(target) {
                self.punch(&(target..target + 1));
                self.allocator.release(target);
            }
        }
    }

    /// Makes a block read as zeros. Returns the block of the own layer that is free now, if any.
    fn forget(&mut self, block: u64) -> Option<u64> {
        let place = self.map.get(block);
        if place == Place::Zero || place == Place::Base && block * BLOCK_LEN >= self.base_bytes {
            return None;
        }
        let freed = self.private_block(block);
        self.leave_layer(place);
        self.map.set(block, Place::Zero);
        if let Some(freed) = freed {
            self.allocator.release(freed);
        }
        freed
    }

    fn leave_layer(&mut self, place: Place) {
        let Place::Layer { layer: slot, .. } = place else { return };
        if let Some(layer) = &mut self.layers[usize::from(slot)] {
            layer.blocks -= 1;
        }
        if slot != self.own {
            self.close_if_unused(slot);
        }
    }

    fn close_if_unused(&mut self, slot: u16) {
        self.layers[usize::from(slot)].take_if(|layer| layer.blocks == 0);
    }

    fn layer(&self, slot: u16) -> io::Result<&Layer> {
        self.layers[usize::from(slot)].as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Gives blocks of the own layer back to the host. A file system that cannot do that keeps them
    /// until they are used again, which is no reason to fail the guest's request.
    fn punch(&self, blocks: &Range<u64>) {
        let Ok(own) = self.layer(self.own) else { return };
        if blocks.is_empty() {
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (offset, len) = (blocks.start * BLOCK_LEN, (blocks.end - blocks.start) * BLOCK_LEN);
        fallocate(&own.file, flags, offset, len).ok();
    }
}

fn byte_len(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Bytes from here to the next start of a block; 0 at one.
fn to_next_block(offset: u64) -> u64 {
    offset.next_multiple_of(BLOCK_LEN) - offset
}

/// Less than a block of zeros.
fn zeros(len: u64) -> &'static [u8] {
    &ZEROS[..usize::try_from(len).unwrap_or(0)]
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
