//! Who is told of events as they come.

use crate::id::{KeyId, WebhookId};
use serde::{Deserialize, Serialize};

/// The most webhooks of one key, and of the operator.
pub const WEBHOOKS_MAX: usize = 16;

/// The longest address of a webhook, in bytes.
pub const WEBHOOK_URL_LEN_MAX: usize = 2048;

/// The header that a delivery is signed in: `t=SECONDS,v1=HEX`, where HEX is the HMAC-SHA256, under the webhook's secret, of the
/// seconds, a dot, and the body.
pub const SIGNATURE_HEADER: &str = "podflare-signature";

/// The header that names a delivery: the same for each attempt.
pub const DELIVERY_HEADER: &str = "podflare-delivery";

/// `POST /v1/webhooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWebhook {
    /// `https://` or `http://`, at most `WEBHOOK_URL_LEN_MAX` bytes. For a key's webhook, one with a public address.
    pub url: String,
    /// Types of events to be told of, such as `sandbox.closed`; all if it is left out or empty.
    #[serde(default)]
    #[schema(max_items = 32)]
    pub events: Vec<String>,
}

/// A new webhook, and the secret that its deliveries are signed with, told this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WebhookCreated {
    #[schema(example = "whsec_9a7b330a4f5e4c7c8d1e2f3a4b5c6d7e")]
    pub secret: String,
    #[serde(flatten)]
    pub view: WebhookView,
}

/// Where events are told, and how far that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WebhookView {
    pub id: WebhookId,
    pub url: String,
    pub events: Vec<String>,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_at_ms: u64,
    /// The last event that has been told, or passed over.
    pub told_seq: u64,
    /// Attempts since then that have failed.
    pub failures: u32,
    /// Whose it is; left out for the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
}

/// `GET /v1/webhooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WebhookList {
    /// Oldest first.
    pub webhooks: Vec<WebhookView>,
}

/// Secrets stay out of logs.
impl std::fmt::Debug for WebhookCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookCreated").field("view", &self.view).finish_non_exhaustive()
    }
}
