//! The file server: one connection of hostd for each operation, and a thread for as long as that takes.
//!
//! File work blocks, and the agent's loop must not. An idle server is one waiting task of that loop: it has no
//! thread and no buffer. In a copy of the machine all connections are reset, so that the threads that came with it end.

mod content;
mod draft;
mod entry;
#[expect(unsafe_code, reason = "the ioctl that grows an ext4 file system")]
mod grow;
mod list;
mod path;
mod peer;
mod tree;
mod watch;

use crate::connection::Listener;
use crate::console::say;
use path::resolve;
use peer::Peer;
use podflare_wire::files::{Answer, Failure, OPERATIONS_MAX, Request};
use rustix::io::Errno;
use std::convert::Infallible;
use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// The pause after a connection could not be accepted or served, for want of memory or descriptors most likely.
const PAUSE: Duration = Duration::from_secs(1);

/// Why an operation goes no further.
#[derive(Debug)]
enum Stop {
    /// hostd is to be told.
    Failed(Failure),
    /// There is nobody to tell, or no way to.
    Gone,
}

type Outcome<T> = Result<T, Stop>;

impl Stop {
    fn new(errno: Errno, context: impl Display) -> Stop {
        Stop::Failed(Failure { errno: errno.raw_os_error(), context: context.to_string() })
    }
}

/// Turns the error of a system call into what hostd is told, with what was tried.
trait Context<T> {
    fn context(self, context: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn context(self, context: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|errno| Stop::new(errno, context()))
    }
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| Stop::new(Errno::from_io_error(&error).unwrap_or(Errno::IO), context()))
    }
}

/// Serves file operations for as long as the agent lives.
pub(crate) async fn serve(listener: Listener, home: PathBuf) -> Infallible {
    let places = Arc::new(Semaphore::new(OPERATIONS_MAX));
    let home: Arc<Path> = home.into();
    loop {
        // The semaphore is never closed.
        let place = places.clone().acquire_owned().await.ok();
        let home = home.clone();
        let started = match listener.accept_blocking().await {
            Ok(stream) => std::thread::Builder::new().name("files".into()).spawn(move || {
                serve_one(stream, &home);
                drop(place);
            }),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            say(&format!("Could not serve a file operation: {error}"));
            sleep(PAUSE).await;
        }
    }
}

fn serve_one(stream: OwnedFd, home: &Path) {
    let Ok(mut peer) = Peer::new(stream) else { return };
    let Some(request) = peer.request() else { return };
    match operate(&mut peer, request, home) {
        Ok(()) | Err(Stop::Gone) => {}
        Err(Stop::Failed(failure)) => peer.fail(failure),
    }
}

fn operate(peer: &mut Peer, request: Request, home: &Path) -> Outcome<()> {
    let answer = match request {
        Request::Read { path, range } => return content::read(peer, &resolve(home, &path)?, range),
        Request::Write { path, mode } => Answer::Entry(content::write(peer, &resolve(home, &path)?, mode)?),
        Request::Stat { path } => Answer::Entry(entry::of(&resolve(home, &path)?)?),
        Request::List { path, depth } => return list::list(peer, &resolve(home, &path)?, depth),
        Request::MakeDirectory { path, mode } => {
            Answer::Entry(tree::make_directory(&resolve(home, &path)?, mode)?)
        }
        Request::Move { from, to } => {
            Answer::Entry(tree::rename(&resolve(home, &from)?, &resolve(home, &to)?)?)
        }
        Request::Remove { path, recursive } => {
            tree::remove(&resolve(home, &path)?, recursive)?;
            Answer::Done
        }
        Request::GrowRoot { bytes } => {
            grow::grow_root(bytes)?;
            Answer::Done
        }
        Request::Watch { path, recursive } => return watch::watch(peer, &resolve(home, &path)?, recursive),
    };
    peer.send(&answer)
}
