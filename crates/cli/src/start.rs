//! Starts and stops hostd, natively or in an emulated host.

use crate::args::Up;
use crate::guest_settings::GuestSettings;
use crate::record::{HostKind, Record, run_directory};
use anyhow::{Context, bail};
use podflare_emulated_host::job::{Job, Share, environment_beginning_with};
use podflare_emulated_host::places::Places;
use podflare_emulated_host::service::{
    self, FORWARDED_PORT, STDERR_LOG, STDOUT_LOG, Service, check_address, make_run_directory,
};
use podflare_image::Progress;
use podflare_image::cache::{Cache, KeyBuilder};
use podflare_image::definition::HostDefinition;
use podflare_image::guest::GuestImage;
use podflare_image::host::HostImage;
use podflare_image::template::store::Store;
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) const PROGRAMS: [&str; 3] = ["podflare-vmm", "podflare-hostd", "podflare-agent"];
/// How long hostd has to freeze the sandboxes that outlive it, for which it takes a minute at most, and to end all.
const STOP_PATIENCE: Duration = Duration::from_secs(90);
const KILL_PATIENCE: Duration = Duration::from_secs(5);
const LAST_LINES: usize = 20;

/// In the emulated host.
const EMULATED_LISTEN: &str = "10.0.2.15";
const EMULATED_ROOTFS: &str = "/dev/guest-rootfs";
const EMULATED_STATE: &str = "/var/lib/podflare/state";
const EMULATED_DATA: &str = "/var/lib/podflare/data";

/// What a host is started with.
pub(crate) struct Plan<'a> {
    pub(crate) args: &'a Up,
    pub(crate) places: &'a Places,
    pub(crate) cache: &'a Cache,
    pub(crate) image: &'a GuestImage,
    pub(crate) templates: &'a Store,
    pub(crate) guests: &'a GuestSettings,
    pub(crate) admin_key: &'a str,
}

pub(crate) fn check_programs(places: &Places) -> anyhow::Result<()> {
    for name in PROGRAMS {
        let path = places.program(name);
        if !path.is_file() {
            bail!("{} is missing; `cargo build --release` makes it, or set PODFLARE_BIN_DIR", path.display());
        }
    }
    Ok(())
}

/// The digest of all that a host runs.
pub(crate) fn contents(places: &Places, image: &GuestImage) -> anyhow::Result<String> {
    let key = KeyBuilder::new().bytes("image", image.directory.as_os_str().as_encoded_bytes());
    let key = PROGRAMS.iter().try_fold(key, |key, name| key.file(name, &places.program(name)))?;
    Ok(key.finish().as_str().to_owned())
}

pub(crate) fn start(kind: HostKind, plan: &Plan<'_>, progress: Progress<'_>) -> anyhow::Result<Child> {
    check_address(plan.args.listen)?;
    let programs = copy_programs(plan.places)?;
    match kind {
        HostKind::Native => plan.start_native(&programs),
        HostKind::Emulated => plan.start_emulated(&programs, progress),
    }
}

/// Asks hostd to end its sandboxes and itself, and ends it if it does not.
pub(crate) fn stop(record: &Record, places: &Places) -> anyhow::Result<()> {
    match record.kind {
        HostKind::Emulated => service::stop(record.process, &run_directory(places), STOP_PATIENCE)?,
        HostKind::Native => {
            record.process.signal(Signal::TERM)?;
            if !record.process.wait_until_gone(STOP_PATIENCE)? {
                record.process.signal(Signal::KILL)?;
                record.process.wait_until_gone(KILL_PATIENCE)?;
            }
        }
    }
    Ok(())
}

/// The end of the logs, for an error.
pub(crate) fn last_words(kind: HostKind, places: &Places) -> String {
    let directory = run_directory(places);
    let mut words = vec![format!("Its last words (more in {}):", directory.display())];
    if kind == HostKind::Emulated {
        words.push(service::last_words(&directory));
    }
    for name in [STDOUT_LOG, STDERR_LOG] {
        let log = fs::read(directory.join(name)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        words.extend(lines[lines.len().saturating_sub(LAST_LINES)..].iter().map(|line| format!("  {line}")));
    }
    words.join("\n")
}

/// A host keeps its programs when they are built anew, since it starts them again and again.
fn copy_programs(places: &Places) -> anyhow::Result<PathBuf> {
    let directory = places.home.join("programs");
    fs::create_dir_all(&directory).with_context(|| format!("Cannot make {}", directory.display()))?;
    for name in PROGRAMS {
        let (from, to) = (places.program(name), directory.join(name));
        // A new file: the old one may still be running.
        let part = directory.join(format!("{name}.part"));
        let copied = fs::copy(&from, &part).and_then(|_| fs::rename(&part, &to));
        copied.with_context(|| format!("Cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(directory)
}

impl Plan<'_> {
    fn start_native(&self, programs: &Path) -> anyhow::Result<Child> {
        let directory = run_directory(self.places);
        make_run_directory(&directory).with_context(|| format!("Cannot make {}", directory.display()))?;
        let log = |name: &str| {
            let path = directory.join(name);
            File::create(&path).with_context(|| format!("Cannot make {}", path.display()))
        };
        let [state, data] = ["state", "data"].map(|name| self.places.home.join(name));
        Command::new(programs.join("podflare-hostd"))
            .args(self.arguments(
                &self.args.listen.to_string(),
                &self.image.rootfs(),
                [&state, &data],
                programs,
            ))
            .envs(self.environment())
            .stdin(Stdio::null())
            .stdout(log(STDOUT_LOG)?)
            .stderr(log(STDERR_LOG)?)
            // So that a Ctrl-C for this command is not for the host.
            .process_group(0)
            .spawn()
            .context("Cannot start podflare-hostd")
    }

    fn start_emulated(&self, programs: &Path, progress: Progress<'_>) -> anyhow::Result<Child> {
        let host_image = HostImage::build(self.cache, &HostDefinition::built_in(), progress)?;
        let listen = format!("{EMULATED_LISTEN}:{FORWARDED_PORT}");
        let job = Job {
            program: programs.join("podflare-hostd"),
            arguments: self.arguments(
                &listen,
                Path::new(EMULATED_ROOTFS),
                [EMULATED_STATE, EMULATED_DATA].map(Path::new),
                programs,
            ),
            environment: self.environment(),
            directory: None,
        };
        let service = Service {
            image: &host_image,
            job: &job,
            shares: &[
                Share::lasting(programs),
                Share::lasting(&self.image.directory),
                Share::changing(self.templates.templates()),
                Share::lasting(self.templates.roots()),
                Share::lasting(&self.guests.directory),
            ],
            guest_rootfs: &self.image.rootfs(),
            holder: &[programs.join("podflare-vmm").into(), "hold".into()],
            state_disk: &self.places.home.join("state.ext4"),
            run_directory: &run_directory(self.places),
            listen: self.args.listen,
        };
        Ok(service.start()?)
    }

    fn arguments(
        &self,
        listen: &str,
        rootfs: &Path,
        [state, data]: [&Path; 2],
        programs: &Path,
    ) -> Vec<OsString> {
        vec![
            "--listen".into(),
            listen.into(),
            "--image-dir".into(),
            self.image.directory.clone().into(),
            "--rootfs".into(),
            rootfs.into(),
            "--state-dir".into(),
            state.into(),
            "--data-dir".into(),
            data.into(),
            "--vmm".into(),
            programs.join("podflare-vmm").into(),
        ]
    }

    /// hostd's further settings are its own: it finds them as they are here, also in the emulated host.
    fn environment(&self) -> Vec<(String, OsString)> {
        let mut environment = self.guests.environment();
        // What is set here by hand comes after it, and so counts.
        environment.extend(environment_beginning_with(&["PODFLARE_", "RUST_LOG", "OTEL_"]));
        if let Some(keys) = &self.args.api_keys {
            environment.push(("PODFLARE_API_KEYS".to_owned(), keys.into()));
        }
        environment.push(("PODFLARE_ADMIN_KEY".to_owned(), self.admin_key.into()));
        // In an emulated host hostd listens elsewhere, where nobody but this machine comes.
        environment.push(("PODFLARE_REACHED_AT".to_owned(), self.args.listen.to_string().into()));
        let templates = self.templates.templates().to_owned();
        environment.push(("PODFLARE_TEMPLATE_DIR".to_owned(), templates.into()));
        // Its log is a file.
        environment.push(("NO_COLOR".to_owned(), "1".into()));
        if let Some(pool_size) = self.args.pool_size {
            environment.push(("PODFLARE_POOL_SIZE".to_owned(), pool_size.to_string().into()));
        }
        environment
    }
}
