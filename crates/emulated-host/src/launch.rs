//! Starts QEMU: what a job and a service have in common.

use crate::job::{self, Job};
use crate::machine::{Machine, MachineError};
use crate::qemu::{self, CONTROL_PIPE, CommandLine, JOB_DIRECTORY};
use podflare_image::tool;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
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
    // Under its name only when it is complete: what an interrupted run leaves is never taken for a disk.
    let part = path.with_extension("part");
    File::create(&part).map_err(LaunchError::file("make", &part))?;
    let output = Command::new(mke2fs)
        .args(["-q", "-t", "ext4", "-m", "0", "-i", "65536", "-J", "size=64"])
        .arg(&part)
        .arg(format!("{size_gib}G"))
        .stdin(Stdio::null())
        .output()
        .map_err(LaunchError::file("format", &part))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(LaunchError::MakeFileSystem { path: part, complaint });
    }
    fs::rename(&part, path).map_err(LaunchError::file("put in place", path))
}

/// A disk without a name, for a job's time: it is gone with its last user, whatever ends that.
pub(crate) fn make_nameless_disk(directory: &Path, size_gib: u64) -> Result<File, LaunchError> {
    fs::create_dir_all(directory).map_err(LaunchError::file("make", directory))?;
    let scratch = tempfile::Builder::new()
        .prefix("scratch-")
        .tempdir_in(directory)
        .map_err(LaunchError::file("make a directory in", directory))?;
    let path = scratch.path().join("disk.ext4");
    make_disk(&path, size_gib)?;
    File::options().read(true).write(true).open(&path).map_err(LaunchError::file("open", &path))
}

/// A directory that only its owner may look into: the job's environment is in it, with the API's keys.
pub fn make_run_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_interrupted_run_left_of_a_disk_is_made_again() {
        let home = tempfile::tempdir().unwrap();
        let disk = home.path().join("state.ext4");
        fs::write(home.path().join("state.part"), "half").unwrap();
        make_disk(&disk, 1).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), 1 << 30);
        let names: Vec<_> =
            fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["state.ext4"]);
    }

    #[test]
    fn a_nameless_disk_leaves_nothing_behind() {
        let home = tempfile::tempdir().unwrap();
        let disk = make_nameless_disk(home.path(), 1).unwrap();
        assert_eq!(disk.metadata().unwrap().len(), 1 << 30);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_the_owner_may_look_into_a_run_directory() {
        let home = tempfile::tempdir().unwrap();
        let run = home.path().join("run");
        make_run_directory(&run).unwrap();
        assert_eq!(fs::metadata(&run).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
