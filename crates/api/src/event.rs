//! What happens to sandboxes: a list that goes on, and what webhooks are told.

use crate::id::{CheckpointId, KeyId, SandboxId, SpaceId};
use serde::{Deserialize, Serialize};

/// The most events that are kept; older ones are forgotten.
pub const EVENTS_KEPT_MAX: u64 = 100_000;

/// The most events of one answer.
pub const EVENTS_LISTED_MAX: u32 = 1000;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LifecycleEvent {
    /// Rises from event to event, with gaps: other keys' events have numbers, too.
    pub seq: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub at_ms: u64,
    #[serde(flatten)]
    pub what: Happening,
    /// Whose sandbox it is; left out for the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
}

/// What has happened. Clients overlook types that they do not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type")]
pub enum Happening {
    #[serde(rename = "sandbox.created")]
    Created { sandbox: SandboxId, template: String },
    /// `sandbox` is one child; each has an event of its own.
    #[serde(rename = "sandbox.forked")]
    Forked {
        sandbox: SandboxId,
        parent: SandboxId,
        /// The checkpoint that it was made of; left out for a fork of a running sandbox.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        checkpoint: Option<CheckpointId>,
    },
    /// `sandbox` goes on with the machine of `winner`, whose own id names nothing any more.
    #[serde(rename = "sandbox.merged")]
    Merged { sandbox: SandboxId, winner: SandboxId },
    #[serde(rename = "sandbox.restored")]
    Restored { sandbox: SandboxId, checkpoint: CheckpointId },
    /// It has new terms.
    #[serde(rename = "sandbox.extended")]
    Extended { sandbox: SandboxId, timeout_seconds: u64, idle_timeout_seconds: u64 },
    /// It has ended, and goes on in the Space when that is resumed.
    #[serde(rename = "sandbox.frozen")]
    Frozen { sandbox: SandboxId, space: SpaceId },
    /// `sandbox` is new, and goes on with what was in the Space.
    #[serde(rename = "sandbox.resumed")]
    Resumed { sandbox: SandboxId, space: SpaceId },
    /// It has ended; `reason` is for people.
    #[serde(rename = "sandbox.closed")]
    Closed { sandbox: SandboxId, reason: String },
}

/// `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventList {
    /// Oldest first.
    pub events: Vec<LifecycleEvent>,
}
