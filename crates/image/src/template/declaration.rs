//! A template's declaration: what its author writes, checked before anything is built.

use crate::error::BuildError;
use podflare_api::template::{DEFAULT, is_name};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Longer is no declaration.
const DECLARATION_BYTES_MAX: u64 = 1 << 20;
const DESCRIPTION_LEN_MAX: usize = 500;
/// Packages, requirements, files, commands, or variables of one declaration.
const ITEMS_MAX: usize = 1000;
const WORD_LEN_MAX: usize = 500;
const COMMAND_LEN_MAX: usize = 64 * 1024;
const VARIABLE_LEN_MAX: usize = 4096;
/// Names and values of one declaration's variables: code that is started is given all of them.
const ENVIRONMENT_BYTES_MAX: usize = 32 * 1024;

const DISK_GIB: std::ops::RangeInclusive<u32> = 1..=512;
const RAM_MIB: std::ops::RangeInclusive<u32> = 256..=65_536;
const VCPUS: std::ops::RangeInclusive<u32> = 1..=32;
const READY_TIMEOUT_MS: std::ops::RangeInclusive<u32> = 1..=600_000;

/// Where a file would not stay: each is made anew, for the build or at each start of a guest.
const FLEETING: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub base: Base,
    /// Debian packages, as `apt-get install` takes them.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Requirements, as `pip install` takes them, for the image's own Python.
    #[serde(default)]
    pub pip: Vec<String>,
    #[serde(default)]
    pub files: Vec<FileToCopy>,
    /// Run one after the other by the image's own shell, at last.
    #[serde(default)]
    pub commands: Vec<String>,
    /// The environment of all code in the sandboxes.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub startup: Startup,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Ready>,
    #[serde(default)]
    pub size: Size,
}

/// One of `template`, `release` and `oci`; none means the template "default".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// A template that is extended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// A release of Debian (or Ubuntu).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Where the release's packages come from, as mmdebstrap takes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// An archive of `docker save`, or one with an OCI image layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileToCopy {
    /// A file, or a directory with all that is in it; relative to the declaration.
    pub source: PathBuf,
    /// Its path in the image.
    pub destination: String,
    /// Of the file, and of all files in a directory, in octal; as it is, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Startup {
    /// Run in the REPL before anyone has it.
    #[serde(default)]
    pub python: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// Repeated until it succeeds; then the template is ready.
    pub bash: String,
    #[serde(default = "ready_timeout_ms")]
    pub timeout_ms: u32,
}

fn ready_timeout_ms() -> u32 {
    60_000
}

/// What is not given is the base's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gib: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram_mib: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
}

impl Declaration {
    /// Reads a file. The sources that it names become absolute paths.
    pub fn read(path: &Path) -> Result<Declaration, BuildError> {
        let size = fs::metadata(path).map_err(BuildError::file("read", path))?.len();
        if size > DECLARATION_BYTES_MAX {
            let reason = format!("{size} bytes are more than the {DECLARATION_BYTES_MAX} of any declaration");
            return Err(BuildError::Declaration {
                file: path.display().to_string(),
                key: "file".into(),
                reason,
            });
        }
        let text = fs::read_to_string(path).map_err(BuildError::file("read", path))?;
        let mut declaration = Declaration::parse(&path.display().to_string(), &text)?;
        let absolute = std::path::absolute(path).map_err(BuildError::file("find", path))?;
        declaration.resolve_sources(absolute.parent().unwrap_or(Path::new("/")));
        Ok(declaration)
    }

    /// Checks everything that can be told from the text alone. `file` is for messages.
    pub fn parse(file: &str, text: &str) -> Result<Declaration, BuildError> {
        let declaration: Declaration = toml::from_str(text)
            .map_err(|source| BuildError::Definition { name: file.to_owned(), source: Box::new(source) })?;
        declaration.check().map_err(|Wrong { key, reason }| BuildError::Declaration {
            file: file.to_owned(),
            key,
            reason,
        })?;
        Ok(declaration)
    }

    fn resolve_sources(&mut self, directory: &Path) {
        let sources = self.files.iter_mut().map(|file| &mut file.source);
        for source in sources.chain(&mut self.base.oci) {
            *source = directory.join(&*source);
        }
    }

    fn check(&self) -> Result<(), Wrong> {
        check_name("name", &self.name)?;
        if self.name == DEFAULT {
            return Err(wrong("name", "\"default\" is taken by the template that is always there"));
        }
        if self.description.len() > DESCRIPTION_LEN_MAX || self.description.contains(char::is_control) {
            let reason = format!("a description is one line of at most {DESCRIPTION_LEN_MAX} bytes");
            return Err(wrong("description", &reason));
        }
        self.base.check(&self.name)?;
        self.check_items()?;
        self.startup.check()?;
        self.ready.as_ref().map_or(Ok(()), Ready::check)?;
        self.size.check()
    }

    fn check_items(&self) -> Result<(), Wrong> {
        each("packages", &self.packages, check_package)?;
        each("pip", &self.pip, check_requirement)?;
        each("commands", &self.commands, |command| check_text(command, COMMAND_LEN_MAX))?;
        if self.files.len() > ITEMS_MAX {
            return Err(wrong("files", &format!("more than {ITEMS_MAX}")));
        }
        for (index, file) in self.files.iter().enumerate() {
            file.check().map_err(|(key, reason)| wrong(&format!("files[{index}].{key}"), &reason))?;
        }
        if self.env.len() > ITEMS_MAX {
            return Err(wrong("env", &format!("more than {ITEMS_MAX}")));
        }
        for (name, value) in &self.env {
            check_variable(name, value).map_err(|reason| wrong(&format!("env.{name}"), &reason))?;
        }
        if self.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>()
            > ENVIRONMENT_BYTES_MAX
        {
            return Err(wrong("env", &format!("more than {ENVIRONMENT_BYTES_MAX} bytes in all variables")));
        }
        Ok(())
    }
}

impl Base {
    fn check(&self, name: &str) -> Result<(), Wrong> {
        let given = [self.template.is_some(), self.release.is_some(), self.oci.is_some()];
        if given.into_iter().filter(|given| *given).count() > 1 {
            return Err(wrong("base", "give one of template, release and oci, not several"));
        }
        if let Some(template) = &self.template {
            check_name("base.template", template)?;
            if template == name {
                return Err(wrong("base.template", "a template cannot extend itself"));
            }
        }
        if let Some(release) = &self.release
            && !(is_word(release, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
                && release.starts_with(|c: char| c.is_ascii_lowercase()))
        {
            return Err(wrong("base.release", &format!("{release:?} is no release, like \"trixie\"")));
        }
        if self.release.is_none() && !self.mirrors.is_empty() {
            return Err(wrong("base.mirrors", "mirrors are for a release, and base.release is not given"));
        }
        each("base.mirrors", &self.mirrors, |mirror| match mirror.starts_with('-') {
            true => Err("a mirror does not begin with '-'".into()),
            false => check_text(mirror, WORD_LEN_MAX),
        })?;
        match &self.oci {
            Some(path) if path.as_os_str().is_empty() => Err(wrong("base.oci", "the path is empty")),
            _ => Ok(()),
        }
    }
}

impl FileToCopy {
    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.source.as_os_str().is_empty() {
            return Err(("source", "the path is empty".into()));
        }
        let destination = Path::new(&self.destination);
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        if !destination.is_absolute()
            || destination.parent().is_none()
            || !destination.components().all(plain)
            || self.destination.contains(char::is_control)
        {
            return Err(("destination", "give the whole path in the image, like \"/opt/tool/run\"".into()));
        }
        if let Some(fleeting) = FLEETING.iter().find(|fleeting| destination.starts_with(fleeting)) {
            return Err(("destination", format!("{fleeting} is empty at each start; choose another place")));
        }
        match &self.mode {
            Some(mode) if parse_mode(mode).is_none() => {
                Err(("mode", format!("{mode:?} is no mode in octal, like \"0755\"")))
            }
            _ => Ok(()),
        }
    }
}

impl Startup {
    fn check(&self) -> Result<(), Wrong> {
        if self.python.len() > COMMAND_LEN_MAX || self.python.contains('\0') {
            return Err(wrong(
                "startup.python",
                &format!("at most {COMMAND_LEN_MAX} bytes, none of them NUL"),
            ));
        }
        Ok(())
    }
}

impl Ready {
    fn check(&self) -> Result<(), Wrong> {
        check_text(&self.bash, COMMAND_LEN_MAX).map_err(|reason| wrong("ready.bash", &reason))?;
        in_range("ready.timeout_ms", self.timeout_ms, &READY_TIMEOUT_MS)
    }
}

impl Size {
    fn check(self) -> Result<(), Wrong> {
        let sizes = [
            ("size.disk_gib", self.disk_gib, DISK_GIB),
            ("size.ram_mib", self.ram_mib, RAM_MIB),
            ("size.vcpus", self.vcpus, VCPUS),
        ];
        sizes.into_iter().try_for_each(|(key, size, range)| match size {
            Some(size) => in_range(key, size, &range),
            None => Ok(()),
        })
    }

    pub(crate) fn or(self, base: Size) -> Size {
        Size {
            disk_gib: self.disk_gib.or(base.disk_gib),
            ram_mib: self.ram_mib.or(base.ram_mib),
            vcpus: self.vcpus.or(base.vcpus),
        }
    }
}

/// A value that cannot be used, by its key.
struct Wrong {
    key: String,
    reason: String,
}

fn wrong(key: &str, reason: &str) -> Wrong {
    Wrong { key: key.to_owned(), reason: reason.to_owned() }
}

fn check_name(key: &str, name: &str) -> Result<(), Wrong> {
    match is_name(name) {
        true => Ok(()),
        false => Err(wrong(
            key,
            &format!("{name:?} is no name: small letters, digits and '-' between them, at most 63"),
        )),
    }
}

fn is_word(text: &str, allowed: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.len() <= WORD_LEN_MAX && text.chars().all(allowed)
}

/// `name`, `name:architecture`, `name=version` or `name/release`.
fn check_package(package: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+-.:=/~_".contains(c);
    match is_word(package, allowed) && package.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        true => Ok(()),
        false => Err(format!("{package:?} is no package, like \"git\" or \"git=1:2.47.3-0+deb13u1\"")),
    }
}

fn check_requirement(requirement: &str) -> Result<(), String> {
    if requirement.starts_with('-') {
        return Err(format!("{requirement:?} is an option of pip; only requirements can be given"));
    }
    check_text(requirement, WORD_LEN_MAX)?;
    match requirement.contains(char::is_control) {
        true => Err("a requirement is one line".into()),
        false => Ok(()),
    }
}

fn check_variable(name: &str, value: &str) -> Result<(), String> {
    let is_name = is_word(name, |c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("a variable's name is made of letters, digits and '_'".into());
    }
    if value.len() > VARIABLE_LEN_MAX || value.contains(char::is_control) {
        return Err(format!("a variable's value is one line of at most {VARIABLE_LEN_MAX} bytes"));
    }
    Ok(())
}

fn check_text(text: &str, len_max: usize) -> Result<(), String> {
    match text {
        _ if text.trim().is_empty() => Err("it is empty".into()),
        _ if text.len() > len_max => Err(format!("it has more than {len_max} bytes")),
        _ if text.contains('\0') => Err("it holds a NUL byte".into()),
        _ => Ok(()),
    }
}

fn each(key: &str, items: &[String], check: impl Fn(&str) -> Result<(), String>) -> Result<(), Wrong> {
    if items.len() > ITEMS_MAX {
        return Err(wrong(key, &format!("more than {ITEMS_MAX}")));
    }
    items.iter().enumerate().try_for_each(|(index, item)| {
        check(item).map_err(|reason| wrong(&format!("{key}[{index}]"), &reason))
    })
}

fn in_range(key: &str, value: u32, range: &std::ops::RangeInclusive<u32>) -> Result<(), Wrong> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(wrong(
            key,
            &format!("{value} is out of range: it can be {} to {}", range.start(), range.end()),
        )),
    }
}

/// Permissions of a file from octal digits.
pub(crate) fn parse_mode(text: &str) -> Option<u32> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    is_octal.then(|| u32::from_str_radix(text, 8).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WHOLE: &str = r#"
        name = "whole"
        description = "Everything that can be said."
        packages = ["ffmpeg", "git=1:2.47.3-0+deb13u1", "libc6:amd64", "g++"]
        pip = ["numpy==2.3.1", "requests[socks] >= 2"]
        commands = ["echo built > /etc/built"]
        [base]
        release = "trixie"
        mirrors = ["deb http://mirror.example/debian trixie main"]
        [[files]]
        source = "tool.sh"
        destination = "/opt/tool/run"
        mode = "0755"
        [env]
        TOOL_HOME = "/opt/tool"
        [startup]
        python = "import numpy as np"
        [ready]
        bash = "test -e /opt/tool/run"
        timeout_ms = 5000
        [size]
        disk_gib = 8
        ram_mib = 2048
        vcpus = 2
    "#;

    fn refusal(text: &str) -> String {
        format!("{:#}", anyhow_like(&Declaration::parse("mine.toml", text).unwrap_err()))
    }

    /// An error with all its causes.
    fn anyhow_like(error: &dyn std::error::Error) -> String {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    #[test]
    fn a_whole_declaration_is_understood_and_comes_back_from_what_is_written_of_it() {
        let declaration = Declaration::parse("mine.toml", WHOLE).unwrap();
        assert_eq!(declaration.size.disk_gib, Some(8));
        let written = toml::to_string(&declaration).unwrap();
        assert_eq!(Declaration::parse("again.toml", &written).unwrap(), declaration);
    }

    #[test]
    fn a_name_is_all_that_is_needed() {
        let declaration = Declaration::parse("mine.toml", "name = \"small\"").unwrap();
        assert_eq!(declaration.base, Base::default());
    }

    #[test]
    fn a_misspelt_key_is_named() {
        for text in ["name = \"a\"\npackage = []", "name = \"a\"\n[size]\nram_mb = 1"] {
            let refused = refusal(text);
            assert!(refused.contains("mine.toml") && refused.contains("unknown field"), "{refused}");
        }
    }

    #[test]
    fn each_refusal_points_at_its_key() {
        let variables: String = (0..9).map(|n| format!("A{n} = \"{}\"\n", "x".repeat(4000))).collect();
        let too_many_bytes = format!("name = \"a\"\n[env]\n{variables}");
        let refused = [
            ("name = \"Upper\"", "name:"),
            ("name = \"-a\"", "name:"),
            ("name = \"../up\"", "name:"),
            ("name = \"default\"", "name:"),
            ("name = \"a\"\ndescription = \"two\\nlines\"", "description:"),
            ("name = \"a\"\npackages = [\"git\", \"--force\"]", "packages[1]:"),
            ("name = \"a\"\npackages = [\"git; rm\"]", "packages[0]:"),
            ("name = \"a\"\npip = [\"-r file\"]", "pip[0]:"),
            ("name = \"a\"\npip = [\"a\\nb\"]", "pip[0]:"),
            ("name = \"a\"\ncommands = [\" \"]", "commands[0]:"),
            ("name = \"a\"\n[base]\ntemplate = \"a\"", "base.template:"),
            ("name = \"a\"\n[base]\ntemplate = \"b\"\nrelease = \"trixie\"", "base:"),
            ("name = \"a\"\n[base]\nrelease = \"--x\"\n", "base.release:"),
            ("name = \"a\"\n[base]\nmirrors = [\"http://m.example\"]", "base.mirrors:"),
            ("name = \"a\"\n[env]\n\"A-B\" = \"x\"", "env.A-B:"),
            ("name = \"a\"\n[env]\nA = \"x\\ny\"", "env.A:"),
            (too_many_bytes.as_str(), "env:"),
            ("name = \"a\"\n[ready]\nbash = \"\"", "ready.bash:"),
            ("name = \"a\"\n[ready]\nbash = \"true\"\ntimeout_ms = 0", "ready.timeout_ms:"),
            ("name = \"a\"\n[size]\ndisk_gib = 0", "size.disk_gib:"),
            ("name = \"a\"\n[size]\nram_mib = 1", "size.ram_mib:"),
            ("name = \"a\"\n[size]\nvcpus = 33", "size.vcpus:"),
        ];
        for (text, key) in refused {
            let refused = refusal(text);
            assert!(refused.starts_with(&format!("mine.toml: {key} ")), "{text}: {refused}");
        }
    }

    #[test]
    fn a_file_has_a_place_in_the_image_that_stays() {
        let file = |destination: &str, mode: &str| {
            let text = format!(
                "name = \"a\"\n[[files]]\nsource = \"x\"\ndestination = {destination:?}\nmode = {mode:?}"
            );
            Declaration::parse("mine.toml", &text).err().map(|error| error.to_string())
        };
        assert_eq!(file("/opt/x", "644"), None);
        for destination in ["relative", "/", "/opt/../etc/x", "/run/x", "/proc/x", "/a\nb"] {
            assert!(file(destination, "644").unwrap().contains("files[0].destination:"), "{destination}");
        }
        for mode in ["", "rwx", "888", "00644", "+644"] {
            assert!(file("/opt/x", mode).unwrap().contains("files[0].mode:"), "{mode}");
        }
    }

    #[test]
    fn sources_are_relative_to_the_declaration() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mine.toml");
        fs::write(&path, WHOLE).unwrap();
        assert_eq!(Declaration::read(&path).unwrap().files[0].source, home.path().join("tool.sh"));
    }

    proptest! {
        /// Nothing that is taken for a name leaves a directory or needs quoting.
        #[test]
        fn what_is_a_name_is_a_plain_file_name(name in ".{0,70}") {
            if is_name(&name) {
                prop_assert!(!name.contains(['/', '.', '\0', ' ']) && !name.is_empty());
            }
        }

        #[test]
        fn no_text_makes_the_parser_fail_otherwise_than_with_an_error(text in ".{0,400}") {
            drop(Declaration::parse("mine.toml", &text));
        }
    }
}
