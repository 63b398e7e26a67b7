//! What a sandbox may reach, and what it has.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// The most entries of one list.
pub const EGRESS_RULES_MAX: usize = 256;

/// What a sandbox may reach beyond itself. In no mode: the host's own services, other sandboxes, and the metadata
/// address of clouds; private networks only if they are on a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Egress {
    /// `true`: everything public; `false`: nothing, no packet leaves.
    Switch(bool),
    /// What is on the list, and DNS for its names.
    List(AllowList),
}

/// What a sandbox may reach, entry by entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AllowList {
    /// `example.org` (that name alone), `*.example.org` (every name under it), `192.0.2.7`, `10.1.0.0/16`; each
    /// with `:PORT` behind it for TCP and UDP to that port only. At most `EGRESS_RULES_MAX`.
    pub allow: Vec<String>,
}

/// `PUT /v1/sandboxes/{id}/egress`: holds from the answer on, also for connections that are open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetEgress {
    pub egress: Egress,
}

/// `GET /v1/sandboxes/{id}/network`. Counters are those of its machine: a merge or a restore brings another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NetworkView {
    pub egress: Egress,
    /// The address inside the sandbox's network; `null` on a host without a network for its sandboxes.
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Bytes that left the sandbox, and that came to it, headers included.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Connections and flows that were let out so far.
    pub connections: u64,
}
