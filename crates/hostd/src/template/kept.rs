//! Templates that a host has booted before: taken up from the disk in the time that their pages take to read.

use super::{Definition, Shape};
use crate::config::{Machines, Settings};
use podflare_wire::guest::{NetworkIdentity, PROTOCOL};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::path::Path;
use tokio::task::spawn_blocking;

/// Of all that the machine of a template depends on: one that is booted of the same is as good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingredients(String);

impl Ingredients {
    /// None if they cannot be read, which the boot will tell better.
    pub(crate) async fn of(
        settings: &Settings,
        network: Option<NetworkIdentity>,
        definition: &Definition,
        shape: &Shape,
    ) -> Option<Ingredients> {
        let words = format!(
            "{PROTOCOL} {} {} {:?} {shape:?} {:?} {:?} {} {network:?}",
            super::boot::COMMAND_LINE,
            settings.huge_pages,
            definition.startup,
            definition.ready,
            definition.built_at_ms,
            settings.guest_settings.code().unwrap_or_default(),
        );
        let image = settings.image.clone();
        let program = match &settings.machines {
            Machines::Processes { program } => Some(program.clone()),
            Machines::Fake => None,
        };
        let rootfs = definition.rootfs.clone();
        let digest = spawn_blocking(move || {
            let mut digest = Sha256::new_with_prefix(words);
            for path in [&image.kernel, &image.initramfs].into_iter().chain(&program) {
                add_file(&mut digest, path)?;
            }
            digest.update(crate::space::image::ImageDigest::read(&rootfs)?.to_string());
            Ok::<_, io::Error>(digest.finalize())
        });
        let digest = digest.await.ok()?.ok()?;
        Some(Ingredients(digest.iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

fn add_file(digest: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    digest.update(file.metadata()?.len().to_le_bytes());
    io::copy(&mut file, digest).map(drop)
}
