//! Runs one program in an emulated host of its own, and gives back its output and exit status.

use crate::job::{Job, Share};
use crate::launch::{self, LaunchError};
use crate::process::wait_for_end;
use crate::qemu::{CommandLine, Disk, DiskKind, JOB_DIRECTORY, Output};
use podflare_image::host::HostImage;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ffi::OsString;
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::Duration;

const SCRATCH_DISK_GIB: u64 = 64;

/// A job, and what its emulated host is made of.
#[derive(Debug)]
pub struct JobRun<'a> {
    pub image: &'a HostImage,
    pub job: &'a Job,
    pub shares: &'a [Share],
    /// Becomes `/dev/guest-rootfs`, read-only.
    pub guest_rootfs: Option<&'a Path>,
    /// Where there is room for what the job writes to its `/var/lib/podflare`.
    pub scratch_directory: &'a Path,
    /// The command that keeps one virtual machine open; needed by any job that uses KVM.
    pub holder: Option<&'a [OsString]>,
    pub time_limit: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("The job was not done after {} s. The emulated host's last words:\n{last_words}", limit.as_secs())]
    TimeLimit { limit: Duration, last_words: String },
    #[error("The emulated host could not run the job: {0}")]
    Refused(String),
    #[error("The emulated host ended before its job. Its last words:\n{last_words}")]
    Died { last_words: String },
    #[error("Cannot pass on the output of the job")]
    Output(#[source] io::Error),
}

impl JobRun<'_> {
    /// Runs the job, passing on its output as it comes. The exit status is the shell's: 128 and the signal's
    /// number for a program that was killed.
    pub fn run(
        &self,
        stdout: impl Write + Send + 'static,
        stderr: impl Write + Send + 'static,
    ) -> Result<u8, JobError> {
        let machine = launch::machine()?;
        let run = tempfile::Builder::new()
            .prefix("podflare-job-")
            .tempdir()
            .map_err(LaunchError::file("make a directory in", Path::new("the temporary directory")))?;
        let scratch = inheritable(launch::make_nameless_disk(self.scratch_directory, SCRATCH_DISK_GIB)?)?;
        let (stdout_reader, stdout_writer) = inheritable_pipe()?;
        let (stderr_reader, stderr_writer) = inheritable_pipe()?;
        let command_line = CommandLine {
            machine,
            vmlinux: &self.image.vmlinux(),
            initramfs: &self.image.initramfs(),
            shares: self.shares,
            disks: self.disks(format!("/dev/fd/{}", scratch.as_raw_fd()).into()),
            forwarded: None,
            stdout: Output::Pipe(stdout_writer.as_raw_fd()),
            stderr: Output::Pipe(stderr_writer.as_raw_fd()),
        };
        // An emulated host must not outlive the command that waits for it.
        let wrapper = ["setpriv", "--pdeathsig", "KILL", "--"];
        let mut command = launch::command(run.path(), &command_line, self.job, self.holder, &wrapper)?;
        let mut qemu = command.spawn().map_err(LaunchError::Start)?;
        drop((stdout_writer, stderr_writer, scratch));
        let streams = [pass_on(stdout_reader, stdout), pass_on(stderr_reader, stderr)];
        let in_time = wait_or_kill(&mut qemu, self.time_limit)?;
        for stream in streams {
            stream.join().expect("copying does not panic").map_err(JobError::Output)?;
        }
        if in_time { outcome(run.path()) } else { Err(self.too_late(run.path())) }
    }

    fn disks(&self, scratch: PathBuf) -> Vec<Disk> {
        let mut disks = vec![Disk { path: scratch, serial: "state", kind: DiskKind::Scratch }];
        if let Some(path) = self.guest_rootfs {
            disks.push(Disk { path: path.to_owned(), serial: "rootfs", kind: DiskKind::ReadOnly });
        }
        disks
    }

    fn too_late(&self, run_directory: &Path) -> JobError {
        JobError::TimeLimit { limit: self.time_limit, last_words: launch::last_words(run_directory) }
    }
}

fn outcome(run_directory: &Path) -> Result<u8, JobError> {
    let read = |name: &str| fs::read_to_string(run_directory.join(JOB_DIRECTORY).join(name)).ok();
    if let Some(reason) = read("failure") {
        return Err(JobError::Refused(reason.trim().to_owned()));
    }
    match read("status").and_then(|status| status.trim().parse().ok()) {
        Some(status) => Ok(status),
        None => Err(JobError::Died { last_words: launch::last_words(run_directory) }),
    }
}

/// A pipe whose write end a child process inherits.
fn inheritable_pipe() -> Result<(PipeReader, OwnedFd), LaunchError> {
    let (reader, writer): (PipeReader, PipeWriter) = io::pipe().map_err(LaunchError::Start)?;
    Ok((reader, inheritable(writer)?))
}

fn inheritable(descriptor: impl Into<OwnedFd>) -> Result<OwnedFd, LaunchError> {
    let descriptor = descriptor.into();
    fcntl_setfd(&descriptor, FdFlags::empty()).map_err(|errno| LaunchError::Start(errno.into()))?;
    Ok(descriptor)
}

/// Copies at once whatever comes, until the writer is gone.
fn pass_on(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
) -> thread::JoinHandle<io::Result<()>> {
    thread::spawn(move || {
        let mut buffer = [0; 64 * 1024];
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..count])?;
            to.flush()?;
        }
    })
}

/// Whether the child ended by itself in time; it has ended in any case.
fn wait_or_kill(child: &mut Child, limit: Duration) -> Result<bool, LaunchError> {
    let wait = |child: &mut Child| -> io::Result<bool> {
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let in_time = wait_for_end(&pidfd, limit)?;
        if !in_time {
            child.kill()?;
        }
        child.wait()?;
        Ok(in_time)
    };
    wait(child).map_err(LaunchError::Wait)
}
