//! The daemon of one host: the HTTP API on one side, machines on the other.
//!
//! Policy is pure (`sandbox/state.rs`, `pool/policy.rs`); one task owns each sandbox; machines are behind
//! the [`vmm::Vmm`] trait and the kernel's network behind [`network::driver::Driver`], so all of it but `vmm/process`
//! and `network/linux` runs and is tested without KVM and without root. What outlives the daemon is in the [`store`]; whatever else
//! belongs to one that was killed ends by itself.

pub mod config;

pub mod app;
pub mod headroom;
pub mod http;
pub mod journal;
pub mod metrics;
pub mod network;
pub mod pool;
pub mod records;
pub mod sandbox;
pub mod store;
pub mod template;
pub mod tenant;
pub mod tier;
pub mod traces;
pub mod usage;
pub mod vmm;
pub mod webhook;

mod chain;
mod phases;
mod printable;
#[expect(unsafe_code, reason = "the runtime trusts its caller with the life of a registered descriptor")]
mod readiness;
pub mod slots;
pub mod space;

pub use app::run;
