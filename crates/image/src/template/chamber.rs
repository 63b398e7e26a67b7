//! Runs a root directory's own programs in it, shut in by bubblewrap: they see that directory as the whole
//! file system, no process of this machine, and none of its devices, and may do what installing packages takes.
//!
//! The network is this machine's, with its certificates, proxies and package indexes. They are told by files
//! and variables that are there for the time of a command only.
//!
//! What the image says is for its own programs alone. bubblewrap, which is this machine's and may be root's, gets
//! their environment as something to pass on, and mounts only where no link of the image leads it elsewhere.

use super::root::Root;
use crate::disk;
use crate::machine_settings::MachineSettings;
use crate::tool::{self, ToolError};
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
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

/// What is mounted on directories of the image. None of them may be a link, or lie behind one.
const MOUNT_POINTS: [&str; 3] = ["/dev", "/proc", "/run"];
/// This machine's is mounted on the image's.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where images keep the certificates that all their programs trust.
const USUAL_CA_BUNDLES: [&str; 2] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
const CA_BUNDLE_BYTES_MAX: u64 = 4 << 20;
const CA_BUNDLE: &str = "ca-bundle.pem";

/// For apt in the chamber: indexes and archives are kept in the chamber's own directory.
const APT_CONF: &str = r#"
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Dir::Cache "/run/podflare/apt";
Dir::State::lists "/run/podflare/apt/lists";
Dpkg::Use-Pty "0";
"#;
const APT_CA_BUNDLE: &str = r#"Acquire::https::CaInfo "/run/podflare/ca-bundle.pem";"#;

/// Services are for the guests, and not for the machine that builds. A root that has such a policy keeps it.
const KEEP_SERVICES_FROM_STARTING: &str = r#"
command -v dpkg >/dev/null || exit 0
[ ! -e /usr/sbin/policy-rc.d ] && [ ! -L /usr/sbin/policy-rc.d ] || exit 0
mkdir -p /usr/sbin
printf '%s' "$1" >/usr/sbin/policy-rc.d
chmod 0755 /usr/sbin/policy-rc.d
"#;
const LET_SERVICES_START: &str = r#"
[ ! -f /usr/sbin/policy-rc.d ] || [ "$(cat /usr/sbin/policy-rc.d)" != "$1" ] || rm /usr/sbin/policy-rc.d
"#;
const POLICY: &str = "#!/bin/sh\n# Of the build of a template.\nexit 101";

#[derive(Debug)]
pub(crate) struct Chamber<'a> {
    root: &'a Path,
    /// Has what is shown below `/run/podflare`. Nothing in the chamber can change it, but what is in `apt`.
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
    ) -> io::Result<Chamber<'a>> {
        fs::create_dir_all(scratch.join("apt/lists/partial"))?;
        fs::create_dir_all(scratch.join("apt/archives/partial"))?;
        Ok(Chamber { root, place: scratch.to_owned(), settings, environment: BTreeMap::new() })
    }

    /// Runs a script of the image's own shell with these arguments. `source` is seen as `/run/podflare/source`.
    pub(crate) fn run(
        &self,
        script: &str,
        arguments: &[String],
        source: Option<&Path>,
    ) -> Result<(), ToolError> {
        let root = Root::open(self.root).map_err(|source| lay_on("the root", source))?;
        lay_on_mount_points(&root)?;
        let mut command = disk::as_root(tool::path("bwrap")?);
        command.args(["--die-with-parent", "--new-session"]);
        command.args(["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--hostname", "sandbox"]);
        command.args(["--cap-drop", "ALL"]);
        command.args(CAPABILITIES.iter().flat_map(|name| ["--cap-add", name]));
        command.arg("--bind").arg(self.root).arg("/");
        // In a new /run, where the image has nothing that could lead away from it.
        command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run"]);
        command.args(["--ro-bind-try", RESOLV_CONF, RESOLV_CONF]);
        command.arg("--bind").arg(self.place.join("apt")).arg("/run/podflare/apt");
        let has_ca_bundle = self.write_files(&root).map_err(|source| lay_on("settings", source))?;
        let environment = self.share_settings(&mut command, has_ca_bundle);
        if let Some(source) = source {
            command.arg("--ro-bind").arg(source).arg("/run/podflare/source");
        }
        let variables =
            variables_to_pass(&environment).map_err(|source| lay_on("the environment", source))?;
        command.arg("--args").arg(variables.as_raw_fd().to_string()).args(["--chdir", "/root"]);
        command.args(["--", "bash", "-eu", "-o", "pipefail", "-c", script, "bash"]).args(arguments);
        tool::run(&mut command)
    }

    /// Until [`Chamber::let_services_start`], packages that are installed leave theirs alone.
    pub(crate) fn keep_services_from_starting(&self) -> Result<(), ToolError> {
        self.run(KEEP_SERVICES_FROM_STARTING, &[POLICY.to_owned()], None)
    }

    pub(crate) fn let_services_start(&self) -> Result<(), ToolError> {
        self.run(LET_SERVICES_START, &[POLICY.to_owned()], None)
    }

    /// Settings for programs, and a bundle of certificates; says whether there are any certificates. Some programs trust
    /// the bundle alone, so it has what the image trusts, and this machine, and what this machine's environment names.
    fn write_files(&self, root: &Root) -> io::Result<bool> {
        let of_image = USUAL_CA_BUNDLES.iter().find_map(|path| root.read(path, CA_BUNDLE_BYTES_MAX));
        let mut bundle = of_image.unwrap_or_default();
        for path in [&self.settings.system_ca_bundle, &self.settings.ca_bundle].into_iter().flatten() {
            // Not every bundle ends with a line's end.
            bundle.push(b'\n');
            bundle.extend(fs::read(path)?);
        }
        fs::write(self.place.join(CA_BUNDLE), &bundle)?;
        let of_apt = if bundle.is_empty() { "" } else { APT_CA_BUNDLE };
        fs::write(self.place.join("apt.conf"), format!("{APT_CONF}{of_apt}\n"))?;
        Ok(!bundle.is_empty())
    }

    /// Gives the environment of the image's programs.
    fn share_settings(&self, command: &mut Command, has_ca_bundle: bool) -> BTreeMap<String, String> {
        let mut environment: BTreeMap<String, String> = ENVIRONMENT
            .iter()
            .chain(&PIP_ENVIRONMENT)
            .map(|&(name, value)| (name.into(), value.into()))
            .collect();
        environment.extend(self.settings.variables.clone());
        let mut share = |from: &Path, name: &str| {
            let path = format!("/run/podflare/{name}");
            command.arg("--ro-bind").arg(from).arg(&path);
            path
        };
        share(&self.place.join("apt.conf"), "apt.conf");
        if has_ca_bundle {
            let path = share(&self.place.join(CA_BUNDLE), CA_BUNDLE);
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
        environment.extend(self.environment.clone());
        environment
    }
}

/// Each time, since the image's programs may have changed what is there.
fn lay_on_mount_points(root: &Root) -> Result<(), ToolError> {
    for path in MOUNT_POINTS {
        root.make_mount_point(path).map_err(|source| lay_on(path, source))?;
    }
    root.make_mounted_file(RESOLV_CONF).map_err(|source| lay_on(RESOLV_CONF, source))?;
    // Not every image of a container has these.
    for (path, mode) in [("/root", 0o700), ("/tmp", 0o1777)] {
        root.make_directory(path, mode).map_err(|source| lay_on(path, source))?;
    }
    Ok(())
}

/// Options for bubblewrap in a file that it inherits. Not as its own environment, in which an image's variables would
/// be this machine's loader's; and not as its arguments, which everyone here sees: an index may have a password.
fn variables_to_pass(environment: &BTreeMap<String, String>) -> io::Result<File> {
    let mut options = b"--clearenv\0".to_vec();
    for (name, value) in environment {
        for word in ["--setenv", name, value] {
            options.extend_from_slice(word.as_bytes());
            options.push(0);
        }
    }
    let mut file = File::from(memfd_create("environment", MemfdFlags::empty())?);
    file.write_all(&options)?;
    file.rewind()?;
    Ok(file)
}

fn lay_on(what: &str, source: io::Error) -> ToolError {
    ToolError::LayOn { what: what.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A root with bash and little else, and a directory of this machine.
    struct Workshop {
        home: tempfile::TempDir,
    }

    impl Workshop {
        fn new() -> Workshop {
            Workshop::with(&["/bin/bash", "/bin/cat", "/bin/ln"])
        }

        fn with(programs: &[&str]) -> Workshop {
            let workshop = Workshop { home: tempfile::tempdir().unwrap() };
            fs::create_dir(workshop.path("outside")).unwrap();
            for &program in programs {
                let libraries = Command::new("ldd").arg(program).output().unwrap().stdout;
                let libraries = String::from_utf8(libraries).unwrap();
                let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
                for path in paths.chain([program]) {
                    let place = workshop.path("root").join(path.trim_start_matches('/'));
                    fs::create_dir_all(place.parent().unwrap()).unwrap();
                    fs::copy(path, place).unwrap();
                }
            }
            workshop
        }

        fn path(&self, name: &str) -> PathBuf {
            self.home.path().join(name)
        }

        /// Where bubblewrap has this machine's files while it mounts.
        fn outside(&self) -> String {
            format!("/oldroot{}", self.path("outside").display())
        }

        fn run(&self, script: &str, environment: &[(&str, &str)]) -> Result<(), ToolError> {
            self.run_with(script, environment, &MachineSettings::default())
        }

        fn run_with(
            &self,
            script: &str,
            environment: &[(&str, &str)],
            settings: &MachineSettings,
        ) -> Result<(), ToolError> {
            let (root, place) = (self.path("root"), self.path("place"));
            let mut chamber = Chamber::new(&root, &place, settings).unwrap();
            chamber.environment =
                environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
            let source = self.path("source");
            fs::write(&source, "source").unwrap();
            chamber.run(script, &[], Some(&source))
        }

        fn is_outside_untouched(&self) -> bool {
            fs::read_dir(self.path("outside")).unwrap().count() == 0
        }
    }

    #[test]
    fn an_images_environment_is_not_that_of_this_machines_programs() {
        let workshop = Workshop::new();
        let log = workshop.path("outside").join("log").display().to_string();
        let hostile = [
            ("LD_DEBUG", "libs"),
            ("LD_DEBUG_OUTPUT", log.as_str()),
            ("PATH", "/opt/bin:/bin"),
            ("SAID", "'by \"the image\""),
        ];
        workshop
            .run("test \"$SAID\" = \"'by \\\"the image\\\"\" && test $PATH = /opt/bin:/bin", &hostile)
            .unwrap();
        assert!(workshop.is_outside_untouched(), "bubblewrap's loader has heard of it");
        let error =
            workshop.run("test -z \"${CARGO+x}\" && test $HOME = /root && echo it was me; exit 1", &[]);
        assert!(error.unwrap_err().to_string().ends_with("it was me"));
    }

    #[test]
    fn links_in_place_of_mount_points_do_not_lead_out_of_the_root() {
        for path in ["etc", "run", "dev", "proc"] {
            let workshop = Workshop::new();
            symlink(workshop.outside(), workshop.path("root").join(path)).unwrap();
            let error = workshop.run("true", &[]).unwrap_err();
            assert!(matches!(&error, ToolError::LayOn { what, .. } if what.contains(path)), "{error}");
            assert!(workshop.is_outside_untouched(), "{path}");
        }
        for path in ["etc/resolv.conf", "root", "tmp"] {
            let workshop = Workshop::new();
            let link = workshop.path("root").join(path);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(format!("{}/made", workshop.outside()), &link).unwrap();
            // One of a directory leads nowhere, and is left for its author to mend; this machine has nothing of it.
            assert_eq!(workshop.run("true", &[]).is_ok(), path == "etc/resolv.conf", "{path}");
            assert!(workshop.is_outside_untouched(), "{path}");
        }
    }

    #[test]
    fn what_a_program_of_the_image_leaves_does_not_lead_the_next_one_out_of_the_root() {
        let workshop = Workshop::new();
        let out = workshop.outside();
        let plant = format!(
            "for name in other ca-bundle.pem; do ln -sf {out}/$name /run/podflare/$name || true; done
            ln -s {out}/later /run/podflare/later; ln -sfn {out}/apt /run/podflare/apt/lists/link"
        );
        workshop.run(&plant, &[]).unwrap();
        workshop.run("test ! -L /run/podflare/later && test ! -L /run/podflare/ca-bundle.pem", &[]).unwrap();
        assert!(workshop.is_outside_untouched());
        assert!(!workshop.path("place/later").is_symlink());
    }

    #[test]
    fn services_do_not_start_while_a_template_is_built() {
        let workshop = Workshop::with(&["/bin/bash", "/bin/cat", "/bin/chmod", "/bin/mkdir", "/bin/rm"]);
        fs::copy("/bin/cat", workshop.path("root/bin/dpkg")).unwrap();
        fs::copy("/bin/bash", workshop.path("root/bin/sh")).unwrap();
        let (root, place, settings) =
            (workshop.path("root"), workshop.path("place"), MachineSettings::default());
        let chamber = Chamber::new(&root, &place, &settings).unwrap();
        chamber.keep_services_from_starting().unwrap();
        chamber
            .run("code=0; /usr/sbin/policy-rc.d nginx start || code=$?; test $code = 101", &[], None)
            .unwrap();
        chamber.let_services_start().unwrap();
        let policy = root.join("usr/sbin/policy-rc.d");
        assert!(!policy.exists());
        // The image's own stays.
        fs::write(&policy, "exit 0").unwrap();
        chamber.keep_services_from_starting().unwrap();
        chamber.let_services_start().unwrap();
        assert_eq!(fs::read(&policy).unwrap(), b"exit 0");
    }

    #[test]
    fn files_in_tmp_stay_for_the_next_command_and_in_the_image() {
        let workshop = Workshop::new();
        workshop.run("echo left >/tmp/left", &[]).unwrap();
        workshop.run("test \"$(cat /tmp/left)\" = left", &[]).unwrap();
        assert!(workshop.path("root/tmp/left").is_file());
    }

    #[test]
    fn a_bundle_that_programs_trust_alone_has_what_the_image_and_this_machine_trust() {
        let workshop = Workshop::new();
        let certs = workshop.path("root/etc/ssl/certs");
        fs::create_dir_all(&certs).unwrap();
        fs::write(certs.join("ca-certificates.crt"), "of the image").unwrap();
        fs::write(workshop.path("system.pem"), "of this machine").unwrap();
        fs::write(workshop.path("extra.pem"), "of its environment").unwrap();
        let settings = MachineSettings {
            ca_bundle: Some(workshop.path("extra.pem")),
            system_ca_bundle: Some(workshop.path("system.pem")),
            ..MachineSettings::default()
        };
        let script = "for name in $NODE_EXTRA_CA_CERTS $SSL_CERT_FILE $PIP_CERT; do
            test \"$(cat $name)\" = $'of the image\\nof this machine\\nof its environment'; done";
        workshop.run_with(script, &[], &settings).unwrap();
        // Without any, nothing is named.
        fs::remove_file(certs.join("ca-certificates.crt")).unwrap();
        workshop.run("test -z \"${SSL_CERT_FILE+x}\"", &[]).unwrap();
    }
}
