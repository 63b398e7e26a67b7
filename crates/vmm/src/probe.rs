//! Runs a tiny guest for real. A `/dev/kvm` that opens is not a KVM that works: some hosts emulate
//! kernel-mode code in software, slowly and not all of it, and an unmodified Linux dies there.
//!
//! The guest runs instructions that Linux needs and that such emulators lack, then a counting loop,
//! which tells real execution from emulation by its time.

use crate::kernel;
use crate::kvm::vm::{KvmError, Platform, Vm};
use crate::layout;
use crate::memory::{self, GuestMemory, MemoryError};
use kvm_ioctls::VcpuExit;
use serde::Serialize;
use std::time::{Duration, Instant};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

/// Whether microVMs can run on this machine's KVM, and why (not).
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    pub usable: bool,
    /// One sentence for a person.
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("{}", crate::error::chain(.0))]
    Kvm(#[from] KvmError),
    #[error("{}", crate::error::chain(.0))]
    Memory(#[from] MemoryError),
    #[error("could not load the test guest: {0}")]
    Load(#[from] GuestMemoryError),
    #[error("KVM refused the test guest's registers: {0}")]
    Registers(#[from] kvm_ioctls::Error),
    #[error("KVM could not run {what}")]
    Run { what: &'static str },
    #[error(
        "kernel-mode code runs at {} thousand loop rounds a second, as if emulated in software",
        rounds_per_ms
    )]
    Slow { rounds_per_ms: u64 },
}

const CODE: GuestAddress = GuestAddress(0x1_0000);
const REPORT_PORT: u16 = 0x10;
const ROUNDS: u32 = 100_000;
/// Real processors count to [`ROUNDS`] in well under a millisecond, software emulation of kernel-mode
/// code needs some 700; busy machines are given room.
const LOOP_TIME_MAX: Duration = Duration::from_millis(150);

pub fn probe() -> Verdict {
    match run_test_guest() {
        Ok(()) => Verdict { usable: true, reason: "KVM runs kernel-mode code at full speed".into() },
        Err(error) => Verdict { usable: false, reason: error.to_string() },
    }
}

fn run_test_guest() -> Result<(), ProbeError> {
    let memory = memory::map(podflare_wire::limits::MEMORY_MIB_MIN, false)?;
    let mut vm = Platform::open()?.build(&memory, 1)?;
    load(&memory, &vm)?;
    let vcpu = &mut vm.vcpus[0];
    run_to_report(vcpu, "cmpxchg16b, which Linux needs")?;
    run_to_report(vcpu, "xsave and xrstor, which Linux needs")?;
    let start = Instant::now();
    run_to_report(vcpu, "a counting loop")?;
    let elapsed = start.elapsed();
    if elapsed > LOOP_TIME_MAX {
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        return Err(ProbeError::Slow { rounds_per_ms: u64::from(ROUNDS) / elapsed_ms });
    }
    Ok(())
}

fn run_to_report(vcpu: &mut kvm_ioctls::VcpuFd, what: &'static str) -> Result<(), ProbeError> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(REPORT_PORT, _)) => return Ok(()),
            Err(error) if error.errno() == libc::EINTR => {}
            Ok(_) | Err(_) => return Err(ProbeError::Run { what }),
        }
    }
}

/// Machine code, each part followed by `out REPORT_PORT, al`.
fn test_code() -> Vec<u8> {
    const REPORT: [u8; 2] = [0xe6, 0x10];
    let mut code = Vec::new();
    code.extend([0xbb, 0x00, 0x00, 0x02, 0x00]); // mov ebx, 0x20000
    code.extend([0x48, 0x0f, 0xc7, 0x0b]); // cmpxchg16b [rbx]
    code.extend(REPORT);
    code.extend([0xb8, 0x03, 0x00, 0x00, 0x00, 0x31, 0xd2]); // mov eax, 3; xor edx, edx
    code.extend([0x31, 0xc9, 0x0f, 0x01, 0xd1]); // xor ecx, ecx; xsetbv
    code.extend([0x48, 0x0f, 0xae, 0x23]); // xsave64 [rbx]
    code.extend([0x48, 0x0f, 0xae, 0x2b]); // xrstor64 [rbx]
    code.extend(REPORT);
    code.push(0xb9); // mov ecx, ROUNDS
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc]); // dec ecx; jnz -4
    code.extend(REPORT);
    code.push(0xf4); // hlt
    code
}

fn load(memory: &GuestMemory, vm: &Vm) -> Result<(), ProbeError> {
    const CR4_OSFXSR_OSXSAVE: u64 = 1 << 9 | 1 << 18;
    memory.write_slice(&test_code(), CODE)?;
    let vcpu = &vm.vcpus[0];
    let mut sregs = vcpu.get_sregs()?;
    let mut regs = kernel::enter_at(memory, CODE, &mut sregs)?;
    regs.rsp = layout::BOOT_STACK.raw_value();
    sregs.cr4 |= CR4_OSFXSR_OSXSAVE;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_has_a_reason_and_is_json() {
        let verdict = probe();
        assert!(!verdict.reason.is_empty());
        let json = serde_json::to_value(&verdict).unwrap();
        assert_eq!(json["usable"], verdict.usable);
    }
}
