//! A guest of a few hundred bytes, as an ELF "kernel", whose vCPUs count, watch each other count, and rewrite
//! memory all the time. Whatever is not of one instant in a copy shows: a register that is older or younger
//! than memory, one vCPU's state that is younger than another's, a page that is not the one last written.
//!
//! Each vCPU counts in a register and in memory, and publishes how far it has seen its predecessor count. It
//! goes over a region of its own, page by page: on each pass a page must be as the last pass left it. It writes
//! a letter to the serial port when something is wrong. The first one writes `.` when all have counted on since
//! the last one, so that a vCPU that stands still makes the guest silent.

use crate::second_vcpu;
use crate::tiny_guest::{ENTRY, elf};
use std::fs::File;
use std::io::Write;

/// What a whole guest writes.
pub const WELL: u8 = b'.';

/// What is told to the vCPUs.
const VCPUS: u32 = 0x20_0800;
const REGION_LEN: u32 = 0x20_0804;

/// The guest as a kernel image, for a machine of that many vCPUs. Together they go over `touched_mib` MiB, from
/// 4 MiB on.
///
/// # Panics
/// When no temporary file can be made.
#[expect(clippy::unwrap_used, reason = "a test without its guest must fail")]
pub fn kernel(vcpus: u8, touched_mib: u32) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf(&code(vcpus, touched_mib))).unwrap();
    file
}

fn code(vcpus: u8, touched_mib: u32) -> Vec<u8> {
    let set_up = |entry: u32| {
        let mut code = MAP_THREE_GIB.concat();
        for (address, value) in [(VCPUS, vcpus.into()), (REGION_LEN, (touched_mib << 20) / u32::from(vcpus))]
        {
            code.extend([0xc7, 0x04, 0x25]); // mov dword [address], value
            code.extend(address.to_le_bytes());
            code.extend(value.to_le_bytes());
        }
        code.extend(second_vcpu::ENABLE_LOCAL_APIC.concat());
        code.extend(second_vcpu::start(&second_vcpu::into_long_mode(entry)));
        code
    };
    // All vCPUs enter behind the set-up, whose length does not depend on where that is.
    let behind = ENTRY + set_up(0).len() as u64;
    let mut code = set_up(u32::try_from(behind).unwrap_or(0));
    code.extend([CHOOSE_PLACE, ROUND].concat().concat());
    code
}

/// The boot's page tables end at 1 GiB: two more tables.
#[rustfmt::skip]
const MAP_THREE_GIB: &[&[u8]] = &[
    &[0xc7, 0x04, 0x25, 0x08, 0xa0, 0x00, 0x00, 0x03, 0xc0, 0x00, 0x00], // mov dword [0xa008], 0xc003
    &[0xc7, 0x04, 0x25, 0x10, 0xa0, 0x00, 0x00, 0x03, 0xd0, 0x00, 0x00], // mov dword [0xa010], 0xd003
    &[0xbf, 0x00, 0xc0, 0x00, 0x00],                          // mov edi, 0xc000
    &[0xb8, 0x83, 0x00, 0x00, 0x40],                          // mov eax, 0x40000083
    &[0xb9, 0x00, 0x04, 0x00, 0x00],                          // mov ecx, 1024
    &[0x48, 0x89, 0x07],                                      // mov [rdi], rax
    &[0x05, 0x00, 0x00, 0x20, 0x00],                          // add eax, 2 MiB
    &[0x83, 0xc7, 0x08],                                      // add edi, 8
    &[0xff, 0xc9],                                            // dec ecx
    &[0x75, 0xf1],                                            // jne to the entry's writing
];

/// Each vCPU draws a number, EBP, and works out from it what is its own. A cell of 64 bytes holds its count, how
/// far it has seen its predecessor's, and what its count was at the last `.`.
///
/// | register | |
/// |---|---|
/// | RBX | its count |
/// | RSI, RDI, R10 | its own cell, its predecessor's, its successor's |
/// | R9 | how far it has seen its predecessor count |
/// | R12, R13, R14 | the page that comes next in its region, the region's start and end |
/// | R15 | passes over its region |
/// | R11D | vCPUs |
#[rustfmt::skip]
const CHOOSE_PLACE: &[&[u8]] = &[
    &[0xb8, 0x01, 0x00, 0x00, 0x00],                          // mov eax, 1
    &[0xf0, 0x0f, 0xc1, 0x04, 0x25, 0x08, 0x08, 0x20, 0x00],  // lock xadd [0x200808], eax
    &[0x89, 0xc5],                                            // mov ebp, eax
    &[0x44, 0x8b, 0x1c, 0x25, 0x00, 0x08, 0x20, 0x00],        // mov r11d, [VCPUS]
    &[0xc1, 0xe0, 0x06],                                      // shl eax, 6
    &[0x8d, 0xb0, 0x00, 0x10, 0x20, 0x00],                    // lea esi, [rax + 0x201000]
    &[0x89, 0xe8],                                            // mov eax, ebp
    &[0x85, 0xc0],                                            // test eax, eax
    &[0x41, 0x0f, 0x44, 0xc3],                                // cmove eax, r11d
    &[0xff, 0xc8],                                            // dec eax
    &[0xc1, 0xe0, 0x06],                                      // shl eax, 6
    &[0x8d, 0xb8, 0x00, 0x10, 0x20, 0x00],                    // lea edi, [rax + 0x201000]
    &[0x8d, 0x45, 0x01],                                      // lea eax, [rbp + 1]
    &[0x31, 0xc9],                                            // xor ecx, ecx
    &[0x44, 0x39, 0xd8],                                      // cmp eax, r11d
    &[0x0f, 0x44, 0xc1],                                      // cmove eax, ecx
    &[0xc1, 0xe0, 0x06],                                      // shl eax, 6
    &[0x44, 0x8d, 0x90, 0x00, 0x10, 0x20, 0x00],              // lea r10d, [rax + 0x201000]
    &[0x44, 0x8b, 0x34, 0x25, 0x04, 0x08, 0x20, 0x00],        // mov r14d, [REGION_LEN]
    &[0x45, 0x89, 0xf5],                                      // mov r13d, r14d
    &[0x44, 0x0f, 0xaf, 0xed],                                // imul r13d, ebp
    &[0x41, 0x81, 0xc5, 0x00, 0x00, 0x40, 0x00],              // add r13d, 4 MiB
    &[0x45, 0x01, 0xee],                                      // add r14d, r13d
    &[0x4d, 0x89, 0xec],                                      // mov r12, r13
    &[0x31, 0xdb],                                            // xor ebx, ebx
    &[0x45, 0x31, 0xc9],                                      // xor r9d, r9d
    &[0x45, 0x31, 0xff],                                      // xor r15d, r15d
];

#[rustfmt::skip]
const ROUND: &[&[u8]] = &[
    // Memory is what the register says.
    &[0xb1, b'm'],                                            // mov cl, 'm'
    &[0x48, 0x39, 0x1e],                                      // cmp [rsi], rbx
    &[0x75, 0x76],                                            // jne to the letter's writing
    // The successor has seen nothing that has not happened.
    &[0xb1, b's'],                                            // mov cl, 's'
    &[0x49, 0x39, 0x5a, 0x08],                                // cmp [r10 + 8], rbx
    &[0x77, 0x6e],                                            // ja to the letter's writing
    // What was seen of the predecessor has not been undone.
    &[0xb1, b'c'],                                            // mov cl, 'c'
    &[0x48, 0x8b, 0x07],                                      // mov rax, [rdi]
    &[0x4c, 0x39, 0xc8],                                      // cmp rax, r9
    &[0x72, 0x64],                                            // jb to the letter's writing
    &[0x49, 0x89, 0xc1],                                      // mov r9, rax
    &[0x48, 0x89, 0x46, 0x08],                                // mov [rsi + 8], rax
    // The page holds its address times the passes over it, and then once more.
    &[0xb1, b'p'],                                            // mov cl, 'p'
    &[0x4c, 0x89, 0xe0],                                      // mov rax, r12
    &[0x49, 0x0f, 0xaf, 0xc7],                                // imul rax, r15
    &[0x49, 0x39, 0x04, 0x24],                                // cmp [r12], rax
    &[0x75, 0x4e],                                            // jne to the letter's writing
    &[0x4c, 0x01, 0xe0],                                      // add rax, r12
    &[0x49, 0x89, 0x04, 0x24],                                // mov [r12], rax
    &[0x49, 0x81, 0xc4, 0x00, 0x10, 0x00, 0x00],              // add r12, 4096
    &[0x4d, 0x39, 0xf4],                                      // cmp r12, r14
    &[0x72, 0x06],                                            // jb to the counting
    &[0x4d, 0x89, 0xec],                                      // mov r12, r13
    &[0x49, 0xff, 0xc7],                                      // inc r15
    &[0x48, 0xff, 0xc3],                                      // inc rbx
    &[0x48, 0x89, 0x1e],                                      // mov [rsi], rbx
    // The first vCPU looks whether all have counted on.
    &[0x85, 0xed],                                            // test ebp, ebp
    &[0x75, 0xae],                                            // jne to the next round
    &[0x49, 0x89, 0xf0],                                      // mov r8, rsi
    &[0x44, 0x89, 0xd9],                                      // mov ecx, r11d
    &[0x49, 0x8b, 0x00],                                      // mov rax, [r8]
    &[0x49, 0x3b, 0x40, 0x10],                                // cmp rax, [r8 + 16]
    &[0x74, 0x9f],                                            // je to the next round
    &[0x49, 0x83, 0xc0, 0x40],                                // add r8, 64
    &[0xff, 0xc9],                                            // dec ecx
    &[0x75, 0xef],                                            // jne to the next cell's reading
    &[0x44, 0x89, 0xd9],                                      // mov ecx, r11d
    &[0x49, 0x83, 0xe8, 0x40],                                // sub r8, 64
    &[0x49, 0x8b, 0x00],                                      // mov rax, [r8]
    &[0x49, 0x89, 0x40, 0x10],                                // mov [r8 + 16], rax
    &[0xff, 0xc9],                                            // dec ecx
    &[0x75, 0xf1],                                            // jne to the cell before
    &[0xb1, WELL],                                            // mov cl, WELL
    &[0xba, 0xf8, 0x03, 0x00, 0x00],                          // mov edx, 0x3f8
    &[0x88, 0xc8],                                            // mov al, cl
    &[0xee],                                                  // out dx, al
    &[0xe9, 0x76, 0xff, 0xff, 0xff],                          // jmp to the next round
];
