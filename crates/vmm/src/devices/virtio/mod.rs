//! Virtio devices behind virtio-mmio registers.
//!
//! A device serves a queue on the thread that wrote the notification, and is plain data in between: with
//! the vCPUs stopped nothing is in flight, so fork(2) copies a device as memory. It goes one round at a
//! time, since a driver can refill a queue as fast as it is served and would hold that thread, and the
//! device's lock, for ever. What a device returns is what the caller has to do: [`Served`].

pub(crate) mod balloon;
pub(crate) mod block;
pub(crate) mod mmio;
pub(crate) mod net;
pub(crate) mod rng;
pub(crate) mod vsock;

#[cfg(test)]
mod test_driver;

pub(crate) use crate::memory::GuestMemory;
pub(crate) use virtio_queue::{Error as QueueError, Queue};

use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};

/// What a device is to its transport.
pub(crate) trait VirtioDevice: Send {
    const DEVICE_TYPE: u32;
    const QUEUE_SIZES: &'static [u16];

    /// The device's own feature bits; those of the ring are the transport's to add.
    fn features(&self) -> u64;

    /// Reads the configuration space; zeros beyond its end.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver has finished its set-up and accepted these features.
    fn activate(&mut self, features: u64);

    /// The driver has let go of the device, or has broken it. The queues are not to be touched again
    /// before the next `activate`.
    fn reset(&mut self);

    /// Serves queue `index` for one round. An error means that the driver has broken the queue, and that
    /// the device stops until it is reset.
    fn notified(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &GuestMemory,
    ) -> Result<Served, QueueError>;
}

/// What is left to do when queues have been served for one round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub(crate) struct Served {
    /// The driver must be told.
    pub(crate) raise: bool,
    /// Something may wait that the driver does not notify of again: another round is due.
    pub(crate) more: bool,
}

impl std::ops::BitOr for Served {
    type Output = Served;

    fn bitor(self, other: Served) -> Served {
        Served { raise: self.raise | other.raise, more: self.more | other.more }
    }
}

/// Takes the next chain that the driver has made available. A broken ring is an error here, where
/// `Queue::pop_descriptor_chain` would show it as an empty one that never becomes idle.
fn next_chain<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
) -> Result<Option<DescriptorChain<&'m GuestMemory>>, QueueError> {
    Ok(queue.iter(memory)?.next())
}

/// Serves what there is, for one round: at most as many chains as the queue has room for. `serve` returns
/// how many bytes it has written to the chain. The driver is asked to notify again only when nothing is left.
fn serve_queue<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
    serve: impl FnMut(DescriptorChain<&'m GuestMemory>) -> Result<u32, QueueError>,
) -> Result<Served, QueueError> {
    serve_queue_until(queue, memory, || false, serve)
}

/// Like [`serve_queue`], for requests that take long: the round ends before the next one when `stop` says so.
fn serve_queue_until<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemory,
    stop: impl Fn() -> bool,
    mut serve: impl FnMut(DescriptorChain<&'m GuestMemory>) -> Result<u32, QueueError>,
) -> Result<Served, QueueError> {
    let mut any = false;
    let mut more = true;
    queue.disable_notification(memory)?;
    for _ in 0..queue.size() {
        if stop() {
            break;
        }
        if let Some(chain) = next_chain(queue, memory)? {
            let head = chain.head_index();
            let written = serve(chain)?;
            queue.add_used(memory, head, written)?;
            any = true;
        } else if queue.enable_notification(memory)? {
            queue.disable_notification(memory)?;
        } else {
            more = false;
            break;
        }
    }
    Ok(Served { raise: any && queue.needs_notification(memory)?, more })
}

/// Reads from a configuration space; zeros beyond its end.
fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let available = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
    let len = available.len().min(data.len());
    data[..len].copy_from_slice(&available[..len]);
}
