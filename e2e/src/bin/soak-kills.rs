//! Kills a host at random moments and looks at what is left: `soak-kills [ROUNDS]` (300). Set `PODFLARE_TEST_SEED` to
//! repeat a run.

use podflare_e2e::kills::{Kills, Tally};
use podflare_e2e::place;
use std::time::Instant;

const ROUNDS: u32 = 300;
const PROGRESS_EVERY: u32 = 10;

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
fn main() {
    let wanted = std::env::args().nth(1).map_or(ROUNDS, |text| text.parse().expect("a number"));
    let seed = place::seed();
    println!("{wanted} rounds with PODFLARE_TEST_SEED={seed}");
    let start = Instant::now();
    let mut kills = Kills::start(seed);
    let mut tally = Tally::default();
    for round in 1..=wanted {
        kills.round(&mut tally);
        if round % PROGRESS_EVERY == 0 {
            println!("{tally:?} in {} s", start.elapsed().as_secs());
        }
    }
}
