//! `podflare-hostd`: settings, log, address, machines; then serve until told to stop.

use anyhow::{Context, Result};
use clap::Parser;
use podflare_hostd::config::{Arguments, LogFormat, Machines, NetworkSettings, Settings};
use podflare_hostd::network::fake::FakeDriver;
use podflare_hostd::network::linux::LinuxDriver;
use podflare_hostd::network::{Network, dns, gateway_of};
use podflare_hostd::records::Records;
use podflare_hostd::store::Store;
use podflare_hostd::vmm::Vmm;
use podflare_hostd::vmm::fake::FakeVmm;
use podflare_hostd::vmm::process::ProcessVmm;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the last words, also where no log was started")]
            {
                eprintln!("podflare-hostd: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<()> {
    let settings = Arguments::parse().resolve()?;
    start_log(&settings)?;
    raise_descriptor_limit();
    let vmm = machines(&settings)?;
    let mut terminate = signal(SignalKind::terminate()).context("Could not listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("Could not listen for SIGINT")?;
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("Could not listen on {}", settings.listen))?;
    let records = records(&settings)?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("Shutting down");
    };
    tracing::info!(listen = %settings.listen, "Serving");
    let network = network(&settings).await;
    let result = podflare_hostd::run(listener, settings, vmm, network.clone(), records, shutdown).await;
    if network.is_there() {
        network.close().await;
    }
    Ok(result?)
}

fn start_log(settings: &Settings) -> Result<()> {
    let filter = EnvFilter::try_new(&settings.log).context("RUST_LOG cannot be understood")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match settings.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Refuses to serve everyone unless only this machine's users are everyone, or that is what was asked for.
fn records(settings: &Settings) -> Result<Records> {
    let store = match settings.machines {
        Machines::Fake => Store::in_memory()?,
        Machines::Processes { .. } => Store::open(&settings.data_dir)?,
    };
    let records = Records::read(store, settings)?;
    if records.keys.is_open() {
        settings.check_open()?;
        tracing::warn!(address = %settings.reached_at, "Serving without keys: whoever reaches the address is let in");
    }
    Ok(records)
}

fn machines(settings: &Settings) -> Result<Arc<dyn Vmm>> {
    let Machines::Processes { program } = &settings.machines else {
        tracing::warn!("The machines are pretend ones");
        return Ok(Arc::new(FakeVmm::default()));
    };
    let dir = &settings.state_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("Could not make {}", dir.display()))?;
    Ok(Arc::new(ProcessVmm::new(program.clone(), dir)))
}

/// Sandboxes of a host that may not make a network have none; everything else works.
async fn network(settings: &Settings) -> Network {
    let NetworkSettings::On { subnet, never, upstreams } = &settings.network else { return Network::none() };
    if settings.machines == Machines::Fake {
        return Network::new(Box::new(FakeDriver::new(*subnet)));
    }
    match LinuxDriver::set_up(*subnet, gateway_of(*subnet), never.clone()).await {
        Ok((driver, sockets)) => {
            let network = Network::new(Box::new(driver));
            let served = dns::serve(network.clone(), sockets, upstreams.clone());
            tokio::spawn(async {
                if let Err(error) = served.await {
                    tracing::error!(%error, "Sandboxes' DNS questions are not answered");
                }
            });
            network
        }
        Err(error) => {
            let error = anyhow::Error::new(error);
            tracing::warn!(error = %format!("{error:#}"), "Sandboxes have no network");
            Network::none()
        }
    }
}

/// Each sandbox takes a few descriptors, and each of its clients one.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(errno) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%errno, "Could not raise the limit of open files");
    }
}
