//! `podflare up`.

use crate::admin_key;
use crate::api::{Client, Health};
use crate::args::Up;
use crate::guest_settings::GuestSettings;
use crate::output::Output;
use crate::record::{HostKind, Record};
use crate::start::{self, Plan};
use anyhow::{Context, bail};
use podflare_emulated_host::places::Places;
use podflare_emulated_host::probe::Probe;
use podflare_emulated_host::process::ProcessId;
use podflare_image::cache::Cache;
use podflare_image::definition::GuestDefinition;
use podflare_image::guest::GuestImage;
use podflare_image::template::store::Store;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The first start boots a template, which takes long where all is emulated.
const READY_PATIENCE: Duration = Duration::from_secs(900);
const HEALTH_INTERVAL: Duration = Duration::from_millis(250);

pub(crate) fn run(args: &Up, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    refuse_contradictions(args)?;
    start::check_programs(places)?;
    fs::create_dir_all(&places.home).with_context(|| format!("Cannot make {}", places.home.display()))?;
    let _lock = lock(places)?;
    let cache = Cache::open(&places.images())?;
    let agent = places.program("podflare-agent");
    let image = GuestImage::build(&cache, &GuestDefinition::built_in(), &agent, &|text| output.step(text))?;
    let contents = start::contents(places, &image)?;
    if let Some(record) = Record::of_running_host(places)? {
        already_running(args, &record, &contents, output)?;
        return wait_until_ready(&record, places, output);
    }
    let (kind, reason) = choose(args, places, output);
    output.note(&format!("Sandboxes run {}: {reason}", kind.name()));
    let templates = Store::open(&places.home)?;
    let guests = GuestSettings::of_this_machine(places)?;
    guests.remarks().iter().for_each(|remark| output.note(remark));
    let admin_key = admin_key::read_or_make(places)?;
    let plan = Plan {
        args,
        places,
        cache: &cache,
        image: &image,
        templates: &templates,
        guests: &guests,
        admin_key: &admin_key,
    };
    let child = start::start(kind, &plan, &|text| output.step(text))?;
    let process = ProcessId::of(child.id()).with_context(|| start::last_words(kind, places))?;
    let record = Record { kind, reason, process, listen: args.listen, contents };
    record.save(places)?;
    wait_until_ready(&record, places, output)
}

fn refuse_contradictions(args: &Up) -> anyhow::Result<()> {
    if args.listen.port() == 0 {
        bail!("{} names no port, so no client would find the host: choose one, like 7070", args.listen);
    }
    if args.api_keys.is_some() && args.auth_disabled {
        bail!("Keys are given, but PODFLARE_AUTH_DISABLED is set, so that none would be asked for: unset it");
    }
    Ok(())
}

/// Two at once would start two hosts on one state.
fn lock(places: &Places) -> anyhow::Result<File> {
    let path = places.home.join("up.lock");
    let lock = File::create(&path).with_context(|| format!("Cannot make {}", path.display()))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

fn choose(args: &Up, places: &Places, output: &Output) -> (HostKind, String) {
    if args.native {
        return (HostKind::Native, "as was asked for.".into());
    }
    if args.emulated {
        return (HostKind::Emulated, "as was asked for.".into());
    }
    output.step("trying this machine's KVM");
    let probe = Probe::run(&places.program("podflare-vmm"));
    (if probe.usable { HostKind::Native } else { HostKind::Emulated }, probe.reason)
}

fn already_running(args: &Up, record: &Record, contents: &str, output: &Output) -> anyhow::Result<()> {
    if record.listen != args.listen {
        bail!("A host runs already, at {}; `podflare down` stops it", record.url());
    }
    output.note(&format!("The host at {} runs already, {}.", record.url(), record.kind.name()));
    if record.contents != contents {
        output.note(
            "It was started with other programs or another image than are here now; \
             `podflare down` and `podflare up` bring it up to date.",
        );
    }
    Ok(())
}

fn wait_until_ready(record: &Record, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let client = Client::new(record.url(), None);
    let deadline = Instant::now() + READY_PATIENCE;
    loop {
        match client.health() {
            Health::Ready => break,
            Health::Starting(what) => output.step(&what),
            Health::Silent => output.step("starting the host"),
        }
        if record.process.wait_until_gone(HEALTH_INTERVAL)? {
            bail!("The host ended before it was ready.\n{}", start::last_words(record.kind, places));
        }
        if Instant::now() > deadline {
            start::stop(record, places)?;
            bail!("The host was not ready in time.\n{}", start::last_words(record.kind, places));
        }
    }
    output.line(&format!("The host is ready at {}", record.url()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};
    use clap::Parser;

    fn refusal(arguments: &[&str]) -> Option<String> {
        let line = ["podflare", "up"].iter().chain(arguments);
        let Command::Up(up) = Args::parse_from(line).command else { panic!("not up") };
        refuse_contradictions(&up).err().map(|error| error.to_string())
    }

    #[test]
    fn what_would_start_a_host_that_nobody_can_use_or_keys_that_nobody_needs_is_refused() {
        let keys = ["--api-keys", "pf_test"];
        assert_eq!(refusal(&[]), None);
        assert_eq!(refusal(&keys), None);
        assert_eq!(refusal(&[&keys[..], &["--listen", "0.0.0.0:7070"]].concat()), None);
        assert!(refusal(&["--listen", "127.0.0.1:0"]).unwrap().contains("no port"));
        let contradiction = refusal(&[&keys[..], &["--auth-disabled"]].concat());
        assert!(contradiction.unwrap().contains("PODFLARE_AUTH_DISABLED"));
    }
}
