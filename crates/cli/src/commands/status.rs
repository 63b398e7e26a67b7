//! `podflare status`.

use crate::api::{Client, Health};
use crate::output::Output;
use crate::record::Record;
use podflare_emulated_host::places::Places;
use std::process::ExitCode;

pub(crate) fn run(places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let Some(record) = Record::of_running_host(places)? else {
        output.line("No host runs here; `podflare up` starts one.")?;
        return Ok(ExitCode::FAILURE);
    };
    let health = Client::new(record.url(), None).health();
    let state = match &health {
        Health::Ready => "ready".to_owned(),
        Health::Starting(what) => format!("not ready ({what})"),
        Health::Silent => "not answering".to_owned(),
    };
    output.line(&format!("Host at {}: {state}", record.url()))?;
    output.line(&format!("Runs {}: {}", record.kind.name(), record.reason))?;
    output.line(&format!("Process {}, files in {}", record.process.pid(), places.home.display()))?;
    Ok(if health == Health::Ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
