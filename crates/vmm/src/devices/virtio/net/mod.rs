//! The network card: frames between the guest and a TAP interface of the host, which came with the thaw.
//!
//! The device knows no addresses and no rules: who may be reached is decided where the TAP interface is. Frames
//! carry the header of virtio on both sides (`IFF_VNET_HDR`), so the guest's checksums and segmentation go through
//! untouched, and the host's kernel checks them: one frame of 64 KiB costs what one of 1,500 bytes does.
//!
//! Without a TAP interface, in a template and in whatever is frozen, what the guest sends is lost, as on a cable
//! that ends nowhere. A copy lets go of its source's interface before anything else.

mod receive;

use super::{GuestMemory, Queue, QueueError, Served, VirtioDevice, read_config_bytes, serve_queue};
use receive::{Pending, Put};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_queue::{DescriptorChain, QueueT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// `struct virtio_net_hdr_v1`, which every frame begins with, here and at the TAP interface.
const HEADER_LEN: usize = 12;

/// The longest frame: an IP packet of 65,535 bytes, which segmentation offload makes, and its Ethernet header.
const FRAME_LEN_MAX: usize = 14 + 65_535;

/// The card's own address until the guest gives it another. Each copy is told one of its own; the device does not
/// filter by it.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

const RX: usize = 0;
const TX: usize = 1;

/// What the driver may use. The TAP interface is set to hand over frames as GUEST_TSO4 and GUEST_CSUM allow; a
/// driver that declines them gets such frames all the same, and drops them. Linux accepts both.
const FEATURES: u64 = 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

#[derive(Debug)]
pub(crate) struct Net {
    tap: Option<Tap>,
    poller: Option<Arc<Epoll>>,
    /// A frame that has been read and does not fit into what the driver has offered so far.
    pending: Pending,
    /// The driver takes frames in pieces.
    merges_buffers: bool,
    /// Where a frame of the guest is put together. It has room for one only since the first.
    outgoing: Vec<u8>,
}

#[derive(Debug)]
struct Tap {
    descriptor: OwnedFd,
    /// The poller tells when there are frames. It is not asked to while the guest has no room for any.
    watched: bool,
}

impl Net {
    /// Event data of the TAP interface in the poller.
    pub(crate) const TOKEN: u64 = 4;

    pub(crate) fn new() -> Net {
        Net {
            tap: None,
            poller: None,
            pending: Pending::default(),
            merges_buffers: false,
            outgoing: Vec::new(),
        }
    }

    /// Plugs the card into a TAP interface with headers of [`HEADER_LEN`] bytes; call [`Net::deliver`] next.
    pub(crate) fn attach(&mut self, tap: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&tap, true)?;
        self.tap = Some(Tap { descriptor: tap, watched: false });
        Ok(())
    }

    /// Lets go of the TAP interface and of frames from it.
    pub(crate) fn detach(&mut self) {
        self.unwatch();
        self.tap = None;
        self.pending.clear();
    }

    /// In a copy of the machine, before anything else: the interface and its poller are the source's, which goes on
    /// with both.
    pub(crate) fn let_go_of_inherited(&mut self) {
        self.poller = None;
        self.tap = None;
        self.pending.clear();
    }

    /// Has the interface watched by another poller, or by none, from the next [`Net::deliver`] on. The one before
    /// must be dropped.
    pub(crate) fn set_poller(&mut self, poller: Option<Arc<Epoll>>) {
        self.poller = poller;
        if let Some(tap) = &mut self.tap {
            tap.watched = false;
        }
    }

    /// Gives the guest the frames that there are and that it has room for, for one round.
    pub(crate) fn deliver(
        &mut self,
        queues: &mut [Queue],
        memory: &GuestMemory,
    ) -> Result<Served, QueueError> {
        let (Some(rx), Some(tap)) = (queues.get_mut(RX), &mut self.tap) else { return Ok(Served::default()) };
        if !rx.ready() {
            // A driver may take its queue away while frames wait, which would wake the poller for ever.
            self.unwatch();
            return Ok(Served::default());
        }
        let mut delivered = false;
        let mut more = true;
        for _ in 0..rx.size() {
            rx.disable_notification(memory)?;
            if self.pending.is_empty() && !self.pending.read(&tap.descriptor) {
                self.watch();
                more = false;
                break;
            }
            match self.pending.put(rx, memory, self.merges_buffers)? {
                Put::Done => delivered = true,
                Put::Again => {}
                Put::NoRoom => {
                    self.unwatch();
                    more = false;
                    break;
                }
            }
        }
        Ok(Served { raise: delivered && rx.needs_notification(memory)?, more })
    }

    fn transmit(&mut self, tx: &mut Queue, memory: &GuestMemory) -> Result<Served, QueueError> {
        let Net { tap, outgoing, .. } = self;
        serve_queue(tx, memory, |chain| {
            if let Some(tap) = tap {
                send(chain, memory, outgoing, &tap.descriptor)?;
            }
            Ok(0)
        })
    }

    fn watch(&mut self) {
        if let (Some(poller), Some(tap)) = (&self.poller, &mut self.tap)
            && !tap.watched
        {
            let event = EpollEvent::new(EventSet::IN, Net::TOKEN);
            tap.watched = poller.ctl(ControlOperation::Add, tap.descriptor.as_raw_fd(), event).is_ok();
        }
    }

    /// In so many words: closing the interface does not take it out of a poller as long as a copy of this machine,
    /// or hostd, has it open too.
    fn unwatch(&mut self) {
        if let (Some(poller), Some(tap)) = (&self.poller, &mut self.tap)
            && tap.watched
        {
            // Fails only for a descriptor that the poller does not have.
            poller.ctl(ControlOperation::Delete, tap.descriptor.as_raw_fd(), EpollEvent::default()).ok();
            tap.watched = false;
        }
    }
}

/// A frame that is too short, too long or malformed is lost, as one is that the interface has no room for or
/// that comes while it is down.
fn send(
    chain: DescriptorChain<&GuestMemory>,
    memory: &GuestMemory,
    frame: &mut Vec<u8>,
    tap: &OwnedFd,
) -> Result<(), QueueError> {
    let reader = chain.reader(memory)?;
    if reader.available_bytes() > HEADER_LEN + FRAME_LEN_MAX {
        return Ok(());
    }
    frame.clear();
    let room = u64::try_from(HEADER_LEN + FRAME_LEN_MAX).unwrap_or(u64::MAX);
    reader.take(room).read_to_end(frame).map_err(|_| QueueError::InvalidChain)?;
    rustix::io::write(tap, frame).ok();
    Ok(())
}

impl VirtioDevice for Net {
    const DEVICE_TYPE: u32 = VIRTIO_ID_NET;
    const QUEUE_SIZES: &'static [u16] = &[256, 256];

    fn features(&self) -> u64 {
        FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&MAC, offset, data);
    }

    fn activate(&mut self, features: u64) {
        self.merges_buffers = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
    }

    fn reset(&mut self) {
        self.unwatch();
        self.pending.clear();
    }

    fn notified(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &GuestMemory,
    ) -> Result<Served, QueueError> {
        match (index, &mut *queues) {
            (TX, [_, tx]) => self.transmit(tx, memory),
            _ => self.deliver(queues, memory),
        }
    }
}

#[cfg(test)]
mod tests;
