//! What guests are told of the host's network: certificates that they are to trust, and variables such as
//! proxies and package indexes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const SCRIPT: &str = include_str!("guest_settings.py");

const CA_BUNDLE_BYTES_MAX: u64 = 4 << 20;
/// What a line has besides name and value: `=`, quotes, and its end.
const LINE_LEN: usize = 4;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
const VARIABLES_MAX: usize = 100;
const VARIABLE_LEN_MAX: usize = 4096;
/// Of all lines as they come to stand in a guest's file, of which the agent reads 64 KiB: a template may fill the rest.
const VARIABLES_BYTES_MAX: usize = 12 * 1024;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestSettings {
    /// PEM, without anything else.
    certificates: String,
    variables: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum GuestSettingsError {
    #[error("Could not read the certificates in {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has more than {CA_BUNDLE_BYTES_MAX} bytes, too many for certificates", path.display())]
    TooLong { path: PathBuf },
    #[error("{} holds no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{variable:?} is no NAME=VALUE of one line and at most {VARIABLE_LEN_MAX} bytes")]
    Variable { variable: String },
    #[error("Guests can be given at most {VARIABLES_MAX} variables, of {VARIABLES_BYTES_MAX} bytes in all")]
    TooManyVariables,
}

impl GuestSettings {
    /// `variables` have the form NAME=VALUE; empty ones are passed over.
    pub fn read(ca_bundle: Option<&Path>, variables: &[String]) -> Result<GuestSettings, GuestSettingsError> {
        let certificates = ca_bundle.map(read_certificates).transpose()?.unwrap_or_default();
        let given = variables.iter().filter(|line| !line.trim().is_empty());
        let variables: BTreeMap<_, _> = given.map(|line| variable(line)).collect::<Result<_, _>>()?;
        // A proxy is told twice, in both cases of its name.
        let count = |name: &str| if name.ends_with("_proxy") { 2 } else { 1 };
        let lines = variables.iter().map(|(name, value)| count(name) * (name.len() + value.len() + LINE_LEN));
        if variables.len() > VARIABLES_MAX || lines.sum::<usize>() > VARIABLES_BYTES_MAX {
            return Err(GuestSettingsError::TooManyVariables);
        }
        Ok(GuestSettings { certificates, variables })
    }

    /// Python for a guest's REPL, which leaves none of its names there; none if there is nothing to tell.
    pub(super) fn code(&self) -> Option<String> {
        if *self == GuestSettings::default() {
            return None;
        }
        // What JSON has for text and for an object of texts, Python has too.
        let [script, certificates] = [SCRIPT, &self.certificates].map(|text| serde_json::json!(text));
        let variables = serde_json::json!(self.variables);
        Some(format!("exec({script}, {{'certificates': {certificates}, 'variables': {variables}}})"))
    }
}

fn read_certificates(path: &Path) -> Result<String, GuestSettingsError> {
    let failed = |source| GuestSettingsError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(CA_BUNDLE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > CA_BUNDLE_BYTES_MAX {
        return Err(GuestSettingsError::TooLong { path: path.to_owned() });
    }
    // Between certificates there may be remarks in any encoding.
    let text = String::from_utf8_lossy(&bytes);
    let certificates: String = text
        .split(BEGIN)
        .skip(1)
        .filter_map(|rest| Some(format!("{BEGIN}{}{END}\n", rest.split_once(END)?.0)))
        .collect();
    match certificates.is_empty() {
        true => Err(GuestSettingsError::NoCertificate { path: path.to_owned() }),
        false => Ok(certificates),
    }
}

fn variable(line: &str) -> Result<(String, String), GuestSettingsError> {
    let refuse = || GuestSettingsError::Variable { variable: line.to_owned() };
    let (name, value) = line.split_once('=').ok_or_else(refuse)?;
    let is_name = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match is_name && line.len() <= VARIABLE_LEN_MAX && !value.contains(char::is_control) {
        true => Ok((name.to_owned(), value.to_owned())),
        false => Err(refuse()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const PEM: &str = "# someone's\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\nremark\n";

    fn bundle(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn settings(text: &str, variables: &[&str]) -> Result<GuestSettings, GuestSettingsError> {
        let variables: Vec<String> = variables.iter().map(|&line| line.to_owned()).collect();
        GuestSettings::read(Some(bundle(text).path()), &variables)
    }

    #[test]
    fn a_host_without_settings_tells_its_guests_nothing() {
        assert_eq!(GuestSettings::read(None, &[String::new()]).unwrap().code(), None);
    }

    #[test]
    fn what_is_no_certificate_or_no_variable_is_refused() {
        assert!(matches!(settings("nothing", &[]), Err(GuestSettingsError::NoCertificate { .. })));
        assert!(matches!(settings(&"x".repeat(5 << 20), &[]), Err(GuestSettingsError::TooLong { .. })));
        for line in ["NAME", "=x", "1A=x", "A-B=x", "A=x\ny"] {
            assert!(matches!(settings(PEM, &[line]), Err(GuestSettingsError::Variable { .. })), "{line}");
        }
        let long: Vec<String> = (0..4).map(|number| format!("A{number}={}", "x".repeat(4000))).collect();
        let refused = GuestSettings::read(None, &long);
        assert!(matches!(refused, Err(GuestSettingsError::TooManyVariables)), "{refused:?}");
        GuestSettings::read(None, &long[..3]).unwrap();
        let gone = GuestSettings::read(Some(Path::new("/no/such/bundle")), &[]);
        assert!(matches!(gone, Err(GuestSettingsError::Read { .. })));
    }

    /// The script as a guest runs it, with the places in it in a directory of this test.
    #[test]
    fn a_guest_trusts_the_certificates_and_has_the_variables() {
        let home = tempfile::tempdir().unwrap();
        let own = "-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----";
        let certs = home.path().join("etc/ssl/certs");
        std::fs::create_dir_all(&certs).unwrap();
        let trusted = certs.join("ca-certificates.crt");
        std::fs::write(&trusted, own).unwrap();
        // Without its last line's end.
        std::fs::write(home.path().join("etc/environment"), "OWN=1").unwrap();
        let code = settings(&format!("{PEM}{own}\n"), &["http_proxy=http://p.example", "WORD=\"x\""]);
        let code = code.unwrap().code().unwrap();
        let root = home.path().display().to_string();
        let code = code.replace("\\\"/etc/", &format!("\\\"{root}/etc/"));
        let code = code.replace("\\\"/usr/", &format!("\\\"{root}/usr/"));
        let check = "import os; print(os.environ['WORD'], os.environ['HTTP_PROXY'], 'trust' in globals())";
        let output = Command::new("python3").arg("-c").arg(format!("{code}\n{check}")).output().unwrap();
        assert_eq!(
            (
                String::from_utf8_lossy(&output.stdout).as_ref(),
                String::from_utf8_lossy(&output.stderr).as_ref()
            ),
            ("\"x\" http://p.example False\n", "")
        );
        let added = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(std::fs::read_to_string(&trusted).unwrap(), format!("{own}\n{added}"));
        let kept = home.path().join("usr/local/share/ca-certificates/host-0.crt");
        assert_eq!(std::fs::read_to_string(kept).unwrap(), added);
        let environment = std::fs::read_to_string(home.path().join("etc/environment")).unwrap();
        // The agent takes one pair of quotes away.
        assert!(environment.contains("\nWORD=\"\"x\"\"\n") && environment.starts_with("OWN=1\nHTTP_PROXY="));
        let names: Vec<&str> =
            environment.lines().skip(1).filter_map(|line| Some(line.split_once('=')?.0)).collect();
        assert_eq!(
            names,
            [
                "HTTP_PROXY",
                "NODE_EXTRA_CA_CERTS",
                "PIP_CERT",
                "REQUESTS_CA_BUNDLE",
                "SSL_CERT_FILE",
                "WORD",
                "http_proxy"
            ]
        );
    }
}
