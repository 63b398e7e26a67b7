//! API keys, as whoever runs the host manages them.

use crate::id::KeyId;
use serde::{Deserialize, Serialize};

/// The longest name of a key, in characters.
pub const KEY_NAME_LEN_MAX: usize = 128;

/// `POST /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// One of the host's tiers, such as `pro`: what sandboxes with this key may have.
    pub tier: String,
    /// A note for people, at most `KEY_NAME_LEN_MAX` characters; it need not be unique.
    #[serde(default)]
    #[schema(max_length = 128)]
    pub name: Option<String>,
}

/// A new key, or a new secret for one. It is told this once: the host keeps only its hash.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyCreated {
    /// What clients send as `Authorization: Bearer <key>`.
    #[schema(example = "pf_live_2f7c2a4f9d0e4b7f8c0d5b1a3e6f7081c2d3e4f5a6b7c8d9")]
    pub key: String,
    #[serde(flatten)]
    pub view: KeyView,
}

/// What may be shown of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyView {
    pub id: KeyId,
    pub name: Option<String>,
    pub tier: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_at_ms: u64,
    /// When it was revoked; left out for one that is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at_ms: Option<u64>,
}

/// `GET /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyList {
    /// Oldest first, revoked ones included.
    pub keys: Vec<KeyView>,
}

/// Keys stay out of logs.
impl std::fmt::Debug for KeyCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyCreated").field("view", &self.view).finish_non_exhaustive()
    }
}
