//! The VMM with a stock distribution kernel and the real agent, without hostd.

use podflare_e2e::agent::Agent;
use podflare_e2e::cost::ProcessMemory;
use podflare_e2e::linux_guest;
use podflare_e2e::vmm::Vmm;
use podflare_e2e::wait::until;
use podflare_wire::control::{Command, EndReason, Event, PageRun};

fn boot_linux(vcpus: u8) -> Vmm {
    linux_guest::boot(vcpus, 512, true)
}

#[test]
fn ten_generations_keep_memory_and_disk() {
    let vmm = boot_linux(2);
    let agent = Agent::connect(&vmm, 0);
    ten_generations(vmm, agent);
}

#[test]
fn ten_generations_whose_hot_pages_are_brought_in_keep_memory_and_disk() {
    let template = boot_linux(2);
    Agent::connect(&template, 0).python("print(1)");
    template.freeze();
    let runs = linux_guest::hot_pages(&template);
    assert!(runs.iter().any(|run| run.written) && runs.iter().any(|run| !run.written));
    template.set_hot_pages(runs);
    let (first, _) = template.fork();
    let agent = Agent::connect_and_thaw(&first, 1);
    ten_generations(first, agent);
}

#[test]
fn a_recording_machine_is_not_copied() {
    let template = boot_linux(1);
    Agent::connect(&template, 0);
    template.freeze();
    let (trial, _) = template.fork();
    trial.thaw_recording();
    assert_eq!(Agent::connect(&trial, 1).python("print(6 * 7)"), "42\n");
    for command in [Command::Fork, Command::Freeze] {
        assert!(trial.refusal(&command).contains("recording"));
    }
    let outside = PageRun { first: 1 << 40, count: 1, written: true };
    assert!(template.refusal(&Command::SetHotPages(vec![outside])).contains("not memory"));
}

fn ten_generations(mut vmm: Vmm, mut agent: Agent) {
    agent.python("import hashlib, os\nmemory = bytearray(os.urandom(1 << 20))");
    for generation in 1..=10_u8 {
        // Some of it old, some new; what is on the disk is partly still in the guest's page cache.
        let sums = agent.python(
            "block = os.urandom(4096)\nat = int.from_bytes(block[:2]) % 256 * 4096\nmemory[at:at + 4096] = block\n\
             open(f'/root/{at}', 'wb').write(memory)\nprint(hashlib.sha256(memory).hexdigest())",
        );
        let files = agent.bash("cat /root/[0-9]* | sha256sum");
        let (copy, _) = vmm.fork();
        let mut next = Agent::connect_and_thaw(&copy, generation);
        assert_eq!(next.python("print(hashlib.sha256(memory).hexdigest())"), sums);
        next.bash("echo 3 > /proc/sys/vm/drop_caches");
        assert_eq!(next.bash("cat /root/[0-9]* | sha256sum"), files, "generation {generation}");
        (vmm, agent) = (copy, next);
    }
}

#[test]
fn the_source_goes_on_and_its_connection_lives_while_the_copys_is_reset() {
    let source = boot_linux(1);
    let mut agent = Agent::connect(&source, 0);
    agent.python("x = 1");
    let (copy, _) = source.fork();
    copy.thaw();
    assert_eq!(agent.python("x += 1; print(x)"), "2\n");
    let mut of_copy = Agent::connect(&copy, 1);
    assert_eq!(of_copy.python("x += 10; print(x)"), "11\n");
    assert_eq!(agent.python("print(x)"), "2\n");
    assert_eq!(copy.inspect().connections, 1);
}

#[test]
fn two_copies_of_one_moment_share_no_randomness_and_no_disk() {
    let source = boot_linux(2);
    let mut agent = Agent::connect(&source, 0);
    agent.python("import random, os; random.seed(7)");
    let (twin, _) = source.fork();
    let (other, _) = twin.fork();
    let mut agents = [(&twin, 1), (&other, 2)].map(|(copy, seed)| Agent::connect_and_thaw(copy, seed));
    let draw = "print(random.random(), os.urandom(8).hex())";
    let [one, two] = &mut agents;
    assert_ne!(one.python(draw), two.python(draw));
    one.bash("echo one > /root/mine; sync");
    assert_eq!(two.bash("ls /root/mine 2>/dev/null || echo none"), "none\n");
}

#[test]
fn what_a_guest_frees_comes_back_to_its_host_in_a_copy_too() {
    let source = boot_linux(1);
    let mut agent = Agent::connect(&source, 0);
    agent.python("import hashlib, os\nkept = os.urandom(8 << 20)");
    let sum = agent.python("print(hashlib.sha256(kept).hexdigest())");
    let (copy, _) = source.fork();
    let mut of_copy = Agent::connect_and_thaw(&copy, 1);
    for (vmm, agent) in [(&source, &mut agent), (&copy, &mut of_copy)] {
        for _ in 0..2 {
            use_and_free(vmm, agent);
        }
        assert_eq!(agent.python("print(hashlib.sha256(kept).hexdigest())"), sum);
    }
}

/// Fills 256 MiB and waits until the host has got most of it back.
fn use_and_free(vmm: &Vmm, agent: &mut Agent) {
    let private_mib = || ProcessMemory::of(vmm.pid).private_dirty >> 10;
    let before = private_mib();
    agent.python("data = bytearray(b'x') * (256 << 20)");
    let full = private_mib();
    assert!(full >= before + 200, "from {before} MiB to {full} MiB only");
    assert_eq!(agent.python("print(data.count(b'x') >> 20)\ndel data"), "256\n");
    until("the host to have the memory back", || (private_mib() <= full - 200).then_some(()));
}

#[test]
fn a_guest_that_panics_ends_with_its_last_words() {
    let vmm = boot_linux(1);
    let mut agent = Agent::connect(&vmm, 0);
    agent
        .bash("echo 1 > /proc/sys/kernel/sysrq; (sleep 0.5; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &");
    assert!(agent.is_lost());
    let Event::Ended { reason, console_tail } = vmm.event() else { panic!("the guest goes on") };
    assert_eq!(reason, EndReason::Reset);
    assert!(String::from_utf8_lossy(&console_tail).contains("Kernel panic"), "{console_tail:?}");
}
