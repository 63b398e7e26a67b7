//! The block device: a [`Disk`] behind one queue, served synchronously on the notifying thread.
//!
//! It does not offer VIRTIO_BLK_F_FLUSH. The layer is an unlinked file that ends with the microVM, so
//! there is nothing that syncing it would make safer: a completed write is as durable as the machine
//! that made it. A guest that is told so (write-through) leaves out its flushes, and each would cost an
//! exit and an interrupt. One that flushes all the same is answered with success.

mod allocator;
pub(crate) mod disk;
mod map;
mod request;

use super::{GuestMemory, Queue, QueueError, Served, VirtioDevice, read_config_bytes, serve_queue_until};
use disk::{Disk, DiskError};
use request::{DISCARD_SECTORS_MAX, DISCARD_SEGMENTS_MAX, SECTOR_LEN, SEGMENT_LEN_MAX, SEGMENTS_MAX};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

const FEATURES: u64 = 1 << blk::VIRTIO_BLK_F_SIZE_MAX
    | 1 << blk::VIRTIO_BLK_F_SEG_MAX
    | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
    | 1 << blk::VIRTIO_BLK_F_TOPOLOGY
    | 1 << blk::VIRTIO_BLK_F_DISCARD
    | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES
    | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The root disk.
#[derive(Debug)]
pub(crate) struct Block {
    disk: Disk,
    config: [u8; CONFIG_LEN],
    /// Content on its way between the disk and guest memory.
    bounce: Vec<u8>,
    /// The machine is being brought to a stand: what is not yet begun waits.
    pausing: Arc<AtomicBool>,
}

impl Block {
    pub(crate) fn new(disk: Disk, pausing: Arc<AtomicBool>) -> Block {
        Block { config: config_of(&disk), bounce: vec![0; request::BOUNCE_LEN], disk, pausing }
    }

    /// Makes the disk longer. The driver has to be told.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), DiskError> {
        self.disk.grow(bytes)?;
        self.config = config_of(&self.disk);
        Ok(())
    }

    pub(crate) fn disk_mut(&mut self) -> &mut Disk {
        &mut self.disk
    }
}

impl VirtioDevice for Block {
    const DEVICE_TYPE: u32 = VIRTIO_ID_BLOCK;
    const QUEUE_SIZES: &'static [u16] = &[256];

    fn features(&self) -> u64 {
        FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn notified(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &GuestMemory,
    ) -> Result<Served, QueueError> {
        let Block { disk, bounce, pausing, .. } = self;
        let stop = || pausing.load(Ordering::Relaxed);
        serve_queue_until(&mut queues[index], memory, stop, |chain| {
            request::serve(chain, memory, disk, bounce)
        })
    }
}

/// `struct virtio_blk_config` up to `write_zeroes_may_unmap`.
const CONFIG_LEN: usize = 57;

/// The disk takes sectors of 512 bytes, as some file systems in old images need, and says that it works
/// in blocks of 4 KiB, so that new ones align to them.
fn config_of(disk: &Disk) -> [u8; CONFIG_LEN] {
    let sectors = disk.bytes() / SECTOR_LEN;
    let mut config = [0; CONFIG_LEN];
    let mut put = |offset: usize, value: &[u8]| config[offset..offset + value.len()].copy_from_slice(value);
    put(0, &sectors.to_le_bytes());
    put(8, &SEGMENT_LEN_MAX.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &512_u32.to_le_bytes());
    // Sectors of a physical block as a power of two, no alignment offset, least and best I/O sizes.
    put(24, &[SECTORS_PER_BLOCK_LOG2, 0]);
    put(26, &SECTORS_PER_BLOCK.to_le_bytes());
    put(28, &u32::from(SECTORS_PER_BLOCK).to_le_bytes());
    put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(40, &DISCARD_SEGMENTS_MAX.to_le_bytes());
    put(44, &u32::from(SECTORS_PER_BLOCK).to_le_bytes());
    put(48, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(52, &DISCARD_SEGMENTS_MAX.to_le_bytes());
    put(56, &[1]);
    config
}

const SECTORS_PER_BLOCK_LOG2: u8 = 3;
const SECTORS_PER_BLOCK: u16 = 1 << SECTORS_PER_BLOCK_LOG2;

#[cfg(test)]
mod tests;
