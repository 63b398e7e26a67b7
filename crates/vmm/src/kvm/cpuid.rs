//! What a guest sees of the processor: what KVM supports, with this vCPU's own number and topology, and
//! without what a sandbox must not rely on.

use kvm_bindings::CpuId;

const TSC_DEADLINE_ECX: u32 = 1 << 24;
const HYPERVISOR_ECX: u32 = 1 << 31;
const VMX_ECX: u32 = 1 << 5;
const SVM_ECX: u32 = 1 << 2;
const HYPER_THREADING_EDX: u32 = 1 << 28;

/// KVM_FEATURE_ASYNC_PF, _ASYNC_PF_VMEXIT, _ASYNC_PF_INT (page faults answered later) and _PV_UNHALT (a kick
/// that a vCPU finds when it halts): KVM keeps state for them that a fork could not save.
const UNSAVED_STATE_EAX: u32 = 1 << 4 | 1 << 7 | 1 << 10 | 1 << 14;

const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// The leaves for vCPU `index` of `count`: one socket, one core a vCPU, no hyper-threads.
pub(crate) fn for_vcpu(supported: &CpuId, index: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let apic_id = u32::from(index);
    let cores = u32::from(count);
    let apic_id_bits = u32::from(count).next_power_of_two().trailing_zeros();
    // AMD's extended topology would describe the host's processor; the older leaves say enough.
    cpuid.retain(|leaf| leaf.function != 0x8000_0026);
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            0x1 => {
                leaf.ebx = (leaf.ebx & 0x0000_ffff) | cores << 16 | apic_id << 24;
                // KVM leaves both out of what it supports, as user space has to choose them: without
                // the first the guest does not look for kvm-clock.
                leaf.ecx |= HYPERVISOR_ECX | TSC_DEADLINE_ECX;
                // Nested virtualization is state that a fork would have to copy.
                leaf.ecx &= !VMX_ECX;
                leaf.edx |= if count > 1 { HYPER_THREADING_EDX } else { 0 };
            }
            0x4 if leaf.eax & 0x1f != 0 => {
                leaf.eax = (leaf.eax & 0x0000_3fff) | (cores - 1) << 26;
            }
            0xb | 0x1f => {
                leaf.edx = apic_id;
                (leaf.eax, leaf.ebx, leaf.ecx) = match leaf.index {
                    0 => (0, 1, LEVEL_SMT),
                    1 => (apic_id_bits, cores, LEVEL_CORE | 1),
                    level => (0, 0, level),
                };
            }
            0x4000_0001 => leaf.eax &= !UNSAVED_STATE_EAX,
            0x8000_0001 => leaf.ecx &= !SVM_ECX,
            0x8000_0008 => leaf.ecx = (leaf.ecx & !0xf0ff) | (cores - 1) | apic_id_bits << 12,
            0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (apic_id, apic_id, 0),
            _ => {}
        }
    }
    cpuid
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    fn supported() -> CpuId {
        let leaf = |function, index| kvm_cpuid_entry2 { function, index, ..Default::default() };
        CpuId::from_entries(&[leaf(0x1, 0), leaf(0xb, 0), leaf(0xb, 1), leaf(0x8000_0026, 0)]).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_number() {
        for index in 0..2 {
            let cpuid = for_vcpu(&supported(), index, 2);
            let leaves = cpuid.as_slice();
            assert_eq!(leaves[0].ebx >> 24, u32::from(index));
            assert_eq!(leaves[0].ebx >> 16 & 0xff, 2);
            assert!(leaves[1..].iter().all(|leaf| leaf.edx == u32::from(index)));
        }
    }

    #[test]
    fn two_cores_are_described_as_two_cores() {
        let cpuid = for_vcpu(&supported(), 0, 2);
        let core_level = cpuid.as_slice()[2];
        assert_eq!((core_level.eax, core_level.ebx, core_level.ecx), (1, 2, LEVEL_CORE | 1));
        assert!(cpuid.as_slice().iter().all(|leaf| leaf.function != 0x8000_0026));
    }

    #[test]
    fn the_guest_is_told_that_it_has_a_hypervisor_and_no_nested_one() {
        let leaf = for_vcpu(&supported(), 0, 1).as_slice()[0];
        assert_ne!(leaf.ecx & HYPERVISOR_ECX, 0);
        assert_ne!(leaf.ecx & TSC_DEADLINE_ECX, 0);
        assert_eq!(leaf.ecx & VMX_ECX, 0);
    }
}
