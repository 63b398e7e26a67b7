//! What sandboxes are copies of: machines that were booted once, settled, frozen, and rested.
//!
//! ```text
//!   definition  what a template boots from: the host's image, or a folder that a builder has made
//!   variant     a definition in one size, its machine once that has booted, and its pool
//!   kept        a variant's machine on the disk, so that the next start of the host need not boot it
//!   shelf       all definitions, and the variants that are there: `default` always, others as they are used
//! ```
//!
//! A create that wants what is not there puts a new variant on the shelf and waits for it with all others that want it.

pub mod boot;
pub mod definition;
pub(crate) mod folder;
pub mod guest_settings;
pub mod keep;
pub mod kept;
pub mod shelf;
pub mod size;
pub mod take;
pub mod variant;

mod policy;
mod rest;

use crate::sandbox::agent::GuestIdentity;
use crate::space::base::Origin;
use crate::vmm::Machine;
use std::sync::Arc;

pub use definition::Definition;
pub use podflare_api::template::DEFAULT;
pub use variant::Availability;

/// What every copy of a template is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    pub template: String,
    pub vcpus: u8,
    pub memory_mib: u32,
    pub disk_gib: u32,
}

/// A frozen machine, ready to be copied.
#[derive(Debug)]
pub struct Template {
    pub shape: Arc<Shape>,
    /// What its guest took itself for.
    pub identity: GuestIdentity,
    pub machine: Arc<dyn Machine>,
    pub origin: Arc<Origin>,
    /// How many pages each copy brings in before it runs.
    pub hot_pages: u64,
    /// Its guest has done what it does after every start, so that no copy has to.
    pub rested: bool,
}
