//! fork(2) of a process that has touched as much memory as a template, and does nothing else.

use crate::micros;
use rustix::mm::{Advice, madvise};
use rustix::process::{Pid, WaitOptions, waitpid};
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const PAGE_LEN: u64 = 4096;

/// Guest memory as the VMM maps it, its first part written to.
#[derive(Debug)]
pub(crate) struct Touched(GuestMemoryMmap<()>);

#[expect(clippy::unwrap_used, reason = "a floor that cannot be measured must fail the measurement")]
impl Touched {
    pub(crate) fn new(memory_mib: u32, touched_kib: u64, huge_pages: bool) -> Touched {
        let len = usize::try_from(memory_mib).unwrap() << 20;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap();
        let advice = if huge_pages { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        let start = memory.iter().next().unwrap().as_ptr();
        // SAFETY: the range is a live mapping owned by `memory`, and page-size advice changes no content.
        unsafe { madvise(start.cast(), len, advice) }.unwrap();
        for page in 0..touched_kib * 1024 / PAGE_LEN {
            memory.write_obj(1u8, GuestAddress(page * PAGE_LEN)).unwrap();
        }
        Touched(memory)
    }

    pub(crate) fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.0
    }

    /// How long the kernel needs to make a copy of this process; the copy ends at once.
    pub(crate) fn fork_us(&self) -> f64 {
        let start = Instant::now();
        // SAFETY: this process has one thread, so that the copy inherits no lock that another one holds.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: it ends the copy, running no code that belongs to the original.
            unsafe { libc::_exit(0) };
        }
        let took = micros(start);
        assert!(child > 0, "fork(2) failed: {}", std::io::Error::last_os_error());
        waitpid(Pid::from_raw(child), WaitOptions::empty()).unwrap();
        took
    }
}
