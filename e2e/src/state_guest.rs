//! A guest of a few hundred bytes, as an ELF "kernel", whose state is all over the processor. It puts patterns
//! into registers, then goes round after round: it looks whether they are still there, writes a character to
//! the serial port, and halts until the local APIC's timer wakes it. `.` says that all is well, a letter what
//! is not; a timer that is lost, or a second vCPU that stands still, makes it silent.

use crate::second_vcpu;
use crate::tiny_guest::{ENTRY, elf};
use std::fs::File;
use std::io::Write;

/// The timer's interrupt.
const VECTOR: u8 = 0x30;
/// Where the table of interrupt handlers and the pointer to it are in the image.
const HANDLERS: usize = 0x1000;
const HANDLERS_POINTER: usize = 0x1400;

/// What the rounds of a whole guest write.
pub const WELL: u8 = b'.';

/// The guest as a kernel image, for a machine of one or two vCPUs.
///
/// # Panics
/// When no temporary file can be made.
#[expect(clippy::unwrap_used, reason = "a test without its guest must fail")]
pub fn kernel(vcpus: u8) -> File {
    let mut image = code(vcpus);
    let handler = ENTRY + INTERRUPT_HANDLER_AT as u64;
    image.resize(HANDLERS + 16 * usize::from(VECTOR), 0);
    image.extend(interrupt_gate(handler));
    let table_len = image.len() - HANDLERS;
    image.resize(HANDLERS_POINTER, 0);
    image.extend(u16::try_from(table_len - 1).unwrap().to_le_bytes());
    image.extend((ENTRY + HANDLERS as u64).to_le_bytes());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf(&image)).unwrap();
    file
}

fn interrupt_gate(handler: u64) -> [u8; 16] {
    let [low_0, low_1, mid_0, mid_1, ..] = handler.to_le_bytes();
    // Code segment 0x10, present, of ring 0, with interrupts off; a handler below 4 GiB.
    [low_0, low_1, 0x10, 0, 0, 0x8e, mid_0, mid_1, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// Behind the jump over it.
const INTERRUPT_HANDLER_AT: usize = 2;

/// Tells the local APIC that the interrupt was served.
#[rustfmt::skip]
const INTERRUPT_HANDLER: [u8; 19] = [
    0x50, 0x51, 0x52,             // push rax; push rcx; push rdx
    0xb9, 0x0b, 0x08, 0x00, 0x00, // mov ecx, X2APIC_EOI
    0x31, 0xc0, 0x31, 0xd2,       // xor eax, eax; xor edx, edx
    0x0f, 0x30,                   // wrmsr
    0x5a, 0x59, 0x58,             // pop rdx; pop rcx; pop rax
    0x48, 0xcf,                   // iretq
];

/// RSI points to memory of the guest's own from here on: at 0 the pattern of XMM registers, at 0x10 a copy of
/// such a register, at 0x20 the pattern of all others, at 0x30 what the second vCPU had last counted to.
#[rustfmt::skip]
const SET_UP: &[&[u8]] = &[
    &[0xbe, 0x00, 0x00, 0x30, 0x00],                         // mov esi, 0x300000
    &[0x0f, 0x01, 0x1c, 0x25, 0x00, 0x14, 0x10, 0x00],       // lidt [ENTRY + HANDLERS_POINTER]
    &[0x0f, 0x20, 0xe0],                                     // mov rax, cr4
    &[0x0d, 0x00, 0x02, 0x00, 0x00],                         // or eax, OSFXSR
    &[0x0f, 0x22, 0xe0],                                     // mov cr4, rax
    // The XMM registers.
    &[0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11], // mov rax, 0x1122334455667788
    &[0x48, 0x89, 0x06],                                     // mov [rsi], rax
    &[0x48, 0xf7, 0xd0],                                     // not rax
    &[0x48, 0x89, 0x46, 0x08],                               // mov [rsi + 8], rax
    &[0x0f, 0x10, 0x06],                                     // movups xmm0, [rsi]
    &[0x44, 0x0f, 0x10, 0x3e],                               // movups xmm15, [rsi]
    // CR2, DR0 and KERNEL_GS_BASE.
    &[0x48, 0xb8, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0x00, 0x00], // mov rax, 0x123456789abc
    &[0x48, 0x89, 0x46, 0x20],                               // mov [rsi + 0x20], rax
    &[0x0f, 0x22, 0xd0],                                     // mov cr2, rax
    &[0x0f, 0x23, 0xc0],                                     // mov dr0, rax
    &[0x48, 0x89, 0xc2],                                     // mov rdx, rax
    &[0x48, 0xc1, 0xea, 0x20],                               // shr rdx, 32
    &[0xb9, 0x02, 0x01, 0x00, 0xc0],                         // mov ecx, KERNEL_GS_BASE
    &[0x0f, 0x30],                                           // wrmsr
];

/// The local APIC's timer waits for a deadline.
#[rustfmt::skip]
const SET_UP_TIMER: &[&[u8]] = &[
    &[0xb9, 0x32, 0x08, 0x00, 0x00],                         // mov ecx, X2APIC_LVT_TIMER
    &[0x31, 0xd2],                                           // xor edx, edx
    &[0xb8, VECTOR, 0x00, 0x04, 0x00],                       // mov eax, TSC deadline and the vector
    &[0x0f, 0x30],                                           // wrmsr
];

/// The second vCPU counts at 0x30100.
#[rustfmt::skip]
const SECOND_VCPU: [u8; 8] = [
    0x2e, 0x66, 0xff, 0x06, 0x00, 0x01,                      // inc dword [cs:0x100]
    0xeb, 0xf8,                                              // jmp to inc
];

/// A letter, and what is to be compared: an instruction sequence that ends with flags for "not equal".
#[rustfmt::skip]
const CHECKS: &[(u8, &[u8])] = &[
    (b'x', &[
        0x0f, 0x11, 0x46, 0x10,       // movups [rsi + 0x10], xmm0
        0x48, 0x8b, 0x46, 0x10,       // mov rax, [rsi + 0x10]
        0x48, 0x3b, 0x06,             // cmp rax, [rsi]
    ]),
    (b'y', &[
        0x44, 0x0f, 0x11, 0x7e, 0x10, // movups [rsi + 0x10], xmm15
        0x48, 0x8b, 0x46, 0x18,       // mov rax, [rsi + 0x18]
        0x48, 0x3b, 0x46, 0x08,       // cmp rax, [rsi + 8]
    ]),
    (b'c', &[
        0x0f, 0x20, 0xd0,             // mov rax, cr2
        0x48, 0x3b, 0x46, 0x20,       // cmp rax, [rsi + 0x20]
    ]),
    (b'd', &[
        0x0f, 0x21, 0xc0,             // mov rax, dr0
        0x48, 0x3b, 0x46, 0x20,       // cmp rax, [rsi + 0x20]
    ]),
    (b'g', &[
        0xb9, 0x02, 0x01, 0x00, 0xc0, // mov ecx, KERNEL_GS_BASE
        0x0f, 0x32,                   // rdmsr
        0x48, 0xc1, 0xe2, 0x20,       // shl rdx, 32
        0x48, 0x09, 0xd0,             // or rax, rdx
        0x48, 0x3b, 0x46, 0x20,       // cmp rax, [rsi + 0x20]
    ]),
];

#[rustfmt::skip]
const WRITE_LETTER: &[&[u8]] = &[
    &[0xba, 0xf8, 0x03, 0x00, 0x00],                         // mov edx, 0x3f8
    &[0x88, 0xd8],                                           // mov al, bl
    &[0xee],                                                 // out dx, al
];

/// Sets the timer to a millisecond or two from now, and halts until its interrupt was served.
#[rustfmt::skip]
const WAIT_FOR_TIMER: &[&[u8]] = &[
    &[0x0f, 0x31],                                           // rdtsc
    &[0x48, 0xc1, 0xe2, 0x20],                               // shl rdx, 32
    &[0x48, 0x09, 0xd0],                                     // or rax, rdx
    &[0x48, 0x05, 0x00, 0x00, 0x40, 0x00],                   // add rax, 0x400000
    &[0x48, 0x89, 0xc2],                                     // mov rdx, rax
    &[0x48, 0xc1, 0xea, 0x20],                               // shr rdx, 32
    &[0xb9, 0xe0, 0x06, 0x00, 0x00],                         // mov ecx, TSC_DEADLINE
    &[0x0f, 0x30],                                           // wrmsr
    &[0xfb, 0xf4, 0xfa],                                     // sti; hlt; cli
];

#[rustfmt::skip]
const WAIT_FOR_SECOND_VCPU: &[&[u8]] = &[
    &[0xf3, 0x90],                                           // pause
    &[0x8b, 0x04, 0x25, 0x00, 0x01, 0x03, 0x00],             // mov eax, [0x30100]
    &[0x3b, 0x46, 0x30],                                     // cmp eax, [rsi + 0x30]
    &[0x74, 0xf2],                                           // je to pause
    &[0x89, 0x46, 0x30],                                     // mov [rsi + 0x30], eax
];

fn code(vcpus: u8) -> Vec<u8> {
    let mut code = vec![0xeb, 19]; // jmp over the handler
    code.extend(INTERRUPT_HANDLER);
    code.extend(SET_UP.concat());
    code.extend(second_vcpu::ENABLE_LOCAL_APIC.concat());
    code.extend(SET_UP_TIMER.concat());
    if vcpus > 1 {
        code.extend(second_vcpu::start(&SECOND_VCPU));
    }
    let round = code.len();
    let mut jumps = Vec::new();
    for (letter, check) in CHECKS {
        code.extend([0xb3, *letter]); // mov bl, letter
        code.extend(*check);
        code.extend([0x0f, 0x85, 0, 0, 0, 0]); // jne to the letter's writing
        jumps.push(code.len());
    }
    code.extend([0xb3, WELL]); // mov bl, WELL
    let write_letter = code.len();
    for jump_end in jumps {
        code[jump_end - 4..jump_end].copy_from_slice(&distance(jump_end, write_letter));
    }
    code.extend(WRITE_LETTER.concat());
    code.extend(WAIT_FOR_TIMER.concat());
    if vcpus > 1 {
        code.extend(WAIT_FOR_SECOND_VCPU.concat());
    }
    let end = code.len() + 5;
    code.push(0xe9); // jmp to the next round
    code.extend(distance(end, round));
    code
}

/// From the end of a jump to where it goes.
#[expect(clippy::unwrap_used, reason = "the code is much shorter than 2 GiB")]
fn distance(from: usize, to: usize) -> [u8; 4] {
    let [from, to] = [from, to].map(|at| i32::try_from(at).unwrap());
    (to - from).to_le_bytes()
}
