//! Machines as processes: `podflare-vmm serve` with its control channel as descriptor 0.
//!
//! The first process of a template is started here; all others are copies that VMMs make of
//! themselves, with hostd as their parent. A process whose channel ends ends itself, so hostd keeps no
//! record of processes and has nothing to look for when it starts.

mod child;
mod layer;
mod link;
mod memory;

use crate::headroom::Disk;
use crate::pool::policy::Memory;
use crate::printable::printable;
use crate::vmm::{
    BootSpec, Ending, Fork, ForkTimes, GuestStream, LoadSpec, Machine, Pending, SavedFiles, ThawTimes,
    Unusable, Vmm, VmmError,
};
use child::Child;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use link::{Link, Parting};
use podflare_channel::{Channel, ChannelError};
use podflare_wire::control::{Check, Command, Extent, PageRun, Reply};
use rustix::fs::statvfs;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

/// How long a VMM that is to end may take to answer what it was asked before. A copy whose pidfd has
/// not arrived cannot be reaped.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a VMM that has closed its channel may take to end before it is killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts VMM processes.
#[derive(Debug)]
pub struct ProcessVmm {
    program: PathBuf,
    home: Arc<Home>,
}

/// What all machines share.
#[derive(Debug)]
struct Home {
    /// Where disk layers are made.
    state_dir: PathBuf,
    /// Machines whose processes have not been reaped.
    machines: watch::Sender<usize>,
}

impl ProcessVmm {
    /// `program` is `podflare-vmm`; disk layers are made in `state_dir`, which must exist.
    pub fn new(program: PathBuf, state_dir: &Path) -> ProcessVmm {
        ProcessVmm { program, home: Home::new(state_dir) }
    }

    fn start(&self) -> Result<ProcessMachine, VmmError> {
        let start = |source| VmmError::StartProcess { path: self.program.clone(), source };
        let (ours, theirs) = Channel::pair().map_err(channel_error)?;
        let (machine, child) = ProcessMachine::new(ours, self.home.clone())?;
        // The environment stays here: it holds the API keys. A group of its own keeps a terminal's
        // Ctrl-C away from it, which is for hostd to act on.
        let mut process = std::process::Command::new(&self.program)
            .arg("serve")
            .env_clear()
            .process_group(0)
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(start)?;
        match pidfd_open(Pid::from_child(&process), PidfdFlags::empty()) {
            Ok(pidfd) => child.try_send(pidfd).ok(),
            Err(errno) => {
                process.kill().and_then(|()| process.wait()).map_err(start)?;
                return Err(start(errno.into()));
            }
        };
        Ok(machine)
    }
}

impl Vmm for ProcessVmm {
    fn boot(&self, boot: &BootSpec) -> Result<(Arc<dyn Machine>, Pending<()>), VmmError> {
        let kernel = open_file(&boot.kernel)?;
        let initramfs = open_file(&boot.initramfs)?;
        let mut rootfs = open_file(&boot.rootfs)?;
        let open_error = |source| VmmError::OpenFile { path: boot.rootfs.clone(), source };
        let actual = rootfs.seek(SeekFrom::End(0)).map_err(open_error)?;
        let limit = boot.config.disk_bytes;
        if actual > limit {
            return Err(VmmError::RootfsTooLarge { path: boot.rootfs.clone(), actual, limit });
        }
        let layer = layer::create(&self.home.state_dir)?;
        let machine = self.start()?;
        let descriptors = [kernel.as_fd(), initramfs.as_fd(), rootfs.as_fd(), layer.as_fd()];
        let booted = machine.ask(&Command::Boot(boot.config.clone()), &descriptors, |reply, _| {
            matches!(reply, Reply::Booted).then_some(())
        });
        Ok((Arc::new(machine), booted))
    }

    fn load(&self, load: &LoadSpec) -> Result<(Arc<dyn Machine>, Pending<()>), VmmError> {
        let rootfs = open_file(&load.rootfs)?;
        let layer = layer::create(&self.home.state_dir)?;
        let machine = self.start()?;
        let [state, memory, disk] = load.files.descriptors();
        let descriptors = [state, memory, disk, rootfs.as_fd(), layer.as_fd()];
        let loaded = machine.ask(&Command::Load(Check::Index), &descriptors, |reply, _| {
            matches!(reply, Reply::Loaded(_)).then_some(())
        });
        Ok((Arc::new(machine), loaded))
    }

    fn memory(&self) -> Option<Memory> {
        memory::memory()
    }

    fn disk(&self) -> Option<Disk> {
        let found = statvfs(&self.home.state_dir).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Some(Disk { total: bytes(found.f_blocks), free: bytes(found.f_bavail) })
    }

    fn none_left(&self) -> BoxFuture<'static, ()> {
        let mut machines = self.home.machines.subscribe();
        async move {
            // An error means that nobody can make a machine any more.
            machines.wait_for(|machines| *machines == 0).await.ok();
        }
        .boxed()
    }
}

impl Home {
    fn new(state_dir: &Path) -> Arc<Home> {
        Arc::new(Home { state_dir: state_dir.to_owned(), machines: watch::Sender::new(0) })
    }
}

fn open_file(path: &Path) -> Result<File, VmmError> {
    File::open(path).map_err(|source| VmmError::OpenFile { path: path.to_owned(), source })
}

fn channel_error(error: ChannelError) -> VmmError {
    match error {
        ChannelError::Os(errno) => VmmError::CreateChannel(errno.into()),
        other => VmmError::SendCommand(other),
    }
}

#[derive(Debug)]
struct ProcessMachine {
    link: Arc<Link>,
    home: Arc<Home>,
    stop: Arc<Notify>,
    life: watch::Receiver<Life>,
}

#[derive(Debug, Clone)]
enum Life {
    Alive,
    Ended(Arc<Ending>),
    /// The process has been reaped, too.
    Gone(Arc<Ending>),
}

impl ProcessMachine {
    /// A machine behind a channel, whose process follows when it is known, from whoever knows it first.
    fn new(channel: Channel, home: Arc<Home>) -> Result<(ProcessMachine, mpsc::Sender<OwnedFd>), VmmError> {
        let link = Arc::new(Link::new(channel).map_err(VmmError::CreateChannel)?);
        let stop = Arc::new(Notify::new());
        let (life_sender, life) = watch::channel(Life::Alive);
        let (introduce, child) = mpsc::channel(1);
        home.machines.send_modify(|machines| *machines += 1);
        let watch = watch_over(link.clone(), introduce.clone(), child, stop.clone(), life_sender);
        let watched_from = home.clone();
        tokio::spawn(async move {
            watch.await;
            watched_from.machines.send_modify(|machines| *machines -= 1);
        });
        Ok((ProcessMachine { link, home, stop, life }, introduce))
    }

    /// Sends a command; `take` picks the answer out of the right reply.
    fn ask<T: Send + 'static>(
        &self,
        command: &Command,
        descriptors: &[BorrowedFd<'_>],
        take: impl FnOnce(Reply, Vec<OwnedFd>) -> Option<T> + Send + 'static,
    ) -> Pending<T> {
        let (sender, receiver) = oneshot::channel();
        let answer = Box::new(move |reply, descriptors| {
            let answer = match reply {
                Reply::Refused { reason } => Err(VmmError::Refused { reason: printable(&reason) }),
                Reply::Unusable { fault, reason } => {
                    Err(Unusable { fault, reason: printable(&reason) }.into())
                }
                reply => take(reply, descriptors).ok_or(VmmError::WrongReply),
            };
            // Whoever asked may have gone.
            sender.send(answer).ok();
        });
        match self.link.send(command, descriptors, answer) {
            Ok(()) => async move { receiver.await.unwrap_or(Err(VmmError::Ended)) }.boxed(),
            Err(error) => ready(Err(error)).boxed(),
        }
    }
}

impl Machine for ProcessMachine {
    fn fork(&self) -> Result<Fork, VmmError> {
        let (ours, theirs) = Channel::pair().map_err(channel_error)?;
        let layer = layer::create(&self.home.state_dir)?;
        let (copy, child) = ProcessMachine::new(ours, self.home.clone())?;
        let done =
            self.ask(&Command::Fork, &[theirs.as_fd(), layer.as_fd()], move |reply, mut descriptors| {
                let Reply::Forked(times) = reply else { return None };
                // The copy may have been faster.
                child.try_send(descriptors.pop()?).ok();
                Some(ForkTimes {
                    pause: Duration::from_micros(times.pause_us),
                    stop: Duration::from_micros(times.stop_us),
                    save: Duration::from_micros(times.save_us),
                    fork: Duration::from_micros(times.fork_us),
                })
            });
        Ok(Fork { copy: Arc::new(copy), done })
    }

    fn thaw(&self, tap: Option<BorrowedFd<'_>>) -> Pending<ThawTimes> {
        self.ask(&Command::Thaw, tap.as_slice(), |reply, _| thaw_times(&reply))
    }

    fn thaw_recording(&self) -> Pending<ThawTimes> {
        self.ask(&Command::ThawRecording, &[], |reply, _| thaw_times(&reply))
    }

    fn hot_pages(&self) -> Pending<Vec<PageRun>> {
        self.ask(&Command::ReadHotPages, &[], |reply, _| match reply {
            Reply::HotPages(pages) => Some(pages),
            _ => None,
        })
    }

    fn set_hot_pages(&self, pages: Vec<PageRun>) -> Pending<()> {
        self.ask(&Command::SetHotPages(pages), &[], |reply, _| {
            matches!(reply, Reply::HotPagesSet).then_some(())
        })
    }

    fn reported_bytes(&self) -> Pending<Option<u64>> {
        self.ask(&Command::Inspect, &[], |reply, _| match reply {
            Reply::Inspected(inspection) => Some(inspection.reported_bytes),
            _ => None,
        })
    }

    fn grow_disk(&self, bytes: u64) -> Pending<()> {
        self.ask(&Command::GrowDisk { bytes }, &[], |reply, _| {
            matches!(reply, Reply::DiskGrown).then_some(())
        })
    }

    fn freeze(&self) -> Pending<()> {
        self.ask(&Command::Freeze, &[], |reply, _| matches!(reply, Reply::Frozen { .. }).then_some(()))
    }

    fn save(&self, files: &SavedFiles, base: Option<&SavedFiles>) -> Pending<()> {
        let extent = if base.is_some() { Extent::Changes } else { Extent::Whole };
        let mut descriptors = files.descriptors().to_vec();
        descriptors.extend(base.iter().flat_map(|base| base.descriptors()));
        self.ask(&Command::Save(extent), &descriptors, |reply, _| {
            matches!(reply, Reply::Saved(_)).then_some(())
        })
    }

    fn overlay(&self, files: &SavedFiles) -> Pending<()> {
        self.ask(&Command::Overlay(Check::Index), &files.descriptors(), |reply, _| {
            matches!(reply, Reply::Overlaid(_)).then_some(())
        })
    }

    fn connect(&self, port: u32) -> Result<Box<dyn GuestStream>, VmmError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(VmmError::CreateChannel)?;
        let stream = to_tokio(ours).map_err(VmmError::CreateChannel)?;
        // The VMM polls its end. A refusal closes the stream, so its reader learns of it.
        theirs.set_nonblocking(true).map_err(VmmError::CreateChannel)?;
        self.link.send(&Command::Connect { port }, &[theirs.as_fd()], Box::new(|_, _| ()))?;
        Ok(Box::new(stream))
    }

    fn console_tail(&self) -> Pending<Vec<u8>> {
        self.ask(&Command::ReadConsole, &[], |reply, _| match reply {
            Reply::Console { tail } => Some(tail),
            _ => None,
        })
    }

    fn ended(&self) -> BoxFuture<'static, Arc<Ending>> {
        let mut life = self.life.clone();
        async move {
            let life = life.wait_for(|life| !matches!(life, Life::Alive)).await;
            match life.as_deref() {
                Ok(Life::Ended(ending) | Life::Gone(ending)) => ending.clone(),
                Ok(Life::Alive) | Err(_) => Arc::new(Ending::AskedFor),
            }
        }
        .boxed()
    }

    fn end(&self) -> BoxFuture<'static, ()> {
        self.stop.notify_one();
        let mut life = self.life.clone();
        async move {
            // An error means that the watcher has ended, and so has the process.
            life.wait_for(|life| matches!(life, Life::Gone(_))).await.ok();
        }
        .boxed()
    }
}

impl Drop for ProcessMachine {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

fn thaw_times(reply: &Reply) -> Option<ThawTimes> {
    let Reply::Thawed(times) = reply else { return None };
    Some(ThawTimes {
        build: Duration::from_micros(times.build_us),
        restore: Duration::from_micros(times.restore_us),
        prefault: Duration::from_micros(times.prefault_us),
    })
}

fn to_tokio(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Serves a machine's channel until it ends or is to end, then sees its process out.
async fn watch_over(
    link: Arc<Link>,
    introduce: mpsc::Sender<OwnedFd>,
    mut child: mpsc::Receiver<OwnedFd>,
    stop: Arc<Notify>,
    life: watch::Sender<Life>,
) {
    let (parting, pidfd) = tokio::select! {
        parting = link.serve(&introduce) => (Some(parting), None),
        () = stop.notified() => {
            link.refuse();
            (None, serve_last_answers(&link, &introduce, &mut child).await)
        }
    };
    link.close();
    // From now on only the source can make the process known.
    drop(introduce);
    let known = match parting {
        Some(Parting::Told { reason, console_tail }) => Some(Ending::Told { reason, console_tail }),
        Some(Parting::Broken { detail }) => Some(Ending::Lost { detail }),
        None => Some(Ending::AskedFor),
        Some(Parting::Closed) => None,
    }
    .map(Arc::new);
    if let Some(ending) = &known {
        life.send_replace(Life::Ended(ending.clone()));
    }
    let may_exit_by_itself = known.is_none();
    let pidfd = match pidfd {
        Some(pidfd) => Some(pidfd),
        None => child.recv().await,
    };
    let seen = see_out(pidfd, may_exit_by_itself).await;
    life.send_replace(Life::Gone(known.unwrap_or_else(|| Arc::new(seen))));
}

/// Serves until everything has been answered and the process is known.
async fn serve_last_answers(
    link: &Link,
    introduce: &mpsc::Sender<OwnedFd>,
    child: &mut mpsc::Receiver<OwnedFd>,
) -> Option<OwnedFd> {
    let answers = async {
        link.all_answered().await;
        child.recv().await
    };
    tokio::select! {
        _ = link.serve(introduce) => None,
        pidfd = answers => pidfd,
        () = tokio::time::sleep(LAST_ANSWERS_TIMEOUT) => None,
    }
}

/// Ends and reaps the process.
async fn see_out(pidfd: Option<OwnedFd>, may_exit_by_itself: bool) -> Ending {
    let lost = |detail: String| Ending::Lost { detail };
    let Some(pidfd) = pidfd else { return lost("it was never made".to_owned()) };
    let child = match Child::new(pidfd) {
        Ok(child) => child,
        Err(error) => {
            tracing::error!(%error, "A VMM sent a descriptor that is no child's pidfd");
            return lost("its process is unknown".to_owned());
        }
    };
    if may_exit_by_itself && let Ok(Ok(ending)) = timeout(EXIT_TIMEOUT, child.reap()).await {
        return ending;
    }
    child.kill();
    child.reap().await.unwrap_or_else(|error| lost(error.to_string()))
}

#[cfg(test)]
mod tests;
