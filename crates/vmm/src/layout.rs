//! Where things are in the guest's physical memory and on its buses. One place, because the kernel
//! loader, the ACPI tables, the buses and KVM must agree.

use vm_memory::GuestAddress;

/// Descriptor table of the boot vCPU.
pub(crate) const GDT: GuestAddress = GuestAddress(0x500);
/// `boot_params`, the "zero page" of the Linux boot protocol.
pub(crate) const BOOT_PARAMS: GuestAddress = GuestAddress(0x7000);
/// Top of the boot vCPU's stack.
pub(crate) const BOOT_STACK: GuestAddress = GuestAddress(0x8ff0);
/// Identity page tables of the first GiB: three pages.
pub(crate) const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
pub(crate) const COMMAND_LINE: GuestAddress = GuestAddress(0x20000);
/// End of the memory below 1 MiB that the guest may use as RAM.
pub(crate) const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables: in the BIOS area, where the guest does not look for RAM.
pub(crate) const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
pub(crate) const ACPI_TABLES_LEN: u64 = 0x2_0000;
pub(crate) const HIGH_RAM: GuestAddress = GuestAddress(0x10_0000);

/// RAM stops here and goes on at 4 GiB; devices and interrupt chips are in between.
pub(crate) const MMIO_HOLE: u64 = 0xd000_0000;
pub(crate) const MMIO_HOLE_END: u64 = 1 << 32;

/// One page of registers for each virtio device, from here on, in the order of [`VirtioSlot`].
pub(crate) const VIRTIO_MMIO: u64 = 0xd000_0000;
pub(crate) const VIRTIO_MMIO_LEN: u64 = 0x1000;

/// Three pages that KVM needs on Intel processors for real mode.
pub(crate) const KVM_TSS: usize = 0xfffb_d000;

pub(crate) const IO_APIC: u32 = 0xfec0_0000;
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;

/// The first serial port, as on every PC.
pub(crate) const SERIAL_PORT: u16 = 0x3f8;
pub(crate) const SERIAL_PORT_LEN: u16 = 8;
pub(crate) const SERIAL_GSI: u32 = 4;

/// The virtio devices and their places on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VirtioSlot {
    Block,
    Vsock,
    Rng,
    Balloon,
    Net,
}

impl VirtioSlot {
    pub(crate) const ALL: [VirtioSlot; 5] =
        [VirtioSlot::Block, VirtioSlot::Vsock, VirtioSlot::Rng, VirtioSlot::Balloon, VirtioSlot::Net];

    pub(crate) fn address(self) -> u64 {
        VIRTIO_MMIO + self as u64 * VIRTIO_MMIO_LEN
    }

    /// The interrupt line: pins 0 to 4 belong to old PC devices.
    pub(crate) fn gsi(self) -> u32 {
        5 + self as u32
    }

    /// The device at this address, and the offset in its registers.
    pub(crate) fn at(address: u64) -> Option<(VirtioSlot, u64)> {
        let offset = address.checked_sub(VIRTIO_MMIO)?;
        let index = usize::try_from(offset / VIRTIO_MMIO_LEN).ok()?;
        VirtioSlot::ALL.get(index).map(|slot| (*slot, offset % VIRTIO_MMIO_LEN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_register_page_belongs_to_its_device() {
        for slot in VirtioSlot::ALL {
            assert_eq!(VirtioSlot::at(slot.address()), Some((slot, 0)));
            assert_eq!(VirtioSlot::at(slot.address() + 0x70), Some((slot, 0x70)));
        }
        assert_eq!(VirtioSlot::at(VIRTIO_MMIO - 1), None);
        assert_eq!(VirtioSlot::at(VIRTIO_MMIO + 5 * VIRTIO_MMIO_LEN), None);
        assert_eq!(VirtioSlot::at(u64::MAX), None);
    }
}
