//! The public HTTP contract: requests, answers, events and errors of `/v1`.
//!
//! Names and shapes follow the wire protocol of the published `podflare` SDK; fields that it does not
//! know are additions that it ignores.

pub mod capacity;
pub mod checkpoint;
pub mod error;
pub mod event;
pub mod exec;
pub mod file;
pub mod id;
pub mod key;
pub mod network;
pub mod openapi;
pub mod pty;
pub mod sandbox;
pub mod space;
pub mod template;
pub mod usage;
pub mod webhook;
