//! The VMM with a stock distribution kernel and the real agent, without hostd.

#![expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]

use podflare_e2e::agent::Agent;
use podflare_e2e::busy_guest::{Crowd, Data, DirtyFiles, Spinners, Writers};
use podflare_e2e::cost::ProcessMemory;
use podflare_e2e::linux_guest;
use podflare_e2e::vmm::Vmm;
use podflare_e2e::wait::until;
use podflare_wire::control::{Command, EndReason, Event, PageRun};
use podflare_wire::guest::{ExecId, Language};

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

/// Reads on until the output has that line.
fn read_to_line(agent: &mut Agent, exec: ExecId, line: &str) -> String {
    let mut output = String::new();
    while !output.lines().any(|other| other == line) {
        let data = agent.next_output(exec).unwrap().expect("the code goes on");
        output.push_str(&String::from_utf8(data).unwrap());
    }
    output
}

fn read_to_end(agent: &mut Agent, exec: ExecId) -> String {
    let mut output = Vec::new();
    while let Some(data) = agent.next_output(exec).unwrap() {
        output.extend(data);
    }
    String::from_utf8(output).unwrap()
}

fn lines(numbers: std::ops::RangeInclusive<u32>) -> String {
    numbers.map(|number| format!("{number}\n")).collect()
}

#[test]
fn code_that_runs_goes_on_in_both_and_the_sources_stream_has_no_gap() {
    let source = boot_linux(2);
    let mut agent = Agent::connect(&source, 0);
    let python = "for i in range(1, 2001): print(i, flush=True)";
    let bash = "for i in $(seq 2000); do echo $i; echo $i >> /root/log; done";
    for (seed, language, code) in [(1, Language::Python, python), (2, Language::Bash, bash)] {
        let exec = agent.begin(language, code).unwrap();
        let before = read_to_line(&mut agent, exec, "100");
        let (copy, _) = source.fork();
        let mut of_copy = Agent::connect_and_thaw(&copy, seed);
        let after = read_to_end(&mut agent, exec);
        assert_eq!(before + &after, lines(1..=2000), "{language:?}");
        assert_eq!(of_copy.python("print(i)"), "2000\n");
        if language == Language::Bash {
            until("bash to end in the copy", || {
                (of_copy.bash("wc -l < /root/log") == "2000\n").then_some(())
            });
            assert_eq!(of_copy.bash("cat /root/log"), lines(1..=2000));
        }
    }
}

#[test]
fn two_gib_of_memory_are_copied_whole() {
    let source = linux_guest::boot(2, 3072, true);
    let mut agent = Agent::connect(&source, 0);
    let data = Data::start(&mut agent, 2048);
    let (copy, _) = source.fork();
    let mut of_copy = Agent::connect_and_thaw(&copy, 1);
    data.change(&mut agent, 0x55);
    data.assert_well(&mut of_copy);
    data.change(&mut of_copy, 0xaa);
    data.assert_well(&mut agent);
    let (grandchild, _) = copy.fork();
    drop((source, copy));
    data.assert_well(&mut Agent::connect_and_thaw(&grandchild, 2));
}

#[test]
fn two_and_four_vcpus_under_load_compute_on() {
    for vcpus in [2, 4] {
        let mut newest = boot_linux(vcpus);
        let mut agent = Agent::connect(&newest, 0);
        let spinners = Spinners::start(&mut agent, vcpus.into());
        for generation in 1..=3 {
            let (copy, _) = newest.fork();
            let mut of_copy = Agent::connect_and_thaw(&copy, generation);
            spinners.assert_well(&mut of_copy);
            spinners.assert_well(&mut agent);
            (newest, agent) = (copy, of_copy);
        }
    }
}

#[test]
fn many_processes_and_threads_are_all_there_in_a_copy() {
    let mut newest = linux_guest::boot(2, 1024, true);
    let mut agent = Agent::connect(&newest, 0);
    let crowd = Crowd::start(&mut agent);
    for generation in 1..=2 {
        let (copy, _) = newest.fork();
        let mut of_copy = Agent::connect_and_thaw(&copy, generation);
        crowd.assert_well(&mut of_copy);
        crowd.assert_well(&mut agent);
        (newest, agent) = (copy, of_copy);
    }
}

#[test]
fn what_is_not_on_the_disk_yet_comes_there_in_a_copy() {
    let mut newest = boot_linux(2);
    let mut agent = Agent::connect(&newest, 0);
    let files = DirtyFiles::start(&mut agent);
    for generation in 1..=3 {
        files.write(&mut agent, 32);
        let (copy, _) = newest.fork();
        let mut of_copy = Agent::connect_and_thaw(&copy, generation);
        files.assert_well(&mut of_copy);
        files.assert_well(&mut agent);
        (newest, agent) = (copy, of_copy);
    }
}

#[test]
fn a_disk_that_is_written_all_the_time_is_copied_at_one_instant() {
    let mut newest = boot_linux(2);
    let mut agent = Agent::connect(&newest, 0);
    let mut names = vec!["guest-0".to_owned()];
    let writers = Writers::start(&mut agent);
    for generation in 1..=3 {
        let (copy, _) = newest.fork();
        let mut of_copy = Agent::connect_and_thaw(&copy, generation);
        writers.wait_for_more(&mut of_copy);
        writers.wait_for_more(&mut agent);
        writers.assert_well(&mut agent, &names);
        names.push(format!("guest-{generation}"));
        (newest, agent) = (copy, of_copy);
    }
    writers.assert_well(&mut agent, &names);
}

#[test]
fn a_machine_busy_with_everything_is_copied_through_three_generations() {
    let mut newest = linux_guest::boot(2, 1024, true);
    let mut agent = Agent::connect(&newest, 0);
    let mut names = vec!["guest-0".to_owned()];
    let data = Data::start(&mut agent, 128);
    let files = DirtyFiles::start(&mut agent);
    let writers = Writers::start(&mut agent);
    let spinners = Spinners::start(&mut agent, 2);
    for generation in 1..=3 {
        files.write(&mut agent, 16);
        let (copy, _) = newest.fork();
        drop(newest);
        agent = Agent::connect_and_thaw(&copy, generation);
        data.assert_well(&mut agent);
        data.change(&mut agent, generation);
        spinners.assert_well(&mut agent);
        writers.wait_for_more(&mut agent);
        names.push(format!("guest-{generation}"));
        newest = copy;
    }
    files.assert_well(&mut agent);
    data.assert_well(&mut agent);
    writers.assert_well(&mut agent, &names);
}
