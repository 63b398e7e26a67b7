//! What keys have used, by day.

use crate::id::KeyId;
use serde::{Deserialize, Serialize};

/// Days that are told at most.
pub const USAGE_DAYS_MAX: u32 = 366;

/// `GET /v1/usage`: the last days, as many as `days` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UsageList {
    /// Oldest first. Days on which nothing was used are left out.
    pub days: Vec<UsageDay>,
}

/// What a key has used on one day. It is noted once a minute, and when a sandbox ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UsageDay {
    /// In UTC.
    #[schema(example = "2026-11-23")]
    pub day: String,
    /// Left out for the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// Sandboxes that were made, by create, fork or otherwise.
    pub sandboxes: u64,
    /// How long sandboxes have been there, added up.
    pub sandbox_seconds: u64,
    /// The same times their memory in MiB.
    pub ram_mib_seconds: u64,
    pub executions: u64,
    /// Over the network, from the sandboxes' side.
    pub sent_bytes: u64,
    pub received_bytes: u64,
}
