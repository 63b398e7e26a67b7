//! KVM's side of guest pages, made before the guest asks (`KVM_PRE_FAULT_MEMORY`, since Linux 6.11).

use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use std::io;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// Maps what lies behind a range of guest-physical addresses into the guest: writable where this process
/// has pages of its own, else for reading.
pub(crate) fn map_ahead(vcpu: &VcpuFd, address: u64, len: u64) -> io::Result<()> {
    let mut range = kvm_pre_fault_memory { gpa: address, size: len, ..Default::default() };
    while range.size > 0 {
        // SAFETY: KVM reads and updates this struct, which outlives the call, and changes nothing else
        // of this process.
        let result = unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY(), &mut range) };
        if result < 0 {
            let error = io::Error::last_os_error();
            // KVM has moved the range's beginning forward and wants to be called again.
            if !matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) {
                return Err(error);
            }
        }
    }
    Ok(())
}
