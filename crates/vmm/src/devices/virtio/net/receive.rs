//! A frame on its way to the guest.

use super::{FRAME_LEN_MAX, HEADER_LEN};
use crate::devices::virtio::{GuestMemory, Queue, QueueError, next_chain};
use std::io::Write;
use std::os::fd::OwnedFd;
use virtio_queue::{QueueOwnedT, QueueT};

/// Buffers of one frame: as many as the shortest that Linux offers for merging (1,536 bytes) need, with room.
const CHAINS_MAX: usize = 64;

/// Where the header tells over how many buffers a frame is spread.
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

/// What came of the attempt to hand the guest a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// It has it, or can never have it, and then the frame is lost.
    Done,
    /// It has offered too little room, and will notify of more.
    NoRoom,
    /// It has offered more meanwhile.
    Again,
}

/// The frame that is next, if it has been read. The memory for it comes with the first one.
#[derive(Debug, Default)]
pub(super) struct Pending {
    buffer: Vec<u8>,
    len: usize,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Reads the next frame. False when there is none, or the interface is gone.
    pub(super) fn read(&mut self, tap: &OwnedFd) -> bool {
        self.buffer.resize(HEADER_LEN + FRAME_LEN_MAX, 0);
        self.len = match rustix::io::read(tap, &mut self.buffer) {
            Ok(len) if len >= HEADER_LEN => len,
            Ok(_) | Err(_) => 0,
        };
        !self.is_empty()
    }

    /// Puts the frame into the guest's buffers, or changes nothing.
    pub(super) fn put(
        &mut self,
        rx: &mut Queue,
        memory: &GuestMemory,
        merges_buffers: bool,
    ) -> Result<Put, QueueError> {
        let chains_max = if merges_buffers { CHAINS_MAX.min(rx.size().into()) } else { 1 };
        let mut writers = Vec::new();
        let mut room = 0_usize;
        while room < self.len && writers.len() < chains_max {
            let Some(chain) = next_chain(rx, memory)? else {
                // Before the buffers are given back: they would count as new ones.
                let put = if rx.enable_notification(memory)? { Put::Again } else { Put::NoRoom };
                writers.iter().for_each(|_| rx.go_to_previous_position());
                return Ok(put);
            };
            let head = chain.head_index();
            let writer = chain.writer(memory)?;
            room = room.saturating_add(writer.available_bytes());
            writers.push((head, writer));
        }
        if room < self.len {
            writers.iter().for_each(|_| rx.go_to_previous_position());
            self.clear();
            return Ok(Put::Done);
        }
        let count = u16::try_from(writers.len()).unwrap_or(u16::MAX);
        self.buffer[NUM_BUFFERS].copy_from_slice(&count.to_le_bytes());
        let mut rest = &self.buffer[..self.len];
        for (head, mut writer) in writers {
            let (part, later) = rest.split_at(rest.len().min(writer.available_bytes()));
            writer.write_all(part).map_err(|_| QueueError::InvalidChain)?;
            rx.add_used(memory, head, u32::try_from(part.len()).unwrap_or(0))?;
            rest = later;
        }
        self.clear();
        Ok(Put::Done)
    }
}
