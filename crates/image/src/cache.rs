//! Finished parts on disk: one directory for each digest of what went in, never changed once it is there.

use crate::disk;
use crate::error::BuildError;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Parts of one kind that are kept, the last used first. A running host may still need the last but one.
const KEPT_PER_KIND: usize = 3;
/// Changes whenever a recipe in this crate changes its result.
const RECIPES_VERSION: &str = "2";
const PARTIAL_PREFIX: &str = ".partial-";

/// The digest of all that goes into a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Collects what goes into a part. Each item is told apart by its name and its length.
#[derive(Debug)]
pub struct KeyBuilder(Sha256);

impl KeyBuilder {
    pub fn new() -> KeyBuilder {
        KeyBuilder(Sha256::new()).bytes("recipes", RECIPES_VERSION.as_bytes())
    }

    pub fn bytes(mut self, name: &str, bytes: &[u8]) -> KeyBuilder {
        for item in [name.as_bytes(), bytes] {
            self.0.update((item.len() as u64).to_le_bytes());
            self.0.update(item);
        }
        self
    }

    pub fn list(self, name: &str, items: &[String]) -> KeyBuilder {
        items.iter().fold(self.bytes(name, &[]), |key, item| key.bytes("item", item.as_bytes()))
    }

    pub fn file(self, name: &str, path: &Path) -> Result<KeyBuilder, BuildError> {
        Ok(self.bytes(name, digest_file(path)?.as_bytes()))
    }

    pub fn finish(self) -> Key {
        Key(hex(&self.0.finalize()))
    }
}

impl Default for KeyBuilder {
    fn default() -> KeyBuilder {
        KeyBuilder::new()
    }
}

/// A directory of parts. Builders in several processes wait for each other.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    pub fn open(root: &Path) -> Result<Cache, BuildError> {
        fs::create_dir_all(root).map_err(BuildError::file("make", root))?;
        let root = root.canonicalize().map_err(BuildError::file("resolve", root))?;
        Ok(Cache { root })
    }

    /// Whether the part is there already.
    pub fn has(&self, kind: &str, key: &Key) -> bool {
        self.find(kind, key).is_some()
    }

    /// The part's directory, if it is there already.
    pub(crate) fn find(&self, kind: &str, key: &Key) -> Option<PathBuf> {
        Some(self.path(kind, key)).filter(|path| path.is_dir())
    }

    /// The part's directory; `build` fills an empty one if it is not there yet.
    pub(crate) fn part(
        &self,
        kind: &str,
        key: &Key,
        build: impl FnOnce(&Path) -> Result<(), BuildError>,
    ) -> Result<PathBuf, BuildError> {
        let lock_path = self.root.join(format!("{kind}.lock"));
        let lock = File::create(&lock_path).map_err(BuildError::file("make", &lock_path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| BuildError::file("lock", &lock_path)(errno.into()))?;
        let path = self.path(kind, key);
        if !path.is_dir() {
            self.remove_partial(kind)?;
            self.build_part(kind, &path, build)?;
        }
        touch(&path).map_err(BuildError::file("touch", &path))?;
        self.prune(kind, &path)?;
        Ok(path)
    }

    fn path(&self, kind: &str, key: &Key) -> PathBuf {
        self.root.join(format!("{kind}-{}", &key.0[..16]))
    }

    fn build_part(
        &self,
        kind: &str,
        path: &Path,
        build: impl FnOnce(&Path) -> Result<(), BuildError>,
    ) -> Result<(), BuildError> {
        let partial = tempfile::Builder::new()
            .prefix(&format!("{PARTIAL_PREFIX}{kind}-"))
            .tempdir_in(&self.root)
            .map_err(BuildError::file("make a directory in", &self.root))?;
        build(partial.path())?;
        // All that was written is on the disk before it has its name: what has it is never looked into again.
        File::open(partial.path())
            .and_then(|directory| Ok(rustix::fs::syncfs(directory)?))
            .map_err(BuildError::file("write", partial.path()))?;
        fs::rename(partial.path(), path).map_err(BuildError::file("put in place", path))
    }

    /// What an interrupted build has left. The caller holds the lock of the kind.
    fn remove_partial(&self, kind: &str) -> Result<(), BuildError> {
        for path in self.entries(&format!("{PARTIAL_PREFIX}{kind}-"))? {
            disk::remove_tree(&path)?;
        }
        Ok(())
    }

    /// `used` stays, whatever the clock said when the others were used.
    fn prune(&self, kind: &str, used: &Path) -> Result<(), BuildError> {
        let mut parts = self.entries(&format!("{kind}-"))?;
        parts.retain(|path| path != used);
        parts.sort_by_key(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok());
        let surplus = parts.len().saturating_sub(KEPT_PER_KIND - 1);
        for path in &parts[..surplus] {
            fs::remove_dir_all(path).map_err(BuildError::file("remove", path))?;
        }
        Ok(())
    }

    fn entries(&self, prefix: &str) -> Result<Vec<PathBuf>, BuildError> {
        let list = || -> io::Result<Vec<PathBuf>> {
            let mut found = Vec::new();
            for entry in fs::read_dir(&self.root)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    found.push(entry.path());
                }
            }
            Ok(found)
        };
        list().map_err(BuildError::file("list", &self.root))
    }
}

/// SHA-256 of a file, in hexadecimal.
pub fn digest_file(path: &Path) -> Result<String, BuildError> {
    let mut file = File::open(path).map_err(BuildError::file("open", path))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).map_err(BuildError::file("read", path))?;
        if count == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..count]);
    }
}

fn touch(directory: &Path) -> io::Result<()> {
    File::open(directory)?.set_modified(SystemTime::now())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all that is written");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(text: &str) -> Key {
        KeyBuilder::new().bytes("text", text.as_bytes()).finish()
    }

    fn fill(text: &'static str) -> impl FnOnce(&Path) -> Result<(), BuildError> {
        move |dir| fs::write(dir.join("file"), text).map_err(BuildError::file("write", dir))
    }

    #[test]
    fn a_part_is_built_once() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::open(home.path()).unwrap();
        let first = cache.part("disk", &key("a"), fill("first")).unwrap();
        let again = cache.part("disk", &key("a"), fill("second")).unwrap();
        assert_eq!(first, again);
        assert_eq!(fs::read_to_string(again.join("file")).unwrap(), "first");
        assert!(cache.has("disk", &key("a")) && !cache.has("disk", &key("b")));
    }

    #[test]
    fn a_failed_build_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::open(home.path()).unwrap();
        let failed = cache.part("disk", &key("a"), |dir| {
            fill("half")(dir)?;
            Err(BuildError::Kernel { path: dir.to_owned(), reason: "a test" })
        });
        assert!(failed.is_err());
        let names: Vec<_> =
            fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["disk.lock"]);
    }

    #[test]
    fn what_an_interrupted_build_left_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let left = home.path().join(".partial-disk-abc");
        fs::create_dir(&left).unwrap();
        Cache::open(home.path()).unwrap().part("disk", &key("a"), fill("x")).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn the_parts_used_last_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::open(home.path()).unwrap();
        for (age, name) in ["a", "b", "c"].into_iter().enumerate() {
            let path = cache.part("disk", &key(name), fill("x")).unwrap();
            let used = SystemTime::now() - Duration::from_secs(100 - age as u64);
            File::open(path).unwrap().set_modified(used).unwrap();
        }
        cache.part("disk", &key("a"), fill("x")).unwrap();
        cache.part("disk", &key("d"), fill("x")).unwrap();
        let kept = ["a", "b", "c", "d"].map(|name| cache.has("disk", &key(name)));
        assert_eq!(kept, [true, false, true, true]);
    }

    #[test]
    fn a_part_that_was_just_built_stays_though_the_clock_went_backwards() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::open(home.path()).unwrap();
        for name in ["a", "b", "c"] {
            let path = cache.part("disk", &key(name), fill("x")).unwrap();
            File::open(path).unwrap().set_modified(SystemTime::now() + Duration::from_secs(1000)).unwrap();
        }
        assert!(cache.part("disk", &key("d"), fill("x")).unwrap().is_dir());
    }

    #[test]
    fn items_are_told_apart() {
        let one = KeyBuilder::new().list("list", &["ab".into(), "c".into()]).finish();
        let other = KeyBuilder::new().list("list", &["a".into(), "bc".into()]).finish();
        assert_ne!(one, other);
    }
}
