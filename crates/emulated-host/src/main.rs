//! `host-run PROGRAM [ARGUMENTS]`: runs a program where KVM works: here, or else in an emulated host that is
//! started for it. Meant as cargo's runner for tests.

mod config;

use anyhow::Context;
use config::{Choice, Config};
use podflare_emulated_host::job::{Job, Share};
use podflare_emulated_host::places::Places;
use podflare_emulated_host::probe::Probe;
use podflare_emulated_host::run::{JobError, JobRun};
use podflare_image::cache::Cache;
use podflare_image::definition::{GuestDefinition, HostDefinition};
use podflare_image::guest::GuestImage;
use podflare_image::host::HostImage;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Where the emulated host has the guest's root disk.
const GUEST_ROOTFS: &str = "/dev/guest-rootfs";

/// What the shell gives for a program that could not be run.
const NOT_RUN: u8 = 126;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        say(&format!("{error:#}"));
        ExitCode::from(NOT_RUN)
    })
}

fn run() -> anyhow::Result<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    let program = arguments.next().context("Usage: host-run PROGRAM [ARGUMENTS]")?;
    let program = PathBuf::from(program).canonicalize().context("Cannot find the program")?;
    let config = Config::from_environment()?;
    let places = Places::resolve(config.home.clone(), config.programs.clone())?;
    let cache = Cache::open(&places.images())?;
    let agent = places.program("podflare-agent");
    let image = GuestImage::build(&cache, &GuestDefinition::built_in(), &agent, &say)?;
    let (native, reason) = choose(&config, &places);
    let task = Task { program, arguments: arguments.collect(), config, places, image };
    if native {
        say(&format!("running natively ({reason})"));
        return Err(task.become_it().into());
    }
    say(&format!("running in an emulated host ({reason})"));
    task.run_emulated(&HostImage::build(&cache, &HostDefinition::built_in(), &say)?)
}

fn choose(config: &Config, places: &Places) -> (bool, String) {
    match config.choice {
        Choice::Native => (true, "PODFLARE_HOST_RUN says so".into()),
        Choice::Emulated => (false, "PODFLARE_HOST_RUN says so".into()),
        Choice::Probe => {
            let probe = Probe::run(&places.program("podflare-vmm"));
            (probe.usable, probe.reason)
        }
    }
}

struct Task {
    program: PathBuf,
    arguments: Vec<OsString>,
    config: Config,
    places: Places,
    image: GuestImage,
}

impl Task {
    /// Comes back only if the program cannot be started.
    fn become_it(&self) -> io::Error {
        let settings = self.settings(&self.image.rootfs());
        Command::new(&self.program).args(&self.arguments).envs(settings).exec()
    }

    fn run_emulated(&self, host: &HostImage) -> anyhow::Result<ExitCode> {
        let directory = env::current_dir()?;
        let mut environment = self.config.passed_on.clone();
        environment.extend(self.settings(Path::new(GUEST_ROOTFS)).map(|(name, value)| (name.into(), value)));
        let job = Job {
            program: self.program.clone(),
            arguments: self.arguments.clone(),
            environment,
            directory: Some(directory.clone()),
        };
        let holder = [self.places.program("podflare-vmm").into(), "hold".into()];
        let run = JobRun {
            image: host,
            job: &job,
            shares: &self.shares(&directory)?,
            guest_rootfs: Some(&self.image.rootfs()),
            scratch_directory: &self.places.home,
            holder: Some(&holder),
            time_limit: self.config.time_limit,
        };
        Ok(ExitCode::from(run_or_try_again(&run)?))
    }

    fn settings(&self, rootfs: &Path) -> [(&'static str, OsString); 3] {
        [
            ("PODFLARE_IMAGE_DIR", self.image.directory.clone().into()),
            ("PODFLARE_ROOTFS", rootfs.into()),
            ("PODFLARE_BIN_DIR", self.places.programs.clone().into()),
        ]
    }

    /// The directories of the program, of the platform's programs, of the image and of the test's own files.
    fn shares(&self, directory: &Path) -> anyhow::Result<Vec<Share>> {
        let program_directory = self.program.parent().unwrap_or(Path::new("/"));
        let mut wanted = vec![&*self.places.programs, program_directory, &self.image.directory, directory];
        wanted.retain(|path| *path != Path::new("/"));
        // An outer directory is mounted before what lies in it, which then need not be mounted at all.
        wanted.sort();
        let mut shares: Vec<Share> = Vec::new();
        for path in wanted {
            if !shares.iter().any(|share| path.starts_with(&share.directory)) {
                shares.push(Share::lasting(path));
            }
        }
        if let Some(results) = &self.config.results {
            fs::create_dir_all(results)?;
            shares.push(Share::writable(&results.canonicalize()?));
        }
        Ok(shares)
    }
}

/// An emulated host's own kernel can die under emulation, which says nothing about the job: the job is done
/// once more, from the beginning, in a new one. Whatever the job itself does is never repeated.
fn run_or_try_again(run: &JobRun<'_>) -> Result<u8, JobError> {
    match run.run(io::stdout(), io::stderr()) {
        Err(died @ JobError::Died { .. }) => {
            say(&format!("{died}\nhost-run: starting the whole job again, in a new emulated host"));
            run.run(io::stdout(), io::stderr())
        }
        result => result,
    }
}

fn say(text: &str) {
    // A closed standard error is no reason to stop.
    drop(writeln!(io::stderr(), "host-run: {text}"));
}
