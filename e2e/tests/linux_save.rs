//! Linux guests in files: what ran goes on in processes that never knew the ones it began in.

#![expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]

use podflare_e2e::agent::Agent;
use podflare_e2e::busy_guest::{Data, DirtyFiles, Writers};
use podflare_e2e::saved::Saved;
use podflare_e2e::vmm::Vmm;
use podflare_e2e::{linux_guest, place};
use podflare_wire::control::Check;
use std::fs::File;
use std::time::Instant;

fn disk_base() -> File {
    File::open(place::rootfs()).unwrap()
}

/// A guest that has come to life and is frozen.
fn template(vcpus: u8) -> Vmm {
    let template = linux_guest::boot(vcpus, 512, true);
    Agent::connect(&template, 0).python("print(1)");
    template.freeze();
    template
}

/// What there is of a running machine without its process, saved by way of a twin.
fn changes_of(running: &Vmm, base: &Saved) -> Saved {
    let (twin, _) = running.fork();
    twin.save_changes(base)
}

fn resume(template: &Vmm, changes: &Saved, seed: u8) -> (Vmm, Agent) {
    let (resumed, _) = template.fork();
    resumed.overlay(changes);
    let agent = Agent::connect_and_thaw(&resumed, seed);
    (resumed, agent)
}

#[test]
fn a_sandbox_goes_on_where_nothing_of_it_was_left_but_files() {
    const DISK_BYTES: u64 = 5 << 30;
    // Behind the disk that the guest was booted with.
    const NEW_PART: &str = "dd if=/dev/vda bs=1M skip=4100 count=2 iflag=direct status=none | sha256sum";
    let template = template(2);
    let begun = Instant::now();
    let base = template.save();
    let saved_whole = begun.elapsed();

    let (sandbox, _) = template.fork();
    let mut agent = Agent::connect_and_thaw(&sandbox, 1);
    agent.python("answer = {'is': [6 * 7]}");
    agent.bash("rm -rf /usr/share/doc /usr/share/man; sync; fstrim /");
    let data = Data::start(&mut agent, 16);
    let files = DirtyFiles::start(&mut agent);
    files.write(&mut agent, 8);
    let file =
        agent.bash("head -c 3000000 /dev/urandom > /root/file; sync /root/file; sha256sum < /root/file");
    sandbox.grow_disk(DISK_BYTES);
    agent.bash("head -c 2097152 /dev/urandom > /run/new; dd if=/run/new of=/dev/vda bs=1M seek=4100 oflag=direct status=none");
    let new_part = agent.bash(NEW_PART);
    let writers = Writers::start(&mut agent);

    let (twin, forked) = sandbox.fork();
    drop((sandbox, template));
    let begun = Instant::now();
    let changes = twin.save_changes(&base);
    let saved = begun.elapsed();
    drop(twin);

    let begun = Instant::now();
    let template = Vmm::load(&base, &disk_base());
    let loaded = begun.elapsed();
    let (resumed, _) = template.fork();
    let begun = Instant::now();
    let overlaid = resumed.overlay(&changes);
    let laid = begun.elapsed();
    let begun = Instant::now();
    let mut agent = Agent::connect_and_thaw(&resumed, 2);
    println!(
        "whole: {:?} bytes (state, memory, disk) in {saved_whole:.2?}; changes: {:?} bytes in {saved:.2?}, the pause \
         {} µs; load {loaded:.2?}; overlay {laid:.2?} ({overlaid:?}); thaw and renewal {:.2?}",
        base.lens(),
        changes.lens(),
        forked.pause_us,
        begun.elapsed()
    );

    assert_eq!(agent.python("print(answer['is'][0])"), "42\n");
    assert_eq!(agent.bash("hostname"), "guest-2\n");
    assert_eq!(agent.bash("cat /sys/block/vda/size"), format!("{}\n", DISK_BYTES >> 9));
    assert_eq!(agent.bash(NEW_PART), new_part);
    data.assert_well(&mut agent);
    writers.wait_for_more(&mut agent);
    writers.assert_well(&mut agent, &["guest-1".to_owned(), "guest-2".to_owned()]);
    files.assert_well(&mut agent);
    assert_eq!(agent.bash("sha256sum < /root/file"), file);
    assert_eq!(resumed.inspect().connections, 1);

    // A second one of the same files, and a new one without them.
    let (_second, mut other) = resume(&template, &changes, 3);
    data.assert_well(&mut other);
    assert_eq!(other.python("print(answer['is'][0])"), "42\n");
    let (new, _) = template.fork();
    assert_eq!(Agent::connect_and_thaw(&new, 4).python("print('answer' in globals())"), "False\n");
}

#[test]
fn ten_generations_of_files_keep_memory_and_disk() {
    let mut template = template(2);
    template.set_hot_pages(linux_guest::hot_pages(&template));
    let base = template.save();
    let (mut newest, _) = template.fork();
    let mut agent = Agent::connect_and_thaw(&newest, 0);
    agent.python("import hashlib, os\nmemory = bytearray(os.urandom(1 << 20))");
    for generation in 1..=10_u8 {
        // Some of it old, some new; what is on the disk is partly still in the guest's page cache.
        let sums = agent.python(
            "block = os.urandom(4096)\nat = int.from_bytes(block[:2]) % 256 * 4096\nmemory[at:at + 4096] = block\n\
             open(f'/root/{at}', 'wb').write(memory)\nprint(hashlib.sha256(memory).hexdigest())",
        );
        let files = agent.bash("cat /root/[0-9]* | sha256sum");
        let begun = Instant::now();
        let changes = changes_of(&newest, &base);
        println!("generation {generation}: {:?} bytes in {:.2?}", changes.lens(), begun.elapsed());
        drop(newest);
        if generation % 4 == 0 {
            template = Vmm::load(&base, &disk_base());
        }
        let (resumed, mut of_resumed) = resume(&template, &changes, 2 * generation);
        assert_eq!(of_resumed.python("print(hashlib.sha256(memory).hexdigest())"), sums);
        let (copy, _) = resumed.fork();
        let mut next = Agent::connect_and_thaw(&copy, 2 * generation + 1);
        assert_eq!(next.python("print(hashlib.sha256(memory).hexdigest())"), sums);
        next.bash("echo 3 > /proc/sys/vm/drop_caches");
        assert_eq!(next.bash("cat /root/[0-9]* | sha256sum"), files, "generation {generation}");
        (newest, agent) = (copy, next);
    }
}

#[test]
fn a_whole_machine_that_has_run_is_loaded_and_its_copies_go_on() {
    let machine = linux_guest::boot(1, 512, true);
    let mut agent = Agent::connect(&machine, 0);
    let data = Data::start(&mut agent, 16);
    agent.bash("head -c 3000000 /dev/urandom > /root/file; sync");
    let file = agent.bash("sha256sum < /root/file");
    machine.freeze();
    let whole = machine.save();
    drop(machine);

    let begun = Instant::now();
    let loading = Vmm::start();
    let reply = loading.try_load(&whole, &disk_base(), Check::Content);
    println!("{:?} bytes, {reply:?} with all content checked, {:.2?}", whole.lens(), begun.elapsed());
    for seed in 1..=2 {
        let (copy, _) = loading.fork();
        let mut agent = Agent::connect_and_thaw(&copy, seed);
        data.assert_well(&mut agent);
        data.change(&mut agent, seed);
        agent.bash("echo 3 > /proc/sys/vm/drop_caches");
        assert_eq!(agent.bash("sha256sum < /root/file"), file);
    }
    // It runs itself, too, and was not touched by its copies.
    let mut agent = Agent::connect_and_thaw(&loading, 3);
    data.assert_well(&mut agent);
    assert_eq!(agent.bash("sha256sum < /root/file"), file);
}
