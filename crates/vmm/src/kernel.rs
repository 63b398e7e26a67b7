//! Loads a Linux kernel and its initramfs, and sets the first vCPU to its 64-bit entry
//! (Linux boot protocol, Documentation/arch/x86/boot.rst).

use crate::layout;
use crate::memory::GuestMemory;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, ReadVolatile,
};

const E820_RAM: u32 = 1;
const BOOT_FLAG_MAGIC: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// "Loader of an unregistered kind."
const LOADER_TYPE_UNDEFINED: u8 = 0xff;
/// A bzImage's 64-bit entry is this far into its loaded code.
const BZIMAGE_ENTRY_64: u64 = 0x200;

#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    #[error("The kernel image is neither a 64-bit ELF file nor a bzImage: {0}")]
    Image(linux_loader::loader::Error),
    #[error("The initramfs of {len} bytes does not fit between the kernel and the end of memory")]
    InitramfsTooLong { len: u64 },
    #[error("The command line of {len} bytes is longer than {}", podflare_wire::limits::COMMAND_LINE_LEN_MAX)]
    CommandLineTooLong { len: usize },
    #[error("Could not read the kernel or the initramfs")]
    Read(#[from] std::io::Error),
    #[error("Could not write guest memory")]
    Write(#[from] GuestMemoryError),
    #[error("Could not copy the initramfs into guest memory")]
    Copy(#[from] vm_memory::VolatileMemoryError),
}

/// Puts kernel, initramfs and command line into memory. Returns where the kernel is entered.
pub(crate) fn load(
    memory: &GuestMemory,
    kernel: &mut File,
    initramfs: &mut File,
    command_line: &str,
    acpi_root: GuestAddress,
) -> Result<GuestAddress, KernelError> {
    let mut params = boot_params::default();
    let (entry, kernel_end) = load_kernel(memory, kernel, &mut params)?;
    let (initramfs_at, initramfs_len) = load_initramfs(memory, initramfs, kernel_end)?;

    let command_line_len = command_line.len();
    if command_line_len > podflare_wire::limits::COMMAND_LINE_LEN_MAX {
        return Err(KernelError::CommandLineTooLong { len: command_line_len });
    }
    memory.write_slice(command_line.as_bytes(), layout::COMMAND_LINE)?;
    memory.write_obj(0_u8, layout::COMMAND_LINE.unchecked_add(command_line_len as u64))?;

    params.hdr.boot_flag = BOOT_FLAG_MAGIC;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_TYPE_UNDEFINED;
    params.hdr.cmd_line_ptr = low_u32(layout::COMMAND_LINE.raw_value());
    params.hdr.cmdline_size = low_u32(command_line_len as u64);
    params.hdr.ramdisk_image = low_u32(initramfs_at);
    params.hdr.ramdisk_size = low_u32(initramfs_len);
    params.acpi_rsdp_addr = acpi_root.raw_value();
    for (index, (start, len)) in ram_map(memory).into_iter().enumerate() {
        params.e820_table[index] = boot_e820_entry { addr: start, size: len, r#type: E820_RAM };
        params.e820_entries += 1;
    }
    memory.write_obj(params, layout::BOOT_PARAMS)?;
    Ok(entry)
}

/// Returns the entry and the end of what was loaded.
fn load_kernel(
    memory: &GuestMemory,
    kernel: &mut File,
    params: &mut boot_params,
) -> Result<(GuestAddress, u64), KernelError> {
    let mut magic = [0; 4];
    kernel.rewind()?;
    kernel.read_exact(&mut magic)?;
    kernel.rewind()?;
    if magic == *b"\x7fELF" {
        let loaded = Elf::load(memory, None, kernel, Some(layout::HIGH_RAM)).map_err(KernelError::Image)?;
        return Ok((loaded.kernel_load, loaded.kernel_end));
    }
    let loaded = BzImage::load(memory, None, kernel, Some(layout::HIGH_RAM)).map_err(KernelError::Image)?;
    if let Some(header) = loaded.setup_header {
        params.hdr = header;
    }
    // The decompressor needs room behind the image; its header says how much.
    let room = u64::from(params.hdr.init_size);
    Ok((loaded.kernel_load.unchecked_add(BZIMAGE_ENTRY_64), loaded.kernel_end + room))
}

/// As high as it can be, below the hole for devices, so that the kernel has room to grow. An empty file
/// means that there is none.
fn load_initramfs(
    memory: &GuestMemory,
    initramfs: &mut File,
    kernel_end: u64,
) -> Result<(u64, u64), KernelError> {
    const PAGE: u64 = 4096;
    let len = initramfs.seek(SeekFrom::End(0))?;
    if len == 0 {
        return Ok((0, 0));
    }
    initramfs.rewind()?;
    let low_end = memory.iter().next().map_or(0, |region| region.len());
    let at = low_end.checked_sub(len).map(|at| at - at % PAGE).filter(|at| *at >= kernel_end);
    let at = at.ok_or(KernelError::InitramfsTooLong { len })?;
    let target = memory.get_slice(GuestAddress(at), usize::try_from(len).unwrap_or(usize::MAX))?;
    initramfs.read_exact_volatile(&mut target.offset(0)?)?;
    Ok((at, len))
}

/// What the guest may use as RAM: the holes of a PC below 1 MiB are left out.
fn ram_map(memory: &GuestMemory) -> Vec<(u64, u64)> {
    let mut map = vec![(0, layout::LOW_RAM_END)];
    for region in memory.iter() {
        let start = region.start_addr().raw_value().max(layout::HIGH_RAM.raw_value());
        let end = region.start_addr().raw_value() + region.len();
        map.push((start, end - start));
    }
    map
}

fn low_u32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Page tables and descriptors for the 64-bit entry, written to memory and to the registers.
pub(crate) fn enter_at(
    memory: &GuestMemory,
    entry: GuestAddress,
    sregs: &mut kvm_sregs,
) -> Result<kvm_regs, GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const PRESENT_WRITABLE_2_MIB: u64 = 0x83;
    let [level_4, level_3, level_2] = [0, 0x1000, 0x2000].map(|at| layout::PAGE_TABLES.unchecked_add(at));
    memory.write_obj(level_3.raw_value() | PRESENT_WRITABLE, level_4)?;
    memory.write_obj(level_2.raw_value() | PRESENT_WRITABLE, level_3)?;
    for index in 0..512_u64 {
        memory.write_obj((index << 21) | PRESENT_WRITABLE_2_MIB, level_2.unchecked_add(index * 8))?;
    }
    // The boot protocol wants flat segments at selectors 0x10 (code) and 0x18 (data).
    memory.write_obj(0x00af_9b00_0000_ffff_u64, layout::GDT.unchecked_add(0x10))?;
    memory.write_obj(0x00cf_9300_0000_ffff_u64, layout::GDT.unchecked_add(0x18))?;
    sregs.gdt.base = layout::GDT.raw_value();
    sregs.gdt.limit = 0x1f;
    sregs.cs = flat_segment(0x10, 0xb, 1, 0);
    sregs.ds = flat_segment(0x18, 0x3, 0, 1);
    (sregs.es, sregs.fs, sregs.gs, sregs.ss) = (sregs.ds, sregs.ds, sregs.ds, sregs.ds);
    sregs.cr3 = level_4.raw_value();
    sregs.cr4 |= 1 << 5; // PAE
    sregs.cr0 |= 1 << 31 | 1; // paging, protection
    sregs.efer |= 1 << 10 | 1 << 8; // long mode active and enabled
    let stack = layout::BOOT_STACK.raw_value();
    Ok(kvm_regs {
        rip: entry.raw_value(),
        rsp: stack,
        rbp: stack,
        rsi: layout::BOOT_PARAMS.raw_value(),
        rflags: 2,
        ..Default::default()
    })
}

fn flat_segment(selector: u16, type_: u8, l: u8, db: u8) -> kvm_segment {
    kvm_segment { limit: u32::MAX, selector, type_, present: 1, s: 1, l, db, g: 1, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn something_that_is_no_kernel_is_refused() {
        let memory = memory::map(128, false).unwrap();
        let result = load(&memory, &mut file(&[0x5a; 8192]), &mut file(b""), "", GuestAddress(0));
        assert!(matches!(result, Err(KernelError::Image(_))), "{result:?}");
        let result = load(&memory, &mut file(b"\x7f"), &mut file(b""), "", GuestAddress(0));
        assert!(matches!(result, Err(KernelError::Read(_))), "{result:?}");
    }

    #[test]
    fn an_initramfs_larger_than_memory_is_refused() {
        let memory = memory::map(128, false).unwrap();
        let mut initramfs = tempfile::tempfile().unwrap();
        initramfs.set_len(129 << 20).unwrap();
        let result = load_initramfs(&memory, &mut initramfs, 0);
        assert!(matches!(result, Err(KernelError::InitramfsTooLong { .. })), "{result:?}");
    }

    #[test]
    fn the_ram_map_leaves_out_the_bios_area_and_the_device_hole() {
        let memory = memory::map(4096, false).unwrap();
        assert_eq!(
            ram_map(&memory),
            [(0, 0x9fc00), (0x10_0000, 0xd000_0000 - 0x10_0000), (1 << 32, 0x3000_0000)]
        );
    }
}
