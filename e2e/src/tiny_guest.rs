//! A guest of a few bytes, as an ELF "kernel": it counts in its memory and writes each count's low byte
//! to the serial port. Whatever part of its console one sees, each byte must be its predecessor plus one:
//! a step that is lost or done twice, or memory that is shared with a copy, shows.

use crate::vmm::Vmm;
use std::fs::File;
use std::io::Write;

pub(crate) const ENTRY: u64 = 0x10_0000;
const HEADER_LEN: usize = 64;
const SEGMENT_LEN: usize = 56;

/// The guest as a kernel image. Before it counts it writes to each page of `touched_mib` MiB, from 4 MiB on.
///
/// # Panics
/// When no temporary file can be made.
#[expect(clippy::unwrap_used, reason = "a test without its guest must fail")]
pub fn kernel(touched_mib: u32) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf(&code(touched_mib))).unwrap();
    file
}

fn code(touched_mib: u32) -> Vec<u8> {
    let pages = touched_mib << 8;
    let mut code = vec![0xb9]; // mov ecx, pages + 1
    code.extend((pages + 1).to_le_bytes());
    code.extend([0xbf, 0x00, 0x00, 0x40, 0x00]); // mov edi, 0x400000
    code.extend([0xff, 0xc9, 0x74, 0x0b]); // dec ecx; jz to the counter
    code.extend([0x88, 0x0f]); // mov [rdi], cl
    code.extend([0x81, 0xc7, 0x00, 0x10, 0x00, 0x00]); // add edi, 4096
    code.extend([0xeb, 0xf2, 0x90]); // jmp to dec; nop
    code.extend([0xbb, 0x00, 0x00, 0x20, 0x00]); // mov ebx, 0x200000
    code.extend([0xba, 0xf8, 0x03, 0x00, 0x00]); // mov edx, 0x3f8
    code.extend([0x48, 0xff, 0x03]); // inc qword [rbx]
    code.extend([0x8a, 0x03]); // mov al, [rbx]
    code.push(0xee); // out dx, al
    code.extend([0xeb, 0xf8]); // jmp to inc
    code
}

/// A 64-bit ELF file with this code as its one segment.
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; HEADER_LEN + SEGMENT_LEN];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2_u16.to_le_bytes()); // executable
    put(18, &62_u16.to_le_bytes()); // x86-64
    put(20, &1_u32.to_le_bytes());
    put(24, &ENTRY.to_le_bytes());
    put(32, &(HEADER_LEN as u64).to_le_bytes()); // program headers follow
    put(52, &[64, 0, 56, 0, 1, 0]); // their sizes and count
    put(HEADER_LEN, &1_u32.to_le_bytes()); // to be loaded
    put(HEADER_LEN + 4, &5_u32.to_le_bytes());
    put(HEADER_LEN + 8, &((HEADER_LEN + SEGMENT_LEN) as u64).to_le_bytes());
    put(HEADER_LEN + 16, &ENTRY.to_le_bytes());
    put(HEADER_LEN + 24, &ENTRY.to_le_bytes());
    put(HEADER_LEN + 32, &(code.len() as u64).to_le_bytes());
    put(HEADER_LEN + 40, &(code.len() as u64).to_le_bytes());
    image.extend_from_slice(code);
    image
}

/// Checks that what is seen of the guest's counting has no gap.
///
/// # Panics
/// When it has not.
#[track_caller]
pub fn assert_counts_on(console: &[u8]) {
    for (at, pair) in console.windows(2).enumerate() {
        assert_eq!(pair[1], pair[0].wrapping_add(1), "at {at} of {} bytes", console.len());
    }
}

/// Checks that a frozen guest has counted without a gap from the first byte on: each byte is its number.
///
/// # Panics
/// When it has not.
#[track_caller]
pub fn assert_has_counted(frozen: &Vmm) {
    let console = frozen.console();
    assert_counts_on(&console);
    let number = frozen.inspect().console_bytes.to_le_bytes()[0];
    assert_eq!(console.last(), Some(&number));
}
