//! Recipe: a fresh boot. `Frozen::thaw` is its mirror.

use crate::acpi::{self, AcpiError};
use crate::devices::Devices;
use crate::devices::virtio::block::disk::{Disk, DiskError};
use crate::hot_pages::HotPages;
use crate::kernel::{self, KernelError};
use crate::kvm::vm::{KvmError, Platform, Vm};
use crate::machine::{Body, Running, StartError};
use crate::memory::{self, GuestMemory, MemoryError};
use crate::saved::MappedPages;
use kvm_bindings::{Msrs, kvm_msr_entry};
use podflare_wire::control::BootConfig;
use podflare_wire::limits;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vm_memory::GuestAddress;

/// What a boot needs from the host.
#[derive(Debug)]
pub(crate) struct BootFiles {
    pub(crate) kernel: File,
    pub(crate) initramfs: File,
    pub(crate) disk_base: File,
    pub(crate) disk_layer: File,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("{vcpus} vCPUs were asked for; 1 to {} are possible", limits::VCPUS_MAX)]
    Vcpus { vcpus: u8 },
    #[error(
        "{mib} MiB of memory were asked for; {} to {} are possible",
        limits::MEMORY_MIB_MIN,
        limits::MEMORY_MIB_MAX
    )]
    MemorySize { mib: u32 },
    #[error("A disk of {bytes} bytes was asked for; at most {} GiB are possible", limits::DISK_GIB_MAX)]
    DiskSize { bytes: u64 },
    #[error("Could not open the disk")]
    Disk(#[from] DiskError),
    #[error("Could not make guest memory")]
    Memory(#[from] MemoryError),
    #[error("Could not make the virtual machine")]
    Build(#[from] KvmError),
    #[error("Could not describe the machine to the guest")]
    Acpi(#[from] AcpiError),
    #[error("Could not load the kernel")]
    Kernel(#[from] KernelError),
    #[error("Could not set the first vCPU to the kernel's entry")]
    Entry(#[from] EntryError),
    #[error("Could not start the virtual machine")]
    Start(#[from] StartError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum EntryError {
    #[error("KVM refused the registers")]
    Registers(#[from] kvm_ioctls::Error),
    #[error("Could not write the page tables")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Boots a machine; returns as soon as its vCPUs run.
pub(crate) fn boot(
    config: &BootConfig,
    mut files: BootFiles,
    control: BorrowedFd<'_>,
) -> Result<Running, BootError> {
    check(config)?;
    let disk = Disk::new(files.disk_base, files.disk_layer, config.disk_bytes)?;
    let memory = memory::map(config.memory_mib, config.huge_pages)?;
    let platform = Platform::open()?;
    let vm = platform.build(&memory, config.vcpus)?;
    let acpi_root = acpi::write_tables(&memory, config.vcpus)?;
    let entry =
        kernel::load(&memory, &mut files.kernel, &mut files.initramfs, &config.command_line, acpi_root)?;
    enter(&vm, &memory, entry)?;
    let devices = Arc::new(Devices::new(&memory, disk));
    let body = Body {
        platform,
        memory,
        mapped_pages: MappedPages::default(),
        devices,
        vcpus: config.vcpus,
        memory_mib: config.memory_mib,
        huge_pages: config.huge_pages,
        hot_pages: HotPages::default(),
    };
    Running::start(body, vm, control).map_err(|(_, error)| error.into())
}

fn check(config: &BootConfig) -> Result<(), BootError> {
    if !(1..=limits::VCPUS_MAX).contains(&config.vcpus) {
        return Err(BootError::Vcpus { vcpus: config.vcpus });
    }
    if !(limits::MEMORY_MIB_MIN..=limits::MEMORY_MIB_MAX).contains(&config.memory_mib) {
        return Err(BootError::MemorySize { mib: config.memory_mib });
    }
    if config.disk_bytes > u64::from(limits::DISK_GIB_MAX) << 30 {
        return Err(BootError::DiskSize { bytes: config.disk_bytes });
    }
    Ok(())
}

/// The first vCPU begins at the kernel's entry; the others wait for it to wake them.
fn enter(vm: &Vm, memory: &GuestMemory, entry: GuestAddress) -> Result<(), EntryError> {
    const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    let Some(vcpu) = vm.vcpus.first() else { return Ok(()) };
    let mut sregs = vcpu.get_sregs()?;
    let regs = kernel::enter_at(memory, entry, &mut sregs)?;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)?;
    let fast_strings =
        kvm_msr_entry { index: MSR_IA32_MISC_ENABLE, data: FAST_STRINGS, ..Default::default() };
    if let Ok(msrs) = Msrs::from_entries(&[fast_strings]) {
        vcpu.set_msrs(&msrs)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: BootConfig = BootConfig {
        vcpus: limits::VCPUS_MAX,
        memory_mib: limits::MEMORY_MIB_MAX,
        disk_bytes: (limits::DISK_GIB_MAX as u64) << 30,
        command_line: String::new(),
        huge_pages: false,
    };

    #[test]
    fn a_machine_within_the_limits_is_accepted_and_none_beyond_them() {
        assert!(check(&LARGEST).is_ok());
        assert!(matches!(check(&BootConfig { vcpus: 0, ..LARGEST }), Err(BootError::Vcpus { .. })));
        let vcpus = limits::VCPUS_MAX + 1;
        assert!(matches!(check(&BootConfig { vcpus, ..LARGEST }), Err(BootError::Vcpus { .. })));
        for memory_mib in [limits::MEMORY_MIB_MIN - 1, limits::MEMORY_MIB_MAX + 1] {
            let config = BootConfig { memory_mib, ..LARGEST };
            assert!(matches!(check(&config), Err(BootError::MemorySize { .. })));
        }
        let disk_bytes = LARGEST.disk_bytes + 4096;
        assert!(matches!(check(&BootConfig { disk_bytes, ..LARGEST }), Err(BootError::DiskSize { .. })));
    }
}
