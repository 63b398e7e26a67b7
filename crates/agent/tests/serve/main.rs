//! The agent's behaviour as hostd sees it, with real processes, on this machine.

#![expect(clippy::unwrap_used, reason = "a step that fails in a test's set-up is the test's failure")]

mod bash;
mod client;
mod connection;
mod context;
mod files;
mod output;
mod python;
mod renewal;
mod terminal;
