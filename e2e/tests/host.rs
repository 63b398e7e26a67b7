//! hostd and its sandboxes when things go wrong: what is killed, filled or exhausted hurts only itself,
//! and nothing is left behind.

#![expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]

use podflare_e2e::host::Host;
use podflare_e2e::processes::of_program;
use podflare_e2e::rounds::Rounds;
use podflare_e2e::wait::until;
use rustix::process::{Pid, Signal, kill_process};

const VMM: &str = "podflare-vmm";

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Waits until there are that many VMM processes.
fn wait_for_vmms(before: &[u32], count: usize) -> Vec<u32> {
    until("the number of VMM processes to settle", || {
        let vmms: Vec<u32> = of_program(VMM).into_iter().filter(|pid| !before.contains(pid)).collect();
        (vmms.len() == count).then_some(vmms)
    })
}

#[test]
fn a_hundred_rounds_of_create_fork_merge_close_leave_nothing_behind() {
    let rounds = Rounds::start();
    let before = rounds.census(None);
    rounds.run(100, |_| {});
    let after = rounds.census(Some(&before));
    assert!(after.has_no_more_than(&before), "before: {before}; after: {after}");
}

#[test]
fn what_runs_in_a_machine_that_is_merged_away_is_told_so() {
    let host = Host::start(0);
    let parent = host.create();
    let (children, _) = host.fork(&parent, 1);
    let output = std::thread::scope(|scope| {
        let running = scope.spawn(|| host.python(&parent, "import time\nprint('on')\ntime.sleep(600)"));
        until("the execution to start", || (host.inspect(&parent).executions == 1).then_some(()));
        host.merge(&parent, &children[0]).unwrap();
        running.join().unwrap().unwrap()
    });
    assert_ne!(output.exit_code, 0);
    let told = format!("the sandbox has ended: {} was merged into it", children[0]);
    assert!(output.stderr.ends_with(&told), "{output:?}");
    assert_eq!(host.python(&parent, "print('the winner')").unwrap().stdout, "the winner");
}

#[test]
fn a_guest_answers_a_ping_also_while_code_runs_in_it() {
    let host = Host::start(0);
    let id = host.create();
    assert!(host.ping_ms(&id) > 0.0);
    host.start_python(&id, "while True: pass");
    until("the execution to start", || (host.inspect(&id).executions == 1).then_some(()));
    assert!(host.ping_ms(&id) > 0.0);
}

#[test]
fn a_vmm_that_is_killed_takes_only_its_own_sandbox_along() {
    let others = of_program(VMM);
    let host = Host::start(0);
    host.rest();
    let template = wait_for_vmms(&others, 1);
    let victim = host.create();
    let victim_pid = *wait_for_vmms(&others, 2).iter().find(|pid| !template.contains(pid)).unwrap();
    let neighbour = host.create();
    host.python(&neighbour, "x = 7").unwrap();

    let output = std::thread::scope(|scope| {
        let running = scope.spawn(|| host.python(&victim, "import time\nprint('on')\ntime.sleep(600)"));
        until("the execution to start", || (host.inspect(&victim).executions == 1).then_some(()));
        kill(victim_pid, Signal::KILL);
        running.join().unwrap().unwrap()
    });
    assert_ne!(output.exit_code, 0);
    assert!(output.stderr.contains("ended"), "{output:?}");

    let refusal = until("the sandbox to be gone", || host.python(&victim, "1").err());
    assert_eq!(refusal.status, 404, "{refusal:?}");
    assert!(refusal.error.starts_with("sandbox not found"), "{refusal:?}");
    assert_eq!(host.python(&neighbour, "print(x)").unwrap().stdout, "7");
    wait_for_vmms(&others, 2);
}

#[test]
fn a_hostd_that_is_killed_leaves_no_vmm_behind() {
    let others = of_program(VMM);
    let mut host = Host::start(2);
    let sandbox = host.create();
    host.fork(&sandbox, 3);
    host.process.kill().unwrap();
    host.process.wait().unwrap();
    wait_for_vmms(&others, 0);
    assert_eq!(host.state_files(), 0);
}

#[test]
fn a_hostd_that_is_asked_to_stop_ends_its_sandboxes_and_itself() {
    let others = of_program(VMM);
    let mut host = Host::start(1);
    host.create();
    kill(host.process.id(), Signal::TERM);
    assert!(host.process.wait().unwrap().success());
    assert!(of_program(VMM).iter().all(|pid| others.contains(pid)));
}

#[test]
fn a_fork_says_for_how_long_it_has_paused_its_source() {
    let host = Host::start(0);
    let parent = host.create();
    let (children, timing) = host.fork(&parent, 5);
    assert_eq!(children.len(), 5);
    let (_, pause) = timing.split_once("pause;dur=").unwrap();
    let pause_ms: f64 = pause.split(',').next().unwrap().parse().unwrap();
    assert!(pause_ms > 0.0, "{timing}");
}

#[test]
fn a_full_host_disk_is_an_error_in_the_guest_and_nothing_more() {
    let (state_dir, mounted) = small_state_dir();
    let host = Host::start_with_state_dir(0, state_dir);
    let filler = host.create();
    let filled =
        host.bash(&filler, "dd if=/dev/zero of=/root/big bs=1M count=200 conv=fsync; echo dd=$?").unwrap();
    assert!(filled.stdout.contains("dd=1"), "{filled:?}");
    assert!(host.is_healthy());
    host.delete(&filler);

    // What the filler held is free again.
    let next = until("the host to have room", || host.try_create().ok());
    let written = until("the filler's blocks to be freed", || {
        let result = host.bash(&next, "dd if=/dev/zero of=/root/some bs=1M count=20 conv=fsync; echo dd=$?");
        result.ok().filter(|output| output.stdout.contains("dd=0"))
    });
    assert_eq!(written.exit_code, 0);
    drop(host);
    drop(mounted);
}

#[test]
fn what_a_guest_deletes_is_free_for_others_while_it_lives() {
    let (state_dir, mounted) = small_state_dir();
    let host = Host::start_with_state_dir(0, state_dir);
    let write = "dd if=/dev/zero of=/root/big bs=1M count=40 conv=fsync; echo dd=$?";
    let (first, second) = (host.create(), host.create());
    assert!(host.bash(&first, write).unwrap().stdout.contains("dd=0"));
    let beside = host.bash(&second, write).unwrap();
    assert!(beside.stdout.contains("dd=1"), "there is room for one of them: {beside:?}");
    for sandbox in [&first, &second] {
        assert_eq!(host.bash(sandbox, "rm /root/big && sync").unwrap().exit_code, 0);
    }
    let after = host.bash(&second, write).unwrap();
    assert!(after.stdout.contains("dd=0"), "{after:?}");
    drop(host);
    drop(mounted);
}

/// A state directory of 64 MiB: far less than a guest may write.
fn small_state_dir() -> (tempfile::TempDir, Unmount) {
    let state_dir = tempfile::tempdir().unwrap();
    let size = std::ffi::CString::new("size=64m").unwrap();
    rustix::mount::mount(
        "tmpfs",
        state_dir.path(),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(&*size),
    )
    .unwrap();
    let mounted = Unmount(state_dir.path().to_owned());
    (state_dir, mounted)
}

/// Unmounts the directory in the end.
struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

#[test]
fn every_child_of_a_wide_fork_is_itself() {
    let host = Host::start(0);
    let parent = host.create();
    host.python(&parent, "import random, os, uuid, socket\nrandom.seed(1)\nkept = [1, 2, 3]").unwrap();
    let (children, _) = host.fork(&parent, 8);
    let code = "print(kept, random.random(), os.urandom(8).hex(), uuid.uuid4(), socket.gethostname())";
    let mut seen: Vec<Vec<String>> = children
        .iter()
        .chain([&parent])
        .map(|id| host.python(id, code).unwrap().stdout.split(' ').map(str::to_owned).collect())
        .collect();
    for words in &seen {
        assert_eq!(words[..3].join(" "), "[1, 2, 3]");
    }
    for column in 3..7 {
        seen.sort_by(|one, other| one[column].cmp(&other[column]));
        assert!(seen.windows(2).all(|pair| pair[0][column] != pair[1][column]), "{seen:?}");
    }
}
