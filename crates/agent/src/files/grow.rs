//! Grows the root file system while it is in use, to the end of a disk that has become longer.

use super::{Context, Outcome, Stop};
use rustix::fs::{Mode, OFlags, fstat, fstatvfs, major, minor, open};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Declared by the kernel with the number of blocks as its argument.
const EXT4_IOC_RESIZE_FS: Opcode = opcode::write::<u64>(b'f', 16);

const SECTOR_LEN: u64 = 512;

/// The driver learns of the disk's new length by an interrupt, and looks in a worker of its own.
const LENGTH_TIMEOUT: Duration = Duration::from_secs(10);
const LENGTH_PAUSE: Duration = Duration::from_micros(200);

pub(super) fn grow_root(bytes: u64) -> Outcome<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open("/", flags, Mode::empty()).context(|| "/".into())?;
    let device = fstat(&root).context(|| "/".into())?.st_dev;
    let length = format!("/sys/dev/block/{}:{}/size", major(device), minor(device));
    let deadline = Instant::now() + LENGTH_TIMEOUT;
    while disk_bytes(&length)? < bytes {
        if Instant::now() > deadline {
            return Err(Stop::new(Errno::TIMEDOUT, "the disk has not become longer"));
        }
        std::thread::sleep(LENGTH_PAUSE);
    }
    let block_len = fstatvfs(&root).context(|| "/".into())?.f_frsize;
    let blocks = bytes.checked_div(block_len).ok_or_else(|| Stop::new(Errno::INVAL, "/"))?;
    resize(root.as_fd(), blocks).context(|| format!("/ to {bytes} bytes"))
}

fn disk_bytes(length: &str) -> Outcome<u64> {
    let text = std::fs::read_to_string(length).context(|| length.to_owned())?;
    let sectors: u64 = text.trim().parse().map_err(|_| Stop::new(Errno::INVAL, length))?;
    Ok(sectors.saturating_mul(SECTOR_LEN))
}

fn resize(file_system: BorrowedFd<'_>, blocks: u64) -> Result<(), Errno> {
    // SAFETY: EXT4_IOC_RESIZE_FS reads one 64-bit number, which `u64` is.
    let request = unsafe { Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks) };
    // SAFETY: it writes no memory of this process. Other file systems refuse the request by its number.
    unsafe { ioctl(file_system, request) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_number_of_the_kernel() {
        assert_eq!(EXT4_IOC_RESIZE_FS, 0x4008_6610);
    }
}
