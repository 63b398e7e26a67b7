//! Measures whether a pool member that has waited is as good as a new one: `bench-warm-members [SECONDS
//! [MEMBERS]]` (600, 8). Prints the create and the first exec of members that are new, of the same pool's after so
//! many seconds without a request, and of new ones again; how far each guest's wall clock is off; and what a
//! member takes of the host's memory.

use podflare_api::id::SandboxId;
use podflare_e2e::cost::HostMemory;
use podflare_e2e::figures::p50_p99;
use podflare_e2e::host::Host;
use podflare_e2e::wait::until;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const WAIT_SECONDS: u32 = 600;
const MEMBERS: u32 = 8;

/// The host is left alone for so long before each sample.
const QUIET: Duration = Duration::from_millis(500);

/// Each narrows down by how much a clock is off.
const CLOCK_READINGS: u32 = 8;

struct Sample {
    create_us: u64,
    first_exec_us: u64,
    /// Bounds of guest's clock minus host's, in milliseconds.
    clock_ms: (f64, f64),
}

#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number =
        |default| arguments.next().map_or(default, |text| text.parse::<u32>().expect("a number"));
    let (wait_seconds, members) = (number(WAIT_SECONDS), number(MEMBERS));

    let empty = Host::start(0);
    empty.rest();
    sleep(QUIET);
    let without = available_kib();
    drop(empty);
    let host = Host::start(members);
    host.rest();
    settle(&host, members);
    let with = available_kib();
    println!("A member takes {} KiB of MemAvailable.\n", (without - with) / i64::from(members));

    println!("| member | n | create µs p50 / p99 | first exec µs p50 / p99 | guest's clock off by, ms |");
    println!("|---|---|---|---|---|");
    row("new", &host, members);
    settle(&host, members);
    sleep(Duration::from_secs(wait_seconds.into()));
    println!("(MemAvailable after the wait: {} KiB less per member)", {
        (without - available_kib()) / i64::from(members)
    });
    row(&format!("{wait_seconds} s old"), &host, members);
    row("new again", &host, members);
}

fn settle(host: &Host, members: u32) {
    until("the pool to be full", || (host.pool_ready() == members).then_some(()));
    sleep(QUIET);
}

/// Claims as many as there were, one after the other; the pool gives its oldest first.
#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn row(name: &str, host: &Host, members: u32) {
    let samples: Vec<Sample> = (0..members)
        .map(|_| {
            settle(host, members);
            sample(host)
        })
        .collect();
    let mut creates: Vec<u64> = samples.iter().map(|sample| sample.create_us).collect();
    let mut execs: Vec<u64> = samples.iter().map(|sample| sample.first_exec_us).collect();
    let least = samples.iter().map(|sample| sample.clock_ms.0).fold(f64::INFINITY, f64::min);
    let most = samples.iter().map(|sample| sample.clock_ms.1).fold(f64::NEG_INFINITY, f64::max);
    let (creates, execs) = (p50_p99(&mut creates), p50_p99(&mut execs));
    println!("| {name} | {members} | {creates} | {execs} | {least:.1} to {most:.1} |");
}

fn sample(host: &Host) -> Sample {
    let begun = Instant::now();
    let id = host.create();
    let create_us = micros(begun);
    let begun = Instant::now();
    assert_eq!(host.python(&id, "print(1)").expect("an answer").stdout, "1");
    let first_exec_us = micros(begun);
    let bounds = (0..CLOCK_READINGS).map(|_| clock_bounds(host, &id));
    let clock_ms = bounds.reduce(|one, other| (one.0.max(other.0), one.1.min(other.1)));
    host.delete(&id);
    Sample { create_us, first_exec_us, clock_ms: clock_ms.expect("at least one reading") }
}

/// The guest reads its clock between two readings of the host's.
fn clock_bounds(host: &Host, id: &SandboxId) -> (f64, f64) {
    let before = unix_time_ms();
    let output = host.python(id, "import time; print(time.time() * 1000)").expect("an answer");
    let after = unix_time_ms();
    let guest: f64 = output.stdout.parse().expect("the guest's time");
    (guest - after, guest - before)
}

fn unix_time_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs_f64() * 1e3
}

fn micros(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_micros()).expect("less than an age")
}

/// Memory that the host can still give.
fn available_kib() -> i64 {
    HostMemory::now().kib("MemAvailable")
}
