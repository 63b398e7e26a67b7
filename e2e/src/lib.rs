//! The vocabulary of the whole-system tests. They need a KVM that works and the programs built beside
//! them; `make test` runs them natively where it can, and inside the emulated host where it must.

/// The agent in a Linux guest, spoken to without hostd.
pub mod agent;
/// Percentiles of samples.
pub mod figures;
/// A hostd with its sandboxes, spoken to over HTTP.
pub mod host;
/// A stock Linux guest, booted without hostd.
pub mod linux_guest;
/// Where the programs and the guest image are.
pub mod place;
/// What processes there are, by the kernel's account.
pub mod processes;
/// A guest of a few bytes that keeps a device busy for ever.
pub mod refilling_guest;
/// Rounds of create, fork, merge and close, and what they leave behind.
pub mod rounds;
mod second_vcpu;
/// A guest of a few bytes whose state is all over the processor, for tests of save and restore.
pub mod state_guest;
/// A guest of a few bytes, for tests of the VMM alone.
pub mod tiny_guest;
/// One VMM process, spoken to over its control channel.
pub mod vmm;
/// Waiting for a condition, with a deadline.
pub mod wait;
