//! Measures fork with a guest of a few bytes: the VMM's own cost, without Linux. It runs on any KVM, also
//! where Linux cannot, so that native figures exist on every machine. Prints a Markdown table.

use podflare_e2e::figures::p50_p99;
use podflare_e2e::state_guest;
use podflare_e2e::tiny_guest::kernel;
use podflare_e2e::vmm::{Boot, Vmm};
use podflare_e2e::wait::until;
use podflare_wire::control::BootConfig;
use std::fs::File;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread::{available_parallelism, scope};
use std::time::Instant;

const ROUNDS: usize = 100;

#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn main() {
    println!(
        "Fork of a tiny guest, {ROUNDS} rounds each, microseconds as p50 / p99; fork(2) is the floor.\n"
    );
    println!(
        "| touched | pages | source pause | save state | fork(2) | child: VM built | child: state restored |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (touched_mib, huge_pages) in [(0, false), (64, false), (64, true), (512, false), (512, true)] {
        let figures = measure(touched_mib, huge_pages);
        let pages = if huge_pages { "2 MiB" } else { "4 KiB" };
        println!("| {touched_mib} MiB | {pages} | {} |", figures.join(" | "));
    }
    let processors = available_parallelism().map_or(1, usize::from);
    println!(
        "\nUntil the vCPUs of all children of one fork run, of a guest that sleeps; {processors} processors, {ROUNDS} rounds each.\n"
    );
    println!("| children | microseconds, p50 / p99 |\n|---|---|");
    for (children, mut took) in measure_families([1, 5, 32], processors) {
        println!("| {children} | {} |", p50_p99(&mut took));
    }
}

/// The sizes in turn, so that all of them meet the same neighbours.
fn measure_families<const N: usize>(sizes: [usize; N], at_once: usize) -> [(usize, Vec<u64>); N] {
    let source = boot(state_guest::kernel(1), true);
    let mut families = sizes.map(|children| (children, Vec::new()));
    for _ in 0..ROUNDS {
        for (children, took_us) in &mut families {
            let start = Instant::now();
            let family = fork_family(&source, *children, at_once);
            let took = start.elapsed();
            drop(family);
            took_us.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
    }
    families
}

/// As hostd does it: one fork of the source, the twin makes the others, and they come to life in turn, as many at once as
/// there are processors. Returns when the vCPUs of all run.
fn fork_family(source: &Vmm, children: usize, at_once: usize) -> Vec<Vmm> {
    let twin = source.fork().0;
    let (frozen, next) = sync_channel(children);
    let next = Mutex::new(next);
    let bring_to_life = || {
        let mut alive = Vec::new();
        loop {
            let child: Result<Vmm, _> = next.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(child) = child else { return alive };
            child.thaw();
            alive.push(child);
        }
    };
    scope(|threads| {
        let workers: Vec<_> = (0..at_once).map(|_| threads.spawn(bring_to_life)).collect();
        for _ in 1..children {
            frozen.send(twin.fork().0).ok();
        }
        frozen.send(twin).ok();
        drop(frozen);
        workers.into_iter().filter_map(|worker| worker.join().ok()).flatten().collect()
    })
}

fn measure(touched_mib: u32, huge_pages: bool) -> Vec<String> {
    let source = boot(kernel(touched_mib), huge_pages);
    let mut columns = vec![Vec::new(); 5];
    for _ in 0..ROUNDS {
        let (copy, forked) = source.fork();
        let thawed = copy.thaw();
        let row = [forked.pause_us, forked.save_us, forked.fork_us, thawed.build_us, thawed.restore_us];
        for (column, figure) in columns.iter_mut().zip(row) {
            column.push(figure);
        }
    }
    columns.iter_mut().map(|column| p50_p99(column)).collect()
}

fn boot(kernel: File, huge_pages: bool) -> Vmm {
    let file = || tempfile::tempfile().unwrap_or_else(|error| panic!("no temporary file: {error}"));
    let config = BootConfig {
        vcpus: 1,
        memory_mib: 1024,
        disk_bytes: 1 << 20,
        command_line: String::new(),
        huge_pages,
    };
    let vmm = Vmm::start();
    vmm.boot(&Boot { kernel, initramfs: file(), disk_base: file(), config });
    until("the guest to write", || (!vmm.console().is_empty()).then_some(()));
    vmm
}
