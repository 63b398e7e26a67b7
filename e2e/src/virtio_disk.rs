//! How a guest of a few bytes drives its disk: the set-up of the one queue, as stores to memory and registers.

use virtio_bindings::virtio_mmio as register;

/// The registers of the disk.
const DISK: u32 = 0xd000_0000;

/// The queue, where real mode reaches it.
pub(crate) const DESCRIPTORS: u32 = 0x4_0000;
const AVAILABLE: u32 = 0x4_0100;
const USED: u32 = 0x4_0200;

pub(crate) const NEXT: u32 = 1;
pub(crate) const WRITABLE: u32 = 2;

/// The boot's page tables end at 1 GiB; a page of 2 MiB with the devices is added to them.
const MAP_DEVICES: [(u32, u32); 2] = [(0xa018, 0xc003), (0xc400, 0xd000_0083)];

/// Version 1 and nothing else, and 8 chains at a time.
const SET_UP_DEVICE: [(u32, u32); 11] = [
    (register::VIRTIO_MMIO_STATUS, 1),
    (register::VIRTIO_MMIO_STATUS, 1 | 2),
    (register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
    (register::VIRTIO_MMIO_DRIVER_FEATURES, 1),
    (register::VIRTIO_MMIO_STATUS, 1 | 2 | 8),
    (register::VIRTIO_MMIO_QUEUE_NUM, 8),
    (register::VIRTIO_MMIO_QUEUE_DESC_LOW, DESCRIPTORS),
    (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAILABLE),
    (register::VIRTIO_MMIO_QUEUE_USED_LOW, USED),
    (register::VIRTIO_MMIO_QUEUE_READY, 1),
    (register::VIRTIO_MMIO_STATUS, 1 | 2 | 8 | 4),
];

/// What the first vCPU does: it writes `chains` to memory, as pairs of address and value, and sets the disk up.
/// From then on RBX is where the disk's registers are.
pub(crate) fn set_up(chains: &[(u32, u32)]) -> Vec<u8> {
    let mut code = Vec::new();
    for (address, value) in MAP_DEVICES.iter().chain(chains) {
        code.extend([0xc7, 0x04, 0x25]); // mov dword [address], value
        code.extend(address.to_le_bytes());
        code.extend(value.to_le_bytes());
    }
    code.push(0xbb); // mov ebx, DISK
    code.extend(DISK.to_le_bytes());
    for (offset, value) in SET_UP_DEVICE {
        code.extend([0xc7, 0x83]); // mov dword [rbx + offset], value
        code.extend(offset.to_le_bytes());
        code.extend(value.to_le_bytes());
    }
    code
}
