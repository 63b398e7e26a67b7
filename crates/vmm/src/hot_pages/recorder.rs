//! Notes which pages of guest memory are touched, and which of them are written: the memory's pages are
//! moved aside, and userfaultfd(2) brings each back when somebody, guest or device, touches it.

use super::runs_of;
use crate::memory::{GuestMemory, PAGE_LEN};
use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_PAGEFAULT_FLAG_WP,
    UFFD_PAGEFAULT_FLAG_WRITE, UFFDIO_COPY_MODE_WP, UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP,
    uffdio_api, uffdio_copy, uffdio_range, uffdio_register, uffdio_writeprotect,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_WRITEPROTECT};
use podflare_wire::control::PageRun;
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// Bytes of one `struct uffd_msg`.
const FAULT_LEN: usize = 32;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("This kernel does not let this user record page faults (userfaultfd)")]
    Userfaultfd(#[source] io::Error),
    #[error("The memory's pages could not be moved aside")]
    Aside(#[source] io::Error),
    #[error("The recorder's thread could not be started")]
    Thread(#[source] io::Error),
}

/// Records until the process ends; the machine must not be forked any more.
#[derive(Debug)]
pub(crate) struct Recorder {
    pages: Arc<Mutex<Pages>>,
}

/// Page numbers, and whether each was written.
type Pages = BTreeMap<u64, bool>;

/// One range of guest memory.
#[derive(Debug)]
struct Range {
    first_page: u64,
    host: u64,
    /// Where its pages are now.
    aside: u64,
    len: u64,
}

#[derive(Debug)]
struct Fault {
    address: u64,
    write: bool,
    /// The page is there, but was brought back for reading only.
    protected: bool,
}

/// Leave to record, and nothing changed yet.
#[derive(Debug)]
pub(crate) struct Permission(OwnedFd);

impl Permission {
    pub(crate) fn ask() -> Result<Permission, RecordError> {
        open().map(Permission).map_err(RecordError::Userfaultfd)
    }
}

impl Recorder {
    /// After an error, parts of the memory may be lost: the machine is of no use any more.
    pub(crate) fn start(Permission(fd): Permission, memory: &GuestMemory) -> Result<Recorder, RecordError> {
        let mut ranges = Vec::new();
        for region in memory.iter() {
            let (host, len) = (region.as_ptr().addr() as u64, region.len());
            let aside = move_aside(region.as_ptr(), len).map_err(RecordError::Aside)?;
            register(&fd, host, len).map_err(RecordError::Userfaultfd)?;
            let first_page = region.start_addr().raw_value() / PAGE_LEN;
            ranges.push(Range { first_page, host, aside, len });
        }
        let pages = Arc::new(Mutex::new(Pages::new()));
        let noted = pages.clone();
        std::thread::Builder::new()
            .name("recorder".into())
            .spawn(move || bring_back_pages(&fd, &ranges, &noted))
            .map_err(RecordError::Thread)?;
        Ok(Recorder { pages })
    }

    pub(crate) fn pages(&self) -> Vec<PageRun> {
        runs_of(&self.pages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: only memory that this module registers is served by the descriptor, each page with its
    // own former content, so that no access sees anything but what it would have seen.
    let fd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC) }?;
    let mut api =
        uffdio_api { api: UFFD_API.into(), features: UFFD_FEATURE_PAGEFAULT_FLAG_WP.into(), ioctls: 0 };
    // SAFETY: the kernel reads and fills this struct only.
    check(unsafe { ioctl_with_mut_ref(&fd, UFFDIO_API.into(), &mut api) })?;
    Ok(fd)
}

/// Moves the pages to another address; the range stays mapped and is empty.
fn move_aside(host: *mut u8, len: u64) -> io::Result<u64> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
    // Linux looks at the new address with this flag too, and rustix's call would leave it to chance.
    let anywhere = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the range is a live private mapping of guest memory. It stays one, and until its pages are
    // brought back nobody reads it: the vCPUs and devices stand still.
    let aside = unsafe { libc::mremap(host.cast(), len, len, flags, anywhere) };
    if aside == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(aside.addr() as u64) }
}

fn register(fd: &OwnedFd, host: u64, len: u64) -> io::Result<()> {
    let mode = u64::from(UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
    let mut register = uffdio_register { range: uffdio_range { start: host, len }, mode, ioctls: 0 };
    // SAFETY: the range is guest memory, which this module serves from now on.
    check(unsafe { ioctl_with_mut_ref(fd, UFFDIO_REGISTER.into(), &mut register) })
}

fn bring_back_pages(fd: &OwnedFd, ranges: &[Range], pages: &Mutex<Pages>) {
    loop {
        let mut bytes = [0; FAULT_LEN];
        match rustix::io::read(fd, &mut bytes) {
            Ok(FAULT_LEN) => {}
            Ok(_) | Err(rustix::io::Errno::INTR) => continue,
            // Whoever waits for a page would wait for good.
            Err(errno) => panic!("page faults can no longer be read: {errno}"),
        }
        let Some(fault) = Fault::parse(&bytes) else { continue };
        let Some(range) = ranges.iter().find(|range| range.contains(fault.address)) else { continue };
        let offset = (fault.address - range.host) & !(PAGE_LEN - 1);
        let page = range.first_page + offset / PAGE_LEN;
        *pages.lock().unwrap_or_else(PoisonError::into_inner).entry(page).or_default() |=
            fault.write || fault.protected;
        let served = if fault.protected {
            allow_writing(fd, range.host + offset)
        } else {
            copy(fd, range.host + offset, range.aside + offset, fault.write)
        };
        // A page that another thread has touched at the same time is there already.
        if let Err(error) = served
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            panic!("a page could not be brought back: {error}");
        }
    }
}

impl Range {
    fn contains(&self, address: u64) -> bool {
        (self.host..self.host + self.len).contains(&address)
    }
}

impl Fault {
    /// From a `struct uffd_msg`: the event, and for a page fault its flags and address.
    fn parse(bytes: &[u8; FAULT_LEN]) -> Option<Fault> {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 8)?.try_into().ok()?;
            Some(u64::from_ne_bytes(bytes))
        };
        if u32::from(bytes[0]) != UFFD_EVENT_PAGEFAULT {
            return None;
        }
        let (flags, address) = (word(8)?, word(16)?);
        let has = |flag: u32| flags & u64::from(flag) != 0;
        Some(Fault { address, write: has(UFFD_PAGEFAULT_FLAG_WRITE), protected: has(UFFD_PAGEFAULT_FLAG_WP) })
    }
}

fn copy(fd: &OwnedFd, to: u64, from: u64, writable: bool) -> io::Result<()> {
    let mode = if writable { 0 } else { UFFDIO_COPY_MODE_WP.into() };
    let mut copy = uffdio_copy { dst: to, src: from, len: PAGE_LEN, mode, copy: 0 };
    // SAFETY: the page is missing in guest memory, and gets the content that was moved aside from there.
    check(unsafe { ioctl_with_mut_ref(fd, UFFDIO_COPY.into(), &mut copy) })
}

fn allow_writing(fd: &OwnedFd, page: u64) -> io::Result<()> {
    let mut protect = uffdio_writeprotect { range: uffdio_range { start: page, len: PAGE_LEN }, mode: 0 };
    // SAFETY: it is guest memory, which may be written.
    check(unsafe { ioctl_with_mut_ref(fd, UFFDIO_WRITEPROTECT.into(), &mut protect) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
