//! Disks over which the content of files is laid, and what they say of their blocks.

use super::super::tests::{BLOCKS, DISK_LEN, Pair, any_step, apply, new_pair};
use super::*;
use proptest::prelude::*;
use std::os::unix::fs::FileExt;

const BLOCK_BYTES: usize = 4096;

/// Where a file's first block of content is, as behind a header.
const IN_FILE: u64 = 1;

/// Blocks that follow each other, and the byte that they are full of. Without one they are told to be zeros.
pub(in super::super) type Laid = (Range<u64>, Option<u8>);

pub(in super::super) fn any_laid() -> impl Strategy<Value = Vec<Laid>> {
    let run = (0..4_u64, 1..8_u64, prop::option::of(1..=255_u8));
    prop::collection::vec(run, 0..6).prop_map(|runs| {
        let mut end = 0;
        let mut laid = Vec::new();
        for (gap, count, byte) in runs {
            let range = (end + gap).min(BLOCKS)..(end + gap + count).min(BLOCKS);
            end = range.end;
            laid.push((range, byte));
        }
        laid
    })
}

/// Gives a disk the content by way of a file, and a model just so.
pub(in super::super) fn lay_over(disk: &mut Disk, model: &mut [u8], laid: &[Laid]) {
    let file = tempfile::tempfile().unwrap();
    let mut next = IN_FILE;
    let mut ranges = Vec::new();
    for (range, byte) in laid.iter().cloned() {
        let bytes = usize::try_from(range.start).unwrap() * BLOCK_BYTES
            ..usize::try_from(range.end).unwrap() * BLOCK_BYTES;
        model[bytes.clone()].fill(byte.unwrap_or(0));
        if let Some(byte) = byte {
            file.write_all_at(&vec![byte; bytes.len()], next * BLOCK_LEN).unwrap();
        }
        ranges.push((range.clone(), byte.map(|_| next)));
        next += if byte.is_some() { range.end - range.start } else { 0 };
    }
    disk.check_lay_over(disk.bytes()).unwrap();
    disk.lay_over(file, ranges.into_iter()).unwrap();
}

fn lay(pair: &mut Pair, laid: &[Laid]) {
    lay_over(&mut pair.disk, &mut pair.model, laid);
    assert!(pair.disk.content() == pair.model);
}

proptest! {
    #[test]
    fn extents_cover_the_disk_and_say_what_is_in_it(
        steps in prop::collection::vec(any_step(), 0..12),
        len in BLOCK_BYTES..100_000,
    ) {
        let image = new_pair().model;
        let mut pairs = vec![new_pair()];
        for step in &steps {
            let youngest = pairs.len() - 1;
            apply(&mut pairs, youngest, step);
        }
        for Pair { disk, model } in &pairs {
            let mut block = 0;
            while block < disk.blocks() {
                let (extent, count) = disk.extent(block, len);
                prop_assert!(count > 0 && count <= byte_len(len.div_ceil(BLOCK_BYTES)));
                let bytes = usize::try_from(block).unwrap() * BLOCK_BYTES
                    ..usize::try_from(block + count).unwrap() * BLOCK_BYTES;
                let mut content = vec![0xee; bytes.len()];
                disk.read_blocks(block, &mut content).unwrap();
                prop_assert!(content == model[bytes.clone()]);
                match extent {
                    Extent::Untouched => prop_assert!(content == image[bytes]),
                    Extent::Zeros => prop_assert!(content.iter().all(|&byte| byte == 0)),
                    Extent::Written => {}
                }
                block += count;
            }
            prop_assert_eq!(block, BLOCKS);
        }
    }
}

#[test]
fn discarded_blocks_and_those_told_to_be_zeros_are_zeros_and_others_as_they_were() {
    let mut pair = new_pair();
    pair.disk.discard(0, 2 * BLOCK_LEN).unwrap();
    pair.model[..2 * BLOCK_BYTES].fill(0);
    lay(&mut pair, &[(1..2, Some(7)), (3..5, None), (20..21, Some(8))]);
    let extents: Vec<_> = [0, 1, 2, 3, 5].map(|block| pair.disk.extent(block, 8 * BLOCK_BYTES)).into();
    let (zeros, untouched) = (Extent::Zeros, Extent::Untouched);
    assert_eq!(extents, [(zeros, 1), (Extent::Written, 1), (untouched, 1), (zeros, 2), (untouched, 8)]);
    // What has no content needs no file.
    let layers = pair.disk.layers();
    lay(&mut pair, &[(0..1, None), (23..24, None)]);
    assert_eq!(pair.disk.layers(), layers);
}

#[test]
fn what_is_laid_over_what_a_disk_has_written_frees_it() {
    let mut pair = new_pair();
    pair.disk.write_at(0, &[1; 4 * BLOCK_BYTES]).unwrap();
    pair.model[..4 * BLOCK_BYTES].fill(1);
    lay(&mut pair, &[(1..3, Some(2))]);
    assert_eq!((pair.disk.layer_bytes(), pair.disk.layers()), (2 * BLOCK_LEN, 2));
    // Nothing of the file is private.
    pair.disk.write_at(BLOCK_LEN + 100, &[3; 8]).unwrap();
    pair.model[BLOCK_BYTES + 100..][..8].fill(3);
    assert!(pair.disk.content() == pair.model);
    assert_eq!(pair.disk.layer_bytes(), 3 * BLOCK_LEN);
}

#[test]
fn a_file_is_closed_when_nothing_of_it_is_left() {
    let mut pair = new_pair();
    lay(&mut pair, &[(0..2, Some(1))]);
    lay(&mut pair, &[(0..1, Some(2)), (1..2, None)]);
    assert_eq!(pair.disk.layers(), 2);
    pair.disk.discard(0, BLOCK_LEN).unwrap();
    assert_eq!(pair.disk.layers(), 1);
}

#[test]
fn a_disk_goes_on_being_saved_and_laid_over_for_many_generations() {
    let mut pair = new_pair();
    for generation in 1..=250_u8 {
        lay(&mut pair, &[(0..3, Some(generation)), (u64::from(generation % 20) + 3..24, None)]);
        let disk = pair.disk.fork();
        pair = Pair { disk, ..pair };
        pair.disk.write_at(BLOCK_LEN, &[generation; 5000]).unwrap();
        pair.model[BLOCK_BYTES..][..5000].fill(generation);
        assert!(pair.disk.content() == pair.model);
        assert!(pair.disk.layers() <= 4, "{} layers", pair.disk.layers());
    }
}

#[test]
fn a_disk_that_has_grown_is_laid_over_to_its_new_end() {
    let mut pair = new_pair();
    pair.disk.grow(DISK_LEN + 2 * BLOCK_LEN).unwrap();
    pair.model.resize(pair.model.len() + 2 * BLOCK_BYTES, 0);
    lay(&mut pair, &[(BLOCKS - 1..BLOCKS + 1, Some(4)), (BLOCKS + 1..BLOCKS + 2, Some(5))]);
    let shorter = pair.disk.check_lay_over(DISK_LEN);
    assert!(matches!(shorter, Err(DiskError::Shorter { old, bytes: DISK_LEN }) if old == pair.disk.bytes()));
    assert!(pair.disk.check_lay_over(pair.disk.bytes() + BLOCK_LEN).is_ok());
}

#[test]
fn a_disk_with_too_many_layers_is_refused_before_it_is_changed() {
    let base = tempfile::tempfile().unwrap();
    let blocks = byte_len(LAYERS_MAX);
    let bytes = blocks * BLOCK_LEN;
    let mut disk = Disk::new(base, tempfile::tempfile().unwrap(), bytes).unwrap();
    let model = &mut vec![0; usize::try_from(bytes).unwrap()];
    for block in 0..blocks - 1 {
        lay_over(&mut disk, model, &[(block..block + 1, Some(1))]);
    }
    assert!(matches!(disk.check_lay_over(bytes), Err(DiskError::TooManyLayers)));
    let file = tempfile::tempfile().unwrap();
    let refused = disk.lay_over(file, [(0..1, Some(0))].into_iter());
    assert!(matches!(refused, Err(DiskError::TooManyLayers)));
    assert!(disk.content() == *model);
    disk.discard(0, BLOCK_LEN).unwrap();
    assert!(disk.check_lay_over(bytes).is_ok());
}
