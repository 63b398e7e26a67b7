//! The VMM alone, with a guest of a few bytes: these run on any KVM, even one that cannot run Linux.

#![expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]

use podflare_e2e::tiny_guest::{assert_counts_on, assert_has_counted, kernel};
use podflare_e2e::vmm::{Boot, Vmm};
use podflare_e2e::wait::until;
use podflare_e2e::{counters_guest, disk_guest, refilling_guest, state_guest};
use podflare_wire::control::{BootConfig, Command};
use std::fs::File;

fn boot_counter(vcpus: u8) -> Vmm {
    boot(kernel(0), vcpus)
}

fn boot(kernel: File, vcpus: u8) -> Vmm {
    let vmm = Vmm::start();
    let config = BootConfig {
        vcpus,
        memory_mib: 128,
        disk_bytes: 16 << 20,
        command_line: String::new(),
        huge_pages: false,
    };
    let file = || tempfile::tempfile().unwrap();
    vmm.boot(&Boot { kernel, initramfs: file(), disk_base: file(), config });
    wait_for_more(&vmm, 0);
    vmm
}

fn console_bytes(vmm: &Vmm) -> u64 {
    vmm.inspect().console_bytes
}

/// Waits until the guest has written more than that many bytes. Returns the last of them.
fn wait_for_more(vmm: &Vmm, bytes: u64) -> Vec<u8> {
    until("the guest to count on", || (console_bytes(vmm) > bytes).then(|| vmm.console()))
}

#[test]
fn a_copy_counts_on_from_where_its_source_was_paused() {
    for vcpus in [1, 2] {
        let source = boot_counter(vcpus);
        let (copy, forked) = source.fork();
        assert!(forked.pause_us > 0);
        let at_the_pause = console_bytes(&copy);
        assert_has_counted(&copy);

        copy.thaw();
        for machine in [&copy, &source] {
            wait_for_more(machine, at_the_pause);
            machine.freeze();
            assert_has_counted(machine);
        }
    }
}

#[test]
fn ten_generations_lose_no_step() {
    let mut newest = boot_counter(2);
    for _ in 0..10 {
        let (copy, _) = newest.fork();
        let before = console_bytes(&copy);
        assert_has_counted(&copy);
        copy.thaw();
        wait_for_more(&copy, before);
        newest = copy;
    }
    newest.freeze();
    assert_has_counted(&newest);
}

#[test]
fn registers_timers_and_a_second_vcpu_go_on_in_a_copy() {
    for vcpus in [1, 2] {
        let mut newest = boot(state_guest::kernel(vcpus), vcpus);
        for generation in 1..=10 {
            let (copy, _) = newest.fork();
            let before = console_bytes(&copy);
            copy.thaw();
            let console = wait_for_more(&copy, before + 2);
            let letters = String::from_utf8_lossy(&console);
            assert!(console.iter().all(|&letter| letter == state_guest::WELL), "{generation}: {letters}");
            newest = copy;
        }
    }
}

#[test]
fn one_frozen_twin_makes_many_copies_of_the_same_moment() {
    let source = boot_counter(1);
    let (twin, _) = source.fork();
    let moment = console_bytes(&twin);
    let copies: Vec<Vmm> = (0..8).map(|_| twin.fork().0).collect();
    for copy in &copies {
        assert_eq!(console_bytes(copy), moment);
        assert_eq!(copy.console(), twin.console());
        copy.thaw();
    }
    twin.thaw();
    for copy in copies.iter().chain([&twin]) {
        assert_counts_on(&wait_for_more(copy, moment));
    }
}

#[test]
fn a_frozen_machine_stands_still_and_goes_on() {
    let vmm = boot_counter(1);
    vmm.freeze();
    let frozen = vmm.inspect();
    assert!(!frozen.running);
    assert_has_counted(&vmm);
    assert_eq!(vmm.inspect(), frozen);
    vmm.thaw();
    wait_for_more(&vmm, frozen.console_bytes);
    vmm.freeze();
    assert_has_counted(&vmm);
}

#[test]
fn a_copy_lives_on_when_its_source_is_killed() {
    let source = boot_counter(1);
    let (copy, _) = source.fork();
    copy.thaw();
    drop(source);
    assert_counts_on(&wait_for_more(&copy, console_bytes(&copy)));
}

#[test]
fn a_guest_that_keeps_a_device_busy_is_forked_frozen_and_ended_all_the_same() {
    let source = boot(refilling_guest::kernel(), 2);
    wait_for_more(&source, console_bytes(&source) + 2);
    let (copy, _) = source.fork();
    copy.thaw();
    for machine in [source, copy] {
        wait_for_more(&machine, console_bytes(&machine) + 2);
        machine.freeze();
        machine.thaw();
        wait_for_more(&machine, console_bytes(&machine));
        machine.hang_up();
    }
}

#[test]
fn a_hundred_forks_leave_nothing_open_in_the_source() {
    let source = boot_counter(1);
    drop(source.fork());
    let before = source.open_files();
    for _ in 0..100 {
        let (copy, _) = source.fork();
        copy.thaw();
    }
    assert_eq!(source.open_files().len(), before.len(), "{:?}", source.open_files());
}

#[test]
fn a_machine_is_stopped_again_before_all_its_vcpus_have_begun() {
    let vmm = boot(counters_guest::kernel(4, 64), 4);
    for _ in 0..50 {
        vmm.freeze();
        vmm.thaw();
    }
    assert_well_after(&vmm, console_bytes(&vmm), counters_guest::WELL);
}

#[test]
fn what_a_generation_keeps_of_its_ancestors_threads_is_little() {
    const GENERATIONS: usize = 50;
    let mut newest = boot_counter(2);
    let mappings =
        |vmm: &Vmm| std::fs::read_to_string(format!("/proc/{}/maps", vmm.pid)).unwrap().lines().count();
    let before = mappings(&newest);
    for _ in 0..GENERATIONS {
        let (copy, _) = newest.fork();
        copy.thaw();
        newest = copy;
    }
    // For each vCPU a stack and its guard page, and what the allocator sets up for a thread.
    let each = (mappings(&newest) - before) / GENERATIONS;
    assert!(each <= 8, "{each} mappings for each generation");
}

#[test]
fn a_frozen_copy_holds_no_kvm_machine_and_nothing_of_its_source() {
    let source = boot_counter(2);
    let (copy, _) = source.fork();
    assert!(!copy.inspect().running);
    let files = copy.open_files();
    assert!(!files.iter().any(|name| name.contains("kvm-v") || name.contains("event")), "{files:?}");
    // The source is running: its own channel must not be open in the copy.
    let sockets = files.iter().filter(|name| name.starts_with("socket:")).count();
    assert_eq!(sockets, 1, "{files:?}");
}

#[test]
fn a_vmm_whose_hostd_is_gone_ends_itself_running_or_frozen() {
    let running = boot_counter(1);
    let (frozen, _) = running.fork();
    running.hang_up();
    frozen.hang_up();
    Vmm::start().hang_up();
}

#[test]
fn a_command_that_does_not_fit_the_phase_is_refused_and_changes_nothing() {
    let empty = Vmm::start();
    assert!(empty.refusal(&Command::Thaw).contains("nothing has been booted"));
    let running = boot_counter(1);
    assert!(running.refusal(&Command::Thaw).contains("runs already"));
    assert!(running.refusal(&Command::Fork).contains("control channel"));
    running.freeze();
    assert!(running.refusal(&Command::Freeze).contains("frozen already"));
    running.thaw();
    assert_counts_on(&wait_for_more(&running, console_bytes(&running)));
}

#[test]
fn a_boot_that_cannot_work_says_why() {
    let vmm = Vmm::start();
    let reason = vmm.refusal(&Command::Boot(BootConfig {
        vcpus: 1,
        memory_mib: 128,
        disk_bytes: 1 << 20,
        command_line: String::new(),
        huge_pages: false,
    }));
    assert!(reason.contains("kernel"), "{reason}");
}

/// Waits until the guest has written more than that many bytes, and checks that all of the last ones say that
/// all is well.
fn assert_well_after(vmm: &Vmm, bytes: u64, well: u8) {
    let console = wait_for_more(vmm, bytes);
    assert!(console.iter().all(|&letter| letter == well), "{}", String::from_utf8_lossy(&console));
}

#[test]
fn vcpus_under_load_are_copied_at_one_instant() {
    for vcpus in [1, 2, 4] {
        let mut source = boot(counters_guest::kernel(vcpus, 64), vcpus);
        for _ in 0..10 {
            let (copy, _) = source.fork();
            let at_the_fork = console_bytes(&copy);
            copy.thaw();
            for machine in [&copy, &source] {
                assert_well_after(machine, at_the_fork + 10, counters_guest::WELL);
            }
            source = copy;
        }
    }
}

#[test]
fn a_disk_under_load_is_copied_at_one_instant_and_shared_with_nobody() {
    let mut source = boot(disk_guest::kernel(), 1);
    for _ in 0..10 {
        let (copy, _) = source.fork();
        let at_the_fork = console_bytes(&copy);
        copy.thaw();
        for machine in [&copy, &source] {
            assert_well_after(machine, at_the_fork + 100, disk_guest::WELL);
        }
        source = copy;
    }
}
