//! The guest's one program: `/init` of the initramfs, then process 1, then the agent as its child.
//!
//! Which of the three it is stands in its arguments; each is described at the head of its module.
//! `serve --unix PATH [--home DIR]` runs the agent on a development machine, with its file server at `PATH.files` and its
//! terminals at `PATH.terminals`.

mod connection;
mod console;
#[expect(unsafe_code, reason = "two ioctls of /dev/urandom")]
mod entropy;
mod exec;
mod files;
mod init;
mod initramfs;
mod loopback;
mod netlink;
mod network;
mod output;
mod renew;
mod serve;
mod session;
mod terminal;

use anyhow::Context;
use connection::Listener;
use console::say;
use exec::Workplace;
use podflare_wire::files::FILES_PORT;
use podflare_wire::guest::AGENT_PORT;
use podflare_wire::terminal::TERMINAL_PORT;
use renew::{OwnKernel, SharedKernel};
use rustix::fs::Mode;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use terminal::launch;

fn main() -> ExitCode {
    let mut given = std::env::args_os().skip(1);
    if given.next().is_some_and(|first| first == launch::LAUNCH) {
        return launch(given);
    }
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let is_init = rustix::process::getpid().is_init();
    let result = match arguments[..] {
        ["init"] if is_init => init::run().context("Process 1 cannot go on"),
        // The kernel hands words of its command line that it does not know to /init.
        [..] if is_init => initramfs::run().context("The initramfs cannot start the root file system"),
        ["serve"] => serve(None, Path::new("/root")),
        ["serve", "--unix", socket] => serve(Some(Path::new(socket)), Path::new("/root")),
        ["serve", "--unix", socket, "--home", home] => serve(Some(Path::new(socket)), Path::new(home)),
        _ => Err(anyhow::anyhow!("Usage: podflare-agent serve [--unix PATH [--home DIR]]")),
    };
    let Err(error) = result;
    say(&format!("{error:#}"));
    if is_init {
        init::give_up();
    }
    ExitCode::FAILURE
}

/// Says what is wrong where the program would have said something: in its terminal.
fn launch(program: impl Iterator<Item = OsString>) -> ExitCode {
    let Err(error) = launch::run(program);
    // A terminal that is gone has no reader.
    writeln!(std::io::stderr(), "{error}").ok();
    ExitCode::from(launch::EXIT_CODE_NOT_RUN)
}

fn serve(socket: Option<&Path>, home: &Path) -> anyhow::Result<std::convert::Infallible> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the agent's own directory changes, which a relative path would then mean.
        let (files, terminals, listener) = match socket {
            // The agent's own comes last: who can connect to it finds them all.
            Some(socket) => (
                unix(&with_suffix(socket, ".files"))?,
                unix(&with_suffix(socket, ".terminals"))?,
                unix(socket)?,
            ),
            None => (vsock(FILES_PORT)?, vsock(TERMINAL_PORT)?, vsock(AGENT_PORT)?),
        };
        let workplace =
            Workplace::new(home).with_context(|| format!("Could not enter {}", home.display()))?;
        let workplace = Arc::new(workplace);
        tokio::spawn(files::serve(files, home.to_owned()));
        tokio::spawn(terminal::serve(terminals, workplace.clone()));
        Ok(match socket {
            Some(_) => serve::serve(&listener, SharedKernel, workplace).await?,
            None => serve::serve(&listener, OwnKernel::default(), workplace).await?,
        })
    })
}

fn unix(socket: &Path) -> anyhow::Result<Listener> {
    Listener::unix(socket).with_context(|| format!("Could not listen on {socket:?}"))
}

fn vsock(port: u32) -> anyhow::Result<Listener> {
    Listener::vsock(port).with_context(|| format!("Could not listen on vsock port {port}"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
