//! `podflare down`.

use crate::output::Output;
use crate::record::Record;
use crate::start;
use podflare_emulated_host::places::Places;
use std::process::ExitCode;

pub(crate) fn run(places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let Some(record) = Record::of_running_host(places)? else {
        output.note("No host runs here.");
        return Ok(ExitCode::SUCCESS);
    };
    output.step("stopping the host");
    start::stop(&record, places)?;
    output.note(&format!("The host at {} is stopped.", record.url()));
    Ok(ExitCode::SUCCESS)
}
