//! The pages that a guest touches first after a thaw. All copies of one machine touch nearly the same
//! ones, and each costs a fault: an exit from the guest, and a copy if it is written. A trial run records
//! them; from then on a thaw brings them in all at once.
//!
//! Bringing in is an optimization: what it cannot do is left to the guest's own faults.

#[expect(unsafe_code, reason = "ioctls of userfaultfd, and moving the memory's pages aside")]
pub(crate) mod recorder;

use crate::kvm::prefault;
use crate::memory::{self, GuestMemory, PAGE_LEN};
use kvm_ioctls::VcpuFd;
use podflare_wire::control::PageRun;
use podflare_wire::limits::HOT_PAGE_RUNS_MAX;
use std::collections::BTreeMap;
use vm_memory::GuestAddress;

/// Pages between two runs up to which both are mapped by one call.
const GAP_PAGES_MAX: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HotPagesError {
    #[error("{count} runs of pages; the most is {HOT_PAGE_RUNS_MAX}")]
    TooMany { count: usize },
    #[error("Run {first:#x} of pages is not memory of this machine, or not in order")]
    NotMemory { first: u64 },
}

/// Runs of pages within the memory of one machine.
#[derive(Debug, Default)]
pub(crate) struct HotPages(Vec<PageRun>);

impl HotPages {
    pub(crate) fn within(memory: &GuestMemory, runs: Vec<PageRun>) -> Result<HotPages, HotPagesError> {
        if runs.len() > HOT_PAGE_RUNS_MAX {
            return Err(HotPagesError::TooMany { count: runs.len() });
        }
        let mut end = 0;
        for run in &runs {
            if run.first < end || !memory::holds(memory, run.first, run.count.into()) {
                return Err(HotPagesError::NotMemory { first: run.first });
            }
            end = run.first + u64::from(run.count);
        }
        Ok(HotPages(runs))
    }

    pub(crate) fn runs(&self) -> &[PageRun] {
        &self.0
    }

    /// Makes this process's own copies of the pages that will be written, then maps all of them into the
    /// guest through one of its vCPUs, whose state must have been set.
    pub(crate) fn bring_in(&self, memory: &GuestMemory, vcpu: &VcpuFd) {
        for run in self.0.iter().filter(|run| run.written) {
            memory::populate_for_writing(memory, GuestAddress(run.first * PAGE_LEN), len_of(run));
        }
        for (address, len) in neighbourhoods(&self.0) {
            if prefault::map_ahead(vcpu, address, len).is_err() {
                return;
            }
        }
    }
}

/// Runs with what lies between them, where that is little: to map a page costs less than a call.
fn neighbourhoods(runs: &[PageRun]) -> Vec<(u64, u64)> {
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for run in runs {
        let (start, len) = (run.first * PAGE_LEN, len_of(run));
        match merged.last_mut() {
            Some((first, length)) if start - (*first + *length) <= GAP_PAGES_MAX * PAGE_LEN => {
                *length = start + len - *first;
            }
            _ => merged.push((start, len)),
        }
    }
    merged
}

fn len_of(run: &PageRun) -> u64 {
    u64::from(run.count) * PAGE_LEN
}

/// Page numbers, and whether each was written, as runs; what is over the limit is left out.
fn runs_of(pages: &BTreeMap<u64, bool>) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for (&page, &written) in pages {
        let last = runs.pop_if(|run| run.first + u64::from(run.count) == page && run.written == written);
        if last.is_none() && runs.len() == HOT_PAGE_RUNS_MAX {
            break;
        }
        let run = last.unwrap_or(PageRun { first: page, count: 0, written });
        runs.push(PageRun { count: run.count + 1, ..run });
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u32, written: bool) -> PageRun {
        PageRun { first, count, written }
    }

    #[test]
    fn pages_that_follow_each_other_are_one_run_if_they_are_of_one_kind() {
        let pages = [(3, true), (4, true), (5, false), (7, false)].into();
        assert_eq!(runs_of(&pages), [run(3, 2, true), run(5, 1, false), run(7, 1, false)]);
    }

    #[test]
    fn no_more_runs_are_told_than_a_message_has_room_for() {
        let pages = (0..HOT_PAGE_RUNS_MAX as u64 + 9).map(|page| (page * 2, true)).collect();
        assert_eq!(runs_of(&pages).len(), HOT_PAGE_RUNS_MAX);
    }

    #[test]
    fn pages_outside_memory_are_refused() {
        let memory = memory::map(128, false).unwrap();
        let last = 128 * 256 - 1;
        assert!(HotPages::within(&memory, vec![run(0, 1, true), run(last, 1, false)]).is_ok());
        for outside in [run(last, 2, true), run(last + 1, 1, true), run(u64::MAX, 1, true), run(0, 0, true)] {
            assert!(HotPages::within(&memory, vec![outside]).is_err(), "{outside:?}");
        }
        let overlapping = vec![run(5, 2, true), run(6, 1, false)];
        assert!(HotPages::within(&memory, overlapping).is_err());
    }

    #[test]
    fn runs_near_each_other_are_mapped_by_one_call() {
        let runs = [run(10, 2, true), run(12 + GAP_PAGES_MAX, 1, false), run(1000, 1, true)];
        let len = 3 + GAP_PAGES_MAX;
        assert_eq!(neighbourhoods(&runs), [(10 * PAGE_LEN, len * PAGE_LEN), (1000 * PAGE_LEN, PAGE_LEN)]);
    }
}
