//! Machines in files, with a guest of a few bytes: these run on any KVM, even one that cannot run Linux.

#![expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]

use podflare_e2e::saved::{Saved, flip_byte};
use podflare_e2e::tiny_guest::{assert_counts_on, assert_has_counted, kernel};
use podflare_e2e::vmm::{Boot, Vmm, fault};
use podflare_e2e::wait::until;
use podflare_e2e::{counters_guest, disk_guest, state_guest};
use podflare_wire::control::{BootConfig, Check, Command, Fault, Reply};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A running machine and the disk that it was booted with.
fn boot(kernel: File, vcpus: u8) -> (Vmm, File) {
    let vmm = Vmm::start();
    let config = BootConfig {
        vcpus,
        memory_mib: 128,
        disk_bytes: 16 << 20,
        command_line: String::new(),
        huge_pages: false,
    };
    let file = || tempfile::tempfile().unwrap();
    let boot = Boot { kernel, initramfs: file(), disk_base: file(), config };
    vmm.boot(&boot);
    wait_for_more(&vmm, 0);
    (vmm, boot.disk_base)
}

fn console_bytes(vmm: &Vmm) -> u64 {
    vmm.inspect().console_bytes
}

/// Waits until the guest has written more than that many bytes. Returns the last of them.
fn wait_for_more(vmm: &Vmm, bytes: u64) -> Vec<u8> {
    until("the guest to go on", || (console_bytes(vmm) > bytes).then(|| vmm.console()))
}

fn assert_well_after(vmm: &Vmm, bytes: u64, well: u8) {
    let console = wait_for_more(vmm, bytes);
    assert!(console.iter().all(|&letter| letter == well), "{}", String::from_utf8_lossy(&console));
}

/// A template, frozen, and saved whole.
fn template(kernel: File, vcpus: u8) -> (Vmm, Saved, File) {
    let (vmm, disk) = boot(kernel, vcpus);
    vmm.freeze();
    let base = vmm.save();
    (vmm, base, disk)
}

/// A copy of a template, running, which has done something.
fn sandbox(template: &Vmm) -> Vmm {
    let (copy, _) = template.fork();
    let before = console_bytes(&copy);
    copy.thaw();
    wait_for_more(&copy, before + 10);
    copy
}

/// What is saved of a running machine by way of a twin.
fn changes_of(running: &Vmm, base: &Saved) -> (Vmm, Saved) {
    let (twin, _) = running.fork();
    let changes = twin.save_changes(base);
    (twin, changes)
}

#[test]
fn a_machine_that_was_saved_whole_counts_on_in_another_process() {
    for vcpus in [1, 2] {
        let (template, base, disk) = template(kernel(4), vcpus);
        assert_has_counted(&template);
        let frozen = template.inspect();
        drop(template);
        let loaded = Vmm::load(&base, &disk);
        assert_eq!(loaded.inspect(), frozen);
        assert_has_counted(&loaded);
        loaded.thaw();
        wait_for_more(&loaded, frozen.console_bytes);
        loaded.freeze();
        assert_has_counted(&loaded);
    }
}

#[test]
fn what_a_copy_has_changed_is_laid_over_another_copy() {
    let (template, base, _disk) = template(kernel(4), 1);
    let sandbox = sandbox(&template);
    let (twin, changes) = changes_of(&sandbox, &base);
    assert!(changes.len() < base.len() / 4, "{} of {} bytes", changes.len(), base.len());
    let moment = console_bytes(&twin);
    drop((sandbox, twin));

    let (resumed, _) = template.fork();
    resumed.overlay(&changes);
    assert_eq!(console_bytes(&resumed), moment);
    assert_has_counted(&resumed);
    resumed.thaw();
    wait_for_more(&resumed, moment);
    resumed.freeze();
    assert_has_counted(&resumed);
}

#[test]
fn a_base_and_changes_are_taken_up_where_there_is_no_template() {
    let (template, base, disk) = template(kernel(4), 2);
    let (twin, changes) = changes_of(&sandbox(&template), &base);
    let moment = console_bytes(&twin);
    drop((template, twin));

    let template = Vmm::load(&base, &disk);
    for _ in 0..2 {
        let (resumed, _) = template.fork();
        resumed.overlay(&changes);
        resumed.thaw();
        assert_counts_on(&wait_for_more(&resumed, moment));
    }
    // A new one that has nothing to do with the changes.
    assert_counts_on(&wait_for_more(&sandbox(&template), 0));
}

#[test]
fn registers_timers_and_a_second_vcpu_go_on_through_ten_saves() {
    for vcpus in [1, 2] {
        ten_generations(state_guest::kernel(vcpus), vcpus, state_guest::WELL, 2);
    }
}

#[test]
fn memory_under_load_is_of_one_instant_through_ten_saves() {
    ten_generations(counters_guest::kernel(2, 32), 2, counters_guest::WELL, 10);
}

#[test]
fn a_disk_under_load_is_whole_through_ten_saves() {
    ten_generations(disk_guest::kernel(), 1, disk_guest::WELL, 100);
}

/// Save, take up, run, fork, save; every third time without the template.
fn ten_generations(kernel: File, vcpus: u8, well: u8, letters: u64) {
    let (mut template, base, disk) = template(kernel, vcpus);
    let mut newest = sandbox(&template);
    for generation in 1..=10 {
        let (twin, changes) = changes_of(&newest, &base);
        let moment = console_bytes(&twin);
        drop((newest, twin));
        if generation % 3 == 0 {
            template = Vmm::load(&base, &disk);
        }
        let (resumed, _) = template.fork();
        resumed.overlay(&changes);
        resumed.thaw();
        assert_well_after(&resumed, moment + letters, well);
        let (copy, _) = resumed.fork();
        copy.thaw();
        assert_well_after(&copy, moment + 2 * letters, well);
        assert_well_after(&resumed, moment + 2 * letters, well);
        newest = copy;
    }
}

#[test]
fn one_save_is_taken_up_many_times_and_shared_with_nobody() {
    let (template, base, _disk) = template(disk_guest::kernel(), 1);
    let (twin, changes) = changes_of(&sandbox(&template), &base);
    let moment = console_bytes(&twin);
    let copies: Vec<Vmm> = (0..4)
        .map(|_| {
            let (copy, _) = template.fork();
            copy.overlay(&changes);
            copy.thaw();
            copy
        })
        .collect();
    twin.thaw();
    for copy in copies.iter().chain([&twin]) {
        assert_well_after(copy, moment + 200, disk_guest::WELL);
    }
    // And the files are as they were.
    let (again, _) = template.fork();
    assert!(matches!(again.try_overlay(&changes, Check::Content), Reply::Overlaid(_)));
}

#[test]
fn a_base_that_the_machine_never_came_from_serves_too() {
    let (template_1, base_1, _disk) = template(disk_guest::kernel(), 1);
    let (template_2, _, _disk) = template(disk_guest::kernel(), 1);
    let (twin, changes) = changes_of(&sandbox(&template_2), &base_1);
    let moment = console_bytes(&twin);
    drop((template_2, twin));
    let (resumed, _) = template_1.fork();
    resumed.overlay(&changes);
    resumed.thaw();
    assert_well_after(&resumed, moment + 200, disk_guest::WELL);
}

#[test]
fn a_damaged_file_is_refused_with_its_reason_and_the_machine_stays_as_it_was() {
    let (template, base, disk) = template(counters_guest::kernel(1, 8), 1);
    let (_, changes) = changes_of(&sandbox(&template), &base);
    let (copy, _) = template.fork();
    let frozen = copy.inspect();
    for part in changes.parts() {
        let len = part.metadata().unwrap().len();
        for offset in [40, 100, len - 1] {
            flip_byte(part, offset);
            let (found, reason) = fault(copy.try_overlay(&changes, Check::Index));
            assert_eq!((found, reason.contains("damaged")), (Fault::Damaged, true), "{reason}");
            flip_byte(part, offset);
        }
        flip_byte(part, 0);
        assert_eq!(fault(copy.try_overlay(&changes, Check::Index)).0, Fault::Format);
        flip_byte(part, 0);
        flip_byte(part, 8);
        let (found, reason) = fault(copy.try_overlay(&changes, Check::Index));
        assert_eq!((found, reason.contains("version")), (Fault::Format, true), "{reason}");
        flip_byte(part, 8);
        part.set_len(len - 1).unwrap();
        assert_eq!(fault(copy.try_overlay(&changes, Check::Index)).0, Fault::Damaged);
        part.set_len(len + 1).unwrap();
        assert_eq!(fault(copy.try_overlay(&changes, Check::Index)).0, Fault::Damaged);
        // As what a host leaves that went down before it had written all.
        part.set_len(len / 2).unwrap();
        part.set_len(len).unwrap();
        assert_eq!(fault(copy.try_overlay(&changes, Check::Index)).0, Fault::Damaged);
        part.set_len(0).unwrap();
        assert_eq!(fault(copy.try_overlay(&changes, Check::Index)).0, Fault::Format);
        let (_, again) = changes_of(&sandbox(&template), &base);
        let (fresh, _) = template.fork();
        assert!(matches!(fresh.try_overlay(&again, Check::Content), Reply::Overlaid(_)));
        return_to(part, &again, &changes);
    }
    assert_eq!(copy.inspect(), frozen);
    copy.thaw();
    assert_well_after(&copy, frozen.console_bytes + 10, counters_guest::WELL);
    assert!(matches!(Vmm::start().try_load(&base, &disk, Check::Content), Reply::Loaded(_)));
}

/// Nothing that an empty file could be given makes it the one that it was.
fn return_to(part: &File, other: &Saved, whole: &Saved) {
    for (from, to) in other.parts().into_iter().zip(whole.parts()) {
        let mut bytes = vec![0; usize::try_from(from.metadata().unwrap().len()).unwrap()];
        from.read_exact_at(&mut bytes, 0).unwrap();
        to.set_len(0).unwrap();
        to.write_all_at(&bytes, 0).unwrap();
    }
    assert!(part.metadata().unwrap().len() > 0);
}

#[test]
fn damaged_content_is_found_when_it_is_asked_for() {
    let (template, base, disk) = template(counters_guest::kernel(1, 8), 1);
    let (_, changes) = changes_of(&sandbox(&template), &base);
    flip_byte(&changes.memory, 4096 + 77);
    let (copy, _) = template.fork();
    let (found, reason) = fault(copy.try_overlay(&changes, Check::Content));
    assert_eq!(found, Fault::Damaged);
    assert!(reason.contains("saved memory") && reason.contains("chunk 0"), "{reason}");
    flip_byte(&base.memory, 4096 + 77);
    assert_eq!(fault(Vmm::start().try_load(&base, &disk, Check::Content)).0, Fault::Damaged);
    // Nor is it taken for what the machine was compared with.
    let (twin, _) = sandbox(&template).fork();
    let reply = twin.try_save_changes(&twin.save(), &base);
    assert_eq!(fault(reply).0, Fault::Damaged);
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let (template_1, base_1, disk_1) = template(kernel(4), 1);
    let (template_2, base_2, disk_2) = template(kernel(8), 1);
    let (_, changes_1) = changes_of(&sandbox(&template_1), &base_1);
    let (_, later_1) = changes_of(&sandbox(&template_1), &base_1);
    let foreign = |reply| assert_eq!(fault(reply).0, Fault::Foreign);

    let (copy, _) = template_2.fork();
    foreign(copy.try_overlay(&changes_1, Check::Index));
    foreign(copy.try_overlay(&base_2, Check::Index));
    foreign(Vmm::start().try_load(&changes_1, &disk_1, Check::Index));
    disk_2.set_len(1 << 20).unwrap();
    foreign(Vmm::start().try_load(&base_2, &disk_2, Check::Index));
    foreign(copy.try_save_changes(&later_1, &changes_1));

    // What has run is not the base any more.
    let ran = sandbox(&template_1);
    ran.freeze();
    foreign(ran.try_overlay(&changes_1, Check::Index));

    let mixed = Saved { memory: changes_1.memory, ..later_1 };
    let (copy, _) = template_1.fork();
    let (found, reason) = fault(copy.try_overlay(&mixed, Check::Index));
    assert_eq!(found, Fault::Foreign);
    assert!(reason.contains("another save"), "{reason}");
}

#[test]
fn a_machine_of_another_size_is_refused() {
    let (template_1, base_1, _disk) = template(kernel(4), 1);
    let (template_2, _, _disk) = template(kernel(4), 2);
    let (twin, _) = sandbox(&template_2).fork();
    let (found, reason) = fault(twin.try_save_changes(&twin.save(), &base_1));
    assert_eq!(found, Fault::Size);
    assert!(reason.contains("1 vCPUs") && reason.contains("2 vCPUs"), "{reason}");
    drop(template_1);
}

#[test]
fn only_a_frozen_machine_is_saved() {
    let (running, _) = boot(kernel(0), 1);
    let extent = podflare_wire::control::Extent::Whole;
    assert!(running.refusal(&Command::Save(extent)).contains("only a frozen machine"));
    assert!(running.refusal(&Command::Load(Check::Index)).contains("runs already"));
    running.freeze();
    assert!(running.refusal(&Command::Save(extent)).contains("needs state, memory and disk"));
    running.thaw();
    assert_counts_on(&wait_for_more(&running, console_bytes(&running)));
}

#[test]
fn a_copy_that_was_taken_up_holds_no_more_files_than_it_reads() {
    let (template, base, _disk) = template(disk_guest::kernel(), 1);
    let (_, changes) = changes_of(&sandbox(&template), &base);
    let (copy, _) = template.fork();
    let before = copy.open_files().len();
    copy.overlay(&changes);
    // The saved disk is a layer now.
    assert!(copy.open_files().len() <= before + 1, "{:?}", copy.open_files());
}
