//! The ACPI tables: how a distribution kernel finds its processors, its interrupt chip and the devices.
//!
//! Hardware-reduced ACPI: there is no power-management hardware, no legacy interrupt controller and no
//! legacy timer to emulate. Virtio devices are `LNRO0005`, because distribution kernels ignore
//! `virtio_mmio.device=` on the command line.

use crate::layout::{self, VirtioSlot};
use crate::memory::GuestMemory;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

const OEM_ID: [u8; 6] = *b"PODFLR";
const OEM_TABLE_ID: [u8; 8] = *b"PODFLARE";
const OEM_REVISION: u32 = 1;

/// FADT "boot architecture" bits (ACPI 6.5 table 5.10): no VGA, no CMOS clock.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

#[derive(Debug, thiserror::Error)]
pub(crate) enum AcpiError {
    #[error("The ACPI tables need {len} bytes, there are {}", layout::ACPI_TABLES_LEN)]
    TooLong { len: u64 },
    #[error("Could not write the ACPI tables to guest memory")]
    Write(#[from] GuestMemoryError),
}

/// Writes the tables and returns where the root pointer is.
pub(crate) fn write_tables(memory: &GuestMemory, vcpus: u8) -> Result<GuestAddress, AcpiError> {
    let mut area = Area { memory, next: layout::ACPI_TABLES.unchecked_add(RSDP_ROOM) };
    let dsdt = area.put(&dsdt())?;
    let fadt = area.put(&fadt(dsdt))?;
    let madt = area.put(&madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt.raw_value());
    xsdt.add_entry(madt.raw_value());
    let xsdt = area.put(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt.raw_value()).to_aml_bytes(&mut rsdp);
    memory.write_slice(&rsdp, layout::ACPI_TABLES)?;
    Ok(layout::ACPI_TABLES)
}

/// The root pointer is written last and comes first.
const RSDP_ROOM: u64 = 64;

struct Area<'a> {
    memory: &'a GuestMemory,
    next: GuestAddress,
}

impl Area<'_> {
    fn put(&mut self, table: &dyn Aml) -> Result<GuestAddress, AcpiError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next;
        let end = at.unchecked_add(bytes.len() as u64);
        let len = end.raw_value() - layout::ACPI_TABLES.raw_value();
        if len > layout::ACPI_TABLES_LEN {
            return Err(AcpiError::TooLong { len });
        }
        self.memory.write_slice(&bytes, at)?;
        self.next = end.unchecked_align_up(16);
        Ok(at)
    }
}

fn madt(vcpus: u8) -> MADT {
    let local_apic = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local_apic);
    for index in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn fadt(dsdt: GuestAddress) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt.raw_value())
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.finalize()
}

/// `Sdt` as a table to place.
struct Bytes8(Sdt);

impl Aml for Bytes8 {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0.as_slice());
    }
}

fn dsdt() -> Bytes8 {
    let mut body = Vec::new();
    for slot in VirtioSlot::ALL {
        append_virtio_device(slot, &mut body);
    }
    append_serial_port(&mut body);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table.update_checksum();
    Bytes8(table)
}

fn append_virtio_device(slot: VirtioSlot, body: &mut Vec<u8>) {
    let address = u32::try_from(slot.address()).unwrap_or(u32::MAX);
    let len = u32::try_from(layout::VIRTIO_MMIO_LEN).unwrap_or(u32::MAX);
    aml::Device::new(
        format!("_SB_.V{:03}", slot as u32).as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &(slot as u32)),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, address, len),
                    &aml::Interrupt::new(true, true, false, false, slot.gsi()),
                ]),
            ),
        ],
    )
    .to_aml_bytes(body);
}

fn append_serial_port(body: &mut Vec<u8>) {
    let len = u8::try_from(layout::SERIAL_PORT_LEN).unwrap_or(u8::MAX);
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Interrupt::new(true, true, false, false, layout::SERIAL_GSI),
                    &aml::IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, len),
                ]),
            ),
        ],
    )
    .to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    fn sum(memory: &GuestMemory, at: u64, len: usize) -> u8 {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_found_from_the_root_and_adds_up_to_zero() {
        let memory = memory::map(128, false).unwrap();
        let rsdp = write_tables(&memory, 2).unwrap().raw_value();
        assert_eq!(sum(&memory, rsdp, 36), 0);
        let xsdt: u64 = memory.read_obj(GuestAddress(rsdp + 24)).unwrap();
        let len: u32 = memory.read_obj(GuestAddress(xsdt + 4)).unwrap();
        assert_eq!(sum(&memory, xsdt, len as usize), 0);
        for entry in (xsdt + 36..xsdt + u64::from(len)).step_by(8) {
            let table: u64 = memory.read_obj(GuestAddress(entry)).unwrap();
            let len: u32 = memory.read_obj(GuestAddress(table + 4)).unwrap();
            assert_eq!(sum(&memory, table, len as usize), 0);
        }
    }

    #[test]
    fn tables_of_the_largest_machine_fit() {
        let memory = memory::map(128, false).unwrap();
        write_tables(&memory, podflare_wire::limits::VCPUS_MAX).unwrap();
    }
}
