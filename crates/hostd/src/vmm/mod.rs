//! What hostd asks of a machine, and the two that answer: processes with KVM, and a fake in memory.
//!
//! Commands are pipelined. Every method sends its command at once and returns a future of the answer;
//! a machine serves its commands in order. A copy can therefore be told to connect, copy itself again
//! and thaw before it exists, and no round trip is waited for.

mod ending;
pub mod fake;
pub mod process;
pub mod saved;

use crate::headroom::Disk;
use crate::pool::policy::Memory;
use futures_util::future::BoxFuture;
use podflare_wire::control::{BootConfig, PageRun};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

pub use ending::Ending;
pub use saved::{LoadSpec, SavedFiles, Unusable};

/// The answer to a command that has been sent.
pub type Pending<T> = BoxFuture<'static, Result<T, VmmError>>;

/// A byte stream to a guest.
pub trait GuestStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> GuestStream for S {}

/// Starts machines.
pub trait Vmm: Send + Sync + fmt::Debug {
    /// Boots a new machine. It runs when the answer comes, but its guest is far from ready.
    fn boot(&self, boot: &BootSpec) -> Result<(Arc<dyn Machine>, Pending<()>), VmmError>;

    /// Makes a frozen machine of files that one was saved into whole. Its files, and what it was booted with, must stay as
    /// they are for as long as it, or any copy of it, is there.
    fn load(&self, load: &LoadSpec) -> Result<(Arc<dyn Machine>, Pending<()>), VmmError>;

    /// Resolves when nothing is left of any machine, copies that were being made included.
    fn none_left(&self) -> BoxFuture<'static, ()>;

    /// The memory of the host that the machines are on; `None` if it is not known.
    fn memory(&self) -> Option<Memory>;

    /// The file system that the machines' disks grow on; `None` if it is not known.
    fn disk(&self) -> Option<Disk>;
}

/// What a machine boots from.
#[derive(Debug, Clone)]
pub struct BootSpec {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// An image file or a block device.
    pub rootfs: PathBuf,
    pub config: BootConfig,
}

/// One machine, running or frozen. It ends when it is told to or when its last handle is dropped.
pub trait Machine: Send + Sync + fmt::Debug {
    /// Copies the machine; a running one goes on after a short pause. The copy is frozen.
    fn fork(&self) -> Result<Fork, VmmError>;

    /// Makes a frozen machine run, its network card plugged into a TAP interface or into nothing. Streams from before
    /// are cut.
    fn thaw(&self, tap: Option<BorrowedFd<'_>>) -> Pending<ThawTimes>;

    /// As `thaw`, but slowly: the machine notes which pages of memory its guest touches, and can be neither
    /// copied nor frozen.
    fn thaw_recording(&self) -> Pending<ThawTimes>;

    /// The pages that the guest of a recording machine has touched.
    fn hot_pages(&self) -> Pending<Vec<PageRun>>;

    /// Has every copy of this frozen machine bring in these pages before it runs.
    fn set_hot_pages(&self, pages: Vec<PageRun>) -> Pending<()>;

    /// How much free memory the guest has reported to the host since it booted, in bytes. `None` if it does not report.
    fn reported_bytes(&self) -> Pending<Option<u64>>;

    /// Makes a running machine's root disk longer; its file system is the guest's to grow.
    fn grow_disk(&self, bytes: u64) -> Pending<()>;

    /// Stops a running machine until `thaw`.
    fn freeze(&self) -> Pending<()>;

    /// Writes a frozen machine into files that are empty: whole, or what differs from a base that was saved whole.
    fn save(&self, files: &SavedFiles, base: Option<&SavedFiles>) -> Pending<()>;

    /// Gives a frozen machine what was saved against it, or against what it is a copy of. The files must stay as they are,
    /// as in [`Vmm::load`].
    fn overlay(&self, files: &SavedFiles) -> Pending<()>;

    /// Opens a stream to a port of the guest, which carries bytes as soon as the machine runs and the
    /// guest accepts. It is closed if the guest refuses.
    fn connect(&self, port: u32) -> Result<Box<dyn GuestStream>, VmmError>;

    /// The end of the guest's console.
    fn console_tail(&self) -> Pending<Vec<u8>>;

    /// Resolves when the machine has ended, by itself or not.
    fn ended(&self) -> BoxFuture<'static, Arc<Ending>>;

    /// Ends the machine now. The future resolves when nothing is left of it; it need not be awaited.
    fn end(&self) -> BoxFuture<'static, ()>;
}

/// A copy, which takes commands at once, and the answer to the command that makes it.
#[expect(missing_debug_implementations, reason = "a pending answer has nothing to show")]
pub struct Fork {
    pub copy: Arc<dyn Machine>,
    pub done: Pending<ForkTimes>,
}

/// What a fork cost its source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ForkTimes {
    /// How long a running source stood still.
    pub pause: Duration,
    /// The part of the pause until all of its vCPUs stood.
    pub stop: Duration,
    /// The part of the pause that saved its state.
    pub save: Duration,
    /// The part of the pause that was fork(2).
    pub fork: Duration,
}

/// What it took to make a frozen machine run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThawTimes {
    /// Making a virtual machine over the memory.
    pub build: Duration,
    /// Setting its state and starting it.
    pub restore: Duration,
    /// The part of `restore` that brought in the hot pages.
    pub prefault: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error("Could not open {}", path.display())]
    OpenFile { path: PathBuf, source: std::io::Error },
    #[error("The root disk {} has {actual} bytes, which do not fit into the template's {limit}", path.display())]
    RootfsTooLarge { path: PathBuf, actual: u64, limit: u64 },
    #[error("Could not make a disk layer in {}", path.display())]
    CreateLayer { path: PathBuf, source: std::io::Error },
    #[error("Could not start {}", path.display())]
    StartProcess { path: PathBuf, source: std::io::Error },
    #[error("Could not make a channel or stream to a machine")]
    CreateChannel(#[source] std::io::Error),
    #[error("Could not send a command to a machine")]
    SendCommand(#[source] podflare_channel::ChannelError),
    #[error("The machine refused the command: {reason}")]
    Refused { reason: String },
    #[error("The saved files cannot be used")]
    Unusable(#[from] Unusable),
    #[error("The machine gave an answer that does not belong to the command")]
    WrongReply,
    #[error("The machine ended before it answered")]
    Ended,
}
