//! Creates, forks, merges and closes sandboxes, and says what there is before and after: `soak-rounds [ROUNDS]`
//! (1,000). Ends with status 1 if something was left behind.

use podflare_e2e::rounds::Rounds;
use std::process::ExitCode;
use std::time::Instant;

const ROUNDS: u32 = 1000;
const PROGRESS_EVERY: u32 = 100;

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).map_or(ROUNDS, |text| text.parse().expect("a number"));
    let rounds = Rounds::start();
    let before = rounds.census(None);
    println!("Before: {before}.");
    let start = Instant::now();
    rounds.run(wanted, |done| {
        if done % PROGRESS_EVERY == 0 {
            println!("{done} rounds in {} s", start.elapsed().as_secs());
        }
    });
    let after = rounds.census(Some(&before));
    println!("After {wanted} rounds in {} s: {after}.", start.elapsed().as_secs());
    ExitCode::from(u8::from(!after.has_no_more_than(&before)))
}
