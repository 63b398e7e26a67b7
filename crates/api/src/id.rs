//! Names of things, as clients see them: a prefix that says of what, and 32 random digits.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

const DIGITS: usize = 32;

/// A text that is no id of the kind that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("The id of a {what} is `{prefix}` and {DIGITS} lowercase hexadecimal digits")]
pub struct IdError {
    what: &'static str,
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$documentation:meta])* $name:ident, $what:literal, $prefix:literal, $pattern:literal, $example:literal) => {
        $(#[$documentation])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, pattern = $pattern, example = $example)]
        pub struct $name(String);

        impl $name {
            /// A new random id.
            pub fn random() -> $name {
                $name(random($prefix))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<$name, IdError> {
                let error = IdError { what: $what, prefix: $prefix };
                if is_id(text, $prefix) { Ok($name(text.to_owned())) } else { Err(error) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<$name, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A sandbox: `sbx_` and 32 lowercase hexadecimal digits.
    SandboxId,
    "sandbox",
    "sbx_",
    "^sbx_[0-9a-f]{32}$",
    "sbx_0f8fad5bd9cb469fa16570867728950e"
);

id!(
    /// A checkpoint: `ckp_` and 32 lowercase hexadecimal digits.
    CheckpointId,
    "checkpoint",
    "ckp_",
    "^ckp_[0-9a-f]{32}$",
    "ckp_7c9e6679742540de944be07fc1f90ae7"
);

id!(
    /// An execution: `exe_` and 32 lowercase hexadecimal digits.
    ExecId,
    "execution",
    "exe_",
    "^exe_[0-9a-f]{32}$",
    "exe_550e8400e29b41d4a716446655440000"
);

id!(
    /// A terminal: `pty_` and 32 lowercase hexadecimal digits.
    PtyId,
    "terminal",
    "pty_",
    "^pty_[0-9a-f]{32}$",
    "pty_9a7b330a4f5e4c7c8d1e2f3a4b5c6d7e"
);

id!(
    /// An API key, which is not the key itself: `key_` and 32 lowercase hexadecimal digits.
    KeyId,
    "key",
    "key_",
    "^key_[0-9a-f]{32}$",
    "key_2f7c2a4f9d0e4b7f8c0d5b1a3e6f7081"
);

id!(
    /// A webhook: `whk_` and 32 lowercase hexadecimal digits.
    WebhookId,
    "webhook",
    "whk_",
    "^whk_[0-9a-f]{32}$",
    "whk_3f333df690a44fda8dd39485d27cee36"
);

id!(
    /// A Space: `spc_` and 32 lowercase hexadecimal digits.
    SpaceId,
    "Space",
    "spc_",
    "^spc_[0-9a-f]{32}$",
    "spc_5f0c6f6d3b7e4a4f9a0b1c2d3e4f5061"
);

fn random(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}

fn is_id(text: &str, prefix: &str) -> bool {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.strip_prefix(prefix).is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(lower_hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_parses() {
        let id = SandboxId::random();
        assert_eq!(id.as_str().parse::<SandboxId>().unwrap(), id);
        let id = CheckpointId::random();
        assert_eq!(id.as_str().parse::<CheckpointId>().unwrap(), id);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "sbx_", "sbx_0F8FAD5BD9CB469FA16570867728950E", "sbx_../../etc/passwd", "sb_1"] {
            assert!(text.parse::<SandboxId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_id_of_one_thing_is_none_of_another() {
        let error = SandboxId::random().as_str().parse::<CheckpointId>().unwrap_err();
        assert_eq!(error.to_string(), "The id of a checkpoint is `ckp_` and 32 lowercase hexadecimal digits");
        assert!(CheckpointId::random().as_str().parse::<SandboxId>().is_err());
    }
}
