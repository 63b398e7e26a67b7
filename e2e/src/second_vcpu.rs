//! How a guest of a few bytes starts its second vCPU: through the local APIC, in real mode, at 0x30000.

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
    &[0xba, 0x01, 0x00, 0x00, 0x00],                         // mov edx, vCPU 1
    &[0xb9, 0x30, 0x08, 0x00, 0x00],                         // mov ecx, X2APIC_ICR
    &[0xb8, 0x00, 0x45, 0x00, 0x00],                         // mov eax, INIT
    &[0x0f, 0x30],                                           // wrmsr
    &[0xb8, 0x30, 0x46, 0x00, 0x00],                         // mov eax, start at page 0x30
    &[0x0f, 0x30],                                           // wrmsr
];

/// What the first vCPU does to have the second one run this 16-bit code, a multiple of four bytes.
pub(crate) fn start(second: &[u8]) -> Vec<u8> {
    let mut code = Vec::new();
    for (at, word) in (0x3_0000_u32..).step_by(4).zip(second.chunks(4)) {
        code.extend([0xc7, 0x04, 0x25]); // mov dword [at], word
        code.extend(at.to_le_bytes());
        code.extend(word);
    }
    code.extend(START.concat());
    code
}
