//! The driver's side, for tests: sets a device up through its registers and works its rings.

use super::mmio::MmioTransport;
use super::{GuestMemory, Served, VirtioDevice};
use virtio_bindings::virtio_mmio as register;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::{Descriptor, VirtqUsedElem};
use vm_memory::{Bytes, GuestAddress};

pub(super) const MEMORY_LEN: usize = 8 << 20;

/// Status after a whole set-up, and after the device has given up.
pub(super) const DRIVER_OK: u32 = 1 | 2 | 8 | 4;
pub(super) const NEEDS_RESET: u32 = 64;

const VERSION_1: u64 = 1 << 32;

const DESCRIPTOR_NEXT: u16 = 1;
const DESCRIPTOR_WRITE: u16 = 2;

/// Where queue `index` has its descriptors; the rings follow.
const fn queue_start(index: usize) -> u64 {
    0x1_0000 * (index as u64 + 1)
}
const AVAIL_OFFSET: u64 = 0x4000;
const USED_OFFSET: u64 = 0x8000;
const BUFFERS_START: u64 = 1 << 20;

/// Bytes that tell where they are from.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (1..=251).cycle().take(len).collect()
}

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) writable: bool,
}

pub(super) struct Driver<D> {
    pub(super) transport: MmioTransport<D>,
    pub(super) memory: GuestMemory,
    rings: Vec<Ring>,
    next_buffer: u64,
}

#[derive(Debug, Default)]
struct Ring {
    next_descriptor: u16,
    offered: u16,
    seen: u16,
}

impl<D: VirtioDevice> Driver<D> {
    /// A driver that has not touched the device yet.
    pub(super) fn unset(device: D) -> Driver<D> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_LEN)]).unwrap();
        let rings = D::QUEUE_SIZES.iter().map(|_| Ring::default()).collect();
        let transport = MmioTransport::new(device, memory.clone());
        Driver { transport, memory, rings, next_buffer: BUFFERS_START }
    }

    /// A driver that has accepted all features and set up all queues.
    pub(super) fn new(device: D) -> Driver<D> {
        let mut driver = Driver::unset(device);
        driver.set_up();
        driver
    }

    /// Returns true when the device raised its interrupt at the end of it.
    pub(super) fn set_up(&mut self) -> bool {
        self.negotiate(u64::MAX);
        for index in 0..D::QUEUE_SIZES.len() {
            self.set_up_queue(index);
        }
        self.write(register::VIRTIO_MMIO_STATUS, DRIVER_OK)
    }

    /// Goes as far as FEATURES_OK, with what both sides have. Returns the status then.
    pub(super) fn negotiate(&mut self, features: u64) -> u32 {
        self.write(register::VIRTIO_MMIO_STATUS, 1);
        self.write(register::VIRTIO_MMIO_STATUS, 1 | 2);
        let accepted = features & self.device_features();
        for (select, word) in [(0, accepted), (1, accepted >> 32)] {
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES, (word & 0xffff_ffff).try_into().unwrap());
        }
        self.write(register::VIRTIO_MMIO_STATUS, 1 | 2 | 8);
        self.status()
    }

    pub(super) fn device_features(&mut self) -> u64 {
        let mut features = 0;
        for select in [1, 0] {
            self.write(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            features = features << 32 | u64::from(self.read(register::VIRTIO_MMIO_DEVICE_FEATURES));
        }
        assert_ne!(features & VERSION_1, 0);
        features
    }

    pub(super) fn set_up_queue(&mut self, index: usize) {
        let start = u32::try_from(queue_start(index)).unwrap();
        let [avail, used] = [AVAIL_OFFSET, USED_OFFSET].map(|offset| u32::try_from(offset).unwrap());
        self.write(register::VIRTIO_MMIO_QUEUE_SEL, index.try_into().unwrap());
        self.write(register::VIRTIO_MMIO_QUEUE_NUM, u32::from(D::QUEUE_SIZES[index]));
        for (offset, address) in [
            (register::VIRTIO_MMIO_QUEUE_DESC_LOW, start),
            (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, start + avail),
            (register::VIRTIO_MMIO_QUEUE_USED_LOW, start + used),
        ] {
            self.write(offset, address);
            self.write(offset + 4, 0);
        }
        let zeros = [0; 0x1_0000];
        self.memory.write_slice(&zeros, GuestAddress(queue_start(index))).unwrap();
        self.rings[index] = Ring::default();
        self.write(register::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Returns true when the device raised its interrupt. One that wants to be served again is.
    pub(super) fn write(&mut self, offset: u32, value: u32) -> bool {
        let mut served = self.transport.write(u64::from(offset), &value.to_le_bytes());
        while served.more {
            served = Served { raise: served.raise, more: false } | self.transport.serve_all_queues();
        }
        served.raise
    }

    pub(super) fn read(&self, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(u64::from(offset), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn status(&self) -> u32 {
        self.read(register::VIRTIO_MMIO_STATUS)
    }

    /// A buffer that nothing else uses soon.
    pub(super) fn buffer(&mut self, len: usize) -> u64 {
        let len = u64::try_from(len).unwrap();
        if self.next_buffer + len > MEMORY_LEN as u64 {
            self.next_buffer = BUFFERS_START;
        }
        self.next_buffer += len;
        self.next_buffer - len
    }

    pub(super) fn readable(&mut self, content: &[u8]) -> Part {
        let address = self.buffer(content.len());
        self.memory.write_slice(content, GuestAddress(address)).unwrap();
        Part { address, len: content.len().try_into().unwrap(), writable: false }
    }

    pub(super) fn writable(&mut self, len: usize) -> Part {
        Part { address: self.buffer(len), len: len.try_into().unwrap(), writable: true }
    }

    pub(super) fn content(&self, part: Part, len: usize) -> Vec<u8> {
        let mut content = vec![0; len];
        self.memory.read_slice(&mut content, GuestAddress(part.address)).unwrap();
        content
    }

    /// Makes a chain available without notifying the device. Returns its head.
    pub(super) fn offer(&mut self, queue: usize, parts: &[Part]) -> u16 {
        let size = D::QUEUE_SIZES[queue];
        let ring = &mut self.rings[queue];
        let head = ring.next_descriptor;
        for (index, part) in parts.iter().enumerate() {
            let slot = ring.next_descriptor;
            ring.next_descriptor = (slot + 1) % size;
            let is_last = index + 1 == parts.len();
            let next = if is_last { 0 } else { DESCRIPTOR_NEXT };
            let write = if part.writable { DESCRIPTOR_WRITE } else { 0 };
            let descriptor = Descriptor::new(part.address, part.len, next | write, ring.next_descriptor);
            let address = queue_start(queue) + 16 * u64::from(slot);
            self.memory.write_obj(RawDescriptor::from(descriptor), GuestAddress(address)).unwrap();
        }
        self.make_available(queue, head);
        head
    }

    pub(super) fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let avail = queue_start(queue) + AVAIL_OFFSET;
        let slot = u64::from(ring.offered % D::QUEUE_SIZES[queue]);
        self.memory.write_obj(head, GuestAddress(avail + 4 + 2 * slot)).unwrap();
        ring.offered = ring.offered.wrapping_add(1);
        self.memory.write_obj(ring.offered, GuestAddress(avail + 2)).unwrap();
    }

    /// Writes anything over the index of the available ring.
    pub(super) fn break_avail_index(&mut self, queue: usize, index: u16) {
        self.memory.write_obj(index, GuestAddress(queue_start(queue) + AVAIL_OFFSET + 2)).unwrap();
    }

    /// Writes anything over a descriptor.
    pub(super) fn write_descriptor(&mut self, queue: usize, slot: u16, descriptor: Descriptor) {
        let address = queue_start(queue) + 16 * u64::from(slot);
        self.memory.write_obj(RawDescriptor::from(descriptor), GuestAddress(address)).unwrap();
    }

    /// The index from which on the device wants to be notified of available chains.
    pub(super) fn avail_event(&self, queue: usize) -> u16 {
        let size = u64::from(D::QUEUE_SIZES[queue]);
        let address = queue_start(queue) + USED_OFFSET + 4 + 8 * size;
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub(super) fn notify(&mut self, queue: usize) -> bool {
        self.write(register::VIRTIO_MMIO_QUEUE_NOTIFY, queue.try_into().unwrap())
    }

    /// Takes the next used chain: its head, and how much was written to it. With none left, asks for an
    /// interrupt with the next one.
    pub(super) fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let ring = &mut self.rings[queue];
        let start = queue_start(queue);
        let size = D::QUEUE_SIZES[queue];
        let index: u16 = self.memory.read_obj(GuestAddress(start + USED_OFFSET + 2)).unwrap();
        if index == ring.seen {
            let used_event = start + AVAIL_OFFSET + 4 + 2 * u64::from(size);
            self.memory.write_obj(ring.seen, GuestAddress(used_event)).unwrap();
            return None;
        }
        let slot = u64::from(ring.seen % size);
        let address = GuestAddress(start + USED_OFFSET + 4 + 8 * slot);
        let element: VirtqUsedElem = self.memory.read_obj(address).unwrap();
        ring.seen = ring.seen.wrapping_add(1);
        Some((element.id().try_into().unwrap(), element.len()))
    }
}

/// Makes a chain available, as another vCPU does while the device is at work.
pub(super) fn make_available_again<D: VirtioDevice>(memory: &GuestMemory, queue: usize, head: u16) {
    let avail = queue_start(queue) + AVAIL_OFFSET;
    let offered: u16 = memory.read_obj(GuestAddress(avail + 2)).unwrap();
    let slot = u64::from(offered % D::QUEUE_SIZES[queue]);
    memory.write_obj(head, GuestAddress(avail + 4 + 2 * slot)).unwrap();
    memory.write_obj(offered.wrapping_add(1), GuestAddress(avail + 2)).unwrap();
}

/// A chain of anything: descriptors in and out of memory, long and short, chained and looped.
pub(super) fn any_descriptor() -> impl proptest::strategy::Strategy<Value = Descriptor> {
    use proptest::prelude::*;
    let address = prop_oneof![
        BUFFERS_START..MEMORY_LEN as u64,
        (MEMORY_LEN as u64 - 100)..(MEMORY_LEN as u64 + 100),
        any::<u64>(),
        0..0x4_0000_u64
    ];
    let len = prop_oneof![0..100_u32, Just(16), Just(44), Just(512), Just(4096), any::<u32>()];
    let flags = prop_oneof![Just(0_u16), Just(1), Just(2), Just(3), Just(4), 0..8_u16];
    (address, len, flags, 0..8_u16)
        .prop_map(|(address, len, flags, next)| Descriptor::new(address, len, flags, next))
}
