//! Measures fork with a stock Linux guest and the real agent, without hostd: where the time of a fork goes.
//! Prints a Markdown table.

use podflare_e2e::agent::Agent;
use podflare_e2e::figures::p50_p99;
use podflare_e2e::linux_guest;
use podflare_e2e::vmm::Vmm;
use std::time::Instant;

const ROUNDS: u8 = 30;
const COLUMNS: [&str; 10] = [
    "hot exec",
    "source pause",
    "save state",
    "fork(2)",
    "VM built",
    "state restored",
    "hot pages brought in",
    "copy renewed",
    "copy's first exec",
    "source's next exec",
];

#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn main() {
    println!("Fork of a Linux guest (2 vCPUs, 1,024 MiB), {ROUNDS} rounds, microseconds as p50 / p99.\n");
    println!("| pages | hot pages | {} |", COLUMNS.join(" | "));
    println!("|{}", "---|".repeat(COLUMNS.len() + 2));
    for huge_pages in [true, false] {
        for hot_pages in [false, true] {
            let figures = measure(huge_pages, hot_pages);
            let size = if huge_pages { "2 MiB" } else { "4 KiB" };
            let hot = if hot_pages { "known" } else { "unknown" };
            println!("| {size} | {hot} | {} |", figures.join(" | "));
        }
    }
}

fn measure(huge_pages: bool, hot_pages: bool) -> Vec<String> {
    let template = linux_guest::boot(2, 1024, huge_pages);
    Agent::connect(&template, 0).python("print(1)");
    template.freeze();
    if hot_pages {
        template.set_hot_pages(linux_guest::hot_pages(&template));
    }
    let (source, _) = template.fork();
    let mut agent = Agent::connect_and_thaw(&source, 0);
    let mut columns = vec![Vec::new(); COLUMNS.len()];
    for round in 1..=ROUNDS {
        one_round(&source, &mut agent, round)
            .into_iter()
            .zip(&mut columns)
            .for_each(|(figure, column)| column.push(figure));
    }
    columns.iter_mut().map(|column| p50_p99(column)).collect()
}

fn one_round(source: &Vmm, agent: &mut Agent, round: u8) -> [u64; 10] {
    agent.python("print(1)");
    let hot = time(|| agent.python("print(1)"));
    let (copy, forked) = source.fork();
    let thawed = copy.thaw();
    let start = Instant::now();
    let mut of_copy = Agent::connect(&copy, round);
    let renewed = micros(start);
    let first = time(|| of_copy.python("print(1)"));
    drop(copy);
    let next = time(|| agent.python("print(1)"));
    let (pause, save, fork) = (forked.pause_us, forked.save_us, forked.fork_us);
    let restore = thawed.restore_us - thawed.prefault_us;
    [hot, pause, save, fork, thawed.build_us, restore, thawed.prefault_us, renewed, first, next]
}

fn time(act: impl FnOnce() -> String) -> u64 {
    let start = Instant::now();
    assert_eq!(act(), "1\n");
    micros(start)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
