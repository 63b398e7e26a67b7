//! Measures fork with a guest of a few bytes: the VMM's own cost, without Linux. It runs on any KVM, also
//! where Linux cannot, so that native figures exist on every machine. Prints a Markdown table.

use podflare_e2e::figures::p50_p99;
use podflare_e2e::tiny_guest::kernel;
use podflare_e2e::vmm::{Boot, Vmm};
use podflare_e2e::wait::until;
use podflare_wire::control::BootConfig;

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
}

fn measure(touched_mib: u32, huge_pages: bool) -> Vec<String> {
    let source = boot(touched_mib, huge_pages);
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

fn boot(touched_mib: u32, huge_pages: bool) -> Vmm {
    let file = || tempfile::tempfile().unwrap_or_else(|error| panic!("no temporary file: {error}"));
    let config = BootConfig {
        vcpus: 1,
        memory_mib: 1024,
        disk_bytes: 1 << 20,
        command_line: String::new(),
        huge_pages,
    };
    let vmm = Vmm::start();
    vmm.boot(&Boot { kernel: kernel(touched_mib), initramfs: file(), disk_base: file(), config });
    until("the guest to count", || (!vmm.console().is_empty()).then_some(()));
    vmm
}
