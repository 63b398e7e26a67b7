//! A network namespace without a name, and the one thread that is in it.
//!
//! It lives for as long as its thread, or anybody's socket or TAP interface in it: however hostd ends, the kernel takes
//! everything in it away with the last of its machines.

use super::super::driver::DriverError;
use futures_util::future::BoxFuture;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::Handle;
use std::fs::File;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use tokio::sync::{mpsc, oneshot};

type Job = Box<dyn FnOnce(Handle) -> BoxFuture<'static, ()> + Send>;

/// The thread ends with the last handle.
#[derive(Debug, Clone)]
pub(super) struct Namespace {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Namespace {
    /// Makes the namespace. The file names it for as long as it is open.
    pub(super) async fn new() -> io::Result<(Namespace, File)> {
        let (jobs, receiver) = mpsc::unbounded_channel();
        let (made, is_made) = oneshot::channel();
        std::thread::Builder::new().name("network".to_owned()).spawn(move || live(made, receiver))?;
        let file = is_made.await.map_err(|_| io::Error::other("its thread has ended"))??;
        Ok((Namespace { jobs }, file))
    }

    /// Runs something in the namespace, after what was asked for before.
    pub(super) async fn run<T, F>(
        &self,
        job: impl FnOnce(Handle) -> F + Send + 'static,
    ) -> Result<T, DriverError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, DriverError>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |handle| {
            Box::pin(async move {
                // Whoever asked may have gone.
                answer.send(job(handle).await).ok();
            })
        });
        self.jobs.send(job).map_err(|_| DriverError::Ended)?;
        answered.await.unwrap_or(Err(DriverError::Ended))
    }
}

fn live(made: oneshot::Sender<io::Result<File>>, jobs: mpsc::UnboundedReceiver<Job>) {
    let namespace = unshare(CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .and_then(|()| File::open("/proc/thread-self/ns/net"));
    let failed = namespace.is_err();
    if made.send(namespace).is_err() || failed {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(work(jobs)),
        Err(error) => tracing::error!(%error, "The thread of the sandboxes' network cannot work"),
    }
}

async fn work(mut jobs: mpsc::UnboundedReceiver<Job>) {
    // Opened here, and so in the namespace.
    let (connection, handle, _) = match rtnetlink::new_connection() {
        Ok(connection) => connection,
        Err(error) => {
            tracing::error!(%error, "The thread of the sandboxes' network cannot speak with the kernel");
            return;
        }
    };
    let connection = tokio::spawn(connection);
    while let Some(job) = jobs.recv().await {
        job(handle.clone()).await;
    }
    connection.abort();
}

/// Has nft(8) carry out a script, all of it or nothing, in the namespace of the calling thread.
pub(super) fn nft(script: &str) -> Result<(), DriverError> {
    run_nft(&["-f", "-"], script).map(drop)
}

/// Asks nft(8) for a list, as JSON.
pub(super) fn nft_list(what: &[&str]) -> Result<Vec<u8>, DriverError> {
    run_nft(&[&["-j", "list"], what].concat(), "")
}

fn run_nft(arguments: &[&str], script: &str) -> Result<Vec<u8>, DriverError> {
    let mut nft = Command::new("nft");
    nft.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    nft.env_clear().env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let mut child = nft.spawn().map_err(DriverError::RunNft)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has ended already says why.
        stdin.write_all(script.as_bytes()).ok();
    }
    let output = child.wait_with_output().map_err(DriverError::RunNft)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
    Err(DriverError::Nft { message })
}
