//! What a template boots from, and what its sandboxes have if nothing else is asked for.

use super::DEFAULT;
use super::size::{Size, SizeLimits};
use crate::config::Settings;
use podflare_api::template::TemplateManifest;
use std::path::PathBuf;
use std::time::Duration;

const DEFAULT_RAM_MIB: u32 = 1024;
const DEFAULT_DISK_GIB: u32 = 4;
const DEFAULT_DESCRIPTION: &str = "The host's own image: Debian with Python and bash.";

/// One build of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub name: String,
    pub description: String,
    /// An image file or a block device, which never changes.
    pub rootfs: PathBuf,
    pub size: Size,
    pub disk_gib: u32,
    /// Python for the REPL, before anyone has it.
    pub startup: Option<String>,
    pub ready: Option<ReadyCheck>,
    /// Milliseconds since 1970-01-01 UTC; none for the host's own image.
    pub built_at_ms: Option<u64>,
}

/// Bash that is repeated until it succeeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyCheck {
    pub bash: String,
    pub timeout: Duration,
}

impl Definition {
    /// The template that is always there.
    pub fn of_image(settings: &Settings) -> Definition {
        let size = Size { ram_mib: DEFAULT_RAM_MIB, vcpus: settings.vcpus };
        Definition {
            name: DEFAULT.to_owned(),
            description: DEFAULT_DESCRIPTION.to_owned(),
            rootfs: settings.image.rootfs.clone(),
            size: settings.sizes.fit(None, None, size),
            disk_gib: DEFAULT_DISK_GIB,
            startup: None,
            ready: None,
            built_at_ms: None,
        }
    }

    /// What a manifest says that has been checked; no more of everything than the host offers.
    pub(super) fn of_manifest(manifest: TemplateManifest, rootfs: PathBuf, sizes: SizeLimits) -> Definition {
        Definition {
            name: manifest.name,
            description: manifest.description,
            rootfs,
            size: sizes.fit(Some(manifest.ram_mib), Some(manifest.vcpus), Size { ram_mib: 0, vcpus: 1 }),
            disk_gib: manifest.rootfs_gb,
            startup: manifest.startup.map(|startup| startup.python),
            ready: manifest.ready.map(|ready| ReadyCheck {
                bash: ready.bash,
                timeout: Duration::from_millis(ready.timeout_ms.into()),
            }),
            built_at_ms: Some(manifest.built_at_ms),
        }
    }
}
