//! One file for each command.

pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod events;
pub(crate) mod image;
pub(crate) mod keys;
pub(crate) mod ls;
pub(crate) mod run;
pub(crate) mod shell;
pub(crate) mod spaces;
pub(crate) mod status;
pub(crate) mod template;
pub(crate) mod top;
pub(crate) mod up;
