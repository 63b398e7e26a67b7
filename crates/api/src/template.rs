//! Templates: what a host has, how it takes a new one, and `template.json`, in which a builder tells it of one.

use serde::{Deserialize, Serialize};

/// The template that is always there.
pub const DEFAULT: &str = "default";

/// The version of [`TemplateManifest`] that this program writes and reads.
pub const MANIFEST_VERSION: u32 = 1;

const NAME_LEN_MAX: usize = 63;

/// Names are in paths, URLs and tables: small letters, digits, and '-' between them.
pub fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_LEN_MAX).contains(&name.len())
        && name.bytes().all(is_allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// `template.json` in a template's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateManifest {
    pub version: u32,
    /// The folder's.
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// A file in the folder, or a link.
    pub rootfs: String,
    pub ram_mib: u32,
    pub vcpus: u32,
    pub rootfs_gb: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<StartupManifest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ReadyManifest>,
    /// Of all that went into the build.
    pub digest: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub built_at_ms: u64,
}

/// Run in the REPL before anyone has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartupManifest {
    pub python: String,
}

/// Repeated until it succeeds; then sandboxes are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyManifest {
    pub bash: String,
    pub timeout_ms: u32,
}

/// `GET /v1/templates`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TemplateList {
    /// `default` first, the others by name.
    pub templates: Vec<TemplateView>,
}

/// `GET /v1/templates/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TemplateView {
    pub name: String,
    /// One line.
    pub description: String,
    /// What its sandboxes have if nothing else is asked for.
    pub ram_mib: u32,
    pub vcpus: u8,
    pub rootfs_gb: u32,
    /// Milliseconds since 1970-01-01 UTC; `null` for `default`, which comes with the host's image.
    pub built_at_ms: Option<u64>,
    /// Of these sizes.
    pub state: TemplateState,
    /// All sizes of it that are booted or are being booted.
    pub sizes: Vec<TemplateSize>,
}

/// What a template in one size is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TemplateState {
    /// Booted: a create takes milliseconds.
    Ready,
    /// Creates wait for it.
    Booting,
    /// The next create boots it.
    Cold,
}

/// A template in one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TemplateSize {
    pub ram_mib: u32,
    pub vcpus: u8,
    pub state: TemplateState,
}

/// One line of the answer to `POST /v1/templates/{name}`. Blank lines between them are heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TemplateProgress {
    pub state: TakeState,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far a host is with taking a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TakeState {
    /// Another is being taken.
    Waiting,
    /// It boots. The former one of its name is there until this is over.
    Booting,
    /// The last line: new sandboxes are copies of it.
    Ready,
    /// The last line: everything is as it was, and `error` says why.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_into_a_path_and_a_url() {
        for name in ["a", "default", "python-datasci", "3d", &"x".repeat(63)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a b", "a/b", "..", "ä", "a_b", &"x".repeat(64)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
