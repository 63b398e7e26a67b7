//! Sandboxes on disk: frozen, kept, and resumed.

use crate::id::{SandboxId, SpaceId};
use crate::network::Egress;
use serde::{Deserialize, Serialize};

/// A sandbox that was frozen: memory, processes, open files and disk, as they were in one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SpaceView {
    pub id: SpaceId,
    /// The sandbox that was frozen, whose id names nothing any more.
    pub sandbox: SandboxId,
    pub template: String,
    pub ram_mib: u32,
    pub rootfs_gb: u32,
    pub vcpus: u8,
    /// Forks between the template and the sandbox.
    pub generation: u32,
    /// Milliseconds since 1970-01-01 UTC.
    pub frozen_at_ms: u64,
    /// What it takes on the host's disk, beside what it shares with others of its template.
    pub bytes: u64,
    /// What the sandbox might reach, and a resumed one may if nothing else is asked for.
    pub egress: Egress,
    /// Lifetime and idle timeout of the sandbox, which a resumed one has if nothing else is asked for.
    pub timeout_seconds: u64,
    pub idle_timeout_seconds: u64,
}

/// `GET /v1/spaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SpaceList {
    /// Oldest first.
    pub spaces: Vec<SpaceView>,
}

/// `POST /v1/spaces/{space}/resume`. Every field may be left out. Size and template are the Space's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResumeSpace {
    /// Longest life, from now.
    pub timeout_seconds: Option<u64>,
    /// Longest time without an execution.
    pub idle_timeout_seconds: Option<u64>,
    /// Whether the sandbox is frozen again when its time is over, into another Space.
    pub persistent: Option<bool>,
    /// What the sandbox may reach.
    pub egress: Option<Egress>,
    /// Leaves the Space as it is, so that it can be resumed again, also several times at once. Otherwise it can be
    /// resumed once, and what is left of it is removed when that sandbox is closed.
    #[serde(default)]
    pub keep: bool,
}
