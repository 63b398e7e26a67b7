//! `podflare keys`.

use crate::api::Client;
use crate::args::Host;
use crate::args::{KeyCreate, KeyOf};
use crate::output::Output;
use crate::table::{age, table};
use podflare_api::key::{CreateKey, KeyCreated, KeyView};
use podflare_emulated_host::places::Places;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

const COLUMNS: [&str; 5] = ["KEY", "TIER", "AGE", "STATE", "NAME"];

pub(crate) fn create(args: &KeyCreate, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let wanted = CreateKey { tier: args.tier.clone(), name: args.name.clone() };
    let created = Client::of(&args.host, places)?.create_key(&wanted)?;
    show(&created, output)
}

pub(crate) fn rotate(args: &KeyOf, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let rotated = Client::of(&args.host, places)?.rotate_key(&args.key)?;
    show(&rotated, output)
}

/// The key alone on standard output, so that a script can take it.
fn show(created: &KeyCreated, output: &Output) -> anyhow::Result<ExitCode> {
    output.note(&format!(
        "{} of the tier {}. This is the only time that it is shown:",
        created.view.id, created.view.tier
    ));
    output.line(&created.key)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn revoke(args: &KeyOf, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    Client::of(&args.host, places)?.revoke_key(&args.key)?;
    output
        .note(&format!("{} lets nobody in any more. What runs with it runs on until its own end.", args.key));
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn ls(host: &Host, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let keys = Client::of(host, places)?.keys()?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let rows = keys.iter().map(|key| row(key, now_ms));
    for line in table(std::iter::once(COLUMNS.map(str::to_owned)).chain(rows).collect()) {
        output.line(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(key: &KeyView, now_ms: u128) -> [String; 5] {
    let age_s = now_ms.saturating_sub(u128::from(key.created_at_ms)) / 1000;
    let state = if key.revoked_at_ms.is_some() { "revoked" } else { "good" };
    let name = key.name.clone().unwrap_or_default();
    // It is somebody's text, and this is a terminal.
    let name = name.chars().filter(|c| !c.is_control()).collect();
    [key.id.to_string(), key.tier.clone(), age(age_s), state.to_owned(), name]
}
