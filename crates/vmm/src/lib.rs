//! One microVM in one process: boot, run, fork, freeze, thaw, save, load.
//!
//! The whole interface of this program is `podflare_wire::control`. It knows nothing of HTTP, tenants,
//! tiers or templates' names. Modules in reading order:

/// Serves the control channel: one phase after the other, one command after the other.
pub mod control;
/// The microVM as types: [`machine::Running`] and [`machine::Frozen`], and the ways between them.
mod machine;

mod boot;
#[expect(unsafe_code, reason = "clone3(2) has no safe wrapper that takes CLONE_PARENT and gives a pidfd")]
mod copy;
mod error;

/// The pages that a guest touches first, recorded once and brought in before each copy runs.
mod hot_pages;

/// A frozen machine in files, and back.
mod saved;

mod acpi;
mod kernel;
mod layout;
#[expect(unsafe_code, reason = "madvise(2) on memory that this module has mapped")]
mod memory;

mod devices;
mod kvm;
mod signals;

/// The tiny guest that tells whether this machine's KVM works.
pub mod probe;

pub use error::chain;
pub use kvm::vm::hold;
