//! Guest memory in a file, and back. A whole machine's is read. Of changes, long runs are mapped from the file,
//! so that only what the guest touches is read; short ones are copied, because each mapping costs every fork of
//! this process something, and the kernel allows no more than 65,530 (`vm.max_map_count`).

use super::SavedError;
use super::blocks::{BlocksReader, BlocksWriter, Kind, Run};
use super::part::{BLOCK_LEN, Part, Written};
use crate::memory::{self, GuestMemory, PAGE_LEN};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Shorter runs are copied.
const MAPPED_RUN_PAGES_MIN: u64 = 8;

/// Mappings of one file; the longest runs get them. Each may split another mapping in two.
const MAPPED_RUNS_MAX: usize = 8192;

/// Pages that are looked up at once.
const LOOKUP_PAGES: u64 = 512;

const COPY_LEN: usize = 1 << 20;

/// Pages behind which there is a file: what is not there is in the file, and not zeros.
#[derive(Debug, Default)]
pub(crate) struct MappedPages {
    /// Ascending and apart.
    ranges: Vec<Range<u64>>,
}

impl MappedPages {
    fn contains(&self, page: u64) -> bool {
        let behind = self.ranges.partition_point(|range| range.end <= page);
        self.ranges.get(behind).is_some_and(|range| range.start <= page)
    }

    fn touches(&self, pages: &Range<u64>) -> bool {
        let behind = self.ranges.partition_point(|range| range.end <= pages.start);
        self.ranges.get(behind).is_some_and(|range| range.start < pages.end)
    }

    fn extend(&mut self, ranges: impl Iterator<Item = Range<u64>>) {
        self.ranges.extend(ranges);
        self.ranges.sort_by_key(|range| range.start);
        self.ranges.dedup_by(|next, range| {
            let joins = next.start <= range.end;
            if joins {
                range.end = range.end.max(next.end);
            }
            joins
        });
    }
}

/// Writes what is in memory.
pub(super) fn save(
    memory: &GuestMemory,
    mapped: &MappedPages,
    file: File,
    base: Option<BlocksReader>,
) -> Result<Written, SavedError> {
    if let Some(base) = &base {
        check(memory, base)?;
    }
    let mut writer = BlocksWriter::new(file, Part::Memory, end_of(memory), base);
    // Without it all pages are read, and there are more of those that were never touched.
    let pagemap = File::open("/proc/self/pagemap").ok();
    let mut content = [0; BLOCK_LEN];
    for region in memory.iter() {
        let first = region.start_addr().raw_value() / PAGE_LEN;
        let host_first = region.as_ptr().addr() as u64 / PAGE_LEN;
        let end = region.len() / PAGE_LEN;
        for start in (0..end).step_by(usize::try_from(LOOKUP_PAGES).unwrap_or(1)) {
            let count = LOOKUP_PAGES.min(end - start);
            let there = pagemap.as_ref().and_then(|pagemap| lookup(pagemap, host_first + start, count));
            for offset in 0..count {
                let page = first + start + offset;
                let index = usize::try_from(offset).unwrap_or(0);
                if there.as_ref().is_some_and(|there| !there[index]) && !mapped.contains(page) {
                    writer.put_zeros(page)?;
                } else {
                    read(memory, page, &mut content)?;
                    writer.put(page, &content)?;
                }
            }
        }
    }
    writer.finish()
}

/// Whether each page of this process's memory has ever been touched. None if the kernel does not tell.
fn lookup(pagemap: &File, first: u64, count: u64) -> Option<Vec<bool>> {
    const PRESENT_OR_SWAPPED: u64 = 1 << 63 | 1 << 62;
    let mut entries = vec![0; usize::try_from(count).ok()? * 8];
    pagemap.read_exact_at(&mut entries, first * 8).ok()?;
    let there = |entry: &[u8; 8]| u64::from_ne_bytes(*entry) & PRESENT_OR_SWAPPED != 0;
    Some(entries.as_chunks::<8>().0.iter().map(there).collect())
}

/// Whether all saved pages are memory of this machine.
pub(super) fn check(memory: &GuestMemory, pages: &BlocksReader) -> Result<(), SavedError> {
    let malformed = |detail| SavedError::Malformed { part: Part::Memory, detail };
    if pages.end() != end_of(memory) {
        return Err(malformed("it is of a machine with more or less memory"));
    }
    match pages.runs().all(|(run, _)| memory::holds(memory, run.first, run.count)) {
        true => Ok(()),
        false => Err(malformed("a run of pages is not memory")),
    }
}

/// Gives empty memory the saved content, all of it at once: what many machines are copied from is to have no mappings
/// that each of their forks would pay for. Says how many pages were copied.
pub(super) fn fill(memory: &GuestMemory, pages: &BlocksReader) -> Result<u64, SavedError> {
    let (mut copied_pages, mut buffer) = (0, Vec::new());
    for (run, block) in pages.runs().filter(|(run, _)| run.kind == Kind::Data) {
        copy(memory, run, pages, block, &mut buffer)?;
        copied_pages += run.count;
    }
    Ok(copied_pages)
}

/// Gives the memory the saved content in place of what it has. Says how many runs were mapped and how many pages
/// copied. After an error memory is of no use.
pub(super) fn lay(
    memory: &GuestMemory,
    pages: &BlocksReader,
    mapped: &mut MappedPages,
) -> Result<(u32, u64), SavedError> {
    let data = || pages.runs().map(|(run, _)| run).filter(|run| run.kind == Kind::Data);
    let shortest = shortest_mapped(&data().map(|run| run.count));
    let (mut mapped_runs, mut copied_pages) = (0, 0);
    let mut buffer = Vec::new();
    for (run, block) in pages.runs() {
        match run.kind {
            Kind::Zeros => clear(memory, run, mapped)?,
            Kind::Data if run.count >= shortest => {
                map(memory, run, pages, block)?;
                mapped_runs += 1;
            }
            Kind::Data => {
                copy(memory, run, pages, block, &mut buffer)?;
                copied_pages += run.count;
            }
        }
    }
    mapped.extend(data().filter(|run| run.count >= shortest).map(Run::range));
    Ok((mapped_runs, copied_pages))
}

/// The least length of runs that are mapped, so that there are not too many.
fn shortest_mapped(lengths: &(impl Iterator<Item = u64> + Clone)) -> u64 {
    let mut shortest = MAPPED_RUN_PAGES_MIN;
    while lengths.clone().filter(|&length| length >= shortest).count() > MAPPED_RUNS_MAX {
        shortest *= 2;
    }
    shortest
}

fn map(memory: &GuestMemory, run: Run, pages: &BlocksReader, block: u64) -> Result<(), SavedError> {
    let offset = BlocksReader::offset_of(block);
    memory::map_file(memory, address_of(run.first), run.count * PAGE_LEN, pages.file(), offset)
        .map_err(failed)
}

fn copy(
    memory: &GuestMemory,
    run: Run,
    pages: &BlocksReader,
    block: u64,
    buffer: &mut Vec<u8>,
) -> Result<(), SavedError> {
    let (mut page, mut block, end) = (run.first, block, run.range().end);
    while page < end {
        let count = (end - page).min(blocks(COPY_LEN));
        buffer.resize(usize::try_from(count).unwrap_or(0) * BLOCK_LEN, 0);
        pages.read(block, buffer)?;
        memory.write_slice(buffer, address_of(page)).map_err(not_memory)?;
        page += count;
        block += count;
    }
    Ok(())
}

/// Where a file is behind the pages, to give them back would bring the file's content.
fn clear(memory: &GuestMemory, run: Run, mapped: &MappedPages) -> Result<(), SavedError> {
    if !mapped.touches(&run.range()) {
        return memory::clear(memory, address_of(run.first), run.count * PAGE_LEN).map_err(failed);
    }
    let zeros = [0; BLOCK_LEN];
    run.range().try_for_each(|page| memory.write_slice(&zeros, address_of(page)).map_err(not_memory))
}

fn read(memory: &GuestMemory, page: u64, content: &mut [u8]) -> Result<(), SavedError> {
    memory.read_slice(content, address_of(page)).map_err(not_memory)
}

/// Page numbers are below this.
fn end_of(memory: &GuestMemory) -> u64 {
    memory.last_addr().raw_value() / PAGE_LEN + 1
}

fn address_of(page: u64) -> GuestAddress {
    GuestAddress(page * PAGE_LEN)
}

fn blocks(len: usize) -> u64 {
    u64::try_from(len / BLOCK_LEN).unwrap_or(1)
}

fn failed(source: std::io::Error) -> SavedError {
    SavedError::File { part: Part::Memory, source }
}

fn not_memory(error: vm_memory::GuestMemoryError) -> SavedError {
    failed(std::io::Error::other(error))
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
