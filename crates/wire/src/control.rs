//! hostd ↔ VMM: one `SOCK_SEQPACKET` socket per VMM process, one message a packet, descriptors beside it.
//!
//! hostd sends a [`Command`] and the VMM answers each with one [`Reply`], in order. In between the VMM
//! may send an [`Event`]. A VMM whose control socket is closed by the other side ends itself, so
//! nothing outlives hostd.
//!
//! ```text
//!            Boot                     Freeze
//!   Empty ─────────▶ Running ───────────────────▶ Frozen ◀───┐
//!     │                │  ▲                        │  │  │   │ Save, Overlay
//!     │           Fork │  └────────── Thaw ────────┘  │  └───┘
//!     │                ▼                              │ Fork
//!     │          a Frozen copy                        ▼
//!     └──────────────── Load ───────────────▶   a Frozen copy
//! ```
//!
//! A copy is a process of its own, made by fork(2), with its own control socket. hostd may write the
//! copy's first commands (`Connect`, `Thaw`) to that socket before the copy exists. The copy's first
//! message there is [`Event::Copied`].

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Boots a new microVM. Only as the first command of a VMM that was started empty.
    /// Descriptors: kernel image, initramfs, base disk (read only), disk layer (empty, read and write).
    Boot(BootConfig),
    /// Copies the microVM, running or frozen. A running one is paused while it is copied and goes on.
    /// The copy is frozen. Descriptors: the copy's control socket, the copy's disk layer (empty).
    Fork,
    /// Makes a frozen microVM run. Everything that was connected to it before the fork is reset. Descriptor,
    /// unless the microVM is to have no network: a TAP interface of its own, with virtio headers of 12 bytes.
    Thaw,
    /// Like `Thaw`, but slowly: it notes which pages of memory the guest touches, for `ReadHotPages`. The
    /// microVM can be neither forked nor frozen any more, and ends if it fails after it was allowed to record.
    ThawRecording,
    /// Asks a recording microVM which pages have been touched since its thaw.
    ReadHotPages,
    /// Gives a frozen microVM the pages that its copies touch first. From now on each copy gets them all
    /// before it runs, instead of one page fault after the other.
    SetHotPages(Vec<PageRun>),
    /// Stops a running microVM for good until `Thaw`; only memory and state stay.
    Freeze,
    /// Writes a frozen microVM into files; it stays as it is. Descriptors: the three parts to be written (state,
    /// memory, disk; empty, read and write), then, for [`Extent::Changes`], those of the base. They are complete
    /// when the answer comes, and not yet synced to the host's disk.
    Save(Extent),
    /// Makes a frozen microVM of files that were saved whole, as the first command of an empty VMM. Descriptors: state,
    /// memory, disk, the base disk that it was booted with (read only), disk layer (empty, read and write).
    /// Nobody may ever write to the files again: their pages are the guest's memory.
    Load(Check),
    /// Lays saved changes over a frozen microVM, which must be what they were saved against, or a copy of it that
    /// has never run. Streams that wait to be connected are cut. Descriptors: state, memory, disk; what `Load` says of
    /// them is true here, too. A microVM that it failed for halfway ends.
    Overlay(Check),
    /// Connects a stream to a vsock port of the guest, as soon as it runs. Descriptor: the stream's
    /// other end. The stream is closed when the guest refuses or resets it.
    Connect { port: u32 },
    /// Makes the root disk of a running microVM longer and tells its driver; the file system in it is the guest's to
    /// grow. As many bytes as in `BootConfig::disk_bytes`, and never less than it has.
    GrowDisk { bytes: u64 },
    /// Asks what the microVM is made of and what it has used so far.
    Inspect,
    /// Asks for the end of the guest's console.
    ReadConsole,
}

/// What a microVM is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// `1..=limits::VCPUS_MAX`.
    pub vcpus: u8,
    /// `limits::MEMORY_MIB_MIN..=limits::MEMORY_MIB_MAX`.
    pub memory_mib: u32,
    /// Size of the root disk as the guest sees it, in bytes; at least the base image's size, a multiple
    /// of 4,096, and at most `limits::DISK_GIB_MAX`.
    pub disk_bytes: u64,
    /// The guest kernel's command line.
    pub command_line: String,
    /// Back guest memory with transparent huge pages.
    pub huge_pages: bool,
}

/// How much of a microVM is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    Whole,
    /// What differs from a base that was saved whole.
    Changes,
}

/// What is read of saved files before they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// All but the content of memory and disk, of which only what has to be there is read.
    Index,
    /// All of it, against its checksums.
    Content,
}

/// Pages of guest memory that follow each other, all written or all only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// The first page's guest-physical address over 4,096.
    pub first: u64,
    /// Pages, at least 1.
    pub count: u32,
    pub written: bool,
}

/// What a VMM sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    Reply(Reply),
    Event(Event),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The kernel has been loaded and its vCPUs run; the guest is far from ready.
    Booted,
    /// Descriptor: the copy's pidfd.
    Forked(Forked),
    Thawed(Thawed),
    Frozen {
        pause_us: u64,
    },
    Connecting,
    DiskGrown,
    Inspected(Inspection),
    Console {
        tail: Vec<u8>,
    },
    /// At most `limits::HOT_PAGE_RUNS_MAX`, by address.
    HotPages(Vec<PageRun>),
    HotPagesSet,
    Saved(Saved),
    Loaded(Loaded),
    Overlaid(Loaded),
    /// Saved files are of no use here, and nothing has changed.
    Unusable {
        fault: Fault,
        reason: String,
    },
    /// The command was not carried out and nothing has changed.
    Refused {
        reason: String,
    },
}

/// A copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forked {
    pub pid: u32,
    /// How long the source's vCPUs stood still; 0 for a frozen source.
    pub pause_us: u64,
    /// The part of the pause until all vCPUs stood still.
    pub stop_us: u64,
    /// The part of the pause that saved the machine's state.
    pub save_us: u64,
    /// The part of the pause that was fork(2).
    pub fork_us: u64,
}

/// A frozen microVM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thawed {
    /// Making a KVM VM over the memory.
    pub build_us: u64,
    /// Setting its state and starting its vCPUs.
    pub restore_us: u64,
    /// The part of `restore_us` that brought in the hot pages.
    pub prefault_us: u64,
}

/// A frozen microVM is in files. Lengths are those of the files, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    pub state_bytes: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub save_us: u64,
}

/// Saved files are a frozen microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Runs of pages that are mapped from the file.
    pub mapped_runs: u32,
    /// Pages that were read.
    pub copied_pages: u64,
    pub load_us: u64,
}

/// What is wrong with saved files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// They are of another kind or version than this VMM reads.
    Format,
    /// They are not as they were written.
    Damaged,
    /// They do not belong together, or not to this base.
    Foreign,
    /// The machine has another size than this one, or one that no machine has.
    Size,
    /// The guest was shown a processor that this host cannot show it.
    Processor,
    /// The guest was shown a time-stamp counter whose frequency this host cannot give it.
    TimeStampCounter,
    /// This host could not read or map them.
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    pub running: bool,
    pub memory_mib: u32,
    pub vcpus: u8,
    /// Blocks of the disk that this microVM has written since its own fork, in bytes.
    pub disk_layer_bytes: u64,
    /// Disk layers that are read, this microVM's own included.
    pub disk_layers: u32,
    /// Open vsock connections.
    pub connections: u32,
    /// All that the guest has ever written to its console, what it had before its forks included.
    pub console_bytes: u64,
    /// Free memory that the guest has reported since it booted, before its forks included. `None` if it does not
    /// report.
    pub reported_bytes: Option<u64>,
}

/// Something happened that no command asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A copy exists: its first message, on its own socket. Descriptor: its pidfd. The source's reply
    /// carries one too, but the source may end before it can send it.
    Copied,
    /// The guest is gone. The VMM ends after this message.
    Ended { reason: EndReason, console_tail: Vec<u8> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// The guest reset itself: a kernel panic, `reboot` or `poweroff`.
    Reset,
    /// KVM could not go on with a vCPU.
    VcpuFailed { detail: String },
    /// The VMM itself failed.
    Failed { detail: String },
}
