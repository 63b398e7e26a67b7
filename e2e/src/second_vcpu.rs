//! How a guest of a few bytes starts its other vCPUs: through the local APIC, in real mode, at 0x30000.

/// The registers of the local APIC become MSRs.
#[rustfmt::skip]
pub(crate) const ENABLE_LOCAL_APIC: &[&[u8]] = &[
    &[0xb9, 0x1b, 0x00, 0x00, 0x00],                         // mov ecx, APIC_BASE
    &[0x0f, 0x32],                                           // rdmsr
    &[0x0d, 0x00, 0x0c, 0x00, 0x00],                         // or eax, enabled and x2APIC
    &[0x0f, 0x30],                                           // wrmsr
    &[0xb9, 0x0f, 0x08, 0x00, 0x00],                         // mov ecx, X2APIC_SIVR
    &[0xb8, 0xff, 0x01, 0x00, 0x00],                         // mov eax, enabled, vector 0xff
    &[0x31, 0xd2],                                           // xor edx, edx
    &[0x0f, 0x30],                                           // wrmsr
];

#[rustfmt::skip]
const START: &[&[u8]] = &[
    &[0x31, 0xd2],                                           // xor edx, edx
    &[0xb9, 0x30, 0x08, 0x00, 0x00],                         // mov ecx, X2APIC_ICR
    &[0xb8, 0x00, 0x45, 0x0c, 0x00],                         // mov eax, INIT for all but this one
    &[0x0f, 0x30],                                           // wrmsr
    &[0xb8, 0x30, 0x46, 0x0c, 0x00],                         // mov eax, start at page 0x30, all but this one
    &[0x0f, 0x30],                                           // wrmsr
];

/// What the first vCPU does to have the others run this 16-bit code, a multiple of four bytes.
pub(crate) fn start(others: &[u8]) -> Vec<u8> {
    let mut code = Vec::new();
    for (at, word) in (0x3_0000_u32..).step_by(4).zip(others.chunks(4)) {
        code.extend([0xc7, 0x04, 0x25]); // mov dword [at], word
        code.extend(at.to_le_bytes());
        code.extend(word);
    }
    code.extend(START.concat());
    code
}

/// What another vCPU does to come where the first one is, in 64-bit mode with the same page tables, and go on
/// at `entry`.
#[rustfmt::skip]
pub(crate) fn into_long_mode(entry: u32) -> Vec<u8> {
    let [e0, e1, e2, e3] = entry.to_le_bytes();
    let code: [&[u8]; 19] = [
        &[0xfa],                                             // cli
        &[0xb8, 0x00, 0x30],                                 // mov ax, 0x3000
        &[0x8e, 0xd8],                                       // mov ds, ax
        &[0x66, 0x0f, 0x01, 0x16, 0x43, 0x00],               // lgdt [the last line]
        &[0x0f, 0x20, 0xe0],                                 // mov eax, cr4
        &[0x66, 0x83, 0xc8, 0x20],                           // or eax, PAE
        &[0x0f, 0x22, 0xe0],                                 // mov cr4, eax
        &[0x66, 0xb8, 0x00, 0x90, 0x00, 0x00],               // mov eax, page tables
        &[0x0f, 0x22, 0xd8],                                 // mov cr3, eax
        &[0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0],               // mov ecx, EFER
        &[0x0f, 0x32],                                       // rdmsr
        &[0x66, 0x0d, 0x00, 0x01, 0x00, 0x00],               // or eax, LME
        &[0x0f, 0x30],                                       // wrmsr
        &[0x0f, 0x20, 0xc0],                                 // mov eax, cr0
        &[0x66, 0x0d, 0x01, 0x00, 0x00, 0x80],               // or eax, PG | PE
        &[0x0f, 0x22, 0xc0],                                 // mov cr0, eax
        &[0x66, 0xea, e0, e1, e2, e3, 0x10, 0x00],           // jmp 0x10:entry
        &[0x1f, 0x00, 0x00, 0x05, 0x00, 0x00],               // the boot's segments: 32 bytes at 0x500
        &[0; 3],
    ];
    code.concat()
}
