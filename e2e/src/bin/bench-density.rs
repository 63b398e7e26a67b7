//! Measures what sandboxes cost their host: one after each thing that it does, and many that do nothing.
//! `bench-density [SANDBOXES [IDLE_SECONDS]]` prints Markdown tables.

use podflare_api::id::SandboxId;
use podflare_e2e::cost::{
    HostMemory, MEMORY_KINDS, ProcessMemory, ProcessorUse, host_ticks, kvm_counters, private_dirty_by_mapping,
};
use podflare_e2e::figures::p50_p99;
use podflare_e2e::host::Host;
use podflare_e2e::processes::{frozen, of_program};
use podflare_e2e::wait::until;
use std::time::{Duration, Instant};

const VMM: &str = "podflare-vmm";
const SANDBOXES: u32 = 10;
const IDLE_SECONDS: u64 = 30;
const POOL: u32 = 4;
/// Executions and creations that are timed among the idle sandboxes.
const TIMED: usize = 20;
/// How long a guest gets to report what it has freed: the kernel gathers for two seconds.
const SETTLING: Duration = Duration::from_secs(8);

/// What an active sandbox does, one after the other in the same one.
const ACTIVITIES: [(&str, &str, &str); 6] = [
    ("`print(1)`", "python", "print(1)"),
    (
        "`import json, sqlite3, asyncio, email, http.client`",
        "python",
        "import json, sqlite3, asyncio, email, http.client",
    ),
    ("50 MiB of data in Python", "python", "import os\ndata = os.urandom(50 << 20)"),
    ("the data is dropped", "python", "del data"),
    ("300 MiB of data, dropped again", "python", "data = bytearray(b'x') * (300 << 20)\ndel data"),
    (
        "bash reads Python's library (some 1,000 files)",
        "bash",
        "cat $(find /usr/lib/python3.13 -name '*.py') | wc -c",
    ),
];

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().ok());
    let sandboxes = arguments.next().flatten().unwrap_or(SANDBOXES);
    let idle_seconds = arguments.next().flatten().map_or(IDLE_SECONDS, u64::from);
    one_active();
    many_idle(sandboxes, Duration::from_secs(idle_seconds));
}

/// The VMMs of a host that has just been started: that of the template is the first.
struct Vmms {
    others: Vec<u32>,
}

impl Vmms {
    fn all(&self) -> Vec<u32> {
        of_program(VMM).into_iter().filter(|pid| !self.others.contains(pid)).collect()
    }
}

#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn one_active() {
    let vmms = Vmms { others: of_program(VMM) };
    let host = Host::start(0);
    host.rest();
    let template = until("the template alone", || Some(vmms.all()).filter(|all| all.len() == 1));
    let row = |name: &str, memory: ProcessMemory| {
        let ProcessMemory { resident, proportional, private_dirty, page_tables, .. } = memory;
        println!("| {name} | {resident} | {proportional} | {private_dirty} | {page_tables} |");
    };
    println!("One sandbox after each activity, KiB.\n");
    println!(
        "| VMM process | resident | proportional | private dirty | page tables |\n|---|---|---|---|---|"
    );
    row("template, alone", ProcessMemory::mean_of(&template));
    let sandbox = host.create();
    let pid = vmms.all().into_iter().filter(|pid| !template.contains(pid)).collect::<Vec<_>>();
    std::thread::sleep(SETTLING);
    row("new sandbox", ProcessMemory::mean_of(&pid));
    let parts = private_dirty_by_mapping(pid[0]);
    for (name, language, code) in ACTIVITIES {
        run(&host, &sandbox, language, code);
        std::thread::sleep(SETTLING);
        row(name, ProcessMemory::mean_of(&pid));
    }
    println!("\n| private dirty memory of the new sandbox | KiB |\n|---|---|");
    for (name, kib) in parts {
        println!("| {} | {kib} |", if name.is_empty() { "other anonymous memory" } else { &name });
    }
    println!();
}

#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn many_idle(count: u32, idle: Duration) {
    let vmms = Vmms { others: of_program(VMM) };
    let host = Host::start(POOL);
    host.rest();
    until("the pool to be full", || (host.pool_ready() == POOL).then_some(()));
    let template = until("the template", || frozen(&vmms.all()).first().copied());
    // The pool's first members come to rest by themselves.
    std::thread::sleep(SETTLING);
    let others = vmms.all().len();
    let before = HostMemory::now();
    let mut create_ms = Vec::new();
    let sandboxes: Vec<_> = (0..count)
        .map(|_| {
            let (id, ms) = timed(|| host.create());
            create_ms.push(ms);
            id
        })
        .collect();
    until("the pool to be full again", || (host.pool_ready() == POOL).then_some(()));
    std::thread::sleep(SETTLING);
    let after = HostMemory::now();
    let copies: Vec<u32> = vmms.all().into_iter().filter(|&pid| pid != template).collect();
    let grown = (copies.len() + 1).saturating_sub(others).max(1);
    let total_mib = after.kib("MemTotal") >> 10;
    println!("{count} idle sandboxes on a host of {total_mib} MiB.\n");
    println!("| memory of one, KiB | |\n|---|---|");
    let per_one = |name: &str| (after.kib(name) - before.kib(name)) / i64::try_from(grown).unwrap_or(1);
    println!("| **whole cost: less `MemAvailable`** | **{}** |", -per_one("MemAvailable"));
    for kind in MEMORY_KINDS {
        println!("| of the host's `{kind}` | {} |", per_one(kind));
    }
    let memory = ProcessMemory::mean_of(&copies);
    println!("| VMM: proportional | {} |", memory.proportional);
    println!("| VMM: private dirty | {} |", memory.private_dirty);
    println!("| VMM: page tables | {} |", memory.page_tables);
    println!("| template's VMM: resident | {} |", ProcessMemory::of(template).resident);
    println!("| left on the host (`MemAvailable`), MiB | {} |\n", after.kib("MemAvailable") >> 10);
    idle_costs(&copies, host.process.id(), idle);
    answers(&host, &sandboxes, create_ms);
}

/// What nothing costs, for as long as `idle`.
#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn idle_costs(copies: &[u32], hostd: u32, idle: Duration) {
    let sample =
        || (host_ticks(), ProcessorUse::of(copies), ProcessorUse::of(&[hostd]), kvm_counters(copies));
    let (ticks, vmms, daemon, counters) = sample();
    std::thread::sleep(idle);
    let (ticks_after, vmms_after, daemon_after, counters_after) = sample();
    let (busy, free) = (ticks_after.0 - ticks.0, ticks_after.1 - ticks.1);
    let seconds = idle.as_secs().max(1);
    let machines = copies.len() as u64;
    println!("Idle for {seconds} s, {machines} copies.\n\n| processors | |\n|---|---|");
    println!("| host busy, thousandths | {} |", 1000 * busy / (busy + free).max(1));
    let used = vmms_after.since(vmms);
    println!("| one VMM: microseconds a minute | {} |", used.busy_ns * 60 / 1000 / seconds / machines);
    println!("| one VMM: times its threads were run a minute | {} |", used.runs * 60 / seconds / machines);
    let used = daemon_after.since(daemon);
    println!(
        "| hostd: microseconds a minute for each copy | {} |",
        used.busy_ns * 60 / 1000 / seconds / machines
    );
    for (name, after) in counters_after {
        let count = after.saturating_sub(counters.get(&name).copied().unwrap_or_default());
        if count > 0 {
            println!("| KVM: `{name}` of one a minute | {} |", count * 60 / seconds / machines);
        }
    }
    println!();
}

/// Whether each still answers, and how fast the host is among them.
#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn answers(host: &Host, sandboxes: &[SandboxId], mut create_ms: Vec<u64>) {
    let Some(first) = sandboxes.first() else { return };
    let mut first_ms: Vec<u64> =
        sandboxes.iter().map(|sandbox| timed(|| run(host, sandbox, "python", "print(1)")).1).collect();
    // What all of them have put off until they had answered is done then.
    std::thread::sleep(SETTLING);
    let mut hot_ms: Vec<u64> =
        (0..TIMED).map(|_| timed(|| run(host, first, "python", "print(1)")).1).collect();
    let last = create_ms.split_off(create_ms.len().saturating_sub(TIMED));
    println!("| milliseconds, p50 / p99 | n | |\n|---|---|---|");
    for (name, mut samples) in [("creates: the first", create_ms), ("creates: the last", last)] {
        println!("| {name} | {} | {} |", samples.len(), p50_p99(&mut samples));
    }
    println!(
        "| first `print(1)` of each, one after the other | {} | {} |",
        first_ms.len(),
        p50_p99(&mut first_ms)
    );
    println!("| hot `print(1)` of one | {} | {} |", hot_ms.len(), p50_p99(&mut hot_ms));
}

fn run(host: &Host, sandbox: &SandboxId, language: &str, code: &str) {
    let output = match language {
        "bash" => host.bash(sandbox, code),
        _ => host.python(sandbox, code),
    };
    #[expect(clippy::panic, reason = "figures of a sandbox that does not answer would mislead")]
    match output {
        Ok(output) if output.exit_code == 0 => {}
        other => panic!("{sandbox} does not do {code:?}: {other:?}"),
    }
}

/// What it gave, and the milliseconds that it took.
fn timed<T>(what: impl FnOnce() -> T) -> (T, u64) {
    let start = Instant::now();
    let result = what();
    (result, u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX))
}
