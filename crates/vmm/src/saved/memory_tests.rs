//! Guest memory that is saved and comes back, against plain lists of its pages.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;

const MIB: u32 = 4;
const PAGES: u64 = (MIB as u64) << 8;

/// Pages that are not all zeros, each of one byte.
type Model = BTreeMap<u64, u8>;

fn new_memory() -> GuestMemory {
    memory::map(MIB, false).unwrap()
}

fn write(memory: &GuestMemory, page: u64, byte: u8) {
    memory.write_slice(&[byte; BLOCK_LEN], address_of(page)).unwrap();
}

/// What fork(2) would make of it.
fn copy_of(memory: &GuestMemory) -> GuestMemory {
    let copy = new_memory();
    for (page, byte) in content(memory) {
        write(&copy, page, byte);
    }
    copy
}

fn filled(model: &Model) -> GuestMemory {
    let memory = new_memory();
    for (&page, &byte) in model {
        write(&memory, page, byte);
    }
    memory
}

fn content(memory: &GuestMemory) -> Model {
    let mut page_content = [0; BLOCK_LEN];
    let mut model = Model::new();
    for page in 0..PAGES {
        read(memory, page, &mut page_content).unwrap();
        assert!(page_content.iter().all(|&byte| byte == page_content[0]));
        if page_content[0] != 0 {
            model.insert(page, page_content[0]);
        }
    }
    model
}

fn reader(file: &File) -> BlocksReader {
    BlocksReader::open(file.try_clone().unwrap(), Part::Memory).unwrap()
}

fn saved(memory: &GuestMemory, mapped: &MappedPages, base: Option<&File>) -> File {
    let file = tempfile::tempfile().unwrap();
    save(memory, mapped, file.try_clone().unwrap(), base.map(reader)).unwrap();
    file
}

fn saved_whole(memory: &GuestMemory) -> File {
    saved(memory, &MappedPages::default(), None)
}

fn runs(file: &File) -> Vec<(Range<u64>, Kind)> {
    reader(file).runs().map(|(run, _)| (run.range(), run.kind)).collect()
}

/// Runs of all lengths, some of them zeros.
fn any_changes() -> impl Strategy<Value = Vec<(Range<u64>, u8)>> {
    let run = (0..PAGES, prop_oneof![1..4_u64, 1..40_u64, 1..400_u64], 0..4_u8);
    let run = run.prop_map(|(first, count, byte)| (first..(first + count).min(PAGES), byte));
    prop::collection::vec(run, 0..20)
}

fn apply(changes: &[(Range<u64>, u8)], memory: &GuestMemory, model: &mut Model) {
    for (pages, byte) in changes {
        for page in pages.clone() {
            write(memory, page, *byte);
            model.insert(page, *byte);
        }
    }
    model.retain(|_, byte| *byte != 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn memory_that_was_saved_whole_comes_back(changes in any_changes()) {
        let (memory, mut model) = (new_memory(), Model::new());
        apply(&changes, &memory, &mut model);
        let loaded = new_memory();
        let copied = fill(&loaded, &reader(&saved_whole(&memory))).unwrap();
        prop_assert_eq!(copied, model.len() as u64);
        prop_assert_eq!(content(&loaded), model);
    }

    #[test]
    fn changes_are_laid_over_their_base_again_and_again(
        base in any_changes(),
        generations in prop::collection::vec(any_changes(), 1..4),
    ) {
        let (template, mut model) = (new_memory(), Model::new());
        apply(&base, &template, &mut model);
        let base = saved_whole(&template);
        let (mut newest, mut mapped) = (copy_of(&template), MappedPages::default());
        for changes in generations {
            apply(&changes, &newest, &mut model);
            let file = saved(&newest, &mapped, Some(&base));
            (newest, mapped) = (copy_of(&template), MappedPages::default());
            lay(&newest, &reader(&file), &mut mapped).unwrap();
            prop_assert_eq!(&content(&newest), &model);
        }
    }

    #[test]
    fn one_change_after_the_other_is_laid_over_the_same_memory(
        each in prop::collection::vec(any_changes(), 1..4),
    ) {
        let nothing = saved_whole(&new_memory());
        let (memory, mut mapped) = (new_memory(), MappedPages::default());
        let mut model = Model::new();
        for changes in each {
            let (other, mut told) = (filled(&model), model.clone());
            apply(&changes, &other, &mut told);
            let before = saved_whole(&filled(&model));
            lay(&memory, &reader(&saved(&other, &MappedPages::default(), Some(&before))), &mut mapped).unwrap();
            model = told;
            prop_assert_eq!(&content(&memory), &model);
        }
        let whole = saved(&memory, &mapped, Some(&nothing));
        let loaded = new_memory();
        fill(&loaded, &reader(&whole)).unwrap();
        prop_assert_eq!(content(&loaded), model);
    }

    #[test]
    fn ranges_that_are_mapped_are_known(
        ranges in prop::collection::vec(prop::collection::vec((0..60_u64, 1..9_u64), 0..5), 1..4),
    ) {
        let mut mapped = MappedPages::default();
        let mut model = BTreeSet::new();
        for ranges in ranges {
            let ranges: Vec<_> = ranges.into_iter().map(|(first, count)| first..first + count).collect();
            model.extend(ranges.iter().cloned().flatten());
            mapped.extend(ranges.into_iter());
        }
        for page in 0..80 {
            prop_assert_eq!(mapped.contains(page), model.contains(&page));
        }
        for first in 0..70_u64 {
            let range = first..first + 7;
            prop_assert_eq!(mapped.touches(&range), model.range(range.clone()).next().is_some());
        }
    }
}

#[test]
fn long_runs_are_mapped_and_short_ones_copied() {
    let base = saved_whole(&new_memory());
    let other = filled(&(0..8).chain(20..27).map(|page| (page, 3)).collect());
    let changes = saved(&other, &MappedPages::default(), Some(&base));
    let (memory, mut mapped) = (new_memory(), MappedPages::default());
    assert_eq!(lay(&memory, &reader(&changes), &mut mapped).unwrap(), (1, 7));
    assert!(mapped.contains(7) && !mapped.contains(8) && !mapped.contains(20));
}

#[test]
fn no_more_runs_are_mapped_than_a_process_may_have() {
    let lengths = |long: usize| {
        let short = std::iter::repeat_n(MAPPED_RUN_PAGES_MIN, MAPPED_RUNS_MAX);
        std::iter::repeat_n(1 << 20, long).chain(short).chain([1, 2, 3])
    };
    assert_eq!(shortest_mapped(&lengths(0)), MAPPED_RUN_PAGES_MIN);
    assert_eq!(shortest_mapped(&lengths(1)), 2 * MAPPED_RUN_PAGES_MIN);
    assert!(shortest_mapped(&lengths(MAPPED_RUNS_MAX + 1)) > 1 << 20);
}

#[test]
fn pages_behind_which_there_is_a_file_are_saved_though_nobody_has_touched_them() {
    let base = saved_whole(&new_memory());
    let other = filled(&(100..200).map(|page| (page, 3)).collect());
    let changes = saved(&other, &MappedPages::default(), Some(&base));
    let (memory, mut mapped) = (new_memory(), MappedPages::default());
    lay(&memory, &reader(&changes), &mut mapped).unwrap();
    assert_eq!(runs(&saved(&memory, &mapped, Some(&base))), [(100..200, Kind::Data)]);
}

#[test]
fn what_is_written_to_mapped_pages_stays_out_of_the_file() {
    let base = saved_whole(&new_memory());
    let other = filled(&(100..200).map(|page| (page, 3)).collect());
    let changes = saved(&other, &MappedPages::default(), Some(&base));
    let (memory, mut mapped) = (new_memory(), MappedPages::default());
    lay(&memory, &reader(&changes), &mut mapped).unwrap();
    (100..200).for_each(|page| write(&memory, page, 9));
    reader(&changes).verify().unwrap();
    assert_eq!(content(&memory), (100..200).map(|page| (page, 9)).collect());
}

#[test]
fn memory_that_was_never_touched_takes_no_room_and_stays_untouched() {
    let memory = new_memory();
    write(&memory, 3, 1);
    write(&memory, 4, 0);
    let file = saved_whole(&memory);
    assert_eq!(runs(&file), [(3..4, Kind::Data)]);
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let start = memory.iter().next().unwrap().as_ptr().addr() as u64 / PAGE_LEN;
    let there = lookup(&pagemap, start, PAGES).unwrap();
    assert_eq!(there.iter().filter(|there| **there).count(), 2);
}

#[test]
fn memory_on_both_sides_of_the_hole_comes_back() {
    const MIB: u32 = 4096;
    const HIGH: u64 = (1 << 32) / PAGE_LEN;
    let new_memory = || memory::map(MIB, false).unwrap();
    let memory = new_memory();
    let pages = [0, crate::layout::MMIO_HOLE / PAGE_LEN - 1, HIGH, end_of(&memory) - 1];
    pages.iter().for_each(|&page| write(&memory, page, 5));
    let file = saved_whole(&memory);
    let loaded = new_memory();
    check(&loaded, &reader(&file)).unwrap();
    assert_eq!(fill(&loaded, &reader(&file)).unwrap(), 4);
    let mut found = [0; BLOCK_LEN];
    for page in pages {
        read(&loaded, page, &mut found).unwrap();
        assert!(found == [5; BLOCK_LEN]);
    }
}

#[test]
fn pages_that_are_no_memory_of_the_machine_are_refused() {
    let hole = crate::layout::MMIO_HOLE / PAGE_LEN;
    let forged = |first: u64, end: u64| {
        let file = tempfile::tempfile().unwrap();
        let mut writer = BlocksWriter::new(file.try_clone().unwrap(), Part::Memory, end, None);
        writer.put(first, &[1; BLOCK_LEN]).unwrap();
        writer.put(first + 1, &[1; BLOCK_LEN]).unwrap();
        writer.finish().unwrap();
        reader(&file)
    };
    let large = memory::map(4096, false).unwrap();
    let end = end_of(&large);
    assert!(check(&large, &forged(0, end)).is_ok());
    assert!(check(&large, &forged(end - 2, end)).is_ok());
    assert!(check(&large, &forged(hole, end)).is_err());
    assert!(check(&large, &forged(hole - 1, end)).is_err());
    assert!(check(&large, &forged(0, end + 1)).is_err());
    assert!(check(&new_memory(), &forged(0, PAGES - 1)).is_err());
    assert!(check(&new_memory(), &forged(0, PAGES)).is_ok());
}

#[test]
fn a_base_of_another_size_is_refused() {
    let base = saved_whole(&memory::map(MIB + 1, false).unwrap());
    let file = tempfile::tempfile().unwrap();
    let result = save(&new_memory(), &MappedPages::default(), file, Some(reader(&base)));
    assert!(matches!(result, Err(SavedError::Malformed { part: Part::Memory, .. })));
}

#[test]
fn a_damaged_page_is_found_by_who_reads_all() {
    let file = saved_whole(&filled(&[(7, 1)].into()));
    file.write_all_at(&[2], BlocksReader::offset_of(0)).unwrap();
    let damaged = reader(&file);
    assert!(damaged.verify().is_err());
}
