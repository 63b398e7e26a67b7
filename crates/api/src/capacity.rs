//! What a host has ready and what it has given out.

use serde::{Deserialize, Serialize};

/// `GET /v1/capacity`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Capacity {
    /// Sandboxes that exist, beside the pools' members.
    pub sandboxes: u32,
    /// Checkpoints that exist.
    pub checkpoints: u32,
    /// The most sandboxes and checkpoints that may exist together, beside the pools' members.
    pub sandboxes_max: u32,
    pub templates: Vec<TemplateCapacity>,
}

/// A template in one size and its pool. Counts are since it was first wanted; `default` in its own size, which is
/// always there, comes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TemplateCapacity {
    pub template: String,
    pub ram_mib: u32,
    pub vcpus: u8,
    /// The template has booted: its sandboxes can be created.
    pub available: bool,
    /// The template's guest has given its free memory back to the host, which Linux does in the first ten seconds after
    /// a boot. Sandboxes that were created before do it by themselves, beside what they are to do. Stays false where that
    /// failed, and the host's log says why.
    pub rested: bool,
    /// Pages of 4 KiB that every copy brings in before it runs, because a trial copy has touched them. 0 when the host
    /// could not learn them, and its log says why: then every copy takes a few times as long.
    pub hot_pages: u64,
    /// Sandboxes that the pool is to have ready now: its target, or as many as were created in the last seconds
    /// if that is more, as far as the host's memory allows.
    pub pool_size: u32,
    /// Sandboxes that the pool keeps ready when nothing is asked of it.
    pub pool_target: u32,
    /// Sandboxes that are ready: the next create takes one.
    pub pool_ready: u32,
    /// Sandboxes that are being made ready.
    pub pool_starting: u32,
    /// Creates that the pool has answered.
    pub pool_hits: u64,
    /// Creates that had to wait for a copy of the template.
    pub pool_misses: u64,
    /// Hits of all creates, in basis points: hundredths of a percent.
    pub pool_hit_rate_bp: u32,
    /// What a copy took that a create had to wait for, on average, in milliseconds. It is a copy of the running
    /// template, whose boot is not counted. Null when there was none.
    pub on_demand_boot_ms_mean: Option<u64>,
    /// What one of the last 16 sandboxes took that the pool has made ready, on average, in milliseconds. Null when
    /// it has made none.
    pub pool_refill_ms_mean: Option<u64>,
}
