//! What a copy gets of its own and what it inherits, where that is seen only without hostd: its vsock
//! connections, and time that it has spent frozen. The rest is in the SDK's live tests.

#![expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]

use podflare_e2e::agent::Agent;
use podflare_e2e::linux_guest;
use podflare_e2e::vmm::Vmm;
use podflare_e2e::wait::DEADLINE;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PORT: u32 = 7000;

fn boot_linux() -> Vmm {
    linux_guest::boot(1, 512, true)
}

fn connect(vmm: &Vmm) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    vmm.connect(PORT, &OwnedFd::from(theirs));
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    ours
}

/// Sends and receives through a connection that the guest knows as `name`.
fn exchange(agent: &mut Agent, stream: &mut UnixStream, name: &str) {
    stream.write_all(b"ping").unwrap();
    assert_eq!(agent.python(&format!("print({name}.recv(4)); _ = {name}.send(b'pong')")), "b'ping'\n");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
}

#[test]
fn a_copys_connections_are_reset_its_listeners_live_and_the_source_sees_nothing_of_it() {
    let source = boot_linux();
    let mut agent = Agent::connect(&source, 0);
    agent.python(&format!(
        "import socket\nlistener = socket.socket(socket.AF_VSOCK)\n\
         listener.bind((socket.VMADDR_CID_ANY, {PORT}))\nlistener.listen()"
    ));
    let mut old = connect(&source);
    agent.python("old, _ = listener.accept(); old.settimeout(60)");
    exchange(&mut agent, &mut old, "old");

    let (copy, _) = source.fork();
    let mut of_copy = Agent::connect_and_thaw(&copy, 1);
    // Linux shows a reset of vsock so: what was received may be read to its end, and nothing be sent.
    let ended = "print(old.recv(1))\ntry: old.send(b'x')\nexcept BrokenPipeError: print('broken')";
    assert_eq!(of_copy.python(ended), "b''\nbroken\n");
    let mut new = connect(&copy);
    of_copy.python("new, _ = listener.accept(); new.settimeout(60)");
    exchange(&mut of_copy, &mut new, "new");

    exchange(&mut agent, &mut old, "old");
    let mut another = connect(&source);
    agent.python("new, _ = listener.accept(); new.settimeout(60)");
    exchange(&mut agent, &mut another, "new");
    exchange(&mut of_copy, &mut new, "new");
}

const READ_CLOCKS: &str = "import time; print(time.time_ns(), time.monotonic_ns(), \
     time.clock_gettime_ns(time.CLOCK_BOOTTIME))";

/// The guest's wall clock, monotonic clock and time since its boot.
fn read_clocks(agent: &mut Agent) -> [Duration; 3] {
    let printed = agent.python(READ_CLOCKS);
    let clocks: Vec<_> =
        printed.split_whitespace().map(|ns| Duration::from_nanos(ns.parse().unwrap())).collect();
    clocks.try_into().unwrap()
}

#[test]
fn a_copy_that_was_frozen_has_the_hosts_time_and_did_not_live_meanwhile() {
    const FROZEN: Duration = Duration::from_secs(3);
    const ERROR_MAX: Duration = Duration::from_millis(100);
    let source = boot_linux();
    let mut agent = Agent::connect(&source, 0);
    let begun = Instant::now();
    let [_, monotonic, since_boot] = read_clocks(&mut agent);
    let (twin, _) = source.fork();
    let freezing = Instant::now();
    std::thread::sleep(FROZEN);
    let frozen = freezing.elapsed();
    for seed in 1..=2 {
        let (copy, _) = twin.fork();
        let mut of_copy = Agent::open(&copy);
        copy.thaw();
        let told = Instant::now();
        of_copy.renew(seed).unwrap();
        let mut late = told.elapsed();
        // As hostd does: this time it finds an agent that is awake.
        if late > ERROR_MAX {
            let told = Instant::now();
            of_copy.set_clock().unwrap();
            late = told.elapsed();
        }

        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let [wall, monotonic_of_copy, since_boot_of_copy] = read_clocks(&mut of_copy);
        let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(before <= wall + ERROR_MAX.max(late), "late: {before:?}, guest {wall:?}");
        assert!(wall <= after + ERROR_MAX, "early: {after:?}, guest {wall:?}");
        let lived_at_most = begun.elapsed() - frozen + ERROR_MAX;
        for (before, after) in [(monotonic, monotonic_of_copy), (since_boot, since_boot_of_copy)] {
            assert!(before < after && after - before <= lived_at_most, "{before:?} {after:?}");
        }
    }
}
