//! The recipe of a microVM's image: kernel, initramfs with the agent, root disk.
//!
//! Three parts with keys of their own, so that a new agent costs an initramfs and not a root disk.

use crate::Progress;
use crate::cache::{Cache, Key, KeyBuilder, digest_file};
use crate::cpio::Archive;
use crate::definition::GuestDefinition;
use crate::error::BuildError;
use crate::kernel::{self, Kernel};
use crate::manifest::{Manifest, package_versions};
use crate::modules::plain_file_name;
use crate::{debian, disk, tool};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A finished image. The directory never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    pub directory: PathBuf,
}

impl GuestImage {
    /// Builds what is not in the cache yet; `agent` becomes process 1 of the initramfs.
    pub fn build(
        cache: &Cache,
        definition: &GuestDefinition,
        agent: &Path,
        progress: Progress<'_>,
    ) -> Result<GuestImage, BuildError> {
        let (release, mirrors) = (&definition.release, &definition.mirrors);
        let kernel = Kernel::build(cache, release, mirrors, &definition.kernel, progress)?;
        let root = build_root_disk(cache, definition, &kernel, progress)?;
        let key = image_key(definition, &kernel, agent)?;
        let directory = cache.part("guest", &key, |part| {
            progress("packing the guest's initramfs");
            let initramfs = part.join("initramfs.cpio");
            write_initramfs(&kernel, definition, agent, &initramfs)?;
            // Hard links: the parts may be pruned while the image lives on.
            for (from, name) in [(kernel.vmlinux(), "vmlinux"), (root.join("rootfs.ext4"), "rootfs.ext4")] {
                fs::hard_link(&from, part.join(name)).map_err(BuildError::file("link", &from))?;
            }
            manifest(definition, &kernel, &root, part)?.write(&part.join("manifest.json"))
        })?;
        Ok(GuestImage { directory })
    }

    /// Whether [`GuestImage::build`] would have nothing to do.
    pub fn is_built(cache: &Cache, definition: &GuestDefinition, agent: &Path) -> Result<bool, BuildError> {
        let kernel = Kernel::find(cache, &definition.release, &definition.mirrors, &definition.kernel)?;
        let Some(kernel) = kernel else { return Ok(false) };
        Ok(cache.has("guest", &image_key(definition, &kernel, agent)?))
    }

    pub fn vmlinux(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    pub fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs.cpio")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs.ext4")
    }
}

pub(crate) fn system_key(definition: &GuestDefinition, kernel: &Kernel) -> KeyBuilder {
    let packages = kernel::key(&definition.release, &definition.mirrors, &definition.kernel);
    KeyBuilder::new()
        .bytes("kernel", packages.as_str().as_bytes())
        // Fetched again, the same packages may be newer: a root disk is for the modules of one kernel.
        .bytes("kernel_release", kernel.release.as_bytes())
        .list("packages", &definition.packages)
        .list("options", &definition.options)
        .bytes("customize", definition.customize.as_bytes())
}

fn root_key(definition: &GuestDefinition, kernel: &Kernel) -> Key {
    system_key(definition, kernel).bytes("disk_gib", &definition.disk_gib.to_le_bytes()).finish()
}

fn image_key(definition: &GuestDefinition, kernel: &Kernel, agent: &Path) -> Result<Key, BuildError> {
    let key = KeyBuilder::new()
        .bytes("root", root_key(definition, kernel).as_str().as_bytes())
        .list("modules", &definition.kernel.modules)
        .file("agent", agent)?;
    Ok(key.finish())
}

/// The directory with `root.tar.zst`, from which root disks are made, and `packages`, dpkg's account of it.
pub(crate) fn build_system(
    cache: &Cache,
    definition: &GuestDefinition,
    kernel: &Kernel,
    progress: Progress<'_>,
) -> Result<PathBuf, BuildError> {
    cache.part("system", &system_key(definition, kernel).finish(), |part| {
        progress(&format!("installing the guest's {} system", definition.release));
        let tar = part.join("root.tar");
        debian::install_system(definition, &kernel.modules_directory(), &tar)?;
        let packages = part.join("packages");
        fs::write(&packages, debian::package_status(&tar)?).map_err(BuildError::file("write", &packages))?;
        tool::output(tool::command("zstd")?.args(["-q", "--rm", "-T0"]).arg(&tar))?;
        Ok(())
    })
}

fn build_root_disk(
    cache: &Cache,
    definition: &GuestDefinition,
    kernel: &Kernel,
    progress: Progress<'_>,
) -> Result<PathBuf, BuildError> {
    cache.part("rootfs", &root_key(definition, kernel), |part| {
        let system = build_system(cache, definition, kernel, progress)?;
        progress("making the guest's root disk");
        let (from, packages) = (system.join("packages"), part.join("packages"));
        fs::copy(&from, &packages).map_err(BuildError::file("copy", &from))?;
        let disk = part.join("rootfs.ext4");
        disk::ext4_from_tar(&system.join("root.tar.zst"), &disk, definition.disk_gib)?;
        let digest = part.join("rootfs.ext4.sha256");
        fs::write(&digest, digest_file(&disk)?).map_err(BuildError::file("write", &digest))
    })
}

fn write_initramfs(
    kernel: &Kernel,
    definition: &GuestDefinition,
    agent: &Path,
    path: &Path,
) -> Result<(), BuildError> {
    let mut archive = Archive::default();
    // Every sandbox keeps it in memory, and none needs its symbols.
    let stripped = path.with_extension("agent");
    tool::output(tool::command("strip")?.arg("-o").arg(&stripped).arg(agent))?;
    archive.file("init", 0o755, fs::read(&stripped).map_err(BuildError::file("read", &stripped))?);
    fs::remove_file(&stripped).map_err(BuildError::file("remove", &stripped))?;
    add_modules(&mut archive, kernel, &definition.kernel.modules)?;
    write_archive(&archive, path)
}

/// `/modules/order` lists the files in `/modules`, one a line, in the order of loading.
pub(crate) fn add_modules(
    archive: &mut Archive,
    kernel: &Kernel,
    wanted: &[String],
) -> Result<(), BuildError> {
    let modules = kernel.modules()?;
    let mut order = String::new();
    for file in modules.load_order(wanted)? {
        let name = plain_file_name(file);
        archive.file(&format!("modules/{name}"), 0o644, modules.contents(file)?);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.into_bytes());
    Ok(())
}

pub(crate) fn write_archive(archive: &Archive, path: &Path) -> Result<(), BuildError> {
    let write = || {
        let mut out = BufWriter::new(File::create(path)?);
        archive.write(&mut out)?;
        out.flush()
    };
    write().map_err(BuildError::file("write", path))
}

fn manifest(
    definition: &GuestDefinition,
    kernel: &Kernel,
    root: &Path,
    part: &Path,
) -> Result<Manifest, BuildError> {
    let text = |name: &str| {
        let path = root.join(name);
        fs::read_to_string(&path).map_err(BuildError::file("read", &path))
    };
    let mut digests = BTreeMap::from([("rootfs.ext4".to_owned(), text("rootfs.ext4.sha256")?)]);
    for name in ["vmlinux", "initramfs.cpio"] {
        digests.insert(name.to_owned(), digest_file(&part.join(name))?);
    }
    Ok(Manifest {
        distribution_release: definition.release.clone(),
        kernel_release: kernel.release.clone(),
        packages: package_versions(&text("packages")?),
        digests,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_built_for_one_kernel_and_one_agent() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::open(home.path()).unwrap();
        let definition = GuestDefinition::built_in();
        let agent = home.path().join("agent");
        fs::write(&agent, "agent").unwrap();
        let is_built = || GuestImage::is_built(&cache, &definition, &agent).unwrap();
        assert!(!is_built());

        let key = kernel::key(&definition.release, &definition.mirrors, &definition.kernel);
        let set_release = |part: &Path, release: &str| {
            let path = part.join("release");
            fs::write(&path, release).map_err(BuildError::file("write", &path))
        };
        let part = cache.part("kernel", &key, |part| set_release(part, "6.12.1")).unwrap();
        let kernel = Kernel::find(&cache, &definition.release, &definition.mirrors, &definition.kernel);
        let key = image_key(&definition, &kernel.unwrap().unwrap(), &agent).unwrap();
        cache.part("guest", &key, |_| Ok(())).unwrap();
        assert!(is_built());

        set_release(&part, "6.12.2").unwrap();
        assert!(!is_built());
        set_release(&part, "6.12.1").unwrap();
        assert!(is_built());
        fs::write(&agent, "another").unwrap();
        assert!(!is_built());
    }
}
