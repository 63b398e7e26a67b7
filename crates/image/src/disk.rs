//! Makes an ext4 disk from a tar file.

use crate::debian::MADE_AT_S;
use crate::error::BuildError;
use crate::tool;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The same for every disk: nothing of the moment of its making goes into a disk. It still cannot be made
/// again bit by bit, since mirrors give each day's packages: the image's manifest says what a disk holds.
const FILE_SYSTEM_ID: &str = "6f0d7f1e-5b0c-4b0a-9d0e-706f64666c72";

/// Unpacks and formats in one go, because only one process sees the owners of the files when an ordinary
/// user runs this. `$1` tar, `$2` disk, `$3` size in GiB, `$4` scratch directory, `$5` id.
///
/// No journal: a microVM's disk is thrown away or saved as a whole with its memory. Inode tables are made
/// now, since every microVM would otherwise write them in the background into its own copy.
const SCRIPT: &str = r#"
set -eu
tar --extract --file "$1" --directory "$4" --same-permissions --same-owner --numeric-owner \
    --xattrs --xattrs-include='*'
mkdir -p "$4/dev"
mke2fs -q -t ext4 -d "$4" -O ^has_journal -m 0 -U "$5" \
    -E hash_seed="$5",lazy_itable_init=0,root_owner=0:0 "$2" "$3G"
"#;

/// Makes the sparse file `disk` with what `tar` holds.
pub(crate) fn ext4_from_tar(tar: &Path, disk: &Path, size_gib: u64) -> Result<(), BuildError> {
    for program in ["tar", "mke2fs"] {
        tool::command(program)?;
    }
    let scratch = disk.with_extension("root");
    fs::create_dir(&scratch).map_err(BuildError::file("make", &scratch))?;
    let mut command = as_root();
    command.args(["sh", "-c", SCRIPT, "sh"]).arg(tar).arg(disk).arg(size_gib.to_string()).arg(&scratch);
    command.arg(FILE_SYSTEM_ID).env("PATH", tool::search_path());
    command.env("SOURCE_DATE_EPOCH", MADE_AT_S).env("E2FSPROGS_FAKE_TIME", MADE_AT_S);
    tool::output(&mut command)?;
    remove_tree(&scratch)
}

/// Removes also what belongs to the other users of a root directory.
pub(crate) fn remove_tree(path: &Path) -> Result<(), BuildError> {
    tool::output(as_root().args(["rm", "-rf"]).arg(path))?;
    Ok(())
}

/// Owners of files can be set by root, and by a user in a namespace that maps a range of ids to it.
fn as_root() -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new("env");
    }
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--map-auto", "--"]);
    command
}
