//! The vocabulary of the whole-system tests. They need a KVM that works and the programs built beside
//! them; `make test` runs them natively where it can, and inside the emulated host where it must.

/// The agent in a Linux guest, spoken to without hostd.
pub mod agent;
/// Loads for a Linux guest that notice when something is wrong with them.
pub mod busy_guest;
/// What virtual machines cost their host.
pub mod cost;
/// A guest of a few hundred bytes whose vCPUs watch each other count, for tests of one instant.
pub mod counters_guest;
/// A guest of a few hundred bytes that writes to its disk and reads again what it wrote.
pub mod disk_guest;
/// Percentiles of samples.
pub mod figures;
/// A hostd with its sandboxes, spoken to over HTTP.
pub mod host;
/// A host that is killed at random moments, and what must be there afterwards.
pub mod kills;
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
/// A machine in files.
pub mod saved;
mod second_vcpu;
/// A guest of a few bytes whose state is all over the processor, for tests of save and restore.
pub mod state_guest;
/// A guest of a few bytes, for tests of the VMM alone.
pub mod tiny_guest;
mod virtio_disk;
/// One VMM process, spoken to over its control channel.
pub mod vmm;
/// Waiting for a condition, with a deadline.
pub mod wait;
/// Servers that sandboxes could reach.
pub mod world;
