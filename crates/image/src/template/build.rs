//! Builds a template's root disk: unpacks its origin, changes it in a chamber, checks it, and formats a disk.

use super::chamber::Chamber;
use super::check;
use super::declaration::{Declaration, FileToCopy, parse_mode};
use super::recipe::{Origin, Recipe, Stage, shipped};
use super::root::Root;
use super::store::{Locked, ROOT_DISK, Store, Taken, set_mode};
use crate::Progress;
use crate::cache::{Cache, Key, KeyBuilder};
use crate::definition::GuestDefinition;
use crate::error::BuildError;
use crate::kernel::Kernel;
use crate::machine_settings::MachineSettings;
use crate::{disk, guest, oci, tool};
use podflare_api::template::{MANIFEST_VERSION, ReadyManifest, StartupManifest, TemplateManifest};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const GIB: u64 = 1 << 30;

/// What a release is installed with, for the agent and for the network. All else is the declaration's.
const RELEASE_PACKAGES: [&str; 3] = ["ca-certificates", "libnss-myhostname", "python3"];

const INSTALL_PACKAGES: &str = r#"
if ! command -v apt-get >/dev/null; then
    echo 'the base has no apt-get'
    exit 1
fi
apt-get -q update
apt-get -q -y install -- "$@"
"#;

const INSTALL_REQUIREMENTS: &str = r#"
if ! python3 -m pip --version >/dev/null; then
    echo 'the base has no pip; packages = ["python3-pip"] adds it'
    exit 1
fi
python3 -m pip install -- "$@"
"#;

/// `$1` destination, `$2` mode or nothing. What is copied belongs to root.
const COPY: &str = r#"
source=/run/podflare/source
mkdir -p "$(dirname "$1")"
if [ -d "$source" ]; then
    mkdir -p "$1"
    cp -R --no-dereference --preserve=mode,timestamps "$source/." "$1"
    [ -z "$2" ] || find "$1" -type f -exec chmod "$2" {} +
else
    cp --preserve=mode,timestamps "$source" "$1"
    [ -z "$2" ] || chmod "$2" "$1"
fi
"#;

/// Adds the lines of `$1` to what the agent gives to all code. What was there may lack its last line's end.
const SET_ENVIRONMENT: &str = r#"
[ ! -s /etc/environment ] || echo >>/etc/environment
printf '%s' "$1" >>/etc/environment
"#;
const ENVIRONMENT: &str = "/etc/environment";
/// Variables that an image and all declarations set together.
const VARIABLES_MAX: usize = 1000;
/// Of the whole file. The agent reads 64 KiB, of which the host's own settings for its guests take the rest.
const ENVIRONMENT_BYTES_MAX: u64 = 48 * 1024;

/// A root that came as an image of containers lacks what makes it a machine's, and the kernel's modules, which
/// are the source.
const BECOME_A_GUEST: &str = r#"
echo sandbox >/etc/hostname
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n' >/etc/hosts
: >/etc/machine-id
echo '/dev/vda / ext4 defaults,noatime 0 0' >/etc/fstab
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
mkdir -p /root /lib/modules
cp -R /run/podflare/source/. /lib/modules
"#;

/// What installing leaves and nobody needs.
const CLEAN: &str = r#"
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/lib/dpkg/*-old
[ ! -d /var/log ] || find /var/log -type f -delete
"#;

/// All that building takes besides a declaration.
pub struct Builder<'a> {
    pub cache: &'a Cache,
    pub store: &'a Store,
    pub settings: &'a MachineSettings,
    pub progress: Progress<'a>,
    /// What a running host has of the template of that name. Asked when a new one is there.
    pub taken: &'a dyn Fn(&str) -> Taken,
}

impl std::fmt::Debug for Builder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("store", &self.store).finish_non_exhaustive()
    }
}

/// What came of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Built {
    New(TemplateManifest),
    /// Nothing that goes in has changed.
    Unchanged(TemplateManifest),
}

impl Builder<'_> {
    /// Makes the template that is declared, as far as it is not there yet. The former one of its name is of use
    /// until then.
    pub fn build(&self, declaration: &Declaration) -> Result<Built, BuildError> {
        let recipe = Recipe::of(declaration, &|name| self.find(name))?;
        let definition = definition_of(&recipe.origin);
        let guest = GuestDefinition::built_in();
        let kernel = Kernel::build(self.cache, &guest.release, &guest.mirrors, &guest.kernel, self.progress)?;
        (self.progress)("reading what goes in");
        let root_key = recipe.root_key(&base_key(&recipe.origin, &definition, &kernel)?)?;
        let digest = recipe.key(&root_key);
        let locked = self.store.lock()?;
        let former = self.store.find(&recipe.name).unwrap_or_else(|error| {
            (self.progress)(&format!("{error}; it is built anew"));
            None
        });
        let former_root =
            former.as_ref().and_then(|former| former.digest.split_once('-')).map(|(root, _)| root);
        let digests = format!("{}-{}", root_key.as_str(), digest.as_str());
        match &former {
            Some(former) if former.digest == digests => return Ok(Built::Unchanged(former.clone())),
            _ => {}
        }
        let manifest = manifest(&recipe, digests, locked.build_time_ms(&recipe.name, former.as_ref())?);
        if former_root == Some(root_key.as_str()) {
            locked.put(&manifest, declaration, None, (self.taken)(&recipe.name))?;
            return Ok(Built::New(manifest));
        }
        let build = RootBuild { builder: self, recipe: &recipe, definition: &definition, kernel: &kernel };
        build.run(&locked, &manifest, declaration)?;
        Ok(Built::New(manifest))
    }

    /// A template that was built here comes before one that comes with the program.
    fn find(&self, name: &str) -> Result<Option<Declaration>, BuildError> {
        let built = self.store.declaration(name)?;
        Ok(built.or_else(|| shipped().into_iter().find(|declaration| declaration.name == name)))
    }
}

/// The system that a root begins with; for one that is imported, only the kernel is of use.
fn definition_of(origin: &Origin) -> GuestDefinition {
    let guest = GuestDefinition::built_in();
    match origin {
        Origin::Release { release, mirrors } => GuestDefinition {
            release: release.clone(),
            mirrors: mirrors.clone(),
            packages: RELEASE_PACKAGES.map(str::to_owned).to_vec(),
            ..guest
        },
        Origin::Default | Origin::Oci(_) => guest,
    }
}

fn base_key(origin: &Origin, definition: &GuestDefinition, kernel: &Kernel) -> Result<Key, BuildError> {
    match origin {
        Origin::Default | Origin::Release { .. } => Ok(guest::system_key(definition, kernel).finish()),
        Origin::Oci(archive) => Ok(KeyBuilder::new()
            .bytes("kernel_release", kernel.release.as_bytes())
            .file("archive", archive)?
            .finish()),
    }
}

fn manifest(recipe: &Recipe, digest: String, built_at_ms: u64) -> TemplateManifest {
    let python = recipe.startup.clone();
    TemplateManifest {
        version: MANIFEST_VERSION,
        name: recipe.name.clone(),
        description: recipe.description.clone(),
        rootfs: ROOT_DISK.to_owned(),
        ram_mib: recipe.size.ram_mib,
        vcpus: recipe.size.vcpus,
        rootfs_gb: recipe.size.disk_gib,
        startup: (!python.is_empty()).then_some(StartupManifest { python }),
        ready: recipe
            .ready
            .clone()
            .map(|ready| ReadyManifest { bash: ready.bash, timeout_ms: ready.timeout_ms }),
        digest,
        built_at_ms,
    }
}

/// One root disk in the making.
struct RootBuild<'a> {
    builder: &'a Builder<'a>,
    recipe: &'a Recipe,
    definition: &'a GuestDefinition,
    kernel: &'a Kernel,
}

impl RootBuild<'_> {
    fn run(
        &self,
        locked: &Locked<'_>,
        manifest: &TemplateManifest,
        declaration: &Declaration,
    ) -> Result<(), BuildError> {
        let part = locked.scratch()?;
        let root = part.path().join("root");
        let built = self.build_in(part.path(), &root);
        // Its files may belong to users that only a namespace has, whom `TempDir` cannot remove.
        disk::remove_tree(&root)?;
        let whole = built?;
        locked.put(manifest, declaration, Some(&whole), (self.builder.taken)(&manifest.name))
    }

    /// Gives the folder that holds the finished disk.
    fn build_in(&self, part: &Path, root: &Path) -> Result<PathBuf, BuildError> {
        let mut environment = self.unpack_origin(part, root)?;
        let place = part.join("place");
        let mut chamber =
            Chamber::new(root, &place, self.builder.settings).map_err(BuildError::file("make", &place))?;
        if matches!(self.recipe.origin, Origin::Oci(_)) {
            check::programs(&self.recipe.name, root, environment.get("PATH").map(String::as_str))?;
            self.step("prepare the root", None, || {
                chamber.run(BECOME_A_GUEST, &[], Some(&self.kernel.modules_directory()))
            })?;
        }
        let mut all = environment.clone();
        all.extend(self.recipe.stages.iter().flat_map(|stage| stage.env.clone()));
        self.environment_lines(&all)?;
        chamber.environment.clone_from(&environment);
        self.step("keep services from starting", None, || chamber.keep_services_from_starting())?;
        for stage in &self.recipe.stages {
            environment.extend(stage.env.clone());
            chamber.environment.clone_from(&environment);
            self.run_stage(stage, &chamber)?;
        }
        self.finish(root, &chamber, &environment)?;
        self.progress("making the root disk");
        let whole = part.join("whole");
        fs::create_dir(&whole).map_err(BuildError::file("make", &whole))?;
        set_mode(&whole, 0o755)?;
        let size_gib = self.recipe.size.disk_gib;
        disk::ext4_from_directory(root, &whole.join(ROOT_DISK), size_gib.into()).map_err(
            |error| match error {
                BuildError::Tool(source) => BuildError::Step {
                    step: format!("make a disk of {size_gib} GiB"),
                    key: Some("size.disk_gib".into()),
                    source,
                },
                other => other,
            },
        )?;
        Ok(whole)
    }

    /// Gives the environment that comes with the origin.
    fn unpack_origin(&self, part: &Path, root: &Path) -> Result<BTreeMap<String, String>, BuildError> {
        let Origin::Oci(archive) = &self.recipe.origin else {
            let builder = self.builder;
            let system = guest::build_system(builder.cache, self.definition, self.kernel, builder.progress)?;
            self.progress("unpacking the base");
            disk::unpack(&system.join("root.tar.zst"), root)?;
            return Ok(BTreeMap::new());
        };
        self.progress("reading the layers of the base");
        let tar = part.join("merged.tar");
        let bytes_max = u64::from(self.recipe.size.disk_gib) * GIB;
        let environment = oci::merge(archive, part, &tar, bytes_max)
            .map_err(|source| BuildError::Oci { path: archive.clone(), source })?;
        self.progress("unpacking the base");
        disk::unpack(&tar, root)?;
        fs::remove_file(&tar).map_err(BuildError::file("remove", &tar))?;
        Ok(environment)
    }

    fn run_stage(&self, stage: &Stage, chamber: &Chamber<'_>) -> Result<(), BuildError> {
        if !stage.packages.is_empty() {
            self.step("install the packages", Some("packages"), || {
                chamber.run(INSTALL_PACKAGES, &stage.packages, None)
            })?;
        }
        if !stage.pip.is_empty() {
            self.step("install the requirements of Python", Some("pip"), || {
                chamber.run(INSTALL_REQUIREMENTS, &stage.pip, None)
            })?;
        }
        for (index, file) in stage.files.iter().enumerate() {
            self.step(&format!("copy {}", file.source.display()), Some(&format!("files[{index}]")), || {
                copy(file, chamber)
            })?;
        }
        for (index, command) in stage.commands.iter().enumerate() {
            let first_line = command.trim().lines().next().unwrap_or_default();
            self.step(&format!("run `{first_line}`"), Some(&format!("commands[{index}]")), || {
                chamber.run(command, &[], None)
            })?;
        }
        Ok(())
    }

    fn finish(
        &self,
        root: &Path,
        chamber: &Chamber<'_>,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), BuildError> {
        self.progress("checking the root");
        check::programs(&self.recipe.name, root, environment.get("PATH").map(String::as_str))?;
        check::python(&self.recipe.name, chamber, &self.recipe.startup)?;
        if !environment.is_empty() {
            let lines = self.environment_lines(environment)?;
            self.step("set the environment", Some("env"), || chamber.run(SET_ENVIRONMENT, &[lines], None))?;
        }
        self.check_environment(&Root::open(root).map_err(BuildError::file("open", root))?)?;
        self.step("let services start", None, || chamber.let_services_start())?;
        self.step("clean up", None, || chamber.run(CLEAN, &[], None))
    }

    /// As they stand in the file that the agent reads.
    fn environment_lines(&self, environment: &BTreeMap<String, String>) -> Result<String, BuildError> {
        let lines: String = environment.iter().map(|(name, value)| environment_line(name, value)).collect();
        match environment.len() <= VARIABLES_MAX && lines.len() as u64 <= ENVIRONMENT_BYTES_MAX {
            true => Ok(lines),
            false => Err(self.environment_too_large()),
        }
    }

    /// With what the image has in it already.
    fn check_environment(&self, root: &Root) -> Result<(), BuildError> {
        match root.is_longer(ENVIRONMENT, ENVIRONMENT_BYTES_MAX) {
            true => Err(self.environment_too_large()),
            false => Ok(()),
        }
    }

    fn environment_too_large(&self) -> BuildError {
        let (name, bytes_max) = (self.recipe.name.clone(), ENVIRONMENT_BYTES_MAX);
        BuildError::Environment { name, variables_max: VARIABLES_MAX, bytes_max }
    }

    fn step(
        &self,
        step: &str,
        key: Option<&str>,
        run: impl FnOnce() -> Result<(), tool::ToolError>,
    ) -> Result<(), BuildError> {
        self.progress(&format!("template {}: {step}", self.recipe.name));
        run().map_err(|source| BuildError::Step {
            step: step.to_owned(),
            key: key.map(str::to_owned),
            source,
        })
    }

    fn progress(&self, text: &str) {
        (self.builder.progress)(text);
    }
}

/// The agent takes one pair of quotes away, and blanks around a line.
fn environment_line(name: &str, value: &str) -> String {
    let would_change =
        value.starts_with(['"', '\'']) || value.ends_with(['"', '\'']) || value.trim() != value;
    let quote = if would_change { "\"" } else { "" };
    format!("{name}={quote}{value}{quote}\n")
}

fn copy(file: &FileToCopy, chamber: &Chamber<'_>) -> Result<(), tool::ToolError> {
    let mode = file.mode.as_deref().and_then(parse_mode).map(|mode| format!("{mode:04o}"));
    chamber.run(COPY, &[file.destination.clone(), mode.unwrap_or_default()], Some(&file.source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_in_quotes_or_blanks_stays_what_it_is() {
        let value = |value| environment_line("A", value);
        assert_eq!(value("plain text"), "A=plain text\n");
        assert_eq!(value("it's \"x\" y"), "A=it's \"x\" y\n");
        assert_eq!(value("\"x\""), "A=\"\"x\"\"\n");
        assert_eq!(value("'x'"), "A=\"'x'\"\n");
        assert_eq!(value(" x "), "A=\" x \"\n");
    }
}
