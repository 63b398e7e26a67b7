//! A KVM virtual machine over guest memory: made at boot, and anew at every thaw.

use super::cpuid;
use super::processor::{Processor, ProcessorError, TimeStampCounter, is_near};
use crate::layout;
use crate::memory::GuestMemory;
use kvm_bindings::{
    CpuId, KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_TSC_CONTROL, KVM_CAP_X86_DISABLE_EXITS,
    KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_MAX_CPUID_ENTRIES, KVM_MAX_MSR_ENTRIES, KVM_X86_DISABLE_EXITS_HLT,
    Msrs, kvm_enable_cap, kvm_msr_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    #[error("Could not open /dev/kvm: is it there, and may this user read and write it?")]
    Open(#[source] kvm_ioctls::Error),
    #[error("KVM does not tell what it supports")]
    Capabilities(#[source] kvm_ioctls::Error),
    #[error("KVM could not make a virtual machine")]
    CreateVm(#[source] kvm_ioctls::Error),
    #[error("KVM did not take the guest's memory")]
    Memory(#[source] kvm_ioctls::Error),
    #[error("KVM could not make the interrupt chips")]
    Chips(#[source] kvm_ioctls::Error),
    #[error("KVM could not make vCPU {index}")]
    CreateVcpu { index: u8, source: kvm_ioctls::Error },
    #[error("KVM refuses the processor that vCPU {index} should show")]
    Cpuid { index: u8, source: kvm_ioctls::Error },
    #[error("KVM cannot give vCPU {index} a time-stamp counter of {khz} kHz")]
    TimeStampCounter { index: u8, khz: u32, source: kvm_ioctls::Error },
}

/// This machine's KVM and what it can do; asked once, kept by every copy.
#[derive(Debug)]
pub(crate) struct Platform {
    kvm: Kvm,
    /// What the guest is shown, each vCPU with its own number.
    cpuid: CpuId,
    /// This host's.
    tsc: TimeStampCounter,
    /// The frequency of the guest's; that of the host unless the machine was saved elsewhere.
    guest_tsc_khz: u32,
    /// The registers that make up a vCPU's state and that KVM lets be read, as they are in a new vCPU.
    reset_msrs: Vec<kvm_msr_entry>,
    /// Those of [`WHOLE_EVENTS`] that this KVM has.
    whole_events: Vec<u32>,
}

/// With these a vCPU's pending events are saved whole. Without the first, a page fault on its way to the guest
/// gives up its address to CR2 when it is saved, which comes after CR2 has been; without the second, a triple
/// fault on its way is lost.
const WHOLE_EVENTS: [u32; 2] = [KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT];

/// KVM's side of a running microVM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) fd: Arc<VmFd>,
    pub(crate) vcpus: Vec<VcpuFd>,
}

impl Platform {
    pub(crate) fn open() -> Result<Platform, KvmError> {
        let kvm = Kvm::new().map_err(KvmError::Open)?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(KvmError::Capabilities)?;
        let (reset_msrs, khz) = probe_vcpu(&kvm)?;
        let scales = kvm.check_extension_raw(KVM_CAP_TSC_CONTROL.into()) > 0;
        let tsc = TimeStampCounter { khz, scales };
        let mut whole_events = WHOLE_EVENTS.to_vec();
        whole_events.retain(|&capability| kvm.check_extension_raw(capability.into()) > 0);
        Ok(Platform { kvm, cpuid, tsc, guest_tsc_khz: khz, reset_msrs, whole_events })
    }

    /// What the guest is shown.
    pub(crate) fn processor(&self) -> Processor {
        Processor { leaves: self.cpuid.as_slice().to_vec(), tsc_khz: self.guest_tsc_khz }
    }

    /// Whether this host can show a guest that processor.
    pub(crate) fn check(&self, processor: &Processor) -> Result<(), ProcessorError> {
        processor.check(&self.cpuid, self.tsc)
    }

    /// Shows the guest, from the next build on, what it was shown before it was saved. It has been checked.
    pub(crate) fn show(&mut self, processor: &Processor) {
        if let Ok(cpuid) = CpuId::from_entries(&processor.leaves) {
            self.cpuid = cpuid;
        }
        self.guest_tsc_khz = processor.tsc_khz;
    }

    /// Frequencies to which the guest's counter must be scaled.
    fn scaled_tsc_khz(&self) -> Option<u32> {
        let (guest, host) = (self.guest_tsc_khz, self.tsc.khz);
        (guest != 0 && host != 0 && !is_near(guest, host)).then_some(guest)
    }

    pub(crate) fn reset_msrs(&self) -> &[kvm_msr_entry] {
        &self.reset_msrs
    }

    /// A new virtual machine over this memory, its vCPUs in their reset state.
    pub(crate) fn build(&self, memory: &GuestMemory, vcpus: u8) -> Result<Vm, KvmError> {
        self.complete(self.kvm.create_vm().map_err(KvmError::CreateVm)?, memory, vcpus)
    }

    /// One whose vCPUs wait for each page themselves. KVM would otherwise leave the waiting to a worker,
    /// which asks for every page as if it wrote it. It does so only where it sees the guest halt.
    pub(crate) fn build_without_workers(&self, memory: &GuestMemory, vcpus: u8) -> Result<Vm, KvmError> {
        let fd = self.kvm.create_vm().map_err(KvmError::CreateVm)?;
        enable(&fd, KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_HLT.into())?;
        self.complete(fd, memory, vcpus)
    }

    fn complete(&self, fd: VmFd, memory: &GuestMemory, vcpus: u8) -> Result<Vm, KvmError> {
        for &capability in &self.whole_events {
            enable(&fd, capability, 1)?;
        }
        fd.set_tss_address(layout::KVM_TSS).map_err(KvmError::CreateVm)?;
        // Memory goes in before the interrupt chips: after them each region costs milliseconds.
        set_memory(&fd, memory)?;
        fd.create_irq_chip().map_err(KvmError::Chips)?;
        let vcpus = (0..vcpus)
            .map(|index| {
                let vcpu = fd
                    .create_vcpu(u64::from(index))
                    .map_err(|source| KvmError::CreateVcpu { index, source })?;
                vcpu.set_cpuid2(&cpuid::for_vcpu(&self.cpuid, index, vcpus))
                    .map_err(|source| KvmError::Cpuid { index, source })?;
                if let Some(khz) = self.scaled_tsc_khz() {
                    vcpu.set_tsc_khz(khz).map_err(|source| KvmError::TimeStampCounter {
                        index,
                        khz,
                        source,
                    })?;
                }
                Ok(vcpu)
            })
            .collect::<Result<_, KvmError>>()?;
        Ok(Vm { fd: Arc::new(fd), vcpus })
    }
}

fn enable(fd: &VmFd, cap: u32, argument: u64) -> Result<(), KvmError> {
    let capability = kvm_enable_cap { cap, args: [argument, 0, 0, 0], ..Default::default() };
    fd.enable_cap(&capability).map_err(KvmError::CreateVm)
}

fn set_memory(fd: &VmFd, memory: &GuestMemory) -> Result<(), KvmError> {
    for (slot, region) in memory.iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: u32::try_from(slot).unwrap_or(u32::MAX),
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr().addr() as u64,
        };
        // SAFETY: the range is a live mapping. It outlives every run of this KVM VM's vCPUs:
        // `machine::Running` holds both, and its threads, which end when they are dropped.
        unsafe { fd.set_user_memory_region(region) }.map_err(KvmError::Memory)?;
    }
    Ok(())
}

/// Hyper-V's registers. The guest is not shown that there are any, and KVM makes a Hyper-V context for
/// a vCPU that is asked for one.
const HYPER_V_MSRS: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;

/// The registers that make up a vCPU's state, and the frequency of its time-stamp counter (0 if KVM does not tell).
/// Some of the registers that KVM lists cannot be read on every host; it can only be tried.
fn probe_vcpu(kvm: &Kvm) -> Result<(Vec<kvm_msr_entry>, u32), KvmError> {
    let list = kvm.get_msr_index_list().map_err(KvmError::Capabilities)?;
    let vm = kvm.create_vm().map_err(KvmError::CreateVm)?;
    vm.create_irq_chip().map_err(KvmError::Chips)?;
    let vcpu = vm.create_vcpu(0).map_err(|source| KvmError::CreateVcpu { index: 0, source })?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(KvmError::Capabilities)?;
    // Which registers can be read depends on the processor that the vCPU shows.
    vcpu.set_cpuid2(&cpuid::for_vcpu(&cpuid, 0, 1)).map_err(|source| KvmError::Cpuid { index: 0, source })?;
    let read = |index: &u32| {
        let entry = kvm_msr_entry { index: *index, ..Default::default() };
        let mut one = Msrs::from_entries(&[entry]).ok()?;
        matches!(vcpu.get_msrs(&mut one), Ok(1)).then(|| one.as_slice()[0])
    };
    let listed = list.as_slice().iter().filter(|index| !HYPER_V_MSRS.contains(index));
    let msrs = listed.filter_map(read).take(KVM_MAX_MSR_ENTRIES).collect();
    Ok((msrs, vcpu.get_tsc_khz().unwrap_or(0)))
}

/// One VM with one vCPU that never runs. While it is open, the kernel's switches for "there is a VM"
/// are never flipped; kept open from boot on it avoids a crash of multi-threaded emulation, which races
/// with the kernel rewriting its own code.
pub fn hold() -> Result<impl Sized, KvmError> {
    let kvm = Kvm::new().map_err(KvmError::Open)?;
    let vm = kvm.create_vm().map_err(KvmError::CreateVm)?;
    vm.create_irq_chip().map_err(KvmError::Chips)?;
    let vcpu = vm.create_vcpu(0).map_err(|source| KvmError::CreateVcpu { index: 0, source })?;
    Ok((vm, vcpu))
}

/// The interrupt lines of a running machine: all are edge-triggered.
#[derive(Debug)]
pub(crate) struct InterruptLines {
    fd: Arc<VmFd>,
    /// Held for one pulse. Two threads' pulses on one line must not overlap: while the first keeps the
    /// line high, the guest may have served the interrupt already, and the second would make no edge.
    pulse: Mutex<()>,
}

impl InterruptLines {
    pub(crate) fn of(fd: Arc<VmFd>) -> InterruptLines {
        InterruptLines { fd, pulse: Mutex::new(()) }
    }

    /// Raises a line. The ioctl has delivered the interrupt when it returns, so that no interrupt is under
    /// way outside the state that a fork saves.
    pub(crate) fn raise(&self, gsi: u32) {
        let _pulse = self.pulse.lock().unwrap_or_else(PoisonError::into_inner);
        for active in [true, false] {
            // It fails only for lines that do not exist, and lines are constants.
            let result = self.fd.set_irq_line(gsi, active);
            debug_assert!(result.is_ok(), "line {gsi}: {result:?}");
        }
    }
}
