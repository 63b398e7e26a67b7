//! The machine that all sandboxes are copies of: booted once, settled, frozen, and rested.

pub mod guest_settings;

mod rest;

use crate::chain::chain;
use crate::config::Settings;
use crate::network::mac_of;
use crate::sandbox::agent::{AgentConnection, AgentError, GuestIdentity};
use crate::vmm::{BootSpec, Ending, Fork, Machine, Pending, Vmm, VmmError};
use podflare_wire::control::BootConfig;
use podflare_wire::guest::{AGENT_PORT, Event, ExecContext, ExecId, Language, NetworkIdentity, Request};
use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The one template that there is.
pub const DEFAULT: &str = "default";

const MEMORY_MIB: u32 = 1024;
const DISK_GIB: u32 = 4;
const GIB: u64 = 1 << 30;

/// The guest kernel's command line. It trusts the CPU for its first entropy; every copy gets its own.
///
/// From the third line on it is for the hundreds that do nothing. No watchdogs of processors and clocks, which
/// cannot tell a guest that hangs from one that its host has not run; no pressure averages, no compaction ahead
/// of need, and rarer statistics: each would wake an idle guest, some of them twice a second. What is freed
/// goes back to the allocator, and so to the host, at once: left alone the kernel keeps an eighth of its
/// memory on lists of each processor. Programs get huge pages where they ask for them. The table of connections is
/// as large as a sandbox needs, because every copy looks through it; and the network card has no IPv6, for which the
/// kernel would ask again and again.
const COMMAND_LINE: &str = "console=ttyS0 reboot=t panic=-1 quiet rdinit=/init random.trust_cpu=on \
    8250.nr_uarts=1 i8042.noaux i8042.nokbd \
    nowatchdog tsc=nowatchdog psi=0 sysctl.vm.compaction_proactiveness=0 sysctl.vm.stat_interval=60 \
    sysctl.vm.percpu_pagelist_high_fraction=1024 transparent_hugepage=madvise \
    thash_entries=1024 sysctl.net.ipv6.conf.default.disable_ipv6=1";

/// The template's own hostname; no sandbox has it.
const HOSTNAME: &str = "template";

/// How long one attempt to reach the agent may take, and the pause before the next.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

/// How long the trial copy may take, which faults in each of its pages by itself.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(60);

const CONSOLE_TIMEOUT: Duration = Duration::from_secs(2);

/// What every copy of a template is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    pub template: String,
    pub vcpus: u8,
    pub memory_mib: u32,
    pub disk_gib: u32,
}

/// A frozen machine, ready to be copied.
#[derive(Debug)]
pub struct Template {
    pub shape: Arc<Shape>,
    /// What its guest took itself for.
    pub identity: GuestIdentity,
    pub machine: Arc<dyn Machine>,
    /// How many pages each copy brings in before it runs.
    pub hot_pages: u64,
    /// Its guest has done what it does after every start, so that no copy has to.
    pub rested: bool,
}

/// Whether sandboxes can be made.
#[derive(Debug, Clone)]
pub enum Availability {
    Ready(Arc<Template>),
    /// In words that fit after "not ready:".
    Not(Cow<'static, str>),
}

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("Could not start the template's machine")]
    Start(#[source] VmmError),
    #[error(
        "The template's guest was not ready within {} s ({last}); its console ends with:\n{console}",
        boot_timeout.as_secs()
    )]
    NotReady { boot_timeout: Duration, last: String, console: String },
    #[error("The template's machine ended while it booted: {ending}; its console ends with:\n{console}")]
    Ended { ending: String, console: String },
    #[error("The template's guest cannot be used: {reason}; its console ends with:\n{console}")]
    Unusable { reason: String, console: String },
}

#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    #[error("The machine did not do what it was told")]
    Vmm(#[from] VmmError),
    #[error("The agent did not answer as it should")]
    Agent(#[from] AgentError),
    #[error("The guest cannot run code: {language:?} ended with exit code {exit_code}")]
    Run { language: Language, exit_code: i32 },
    #[error("The trial copy was not done after {} s", TRIAL_TIMEOUT.as_secs())]
    Trial,
}

/// Boots the template; takes seconds, and happens once.
pub async fn boot(
    vmm: &dyn Vmm,
    settings: &Settings,
    network: Option<NetworkIdentity>,
) -> Result<Template, BootError> {
    let identity = GuestIdentity { hostname: HOSTNAME.to_owned(), network };
    let shape = Shape {
        template: DEFAULT.to_owned(),
        vcpus: settings.vcpus,
        memory_mib: MEMORY_MIB,
        disk_gib: DISK_GIB,
    };
    let (machine, booted) = vmm.boot(&boot_spec(&shape, settings)).map_err(BootError::Start)?;
    match settle_in_time(&*machine, &identity, booted, settings).await {
        Ok(()) => {
            // Copies work without; they only take longer.
            let hot_pages = learn_hot_pages(&*machine, &identity).await.unwrap_or_else(|error| {
                tracing::warn!(error = %chain(&error), "Copies will fault in their first pages one by one");
                0
            });
            Ok(Template { shape: Arc::new(shape), identity, machine, hot_pages, rested: false })
        }
        Err(error) => {
            machine.end().await;
            Err(error)
        }
    }
}

async fn settle_in_time(
    machine: &dyn Machine,
    identity: &GuestIdentity,
    booted: Pending<()>,
    settings: &Settings,
) -> Result<(), BootError> {
    let boot_timeout = settings.boot_timeout;
    let mut last = "its VMM has not answered".to_owned();
    let outcome = tokio::select! {
        settled = timeout(boot_timeout, settle(machine, identity, booted, settings, &mut last)) => settled,
        ending = machine.ended() => return Err(ended(&ending)),
    };
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(match timeout(CONSOLE_TIMEOUT, machine.ended()).await {
            Ok(ending) => ended(&ending),
            Err(_) => BootError::Unusable { reason: chain(&error), console: console(machine).await },
        }),
        Err(_) => Err(BootError::NotReady { boot_timeout, last, console: console(machine).await }),
    }
}

fn boot_spec(shape: &Shape, settings: &Settings) -> BootSpec {
    BootSpec {
        kernel: settings.image.kernel.clone(),
        initramfs: settings.image.initramfs.clone(),
        rootfs: settings.image.rootfs.clone(),
        config: BootConfig {
            vcpus: shape.vcpus,
            memory_mib: shape.memory_mib,
            disk_bytes: u64::from(shape.disk_gib) * GIB,
            command_line: COMMAND_LINE.to_owned(),
            huge_pages: settings.huge_pages,
        },
    }
}

/// Waits for the agent, runs something in each language so that no copy is the first to, and freezes. `last`
/// says how far it has come.
async fn settle(
    machine: &dyn Machine,
    identity: &GuestIdentity,
    booted: Pending<()>,
    settings: &Settings,
    last: &mut String,
) -> Result<(), SettleError> {
    booted.await?;
    let mut agent = loop {
        let stream = machine.connect(AGENT_PORT)?;
        match timeout(ATTEMPT_TIMEOUT, AgentConnection::renew(stream, identity)).await {
            Ok(Ok(agent)) => break agent,
            Ok(Err(error @ (AgentError::Protocol { .. } | AgentError::Failed { .. }))) => {
                return Err(error.into());
            }
            Ok(Err(error)) => *last = chain(&error),
            Err(_) => "its agent has not said hello".clone_into(last),
        }
        sleep(ATTEMPT_PAUSE).await;
    };
    "its Python REPL has not answered".clone_into(last);
    run(&mut agent, Language::Python, "print(1)").await?;
    if let Some(code) = settings.guest_settings.code() {
        run(&mut agent, Language::Python, &code).await?;
    }
    "its bash has not answered".clone_into(last);
    run(&mut agent, Language::Bash, "true").await?;
    drop(agent);
    machine.freeze().await?;
    Ok(())
}

async fn run(agent: &mut AgentConnection, language: Language, code: &str) -> Result<(), SettleError> {
    // One after the other, so that each may have the same number.
    let exec = ExecId(0);
    let context = ExecContext::default();
    agent.send(&Request::Exec { exec, language, code: code.to_owned(), context, announce: false });
    loop {
        match agent.next_event().await? {
            Event::Exited { exit_code: 0, .. } => return Ok(()),
            Event::Exited { exit_code, .. } => return Err(SettleError::Run { language, exit_code }),
            _ => {}
        }
    }
}

/// Lets a trial copy do what every copy does first, and has all later copies bring in beforehand the pages
/// that it touched. Says how many.
async fn learn_hot_pages(template: &dyn Machine, identity: &GuestIdentity) -> Result<u64, SettleError> {
    let Fork { copy: trial, done } = template.fork()?;
    let learn = async {
        let stream = trial.connect(AGENT_PORT)?;
        let thawed = trial.thaw_recording();
        done.await?;
        thawed.await?;
        let mut agent = AgentConnection::renew(stream, &of_trial(identity)).await?;
        run(&mut agent, Language::Python, "print(1)").await?;
        Ok(trial.hot_pages().await?)
    };
    let learnt = timeout(TRIAL_TIMEOUT, learn).await.unwrap_or(Err(SettleError::Trial));
    trial.end().await;
    let runs = learnt?;
    let pages = runs.iter().map(|run| u64::from(run.count)).sum();
    template.set_hot_pages(runs).await?;
    Ok(pages)
}

/// The trial copy has another address than the template, as every copy has: changing it is part of what is learnt.
fn of_trial(template: &GuestIdentity) -> GuestIdentity {
    let network = template.network.map(|network| {
        let address = Ipv4Addr::from(u32::from(network.address) + 1);
        NetworkIdentity { address, mac: mac_of(address), ..network }
    });
    GuestIdentity { network, ..template.clone() }
}

fn ended(ending: &Ending) -> BootError {
    let console = match ending {
        Ending::Told { console_tail, .. } => String::from_utf8_lossy(console_tail).into_owned(),
        _ => String::new(),
    };
    BootError::Ended { ending: ending.to_string(), console }
}

async fn console(machine: &dyn Machine) -> String {
    match timeout(CONSOLE_TIMEOUT, machine.console_tail()).await {
        Ok(Ok(tail)) => String::from_utf8_lossy(&tail).into_owned(),
        Ok(Err(_)) | Err(_) => "(the console could not be read)".to_owned(),
    }
}
