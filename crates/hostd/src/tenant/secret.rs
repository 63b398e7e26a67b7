//! Keys as clients send them, and what the host keeps of them.

use podflare_api::id::KeyId;
use sha2::{Digest, Sha256};
use std::fmt;
use std::hint::black_box;

const PREFIX: &str = "pf_live_";
const ID_DIGITS: usize = 32;
const SECRET_BYTES: usize = 24;

/// The longest key that is looked at.
pub(super) const LEN_MAX: usize = 256;

/// SHA-256 of a whole key. A key's 192 random bits need no slower hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Hash([u8; 32]);

impl Hash {
    pub(super) fn of(key: &str) -> Hash {
        Hash(Sha256::digest(key.as_bytes()).into())
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Hash> {
        Some(Hash(bytes.try_into().ok()?))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Compares in a time that tells nothing about how much is right.
    pub(super) fn is(&self, other: &Hash) -> bool {
        let difference =
            self.0.iter().zip(other.0).fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
        difference == 0
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash")
    }
}

/// A new key with this id. The id stands in it, so that a key is found without comparing it with all others.
pub(super) fn make(id: &KeyId) -> Result<String, getrandom::Error> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret)?;
    let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{PREFIX}{}{digits}", digits_of(id)))
}

/// Which key it says to be.
pub(super) fn id_in(key: &str) -> Option<KeyId> {
    let digits = key.strip_prefix(PREFIX)?.get(..ID_DIGITS)?;
    format!("key_{digits}").parse().ok()
}

/// The id of a key that the settings have, which has none in it: the same at each start.
pub(super) fn id_of_setting(key: &str) -> KeyId {
    let digits: String = Hash::of(key).0[..ID_DIGITS / 2].iter().map(|byte| format!("{byte:02x}")).collect();
    // Hexadecimal digits make an id; a random one would only cost the owner what is frozen.
    format!("key_{digits}").parse().unwrap_or_else(|_| KeyId::random())
}

fn digits_of(id: &KeyId) -> &str {
    id.as_str().strip_prefix("key_").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_which_it_is_and_no_two_are_the_same() {
        let id = KeyId::random();
        let [one, other] = [make(&id).unwrap(), make(&id).unwrap()];
        assert_ne!(one, other);
        assert!(one.starts_with("pf_live_"));
        assert_eq!(id_in(&one), Some(id));
        for text in [
            "",
            "pf_live_",
            "pk_live_0123",
            "pf_live_ééééééééééééééééééé",
            "pf_live_../../../../../../../../../../..",
        ] {
            assert_eq!(id_in(text), None, "{text}");
        }
    }

    #[test]
    fn a_hash_is_its_keys_alone() {
        let hash = Hash::of("pf_live_a");
        assert!(hash.is(&Hash::from_bytes(Hash::of("pf_live_a").as_bytes()).unwrap()));
        assert!(!hash.is(&Hash::of("pf_live_b")));
        assert!(Hash::from_bytes(&[0; 31]).is_none());
    }
}
