//! A host that is killed at random moments loses no Space. `make soak` does it for hours.

use podflare_e2e::kills::{Kills, Tally};
use podflare_e2e::place;

const ROUNDS: u32 = 8;

#[test]
fn a_host_that_is_killed_at_random_moments_loses_no_space_and_leaves_nothing_behind() {
    let seed = place::seed();
    println!("{ROUNDS} rounds with PODFLARE_TEST_SEED={seed}");
    let mut kills = Kills::start(seed);
    let mut tally = Tally::default();
    for _ in 0..ROUNDS {
        kills.round(&mut tally);
    }
    println!("{tally:?}");
    assert!(tally.resumed > 0, "no Space was ever frozen");
}
