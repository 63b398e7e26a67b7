//! `podflare freeze`, `resume` and `spaces`.

use crate::api::Client;
use crate::args::{Freeze, Host, Resume, SpaceExport, SpaceImport, SpaceRm};
use crate::output::Output;
use crate::table::{age, table};
use anyhow::Context;
use podflare_api::space::{ResumeSpace, SpaceView};
use podflare_emulated_host::places::Places;
use std::fs::File;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

const COLUMNS: [&str; 6] = ["SPACE", "TEMPLATE", "AGE", "MIB", "RAM", "SANDBOX"];

pub(crate) fn freeze(args: &Freeze, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let space = Client::of(&args.host, places)?.freeze(&args.sandbox)?;
    output.line(space.id.as_str())?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn resume(args: &Resume, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let wanted = ResumeSpace {
        keep: args.keep,
        persistent: args.persistent.then_some(true),
        ..ResumeSpace::default()
    };
    let sandbox = Client::of(&args.host, places)?.resume(&args.space, &wanted)?;
    output.line(sandbox.as_str())?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn ls(host: &Host, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let spaces = Client::of(host, places)?.spaces()?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let rows = spaces.iter().map(|space| row(space, now_ms));
    for line in table(std::iter::once(COLUMNS.map(str::to_owned)).chain(rows).collect()) {
        output.line(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn rm(args: &SpaceRm, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    Client::of(&args.host, places)?.remove_space(&args.space)?;
    output.note(&format!("{} is removed.", args.space));
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn export(args: &SpaceExport, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let client = Client::of(&args.host, places)?;
    let path = &args.file;
    let mut file = File::create_new(path).with_context(|| format!("Cannot make {}", path.display()))?;
    let written = client.export_space(&args.space, &mut file).and_then(|bytes| {
        file.sync_all().with_context(|| format!("Cannot write {}", path.display()))?;
        Ok(bytes)
    });
    match written {
        Ok(bytes) => output.note(&format!("{} MiB in {}.", bytes.div_ceil(1 << 20), path.display())),
        Err(error) => {
            // What came only in part is of no use.
            std::fs::remove_file(path).ok();
            return Err(error);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn import(args: &SpaceImport, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let file = File::open(&args.file).with_context(|| format!("Cannot open {}", args.file.display()))?;
    let space = Client::of(&args.host, places)?.import_space(file)?;
    output.line(space.id.as_str())?;
    Ok(ExitCode::SUCCESS)
}

fn row(space: &SpaceView, now_ms: u128) -> [String; 6] {
    let age_s = now_ms.saturating_sub(u128::from(space.frozen_at_ms)) / 1000;
    [
        space.id.to_string(),
        space.template.clone(),
        age(age_s),
        space.bytes.div_ceil(1 << 20).to_string(),
        format!("{} MiB", space.ram_mib),
        space.sandbox.to_string(),
    ]
}
