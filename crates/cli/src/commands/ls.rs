//! `podflare ls`.

use crate::api::Client;
use crate::args::Host;
use crate::output::Output;
use crate::table::{age, table};
use podflare_api::sandbox::SandboxView;
use podflare_emulated_host::places::Places;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

const COLUMNS: [&str; 6] = ["SANDBOX", "TEMPLATE", "AGE", "RUNS", "FORKS", "PARENT"];

pub(crate) fn run(host: &Host, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    for line in rows(&Client::of(host, places)?.sandboxes()?)? {
        output.line(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Sandboxes as lines, with a head.
pub(super) fn rows(sandboxes: &[SandboxView]) -> anyhow::Result<Vec<String>> {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let rows = sandboxes.iter().map(|sandbox| row(sandbox, now_ms));
    Ok(table(std::iter::once(COLUMNS.map(str::to_owned)).chain(rows).collect()))
}

fn row(sandbox: &SandboxView, now_ms: u128) -> [String; 6] {
    let age_s = now_ms.saturating_sub(u128::from(sandbox.created_at_ms)) / 1000;
    [
        sandbox.id.to_string(),
        sandbox.template.clone(),
        age(age_s),
        sandbox.executions.to_string(),
        sandbox.generation.to_string(),
        sandbox.parent.as_ref().map_or("-".to_owned(), ToString::to_string),
    ]
}
