//! A guest of a few hundred bytes, as an ELF "kernel", that never lets a device come to an end: while the first
//! of its two vCPUs notifies the disk and writes a character to the serial port, on and on, the second one makes
//! each request again as soon as the disk has answered it.

use crate::second_vcpu;
use crate::tiny_guest::elf;
use crate::virtio_disk::{self, DESCRIPTORS, NEXT, WRITABLE};
use std::fs::File;
use std::io::Write;
/// The buffers of the one request.
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
    let mut code = virtio_disk::set_up(&MAKE_REQUEST);
    code.extend(second_vcpu::ENABLE_LOCAL_APIC.concat());
    code.extend(second_vcpu::start(&SECOND_VCPU));
    code.extend([0xba, 0xf8, 0x03, 0x00, 0x00]); // mov edx, 0x3f8
    code.extend([0xc7, 0x43, 0x50, 0x00, 0x00, 0x00, 0x00]); // mov dword [rbx + QUEUE_NOTIFY], 0
    code.extend([0xb0, b'.', 0xee]); // mov al, '.'; out dx, al
    code.extend([0xeb, 0xf4]); // jmp to the notification
    code
}
