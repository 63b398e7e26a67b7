//! Keeps up the rules in the host's own network, which whoever sets its packet filter anew takes away with everything else
//! (`nft flush ruleset`, as a restart of the service nftables does). Without them sandboxes would reach the host itself.

use super::super::driver::DriverError;
use super::namespace::{nft, nft_list};
use crate::chain::chain;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use std::convert::Infallible;
use std::io;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The netlink group that hears of every change of the packet filter: `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const CHANGES: u32 = 7;

/// How often the rules are looked at if nothing is heard, and how long after something was: a change has many parts.
const PERIOD: Duration = Duration::from_secs(30);
const SETTLE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Guard {
    table: &'static str,
    script: String,
    /// As nft lists them when they are in place.
    expected: Vec<u8>,
}

impl Guard {
    /// Sets the rules, in the calling thread's network: a script that makes the table anew.
    pub(super) async fn set_up(table: &'static str, script: String) -> Result<Guard, DriverError> {
        tokio::task::spawn_blocking(move || {
            nft(&script)?;
            let expected = list(table)?;
            Ok(Guard { table, script, expected })
        })
        .await?
    }

    pub(super) async fn watch(&self) -> Infallible {
        let mut changes = match hear_changes() {
            Ok(changes) => Some(changes),
            Err(error) => {
                tracing::warn!(%error, "Changes of the host's packet filter are noticed late");
                None
            }
        };
        loop {
            match &mut changes {
                // Whatever is heard, or lost because too much was: the rules are looked at.
                Some(changes) => drop(timeout(PERIOD, changes.recv_from_full()).await),
                None => sleep(PERIOD).await,
            }
            sleep(SETTLE).await;
            if let Err(error) = self.restore().await {
                tracing::error!(error = %chain(&error), "Could not restore the rules that keep sandboxes from this host");
            }
        }
    }

    async fn restore(&self) -> Result<(), DriverError> {
        let (table, expected, script) = (self.table, self.expected.clone(), self.script.clone());
        tokio::task::spawn_blocking(move || {
            if list(table).is_ok_and(|listed| listed == expected) {
                return Ok(());
            }
            tracing::warn!(
                "Restoring the rules that keep sandboxes from this host: somebody has removed them"
            );
            nft(&script)
        })
        .await?
    }
}

fn list(table: &str) -> Result<Vec<u8>, DriverError> {
    nft_list(&["table", "ip", table]).map(without_handles)
}

/// The kernel numbers whatever is made, and what is made anew gets other numbers.
fn without_handles(listing: Vec<u8>) -> Vec<u8> {
    fn strip(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(fields) => {
                fields.remove("handle");
                fields.values_mut().for_each(strip);
            }
            serde_json::Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let Ok(mut value) = serde_json::from_slice(&listing) else { return listing };
    strip(&mut value);
    value.to_string().into_bytes()
}

fn hear_changes() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(CHANGES)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_were_made_anew_are_the_same_rules() {
        let listing = |handle: u32, policy: &str| {
            let chain = serde_json::json!({"chain": {"name": "input", "handle": handle, "policy": policy}});
            without_handles(serde_json::json!({"nftables": [chain]}).to_string().into_bytes())
        };
        assert_eq!(listing(1, "drop"), listing(9, "drop"));
        assert_ne!(listing(1, "drop"), listing(1, "accept"));
    }
}
