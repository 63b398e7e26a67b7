//! Calls mmdebstrap, which knows the releases, their mirrors and their keys.

use crate::definition::GuestDefinition;
use crate::error::BuildError;
use crate::tool;
use std::path::Path;
use std::process::Command;

/// The latest time that a file may show (2026-01-01), in seconds since 1970.
pub(crate) const MADE_AT_S: &str = "1767225600";

/// Told a date of making, Python compiles so that each import reads and digests the source too. Compiled
/// again, with the time of the source, which must then not change any more. `$1` is the root directory.
const TIME_BYTECODE: &str = r#"
find "$1/usr/lib" -name '*.py' -type f -newermt "@$SOURCE_DATE_EPOCH" -exec touch --date "@$SOURCE_DATE_EPOCH" {} +
[ ! -x "$1/usr/bin/python3" ] || env --unset SOURCE_DATE_EPOCH chroot "$1" python3 -c '
import glob, importlib.util, py_compile
for path in glob.glob("/usr/lib/python3*/**/*.pyc", recursive=True):
    py_compile.compile(importlib.util.source_from_cache(path))'
"#;

/// Unpacks packages and all that they need into a tar file, without installing anything.
pub(crate) fn unpack_packages(
    release: &str,
    mirrors: &[String],
    packages: &[String],
    tar: &Path,
) -> Result<(), BuildError> {
    let mut mmdebstrap = mmdebstrap()?;
    mmdebstrap.arg("--variant=extract").arg(format!("--include={}", packages.join(",")));
    mmdebstrap.arg(release).arg(tar).args(mirrors);
    tool::output(&mut mmdebstrap)?;
    Ok(())
}

/// Installs the system that the definition describes, with the kernel's modules, into a tar file.
pub(crate) fn install_system(
    definition: &GuestDefinition,
    modules: &Path,
    tar: &Path,
) -> Result<(), BuildError> {
    let mut mmdebstrap = mmdebstrap()?;
    mmdebstrap.arg("--variant=minbase").arg(format!("--include={}", definition.packages.join(",")));
    mmdebstrap.args(&definition.options);
    // The kernel makes the device nodes when the guest boots.
    mmdebstrap.arg("--skip=output/dev");
    let copy_modules = format!("copy-in {} /usr/lib", shell_word(&modules.to_string_lossy()));
    // They come with the owner that they have here.
    let own_modules = r#"chown -R 0:0 "$1/usr/lib/modules""#;
    for hook in [&copy_modules, own_modules, TIME_BYTECODE, &definition.customize] {
        if !hook.is_empty() {
            mmdebstrap.arg(format!("--customize-hook={hook}"));
        }
    }
    mmdebstrap.arg(&definition.release).arg(tar).args(&definition.mirrors);
    tool::output(&mut mmdebstrap)?;
    Ok(())
}

/// The installed packages, in the words of dpkg.
pub(crate) fn package_status(tar: &Path) -> Result<Vec<u8>, BuildError> {
    let mut unpack = tool::command("tar")?;
    unpack.arg("--extract").arg("--to-stdout").arg("--file").arg(tar).arg("./var/lib/dpkg/status");
    Ok(tool::output(&mut unpack)?)
}

fn mmdebstrap() -> Result<Command, BuildError> {
    let mut command = tool::command("mmdebstrap")?;
    tool::with_network(&mut command).arg("--format=tar").env("SOURCE_DATE_EPOCH", MADE_AT_S);
    Ok(command)
}

fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
