//! Makes an ext4 disk from a tar file.

use crate::debian::MADE_AT_S;
use crate::error::BuildError;
use crate::tool;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The same for every disk: nothing of the moment of its making goes into a disk. It still cannot be made
/// again bit by bit, since mirrors give each day's packages: the image's manifest says what a disk holds.
const FILE_SYSTEM_ID: &str = "6f0d7f1e-5b0c-4b0a-9d0e-706f64666c72";

/// `$1` tar, `$2` directory.
const UNPACK: &str = r#"
set -eu
tar --extract --file "$1" --directory "$2" --same-permissions --same-owner --numeric-owner \
    --xattrs --xattrs-include='*'
[ -e "$2/dev" ] || [ -L "$2/dev" ] || mkdir "$2/dev"
"#;

/// Unpacks into an empty directory, with all owners.
pub(crate) fn unpack(tar: &Path, directory: &Path) -> Result<(), BuildError> {
    tool::path("tar")?;
    fs::create_dir(directory).map_err(BuildError::file("make", directory))?;
    let mut command = as_root("sh");
    command.args(["-c", UNPACK, "sh"]).arg(tar).arg(directory);
    tool::output(&mut command)?;
    Ok(())
}

/// Makes the sparse file `disk` with what `directory` holds.
///
/// No journal: a microVM's disk is thrown away or saved as a whole with its memory. Inode tables are made
/// now, since every microVM would otherwise write them in the background into its own copy.
pub(crate) fn ext4_from_directory(directory: &Path, disk: &Path, size_gib: u64) -> Result<(), BuildError> {
    let mut command = as_root(tool::path("mke2fs")?);
    command.args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-U", FILE_SYSTEM_ID, "-E"]);
    command.arg(format!("hash_seed={FILE_SYSTEM_ID},lazy_itable_init=0,root_owner=0:0"));
    command.arg("-d").arg(directory).arg(disk).arg(format!("{size_gib}G"));
    command.env("SOURCE_DATE_EPOCH", MADE_AT_S).env("E2FSPROGS_FAKE_TIME", MADE_AT_S);
    tool::output(&mut command)?;
    Ok(())
}

/// Makes the sparse file `disk` with what `tar` holds.
pub(crate) fn ext4_from_tar(tar: &Path, disk: &Path, size_gib: u64) -> Result<(), BuildError> {
    let scratch = disk.with_extension("root");
    unpack(tar, &scratch)?;
    ext4_from_directory(&scratch, disk, size_gib)?;
    remove_tree(&scratch)
}

/// Removes also what belongs to the other users of a root directory.
pub(crate) fn remove_tree(path: &Path) -> Result<(), BuildError> {
    tool::output(as_root("rm").arg("-rf").arg(path))?;
    Ok(())
}

/// Owners of files can be set by root, and by a user in a namespace that maps a range of ids to it: always the
/// same ids, so that one command sees the owners that another has set. It has none of this process's environment.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(program)
    } else {
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--map-auto", "--"]).arg(program);
        unshare
    };
    tool::with_own_environment(&mut command);
    command
}
