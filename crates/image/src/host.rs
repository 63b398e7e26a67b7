//! The recipe of the emulated host's image: a standard kernel, and an initramfs with busybox and `/init`.
//!
//! The platform's own programs are not in it: the emulated host reads them from the outer machine.

use crate::Progress;
use crate::cache::{Cache, Key, KeyBuilder};
use crate::cpio::Archive;
use crate::definition::HostDefinition;
use crate::error::BuildError;
use crate::guest::{add_modules, write_archive};
use crate::kernel::{self, Kernel};
use crate::programs::{self, Programs};
use std::fs;
use std::path::PathBuf;

const INIT: &str = include_str!("../../../images/emulated-host/init");

/// A finished image. The directory never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostImage {
    pub directory: PathBuf,
}

impl HostImage {
    /// Builds what is not in the cache yet.
    pub fn build(
        cache: &Cache,
        definition: &HostDefinition,
        progress: Progress<'_>,
    ) -> Result<HostImage, BuildError> {
        let (release, mirrors) = (&definition.release, &definition.mirrors);
        let kernel = Kernel::build(cache, release, mirrors, &definition.kernel, progress)?;
        let programs = Programs::build(cache, release, mirrors, &definition.programs, progress)?;
        let directory = cache.part("emulated-host", &key(definition), |part| {
            progress("packing the emulated host's initramfs");
            let mut archive = Archive::default();
            let busybox = kernel.busybox();
            let contents = fs::read(&busybox).map_err(BuildError::file("read", &busybox))?;
            archive.file("bin/busybox", 0o755, contents);
            archive.file("init", 0o755, INIT.as_bytes().to_vec());
            programs.add_to(&mut archive)?;
            add_modules(&mut archive, &kernel, &definition.kernel.modules)?;
            write_archive(&archive, &part.join("initramfs.cpio"))?;
            let vmlinux = kernel.vmlinux();
            fs::hard_link(&vmlinux, part.join("vmlinux")).map_err(BuildError::file("link", &vmlinux))
        })?;
        Ok(HostImage { directory })
    }

    /// Whether [`HostImage::build`] would have nothing to do.
    pub fn is_built(cache: &Cache, definition: &HostDefinition) -> bool {
        cache.has("emulated-host", &key(definition))
    }

    pub fn vmlinux(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    pub fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs.cpio")
    }
}

fn key(definition: &HostDefinition) -> Key {
    let kernel = kernel::key(&definition.release, &definition.mirrors, &definition.kernel);
    let programs = programs::key(&definition.release, &definition.mirrors, &definition.programs);
    KeyBuilder::new()
        .bytes("kernel", kernel.as_str().as_bytes())
        .bytes("programs", programs.as_str().as_bytes())
        .list("modules", &definition.kernel.modules)
        .bytes("init", INIT.as_bytes())
        .finish()
}
