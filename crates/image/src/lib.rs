//! Builds what boots: the kernel, initramfs and root disk of a microVM, and those of the emulated host.
//!
//! Every part is a directory in a cache, named by the digest of all that went into it and put there by
//! one rename. The distribution's own tools do the work; nothing here starts a virtual machine.

pub mod cache;
pub mod definition;
pub mod error;
pub mod guest;
pub mod host;
pub mod machine_settings;
pub mod oci;
pub mod template;
pub mod tool;

mod cpio;
mod debian;
mod disk;
mod kernel;
mod manifest;
mod modules;
mod programs;
mod vmlinux;

/// Is told of each long step, in a few words, when the step begins.
pub type Progress<'a> = &'a dyn Fn(&str);
