//! Freezes and resumes sandboxes and compares what comes back: `soak-spaces [COUNT]` (1,000), half of them after another
//! start of the host.

use podflare_api::id::SpaceId;
use podflare_e2e::host::Host;
use serde_json::json;
use std::collections::VecDeque;
use std::time::Instant;

const COUNT: u32 = 1000;
const PROGRESS_EVERY: u32 = 50;

/// Spaces on the disk at once.
const AT_ONCE: usize = 100;

/// Fills memory and disk, and tells the sum of both.
const FILL: &str = "import os, hashlib
blob = os.urandom(4 << 20)
with open('/root/file', 'wb') as file:
    file.write(os.urandom(1 << 20))
def total():
    return hashlib.sha256(blob + open('/root/file', 'rb').read()).hexdigest()
print(total())";

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
fn main() {
    let wanted = std::env::args().nth(1).map_or(COUNT, |text| text.parse().expect("a number"));
    let mut host = Host::start(1);
    host.rest();
    let start = Instant::now();
    let (mut kept, mut resumed) = (VecDeque::new(), 0);
    for number in 1..=wanted {
        kept.push_back(frozen(&host));
        if kept.len() >= AT_ONCE {
            host.kill();
            host.start_again();
            while kept.len() > AT_ONCE / 2 {
                resumed += resume(&host, kept.pop_front());
            }
        }
        if number % PROGRESS_EVERY == 0 {
            println!("{number} frozen, {resumed} resumed in {} s", start.elapsed().as_secs());
        }
    }
    while let Some(space) = kept.pop_front() {
        resumed += resume(&host, Some(space));
    }
    assert!(host.spaces().is_empty());
    println!("{wanted} frozen, {resumed} resumed with all sums right in {} s", start.elapsed().as_secs());
}

fn frozen(host: &Host) -> (SpaceId, String) {
    let sandbox = host.create();
    let sum = host.python(&sandbox, FILL).expect("it runs").stdout;
    (host.freeze(&sandbox).expect("it is frozen").id, sum)
}

/// One, if there is one; and it must be as it was.
fn resume(host: &Host, space: Option<(SpaceId, String)>) -> u32 {
    let Some((id, sum)) = space else { return 0 };
    let sandbox = host.resume(&id, &json!({})).expect("it is resumed");
    assert_eq!(host.python(&sandbox, "print(total())").expect("it runs").stdout, sum, "{id}");
    host.delete(&sandbox);
    1
}
