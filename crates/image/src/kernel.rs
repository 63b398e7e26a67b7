//! A distribution's kernel, unpacked: `vmlinux`, its modules with their index, and single programs.

use crate::Progress;
use crate::cache::{Cache, Key, KeyBuilder};
use crate::debian;
use crate::definition::KernelDefinition;
use crate::error::BuildError;
use crate::modules::Modules;
use crate::{tool, vmlinux};
use std::fs;
use std::path::{Path, PathBuf};

/// The initramfs of the emulated host is built around it.
const PROGRAM: &str = "busybox";

#[derive(Debug)]
pub(crate) struct Kernel {
    directory: PathBuf,
    pub(crate) release: String,
}

pub(crate) fn key(release: &str, mirrors: &[String], definition: &KernelDefinition) -> Key {
    KeyBuilder::new()
        .bytes("release", release.as_bytes())
        .list("mirrors", mirrors)
        .list("packages", &definition.packages)
        .finish()
}

impl Kernel {
    pub(crate) fn build(
        cache: &Cache,
        release: &str,
        mirrors: &[String],
        definition: &KernelDefinition,
        progress: Progress<'_>,
    ) -> Result<Kernel, BuildError> {
        let packages = &definition.packages;
        let directory = cache.part("kernel", &key(release, mirrors, definition), |part| {
            progress(&format!("fetching the kernel of {release}"));
            let tar = part.join("packages.tar");
            debian::unpack_packages(release, mirrors, packages, &tar)?;
            progress(&format!("unpacking the kernel of {release}"));
            keep_what_is_needed(&tar, part, packages)
        })?;
        Kernel::read(directory)
    }

    /// The kernel that [`Kernel::build`] would find in the cache.
    pub(crate) fn find(
        cache: &Cache,
        release: &str,
        mirrors: &[String],
        definition: &KernelDefinition,
    ) -> Result<Option<Kernel>, BuildError> {
        cache.find("kernel", &key(release, mirrors, definition)).map(Kernel::read).transpose()
    }

    fn read(directory: PathBuf) -> Result<Kernel, BuildError> {
        let path = directory.join("release");
        let release = fs::read_to_string(&path).map_err(BuildError::file("read", &path))?;
        Ok(Kernel { directory, release })
    }

    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    /// Holds one directory, named after the kernel's release.
    pub(crate) fn modules_directory(&self) -> PathBuf {
        self.directory.join("lib/modules")
    }

    pub(crate) fn modules(&self) -> Result<Modules, BuildError> {
        Modules::read(&self.modules_directory().join(&self.release))
    }

    pub(crate) fn busybox(&self) -> PathBuf {
        self.directory.join(PROGRAM)
    }
}

fn keep_what_is_needed(tar: &Path, part: &Path, packages: &[String]) -> Result<(), BuildError> {
    let unpacked = part.join("packages");
    fs::create_dir(&unpacked).map_err(BuildError::file("make", &unpacked))?;
    let mut unpack = tool::command("tar")?;
    unpack.args(["--extract", "--no-same-owner", "--exclude=./dev", "--file"]).arg(tar);
    tool::output(unpack.arg("--directory").arg(&unpacked))?;

    let not_found =
        |wanted: &str| BuildError::NotInPackages { packages: packages.to_owned(), wanted: wanted.to_owned() };
    let release = kernel_release(&unpacked)?.ok_or_else(|| not_found("kernel"))?;
    vmlinux::unpack(&unpacked.join(format!("boot/vmlinuz-{release}")), &part.join("vmlinux"))?;
    let modules = ["lib/modules", "usr/lib/modules"].map(|path| unpacked.join(path).join(&release));
    let modules = modules.iter().find(|path| path.is_dir()).ok_or_else(|| not_found("modules"))?;
    let target = part.join("lib/modules").join(&release);
    fs::create_dir_all(part.join("lib/modules")).map_err(BuildError::file("make", &target))?;
    fs::rename(modules, &target).map_err(BuildError::file("move", modules))?;
    tool::output(tool::command("depmod")?.arg("--basedir").arg(part).arg(&release))?;

    let programs = ["bin", "usr/bin"].map(|path| unpacked.join(path).join(PROGRAM));
    if let Some(program) = programs.iter().find(|path| path.is_file()) {
        fs::rename(program, part.join(PROGRAM)).map_err(BuildError::file("move", program))?;
    }
    fs::write(part.join("release"), release).map_err(BuildError::file("write in", part))?;
    fs::remove_dir_all(&unpacked).map_err(BuildError::file("remove", &unpacked))?;
    fs::remove_file(tar).map_err(BuildError::file("remove", tar))
}

fn kernel_release(unpacked: &Path) -> Result<Option<String>, BuildError> {
    let boot = unpacked.join("boot");
    for entry in fs::read_dir(&boot).map_err(BuildError::file("list", &boot))? {
        let name = entry.map_err(BuildError::file("list", &boot))?.file_name();
        if let Some(release) = name.to_string_lossy().strip_prefix("vmlinuz-") {
            return Ok(Some(release.to_owned()));
        }
    }
    Ok(None)
}
