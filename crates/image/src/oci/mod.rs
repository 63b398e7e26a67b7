//! Images of containers, from the archives that `docker save` and other tools write, as one tar file of a root.
//!
//! ```text
//!   archive ─▶ index, manifest, configuration ─▶ layers, unpacked ─▶ one tree ─▶ merged tar
//!   (all digests verified)                        (bounded)           (in memory)
//! ```
//!
//! An archive is hostile. Its layers are never unpacked over each other: names, links and whiteouts are resolved in
//! a tree in memory, and what is written has each name once, below directories only. So no name can lead out
//! of the directory into which the merged tar is unpacked.

mod archive;
mod blob;
mod budget;
mod layer;
mod manifest;
mod merged;
mod tree;

use archive::Archive;
use budget::Budget;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use tree::Tree;

/// How much more than the root may have its layers may have together: what one layer brings another may remove.
const UNPACKED_FACTOR: u64 = 4;

#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("It cannot be read")]
    Read(#[source] io::Error),
    #[error("Its contents cannot be unpacked")]
    Write(#[source] io::Error),
    #[error("It is neither an archive of `docker save` nor one with an OCI image layout: it has no {0}")]
    NotAnImage(&'static str),
    #[error("Its {what} is not what it should be: {reason}")]
    Malformed { what: String, reason: String },
    #[error("Its {what} is damaged: the digest should be {expected} and is {found}")]
    Digest { what: String, expected: String, found: String },
    #[error("It has more {what} than {max}")]
    TooMuch { what: &'static str, max: u64 },
    #[error("It has no image for linux/amd64, only for {0}")]
    Platform(String),
    #[error("It holds {0} images; save one of them alone")]
    Several(usize),
}

impl OciError {
    fn malformed(what: &str, reason: impl Into<String>) -> OciError {
        OciError::Malformed { what: what.to_owned(), reason: reason.into() }
    }
}

/// Writes the image's root to the new file `tar`, and gives the environment that the image sets. `scratch` is a
/// directory with room for all layers.
pub(crate) fn merge(
    archive: &Path,
    scratch: &Path,
    tar: &Path,
    bytes_max: u64,
) -> Result<BTreeMap<String, String>, OciError> {
    merge_within(&mut Budget::default(), archive, scratch, tar, bytes_max)
}

fn merge_within(
    budget: &mut Budget,
    archive: &Path,
    scratch: &Path,
    tar: &Path,
    bytes_max: u64,
) -> Result<BTreeMap<String, String>, OciError> {
    let archive = Archive::open(archive, scratch, bytes_max.saturating_mul(UNPACKED_FACTOR), budget)?;
    let image = manifest::read(&archive)?;
    let mut tree = Tree::default();
    let mut layers = Vec::new();
    let mut room = bytes_max.saturating_mul(UNPACKED_FACTOR);
    for (number, layer) in image.layers.iter().enumerate() {
        let unpacked = blob::unpack_layer(&archive, layer, scratch, &mut room)?;
        tree.apply(&unpacked, number, budget)?;
        layers.push(unpacked);
    }
    let tar = File::create_new(tar).map_err(OciError::Write)?;
    merged::write(&tree, &layers, tar, bytes_max, budget)?;
    Ok(image.environment)
}

#[cfg(test)]
mod tests;
