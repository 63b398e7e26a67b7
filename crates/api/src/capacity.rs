//! What a host has ready and what it has given out.

use serde::{Deserialize, Serialize};

/// `GET /v1/capacity`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Capacity {
    pub sandboxes: u32,
    pub sandboxes_max: u32,
    pub templates: Vec<TemplateCapacity>,
}

/// One template and its pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TemplateCapacity {
    pub template: String,
    /// The template has booted: its sandboxes can be created.
    pub available: bool,
    /// Sandboxes that the pool keeps ready when nothing is asked of it.
    pub pool_size: u32,
    pub pool_ready: u32,
    pub pool_starting: u32,
    /// Creates that the pool has answered, and creates that had to wait for a copy.
    pub pool_hits: u64,
    pub pool_misses: u64,
    /// Hits of all creates, in hundredths of a percent.
    pub pool_hit_rate_bp: u32,
}
