//! An emulated host that stays: started once, found again by its run directory, stopped cleanly.

use crate::backlog;
use crate::job::{Job, Share};
use crate::launch::{self, LaunchError};
use crate::process::ProcessId;
use crate::qemu::{CONTROL_PIPE, CommandLine, Disk, DiskKind, MONITOR_SOCKET, Output};
use podflare_image::host::HostImage;
use rustix::fs::OFlags;
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

pub use crate::launch::make_run_directory;
pub use crate::qemu::FORWARDED_PORT;

/// Where the job's streams go, in the run directory.
pub const STDOUT_LOG: &str = "stdout.log";
pub const STDERR_LOG: &str = "stderr.log";

const STATE_DISK_GIB: u64 = 64;
/// How long QEMU has to end after it was asked through its monitor.
const QUIT_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Service<'a> {
    pub image: &'a HostImage,
    pub job: &'a Job,
    pub shares: &'a [Share],
    pub guest_rootfs: &'a Path,
    pub holder: &'a [OsString],
    /// Made if it is missing; becomes `/var/lib/podflare`.
    pub state_disk: &'a Path,
    pub run_directory: &'a Path,
    /// The address of this machine that is forwarded to [`FORWARDED_PORT`] of the emulated host.
    pub listen: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("The address {address} is in use; stop what listens there or choose another one")]
    AddressInUse { address: SocketAddr, source: io::Error },
    #[error("Cannot stop process {pid}")]
    Stop { pid: u32, source: io::Error },
}

impl Service<'_> {
    /// Starts QEMU, which then runs by itself. Whether the job is ready is for the caller to find out.
    pub fn start(&self) -> Result<Child, ServiceError> {
        check_address(self.listen)?;
        let machine = launch::machine()?;
        self.clear_run_directory()?;
        if !self.state_disk.exists() {
            launch::make_disk(self.state_disk, STATE_DISK_GIB)?;
        }
        let disk = |path: &Path, serial, kind| Disk { path: path.to_owned(), serial, kind };
        let command_line = CommandLine {
            machine,
            vmlinux: &self.image.vmlinux(),
            initramfs: &self.image.initramfs(),
            shares: self.shares,
            disks: vec![
                disk(self.state_disk, "state", DiskKind::Durable),
                disk(self.guest_rootfs, "rootfs", DiskKind::ReadOnly),
            ],
            forwarded: Some(self.listen),
            stdout: Output::File(STDOUT_LOG),
            stderr: Output::File(STDERR_LOG),
        };
        let holder = Some(self.holder);
        let mut command = launch::command(self.run_directory, &command_line, self.job, holder, &[])?;
        // Of its own process group, so that a Ctrl-C for the command that starts it is not for it.
        let mut qemu = command.process_group(0).spawn().map_err(LaunchError::Start)?;
        // Where that is not allowed, or QEMU ends at once, which the caller will notice, nothing is lost but speed.
        backlog::lengthen(&mut qemu, self.listen).ok();
        Ok(qemu)
    }

    /// What an earlier emulated host has left would be taken for this one's.
    fn clear_run_directory(&self) -> Result<(), LaunchError> {
        let directory = self.run_directory;
        if directory.exists() {
            fs::remove_dir_all(directory).map_err(LaunchError::file("clear", directory))?;
        }
        launch::make_run_directory(directory).map_err(LaunchError::file("make", directory))
    }
}

/// Asks the job to end, then QEMU, then ends QEMU. `patience` is the job's.
pub fn stop(process: ProcessId, run_directory: &Path, patience: Duration) -> Result<(), ServiceError> {
    let failed = |source| ServiceError::Stop { pid: process.pid(), source };
    if ask_job_to_end(run_directory).is_ok() && process.wait_until_gone(patience).map_err(failed)? {
        return Ok(());
    }
    if ask_qemu_to_quit(run_directory).is_ok() && process.wait_until_gone(QUIT_PATIENCE).map_err(failed)? {
        return Ok(());
    }
    process.signal(Signal::KILL).map_err(failed)?;
    process.wait_until_gone(QUIT_PATIENCE).map_err(failed)?;
    Ok(())
}

/// The last lines of the emulated host's logs, for a message.
pub fn last_words(run_directory: &Path) -> String {
    launch::last_words(run_directory)
}

/// Whether the address is free to listen on. QEMU itself would say so only in its log.
pub fn check_address(address: SocketAddr) -> Result<(), ServiceError> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(source) => Err(ServiceError::AddressInUse { address, source }),
    }
}

fn ask_job_to_end(run_directory: &Path) -> io::Result<()> {
    // Not waiting for a reader: without QEMU there is none.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let pipe = OpenOptions::new().write(true).custom_flags(flags).open(run_directory.join(CONTROL_PIPE));
    pipe?.write_all(b"end\n")
}

fn ask_qemu_to_quit(run_directory: &Path) -> io::Result<()> {
    // By way of a descriptor, since the path of the directory may be too long for a socket's address.
    let directory = File::open(run_directory)?;
    let path = format!("/proc/self/fd/{}/{MONITOR_SOCKET}", directory.as_raw_fd());
    UnixStream::connect(path)?.write_all(b"quit\n")
}
