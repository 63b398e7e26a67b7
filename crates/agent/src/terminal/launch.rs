//! Between fork and exec of a terminal's program: the agent itself, started anew, makes the session and the terminal its controlling
//! one, and becomes the program. So the image needs no setsid(1), and nothing between fork and exec needs `unsafe`.

use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::stdio::stdin;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The argument that makes the agent this.
pub(crate) const LAUNCH: &str = "launch";

/// This very program, whatever has become of its file.
pub(crate) const SELF: &str = "/proc/self/exe";

#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("There is no program to run")]
    Nothing,
    #[error("Could not make a session of its own")]
    Session(#[source] io::Error),
    #[error("{}: {source}", program.display())]
    Run { program: OsString, source: io::Error },
}

/// The exit code that shells give for a program that they do not find.
pub(crate) const EXIT_CODE_NOT_RUN: u8 = 127;

pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<Infallible, LaunchError> {
    let program = arguments.next().ok_or(LaunchError::Nothing)?;
    setsid().map_err(|errno| LaunchError::Session(errno.into()))?;
    ioctl_tiocsctty(stdin()).map_err(|errno| LaunchError::Session(errno.into()))?;
    let source = Command::new(&program).args(arguments).exec();
    Err(LaunchError::Run { program, source })
}
