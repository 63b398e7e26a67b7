//! Measures what an idle pool member costs beyond its template. Prints a Markdown table.

use podflare_e2e::host::Host;
use podflare_e2e::processes::{memory_kib, of_program};
use podflare_e2e::wait::until;

const MEMBERS: u32 = 4;

#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn main() {
    let others = of_program("podflare-vmm");
    let host = Host::start(MEMBERS);
    until("the pool to be full", || (host.pool_ready() == MEMBERS).then_some(()));
    println!("| VMM process | proportional KiB | private dirty KiB |\n|---|---|---|");
    let vmms = of_program("podflare-vmm").into_iter().filter(|pid| !others.contains(pid));
    for (number, pid) in vmms.enumerate() {
        let (proportional, private_dirty) = memory_kib(pid);
        let name = if number == 0 { "template".into() } else { format!("idle pool member {number}") };
        println!("| {name} | {proportional} | {private_dirty} |");
    }
}
