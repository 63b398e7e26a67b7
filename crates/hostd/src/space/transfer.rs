//! A Space as one file, on its way to another host or back: a tar archive of what it is, of its base, and of itself, in
//! this order. Nothing in it is sealed: it is its owner's.
//!
//! ```text
//!   manifest.json   base/state  base/memory  base/disk   state  memory  disk
//! ```
//!
//! The root disk image is not in it. A host takes only what was made of an image that it has a template of.

use super::base::{self, BaseError};
use super::folder::Draft;
use super::image::ImageDigest;
use super::parts::{NAMES, Parts};
use super::{FORMAT, FindError, Manifest, Reserved, TooMany};
use crate::app::App;
use crate::tenant::Tenant;
use crate::vmm::{SavedFiles, VmmError};
use axum::body::Bytes;
use futures_util::{Stream, StreamExt, stream};
use podflare_api::id::KeyId;
use podflare_api::space::SpaceView;
use podflare_wire::limits::{DISK_GIB_MAX, MEMORY_MIB_MAX};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use tar::{Archive, Builder, Entries, Header};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

const MANIFEST: &str = "manifest.json";
const MANIFEST_LEN_MAX: u64 = 1 << 20;
const BASE: &str = "base/";

/// The longest state, and what an index adds to memory and disk.
const INDEX_LEN_MAX: u64 = 512 << 20;

/// What is on its way between a connection and a thread.
const CHUNKS_MAX: usize = 8;
const CHUNK_LEN: usize = 256 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Exported {
    format: u32,
    space: Manifest,
    base: base::Manifest,
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("This Space cannot be exported")]
    Base(#[from] BaseError),
    #[error("Could not read the Space")]
    Files(#[from] io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("This is no exported Space: {0}")]
    Malformed(String),
    #[error("This Space was exported in format {found}; this program reads format {FORMAT}")]
    Format { found: u32 },
    #[error("The Space has {ram_mib} MiB of memory and {rootfs_gb} GiB of disk, more than it may have here")]
    TooLarge { ram_mib: u32, rootfs_gb: u32 },
    #[error("No template of this host has the root disk image that the Space was made of ({image})")]
    NoImage { image: ImageDigest },
    #[error("This host has another base by the name of {id}")]
    OtherBase { id: String },
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error("The Space cannot be resumed here, so it was not taken")]
    Base(#[from] BaseError),
    #[error("The Space cannot be resumed here, so it was not taken")]
    Overlay(#[source] VmmError),
    #[error("Could not read what was sent")]
    Body(#[source] io::Error),
    #[error("Could not write the Space")]
    Folder(#[source] io::Error),
    #[error("The host is shutting down")]
    ShuttingDown,
}

/// The archive, as it is read.
pub async fn export(
    app: &Arc<App>,
    id: &str,
) -> Result<impl Stream<Item = io::Result<Bytes>> + use<>, ExportError> {
    // Who deletes it meanwhile takes its name away, and not what is open.
    let space = app.spaces.claim(id, true)?;
    let base = space.base()?;
    let base_files = base.files().await?;
    let key = base::key_of(app.spaces.key.as_ref(), space.manifest.sealed_with.as_deref())?;
    let (folder, name) = (space.folder(), space.id.clone());
    let exported = Exported {
        format: FORMAT,
        space: Manifest { key: None, sealed_with: None, ..Manifest::clone(&space.manifest) },
        base: base.exported(),
    };
    let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
    let (opened, is_open) = tokio::sync::oneshot::channel();
    spawn_blocking(move || {
        let files = Parts { folder: &folder, name: name.as_str(), key: key.as_deref() }.open();
        let files = match files {
            Ok(files) => {
                opened.send(Ok(())).ok();
                files
            }
            Err(error) => return drop(opened.send(Err(error))),
        };
        if let Err(error) = write(&exported, &base_files, &files, ChunkWriter(sender.clone())) {
            // Whoever reads finds that it is cut.
            sender.blocking_send(Err(error)).ok();
        }
    });
    // An error means that the runtime ends.
    is_open.await.map_err(|_| BaseError::ShuttingDown)??;
    Ok(stream::unfold(chunks, async |mut chunks| Some((chunks.recv().await?, chunks))))
}

fn write(exported: &Exported, base: &SavedFiles, space: &SavedFiles, out: ChunkWriter) -> io::Result<()> {
    let mut tar = Builder::new(io::BufWriter::with_capacity(CHUNK_LEN, out));
    let manifest = serde_json::to_vec_pretty(exported)?;
    tar.append_data(&mut header(u64::try_from(manifest.len()).unwrap_or(0)), MANIFEST, manifest.as_slice())?;
    for (folder, files) in [(BASE, base), ("", space)] {
        for (name, file) in NAMES.into_iter().zip(files.parts()) {
            let mut file = FromStart { file, at: 0 };
            let len = file.file.metadata()?.len();
            tar.append_data(&mut header(len), format!("{folder}{name}"), &mut file)?;
        }
    }
    tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?.finish()
}

fn header(len: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(len);
    header.set_mode(0o600);
    header
}

/// Takes what another host has exported, or this one. It has another id here.
pub async fn import(
    app: &Arc<App>,
    tenant: &Tenant,
    body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Result<SpaceView, ImportError> {
    let reserved = app.spaces.reserve(tenant)?;
    let id = reserved.id.clone();
    let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
    let feed = tokio::spawn(async move {
        let mut body = std::pin::pin!(body);
        while let Some(chunk) = body.next().await {
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
    });
    let limits = Limits::of(tenant, app);
    let images: Vec<PathBuf> =
        app.templates.definitions().iter().map(|definition| definition.rootfs.clone()).collect();
    let (app_of_thread, owner) = (app.clone(), tenant.key().cloned());
    let read = spawn_blocking(move || {
        let archive = ChunkReader { chunks, rest: Bytes::new() };
        read(&app_of_thread, reserved, owner, archive, limits, &images)
    })
    .await;
    feed.abort();
    let taken = async {
        let (reserved, manifest) = read.map_err(|_| ImportError::ShuttingDown)??;
        match try_it(app, reserved.id.as_str(), &manifest).await {
            Ok(()) => Ok((reserved, manifest)),
            Err(error) => Err(error),
        }
    };
    let (reserved, manifest) = match taken.await {
        Ok(taken) => taken,
        Err(error) => {
            // With the base, if it came with it.
            app.spaces.remove_folder(id).await;
            return Err(error);
        }
    };
    let view = manifest.view.clone();
    reserved.fill(manifest);
    tracing::info!(space = %view.id, "Took a Space that was exported");
    Ok(view)
}

/// What a tenant's Space may be.
#[derive(Debug, Clone, Copy)]
struct Limits {
    ram_mib_max: u32,
    rootfs_gb_max: u32,
}

impl Limits {
    fn of(tenant: &Tenant, app: &App) -> Limits {
        let (ram_mib_max, rootfs_gb_max) = (app.settings.sizes.ram_mib_max, app.settings.disk_gib_max);
        match tenant.tier() {
            Some(tier) => Limits {
                ram_mib_max: ram_mib_max.min(tier.ram_mib_max),
                rootfs_gb_max: rootfs_gb_max.min(tier.rootfs_gb_max),
            },
            None => Limits { ram_mib_max, rootfs_gb_max },
        }
    }

    fn check(self, view: &SpaceView) -> Result<(), ImportError> {
        let SpaceView { ram_mib, rootfs_gb, .. } = *view;
        let fits = ram_mib <= self.ram_mib_max.min(MEMORY_MIB_MAX)
            && rootfs_gb <= self.rootfs_gb_max.min(DISK_GIB_MAX);
        if fits { Ok(()) } else { Err(ImportError::TooLarge { ram_mib, rootfs_gb }) }
    }
}

/// Reads the archive into folders, and publishes them.
fn read(
    app: &App,
    reserved: Reserved,
    owner: Option<KeyId>,
    archive: ChunkReader,
    limits: Limits,
    images: &[PathBuf],
) -> Result<(Reserved, Manifest), ImportError> {
    let mut archive = Archive::new(BufReader::with_capacity(CHUNK_LEN, archive));
    let mut entries = archive.entries().map_err(ImportError::Body)?;
    let Exported { format, space, base } = manifest(&mut entries)?;
    if format != FORMAT || space.format != FORMAT {
        return Err(ImportError::Format { found: format.max(space.format) });
    }
    limits.check(&space.view)?;
    let lens = lens_max(&space.view);
    let is_name =
        |id: &str| id.strip_prefix("base_").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
    if !is_name(&space.base) {
        return Err(ImportError::Malformed("its base has no name".to_owned()));
    }
    take_base(app, &space.base, base, &mut entries, lens, images)?;
    let key = app.spaces.key.clone();
    let draft = reserved.begin().map_err(ImportError::Folder)?;
    let parts = Parts { folder: draft.path(), name: reserved.id.as_str(), key: key.as_deref() };
    let files = parts.create().map_err(ImportError::Folder)?;
    take_parts(&mut entries, "", &files, lens)?;
    let bytes = parts.finish(&files).map_err(ImportError::Folder)?;
    let view = SpaceView { id: reserved.id.clone(), bytes, ..space.view };
    let sealed_with = key.as_ref().map(|key| key.id().to_owned());
    let manifest = Manifest { key: owner, sealed_with, view, ..space };
    draft.publish(&manifest).map_err(ImportError::Folder)?;
    Ok((reserved, manifest))
}

type Archived<'a> = Entries<'a, BufReader<ChunkReader>>;

fn manifest(entries: &mut Archived<'_>) -> Result<Exported, ImportError> {
    let entry = next(entries, MANIFEST, MANIFEST_LEN_MAX)?;
    serde_json::from_reader(entry).map_err(|error| match error.io_error_kind() {
        Some(kind) => ImportError::Body(kind.into()),
        None => ImportError::Malformed(format!("its manifest cannot be understood: {error}")),
    })
}

/// The base, unless it is there already.
fn take_base(
    app: &App,
    id: &str,
    manifest: base::Manifest,
    entries: &mut Archived<'_>,
    lens: [u64; 3],
    images: &[PathBuf],
) -> Result<(), ImportError> {
    if let Ok(there) = app.spaces.bases.find(id) {
        // Its state names the checksums of the rest.
        let files = there.files_blocking()?;
        let state = next(entries, "base/state", lens[0])?;
        if !is_same(state, FromStart { file: &files.parts()[0], at: 0 }).map_err(ImportError::Body)? {
            return Err(ImportError::OtherBase { id: id.to_owned() });
        }
        for (name, len) in [("base/memory", lens[1]), ("base/disk", lens[2])] {
            io::copy(&mut next(entries, name, len)?, &mut io::sink()).map_err(ImportError::Body)?;
        }
        return Ok(());
    }
    let image = manifest.image().clone();
    let has_it = |path: &&PathBuf| ImageDigest::read(path).is_ok_and(|found| found == image);
    let rootfs = images.iter().find(has_it).ok_or(ImportError::NoImage { image: image.clone() })?;
    let draft: Draft = app.spaces.bases.begin(id).map_err(ImportError::Folder)?;
    let key = app.spaces.key.clone();
    let parts = Parts { folder: draft.path(), name: id, key: key.as_deref() };
    let files = parts.create().map_err(ImportError::Folder)?;
    take_parts(entries, BASE, &files, lens)?;
    parts.finish(&files).map_err(ImportError::Folder)?;
    app.spaces.bases.adopt(id, draft, manifest, rootfs, key.as_deref()).map_err(ImportError::Folder)
}

fn take_parts(
    entries: &mut Archived<'_>,
    folder: &str,
    files: &SavedFiles,
    lens: [u64; 3],
) -> Result<(), ImportError> {
    for ((name, mut file), len) in NAMES.into_iter().zip(files.parts()).zip(lens) {
        let mut entry = next(entries, &format!("{folder}{name}"), len)?;
        let mut chunk = vec![0; CHUNK_LEN];
        loop {
            let count = entry.read(&mut chunk).map_err(ImportError::Body)?;
            if count == 0 {
                break;
            }
            file.write_all(&chunk[..count]).map_err(ImportError::Folder)?;
        }
    }
    Ok(())
}

/// State, memory and disk, at the most.
fn lens_max(view: &SpaceView) -> [u64; 3] {
    [
        INDEX_LEN_MAX,
        (u64::from(view.ram_mib) << 20) + INDEX_LEN_MAX,
        (u64::from(view.rootfs_gb) << 30) + INDEX_LEN_MAX,
    ]
}

/// The next file, which must be this one.
fn next<'a>(
    entries: &mut Archived<'a>,
    name: &str,
    len_max: u64,
) -> Result<tar::Entry<'a, BufReader<ChunkReader>>, ImportError> {
    let malformed = |words: &str| ImportError::Malformed(format!("{words} where {name} should be"));
    let entry = entries.next().ok_or_else(|| malformed("it ends"))?.map_err(ImportError::Body)?;
    if !entry.header().entry_type().is_file() || entry.path_bytes() != name.as_bytes() {
        return Err(malformed("there is something else"));
    }
    if entry.size() > len_max {
        return Err(malformed("there is something too long"));
    }
    Ok(entry)
}

fn is_same(one: impl Read, other: impl Read) -> io::Result<bool> {
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let len = left.len().min(right.len());
        if len == 0 {
            return Ok(left.is_empty() && right.is_empty());
        }
        if left[..len] != right[..len] {
            return Ok(false);
        }
        one.consume(len);
        other.consume(len);
    }
}

/// Whether it can be resumed, before anyone relies on it.
async fn try_it(app: &App, id: &str, manifest: &Manifest) -> Result<(), ImportError> {
    let base = app.spaces.bases.find(&manifest.base)?;
    let template = base.machine_to_copy(app.vmm()).await?;
    let folder = app.spaces.folders.path(id);
    let key = base::key_of(app.spaces.key.as_ref(), manifest.sealed_with.as_deref())?;
    let name = id.to_owned();
    let opened = spawn_blocking(move || Parts { folder: &folder, name: &name, key: key.as_deref() }.open());
    let files = opened.await.map_err(|_| ImportError::ShuttingDown)?.map_err(ImportError::Folder)?;
    let twin = template.fork().map_err(ImportError::Overlay)?;
    let overlaid = twin.copy.overlay(&files).await.map_err(ImportError::Overlay);
    drop(twin.copy.end());
    overlaid
}

/// A file that others read, too, from its start.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = std::os::unix::fs::FileExt::read_at(self.file, buffer, self.at)?;
        self.at += u64::try_from(count).unwrap_or(0);
        Ok(count)
    }
}

/// What a thread writes, for a client.
struct ChunkWriter(mpsc::Sender<io::Result<Bytes>>);

impl ChunkWriter {
    fn finish(mut self) -> io::Result<()> {
        self.flush()
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a client sends, for a thread.
struct ChunkReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk?,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}
