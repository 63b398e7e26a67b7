//! `podflare doctor`: what this machine has, what it lacks, and how to get that.

use crate::args::Doctor;
use crate::output::Output;
use crate::start::PROGRAMS;
use podflare_emulated_host::machine::{Machine, Memory};
use podflare_emulated_host::places::Places;
use podflare_emulated_host::probe::Probe;
use podflare_image::cache::Cache;
use podflare_image::definition::GuestDefinition;
use podflare_image::guest::GuestImage;
use podflare_image::tool::{self, Tool};
use rustix::thread::{CapabilitySet, capabilities};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// Both images (1.1 GB), the former ones that are kept, what one is made from, and some state.
const DISK_GIB_MIN: u64 = 5;
const PACKET_FILTER: Tool = Tool { program: "nft", package: "nftables" };
const EMULATOR: Tool = Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" };

struct Finding {
    subject: &'static str,
    /// What is there.
    detail: String,
    /// What to do if something is missing that is needed.
    remedy: Option<String>,
}

pub(crate) fn run(args: &Doctor, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    output.step("trying this machine's KVM");
    let probe = Probe::run(&places.program("podflare-vmm"));
    let findings = [
        processor(),
        kvm(&probe),
        memory(&probe),
        disk(places),
        network(args, &probe),
        tools(&probe),
        programs(places),
        image(places)?,
    ];
    for finding in &findings {
        let mark = if finding.remedy.is_none() { "ok     " } else { "MISSING" };
        output.line(&format!("{mark}  {:<10} {}", finding.subject, finding.detail))?;
        if let Some(remedy) = &finding.remedy {
            output.line(&format!("         {:<10} → {remedy}", ""))?;
        }
    }
    let healthy = findings.iter().all(|finding| finding.remedy.is_none());
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn found(subject: &'static str, detail: String) -> Finding {
    Finding { subject, detail, remedy: None }
}

fn processor() -> Finding {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("of unknown make", |(_, model)| model);
    let count = text.lines().filter(|line| line.starts_with("processor")).count();
    found("processor", format!("{count} × {model}"))
}

/// Not having it costs time, nothing else.
fn kvm(probe: &Probe) -> Finding {
    let consequence =
        if probe.usable { "sandboxes run natively" } else { "sandboxes run in an emulated host, slower" };
    found("KVM", format!("{consequence}: {}", probe.reason))
}

fn memory(probe: &Probe) -> Finding {
    let detail = match Memory::of_this_machine() {
        Ok(memory) => format!("{} of {} MiB free", memory.available_mib, memory.total_mib),
        Err(error) => error.to_string(),
    };
    let lacking = if probe.usable { None } else { Machine::fitting_this_machine().err() };
    Finding { subject: "memory", detail, remedy: lacking.map(|error| error.to_string()) }
}

fn disk(places: &Places) -> Finding {
    // The directory may not exist yet; its nearest ancestor is on the same file system.
    let existing = places.home.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let free_gib = rustix::fs::statvfs(existing).map_or(0, |fs| (fs.f_bavail * fs.f_frsize) >> 30);
    let enough = free_gib >= DISK_GIB_MIN;
    Finding {
        subject: "disk",
        detail: format!("{free_gib} GiB free for {}", places.home.display()),
        remedy: (!enough).then(|| format!("free {DISK_GIB_MIN} GiB, or set PODFLARE_HOME to a bigger disk")),
    }
}

/// Sandboxes work without, but reach nothing.
fn network(args: &Doctor, probe: &Probe) -> Finding {
    if args.no_network {
        return found("network", "of sandboxes: none, as PODFLARE_NO_NETWORK says".into());
    }
    if !probe.usable {
        return found("network", "of sandboxes: made in the emulated host, which has what it takes".into());
    }
    let needed = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN;
    let is_allowed = capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
    let (detail, remedy) = if !is_allowed {
        ("this user may not make one for sandboxes".to_owned(), Some("run `podflare up` as root".to_owned()))
    } else if tool::find(PACKET_FILTER.program).is_none() {
        let remedy = format!("apt-get install {}", PACKET_FILTER.package);
        (format!("no {}, which filters sandboxes' packets", PACKET_FILTER.program), Some(remedy))
    } else {
        ("of sandboxes: this user may make it".to_owned(), None)
    };
    let remedy = remedy.map(|remedy| format!("{remedy}; or set PODFLARE_NO_NETWORK=1 to do without"));
    Finding { subject: "network", detail, remedy }
}

fn tools(probe: &Probe) -> Finding {
    let mut missing = tool::missing();
    if !probe.usable && tool::find(EMULATOR.program).is_none() {
        missing.push(EMULATOR);
    }
    if missing.is_empty() {
        return found("tools", "all are there".into());
    }
    let list = |name: fn(&Tool) -> &'static str| missing.iter().map(name).collect::<Vec<_>>();
    Finding {
        subject: "tools",
        detail: format!("no {}", list(|tool| tool.program).join(", ")),
        remedy: Some(format!("apt-get install {}", list(|tool| tool.package).join(" "))),
    }
}

fn programs(places: &Places) -> Finding {
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|name| !places.program(name).is_file()).collect();
    if missing.is_empty() {
        return found("programs", format!("in {}", places.programs.display()));
    }
    Finding {
        subject: "programs",
        detail: format!("no {} in {}", missing.join(", "), places.programs.display()),
        remedy: Some("`cargo build --release`, or set PODFLARE_BIN_DIR".into()),
    }
}

/// Not having it is no lack: `up` builds it.
fn image(places: &Places) -> anyhow::Result<Finding> {
    let agent = places.program("podflare-agent");
    let built = places.images().is_dir()
        && agent.is_file()
        && GuestImage::is_built(&Cache::open(&places.images())?, &GuestDefinition::built_in(), &agent)?;
    let detail =
        if built { "built" } else { "not built for these programs; `podflare up` does it, in minutes" };
    Ok(found("image", detail.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_network_needs_nothing_for_one() {
        let probe = Probe { usable: true, reason: "a test".into() };
        let finding = network(&Doctor { no_network: true }, &probe);
        assert!(finding.remedy.is_none() && finding.detail.contains("PODFLARE_NO_NETWORK"));
    }
}
