//! The guest's one program: `/init` of the initramfs, then process 1, then the agent as its child.
//!
//! Which of the three it is stands in its arguments; each is described at the head of its module.
//! `serve --unix PATH [--home DIR]` runs the agent on a development machine, with its terminals at `PATH.terminals`.

mod connection;
mod console;
#[expect(unsafe_code, reason = "two ioctls of /dev/urandom")]
mod entropy;
mod exec;
mod init;
mod initramfs;
mod loopback;
mod output;
mod renew;
mod serve;
mod session;
mod terminal;

use anyhow::Context;
use connection::Listener;
use console::say;
use exec::Workplace;
use podflare_wire::guest::AGENT_PORT;
use podflare_wire::terminal::TERMINAL_PORT;
use renew::{OwnKernel, SharedKernel};
use rustix::fs::Mode;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
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

fn serve(socket: Option<&Path>, home: &Path) -> anyhow::Result<std::convert::Infallible> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the agent's own directory changes, which a relative path would then mean.
        let (terminals, listener) = match socket {
            Some(socket) => {
                let listen = |path: &Path| {
                    Listener::unix(path).with_context(|| format!("Could not listen on {path:?}"))
                };
                let mut terminals = socket.as_os_str().to_owned();
                terminals.push(".terminals");
                (listen(Path::new(&terminals))?, listen(socket)?)
            }
            None => {
                let listen = |port| Listener::vsock(port).context("Could not listen on vsock");
                (listen(TERMINAL_PORT)?, listen(AGENT_PORT)?)
            }
        };
        let workplace =
            Workplace::new(home).with_context(|| format!("Could not enter {}", home.display()))?;
        let workplace = Arc::new(workplace);
        tokio::spawn(terminal::serve(terminals, workplace.clone()));
        Ok(match socket {
            Some(_) => serve::serve(&listener, SharedKernel, workplace).await?,
            None => serve::serve(&listener, OwnKernel, workplace).await?,
        })
    })
}
