//! Names of things, as clients see them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A sandbox: `sbx_` and 32 lowercase hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^sbx_[0-9a-f]{32}$", example = "sbx_0f8fad5bd9cb469fa16570867728950e")]
pub struct SandboxId(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("A sandbox id is `sbx_` and 32 lowercase hexadecimal digits")]
pub struct SandboxIdError;

const PREFIX: &str = "sbx_";
const DIGITS: usize = 32;

impl SandboxId {
    /// A new random id.
    pub fn random() -> SandboxId {
        SandboxId(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = SandboxIdError;

    fn from_str(text: &str) -> Result<SandboxId, SandboxIdError> {
        let digits = text.strip_prefix(PREFIX).ok_or(SandboxIdError)?;
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() != DIGITS || !digits.bytes().all(lower_hex) {
            return Err(SandboxIdError);
        }
        Ok(SandboxId(text.to_owned()))
    }
}

impl TryFrom<String> for SandboxId {
    type Error = SandboxIdError;

    fn try_from(text: String) -> Result<SandboxId, SandboxIdError> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> String {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_parses() {
        let id = SandboxId::random();
        assert_eq!(id.as_str().parse::<SandboxId>().unwrap(), id);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "sbx_", "sbx_0F8FAD5BD9CB469FA16570867728950E", "sbx_../../etc/passwd", "sb_1"] {
            assert_eq!(text.parse::<SandboxId>(), Err(SandboxIdError), "{text:?}");
        }
    }
}
