//! The templates that were built here, as hostd reads them.
//!
//! ```text
//!   templates/NAME/template.json
//!                  rootfs.ext4 ──▶ template-roots/NAME.MILLISECONDS/rootfs.ext4
//!                  declaration.toml
//! ```
//!
//! A root disk has a name that no other ever has, since the emulated host keeps what it has read of a name. A
//! template's folder is put in place as a whole, by one rename.

use super::declaration::Declaration;
use crate::disk;
use crate::error::BuildError;
use podflare_api::template::{TemplateManifest, is_name};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A running host may still need the last but one.
const ROOTS_KEPT: usize = 2;
const PARTIAL_PREFIX: &str = ".partial-";
const MANIFEST: &str = "template.json";
const DECLARATION: &str = "declaration.toml";
pub(crate) const ROOT_DISK: &str = "rootfs.ext4";

#[derive(Debug)]
pub struct Store {
    templates: PathBuf,
    roots: PathBuf,
}

/// Nobody else changes the store meanwhile.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    store: &'a Store,
    _lock: File,
}

impl Store {
    /// `home` has the folders of the store, which are made if they are missing.
    pub fn open(home: &Path) -> Result<Store, BuildError> {
        let place = |name: &str| {
            let path = home.join(name);
            fs::create_dir_all(&path).map_err(BuildError::file("make", &path))?;
            path.canonicalize().map_err(BuildError::file("resolve", &path))
        };
        Ok(Store { templates: place("templates")?, roots: place("template-roots")? })
    }

    /// One folder for each template. Its contents change.
    pub fn templates(&self) -> &Path {
        &self.templates
    }

    /// The root disks. What is there never changes; what is new has a new name.
    pub fn roots(&self) -> &Path {
        &self.roots
    }

    /// All templates, by name.
    pub fn list(&self) -> Result<Vec<TemplateManifest>, BuildError> {
        let mut names = names_in(&self.templates)?;
        names.retain(|name| is_name(name));
        names.sort();
        let found = names.iter().map(|name| self.find(name)).collect::<Result<Vec<_>, _>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    pub fn find(&self, name: &str) -> Result<Option<TemplateManifest>, BuildError> {
        let path = self.templates.join(name).join(MANIFEST);
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        let manifest = serde_json::from_str(&text)
            .map_err(|error| BuildError::file("understand", &path)(io::Error::other(error)))?;
        Ok(Some(manifest))
    }

    /// What a template was built from.
    pub fn declaration(&self, name: &str) -> Result<Option<Declaration>, BuildError> {
        let path = self.templates.join(name).join(DECLARATION);
        let text = read_if_there(&path)?;
        text.map(|text| Declaration::parse(&path.display().to_string(), &text)).transpose()
    }

    /// Whether there was one.
    pub fn remove(&self, name: &str) -> Result<bool, BuildError> {
        // Any other would be a path.
        if !is_name(name) {
            return Ok(false);
        }
        let locked = self.lock()?;
        let was_there = self.templates.join(name).exists();
        if was_there {
            disk::remove_tree(&self.templates.join(name))?;
        }
        locked.keep_roots(name, 0)?;
        Ok(was_there)
    }

    /// Waits for whoever builds, and removes what an interrupted build has left.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, BuildError> {
        let path = self.roots.join("lock");
        let lock = File::create(&path).map_err(BuildError::file("make", &path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| BuildError::file("lock", &path)(errno.into()))?;
        for directory in [&self.templates, &self.roots] {
            for name in names_in(directory)?.iter().filter(|name| name.starts_with(PARTIAL_PREFIX)) {
                disk::remove_tree(&directory.join(name))?;
            }
        }
        Ok(Locked { store: self, _lock: lock })
    }
}

impl Locked<'_> {
    /// An empty folder for a build, which is removed when it is dropped.
    pub(crate) fn scratch(&self) -> Result<tempfile::TempDir, BuildError> {
        temporary(&self.store.roots)
    }

    /// Makes what was built the template; `root` is a folder with a new root disk, or there is none, and the
    /// former one stays.
    pub(crate) fn put(
        &self,
        manifest: &TemplateManifest,
        declaration: &Declaration,
        root: Option<&Path>,
    ) -> Result<(), BuildError> {
        let folder = self.store.templates.join(&manifest.name);
        let root = match root {
            Some(new) => {
                let path = self.store.roots.join(format!("{}.{}", manifest.name, manifest.built_at_ms));
                fs::rename(new, &path).map_err(BuildError::file("put in place", &path))?;
                path
            }
            None => {
                let link = folder.join(ROOT_DISK);
                let disk = link.canonicalize().map_err(BuildError::file("find", &link))?;
                disk.parent().unwrap_or(&self.store.roots).to_owned()
            }
        };
        let part = temporary(&self.store.templates)?;
        let write = |name: &str, text: String| {
            let path = part.path().join(name);
            fs::write(&path, text).map_err(BuildError::file("write", &path))
        };
        let json = serde_json::to_string_pretty(manifest).expect("a manifest always has a JSON form");
        write(MANIFEST, json + "\n")?;
        write(DECLARATION, toml::to_string(declaration).expect("a declaration always has a TOML form"))?;
        let link = part.path().join(ROOT_DISK);
        symlink(root.join(ROOT_DISK), &link).map_err(BuildError::file("make", &link))?;
        // For everyone: hostd may be another user's.
        set_mode(part.path(), 0o755)?;
        exchange(part.path(), &folder).map_err(BuildError::file("put in place", &folder))?;
        self.keep_roots(&manifest.name, ROOTS_KEPT)
    }

    /// Removes all root disks of a template but the newest.
    fn keep_roots(&self, name: &str, kept: usize) -> Result<(), BuildError> {
        let built_at = |root: &String| root.strip_prefix(name)?.strip_prefix('.')?.parse::<u64>().ok();
        let mut roots: Vec<(u64, String)> = names_in(&self.store.roots)?
            .into_iter()
            .filter_map(|root| Some((built_at(&root)?, root)))
            .collect();
        roots.sort();
        let surplus = roots.len().saturating_sub(kept);
        roots[..surplus].iter().try_for_each(|(_, root)| disk::remove_tree(&self.store.roots.join(root)))
    }
}

/// Whole at any moment: whoever opens a file in `folder` finds the former one, or this one.
fn exchange(new: &Path, folder: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, folder, RenameFlags::EXCHANGE) {
        // What was there before is now the temporary folder, and goes with it.
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => fs::rename(new, folder),
        Err(errno) => Err(errno.into()),
    }
}

fn temporary(directory: &Path) -> Result<tempfile::TempDir, BuildError> {
    tempfile::Builder::new()
        .prefix(PARTIAL_PREFIX)
        .tempdir_in(directory)
        .map_err(BuildError::file("make a directory in", directory))
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), BuildError> {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(path, permissions).map_err(BuildError::file("change", path))
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn read_if_there(path: &Path) -> Result<Option<String>, BuildError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(BuildError::file("read", path)(error)),
    }
}

fn names_in(directory: &Path) -> Result<Vec<String>, BuildError> {
    let list = || -> io::Result<Vec<String>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    list().map_err(BuildError::file("list", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, built_at_ms: u64) -> TemplateManifest {
        TemplateManifest {
            version: 1,
            name: name.to_owned(),
            description: String::new(),
            rootfs: ROOT_DISK.to_owned(),
            ram_mib: 1024,
            vcpus: 2,
            rootfs_gb: 4,
            startup: None,
            ready: None,
            digest: "digest".to_owned(),
            built_at_ms,
        }
    }

    fn declaration(name: &str) -> Declaration {
        Declaration::parse("test.toml", &format!("name = {name:?}")).unwrap()
    }

    fn put(store: &Store, name: &str, built_at_ms: u64, contents: &str) {
        let locked = store.lock().unwrap();
        let root = locked.scratch().unwrap();
        fs::write(root.path().join(ROOT_DISK), contents).unwrap();
        locked.put(&manifest(name, built_at_ms), &declaration(name), Some(root.path())).unwrap();
    }

    fn entries(directory: &Path) -> Vec<String> {
        let mut names = names_in(directory).unwrap();
        names.sort();
        names
    }

    #[test]
    fn a_template_is_found_with_its_root_disk_and_its_declaration() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        put(&store, "mine", 1, "disk");
        assert_eq!(store.list().unwrap(), [manifest("mine", 1)]);
        assert_eq!(store.declaration("mine").unwrap(), Some(declaration("mine")));
        assert_eq!(fs::read_to_string(store.templates().join("mine/rootfs.ext4")).unwrap(), "disk");
        assert_eq!(entries(store.templates()), ["mine"]);
    }

    #[test]
    fn a_root_disk_built_again_has_a_new_name_and_the_former_stays_for_a_while() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        put(&store, "mine-too", 9, "of another");
        for built_at_ms in [7, 8, 10] {
            put(&store, "mine", built_at_ms, &built_at_ms.to_string());
        }
        assert_eq!(fs::read_to_string(store.templates().join("mine/rootfs.ext4")).unwrap(), "10");
        assert_eq!(entries(store.roots()), ["lock", "mine-too.9", "mine.10", "mine.8"]);
    }

    #[test]
    fn a_template_keeps_its_root_disk_where_nothing_else_is_new() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        put(&store, "mine", 1, "disk");
        store.lock().unwrap().put(&manifest("mine", 2), &declaration("mine"), None).unwrap();
        assert_eq!(store.find("mine").unwrap().unwrap().built_at_ms, 2);
        assert_eq!(fs::read_to_string(store.templates().join("mine/rootfs.ext4")).unwrap(), "disk");
    }

    #[test]
    fn what_an_interrupted_build_left_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        for directory in [store.templates(), store.roots()] {
            fs::create_dir(directory.join(".partial-abc")).unwrap();
        }
        put(&store, "mine", 1, "disk");
        assert_eq!((entries(store.templates()).len(), entries(store.roots()).len()), (1, 2));
    }

    #[test]
    fn a_removed_template_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        put(&store, "mine", 1, "disk");
        assert!(store.remove("mine").unwrap() && !store.remove("mine").unwrap());
        assert_eq!(entries(store.templates()), [""; 0]);
        assert!(!store.remove("../template-roots").unwrap() && store.roots().exists());
        assert_eq!(entries(store.roots()), ["lock"]);
    }
}
