//! Starts QEMU: what a job and a service have in common.

use crate::job::{self, Job};
use crate::machine::{Machine, MachineError};
use crate::qemu::{self, CONTROL_PIPE, CommandLine, JOB_DIRECTORY};
use podflare_image::tool;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const QEMU_LOG: &str = "qemu.log";
/// QEMU says this once for each processor feature of the model that it cannot emulate.
const HARMLESS: &str = "TCG doesn't support requested feature";
const TAIL_LINES: usize = 40;

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("{} is missing; install it (Debian and Ubuntu: apt-get install qemu-system-x86)", qemu::PROGRAM)]
    NoQemu,
    #[error("The program {0} is missing")]
    NoProgram(&'static str),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("Cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("Cannot make the file system {}: {complaint}", path.display())]
    MakeFileSystem { path: PathBuf, complaint: String },
    #[error("Cannot start QEMU")]
    Start(#[source] io::Error),
    #[error("Cannot wait for QEMU")]
    Wait(#[source] io::Error),
}

impl LaunchError {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LaunchError {
        let path = path.to_owned();
        move |source| LaunchError::File { action, path, source }
    }
}

/// A command for QEMU in its run directory, with the job's files in place.
pub(crate) fn command(
    run_directory: &Path,
    command_line: &CommandLine<'_>,
    job: &Job,
    holder: Option<&[OsString]>,
    wrapper: &[&str],
) -> Result<Command, LaunchError> {
    let job_directory = run_directory.join(JOB_DIRECTORY);
    job::write(&job_directory, job, command_line.shares, holder)
        .map_err(LaunchError::file("write the job in", &job_directory))?;
    let control = run_directory.join(CONTROL_PIPE);
    mknodat(CWD, &control, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .map_err(|errno| LaunchError::file("make the pipe", &control)(errno.into()))?;
    let log_path = run_directory.join(QEMU_LOG);
    let log = File::create(&log_path).map_err(LaunchError::file("make", &log_path))?;
    let qemu = tool::find(qemu::PROGRAM).ok_or(LaunchError::NoQemu)?;
    let mut command = Command::new("env");
    command.args(wrapper).arg(qemu).args(command_line.arguments()).current_dir(run_directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Ok(command)
}

/// The machine, and the programs without which nothing can start.
pub(crate) fn machine() -> Result<Machine, LaunchError> {
    tool::find(qemu::PROGRAM).ok_or(LaunchError::NoQemu)?;
    Ok(Machine::fitting_this_machine()?)
}

/// A sparse ext4 file. Its journal, which is not sparse, is kept from growing with its size.
pub(crate) fn make_disk(path: &Path, size_gib: u64) -> Result<(), LaunchError> {
    let mke2fs = tool::find("mke2fs").ok_or(LaunchError::NoProgram("mke2fs"))?;
    let output = Command::new(mke2fs)
        .args(["-q", "-t", "ext4", "-m", "0", "-i", "65536", "-J", "size=64"])
        .arg(path)
        .arg(format!("{size_gib}G"))
        .output()
        .map_err(LaunchError::file("format", path))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LaunchError::MakeFileSystem { path: path.to_owned(), complaint })
}

/// The end of what QEMU and the emulated host's kernel said, for an error.
pub(crate) fn last_words(run_directory: &Path) -> String {
    let mut lines = Vec::new();
    for name in [QEMU_LOG, qemu::CONSOLE_LOG] {
        let text = fs::read(run_directory.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let useful = |line: &&str| !line.trim().is_empty() && !line.contains(HARMLESS);
        lines.extend(text.lines().filter(useful).map(|line| format!("  {}", line.trim_end())));
    }
    lines.split_off(lines.len().saturating_sub(TAIL_LINES)).join("\n")
}
