//! Keeping a sandbox's state, and going back to it.

use crate::id::{CheckpointId, SandboxId};
use serde::{Deserialize, Serialize};

/// The most checkpoints that a sandbox may have when another is made.
pub const CHECKPOINTS_MAX: usize = 16;

/// The longest name of a checkpoint, in characters.
pub const CHECKPOINT_NAME_LEN_MAX: usize = 128;

/// `POST /v1/sandboxes/{id}/checkpoints`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CheckpointRequest {
    /// A note for people, at most `CHECKPOINT_NAME_LEN_MAX` characters; it need not be unique.
    #[schema(max_length = 128)]
    pub name: Option<String>,
}

/// A sandbox's state at one instant: memory, processes, open files and disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CheckpointView {
    pub id: CheckpointId,
    pub name: Option<String>,
    /// The sandbox whose checkpoint this is. If the one that it was made of has been merged into another,
    /// that other.
    pub sandbox: SandboxId,
    pub template: String,
    /// Forks between the template and the sandbox, as it was then.
    pub generation: u32,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_at_ms: u64,
    /// When it ends by itself: after the lifetime of its sandbox, counted from `created_at_ms`.
    pub expires_at_ms: u64,
}

/// `GET /v1/checkpoints`, and `GET /v1/sandboxes/{id}/checkpoints`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CheckpointList {
    /// Oldest first.
    pub checkpoints: Vec<CheckpointView>,
}

/// `POST /v1/sandboxes/{id}/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RestoreRequest {
    /// One of this sandbox's checkpoints.
    pub checkpoint: CheckpointId,
}
