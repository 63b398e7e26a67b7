//! Process 1 of the real root: mounts what programs expect, starts the agent, and reaps orphans.
//!
//! The agent is a child, so that waiting for any process here never takes an exit status from it. When
//! it dies, whoever killed it, another is started: the sandbox is not lost. There is no shutdown; the
//! VMM ends the machine from outside.

use crate::console::say;
use crate::exec::ENVIRONMENT;
use crate::loopback;
use crate::renew::MACHINE_ID;
use rustix::fs::{Mode, chmod, symlink};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, WaitStatus, setrlimit};
use rustix::system::{RebootCommand, reboot, sethostname};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Until the first renewal gives the machine its own.
const HOSTNAME: &str = "podflare";

const MACHINE_ID_IN_MEMORY: &str = "/run/machine-id";

/// As service managers set it: little by default, for programs that walk all descriptors or use
/// select(2), and much for those that ask.
const OPEN_FILES: Rlimit = Rlimit { current: Some(1024), maximum: Some(524_288) };

/// How long the agent's next start is put off when it dies at once, again and again.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// An agent that has lived so long does not die at once.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error("Could not mount {what} on {at}: {error}")]
    Mount { what: &'static str, at: &'static str, error: Errno },
    #[error("Could not create {path}: {error}")]
    Create { path: &'static str, error: std::io::Error },
    #[error("Could not bring the loopback interface up: {0}")]
    Loopback(Errno),
    #[error("Could not set {what}: {error}")]
    Set { what: &'static str, error: Errno },
    #[error("Could not wait for processes: {0}")]
    Wait(Errno),
}

/// A file system that programs expect.
struct FileSystem {
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    options: &'static str,
}

const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV);
const NODEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);

const FILE_SYSTEMS: [FileSystem; 7] = [
    FileSystem { kind: "proc", at: "/proc", flags: QUIET, options: "" },
    FileSystem { kind: "sysfs", at: "/sys", flags: QUIET, options: "" },
    FileSystem { kind: "devtmpfs", at: "/dev", flags: MountFlags::NOSUID, options: "mode=755" },
    FileSystem { kind: "devpts", at: "/dev/pts", flags: DEVICES, options: "gid=5,mode=620,ptmxmode=666" },
    FileSystem { kind: "tmpfs", at: "/dev/shm", flags: NODEV, options: "mode=1777" },
    FileSystem { kind: "tmpfs", at: "/run", flags: NODEV, options: "mode=755" },
    FileSystem { kind: "cgroup2", at: "/sys/fs/cgroup", flags: QUIET, options: "" },
];

/// What udev would link, and shells and programs rely on.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

pub(crate) fn run() -> Result<Infallible, InitError> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    for file_system in &FILE_SYSTEMS {
        mount_if_missing(file_system)?;
    }
    for (target, path) in LINKS {
        match symlink(target, path) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(InitError::Create { path, error: error.into() }),
        }
    }
    for path in ["/tmp", "/run/lock"] {
        create_shared_directory(path).map_err(|error| InitError::Create { path, error })?;
    }
    keep_machine_id_in_memory()?;
    loopback::up().map_err(InitError::Loopback)?;
    let set = |what| move |error| InitError::Set { what, error };
    sethostname(HOSTNAME.as_bytes()).map_err(set("the host name"))?;
    setrlimit(Resource::Nofile, OPEN_FILES).map_err(set("the limit of open files"))?;
    keep_agent_running()
}

/// Every copy writes its own: that must neither cost it a block of the disk nor need one to be free.
fn keep_machine_id_in_memory() -> Result<(), InitError> {
    for path in [MACHINE_ID_IN_MEMORY, MACHINE_ID] {
        let create = File::options().append(true).create(true).open(path);
        create.map_err(|error| InitError::Create { path, error })?;
    }
    mount_bind(MACHINE_ID_IN_MEMORY, MACHINE_ID).map_err(|error| InitError::Mount {
        what: MACHINE_ID_IN_MEMORY,
        at: MACHINE_ID,
        error,
    })
}

/// Ends the machine: the VMM takes a reset as the end.
pub(crate) fn give_up() {
    if let Err(error) = reboot(RebootCommand::Restart) {
        say(&format!("Could not reset the machine: {error}"));
    }
}

fn mount_if_missing(file_system: &FileSystem) -> Result<(), InitError> {
    let FileSystem { kind, at, flags, options } = *file_system;
    std::fs::create_dir_all(at).map_err(|error| InitError::Create { path: at, error })?;
    if is_mount_point(at) {
        return Ok(());
    }
    let options = CString::new(options).unwrap_or_default();
    mount(kind, at, kind, flags, options.as_c_str()).map_err(|error| InitError::Mount {
        what: kind,
        at,
        error,
    })
}

fn is_mount_point(path: &str) -> bool {
    let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev).ok();
    let path = Path::new(path);
    path.parent().is_some_and(|parent| device(parent) != device(path))
}

fn create_shared_directory(path: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    Ok(chmod(path, Mode::from_raw_mode(0o1777))?)
}

/// Starts the agent, and again whenever it has died; reaps everything else on the way.
fn keep_agent_running() -> Result<Infallible, InitError> {
    let mut backoff = BACKOFF_MIN;
    loop {
        let started = Instant::now();
        match start_agent() {
            Ok(agent) => {
                let status = reap_until_ended(agent).map_err(InitError::Wait)?;
                say(&format!("The agent has ended ({}) and is started again", describe(status)));
            }
            Err(error) => say(&format!("Could not start the agent: {error}")),
        }
        if started.elapsed() >= SETTLED_AFTER {
            backoff = BACKOFF_MIN;
        }
        std::thread::sleep(backoff);
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// By the link to this very program: user code cannot delete what runs.
fn start_agent() -> std::io::Result<Pid> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("serve").env_clear().envs(ENVIRONMENT).current_dir("/").stdin(std::process::Stdio::null());
    let agent = command.spawn()?;
    Pid::from_raw(agent.id().cast_signed()).ok_or_else(|| std::io::Error::other("It has no process id"))
}

fn reap_until_ended(agent: Pid) -> Result<WaitStatus, Errno> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == agent => return Ok(status),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match status.terminating_signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit status {}", status.exit_status().unwrap_or_default()),
    }
}
