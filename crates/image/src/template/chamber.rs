//! Runs a root directory's own programs in it, shut in by bubblewrap: they see that directory as the whole
//! file system, no process of this machine, and none of its devices, and may do what installing packages takes.
//!
//! The network is this machine's, with its certificates, proxies and package indexes. They are told by files
//! and variables that are there for the time of a command only.

use crate::disk;
use crate::machine_settings::MachineSettings;
use crate::tool::{self, ToolError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What changing owners, permissions and users needs. Not among them: devices, mounts, modules, networks, tracing.
const CAPABILITIES: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// As the agent has it.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("APT_CONFIG", "/run/podflare/apt.conf"),
];

/// pip is to change the image's own Python, and to leave nothing else there.
const PIP_ENVIRONMENT: [(&str, &str); 6] = [
    ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
    ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
    ("PIP_NO_CACHE_DIR", "1"),
    ("PIP_NO_INPUT", "1"),
    ("PIP_PROGRESS_BAR", "off"),
    ("PIP_ROOT_USER_ACTION", "ignore"),
];

/// Programs read the bundle by different names.
const CA_VARIABLES: [&str; 6] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
];

/// For apt in the chamber: indexes and archives are kept in the chamber's own directory.
const APT_CONF: &str = r#"
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::https::CaInfo "/run/podflare/ca-bundle.pem";
Acquire::Languages "none";
Dir::Cache "/run/podflare/apt";
Dir::State::lists "/run/podflare/apt/lists";
Dpkg::Use-Pty "0";
"#;

#[derive(Debug)]
pub(crate) struct Chamber<'a> {
    root: &'a Path,
    /// Becomes `/run/podflare`.
    place: PathBuf,
    settings: &'a MachineSettings,
    /// What the template adds to the environment.
    pub(crate) environment: BTreeMap<String, String>,
}

impl Chamber<'_> {
    /// `scratch` is an empty directory outside of the root, and goes with the chamber.
    pub(crate) fn new<'a>(
        root: &'a Path,
        scratch: &Path,
        settings: &'a MachineSettings,
    ) -> std::io::Result<Chamber<'a>> {
        std::fs::create_dir_all(scratch.join("apt/lists/partial"))?;
        std::fs::create_dir_all(scratch.join("apt/archives/partial"))?;
        std::fs::write(scratch.join("apt.conf"), APT_CONF)?;
        Ok(Chamber { root, place: scratch.to_owned(), settings, environment: BTreeMap::new() })
    }

    /// Runs a script of the image's own shell with these arguments. `source` is seen as `/run/podflare/source`.
    pub(crate) fn run(
        &self,
        script: &str,
        arguments: &[String],
        source: Option<&Path>,
    ) -> Result<(), ToolError> {
        let mut command = self.command(source)?;
        command.args(["--", "bash", "-eu", "-o", "pipefail", "-c", script, "bash"]).args(arguments);
        tool::run(&mut command)
    }

    fn command(&self, source: Option<&Path>) -> Result<Command, ToolError> {
        let mut command = disk::as_root(tool::path("bwrap")?);
        command.args(["--die-with-parent", "--new-session"]);
        command.args(["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--hostname", "sandbox"]);
        command.args(["--cap-drop", "ALL"]);
        command.args(CAPABILITIES.iter().flat_map(|name| ["--cap-add", name]));
        command.arg("--bind").arg(self.root).arg("/");
        command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run"]);
        command.arg("--bind").arg(&self.place).arg("/run/podflare");
        command.args(["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]);
        // Not every image of a container has it.
        command.args(["--perms", "0700", "--dir", "/root", "--chdir", "/root"]);
        let mut environment: BTreeMap<String, String> = ENVIRONMENT
            .iter()
            .chain(&PIP_ENVIRONMENT)
            .map(|&(name, value)| (name.into(), value.into()))
            .collect();
        self.share_settings(&mut command, &mut environment);
        environment.extend(self.environment.clone());
        // Not as arguments, which everyone on this machine sees: an index may have a password.
        command.env_clear().envs(environment);
        if let Some(source) = source {
            command.arg("--ro-bind").arg(source).arg("/run/podflare/source");
        }
        Ok(command)
    }

    fn share_settings(&self, command: &mut Command, environment: &mut BTreeMap<String, String>) {
        environment.extend(self.settings.variables.clone());
        let mut share = |from: &Path, name: &str| {
            let path = format!("/run/podflare/{name}");
            command.arg("--ro-bind").arg(from).arg(&path);
            path
        };
        if let Some(bundle) = self.settings.ca_bundle.as_ref().or(self.settings.system_ca_bundle.as_ref()) {
            let path = share(bundle, "ca-bundle.pem");
            environment.extend(CA_VARIABLES.map(|name| (name.to_owned(), path.clone())));
        }
        if let Some(config) = &self.settings.pip_config {
            environment.insert("PIP_CONFIG_FILE".into(), share(config, "pip.conf"));
        }
        // Links are pages of the network, or directories of this machine.
        if let Some(links) = environment.get_mut("PIP_FIND_LINKS") {
            let shown =
                links.split_whitespace().enumerate().filter_map(|(index, link)| match Path::new(link) {
                    path if !path.is_absolute() => Some(link.to_owned()),
                    path if path.is_dir() => Some(share(path, &format!("find-links-{index}"))),
                    _ => None,
                });
            *links = shown.collect::<Vec<String>>().join(" ");
        }
    }
}
