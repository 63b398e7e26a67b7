//! `podflare ls`.

use crate::api::Client;
use crate::args::Host;
use crate::output::Output;
use podflare_api::sandbox::SandboxView;
use podflare_emulated_host::places::Places;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

const COLUMNS: [&str; 6] = ["SANDBOX", "TEMPLATE", "AGE", "RUNS", "FORKS", "PARENT"];

pub(crate) fn run(host: &Host, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let sandboxes = Client::of(host, places)?.sandboxes()?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let rows = sandboxes.iter().map(|sandbox| row(sandbox, now_ms));
    for line in table(std::iter::once(COLUMNS.map(str::to_owned)).chain(rows).collect()) {
        output.line(&line)?;
    }
    Ok(ExitCode::SUCCESS)
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

fn age(seconds: u128) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Lines whose columns stand below each other.
fn table<const N: usize>(rows: Vec<[String; N]>) -> Vec<String> {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: [String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<String>>().join("  ").trim_end().to_owned()
    };
    rows.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = vec![["A", "B", "C"], ["long", "x", ""], ["y", "longer", "z"]];
        let rows = rows.into_iter().map(|row| row.map(str::to_owned)).collect();
        assert_eq!(table(rows), ["A     B       C", "long  x", "y     longer  z"]);
    }

    #[test]
    fn ages_are_short() {
        assert_eq!([59, 60, 7200, 200_000].map(age), ["59s", "1m", "2h", "2d"]);
    }
}
