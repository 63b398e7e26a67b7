//! The state that KVM holds of a machine, as plain structs: saved when vCPUs stand still, restored into
//! a new KVM VM. `save` and `restore` are mirrors.

use super::vm::Vm;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_MSR_ENTRIES, Msrs,
    kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// For errors.
const MSRS: &str = "model-specific registers";

#[derive(Debug, thiserror::Error)]
#[error("KVM could not {action} the {part}")]
pub(crate) struct StateError {
    action: &'static str,
    part: &'static str,
    source: kvm_ioctls::Error,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MachineState {
    vcpus: Vec<VcpuState>,
    chips: Vec<kvm_irqchip>,
    clock_ns: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl MachineState {
    /// Whether it has all the parts of a machine of that many vCPUs. What is in them is KVM's to check.
    pub(crate) fn is_of(&self, vcpus: u8) -> bool {
        let chips: Vec<u32> = self.chips.iter().map(|chip| chip.chip_id).collect();
        self.vcpus.len() == usize::from(vcpus)
            && chips == CHIPS
            && self.vcpus.iter().all(|vcpu| vcpu.msrs.len() <= KVM_MAX_MSR_ENTRIES)
    }
}

fn saving(part: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError { action: "save", part, source }
}

fn restoring(part: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError { action: "restore", part, source }
}

/// The machine as it stands. Its vCPUs must not run, and must have finished their last instruction.
pub(crate) fn save(vm: &Vm, reset_msrs: &[kvm_msr_entry]) -> Result<MachineState, StateError> {
    let mut vcpus = vm.vcpus.iter().map(|vcpu| save_vcpu(vcpu, reset_msrs)).collect::<Result<Vec<_>, _>>()?;
    share_latest_tsc(vcpus.iter_mut().map(|vcpu| vcpu.msrs.as_mut_slice()).collect());
    let chips = CHIPS
        .into_iter()
        .map(|chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.fd.get_irqchip(&mut chip).map_err(saving("interrupt chips"))?;
            Ok(chip)
        })
        .collect::<Result<_, _>>()?;
    let clock_ns = vm.fd.get_clock().map_err(saving("clock"))?.clock;
    Ok(MachineState { vcpus, chips, clock_ns })
}

/// Gives a new VM the saved state. The order matters where it says so.
pub(crate) fn restore(vm: &Vm, state: &MachineState, reset_msrs: &[kvm_msr_entry]) -> Result<(), StateError> {
    for chip in &state.chips {
        vm.fd.set_irqchip(chip).map_err(restoring("interrupt chips"))?;
    }
    // Before any vCPU runs: the guest must not see its clock jump.
    set_clock(&vm.fd, state.clock_ns)?;
    for (vcpu, state) in vm.vcpus.iter().zip(&state.vcpus) {
        restore_vcpu(vcpu, state, reset_msrs)?;
    }
    Ok(())
}

/// Without flags: the guest's monotonic clock goes on from where it was, however long it stood still.
fn set_clock(fd: &VmFd, clock_ns: u64) -> Result<(), StateError> {
    fd.set_clock(&kvm_clock_data { clock: clock_ns, ..Default::default() }).map_err(restoring("clock"))
}

fn save_vcpu(vcpu: &VcpuFd, reset_msrs: &[kvm_msr_entry]) -> Result<VcpuState, StateError> {
    // Asking for the run state first makes KVM settle what the local APIC still has to deliver.
    let mp_state = vcpu.get_mp_state().map_err(saving("run state"))?;
    Ok(VcpuState {
        mp_state,
        regs: vcpu.get_regs().map_err(saving("registers"))?,
        sregs: vcpu.get_sregs().map_err(saving("system registers"))?,
        xsave: Box::new(vcpu.get_xsave().map_err(saving("floating-point state"))?),
        xcrs: vcpu.get_xcrs().map_err(saving("extended control registers"))?,
        debug_regs: vcpu.get_debug_regs().map_err(saving("debug registers"))?,
        // The timer's deadline, which is one of these, before the local APIC: KVM clears it when it
        // delivers the interrupt, and may do so in between. The copy then has both, and not neither.
        msrs: save_msrs(vcpu, reset_msrs)?,
        lapic: vcpu.get_lapic().map_err(saving("local APIC"))?,
        events: vcpu.get_vcpu_events().map_err(saving("pending events"))?,
    })
}

fn restore_vcpu(vcpu: &VcpuFd, state: &VcpuState, reset_msrs: &[kvm_msr_entry]) -> Result<(), StateError> {
    vcpu.set_mp_state(state.mp_state).map_err(restoring("run state"))?;
    vcpu.set_regs(&state.regs).map_err(restoring("registers"))?;
    vcpu.set_sregs(&state.sregs).map_err(restoring("system registers"))?;
    // SAFETY: KVM reads the fixed 4 KiB of the buffer, and no more: features with larger state need a permission
    // that this program never asks for. Any content will do, KVM checks it.
    unsafe { vcpu.set_xsave(&state.xsave) }.map_err(restoring("floating-point state"))?;
    vcpu.set_xcrs(&state.xcrs).map_err(restoring("extended control registers"))?;
    vcpu.set_debug_regs(&state.debug_regs).map_err(restoring("debug registers"))?;
    // The local APIC before the MSRs: one of them is its timer's deadline.
    vcpu.set_lapic(&state.lapic).map_err(restoring("local APIC"))?;
    restore_msrs(vcpu, &state.msrs, reset_msrs)?;
    vcpu.set_vcpu_events(&state.events).map_err(restoring("pending events"))?;
    // Tells a kvm-clock guest that it stood still, so that its watchdogs stay quiet; EINVAL says that
    // the guest has no kvm-clock.
    match vcpu.kvmclock_ctrl() {
        Err(error) if error.errno() != libc::EINVAL => Err(restoring("clock")(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn save_msrs(vcpu: &VcpuFd, reset_msrs: &[kvm_msr_entry]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let failed = saving(MSRS);
    let mut msrs = msr_list(reset_msrs).map_err(&failed)?;
    let read = vcpu.get_msrs(&mut msrs).map_err(&failed)?;
    if read != reset_msrs.len() {
        return Err(failed(kvm_ioctls::Error::new(libc::EIO)));
    }
    Ok(deadline_last(msrs.as_slice()))
}

/// Writes those that a new vCPU does not have already: some hosts complain of a write even so.
fn restore_msrs(
    vcpu: &VcpuFd,
    saved: &[kvm_msr_entry],
    reset_msrs: &[kvm_msr_entry],
) -> Result<(), StateError> {
    let failed = restoring(MSRS);
    let changed: Vec<_> = saved.iter().filter(|msr| !reset_msrs.contains(msr)).copied().collect();
    let written = vcpu.set_msrs(&msr_list(&changed).map_err(&failed)?).map_err(&failed)?;
    if written != changed.len() {
        return Err(failed(kvm_ioctls::Error::new(libc::EINVAL)));
    }
    Ok(())
}

fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs, kvm_ioctls::Error> {
    Msrs::from_entries(entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

/// A timer's deadline is compared with the TSC when it is written, so it is written after it.
fn deadline_last(msrs: &[kvm_msr_entry]) -> Vec<kvm_msr_entry> {
    let (deadline, mut ordered): (Vec<_>, Vec<_>) =
        msrs.iter().copied().partition(|msr| msr.index == MSR_IA32_TSC_DEADLINE);
    ordered.extend(deadline);
    ordered
}

/// Where the host's own TSC is unstable, KVM sets a vCPU's back to that of its last exit when it is asked. One
/// that has been halted since would get its timers late by as long.
fn share_latest_tsc(mut vcpus: Vec<&mut [kvm_msr_entry]>) {
    let mut tscs: Vec<_> =
        vcpus.iter_mut().flat_map(|msrs| msrs.iter_mut()).filter(|msr| msr.index == MSR_IA32_TSC).collect();
    let latest = tscs.iter().map(|msr| msr.data).max().unwrap_or_default();
    for tsc in &mut tscs {
        tsc.data = latest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msr(index: u32, data: u64) -> kvm_msr_entry {
        kvm_msr_entry { index, data, ..Default::default() }
    }

    #[test]
    fn a_timer_is_set_when_everything_that_it_depends_on_is() {
        let ordered = deadline_last(&[msr(MSR_IA32_TSC_DEADLINE, 77), msr(MSR_IA32_TSC, 1), msr(0x174, 5)]);
        assert_eq!(ordered, [msr(MSR_IA32_TSC, 1), msr(0x174, 5), msr(MSR_IA32_TSC_DEADLINE, 77)]);
    }

    #[test]
    fn the_time_of_all_vcpus_is_that_of_the_latest() {
        let mut halted = [msr(0x174, 5), msr(MSR_IA32_TSC, 1000)];
        let mut busy = [msr(MSR_IA32_TSC, 3000), msr(0x174, 6)];
        share_latest_tsc(vec![&mut halted, &mut busy]);
        assert_eq!(halted, [msr(0x174, 5), msr(MSR_IA32_TSC, 3000)]);
        assert_eq!(busy, [msr(MSR_IA32_TSC, 3000), msr(0x174, 6)]);
    }
}
