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
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Beside what a running host is known to need: it may be about to take the last but one.
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

/// What a running host has of a template, and boots again whenever it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Nothing,
    /// The build of that time.
    Build {
        built_at_ms: u64,
    },
    /// There is a host, and it does not say.
    Unknown,
}

/// The templates that were built here.
#[derive(Debug)]
pub struct Listing {
    /// By name.
    pub templates: Vec<TemplateManifest>,
    /// What stands in the way of using others.
    pub damaged: Vec<BuildError>,
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

    /// One that is damaged keeps no other away.
    pub fn list(&self) -> Result<Listing, BuildError> {
        let mut names = names_in(&self.templates)?;
        names.retain(|name| is_name(name));
        names.sort();
        let mut listing = Listing { templates: Vec::new(), damaged: Vec::new() };
        for name in &names {
            match self.find(name) {
                Ok(manifest) => listing.templates.extend(manifest),
                Err(error) => listing.damaged.push(error),
            }
        }
        Ok(listing)
    }

    /// Whether there is anything of that name, damaged or not.
    pub fn has(&self, name: &str) -> bool {
        is_name(name) && self.templates.join(name).exists()
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

    /// Whether there was one. No running host may have it any more.
    pub fn remove(&self, name: &str) -> Result<bool, BuildError> {
        // Any other would be a path.
        if !is_name(name) {
            return Ok(false);
        }
        let locked = self.lock()?;
        let was_there = self.has(name);
        if was_there {
            // At once, so that nobody finds a half of it.
            let gone = temporary(&self.templates)?;
            let folder = self.templates.join(name);
            fs::rename(&folder, gone.path()).map_err(BuildError::file("remove", &folder))?;
            sync(&self.templates)?;
        }
        for (_, root) in locked.roots_of(name)? {
            disk::remove_tree(&self.roots.join(root))?;
        }
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

    /// A time for a new build that is later than that of any former one, whatever the clock says.
    pub(crate) fn build_time_ms(
        &self,
        name: &str,
        former: Option<&TemplateManifest>,
    ) -> Result<u64, BuildError> {
        let roots = self.roots_of(name)?.into_iter().map(|(built_at_ms, _)| built_at_ms);
        let latest = roots.chain(former.map(|former| former.built_at_ms)).max();
        Ok(latest.map_or(0, |latest| latest.saturating_add(1)).max(now_ms()))
    }

    /// Makes what was built the template; `root` is a folder with a new root disk, or there is none, and the
    /// former one stays.
    pub(crate) fn put(
        &self,
        manifest: &TemplateManifest,
        declaration: &Declaration,
        root: Option<&Path>,
        taken: Taken,
    ) -> Result<(), BuildError> {
        let folder = self.store.templates.join(&manifest.name);
        let root = match root {
            Some(new) => {
                let path = self.store.roots.join(format!("{}.{}", manifest.name, manifest.built_at_ms));
                sync(&new.join(ROOT_DISK))?;
                sync(new)?;
                fs::rename(new, &path).map_err(BuildError::file("put in place", &path))?;
                sync(&self.store.roots)?;
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
            fs::write(&path, text).map_err(BuildError::file("write", &path))?;
            sync(&path)
        };
        let json = serde_json::to_string_pretty(manifest).expect("a manifest always has a JSON form");
        write(MANIFEST, json + "\n")?;
        write(DECLARATION, toml::to_string(declaration).expect("a declaration always has a TOML form"))?;
        let link = part.path().join(ROOT_DISK);
        symlink(root.join(ROOT_DISK), &link).map_err(BuildError::file("make", &link))?;
        // For everyone: hostd may be another user's.
        set_mode(part.path(), 0o755)?;
        sync(part.path())?;
        exchange(part.path(), &folder).map_err(BuildError::file("put in place", &folder))?;
        sync(&self.store.templates)?;
        self.prune_roots(&manifest.name, &root, taken)
    }

    /// Removes the root disks of a template that nobody needs: neither `current`, nor the newest, nor that which a
    /// running host has.
    fn prune_roots(&self, name: &str, current: &Path, taken: Taken) -> Result<(), BuildError> {
        let roots = self.roots_of(name)?;
        let kept = match taken {
            Taken::Unknown => return Ok(()),
            Taken::Nothing => None,
            // A build that changed no root disk is later than the disk that it has.
            Taken::Build { built_at_ms } => roots.range(..=(built_at_ms, "\u{10ffff}".into())).next_back(),
        };
        let newest = roots.iter().rev().take(ROOTS_KEPT);
        let kept: Vec<&str> = newest.chain(kept).map(|(_, root)| root.as_str()).collect();
        let surplus = roots.iter().map(|(_, root)| root.as_str()).filter(|root| !kept.contains(root));
        let mut paths = surplus.map(|root| self.store.roots.join(root)).filter(|path| path != current);
        paths.try_for_each(|path| disk::remove_tree(&path))
    }

    /// By the time of their making.
    fn roots_of(&self, name: &str) -> Result<BTreeSet<(u64, String)>, BuildError> {
        let built_at = |root: &String| root.strip_prefix(name)?.strip_prefix('.')?.parse::<u64>().ok();
        let names = names_in(&self.store.roots)?;
        Ok(names.into_iter().filter_map(|root| Some((built_at(&root)?, root))).collect())
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

/// A file or a directory: what is published is on the disk before its name is.
pub(crate) fn sync(path: &Path) -> Result<(), BuildError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(BuildError::file("write", path))
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
        put_beside(store, name, built_at_ms, contents, Taken::Nothing);
    }

    fn put_beside(store: &Store, name: &str, built_at_ms: u64, contents: &str, taken: Taken) {
        let locked = store.lock().unwrap();
        let root = locked.scratch().unwrap();
        fs::write(root.path().join(ROOT_DISK), contents).unwrap();
        locked.put(&manifest(name, built_at_ms), &declaration(name), Some(root.path()), taken).unwrap();
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
        assert_eq!(store.list().unwrap().templates, [manifest("mine", 1)]);
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
        store.lock().unwrap().put(&manifest("mine", 2), &declaration("mine"), None, Taken::Nothing).unwrap();
        assert_eq!(store.find("mine").unwrap().unwrap().built_at_ms, 2);
        assert_eq!(fs::read_to_string(store.templates().join("mine/rootfs.ext4")).unwrap(), "disk");
    }

    #[test]
    fn the_root_disk_that_a_running_host_has_stays() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        put(&store, "mine", 3, "taken");
        // With the same root disk.
        store.lock().unwrap().put(&manifest("mine", 4), &declaration("mine"), None, Taken::Nothing).unwrap();
        for built_at_ms in 5..9 {
            put_beside(&store, "mine", built_at_ms, "not taken", Taken::Build { built_at_ms: 4 });
        }
        assert_eq!(entries(store.roots()), ["lock", "mine.3", "mine.7", "mine.8"]);
        // Who does not know what is needed removes nothing.
        put_beside(&store, "mine", 9, "new", Taken::Unknown);
        assert_eq!(entries(store.roots()).len(), 5);
    }

    #[test]
    fn a_clock_that_goes_backwards_makes_no_build_the_former_one() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let future = now_ms() + 1_000_000;
        put(&store, "mine", future, "before");
        let time_ms = |store: &Store| {
            store.lock().unwrap().build_time_ms("mine", store.find("mine").unwrap().as_ref()).unwrap()
        };
        assert_eq!(time_ms(&store), future + 1);
        let later = manifest("mine", future + 7);
        store.lock().unwrap().put(&later, &declaration("mine"), None, Taken::Nothing).unwrap();
        assert_eq!(time_ms(&store), future + 8);
        // Even if a time comes from elsewhere, what is current stays.
        for built_at_ms in 1..5 {
            put(&store, "mine", built_at_ms, "current");
            assert_eq!(fs::read_to_string(store.templates().join("mine/rootfs.ext4")).unwrap(), "current");
        }
    }

    #[test]
    fn a_damaged_manifest_hides_no_other_template_and_can_be_removed() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        for name in ["first", "mine", "second"] {
            put(&store, name, 1, "disk");
        }
        fs::write(store.templates().join("mine/template.json"), "{").unwrap();
        let listing = store.list().unwrap();
        assert_eq!(listing.templates, [manifest("first", 1), manifest("second", 1)]);
        assert!(listing.damaged[0].to_string().contains("mine/template.json"));
        assert!(store.has("mine") && store.remove("mine").unwrap() && !store.has("mine"));
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
