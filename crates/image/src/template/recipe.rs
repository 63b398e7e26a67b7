//! A declaration together with what it is based on: what is to be done, in order, and its digest.

use super::declaration::{Base, Declaration, FileToCopy, Ready, Size};
use crate::cache::{Key, KeyBuilder};
use crate::error::BuildError;
use podflare_api::template::DEFAULT;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Changes whenever the same declaration makes another root.
const RECIPES_VERSION: &str = "2";
/// Templates that extend each other.
const DEPTH_MAX: usize = 8;
/// In all directories that one declaration names.
const SOURCE_FILES_MAX: usize = 100_000;

const DISK_GIB: u32 = 4;
const RAM_MIB: u32 = 1024;
const VCPUS: u32 = 2;

/// What comes with the program, by name.
const SHIPPED: [(&str, &str); 1] =
    [("python-datasci", include_str!("../../../../images/templates/python-datasci.toml"))];

/// The declarations that come with this program.
pub fn shipped() -> Vec<Declaration> {
    let parse = |(name, text)| {
        Declaration::parse(name, text).expect("a test reads the declarations that are built in")
    };
    SHIPPED.into_iter().map(parse).collect()
}

/// What a root directory begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The guest's own image.
    Default,
    Release {
        release: String,
        mirrors: Vec<String>,
    },
    Oci(PathBuf),
}

/// What one declaration adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    pub packages: Vec<String>,
    pub pip: Vec<String>,
    pub files: Vec<FileToCopy>,
    pub commands: Vec<String>,
    pub env: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub name: String,
    pub description: String,
    pub origin: Origin,
    pub stages: Vec<Stage>,
    /// Of all declarations, the base's first.
    pub startup: String,
    pub ready: Option<Ready>,
    pub size: WholeSize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeSize {
    pub disk_gib: u32,
    pub ram_mib: u32,
    pub vcpus: u32,
}

impl Recipe {
    /// `find` gives the declaration of a template that is extended.
    pub fn of(
        declaration: &Declaration,
        find: &dyn Fn(&str) -> Result<Option<Declaration>, BuildError>,
    ) -> Result<Recipe, BuildError> {
        let mut chain = vec![declaration.clone()];
        let origin = loop {
            let last = &chain[chain.len() - 1].base;
            let name = match last {
                Base { release: Some(release), mirrors, .. } => {
                    break Origin::Release { release: release.clone(), mirrors: mirrors.clone() };
                }
                Base { oci: Some(archive), .. } => break Origin::Oci(archive.clone()),
                Base { template: Some(name), .. } if name != DEFAULT => name.clone(),
                _ => break Origin::Default,
            };
            let refuse = |reason: &str| BuildError::Base { name: name.clone(), reason: reason.to_owned() };
            if chain.iter().any(|known| known.name == name) {
                return Err(refuse("it extends the template that is built"));
            }
            if chain.len() >= DEPTH_MAX {
                return Err(refuse("it extends too many others"));
            }
            chain.push(find(&name)?.ok_or(BuildError::NoTemplate { name })?);
        };
        Ok(Recipe::of_chain(origin, chain))
    }

    /// `chain` has the declaration itself first.
    fn of_chain(origin: Origin, chain: Vec<Declaration>) -> Recipe {
        let size = chain.iter().fold(Size::default(), |size, declaration| size.or(declaration.size));
        let startups = chain.iter().rev().map(|declaration| declaration.startup.python.trim_end());
        let startup: Vec<&str> = startups.filter(|startup| !startup.is_empty()).collect();
        let (name, description) = (chain[0].name.clone(), chain[0].description.clone());
        Recipe {
            name,
            description,
            origin,
            startup: startup.join("\n"),
            ready: chain.iter().find_map(|declaration| declaration.ready.clone()),
            size: WholeSize {
                disk_gib: size.disk_gib.unwrap_or(DISK_GIB),
                ram_mib: size.ram_mib.unwrap_or(RAM_MIB),
                vcpus: size.vcpus.unwrap_or(VCPUS),
            },
            stages: chain.into_iter().rev().map(Stage::of).collect(),
        }
    }

    /// The digest of all that goes into the root disk; `base` is that of what it begins with.
    pub(crate) fn root_key(&self, base: &Key) -> Result<Key, BuildError> {
        let mut key = KeyBuilder::new().bytes("template_recipes", RECIPES_VERSION.as_bytes());
        key = key.bytes("base", base.as_str().as_bytes());
        key = key.bytes("disk_gib", &self.size.disk_gib.to_le_bytes());
        for stage in &self.stages {
            key = stage.add_to(key)?;
        }
        Ok(key.finish())
    }

    /// The digest of the whole template.
    pub(crate) fn key(&self, root: &Key) -> Key {
        let size = [self.size.ram_mib, self.size.vcpus].map(u32::to_le_bytes).concat();
        let key = KeyBuilder::new()
            .bytes("root", root.as_str().as_bytes())
            .bytes("description", self.description.as_bytes())
            .bytes("startup", self.startup.as_bytes())
            .bytes("size", &size);
        match &self.ready {
            Some(Ready { bash, timeout_ms }) => {
                key.bytes("ready", bash.as_bytes()).bytes("timeout_ms", &timeout_ms.to_le_bytes()).finish()
            }
            None => key.finish(),
        }
    }
}

impl Stage {
    fn of(declaration: Declaration) -> Stage {
        let Declaration { packages, pip, files, commands, env, .. } = declaration;
        Stage { packages, pip, files, commands, env }
    }

    fn add_to(&self, key: KeyBuilder) -> Result<KeyBuilder, BuildError> {
        let mut key =
            key.list("packages", &self.packages).list("pip", &self.pip).list("commands", &self.commands);
        for (name, value) in &self.env {
            key = key.bytes(&format!("env {name}"), value.as_bytes());
        }
        let mut count = 0;
        for file in &self.files {
            key = key.bytes("destination", file.destination.as_bytes());
            key = key.bytes("mode", file.mode.as_deref().unwrap_or_default().as_bytes());
            key = add_source(key, &file.source, Path::new(""), &mut count)?;
        }
        Ok(key)
    }
}

/// A file or a directory by its contents and permissions, not by its place or its times.
fn add_source(
    key: KeyBuilder,
    root: &Path,
    inside: &Path,
    count: &mut usize,
) -> Result<KeyBuilder, BuildError> {
    *count += 1;
    let path = if inside.as_os_str().is_empty() { root.to_owned() } else { root.join(inside) };
    let refuse = |reason: &str| BuildError::Source { path: path.clone(), reason: reason.to_owned() };
    if *count > SOURCE_FILES_MAX {
        return Err(refuse(&format!("there are more than {SOURCE_FILES_MAX} files")));
    }
    // Only what is named itself may be a link to the real one.
    let of_path =
        if inside.as_os_str().is_empty() { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
    let meta = of_path.map_err(BuildError::file("read", &path))?;
    let key = key.bytes("path", inside.as_os_str().as_bytes());
    if meta.is_symlink() {
        let target = fs::read_link(&path).map_err(BuildError::file("read", &path))?;
        return Ok(key.bytes("link", target.as_os_str().as_bytes()));
    }
    let key = key.bytes("permissions", &(meta.permissions().mode() & 0o7777).to_le_bytes());
    if meta.is_file() {
        return key.file("contents", &path);
    }
    if !meta.is_dir() {
        return Err(refuse("it is neither a file nor a directory"));
    }
    let entries = fs::read_dir(&path).map_err(BuildError::file("list", &path))?;
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(BuildError::file("list", &path))?;
    names.sort();
    names.into_iter().try_fold(key, |key, name| add_source(key, root, &inside.join(name), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declaration(text: &str) -> Declaration {
        Declaration::parse("test.toml", text).unwrap()
    }

    fn recipe(texts: &[&str]) -> Result<Recipe, BuildError> {
        let all: Vec<Declaration> = texts.iter().map(|text| declaration(text)).collect();
        Recipe::of(&all[0], &|name| Ok(all.iter().find(|known| known.name == name).cloned()))
    }

    #[test]
    fn the_declarations_that_come_with_the_program_are_valid() {
        assert!(shipped().iter().zip(SHIPPED).all(|(declaration, (name, _))| declaration.name == name));
    }

    #[test]
    fn a_template_adds_to_what_it_extends() {
        let outer = "name = \"outer\"\npackages = [\"b\"]\n[base]\ntemplate = \"inner\"\n\
            [startup]\npython = \"y = x\"\n[size]\nram_mib = 2048";
        let inner = "name = \"inner\"\npackages = [\"a\"]\n[startup]\npython = \"x = 1\\n\"\n\
            [ready]\nbash = \"true\"\n[size]\nram_mib = 512\ndisk_gib = 8";
        let recipe = recipe(&[outer, inner]).unwrap();
        assert_eq!((recipe.name.as_str(), &recipe.origin), ("outer", &Origin::Default));
        let packages: Vec<_> = recipe.stages.iter().map(|stage| stage.packages.join(" ")).collect();
        assert_eq!(packages, ["a", "b"]);
        assert_eq!(recipe.startup, "x = 1\ny = x");
        assert_eq!(recipe.size, WholeSize { disk_gib: 8, ram_mib: 2048, vcpus: VCPUS });
        assert!(recipe.ready.is_some());
    }

    #[test]
    fn templates_that_extend_each_other_in_a_circle_are_refused() {
        let a = "name = \"a\"\n[base]\ntemplate = \"b\"";
        let b = "name = \"b\"\n[base]\ntemplate = \"a\"";
        assert!(matches!(recipe(&[a, b]), Err(BuildError::Base { .. })));
        assert!(matches!(recipe(&[a]), Err(BuildError::NoTemplate { name }) if name == "b"));
    }

    #[test]
    fn only_what_is_in_the_root_changes_its_digest() {
        let base = KeyBuilder::new().finish();
        let root = |text: &str| recipe(&[text]).unwrap().root_key(&base).unwrap();
        let whole = |text: &str| recipe(&[text]).unwrap().key(&root(text));
        let plain = "name = \"a\"\npackages = [\"b\"]";
        for same in ["[startup]\npython = \"1\"", "[size]\nram_mib = 512", "[ready]\nbash = \"true\""] {
            let text = format!("{plain}\n{same}");
            assert_eq!(root(plain), root(&text), "{same}");
            assert_ne!(whole(plain), whole(&text), "{same}");
        }
        for other in ["pip = [\"c\"]", "commands = [\"c\"]", "[env]\nA = \"b\"", "[size]\ndisk_gib = 5"] {
            assert_ne!(root(plain), root(&format!("{plain}\n{other}")), "{other}");
        }
    }

    #[test]
    fn files_count_by_their_contents_and_permissions() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("tree");
        fs::create_dir_all(directory.join("in")).unwrap();
        let file = directory.join("in/file");
        fs::write(&file, "one").unwrap();
        std::os::unix::fs::symlink("in/file", directory.join("link")).unwrap();
        let text = format!(
            "name = \"a\"\n[[files]]\nsource = {:?}\ndestination = \"/opt/tree\"",
            directory.display()
        );
        let key = || recipe(&[&text]).unwrap().root_key(&KeyBuilder::new().finish()).unwrap();
        let first = key();
        assert_eq!(key(), first);
        fs::write(&file, "two").unwrap();
        let second = key();
        assert_ne!(second, first);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_ne!(key(), second);
        fs::remove_dir_all(&directory).unwrap();
        assert!(recipe(&[&text]).unwrap().root_key(&KeyBuilder::new().finish()).is_err());
    }
}
