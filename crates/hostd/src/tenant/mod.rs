//! Who asks, and on whose behalf: the host's operator, or a key. What a key has is its own: to every other key it is not there.

mod keys;
pub mod quota;
mod secret;

use crate::tier::Tier;
use podflare_api::id::KeyId;
use quota::Quota;
use std::sync::Arc;

pub use keys::{AuthError, KeyError, Keys, KeysError, Known, Secret};

/// A handle; copies are the same tenant.
#[derive(Debug, Clone)]
pub struct Tenant(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    key: Option<KeyId>,
    tier: Option<Arc<Tier>>,
    sandboxes: Option<Arc<Quota>>,
}

impl Tenant {
    /// Whoever runs the host: sees everything, and has the host's own limits alone.
    pub fn operator() -> Tenant {
        Tenant(Arc::new(Inner { key: None, tier: None, sandboxes: None }))
    }

    /// Without a tier, a key has the host's own limits.
    fn of_key(key: KeyId, tier: Option<Arc<Tier>>) -> Tenant {
        let sandboxes = tier.as_ref().map(|tier| Quota::new(tier.sandboxes_max));
        Tenant(Arc::new(Inner { key: Some(key), tier, sandboxes }))
    }

    pub fn is_operator(&self) -> bool {
        self.0.key.is_none()
    }

    pub fn key(&self) -> Option<&KeyId> {
        self.0.key.as_ref()
    }

    pub fn tier(&self) -> Option<&Tier> {
        self.0.tier.as_deref()
    }

    /// Its sandboxes and checkpoints; `None` if the host alone limits them.
    pub fn sandboxes(&self) -> Option<&Arc<Quota>> {
        self.0.sandboxes.as_ref()
    }

    /// Whether something that is another's is there for this one.
    pub fn sees(&self, other: &Tenant) -> bool {
        self.is_operator() || self.0.key == other.0.key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_sees_what_is_its_own_and_the_operator_everything() {
        let [one, other] = [(); 2].map(|()| Tenant::of_key(KeyId::random(), None));
        let operator = Tenant::operator();
        assert!(one.sees(&one.clone()) && !one.sees(&other) && !one.sees(&operator));
        assert!(operator.sees(&one) && operator.sees(&operator));
    }
}
