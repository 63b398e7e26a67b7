//! The internal protocols: hostd ↔ VMM ([`control`]), hostd ↔ guest agent ([`guest`]), its file server ([`files`]) and its
//! terminals ([`terminal`]).
//!
//! Types, encoding and limits only: nothing here does I/O. Whatever is decoded comes from a program
//! that may have been taken over, so every length is checked before anything is allocated for it.
//! hostd, VMM and agent of one version belong together; [`guest::PROTOCOL`] says which that is.

pub mod codec;
pub mod control;
pub mod files;
pub mod guest;
pub mod limits;
pub mod terminal;
