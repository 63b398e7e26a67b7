//! The documents of an image: index, manifest and configuration, each by the digest that the one before it gives.

use super::OciError;
use super::archive::Archive;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

/// An index may name further ones, for example one for each processor.
const INDEX_DEPTH_MAX: usize = 4;
const LAYERS_MAX: usize = 512;
const OS: &str = "linux";
const ARCHITECTURE: &str = "amd64";
const VARIABLE_LEN_MAX: usize = 4096;

/// What of an image becomes a root.
#[derive(Debug)]
pub(crate) struct Image {
    /// The lowest first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) environment: BTreeMap<String, String>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    /// Its file in the archive.
    pub(crate) member: String,
    /// Of that file, where its name is one.
    pub(crate) digest: Option<Digest>,
    /// Of what it is when it is unpacked.
    pub(crate) diff_id: Digest,
}

/// SHA-256, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Digest(String);

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Digest, String> {
        let hex = text.strip_prefix("sha256:").ok_or_else(|| format!("{text:?} is no SHA-256 digest"))?;
        Digest::from_hex(hex).ok_or_else(|| format!("{text:?} is no SHA-256 digest"))
    }
}

impl Digest {
    fn from_hex(hex: &str) -> Option<Digest> {
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (hex.len() == 64 && is_hex).then(|| Digest(hex.to_owned()))
    }

    pub(crate) fn of(hash: Sha256) -> Digest {
        Digest(hash.finalize().iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes all that is written");
            text
        }))
    }

    pub(crate) fn check(&self, what: &str, found: &Digest) -> Result<(), OciError> {
        if self == found {
            return Ok(());
        }
        Err(OciError::Digest { what: what.to_owned(), expected: self.to_string(), found: found.to_string() })
    }

    fn member(&self) -> String {
        format!("blobs/sha256/{}", self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

/// An index, or a manifest: only their lists tell which.
#[derive(Deserialize)]
struct IndexOrManifest {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Configuration {
    os: Option<String>,
    architecture: Option<String>,
    rootfs: RootFs,
    config: Option<Settings>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Settings {
    #[serde(rename = "Env")]
    env: Option<Vec<String>>,
}

/// An element of `docker save`'s manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
}

pub(crate) fn read(archive: &Archive) -> Result<Image, OciError> {
    // Newer versions of `docker save` write both; the layout is the one with all digests.
    if archive.has("index.json") {
        let index = parse("index.json", &archive.document("index.json")?)?;
        return read_layout(archive, index);
    }
    if archive.has("manifest.json") {
        return read_saved(archive);
    }
    Err(OciError::NotAnImage("index.json and no manifest.json"))
}

fn read_layout(archive: &Archive, index: IndexOrManifest) -> Result<Image, OciError> {
    let mut document = index;
    for _ in 0..INDEX_DEPTH_MAX {
        if let (Some(config), Some(layers)) = (&document.config, &document.layers) {
            let layers = layers.iter().map(|layer| (layer.digest.member(), Some(layer.digest.clone())));
            let configuration = blob(archive, "configuration", &config.digest)?;
            return image(&parse("configuration", &configuration)?, layers.collect());
        }
        let chosen = choose(document.manifests.unwrap_or_default())?;
        document = parse("manifest", &blob(archive, "manifest", &chosen.digest)?)?;
    }
    Err(OciError::malformed("index", "it leads to further ones and to no manifest"))
}

fn read_saved(archive: &Archive) -> Result<Image, OciError> {
    let saved: Vec<SavedImage> = parse("manifest.json", &archive.document("manifest.json")?)?;
    let [SavedImage { config, layers }] = &saved[..] else { return Err(OciError::Several(saved.len())) };
    let contents = archive.document(config)?;
    if let Some(digest) = digest_in_name(config) {
        digest.check("configuration", &Digest::of(Sha256::new().chain_update(&contents)))?;
    }
    let layers = layers.iter().map(|member| (member.clone(), digest_in_name(member)));
    image(&parse("configuration", &contents)?, layers.collect())
}

/// The only one, or the one for this kind of machine. What is for no machine at all, such as an attestation, is
/// not counted.
fn choose(manifests: Vec<Descriptor>) -> Result<Descriptor, OciError> {
    let is_for = |manifest: &Descriptor, os: &str, architecture: &str| match &manifest.platform {
        Some(platform) => platform.os == os && platform.architecture == architecture,
        None => false,
    };
    let (for_none, mut images): (Vec<_>, Vec<_>) =
        manifests.into_iter().partition(|manifest| is_for(manifest, "unknown", "unknown"));
    drop(for_none);
    if let [only] = &images[..]
        && only.platform.is_none()
    {
        return images.pop().ok_or(OciError::NotAnImage("manifest"));
    }
    let platforms = images.iter().filter_map(|manifest| manifest.platform.as_ref());
    let named: Vec<String> =
        platforms.map(|platform| format!("{}/{}", platform.os, platform.architecture)).collect();
    let count = images.len();
    images.retain(|manifest| is_for(manifest, OS, ARCHITECTURE));
    match images.len() {
        1 => images.pop().ok_or(OciError::NotAnImage("manifest")),
        0 if count == 0 => Err(OciError::NotAnImage("manifest in its index")),
        0 if named.is_empty() => Err(OciError::Several(count)),
        0 => Err(OciError::Platform(named.join(", "))),
        several => Err(OciError::Several(several)),
    }
}

fn image(configuration: &Configuration, layers: Vec<(String, Option<Digest>)>) -> Result<Image, OciError> {
    if let (Some(os), Some(architecture)) = (&configuration.os, &configuration.architecture)
        && (os != OS || architecture != ARCHITECTURE)
    {
        return Err(OciError::Platform(format!("{os}/{architecture}")));
    }
    let diff_ids = &configuration.rootfs.diff_ids;
    if layers.len() != diff_ids.len() {
        let reason = format!("it tells of {} layers and the manifest of {}", diff_ids.len(), layers.len());
        return Err(OciError::malformed("configuration", reason));
    }
    if layers.len() > LAYERS_MAX {
        return Err(OciError::TooMuch { what: "layers", max: LAYERS_MAX as u64 });
    }
    let layers = layers.into_iter().zip(diff_ids);
    let env = configuration.config.as_ref().and_then(|settings| settings.env.as_deref());
    Ok(Image {
        layers: layers
            .map(|((member, digest), diff_id)| Layer { member, digest, diff_id: diff_id.clone() })
            .collect(),
        environment: env.unwrap_or_default().iter().filter_map(|line| variable(line)).collect(),
    })
}

/// What could not stand in a file of variables is left out.
fn variable(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once('=')?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let fits = line.len() <= VARIABLE_LEN_MAX && !value.contains(char::is_control);
    (is_name && fits).then(|| (name.to_owned(), value.to_owned()))
}

fn blob(archive: &Archive, what: &str, digest: &Digest) -> Result<Vec<u8>, OciError> {
    let contents = archive.document(&digest.member())?;
    digest.check(what, &Digest::of(Sha256::new().chain_update(&contents)))?;
    Ok(contents)
}

/// `blobs/sha256/DIGEST`, or a configuration's `DIGEST.json`.
fn digest_in_name(member: &str) -> Option<Digest> {
    let file = member.rsplit('/').next()?;
    Digest::from_hex(file.strip_suffix(".json").unwrap_or(file))
}

fn parse<T: DeserializeOwned>(what: &str, contents: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(contents).map_err(|error| OciError::malformed(what, error.to_string()))
}
