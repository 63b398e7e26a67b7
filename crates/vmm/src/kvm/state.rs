//! The state that KVM holds of a machine, as plain structs: saved when vCPUs stand still, restored into
//! a new KVM VM. `save` and `restore` are mirrors.

use super::vm::Vm;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data, kvm_debugregs,
    kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;

/// For errors.
const MSRS: &str = "model-specific registers";

#[derive(Debug, thiserror::Error)]
#[error("KVM could not {action} the {part}")]
pub(crate) struct StateError {
    action: &'static str,
    part: &'static str,
    source: kvm_ioctls::Error,
}

#[derive(Debug)]
pub(crate) struct MachineState {
    vcpus: Vec<VcpuState>,
    chips: Vec<kvm_irqchip>,
    clock_ns: u64,
}

#[derive(Debug)]
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

fn saving(part: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError { action: "save", part, source }
}

fn restoring(part: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError { action: "restore", part, source }
}

/// The machine as it stands. Its vCPUs must not run, and must have finished their last instruction.
pub(crate) fn save(vm: &Vm, reset_msrs: &[kvm_msr_entry]) -> Result<MachineState, StateError> {
    let vcpus = vm.vcpus.iter().map(|vcpu| save_vcpu(vcpu, reset_msrs)).collect::<Result<_, _>>()?;
    let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
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
        lapic: vcpu.get_lapic().map_err(saving("local APIC"))?,
        msrs: save_msrs(vcpu, reset_msrs)?,
        events: vcpu.get_vcpu_events().map_err(saving("pending events"))?,
    })
}

fn restore_vcpu(vcpu: &VcpuFd, state: &VcpuState, reset_msrs: &[kvm_msr_entry]) -> Result<(), StateError> {
    vcpu.set_mp_state(state.mp_state).map_err(restoring("run state"))?;
    vcpu.set_regs(&state.regs).map_err(restoring("registers"))?;
    vcpu.set_sregs(&state.sregs).map_err(restoring("system registers"))?;
    // SAFETY: the buffer came from KVM_GET_XSAVE of the same size on this host. It is the fixed 4 KiB
    // area: features with larger state need a permission that this program never asks for.
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
    Ok(settle_timer(msrs.as_slice()))
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

/// The local APIC's timer deadline, last (its meaning depends on the other registers) and never lost: a
/// deadline that reads 0 may have passed with its interrupt not yet delivered, and KVM does not save
/// that. A deadline of "now" fires once more at worst, which the guest's timer code expects.
fn settle_timer(msrs: &[kvm_msr_entry]) -> Vec<kvm_msr_entry> {
    let tsc = msrs.iter().find(|msr| msr.index == MSR_IA32_TSC).map_or(0, |msr| msr.data);
    let (mut deadline, mut settled): (Vec<_>, Vec<_>) =
        msrs.iter().copied().partition(|msr| msr.index == MSR_IA32_TSC_DEADLINE);
    for msr in deadline.iter_mut().filter(|msr| msr.data == 0) {
        msr.data = tsc;
    }
    settled.append(&mut deadline);
    settled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msr(index: u32, data: u64) -> kvm_msr_entry {
        kvm_msr_entry { index, data, ..Default::default() }
    }

    #[test]
    fn a_timer_that_may_just_have_fired_fires_again() {
        let settled = settle_timer(&[msr(MSR_IA32_TSC_DEADLINE, 0), msr(MSR_IA32_TSC, 1234), msr(0x174, 5)]);
        let last = settled.last().unwrap();
        assert_eq!((last.index, last.data), (MSR_IA32_TSC_DEADLINE, 1234));
        assert_eq!(settled.len(), 3);
    }

    #[test]
    fn a_timer_that_runs_keeps_its_deadline() {
        let settled = settle_timer(&[msr(MSR_IA32_TSC_DEADLINE, 77), msr(MSR_IA32_TSC, 1)]);
        assert_eq!(settled.last().unwrap().data, 77);
    }
}
