//! Guest memory: private anonymous mappings, so that fork(2) copies them on write, and nothing is paid
//! for pages that the guest has not touched.

use crate::layout;
use rustix::mm::{Advice, madvise};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

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

/// Gives the pages that lie wholly within a range back to the host: whoever touches them next finds zeros. What is
/// not memory of this machine stays as it is. Says how many bytes they were.
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
        // guest's, and read as plain bytes only: zeros are as good as any.
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
