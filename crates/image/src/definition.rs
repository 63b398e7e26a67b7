//! The definition files of `images/`: what goes into an image, as data.

use crate::error::BuildError;
use serde::Deserialize;

/// The definition that comes with the program.
const GUEST: &str = include_str!("../../../images/guest.toml");
/// The definition that comes with the program.
const HOST: &str = include_str!("../../../images/emulated-host.toml");

/// A microVM's image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestDefinition {
    /// The Debian (or Ubuntu) release.
    pub release: String,
    /// Where packages come from, as mmdebstrap takes it; empty for the tool's default.
    #[serde(default)]
    pub mirrors: Vec<String>,
    pub disk_gib: u64,
    /// Installed besides the smallest system that has apt.
    pub packages: Vec<String>,
    /// Further arguments of mmdebstrap.
    #[serde(default)]
    pub options: Vec<String>,
    /// A shell script that changes the root directory `$1` when all packages are installed.
    #[serde(default)]
    pub customize: String,
    pub kernel: KernelDefinition,
}

/// The emulated host's image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostDefinition {
    pub release: String,
    #[serde(default)]
    pub mirrors: Vec<String>,
    pub kernel: KernelDefinition,
    pub programs: ProgramsDefinition,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramsDefinition {
    pub packages: Vec<String>,
    /// Programs of these packages, which are put into the initramfs with their libraries.
    pub names: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelDefinition {
    /// The kernel's package first; others only if the initramfs takes a program from them.
    pub packages: Vec<String>,
    /// Modules for the initramfs, in the order of loading. Those that they need are found and put before.
    pub modules: Vec<String>,
}

impl GuestDefinition {
    pub fn parse(name: &str, text: &str) -> Result<GuestDefinition, BuildError> {
        parse(name, text)
    }

    pub fn built_in() -> GuestDefinition {
        parse("images/guest.toml", GUEST).expect("a test reads the definition that is built in")
    }
}

impl HostDefinition {
    pub fn built_in() -> HostDefinition {
        parse("images/emulated-host.toml", HOST).expect("a test reads the definition that is built in")
    }
}

fn parse<T: for<'de> Deserialize<'de>>(name: &str, text: &str) -> Result<T, BuildError> {
    toml::from_str(text)
        .map_err(|source| BuildError::Definition { name: name.to_owned(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_that_are_built_in_are_valid() {
        assert!(GuestDefinition::built_in().packages.contains(&"python3".to_owned()));
        assert!(HostDefinition::built_in().kernel.modules.contains(&"kvm_amd".to_owned()));
    }

    #[test]
    fn a_misspelt_field_is_refused() {
        let error = GuestDefinition::parse("mine.toml", "relase = \"trixie\"").unwrap_err();
        assert!(error.to_string().contains("mine.toml"));
    }
}
