//! Chains of the transmit queue that were served and not given back yet: they go back with an interrupt
//! that is due anyway, or when they have become many.

use super::packet::Buffers;
use crate::devices::virtio::{GuestMemory, Queue, QueueError};
use virtio_queue::QueueT;

/// Bytes of chains that are kept before they are given back.
const KEPT_LEN_MAX: usize = 64 * 1024;

/// Heads of such chains, and what they hold back.
#[derive(Debug, Default)]
pub(super) struct Transmitted {
    heads: Vec<u16>,
    descriptors: usize,
    bytes: usize,
}

impl Transmitted {
    pub(super) fn keep(&mut self, head: u16, buffers: &Buffers<'_>) {
        self.heads.push(head);
        self.descriptors += buffers.descriptors.max(1);
        self.bytes += buffers.len();
    }

    pub(super) fn heads(&self) -> &[u16] {
        &self.heads
    }

    /// What a saved machine had kept. How much it holds back is not known, so that it is given back with the next one.
    pub(super) fn keep_again(&mut self, heads: Vec<u16>) {
        let any = !heads.is_empty();
        *self = Transmitted { heads, descriptors: 0, bytes: if any { KEPT_LEN_MAX } else { 0 } };
    }

    /// A driver that runs out of descriptors waits for an interrupt, so enough of the ring for its
    /// longest packet must never be kept.
    pub(super) fn are_many(&self, tx: &Queue) -> bool {
        self.descriptors >= usize::from(tx.size() / 4) || self.bytes >= KEPT_LEN_MAX
    }

    /// True when the driver must be told.
    pub(super) fn give_back(&mut self, tx: &mut Queue, memory: &GuestMemory) -> Result<bool, QueueError> {
        let any = !self.heads.is_empty();
        for head in self.heads.drain(..) {
            tx.add_used(memory, head, 0)?;
        }
        (self.descriptors, self.bytes) = (0, 0);
        Ok(any && tx.needs_notification(memory)?)
    }
}
