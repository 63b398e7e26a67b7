//! Making, copying, merging and looking at sandboxes.

use crate::id::SandboxId;
use serde::{Deserialize, Serialize};

/// The most children of one fork.
pub const FORK_CHILDREN_MAX: u32 = 32;

/// `POST /v1/sandboxes`. Every field may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreateSandbox {
    pub template: Option<String>,
    /// Longest life, from now.
    pub timeout_seconds: Option<u64>,
    /// Longest time without an execution.
    pub idle_timeout_seconds: Option<u64>,
    pub ram_mib: Option<u32>,
    pub rootfs_gb: Option<u32>,
    pub persistent: Option<bool>,
    pub egress: Option<bool>,
}

/// The answer to a create: what the sandbox really has, where that may differ from what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SandboxCreated {
    pub id: SandboxId,
    pub state: SandboxState,
    pub template: String,
    pub ram_mib: u32,
    pub rootfs_gb: u32,
    pub vcpus: u8,
    pub timeout_seconds: u64,
    pub idle_timeout_seconds: u64,
    pub persistent: bool,
    pub egress: bool,
}

/// What a sandbox is doing. Only `Ready` ones are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    Ready,
}

/// `GET /v1/sandboxes/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SandboxView {
    pub id: SandboxId,
    pub state: SandboxState,
    pub template: String,
    pub ram_mib: u32,
    pub rootfs_gb: u32,
    pub vcpus: u8,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_at_ms: u64,
    /// The sandbox that this one was forked from, even if that is gone.
    pub parent: Option<SandboxId>,
    /// Forks between the template and this sandbox.
    pub generation: u32,
    /// The guest's clock, entropy, name and REPL are its own, as the agent has confirmed. False for as long
    /// as the REPL is still in code from before the fork; it is renewed before it runs anything new.
    pub renewed: bool,
    /// Executions so far.
    pub executions: u64,
    pub timeout_seconds: u64,
    pub idle_timeout_seconds: u64,
}

/// `GET /v1/sandboxes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SandboxList {
    pub sandboxes: Vec<SandboxView>,
}

/// `POST /v1/sandboxes/{id}/fork`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ForkRequest {
    /// Children wanted, `1..=FORK_CHILDREN_MAX`.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 32)]
    pub n: u32,
}

fn one() -> u32 {
    1
}

/// The answer to a fork: every child is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Forked {
    pub children: Vec<SandboxId>,
}
