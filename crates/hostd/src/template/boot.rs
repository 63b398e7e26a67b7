//! Booting a template: the agent's first hello, start-up code, a first use of everything, the freeze, a trial copy.

use super::definition::Definition;
use super::kept::Ingredients;
use super::{Shape, Template};
use crate::chain::chain;
use crate::config::Settings;
use crate::network::mac_of;
use crate::sandbox::agent::{AgentConnection, AgentError, GuestIdentity};
use crate::sandbox::execution::GRANT_BATCH_LEN;
use crate::space::base::Origin;
use crate::vmm::{BootSpec, Ending, Fork, Machine, Pending, Vmm, VmmError};
use podflare_wire::control::BootConfig;
use podflare_wire::guest::{AGENT_PORT, Event, ExecContext, ExecId, Language, NetworkIdentity, Request};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep, timeout, timeout_at};

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
pub(super) const COMMAND_LINE: &str = "console=ttyS0 reboot=t panic=-1 quiet rdinit=/init random.trust_cpu=on \
    8250.nr_uarts=1 i8042.noaux i8042.nokbd \
    nowatchdog tsc=nowatchdog psi=0 sysctl.vm.compaction_proactiveness=0 sysctl.vm.stat_interval=60 \
    sysctl.vm.percpu_pagelist_high_fraction=1024 transparent_hugepage=madvise \
    thash_entries=1024 sysctl.net.ipv6.conf.default.disable_ipv6=1";

/// The template's own hostname; no sandbox has it.
pub(crate) const HOSTNAME: &str = "template";

/// How long one attempt to reach the agent may take, and the pause before the next.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

/// How long the trial copy may take, which faults in each of its pages by itself.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(60);

const CONSOLE_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause between two attempts of a ready check.
const READY_PAUSE: Duration = Duration::from_millis(200);

/// The end of what failed code has said that goes into an error, in bytes.
const OUTPUT_TAIL_LEN_MAX: usize = 4096;

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
    #[error("The template's {0}")]
    Code(CodeError),
}

/// Code that a template brings did not do its part.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    #[error("start-up code ended with exit code {exit_code}; its output ends with:\n{output}")]
    Startup { exit_code: i32, output: String },
    #[error("ready check had not succeeded after {} ms; its last output ends with:\n{output}", timeout.as_millis())]
    Ready { timeout: Duration, output: String },
}

#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    #[error("The machine did not do what it was told")]
    Vmm(#[from] VmmError),
    #[error("The agent did not answer as it should")]
    Agent(#[from] AgentError),
    #[error("The guest cannot run code: {language:?} ended with exit code {exit_code}")]
    Run { language: Language, exit_code: i32 },
    #[error(transparent)]
    Code(#[from] CodeError),
    #[error("The trial copy was not done after {} s", TRIAL_TIMEOUT.as_secs())]
    Trial,
}

/// Boots a template in one size; takes seconds, and then as long as its own code does, which needs no `turn`.
pub(crate) async fn boot(
    vmm: &dyn Vmm,
    settings: &Settings,
    network: Option<NetworkIdentity>,
    definition: &Definition,
    shape: Arc<Shape>,
    ingredients: Option<Ingredients>,
    turn: Option<SemaphorePermit<'_>>,
) -> Result<Template, BootError> {
    let identity = GuestIdentity { hostname: HOSTNAME.to_owned(), network };
    let (machine, booted) = vmm.boot(&boot_spec(definition, &shape, settings)).map_err(BootError::Start)?;
    let settling = Settling { machine: &*machine, identity: &identity, definition, settings };
    match settling.settle_in_time(booted, turn).await {
        Ok(()) => {
            // Copies work without; they only take longer.
            let hot_pages = learn_hot_pages(&*machine, &identity).await.unwrap_or_else(|error| {
                tracing::warn!(error = %chain(&error), "Copies will fault in their first pages one by one");
                0
            });
            let origin = Origin::new(definition.rootfs.clone(), shape.clone(), ingredients);
            origin.set_template(&machine, hot_pages, false);
            Ok(Template { shape, identity, machine, origin, hot_pages, rested: false })
        }
        Err(error) => {
            machine.end().await;
            Err(error)
        }
    }
}

fn boot_spec(definition: &Definition, shape: &Shape, settings: &Settings) -> BootSpec {
    BootSpec {
        kernel: settings.image.kernel.clone(),
        initramfs: settings.image.initramfs.clone(),
        rootfs: definition.rootfs.clone(),
        config: BootConfig {
            vcpus: shape.vcpus,
            memory_mib: shape.memory_mib,
            disk_bytes: u64::from(shape.disk_gib) * GIB,
            command_line: COMMAND_LINE.to_owned(),
            huge_pages: settings.huge_pages,
        },
    }
}

/// A machine on its way from its boot to its freeze.
struct Settling<'a> {
    machine: &'a dyn Machine,
    identity: &'a GuestIdentity,
    definition: &'a Definition,
    settings: &'a Settings,
}

impl Settling<'_> {
    async fn settle_in_time(
        &self,
        booted: Pending<()>,
        turn: Option<SemaphorePermit<'_>>,
    ) -> Result<(), BootError> {
        let Settling { machine, definition, settings, .. } = *self;
        // The ready check has a time limit of its own.
        let for_ready = definition.ready.as_ref().map_or(Duration::ZERO, |ready| ready.timeout);
        let boot_timeout = settings.boot_timeout + for_ready;
        let mut last = "its VMM has not answered".to_owned();
        let outcome = tokio::select! {
            settled = timeout(boot_timeout, self.settle(booted, turn, &mut last)) => settled,
            ending = machine.ended() => return Err(ended(&ending)),
        };
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(SettleError::Code(error))) => Err(BootError::Code(error)),
            Ok(Err(error)) => Err(match timeout(CONSOLE_TIMEOUT, machine.ended()).await {
                Ok(ending) => ended(&ending),
                Err(_) => BootError::Unusable { reason: chain(&error), console: console(machine).await },
            }),
            Err(_) => Err(BootError::NotReady { boot_timeout, last, console: console(machine).await }),
        }
    }

    /// Waits for the agent, runs something in each language so that no copy is the first to, then the template's own
    /// code, and freezes. `last` says how far it has come.
    async fn settle(
        &self,
        booted: Pending<()>,
        turn: Option<SemaphorePermit<'_>>,
        last: &mut String,
    ) -> Result<(), SettleError> {
        booted.await?;
        let mut agent = loop {
            let stream = self.machine.connect(AGENT_PORT)?;
            match timeout(ATTEMPT_TIMEOUT, AgentConnection::renew(stream, self.identity)).await {
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
        must_succeed(&mut agent, Language::Python, "print(1)").await?;
        if let Some(code) = self.settings.guest_settings.code() {
            must_succeed(&mut agent, Language::Python, &code).await?;
        }
        "its bash has not answered".clone_into(last);
        must_succeed(&mut agent, Language::Bash, "true").await?;
        drop(turn);
        "its start-up code has not ended".clone_into(last);
        self.start_up(&mut agent).await?;
        "its ready check has not succeeded".clone_into(last);
        self.check_ready(&mut agent).await?;
        drop(agent);
        self.machine.freeze().await?;
        Ok(())
    }

    async fn start_up(&self, agent: &mut AgentConnection) -> Result<(), SettleError> {
        let Some(code) = &self.definition.startup else { return Ok(()) };
        let mut output = Tail::default();
        match run(agent, Language::Python, code, &mut output).await? {
            0 => Ok(()),
            exit_code => Err(CodeError::Startup { exit_code, output: output.text() }.into()),
        }
    }

    async fn check_ready(&self, agent: &mut AgentConnection) -> Result<(), SettleError> {
        let Some(ready) = &self.definition.ready else { return Ok(()) };
        let deadline = Instant::now() + ready.timeout;
        let mut output = Tail::default();
        let succeed = async {
            loop {
                output.clear();
                if run(agent, Language::Bash, &ready.bash, &mut output).await? == 0 {
                    return Ok(());
                }
                sleep(READY_PAUSE).await;
            }
        };
        match timeout_at(deadline, succeed).await {
            Ok(result) => result,
            Err(_) => Err(CodeError::Ready { timeout: ready.timeout, output: output.text() }.into()),
        }
    }
}

async fn must_succeed(
    agent: &mut AgentConnection,
    language: Language,
    code: &str,
) -> Result<(), SettleError> {
    match run(agent, language, code, &mut Tail::default()).await? {
        0 => Ok(()),
        exit_code => Err(SettleError::Run { language, exit_code }),
    }
}

/// Runs code to its end, and gives its exit code.
async fn run(
    agent: &mut AgentConnection,
    language: Language,
    code: &str,
    output: &mut Tail,
) -> Result<i32, SettleError> {
    // One after the other, so that each may have the same number.
    let exec = ExecId(0);
    let context = ExecContext::default();
    agent.send(&Request::Exec { exec, language, code: code.to_owned(), context, announce: false });
    let mut taken_len = 0;
    loop {
        match agent.next_event().await? {
            Event::Exited { exit_code, .. } => return Ok(exit_code),
            Event::Output { data, .. } => {
                taken_len += u32::try_from(data.len()).unwrap_or(u32::MAX);
                if taken_len >= GRANT_BATCH_LEN {
                    agent.send(&Request::Grant { exec, bytes: std::mem::take(&mut taken_len) });
                }
                output.push(&data);
            }
            _ => {}
        }
    }
}

/// The end of an output.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
        let surplus = self.0.len().saturating_sub(OUTPUT_TAIL_LEN_MAX);
        self.0.drain(..surplus);
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// Lets a trial copy do what every copy does first, and has all later copies bring in beforehand the pages
/// that it touched. Says how many.
pub(super) async fn learn_hot_pages(
    template: &dyn Machine,
    identity: &GuestIdentity,
) -> Result<u64, SettleError> {
    let Fork { copy: trial, done } = template.fork()?;
    let learn = async {
        let stream = trial.connect(AGENT_PORT)?;
        let thawed = trial.thaw_recording();
        done.await?;
        thawed.await?;
        let mut agent = AgentConnection::renew(stream, &of_trial(identity)).await?;
        must_succeed(&mut agent, Language::Python, "print(1)").await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_the_end_and_not_endless() {
        let mut tail = Tail::default();
        tail.push(&[b'a'; OUTPUT_TAIL_LEN_MAX]);
        tail.push(b"the end");
        assert!(tail.text().ends_with("the end") && tail.text().len() == OUTPUT_TAIL_LEN_MAX);
        tail.push(&[b'b'; 2 * OUTPUT_TAIL_LEN_MAX]);
        assert_eq!(tail.text(), "b".repeat(OUTPUT_TAIL_LEN_MAX));
    }
}
