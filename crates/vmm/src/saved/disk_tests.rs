//! Disks that are saved and come back, against each other.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::FileExt;

const BLOCK_BYTES: u64 = BLOCK_LEN as u64;
const BLOCKS: u64 = 24;
const DISK_LEN: u64 = BLOCKS * BLOCK_BYTES;

/// It ends within a block, and before the disk does.
fn image() -> File {
    let content: Vec<u8> = (1..=249).cycle().take(10 * BLOCK_LEN + 1000).collect();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&content, 0).unwrap();
    file
}

fn empty() -> File {
    tempfile::tempfile().unwrap()
}

fn new_disk(image: &File) -> Disk {
    Disk::new(image.try_clone().unwrap(), empty(), DISK_LEN).unwrap()
}

fn reader(file: &File) -> BlocksReader {
    BlocksReader::open(file.try_clone().unwrap(), Part::Disk).unwrap()
}

fn save_whole(disk: &Disk) -> File {
    let file = empty();
    save(disk, file.try_clone().unwrap(), None).unwrap();
    file
}

fn save_changes(disk: &Disk, base: &File) -> File {
    let file = empty();
    save(disk, file.try_clone().unwrap(), Some(reader(base))).unwrap();
    file
}

/// What a process that loads the base has.
fn load(image: &File, base: &File) -> Disk {
    let base = reader(base);
    let mut disk = Disk::new(image.try_clone().unwrap(), empty(), base.end() * BLOCK_BYTES).unwrap();
    disk.overlay(&base).unwrap();
    disk
}

/// What a sandbox that is resumed has: the changes over a copy of the base.
fn resume(base: &mut Disk, changes: &File) -> Disk {
    let changes = reader(changes);
    let mut disk = base.fork();
    disk.grow(changes.end() * BLOCK_BYTES).unwrap();
    disk.overlay(&changes).unwrap();
    disk
}

/// `WriteImage` writes what the base image has there; `Resume` is a save as changes, and what comes of it.
#[derive(Debug, Clone)]
enum Step {
    Write { offset: u64, len: u64, byte: u8 },
    WriteImage { block: u64 },
    Discard { block: u64, count: u64 },
    Grow { blocks: u64 },
    Fork,
    Resume,
}

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..DISK_LEN, 0..20_000_u64, 0..4_u8).prop_map(|(offset, len, byte)| {
            Step::Write { offset, len: len.min(DISK_LEN - offset), byte }
        }),
        1 => (0..10_u64).prop_map(|block| Step::WriteImage { block }),
        3 => (0..BLOCKS, 1..BLOCKS).prop_map(|(block, count)| {
            Step::Discard { block, count: count.min(BLOCKS - block) }
        }),
        1 => (1..4_u64).prop_map(|blocks| Step::Grow { blocks }),
        2 => Just(Step::Fork),
        2 => Just(Step::Resume),
    ];
    prop::collection::vec(step, 0..20)
}

/// Runs a machine that came from a template.
fn run(template: &mut Disk, base: &File, image: &File, steps: &[Step]) -> Disk {
    let mut disk = template.fork();
    for step in steps {
        match *step {
            Step::Write { offset, len, byte } => {
                disk.write_at(offset, &vec![byte; usize::try_from(len).unwrap()]).unwrap();
            }
            Step::WriteImage { block } => {
                let mut content = [0; BLOCK_LEN];
                image.read_exact_at(&mut content, block * BLOCK_BYTES).unwrap();
                disk.write_at(block * BLOCK_BYTES, &content).unwrap();
            }
            Step::Discard { block, count } => {
                disk.discard(block * BLOCK_BYTES, count * BLOCK_BYTES).unwrap();
            }
            Step::Grow { blocks } => disk.grow(disk.bytes() + blocks * BLOCK_BYTES).unwrap(),
            Step::Fork => disk = disk.fork(),
            Step::Resume => disk = resume(template, &save_changes(&disk, base)),
        }
    }
    disk
}

/// A template that has done something since its boot.
fn template(image: &File, steps: &[Step]) -> (Disk, File) {
    let mut booted = new_disk(image);
    let untouched = save_whole(&booted);
    let disk = run(&mut booted, &untouched, image, steps);
    let base = save_whole(&disk);
    (disk, base)
}

fn without_growing(steps: Vec<Step>) -> Vec<Step> {
    steps.into_iter().filter(|step| !matches!(step, Step::Grow { .. })).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_disk_that_was_saved_comes_back(before in any_steps(), after in any_steps()) {
        let image = image();
        let (mut template, base) = template(&image, &before);
        let mut loaded = load(&image, &base);
        prop_assert!(loaded.content() == template.content());

        let disk = run(&mut template, &base, &image, &after);
        let changes = save_changes(&disk, &base);
        prop_assert!(resume(&mut template, &changes).content() == disk.content());
        prop_assert!(resume(&mut loaded, &changes).content() == disk.content());
    }

    #[test]
    fn a_base_that_the_machine_never_came_from_serves_too(
        own in any_steps(), other in any_steps(), after in any_steps(),
    ) {
        let image = image();
        let (mut template_1, base_1) = template(&image, &without_growing(own));
        let (mut template_2, base_2) = template(&image, &without_growing(other));
        let disk = run(&mut template_1, &base_1, &image, &after);
        let changes = save_changes(&disk, &base_2);
        prop_assert!(resume(&mut template_2, &changes).content() == disk.content());
    }
}

#[test]
fn what_only_the_base_has_written_is_saved_as_the_image_has_it() {
    let image = image();
    let mut other = new_disk(&image);
    other.write_at(0, &[7; 2 * BLOCK_LEN]).unwrap();
    other.discard(2 * BLOCK_BYTES, BLOCK_BYTES).unwrap();
    // Beyond the image, and within its last block.
    other.write_at(20 * BLOCK_BYTES, &[7; BLOCK_LEN]).unwrap();
    other.write_at(10 * BLOCK_BYTES, &[7; BLOCK_LEN]).unwrap();
    let base = save_whole(&other);

    let untouched = new_disk(&image);
    let changes = save_changes(&untouched, &base);
    let runs: Vec<_> = reader(&changes).runs().map(|(run, _)| (run.range(), run.kind)).collect();
    assert_eq!(runs, [(0..3, Kind::Data), (10..11, Kind::Data), (20..21, Kind::Zeros)]);
    assert!(resume(&mut other, &changes).content() == untouched.content());
}

#[test]
fn a_disk_that_has_changed_nothing_has_no_changes() {
    let image = image();
    let mut template = new_disk(&image);
    template.write_at(5000, &[1; 30_000]).unwrap();
    template.discard(0, BLOCK_BYTES).unwrap();
    let base = save_whole(&template);
    let mut copy = template.fork();
    // Written, but not otherwise than before.
    copy.write_at(5000, &[1; 30_000]).unwrap();
    assert_eq!(reader(&save_changes(&copy, &base)).runs().count(), 0);
}

#[test]
fn a_base_with_a_longer_disk_is_refused() {
    let image = image();
    let mut longer = new_disk(&image);
    longer.grow(DISK_LEN + BLOCK_BYTES).unwrap();
    let base = save_whole(&longer);
    let error = save(&new_disk(&image), empty(), Some(reader(&base))).unwrap_err();
    assert!(matches!(error, SavedError::Disk(DiskError::Shorter { old, bytes }) if old > bytes));
    assert_eq!(error.fault(), podflare_wire::control::Fault::Size);
}

#[test]
fn a_saved_disk_is_read_from_its_file_and_never_written() {
    let image = image();
    let mut disk = new_disk(&image);
    disk.write_at(0, &[1; 3 * BLOCK_LEN]).unwrap();
    let saved = save_whole(&disk);
    let mut bytes = vec![0; usize::try_from(saved.metadata().unwrap().len()).unwrap()];
    saved.read_exact_at(&mut bytes, 0).unwrap();

    let mut loaded = load(&image, &saved);
    assert_eq!((loaded.layers(), loaded.layer_bytes()), (2, 0));
    loaded.write_at(100, &[2; 2 * BLOCK_LEN]).unwrap();
    loaded.discard(2 * BLOCK_BYTES, BLOCK_BYTES).unwrap();
    // Nothing of the file is read any more.
    assert_eq!(loaded.layers(), 1);
    let mut after = vec![0; bytes.len()];
    saved.read_exact_at(&mut after, 0).unwrap();
    assert!(bytes == after);
}
