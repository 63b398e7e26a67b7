//! Measures how long a source stands still while it is forked under load, beside the same when it is idle.
//! `bench-busy-fork tiny` takes guests of a few bytes and runs on any KVM; `bench-busy-fork linux` takes a stock
//! Linux guest. Each copy is kept, frozen, until the next one is made: the source shares its memory all the time.
//! Prints a Markdown table.

use podflare_e2e::agent::Agent;
use podflare_e2e::busy_guest::{Crowd, Data, DirtyFiles, Spinners, Writers};
use podflare_e2e::cost::ProcessMemory;
use podflare_e2e::figures::p50_p95_max;
use podflare_e2e::vmm::{Boot, Vmm};
use podflare_e2e::wait::until;
use podflare_e2e::{counters_guest, disk_guest, linux_guest, refilling_guest, state_guest};
use podflare_wire::control::BootConfig;
use podflare_wire::guest::Language;
use std::fs::File;
use std::time::{Duration, Instant};

const TINY_ROUNDS: usize = 100;
const LINUX_ROUNDS: usize = 20;
const IDLE: Duration = Duration::from_millis(250);
const COLUMNS: [&str; 6] = ["source pause", "of it: stop", "save state", "fork(2)", "fork answered", "n"];

#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn main() {
    println!("Fork of a busy machine, microseconds as p50 / p95 / max.\n");
    println!("| the guest | {} |\n|{}", COLUMNS.join(" | "), "---|".repeat(COLUMNS.len() + 1));
    match std::env::args().nth(1).as_deref() {
        Some("tiny") => tiny(),
        Some("linux") => linux(),
        _ => panic!("`tiny` or `linux`?"),
    }
}

/// Forks so many times, each time after `prepare`, and prints a row.
#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn measure(name: &str, rounds: usize, source: &Vmm, mut prepare: impl FnMut()) {
    let mut columns = vec![Vec::new(); COLUMNS.len() - 1];
    let mut newest = None;
    for _ in 0..rounds {
        prepare();
        let start = Instant::now();
        let (copy, forked) = source.fork();
        let answered = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let row = [forked.pause_us, forked.stop_us, forked.save_us, forked.fork_us, answered];
        columns.iter_mut().zip(row).for_each(|(column, figure)| column.push(figure));
        drop(newest.replace(copy));
    }
    let figures: Vec<String> = columns.iter_mut().map(|column| p50_p95_max(column)).collect();
    println!("| {name} | {} | {rounds} |", figures.join(" | "));
}

fn tiny() {
    let measure_tiny = |name: &str, kernel, vcpus, huge_pages, touched_mib: u64| {
        let source = boot_tiny(kernel, vcpus, huge_pages);
        until_touched(&source, touched_mib);
        measure(name, TINY_ROUNDS, &source, || wait_for_more(&source));
    };
    measure_tiny("idle, 1 vCPU", state_guest::kernel(1), 1, true, 0);
    for vcpus in [1, 2, 4] {
        let name = format!("{vcpus} vCPU(s) that rewrite 64 MiB");
        measure_tiny(&name, counters_guest::kernel(vcpus, 64), vcpus, true, 0);
    }
    for (huge_pages, size) in [(true, "2 MiB"), (false, "4 KiB")] {
        let name = format!("2 vCPUs that rewrite 2 GiB, pages of {size}");
        measure_tiny(&name, counters_guest::kernel(2, 2048), 2, huge_pages, 2000);
    }
    measure_tiny("disk requests of 4 KiB without a pause, 1 vCPU", disk_guest::kernel(), 1, true, 0);
    measure_tiny("disk requests of 15 MiB without a pause, 2 vCPUs", refilling_guest::kernel(), 2, true, 0);
}

fn boot_tiny(kernel: File, vcpus: u8, huge_pages: bool) -> Vmm {
    let file = || tempfile::tempfile().unwrap_or_else(|error| panic!("no temporary file: {error}"));
    let config =
        BootConfig { vcpus, memory_mib: 3072, disk_bytes: 16 << 20, command_line: String::new(), huge_pages };
    let vmm = Vmm::start();
    vmm.boot(&Boot { kernel, initramfs: file(), disk_base: file(), config });
    wait_for_more(&vmm);
    vmm
}

fn wait_for_more(vmm: &Vmm) {
    let before = vmm.inspect().console_bytes;
    until("the guest to go on", || (vmm.inspect().console_bytes > before).then_some(()));
}

fn until_touched(vmm: &Vmm, mib: u64) {
    until("the memory to be touched", || {
        (ProcessMemory::of(vmm.pid).proportional >> 10 >= mib).then_some(())
    });
}

fn linux() {
    printing_guest();
    writing_guest();
    crowded_guest();
    computing_guests();
    large_guest();
}

fn measure_idle(name: &str, source: &Vmm) {
    measure(name, LINUX_ROUNDS, source, || std::thread::sleep(IDLE));
}

fn printing_guest() {
    let source = linux_guest::boot(2, 1024, true);
    let mut agent = Agent::connect(&source, 0);
    measure_idle("idle, 2 vCPUs", &source);
    for (name, language, code) in [
        ("Python that prints", Language::Python, "for i in range(2001): print(i, flush=True)"),
        ("bash that prints", Language::Bash, "for i in $(seq 2000); do echo $i; done"),
    ] {
        let exec = agent.begin(language, code).unwrap_or_else(|error| panic!("{error:?}"));
        let mut lines = 0;
        let mut read_lines = |count: usize| {
            while lines < count {
                match agent.next_output(exec) {
                    Ok(Some(data)) => lines += data.iter().filter(|&&byte| byte == b'\n').count(),
                    Ok(None) => return,
                    Err(error) => panic!("{error:?}"),
                }
            }
        };
        let mut round = 0;
        measure(name, LINUX_ROUNDS, &source, || {
            round += 1;
            read_lines(round * 2000 / LINUX_ROUNDS - 50);
        });
        read_lines(usize::MAX);
    }
}

fn writing_guest() {
    let source = linux_guest::boot(2, 1024, true);
    let mut agent = Agent::connect(&source, 0);
    let files = DirtyFiles::start(&mut agent);
    measure("32 MiB of dirty page cache, 2 vCPUs", LINUX_ROUNDS, &source, || {
        agent.bash("rm -f /root/dirty-*; sync");
        files.write(&mut agent, 32);
    });
    let writers = Writers::start(&mut agent);
    measure("4 writers that wait for the disk, 2 vCPUs", LINUX_ROUNDS, &source, || {
        writers.wait_for_more(&mut agent);
    });
}

fn crowded_guest() {
    let source = linux_guest::boot(2, 1024, true);
    let mut agent = Agent::connect(&source, 0);
    Crowd::start(&mut agent);
    measure_idle("500 processes and 1,000 threads, 2 vCPUs", &source);
}

fn computing_guests() {
    for vcpus in [2, 4] {
        let source = linux_guest::boot(vcpus, 512, true);
        let mut agent = Agent::connect(&source, 0);
        measure_idle(&format!("idle, {vcpus} vCPUs, 512 MiB"), &source);
        Spinners::start(&mut agent, vcpus.into());
        measure_idle(&format!("{vcpus} vCPUs that compute, 512 MiB"), &source);
    }
}

fn large_guest() {
    let source = linux_guest::boot(2, 3072, true);
    let mut agent = Agent::connect(&source, 0);
    let data = Data::start(&mut agent, 2048);
    measure_idle("2 GiB of data, only read", &source);
    let (copy, _) = source.fork();
    data.change(&mut agent, 1);
    drop(copy);
    measure_idle("2 GiB of data, each page rewritten once while a copy lived", &source);
}
