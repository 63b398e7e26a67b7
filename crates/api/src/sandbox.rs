//! Making, copying, merging and looking at sandboxes.

use crate::id::{CheckpointId, SandboxId};
use crate::network::Egress;
use serde::{Deserialize, Serialize};

/// The most children of one fork.
pub const FORK_CHILDREN_MAX: u32 = 32;

/// `POST /v1/sandboxes`. Every field may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreateSandbox {
    /// `default` if it is left out.
    pub template: Option<String>,
    /// Longest life, from now.
    pub timeout_seconds: Option<u64>,
    /// Longest time without an execution.
    pub idle_timeout_seconds: Option<u64>,
    /// Memory, in MiB; otherwise the template's. Raised to a multiple of 256, and lowered to what the host offers. A size
    /// that the host has not had lately is booted first.
    pub ram_mib: Option<u32>,
    /// Processors; otherwise the template's. Raised to 1, or lowered to what the host offers.
    pub vcpus: Option<u32>,
    /// Disk, in GiB. Less than the template has, or more than the host offers, is raised or lowered to that.
    pub rootfs_gb: Option<u32>,
    /// Whether it is frozen into a Space, and not ended, when it has idled or lived for as long as it may. Overlooked
    /// for keys whose tier has no Spaces.
    pub persistent: Option<bool>,
    /// What the sandbox may reach; everything public if it is left out.
    pub egress: Option<Egress>,
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
    /// `false` also on a host that has no network for its sandboxes.
    pub egress: Egress,
}

/// `PATCH /v1/sandboxes/{id}`. What is left out stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendSandbox {
    /// How long it may live from now on, in seconds. Lowered to what its whole life may be.
    pub timeout_seconds: Option<u64>,
    /// Longest time without an execution, in seconds. Lowered to what is offered.
    pub idle_timeout_seconds: Option<u64>,
    /// Whether it is frozen into a Space when its time is over.
    pub persistent: Option<bool>,
}

/// What a sandbox is doing. Only `Ready` ones are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    Ready,
}

/// `GET /v1/sandboxes/{id}`.
///
/// A merge and a restore put another machine in a sandbox's place. What belongs to the id stays: `id`,
/// `created_at_ms`, `parent`, `egress` and both timeouts. All else tells of the machine that is there now.
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
    /// The sandbox that this one was forked from, itself or through a checkpoint, even if that is gone.
    pub parent: Option<SandboxId>,
    /// The checkpoint that its machine was copied from, even if that is gone.
    pub checkpoint: Option<CheckpointId>,
    /// Forks between the template and its machine.
    pub generation: u32,
    /// When its machine was copied, in milliseconds since 1970-01-01 UTC. A machine of the pool was copied
    /// from the template before its sandbox was created.
    pub forked_at_ms: u64,
    /// The guest's clock, entropy, name and REPL are its own, as the agent has confirmed. False for as long
    /// as the REPL is still in code from before the fork; it is renewed before it runs anything new.
    pub renewed: bool,
    /// Executions so far, in its machine.
    pub executions: u64,
    pub timeout_seconds: u64,
    pub idle_timeout_seconds: u64,
    /// Whether it is frozen into a Space when its time is over.
    pub persistent: bool,
    pub egress: Egress,
}

/// `GET /v1/sandboxes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SandboxList {
    pub sandboxes: Vec<SandboxView>,
}

/// `POST /v1/sandboxes/{id}/fork`, and `POST /v1/checkpoints/{checkpoint}/fork`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ForkRequest {
    /// Children wanted, `1..=FORK_CHILDREN_MAX`.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 32)]
    pub n: u32,
    /// Whether to keep the children that could be made when others could not. Otherwise all are made, or none.
    #[serde(default)]
    pub partial: bool,
}

fn one() -> u32 {
    1
}

/// The answer to a fork.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Forked {
    /// All of them are ready.
    pub children: Vec<SandboxId>,
    /// Only with `partial`: the children that could not be made. Left out when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<ChildFailure>,
}

/// A child that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ChildFailure {
    /// Which of the fork's children, from 0.
    pub child: u32,
    pub error: String,
}
