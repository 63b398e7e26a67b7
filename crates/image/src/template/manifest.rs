//! `template.json`, which hostd reads.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateManifest {
    pub version: u32,
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    pub rootfs: String,
    pub ram_mib: u32,
    pub vcpus: u32,
    pub rootfs_gb: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<StartupManifest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ReadyManifest>,
    pub digest: String,
    pub built_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartupManifest {
    pub python: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyManifest {
    pub bash: String,
    pub timeout_ms: u32,
}
