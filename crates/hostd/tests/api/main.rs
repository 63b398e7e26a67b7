//! The HTTP API end to end, on machines in memory: one file per behaviour.

#![cfg(test)]

mod checkpoint;
mod connection;
mod create;
mod events;
mod exec;
mod execs;
mod files;
mod fork;
mod host;
mod http;
mod kept;
mod merge;
mod metrics;
mod network;
mod ping;
mod pool;
mod pty;
mod restore;
mod run;
mod spaces;
mod templates;
mod tenants;
mod traces;
mod usage;
mod webhooks;
