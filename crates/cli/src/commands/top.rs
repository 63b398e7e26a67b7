//! `podflare top`.

use super::ls;
use crate::api::Client;
use crate::args::Top;
use crate::output::Output;
use podflare_api::capacity::Capacity;
use podflare_emulated_host::places::Places;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// Clears the terminal from its first place on.
const CLEAR: &str = "\x1b[H\x1b[2J";

const PERIOD: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &Top, places: &Places, output: &Output) -> anyhow::Result<ExitCode> {
    let client = Client::of(&args.host, places)?;
    loop {
        let screen = screen(&client)?;
        if args.once {
            screen.iter().try_for_each(|line| output.line(line))?;
            return Ok(ExitCode::SUCCESS);
        }
        output.line(&format!("{CLEAR}{}", screen.join("\n")))?;
        thread::sleep(PERIOD);
    }
}

fn screen(client: &Client) -> anyhow::Result<Vec<String>> {
    let mut lines = summary(&client.capacity()?);
    lines.push(String::new());
    let mut sandboxes = client.sandboxes()?;
    // The busiest first.
    sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.executions));
    lines.extend(ls::rows(&sandboxes)?);
    Ok(lines)
}

fn summary(capacity: &Capacity) -> Vec<String> {
    let Capacity { sandboxes, checkpoints, sandboxes_max, .. } = capacity;
    let mut lines = vec![format!("{sandboxes} sandboxes and {checkpoints} checkpoints of {sandboxes_max}")];
    lines.extend(capacity.templates.iter().map(|template| {
        let creates = template.pool_hits + template.pool_misses;
        format!(
            "{} ({} MiB, {} vCPUs): {} of {} ready, {} of {creates} creates from the pool",
            template.template,
            template.ram_mib,
            template.vcpus,
            template.pool_ready,
            template.pool_size,
            template.pool_hits
        )
    }));
    lines
}
