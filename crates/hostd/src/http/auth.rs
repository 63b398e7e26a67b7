//! Who may call: anyone with one of the host's keys, or anyone at all where authentication is off.

use super::error::ApiError;
use crate::app::App;
use crate::config::Authentication;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use std::hint::black_box;
use std::sync::Arc;

const SCHEME: &str = "Bearer ";

#[derive(Debug, thiserror::Error)]
pub(super) enum AuthError {
    #[error("missing Authorization: Bearer <key>")]
    Missing,
    #[error("invalid api key")]
    Invalid,
}

pub(super) async fn require_key(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Authentication::Keys(keys) = &app.settings.authentication {
        let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        check(header, keys)?;
    }
    Ok(next.run(request).await)
}

fn check(header: Option<&str>, keys: &[String]) -> Result<(), AuthError> {
    let (scheme, key) =
        header.and_then(|header| header.split_at_checked(SCHEME.len())).ok_or(AuthError::Missing)?;
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return Err(AuthError::Missing);
    }
    // Every key is compared, so that the time tells nothing about which one was nearly right.
    let known = keys.iter().fold(false, |known, candidate| known | equal(candidate, key.trim()));
    if known { Ok(()) } else { Err(AuthError::Invalid) }
}

/// Compares in a time that depends on the length alone.
fn equal(one: &str, other: &str) -> bool {
    let difference =
        one.bytes().zip(other.bytes()).fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    one.len() == other.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_key_is_let_in() {
        let keys = ["pf_live_one".to_owned(), "pf_live_two".to_owned()];
        assert!(check(Some("Bearer pf_live_two"), &keys).is_ok());
        assert!(check(Some("bearer pf_live_one"), &keys).is_ok());
        for wrong in ["Bearer pf_live_on", "Bearer pf_live_onee", "Bearer ", "Bearer pf_live_three"] {
            assert!(matches!(check(Some(wrong), &keys), Err(AuthError::Invalid)), "{wrong}");
        }
        for missing in [None, Some("Basic pf_live_one"), Some(""), Some("pf_live_one"), Some("ééééé")] {
            assert!(matches!(check(missing, &keys), Err(AuthError::Missing)), "{missing:?}");
        }
    }
}
