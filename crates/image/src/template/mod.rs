//! Templates that are declared: what goes on top of a base, built into a root disk of its own.
//!
//! ```text
//!   declaration ──▶ recipe (the base's base, and a stage for each declaration) ──▶ root directory ──▶ rootfs.ext4
//!   images/templates, FILE        digest of all that goes in: unchanged → instant       bubblewrap       + template.json
//! ```

pub mod build;
pub mod declaration;
pub mod recipe;
pub mod store;

mod chamber;
mod check;
mod root;
