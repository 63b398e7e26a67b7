//! `podflare events`.

use crate::api::Client;
use crate::args::Events;
use crate::output::Output;
use crate::table::age;
use podflare_api::event::{Happening, LifecycleEvent};
use podflare_emulated_host::places::Places;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn run(args: &Events, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let client = Client::of(&args.host, places)?;
    let mut since = args.since.unwrap_or(0);
    loop {
        let events = client.events(since)?;
        for event in &events {
            since = event.seq;
            show(event, args.json, output)?;
        }
        if events.is_empty() {
            break;
        }
    }
    if args.follow {
        client.follow_events(since, |event| show(&event, args.json, output))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(event: &LifecycleEvent, json: bool, output: &Output) -> anyhow::Result<()> {
    if json {
        return Ok(output.line(&serde_json::to_string(event)?)?);
    }
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let age_s = now_ms.saturating_sub(u128::from(event.at_ms)) / 1000;
    let text = words(&event.what);
    // Some of it is a guest's or a client's text, and this is a terminal.
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    Ok(output.line(&format!("{:>8}  {:>4} ago  {text}", event.seq, age(age_s)))?)
}

fn words(what: &Happening) -> String {
    match what {
        Happening::Created { sandbox, template } => format!("{sandbox} created from {template}"),
        Happening::Forked { sandbox, parent, checkpoint: None } => format!("{sandbox} forked from {parent}"),
        Happening::Forked { sandbox, parent, checkpoint: Some(checkpoint) } => {
            format!("{sandbox} forked from {parent}, as it was at {checkpoint}")
        }
        Happening::Merged { sandbox, winner } => format!("{sandbox} goes on as {winner} was"),
        Happening::Restored { sandbox, checkpoint } => format!("{sandbox} restored to {checkpoint}"),
        Happening::Extended { sandbox, timeout_seconds, idle_timeout_seconds } => {
            format!("{sandbox} may live {timeout_seconds} s and idle {idle_timeout_seconds} s")
        }
        Happening::Frozen { sandbox, space } => format!("{sandbox} frozen as {space}"),
        Happening::Resumed { sandbox, space } => format!("{sandbox} resumed from {space}"),
        Happening::Closed { sandbox, reason } => format!("{sandbox} closed: {reason}"),
    }
}
