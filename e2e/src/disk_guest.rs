//! A guest of a few hundred bytes, as an ELF "kernel", that writes to its disk all the time: a block chosen at
//! random gets the processor's time, and another block is read and must hold what was last written to it. The
//! time differs between a source and its copies, so that each knows its own blocks from all others'. `.` says
//! that a round went well, `b` that a block was not right, `e` that the disk has failed.

use crate::tiny_guest::elf;
use crate::virtio_disk::{self, DESCRIPTORS, NEXT, WRITABLE};
use std::fs::File;
use std::io::Write;

/// What the rounds of a whole guest write.
pub const WELL: u8 = b'.';

/// The guest as a kernel image, for a machine of one vCPU and a disk of at least 4 MiB.
///
/// # Panics
/// When no temporary file can be made.
#[expect(clippy::unwrap_used, reason = "a test without its guest must fail")]
pub fn kernel() -> File {
    let mut code = virtio_disk::set_up(&MAKE_REQUESTS);
    code.extend(ROUNDS.concat());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf(&code)).unwrap();
    file
}

/// The first chain writes a block, the second one reads one. Their headers, contents and statuses are where
/// [`ROUNDS`] expects them.
const MAKE_REQUESTS: [(u32, u32); 19] = [
    (WRITE_HEADER, 1),
    (DESCRIPTORS, WRITE_HEADER),
    (DESCRIPTORS + 8, 16),
    (DESCRIPTORS + 12, 1 << 16 | NEXT),
    (DESCRIPTORS + 16, 0x40_0000),
    (DESCRIPTORS + 24, 4096),
    (DESCRIPTORS + 28, 2 << 16 | NEXT),
    (DESCRIPTORS + 32, 0x30_0200),
    (DESCRIPTORS + 40, 1),
    (DESCRIPTORS + 44, WRITABLE),
    (DESCRIPTORS + 48, 0x30_0100),
    (DESCRIPTORS + 56, 16),
    (DESCRIPTORS + 60, 4 << 16 | NEXT),
    (DESCRIPTORS + 64, 0x40_1000),
    (DESCRIPTORS + 72, 4096),
    (DESCRIPTORS + 76, 5 << 16 | WRITABLE | NEXT),
    (DESCRIPTORS + 80, 0x30_0201),
    (DESCRIPTORS + 88, 1),
    (DESCRIPTORS + 92, WRITABLE),
];
const WRITE_HEADER: u32 = 0x30_0000;

/// RBX is where the disk's registers are, R8W the index of the available ring, R9 the state of the generator
/// that chooses blocks. From 0x500000 on is what each block was last given.
#[rustfmt::skip]
const ROUNDS: &[&[u8]] = &[
    &[0x45, 0x31, 0xc0],                                      // xor r8d, r8d
    &[0x41, 0xb9, 0x01, 0x00, 0x00, 0x00],                    // mov r9d, 1
    // A round: write a block.
    &[0xe8, 0x96, 0x00, 0x00, 0x00],                          // call the choice
    &[0x0f, 0x31],                                            // rdtsc
    &[0x48, 0xc1, 0xe2, 0x20],                                // shl rdx, 32
    &[0x48, 0x09, 0xd0],                                      // or rax, rdx
    &[0x48, 0x89, 0x04, 0x25, 0x00, 0x00, 0x40, 0x00],        // mov [0x400000], rax
    &[0x48, 0x89, 0x04, 0x25, 0xf8, 0x0f, 0x40, 0x00],        // mov [0x400ff8], rax
    &[0x48, 0x89, 0x04, 0xcd, 0x00, 0x00, 0x50, 0x00],        // mov [rcx * 8 + 0x500000], rax
    &[0x8d, 0x04, 0xcd, 0x00, 0x00, 0x00, 0x00],              // lea eax, [rcx * 8]
    &[0x89, 0x04, 0x25, 0x08, 0x00, 0x30, 0x00],              // mov [0x300008], eax
    &[0x31, 0xc0],                                            // xor eax, eax
    &[0xe8, 0x7c, 0x00, 0x00, 0x00],                          // call the request
    &[0xb0, b'e'],                                            // mov al, 'e'
    &[0x80, 0x3c, 0x25, 0x00, 0x02, 0x30, 0x00, 0x00],        // cmp byte [0x300200], 0
    &[0x75, 0x49],                                            // jne to the letter's writing
    // Read another.
    &[0xe8, 0x4f, 0x00, 0x00, 0x00],                          // call the choice
    &[0x8d, 0x04, 0xcd, 0x00, 0x00, 0x00, 0x00],              // lea eax, [rcx * 8]
    &[0x89, 0x04, 0x25, 0x08, 0x01, 0x30, 0x00],              // mov [0x300108], eax
    &[0xb8, 0x03, 0x00, 0x00, 0x00],                          // mov eax, 3
    &[0xe8, 0x53, 0x00, 0x00, 0x00],                          // call the request
    &[0xb0, b'e'],                                            // mov al, 'e'
    &[0x80, 0x3c, 0x25, 0x01, 0x02, 0x30, 0x00, 0x00],        // cmp byte [0x300201], 0
    &[0x75, 0x20],                                            // jne to the letter's writing
    &[0x48, 0x8b, 0x14, 0xcd, 0x00, 0x00, 0x50, 0x00],        // mov rdx, [rcx * 8 + 0x500000]
    &[0xb0, b'b'],                                            // mov al, 'b'
    &[0x48, 0x39, 0x14, 0x25, 0x00, 0x10, 0x40, 0x00],        // cmp [0x401000], rdx
    &[0x75, 0x0c],                                            // jne to the letter's writing
    &[0x48, 0x39, 0x14, 0x25, 0xf8, 0x1f, 0x40, 0x00],        // cmp [0x401ff8], rdx
    &[0x75, 0x02],                                            // jne to the letter's writing
    &[0xb0, WELL],                                            // mov al, WELL
    &[0xba, 0xf8, 0x03, 0x00, 0x00],                          // mov edx, 0x3f8
    &[0xee],                                                  // out dx, al
    &[0xe9, 0x65, 0xff, 0xff, 0xff],                          // jmp to the next round
    // The choice of a block: RCX, below 1024.
    &[0x4d, 0x69, 0xc9, 0x0d, 0x66, 0x19, 0x00],              // imul r9, r9, 1664525
    &[0x49, 0x81, 0xc1, 0x5f, 0xf3, 0x6e, 0x3c],              // add r9, 1013904223
    &[0x4c, 0x89, 0xc9],                                      // mov rcx, r9
    &[0x48, 0xc1, 0xe9, 0x14],                                // shr rcx, 20
    &[0x81, 0xe1, 0xff, 0x03, 0x00, 0x00],                    // and ecx, 0x3ff
    &[0xc3],                                                  // ret
    // The request of the chain that AX says: made, and waited for.
    &[0x44, 0x89, 0xc2],                                      // mov edx, r8d
    &[0x83, 0xe2, 0x07],                                      // and edx, 7
    &[0x66, 0x89, 0x04, 0x55, 0x04, 0x01, 0x04, 0x00],        // mov [rdx * 2 + AVAILABLE ring], ax
    &[0x66, 0x41, 0xff, 0xc0],                                // inc r8w
    &[0x66, 0x44, 0x89, 0x04, 0x25, 0x02, 0x01, 0x04, 0x00],  // mov [AVAILABLE index], r8w
    &[0xc7, 0x43, 0x50, 0x00, 0x00, 0x00, 0x00],              // mov dword [rbx + QUEUE_NOTIFY], 0
    &[0xf3, 0x90],                                            // pause
    &[0x66, 0x44, 0x39, 0x04, 0x25, 0x02, 0x02, 0x04, 0x00],  // cmp [USED index], r8w
    &[0x75, 0xf3],                                            // jne to pause
    &[0xc3],                                                  // ret
];
