//! What the guests of a host that is started here are told of this machine's network, where this machine's own
//! environment says that it needs telling: certificates, proxies, package indexes.

use anyhow::Context;
use podflare_emulated_host::places::Places;
use podflare_image::machine_settings::MachineSettings;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

const CA_BUNDLE: &str = "ca-bundle.pem";

pub(crate) struct GuestSettings {
    /// Has the certificates, for a host that sees no other of this machine's files.
    pub(crate) directory: PathBuf,
    machine: MachineSettings,
}

impl GuestSettings {
    pub(crate) fn of_this_machine(places: &Places) -> anyhow::Result<GuestSettings> {
        GuestSettings::of(MachineSettings::of_this_machine(), places)
    }

    fn of(machine: MachineSettings, places: &Places) -> anyhow::Result<GuestSettings> {
        let directory = places.home.join("guest-settings");
        fs::create_dir_all(&directory).with_context(|| format!("Cannot make {}", directory.display()))?;
        if let Some(bundle) = &machine.ca_bundle {
            let copied = fs::copy(bundle, directory.join(CA_BUNDLE));
            copied.with_context(|| format!("Cannot copy {}", bundle.display()))?;
        }
        Ok(GuestSettings { directory, machine })
    }

    /// hostd's settings for it.
    pub(crate) fn environment(&self) -> Vec<(String, OsString)> {
        let mut environment = Vec::new();
        if self.machine.ca_bundle.is_some() {
            environment.push(("PODFLARE_GUEST_CA_BUNDLE".to_owned(), self.directory.join(CA_BUNDLE).into()));
        }
        let (variables, _) = self.machine.for_guests();
        if !variables.is_empty() {
            let lines: Vec<String> =
                variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
            environment.push(("PODFLARE_GUEST_ENV".to_owned(), lines.join("\n").into()));
        }
        environment
    }

    /// What the user of this machine should know of it.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let (shared, kept) = self.machine.for_guests();
        let names = shared.into_keys().collect::<Vec<String>>().join(", ");
        let bundle = self.machine.ca_bundle.as_ref();
        let certificates = bundle.map(|bundle| format!("the certificates of {}", bundle.display()));
        let told: Vec<String> =
            certificates.into_iter().chain((!names.is_empty()).then_some(names)).collect();
        let told = (!told.is_empty())
            .then(|| format!("Sandboxes have this machine's settings of the network: {}.", told.join(", ")));
        let kept = (!kept.is_empty()).then(|| {
            let names = kept.join(", ");
            format!(
                "They do not have {names}: what names a place of this machine, holds a password, or is of no use \
                 without such, stays here."
            )
        });
        told.into_iter().chain(kept).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn settings(machine: MachineSettings) -> (tempfile::TempDir, GuestSettings) {
        let home = tempfile::tempdir().unwrap();
        let places = Places { home: home.path().to_owned(), programs: "/".into() };
        let settings = GuestSettings::of(machine, &places).unwrap();
        (home, settings)
    }

    #[test]
    fn a_machine_that_needs_no_settings_gives_none() {
        let system_ca_bundle = Some("/etc/ssl/certs/ca-certificates.crt".into());
        let (_home, settings) = settings(MachineSettings { system_ca_bundle, ..MachineSettings::default() });
        assert_eq!((settings.environment(), settings.remarks()), (vec![], vec![]));
    }

    #[test]
    fn certificates_and_variables_are_handed_on_and_passwords_are_not() {
        let bundle = tempfile::NamedTempFile::new().unwrap();
        fs::write(bundle.path(), "PEM").unwrap();
        let variables = [
            ("PIP_INDEX_URL", "https://index.example/simple"),
            ("https_proxy", "http://me:secret@proxy.example"),
            ("no_proxy", "localhost"),
        ];
        let (home, settings) = settings(MachineSettings {
            ca_bundle: Some(bundle.path().to_owned()),
            variables: variables
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into_iter()
                .collect::<BTreeMap<_, _>>(),
            ..MachineSettings::default()
        });
        let environment: BTreeMap<_, _> = settings.environment().into_iter().collect();
        let copy = home.path().join("guest-settings/ca-bundle.pem");
        assert_eq!(environment["PODFLARE_GUEST_CA_BUNDLE"], copy);
        assert_eq!(fs::read_to_string(copy).unwrap(), "PEM");
        let lines = "PIP_INDEX_URL=https://index.example/simple\nno_proxy=localhost";
        assert_eq!(environment["PODFLARE_GUEST_ENV"], lines);
        let remarks = settings.remarks().join("\n");
        assert!(remarks.contains("https_proxy") && !remarks.contains("secret"), "{remarks}");
    }
}
