//! `/init` of the initramfs: loads modules, mounts the root disk and becomes process 1 there.
//!
//! `/modules/order` lists the files of `/modules` in the order in which they must be loaded, one a
//! line. Nothing is probed and nothing is configurable: the disk is `/dev/vda` with an ext4.

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};
use rustix::system::finit_module;
use std::convert::Infallible;
use std::ffi::CStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const MODULES: &str = "/modules";
const MODULES_ORDER: &str = "/modules/order";
const DISK: &str = "/dev/vda";
const NEW_ROOT: &str = "/newroot";
/// Where the agent goes on the new root, which needs not contain it.
const AGENT_DIRECTORY: &str = "/newroot/run/podflare";
const AGENT: &str = "/newroot/run/podflare/agent";
const AGENT_AFTER_SWITCH: &str = "/run/podflare/agent";

/// On an emulated host modules and disks take seconds, not milliseconds.
const DISK_TIME_MAX: Duration = Duration::from_secs(30);
const DISK_POLL: Duration = Duration::from_millis(2);

/// `noinit_itable`: no background thread writes blocks that every copy would then pay for.
/// `discard`: what the guest deletes is given back to the host while the sandbox lives. Without a
/// journal to wait for, that is at once.
const ROOT_OPTIONS: &CStr = c"noinit_itable,discard";

#[derive(Debug, thiserror::Error)]
pub(crate) enum InitramfsError {
    #[error("Could not create {path}: {error}")]
    Create { path: &'static str, error: io::Error },
    #[error("Could not mount {what}: {error}")]
    Mount { what: &'static str, error: Errno },
    #[error("Could not read {MODULES_ORDER}: {0}")]
    Order(io::Error),
    #[error("Could not load the module {name}: {error}")]
    Module { name: String, error: Errno },
    #[error("{DISK} did not appear within {} s; is the virtio_blk module in {MODULES_ORDER}?", DISK_TIME_MAX.as_secs())]
    NoDisk,
    #[error("Could not copy the agent to the new root: {0}")]
    CopyAgent(io::Error),
    #[error("Could not {step}: {error}")]
    Switch { step: &'static str, error: Errno },
    #[error("Could not start {AGENT_AFTER_SWITCH}: {0}")]
    Exec(io::Error),
}

pub(crate) fn run() -> Result<Infallible, InitramfsError> {
    create_directory("/dev")?;
    mount_new("devtmpfs", "devtmpfs", "/dev", MountFlags::NOSUID, Some(c"mode=755"))?;
    load_modules()?;
    wait_for_disk()?;
    create_directory(NEW_ROOT)?;
    mount_new(DISK, "ext4", NEW_ROOT, MountFlags::NOATIME, Some(ROOT_OPTIONS))?;
    install_agent()?;
    switch_root()?;
    Err(InitramfsError::Exec(Command::new(AGENT_AFTER_SWITCH).arg("init").exec()))
}

fn create_directory(path: &'static str) -> Result<(), InitramfsError> {
    std::fs::create_dir_all(path).map_err(|error| InitramfsError::Create { path, error })
}

fn mount_new(
    what: &'static str,
    kind: &str,
    at: &str,
    flags: MountFlags,
    options: Option<&CStr>,
) -> Result<(), InitramfsError> {
    match mount(what, at, kind, flags, options) {
        // A kernel may have mounted /dev by itself.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(InitramfsError::Mount { what, error }),
    }
}

fn load_modules() -> Result<(), InitramfsError> {
    let order = std::fs::read_to_string(MODULES_ORDER).map_err(InitramfsError::Order)?;
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        match load_module(&Path::new(MODULES).join(name)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(InitramfsError::Module { name: name.to_owned(), error }),
        }
    }
    Ok(())
}

fn load_module(path: &Path) -> Result<(), Errno> {
    let module = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    finit_module(module, c"", 0)
}

fn wait_for_disk() -> Result<(), InitramfsError> {
    let deadline = Instant::now() + DISK_TIME_MAX;
    while !Path::new(DISK).exists() {
        if Instant::now() >= deadline {
            return Err(InitramfsError::NoDisk);
        }
        std::thread::sleep(DISK_POLL);
    }
    Ok(())
}

/// On a tmpfs, so that the root file system needs no agent of the right version.
fn install_agent() -> Result<(), InitramfsError> {
    create_directory("/newroot/run")?;
    mount_new("tmpfs", "tmpfs", "/newroot/run", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))?;
    create_directory(AGENT_DIRECTORY)?;
    std::fs::copy("/init", AGENT).map_err(InitramfsError::CopyAgent)?;
    std::fs::set_permissions(AGENT, std::fs::Permissions::from_mode(0o755)).map_err(InitramfsError::CopyAgent)
}

fn switch_root() -> Result<(), InitramfsError> {
    let failed = |step| move |error| InitramfsError::Switch { step, error };
    // The initramfs lives in memory that nobody could reach any more. What stays is only a cost.
    std::fs::remove_dir_all(MODULES).ok();
    std::fs::remove_file("/init").ok();
    create_directory("/newroot/dev")?;
    mount_move("/dev", "/newroot/dev").map_err(failed("move /dev to the new root"))?;
    chdir(NEW_ROOT).map_err(failed("enter the new root"))?;
    mount_move(".", "/").map_err(failed("move the new root to /"))?;
    chroot(".").map_err(failed("change the root directory"))?;
    chdir("/").map_err(failed("enter the new root directory"))
}
