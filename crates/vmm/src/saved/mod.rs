//! A frozen machine in files: *state*, *memory* and *disk*, three parts that belong together.
//!
//! ```text
//!   Frozen ──save──▶ state, memory, disk ──load──────▶ Frozen, in an empty process
//!                         │
//!                         └─(changes only)──overlay──▶ Frozen, over a copy of the base
//! ```
//!
//! A machine is saved whole, or as what differs from a *base*, which is one that was saved whole: a
//! template. What differs is found by comparing contents, so that it does not matter by which ways the
//! machine came from its base. Changes are always those against a whole base, however often a machine is
//! saved and taken up again.
//!
//! Each part has a magic, a version and lengths, and an index under one checksum that is always checked
//! ([`part`]). Memory and disk are runs of blocks with data behind the index ([`blocks`]), in chunks with
//! checksums of their own, which are checked only by who reads them whole: most of what changes have of
//! memory is mapped, and a disk is read in place. The state names the checksums of the other two.
//!
//! Files are hostile: nothing is used before it has been compared with the file's real length and the
//! machine's real size, and nothing is changed before everything has been looked at.

mod blocks;
mod disk;
mod memory;
mod part;
mod state;

pub(crate) use blocks::BlocksReader;
pub(crate) use memory::MappedPages;
pub(crate) use part::{Digest, Part};

use crate::devices::DeviceStateError;
use crate::devices::Devices;
use crate::devices::virtio::block::disk::{Disk, DiskError};
use crate::hot_pages::{HotPages, HotPagesError};
use crate::kvm::processor::ProcessorError;
use crate::kvm::vm::{KvmError, Platform};
use crate::machine::{Body, Frozen};
use crate::memory::MemoryError;
use podflare_wire::control::{Check, Fault, Loaded, Saved};
use podflare_wire::limits;
use state::SavedState;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

/// The three parts of a saved machine.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) state: File,
    pub(crate) memory: File,
    pub(crate) disk: File,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SavedError {
    #[error("Could not read or write the {part}")]
    File { part: Part, source: std::io::Error },
    #[error("The {part} is not a part of a saved machine")]
    NotAPart { part: Part },
    #[error("The {part} is of version {found}; this program reads version {}", part::VERSION)]
    Version { part: Part, found: u32 },
    #[error("The {part} has {actual} bytes and should have {expected}")]
    Length { part: Part, actual: u64, expected: u64 },
    #[error("The {part} is damaged: its index has another checksum than was written with it")]
    Index { part: Part },
    #[error("The {part} is damaged: chunk {chunk} of its data has another checksum than was written with it")]
    Chunk { part: Part, chunk: u64 },
    #[error("The {part} is malformed: {detail}")]
    Malformed { part: Part, detail: &'static str },
    #[error("The {part} is of another save than the state")]
    NotTogether { part: Part },
    #[error("The files hold what differs from a base, and need it")]
    NeedsBase,
    #[error("The files hold a whole machine, and go over no other")]
    NeedsNoBase,
    #[error("The files were saved against another machine than this one")]
    OtherBase,
    #[error("The saved machine has {saved}, this one has {here}")]
    Size { saved: String, here: String },
    #[error("A machine of {vcpus} vCPUs, {memory_mib} MiB and a disk of {disk_bytes} bytes is not possible")]
    Impossible { vcpus: u8, memory_mib: u32, disk_bytes: u64 },
    #[error("The saved machine was booted with a base disk of {saved} bytes, this one has {here}")]
    Image { saved: u64, here: u64 },
    #[error("The saved state is not one of such a machine")]
    Device(#[from] DeviceStateError),
    #[error("The saved list of hot pages is malformed")]
    HotPages(#[from] HotPagesError),
    #[error("Could not use the disk")]
    Disk(#[from] DiskError),
    #[error("The saved machine does not fit to this host's processor")]
    Processor(#[from] ProcessorError),
    #[error("Could not make guest memory")]
    Memory(#[from] MemoryError),
    #[error("Could not open KVM")]
    Platform(#[from] KvmError),
}

impl SavedError {
    pub(crate) fn fault(&self) -> Fault {
        match self {
            SavedError::NotAPart { .. } | SavedError::Version { .. } => Fault::Format,
            SavedError::Length { .. }
            | SavedError::Index { .. }
            | SavedError::Chunk { .. }
            | SavedError::Malformed { .. }
            | SavedError::Device(_)
            | SavedError::HotPages(_) => Fault::Damaged,
            SavedError::NotTogether { .. }
            | SavedError::NeedsBase
            | SavedError::NeedsNoBase
            | SavedError::OtherBase
            | SavedError::Image { .. }
            | SavedError::Disk(DiskError::BaseTooLong { .. }) => Fault::Foreign,
            SavedError::Size { .. }
            | SavedError::Impossible { .. }
            | SavedError::Disk(
                DiskError::Shorter { .. } | DiskError::NotLarger { .. } | DiskError::Unaligned { .. },
            ) => Fault::Size,
            SavedError::Processor(ProcessorError::TimeStampCounter { .. }) => Fault::TimeStampCounter,
            SavedError::Processor(_) => Fault::Processor,
            SavedError::File { .. }
            | SavedError::Disk(_)
            | SavedError::Memory(_)
            | SavedError::Platform(_) => Fault::Host,
        }
    }
}

/// What became of a machine that files could not be laid over.
#[derive(Debug)]
pub(crate) enum NotOverlaid {
    /// Nothing: it is as it was.
    Unchanged(SavedError),
    /// Its memory is partly the one and partly the other.
    Lost(SavedError),
}

/// Writes the machine: whole, or what differs from a base that was saved whole.
pub(crate) fn save(frozen: &mut Frozen, files: Files, base: Option<Files>) -> Result<Saved, SavedError> {
    let saving = Instant::now();
    let Frozen { body, state, .. } = &*frozen;
    let base = base.map(Opened::of).transpose()?;
    if let Some(base) = &base {
        base.check_is_whole()?;
        base.state.check_same_size(body)?;
        body.devices.with_disk(|disk| base.state.check_image(disk))?;
    }
    let (base_digest, base_memory, base_disk) = match base {
        Some(base) => (Some(base.digest), Some(base.memory), Some(base.disk)),
        None => (None, None, None),
    };
    let memory = memory::save(&body.memory, &body.mapped_pages, files.memory, base_memory)?;
    let disk = body.devices.with_disk(|disk| disk::save(disk, files.disk, base_disk))?;
    let saved = SavedState::of(body, state, base_digest, memory.digest, disk.digest);
    let state = part::write(files.state, Part::State, &saved)?;
    if base_digest.is_none() {
        frozen.origin = Some(state.digest);
    }
    Ok(Saved {
        state_bytes: state.bytes,
        memory_bytes: memory.bytes,
        disk_bytes: disk.bytes,
        save_us: micros(saving),
    })
}

/// What a whole machine is made of again.
#[derive(Debug)]
pub(crate) struct LoadFiles {
    pub(crate) saved: Files,
    pub(crate) disk_base: File,
    pub(crate) disk_layer: File,
}

/// Makes a machine that was saved whole.
pub(crate) fn load(files: LoadFiles, check: Check) -> Result<(Frozen, Loaded), SavedError> {
    let loading = Instant::now();
    let opened = Opened::of(files.saved)?;
    opened.check_is_whole()?;
    let Opened { state, digest, memory: pages, disk: blocks } = opened;
    state.check_possible()?;
    let mut platform = Platform::open()?;
    platform.check(&state.processor)?;
    let memory = crate::memory::map(state.memory_mib, state.huge_pages)?;
    memory::check(&memory, &pages)?;
    let mut disk = Disk::new(files.disk_base, files.disk_layer, state.disk_bytes)?;
    state.check_image(&disk)?;
    disk::check(&state, &blocks)?;
    let hot_pages = HotPages::within(&memory, state.hot_pages)?;
    check_content(check, &pages, &blocks)?;
    disk.overlay(&blocks)?;
    let devices = Devices::new(&memory, disk);
    devices.restore(state.devices)?;
    platform.show(&state.processor);
    let copied_pages = memory::fill(&memory, &pages)?;
    let body = Body {
        platform,
        memory,
        mapped_pages: MappedPages::default(),
        devices: Arc::new(devices),
        vcpus: state.vcpus,
        memory_mib: state.memory_mib,
        huge_pages: state.huge_pages,
        hot_pages,
    };
    let loaded = Loaded { mapped_runs: 0, copied_pages, load_us: micros(loading) };
    Ok((Frozen { body, state: state.machine, origin: Some(digest) }, loaded))
}

/// Lays what was saved as changes over the machine that it was saved against.
pub(crate) fn overlay(frozen: &mut Frozen, files: Files, check: Check) -> Result<Loaded, NotOverlaid> {
    let loading = Instant::now();
    let Opened { state, memory: pages, disk: blocks, .. } =
        checked_overlay(frozen, files, check).map_err(NotOverlaid::Unchanged)?;
    let body = &mut frozen.body;
    frozen.origin = None;
    body.devices
        .lengthen_disk(state.disk_bytes)
        .and_then(|()| body.devices.with_disk(|disk| disk.overlay(&blocks)))
        .map_err(|error| NotOverlaid::Lost(error.into()))?;
    body.devices.restore(state.devices).map_err(|error| NotOverlaid::Lost(error.into()))?;
    body.platform.show(&state.processor);
    let (mapped_runs, copied_pages) =
        memory::lay(&body.memory, &pages, &mut body.mapped_pages).map_err(NotOverlaid::Lost)?;
    frozen.state = state.machine;
    Ok(Loaded { mapped_runs, copied_pages, load_us: micros(loading) })
}

/// Everything that can be found out before the machine is changed.
fn checked_overlay(frozen: &Frozen, files: Files, check: Check) -> Result<Opened, SavedError> {
    let body = &frozen.body;
    let opened = Opened::of(files)?;
    match opened.state.base {
        None => return Err(SavedError::NeedsNoBase),
        base if base != frozen.origin => return Err(SavedError::OtherBase),
        Some(_) => {}
    }
    opened.state.check_same_size(body)?;
    opened.state.check_possible()?;
    body.platform.check(&opened.state.processor)?;
    memory::check(&body.memory, &opened.memory)?;
    body.devices.with_disk(|disk| {
        opened.state.check_image(disk)?;
        Ok::<(), SavedError>(disk.check_lay_over(opened.state.disk_bytes)?)
    })?;
    disk::check(&opened.state, &opened.disk)?;
    body.devices.check(&opened.state.devices)?;
    check_content(check, &opened.memory, &opened.disk)?;
    Ok(opened)
}

/// Three files whose indexes are whole and that belong together.
#[derive(Debug)]
struct Opened {
    state: SavedState,
    digest: Digest,
    memory: BlocksReader,
    disk: BlocksReader,
}

impl Opened {
    fn of(files: Files) -> Result<Opened, SavedError> {
        let (state, digest) = part::read::<SavedState>(files.state, Part::State)?;
        let memory = BlocksReader::open(files.memory, Part::Memory)?;
        let disk = BlocksReader::open(files.disk, Part::Disk)?;
        for (reader, expected) in [(&memory, state.memory), (&disk, state.disk)] {
            if reader.digest() != expected {
                return Err(SavedError::NotTogether { part: reader.part() });
            }
        }
        Ok(Opened { state, digest, memory, disk })
    }

    fn check_is_whole(&self) -> Result<(), SavedError> {
        if self.state.base.is_some() { Err(SavedError::NeedsBase) } else { Ok(()) }
    }
}

fn check_content(check: Check, memory: &BlocksReader, disk: &BlocksReader) -> Result<(), SavedError> {
    match check {
        Check::Index => Ok(()),
        Check::Content => memory.verify().and_then(|()| disk.verify()),
    }
}

impl SavedState {
    fn check_same_size(&self, body: &Body) -> Result<(), SavedError> {
        let (saved, here) = ((self.vcpus, self.memory_mib), (body.vcpus, body.memory_mib));
        if saved != here {
            let told = |(vcpus, mib)| format!("{vcpus} vCPUs and {mib} MiB of memory");
            return Err(SavedError::Size { saved: told(saved), here: told(here) });
        }
        Ok(())
    }

    fn check_possible(&self) -> Result<(), SavedError> {
        let SavedState { vcpus, memory_mib, disk_bytes, .. } = *self;
        let possible = (1..=limits::VCPUS_MAX).contains(&vcpus)
            && (limits::MEMORY_MIB_MIN..=limits::MEMORY_MIB_MAX).contains(&memory_mib)
            && disk_bytes <= u64::from(limits::DISK_GIB_MAX) << 30;
        if !possible {
            return Err(SavedError::Impossible { vcpus, memory_mib, disk_bytes });
        }
        if !self.machine.is_of(vcpus) {
            return Err(SavedError::Malformed { part: Part::State, detail: "vCPUs or chips are missing" });
        }
        Ok(())
    }

    /// The base disk itself is hostd's to know; one of another length is certainly another one.
    fn check_image(&self, disk: &Disk) -> Result<(), SavedError> {
        let (saved, here) = (self.image_bytes, disk.base_bytes());
        if saved == here { Ok(()) } else { Err(SavedError::Image { saved, here }) }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
