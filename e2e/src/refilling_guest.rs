//! A guest of a few hundred bytes, as an ELF "kernel", that never lets a device come to an end: while the first
//! of its two vCPUs notifies the disk and writes a character to the serial port, on and on, the second one makes
//! each request again as soon as the disk has answered it.

use crate::second_vcpu;
use crate::tiny_guest::elf;
use std::fs::File;
use std::io::Write;
use virtio_bindings::virtio_mmio as register;

const DISK: u32 = 0xd000_0000;

/// The queue, where real mode reaches it, and the buffers of its one request.
const DESCRIPTORS: u32 = 0x4_0000;
const AVAILABLE: u32 = 0x4_0100;
const USED: u32 = 0x4_0200;
const HEADER: u32 = 0x30_0000;
const STATUS: u32 = 0x30_1000;
const CONTENT: u32 = 0x40_0000;

/// The guest as a kernel image, for a machine of two vCPUs.
///
/// # Panics
/// When no temporary file can be made.
#[expect(clippy::unwrap_used, reason = "a test without its guest must fail")]
pub fn kernel() -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf(&code())).unwrap();
    file
}

/// The boot's page tables end at 1 GiB; a page of 2 MiB with the devices is added to them.
const MAP_DEVICES: [(u32, u32); 2] = [(0xa018, 0xc003), (0xc400, 0xd000_0083)];

/// A request to read 15 MiB from the disk's beginning, which a header of zeros is: so long that the second vCPU
/// is there first even if its thread has to wait. All available chains are this one, since the ring is memory
/// that was never written.
const MAKE_REQUEST: [(u32, u32); 9] = [
    (DESCRIPTORS, HEADER),
    (DESCRIPTORS + 8, 16),
    (DESCRIPTORS + 12, 1 << 16 | NEXT),
    (DESCRIPTORS + 16, CONTENT),
    (DESCRIPTORS + 24, 15 << 20),
    (DESCRIPTORS + 28, 2 << 16 | WRITABLE | NEXT),
    (DESCRIPTORS + 32, STATUS),
    (DESCRIPTORS + 40, 1),
    (DESCRIPTORS + 44, WRITABLE),
];
const NEXT: u32 = 1;
const WRITABLE: u32 = 2;

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

/// Keeps the available ring seven chains ahead of the used one.
#[rustfmt::skip]
const SECOND_VCPU: [u8; 16] = [
    0xb8, 0x00, 0x40,                                        // mov ax, 0x4000
    0x8e, 0xd8,                                              // mov ds, ax
    0xa1, 0x02, 0x02,                                        // mov ax, [USED index]
    0x05, 0x07, 0x00,                                        // add ax, 7
    0xa3, 0x02, 0x01,                                        // mov [AVAILABLE index], ax
    0xeb, 0xf5,                                              // jmp to the reading of the index
];

fn code() -> Vec<u8> {
    let mut code = Vec::new();
    for (address, value) in MAP_DEVICES.into_iter().chain(MAKE_REQUEST) {
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
    code.extend(second_vcpu::ENABLE_LOCAL_APIC.concat());
    code.extend(second_vcpu::start(&SECOND_VCPU));
    code.extend([0xba, 0xf8, 0x03, 0x00, 0x00]); // mov edx, 0x3f8
    code.extend([0xc7, 0x43, 0x50, 0x00, 0x00, 0x00, 0x00]); // mov dword [rbx + QUEUE_NOTIFY], 0
    code.extend([0xb0, b'.', 0xee]); // mov al, '.'; out dx, al
    code.extend([0xeb, 0xf4]); // jmp to the notification
    code
}
