//! Keeps web pages away from a host without keys.
//!
//! A browser on the same machine reaches loopback on behalf of any page. What gives a page away is the
//! `Origin` that browsers send with it; one whose own name has been made to point at this host
//! (DNS rebinding) is given away by that name in `Host`. Where there are keys, a page has none.

use super::error::ApiError;
use crate::app::App;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{HOST, HeaderName, ORIGIN};
use axum::http::uri::{Authority, Uri};
use axum::middleware::Next;
use axum::response::Response;
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OriginError {
    #[error(
        "without API keys this host answers to IP addresses and localhost only, not to the name in this \
         request; use its address, or set PODFLARE_API_KEYS"
    )]
    ForeignHost,
    #[error("without API keys this host does not answer web pages of other origins")]
    ForeignOrigin,
}

pub(super) async fn refuse_foreign_pages(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if app.keys.is_open() {
        check(request.uri(), request.headers())?;
    }
    Ok(next.run(request).await)
}

fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), OriginError> {
    let header = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    // HTTP/2 has the host in the URI.
    let host = uri.authority().map(Authority::as_str).or_else(|| header(HOST));
    if host.is_some_and(|host| !is_local_name(host)) {
        return Err(OriginError::ForeignHost);
    }
    let Some(origin) = header(ORIGIN) else { return Ok(()) };
    let own = origin
        .split_once("://")
        .zip(host)
        .is_some_and(|((_, origin), host)| origin.eq_ignore_ascii_case(host));
    if own { Ok(()) } else { Err(OriginError::ForeignOrigin) }
}

/// An address, or a name that resolvers do not ask anybody about.
fn is_local_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if host.contains('@') {
        return false;
    }
    let name = authority.host().to_ascii_lowercase();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
    address.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn check_request(
        uri: &'static str,
        host: Option<&'static str>,
        origin: Option<&'static str>,
    ) -> Result<(), OriginError> {
        let mut headers = HeaderMap::new();
        for (name, value) in [(HOST, host), (ORIGIN, origin)] {
            if let Some(value) = value {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
        check(&Uri::from_static(uri), &headers)
    }

    #[test]
    fn addresses_and_localhost_are_answered_and_no_other_name() {
        for host in
            ["127.0.0.1:7070", "127.0.0.1", "[::1]:7070", "192.168.1.9:7070", "LOCALHOST:7070", "a.localhost"]
        {
            assert_eq!(check_request("/", Some(host), None), Ok(()), "{host}");
            let uri = Uri::builder().scheme("http").authority(host).path_and_query("/").build().unwrap();
            assert_eq!(check(&uri, &HeaderMap::new()), Ok(()), "{host}");
        }
        assert_eq!(check_request("/", None, None), Ok(()));
        for host in
            ["evil.example:7070", "localhost.evil.example", "1.evil", "me@127.0.0.1", "", "notlocalhost"]
        {
            assert_eq!(check_request("/", Some(host), None), Err(OriginError::ForeignHost), "{host}");
        }
        let named = check_request("http://evil.example/", Some("127.0.0.1"), None);
        assert_eq!(named, Err(OriginError::ForeignHost));
    }

    #[test]
    fn a_page_is_answered_by_its_own_host_only() {
        let host = Some("127.0.0.1:7070");
        assert_eq!(check_request("/", host, Some("http://127.0.0.1:7070")), Ok(()));
        for origin in ["null", "http://evil.example", "http://127.0.0.1:8080", "http://localhost:7070", ""] {
            assert_eq!(check_request("/", host, Some(origin)), Err(OriginError::ForeignOrigin), "{origin}");
        }
        assert_eq!(check_request("/", None, Some("http://127.0.0.1:7070")), Err(OriginError::ForeignOrigin));
    }
}
