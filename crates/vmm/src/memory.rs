//! Guest memory: private mappings, so that fork(2) copies them on write, and nothing is paid for pages that the
//! guest has not touched. They are anonymous, but for what has been mapped from a saved machine's file.

use crate::layout;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};
use std::fs::File;
use std::io;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// A page of the host's and of the guest's.
pub(crate) const PAGE_LEN: u64 = 4096;

pub(crate) type GuestMemory = GuestMemoryMmap<()>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("Could not map {mib} MiB of guest memory")]
    Map { mib: u32, source: vm_memory::mmap::FromRangesError },
    #[error("Could not choose the page size of guest memory")]
    Advise(#[from] rustix::io::Errno),
}

/// Maps memory of that size; `huge_pages` lets the kernel back it with transparent huge pages.
pub(crate) fn map(mib: u32, huge_pages: bool) -> Result<GuestMemory, MemoryError> {
    let memory =
        GuestMemoryMmap::from_ranges(&ranges(mib)).map_err(|source| MemoryError::Map { mib, source })?;
    let advice = if huge_pages { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
    for region in memory.iter() {
        let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
        // SAFETY: the range is a live mapping owned by `memory`, and page-size advice changes no content.
        unsafe { madvise(region.as_ptr().cast(), len, advice) }?;
    }
    Ok(memory)
}

/// Gives this process pages of its own for a range that will be written. What fails is left to the first write.
pub(crate) fn populate_for_writing(memory: &GuestMemory, address: GuestAddress, len: u64) {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let Ok(slice) = memory.get_slice(address, len) else { return };
    // SAFETY: the range is a live mapping; populating it changes no content.
    unsafe { madvise(slice.ptr_guard_mut().as_ptr().cast(), len, Advice::LinuxPopulateWrite) }.ok();
}

/// Whether all of these pages are memory, and at least one is meant.
pub(crate) fn holds(memory: &GuestMemory, first_page: u64, pages: u64) -> bool {
    let (Some(first), Some(len)) = (first_page.checked_mul(PAGE_LEN), pages.checked_mul(PAGE_LEN)) else {
        return false;
    };
    let in_region = |region: &vm_memory::GuestRegionMmap| {
        let start = region.start_addr().raw_value();
        first >= start && first - start <= region.len() && len <= region.len() - (first - start)
    };
    pages > 0 && memory.iter().any(in_region)
}

/// Puts a part of a file, from a whole page on, in the place of what is in a range of memory; what is written to it
/// stays in this process and its copies. The file must never become shorter: who touches what is gone is killed.
pub(crate) fn map_file(
    memory: &GuestMemory,
    address: GuestAddress,
    len: u64,
    file: &File,
    offset: u64,
) -> io::Result<()> {
    let (start, len) = whole_pages(memory, address, len)?;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
    // SAFETY: the range is whole pages of a live mapping that `memory` owns and will unmap as one. Its content is
    // the guest's, and read as plain bytes only.
    unsafe { mmap(start, len, protection, flags | MapFlags::NORESERVE, file, offset) }?;
    Ok(())
}

/// Makes whole pages that no file is behind read as zeros.
pub(crate) fn clear(memory: &GuestMemory, address: GuestAddress, len: u64) -> io::Result<()> {
    let (start, len) = whole_pages(memory, address, len)?;
    // SAFETY: as in `map_file`.
    unsafe { madvise(start, len, Advice::LinuxDontNeed) }?;
    Ok(())
}

fn whole_pages(
    memory: &GuestMemory,
    address: GuestAddress,
    len: u64,
) -> io::Result<(*mut std::ffi::c_void, usize)> {
    let outside = || io::Error::new(io::ErrorKind::InvalidInput, "not whole pages of guest memory");
    if !address.0.is_multiple_of(PAGE_LEN) || !len.is_multiple_of(PAGE_LEN) {
        return Err(outside());
    }
    let len = usize::try_from(len).map_err(|_| outside())?;
    let slice = memory.get_slice(address, len).map_err(|_| outside())?;
    Ok((slice.ptr_guard_mut().as_ptr().cast(), len))
}

/// Gives the pages that lie wholly within a range back to the host: whoever touches them next finds zeros, or what
/// the file has that they were mapped from. What is not memory of this machine stays as it is. Says how many bytes
/// they were.
pub(crate) fn release(memory: &GuestMemory, address: GuestAddress, len: u32) -> u64 {
    let Some(end) = address.0.checked_add(len.into()) else { return 0 };
    let (Some(start), end) = (address.0.checked_next_multiple_of(PAGE_LEN), end - end % PAGE_LEN) else {
        return 0;
    };
    let bytes = end.saturating_sub(start);
    let Ok(len) = usize::try_from(bytes) else { return 0 };
    let Ok(slice) = memory.get_slice(GuestAddress(start), len) else { return 0 };
    if len > 0 {
        // SAFETY: the range is whole pages of a live private mapping, which stays mapped. Its content is the
        // guest's, and read as plain bytes only: others are as good as any.
        unsafe { madvise(slice.ptr_guard_mut().as_ptr().cast(), len, Advice::LinuxDontNeed) }.ok();
    }
    bytes
}

/// RAM below the hole for devices, and what is left of it from 4 GiB on.
fn ranges(mib: u32) -> Vec<(GuestAddress, usize)> {
    let len = u64::from(mib) << 20;
    let low = len.min(layout::MMIO_HOLE);
    let high = len - low;
    let usize_of = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
    let mut ranges = vec![(GuestAddress(0), usize_of(low))];
    if high > 0 {
        ranges.push((GuestAddress(layout::MMIO_HOLE_END), usize_of(high)));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_hole_for_devices() {
        assert_eq!(ranges(1024), [(GuestAddress(0), 1 << 30)]);
        let four_gib = ranges(4096);
        assert_eq!(four_gib[0], (GuestAddress(0), 0xd000_0000));
        assert_eq!(four_gib[1], (GuestAddress(1 << 32), 0x3000_0000));
    }
}
