//! Makes copies of a Linux guest, one after another, and says how many of them ran: each must be renewed and
//! must answer its first exec. `soak-copies [COPIES [VCPUS]]`; ends with status 1 if one did not.

use podflare_e2e::agent::Agent;
use podflare_e2e::linux_guest;
use podflare_e2e::vmm::Vmm;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

const COPIES: u32 = 1000;
const VCPUS: u8 = 2;
const PROGRESS_EVERY: u32 = 100;

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().map(|text| text.parse::<u32>().expect("a number"));
    let copies = number().unwrap_or(COPIES);
    let vcpus = number().map_or(VCPUS, |vcpus| u8::try_from(vcpus).expect("fewer vCPUs"));
    let source = linux_guest::boot(vcpus, 1024, true);
    let mut agent = Agent::connect(&source, 0);
    let start = Instant::now();
    let mut lost = 0;
    for copy in 1..=copies {
        agent.python(&format!("x = {copy}"));
        lost += u32::from(catch_unwind(AssertUnwindSafe(|| one_copy(&source, copy))).is_err());
        if copy % PROGRESS_EVERY == 0 || copy == copies {
            println!("{copy} copies of {vcpus} vCPUs in {} s: {lost} lost", start.elapsed().as_secs());
        }
    }
    ExitCode::from(u8::from(lost > 0))
}

fn one_copy(source: &Vmm, number: u32) {
    let (copy, _) = source.fork();
    let mut agent = Agent::connect_and_thaw(&copy, u8::try_from(number % 256).expect("a byte"));
    assert_eq!(agent.python("print(x)"), format!("{number}\n"));
}
