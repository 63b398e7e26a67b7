//! A KVM VM with memory, interrupt chips and vCPUs that never run: what any VMM has to ask of KVM for one.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Three unused pages in the hole for devices, which Intel's KVM asks for.
const TSS: usize = 0xfffb_d000;

/// Borrows the guest's memory, which so outlives it. Descriptors close in this order.
#[derive(Debug)]
pub(crate) struct BareVm<'memory> {
    _vcpus: Vec<VcpuFd>,
    _vm: VmFd,
    _memory: &'memory GuestMemoryMmap<()>,
}

#[expect(clippy::unwrap_used, reason = "a floor that cannot be measured must fail the measurement")]
impl<'memory> BareVm<'memory> {
    pub(crate) fn create(kvm: &Kvm, memory: &'memory GuestMemoryMmap<()>, vcpus: u8) -> BareVm<'memory> {
        let vm = kvm.create_vm().unwrap();
        vm.set_tss_address(TSS).unwrap();
        let range = memory.iter().next().unwrap();
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: range.len(),
            userspace_addr: range.as_ptr().addr() as u64,
        };
        // SAFETY: the range is a live mapping, which the result borrows; its vCPUs never run.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        vm.create_irq_chip().unwrap();
        let vcpus = (0..vcpus).map(|index| vm.create_vcpu(index.into()).unwrap()).collect();
        BareVm { _vcpus: vcpus, _vm: vm, _memory: memory }
    }
}
