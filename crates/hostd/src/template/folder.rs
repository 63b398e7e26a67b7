//! The folder in which a builder leaves templates: `NAME/template.json`, with a root disk beside it or behind a link.
//! What is there may be anything.

use super::DEFAULT;
use super::definition::Definition;
use super::size::SizeLimits;
use podflare_api::template::{MANIFEST_VERSION, TemplateManifest, is_name};
use podflare_wire::limits::{DISK_GIB_MAX, MEMORY_MIB_MAX, VCPUS_MAX};
use rustix::fs::{Mode, OFlags, open};
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

const MANIFEST: &str = "template.json";

/// The longest manifest, in bytes. It holds a template's start-up code.
const MANIFEST_LEN_MAX: u64 = 1 << 20;

/// The most templates that a host knows beside its default one, and entries of the folder that it looks at.
pub(super) const TEMPLATES_MAX: usize = 1000;

const DESCRIPTION_LEN_MAX: usize = 500;
const READY_TIMEOUT_MS: RangeInclusive<u32> = 1..=600_000;
const GIB: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("there is no {} on the host", path.display())]
    NoSuchFolder { path: PathBuf },
    #[error("{name:?} is no name of a template")]
    Name { name: String },
    #[error("could not read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is longer than {MANIFEST_LEN_MAX} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("{} cannot be understood", path.display())]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error("its template.json is of version {version}; this host reads version {MANIFEST_VERSION}")]
    Version { version: u32 },
    #[error("its template.json is of another template, {name:?}")]
    OfAnother { name: String },
    #[error("its `{key}` is {value}; it can be {} to {}", range.start(), range.end())]
    OutOfRange { key: &'static str, value: u64, range: RangeInclusive<u64> },
    #[error("its `{key}` cannot be used: {reason}")]
    Unusable { key: &'static str, reason: &'static str },
    #[error("its root disk {} is no file, or has more than the {disk_gib} GiB of `rootfs_gb`", path.display())]
    RootDisk { path: PathBuf, disk_gib: u32 },
}

/// The template of that name.
pub(super) fn read(folder: &Path, name: &str, sizes: SizeLimits) -> Result<Definition, FolderError> {
    if !is_name(name) || name == DEFAULT {
        return Err(FolderError::Name { name: name.to_owned() });
    }
    let path = folder.join(name).join(MANIFEST);
    let text = read_bounded(&path)?;
    let manifest: TemplateManifest = serde_json::from_slice(&text)
        .map_err(|source| FolderError::Malformed { path: path.clone(), source })?;
    check(name, &manifest)?;
    let rootfs = root_disk(&folder.join(name), &manifest)?;
    Ok(Definition::of_manifest(manifest, rootfs, sizes))
}

/// All that can be used. What cannot is told in the log, and left out.
pub(crate) fn read_all(folder: &Path, sizes: SizeLimits) -> Vec<Definition> {
    let names = match names_in(folder) {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!(%error, folder = %folder.display(), "Could not look for templates");
            return Vec::new();
        }
    };
    let found = names.into_iter().filter_map(|name| match read(folder, &name, sizes) {
        Ok(definition) => Some(definition),
        Err(error) => {
            let error = crate::chain::chain(&error);
            tracing::warn!(template = name, error, "A template cannot be used and is left out");
            None
        }
    });
    found.collect()
}

/// Names of folders that may be templates; others, such as those of a build in the making, are passed over.
fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for (index, entry) in entries.enumerate() {
        if index == TEMPLATES_MAX {
            tracing::warn!(folder = %folder.display(), "Only the first {TEMPLATES_MAX} entries are looked at");
            break;
        }
        names.extend(entry?.file_name().into_string().ok().filter(|name| is_name(name)));
    }
    names.sort();
    Ok(names)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, FolderError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => FolderError::NoSuchFolder { path: path.to_owned() },
        _ => FolderError::Read { path: path.to_owned(), source },
    };
    let mut text = Vec::new();
    open_file(path)
        .and_then(|file| file.take(MANIFEST_LEN_MAX + 1).read_to_end(&mut text))
        .map_err(failed)?;
    if text.len() as u64 > MANIFEST_LEN_MAX {
        return Err(FolderError::TooLong { path: path.to_owned() });
    }
    Ok(text)
}

/// Without waiting for anybody, should it be a pipe.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(File::from(open(path, flags, Mode::empty())?))
}

fn check(name: &str, manifest: &TemplateManifest) -> Result<(), FolderError> {
    let in_range = |key, value: u32, range: RangeInclusive<u32>| match range.contains(&value) {
        true => Ok(()),
        false => Err(FolderError::OutOfRange {
            key,
            value: value.into(),
            range: u64::from(*range.start())..=u64::from(*range.end()),
        }),
    };
    if manifest.version != MANIFEST_VERSION {
        return Err(FolderError::Version { version: manifest.version });
    }
    if manifest.name != name {
        return Err(FolderError::OfAnother { name: manifest.name.clone() });
    }
    if manifest.description.len() > DESCRIPTION_LEN_MAX || manifest.description.contains(char::is_control) {
        return Err(FolderError::Unusable {
            key: "description",
            reason: "it is no line of at most 500 bytes",
        });
    }
    in_range("ram_mib", manifest.ram_mib, 1..=MEMORY_MIB_MAX)?;
    in_range("vcpus", manifest.vcpus, 1..=VCPUS_MAX.into())?;
    in_range("rootfs_gb", manifest.rootfs_gb, 1..=DISK_GIB_MAX)?;
    match &manifest.ready {
        Some(ready) => in_range("ready.timeout_ms", ready.timeout_ms, READY_TIMEOUT_MS),
        None => Ok(()),
    }
}

/// The file behind the link, which a later build does not change.
fn root_disk(folder: &Path, manifest: &TemplateManifest) -> Result<PathBuf, FolderError> {
    let name = manifest.rootfs.as_str();
    if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(FolderError::Unusable { key: "rootfs", reason: "it is no plain name of a file" });
    }
    let link = folder.join(name);
    let failed = |source| FolderError::Read { path: link.clone(), source };
    let path = link.canonicalize().map_err(failed)?;
    let metadata = path.metadata().map_err(failed)?;
    let disk_gib = manifest.rootfs_gb;
    match metadata.is_file() && metadata.len() <= u64::from(disk_gib) * GIB {
        true => Ok(path),
        false => Err(FolderError::RootDisk { path, disk_gib }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::os::unix::fs::symlink;

    const SIZES: SizeLimits = SizeLimits { ram_mib_max: 4096, vcpus_max: 2 };

    fn manifest(name: &str) -> Value {
        json!({
            "version": 1, "name": name, "rootfs": "rootfs.ext4", "ram_mib": 600, "vcpus": 4, "rootfs_gb": 5,
            "startup": {"python": "import this"}, "ready": {"bash": "true", "timeout_ms": 1000},
            "digest": "d", "built_at_ms": 7, "from_the_future": 1,
        })
    }

    fn put(folder: &Path, name: &str, text: impl AsRef<[u8]>) {
        fs::create_dir_all(folder.join(name)).unwrap();
        fs::write(folder.join(name).join(MANIFEST), text).unwrap();
        fs::write(folder.join(name).join("rootfs.ext4"), "disk").unwrap();
    }

    /// What is said of a template whose manifest has this instead.
    fn refusal(key: &str, value: Value) -> String {
        let folder = tempfile::tempdir().unwrap();
        let mut changed = manifest("mine");
        changed[key] = value;
        put(folder.path(), "mine", changed.to_string());
        read(folder.path(), "mine", SIZES).unwrap_err().to_string()
    }

    #[test]
    fn a_template_has_what_its_manifest_says_as_far_as_the_host_offers_it() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "mine", manifest("mine").to_string());
        let disk = folder.path().join("disk.7");
        fs::write(&disk, "disk").unwrap();
        fs::remove_file(folder.path().join("mine/rootfs.ext4")).unwrap();
        symlink(&disk, folder.path().join("mine/rootfs.ext4")).unwrap();
        let mine = read(folder.path(), "mine", SIZES).unwrap();
        assert_eq!((mine.size.ram_mib, mine.size.vcpus, mine.disk_gib), (768, 2, 5));
        assert_eq!(mine.rootfs, disk.canonicalize().unwrap(), "a later build changes the link");
        assert_eq!(mine.startup.as_deref(), Some("import this"));
        assert_eq!(mine.ready.unwrap().timeout.as_millis(), 1000);
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_the_name_of_its_key() {
        for (key, value, word) in [
            ("version", json!(2), "version 2"),
            ("name", json!("other"), "\"other\""),
            ("rootfs", json!("../mine/rootfs.ext4"), "plain name"),
            ("rootfs", json!(".."), "plain name"),
            ("rootfs", json!("missing"), "missing"),
            ("ram_mib", json!(0), "`ram_mib` is 0"),
            ("vcpus", json!(33), "1 to 32"),
            ("rootfs_gb", json!(513), "`rootfs_gb`"),
            ("description", json!("two\nlines"), "`description`"),
            ("ready", json!({"bash": "true", "timeout_ms": 0}), "`ready.timeout_ms`"),
            ("ram_mib", json!(-1), "cannot be understood"),
        ] {
            let text = refusal(key, value);
            assert!(text.contains(word), "{key}: {text}");
        }
    }

    #[test]
    fn a_root_disk_is_a_file_that_fits() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "mine", manifest("mine").to_string());
        let disk = folder.path().join("mine/rootfs.ext4");
        File::options().write(true).open(&disk).unwrap().set_len(5 * GIB + 1).unwrap();
        assert!(matches!(read(folder.path(), "mine", SIZES), Err(FolderError::RootDisk { .. })));
        fs::remove_file(&disk).unwrap();
        symlink("/dev", &disk).unwrap();
        assert!(matches!(read(folder.path(), "mine", SIZES), Err(FolderError::RootDisk { .. })));
    }

    #[test]
    fn what_cannot_be_used_is_left_out_and_keeps_nothing_else_away() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            put(folder.path(), name, manifest(name).to_string());
        }
        put(folder.path(), "broken", "{");
        put(folder.path(), "endless", vec![b' '; usize::try_from(MANIFEST_LEN_MAX).unwrap() + 1]);
        put(folder.path(), ".partial-x", manifest(".partial-x").to_string());
        put(folder.path(), DEFAULT, manifest(DEFAULT).to_string());
        fs::create_dir(folder.path().join("empty")).unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let names: Vec<_> = read_all(folder.path(), SIZES).into_iter().map(|found| found.name).collect();
        assert_eq!(names, ["one", "two"]);
        assert!(read_all(&folder.path().join("none"), SIZES).is_empty());
        for name in ["none", "../one", "", "empty"] {
            read(folder.path(), name, SIZES).unwrap_err();
        }
    }

    #[test]
    fn a_pipe_in_place_of_a_manifest_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("pipe")).unwrap();
        let path = folder.path().join("pipe").join(MANIFEST);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        read(folder.path(), "pipe", SIZES).unwrap_err();
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_template_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let folder = tempfile::tempdir().unwrap();
            put(folder.path(), "mine", bytes);
            prop_assert!(read(folder.path(), "mine", SIZES).is_err());
        }
    }
}
