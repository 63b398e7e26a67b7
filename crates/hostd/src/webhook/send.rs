//! One delivery over HTTP. A key's webhook leads to public addresses only: its owner must not reach what this host does.

use super::signature::sign;
use crate::network::egress::{NEVER, is_private};
use podflare_api::webhook::{DELIVERY_HEADER, SIGNATURE_HEADER};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// How long a delivery may take.
const TIMEOUT: Duration = Duration::from_secs(15);

const USER_AGENT: &str = concat!("podflare/", env!("CARGO_PKG_VERSION"));

/// What is to be delivered.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub(super) url: String,
    pub(super) secret: String,
    /// The same for each attempt.
    pub(super) name: String,
    pub(super) body: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("It could not be reached")]
    Reach(#[source] Box<ureq::Error>),
    #[error("It answered {status}")]
    Refused { status: u16 },
}

/// Sends deliveries. Copies share connections.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    anywhere: Agent,
    in_public: Agent,
}

impl Sender {
    pub(super) fn new() -> Sender {
        let config = || {
            // What a webhook says of elsewhere is not followed, and a proxy would hide where it leads.
            Agent::config_builder()
                .timeout_global(Some(TIMEOUT))
                .max_redirects(0)
                .max_redirects_will_error(false)
                .http_status_as_error(false)
                .proxy(None)
                .user_agent(USER_AGENT)
                .build()
        };
        Sender {
            anywhere: config().into(),
            in_public: Agent::with_parts(config(), DefaultConnector::default(), PublicOnly::default()),
        }
    }

    /// Blocks. `at` is in seconds since 1970-01-01 UTC.
    pub(super) fn send(&self, delivery: &Delivery, may_go_anywhere: bool, at: u64) -> Result<(), SendError> {
        let agent = if may_go_anywhere { &self.anywhere } else { &self.in_public };
        let request = agent
            .post(&delivery.url)
            .header("content-type", "application/json")
            .header(SIGNATURE_HEADER, sign(&delivery.secret, at, &delivery.body))
            .header(DELIVERY_HEADER, &delivery.name);
        let answer = request.send(&delivery.body[..]).map_err(|error| SendError::Reach(Box::new(error)))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(SendError::Refused { status: status.as_u16() }),
        }
    }
}

/// Leaves out addresses that are somebody's own.
#[derive(Debug, Default)]
struct PublicOnly(DefaultResolver);

impl Resolver for PublicOnly {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut public = self.empty();
        for address in self.0.resolve(uri, config, timeout)?.iter().filter(|address| is_public(address.ip()))
        {
            public.push(*address);
        }
        if public.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(public) }
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !is_private(address) && !NEVER.iter().any(|never| never.contains(address)),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// Global unicast, but for what has an IPv4 address within it or is for documents.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let is_global = first & 0xe000 == 0x2000;
    let is_translated = first == 0x2002 || (first == 0x2001 && second < 0x0200);
    let is_documentation = first == 0x2001 && second == 0x0db8;
    is_global && !is_translated && !is_documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keys_webhook_leads_to_public_addresses_alone() {
        for public in ["203.0.113.7", "8.8.8.8", "2a00:1450::1", "2606:4700::1111"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for own in [
            "127.0.0.1",
            "10.0.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001:0:1::",
            "ff02::1",
            "2001:db8::1",
        ] {
            assert!(!is_public(own.parse().unwrap()), "{own}");
        }
    }

    #[test]
    fn a_name_of_this_machine_is_found_by_nobody_but_the_operator() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let delivery = Delivery {
            url: format!("http://localhost:{}/", listener.local_addr().unwrap().port()),
            secret: "s".into(),
            name: "n".into(),
            body: b"{}".to_vec(),
        };
        let error = Sender::new().send(&delivery, false, 1).unwrap_err();
        assert!(matches!(error, SendError::Reach(_)), "{error}");
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
    }
}
