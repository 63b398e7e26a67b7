//! Signatures of deliveries, so that who is told knows by whom.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt::Write;

const SECRET_PREFIX: &str = "whsec_";
const SECRET_BYTES: usize = 24;

pub(super) fn make_secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{SECRET_PREFIX}{}", hex(&bytes)))
}

/// The header's value for a body that is sent now.
pub(super) fn sign(secret: &str, unix_seconds: u64, body: &[u8]) -> String {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key of any length");
    mac.update(format!("{unix_seconds}.").as_bytes());
    mac.update(body);
    format!("t={unix_seconds},v1={}", hex(&mac.finalize().into_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_time_and_the_body_under_the_secret() {
        // By openssl: printf '1700000000.{}' | openssl dgst -sha256 -hmac key
        let expected = "t=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae";
        assert_eq!(sign("key", 1_700_000_000, b"{}"), expected);
    }

    #[test]
    fn secrets_are_random() {
        let [one, other] = [make_secret().unwrap(), make_secret().unwrap()];
        assert!(one.starts_with(SECRET_PREFIX) && one.len() == SECRET_PREFIX.len() + 2 * SECRET_BYTES);
        assert_ne!(one, other);
    }
}
