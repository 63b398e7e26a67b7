//! Disks that fork, against plain copies of their content.

use super::saved::tests::{Laid, any_laid, lay_over};
use super::*;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};
use std::io::Write;
use std::os::unix::fs::MetadataExt;

pub(super) const BLOCKS: u64 = 24;
pub(super) const DISK_LEN: u64 = BLOCKS * BLOCK_LEN;

impl Disk {
    /// What fork(2) does: the same memory, and descriptors of the same open files.
    fn copy(&self) -> Disk {
        let layer = |layer: &Layer| Layer { file: layer.file.try_clone().unwrap(), blocks: layer.blocks };
        Disk {
            base: self.base.try_clone().unwrap(),
            map: self.map.clone(),
            layers: self.layers.iter().map(|slot| slot.as_ref().map(layer)).collect(),
            allocator: self.allocator.clone(),
            ..*self
        }
    }

    pub(crate) fn fork(&mut self) -> Disk {
        self.seal().unwrap();
        let mut copy = self.copy();
        copy.adopt_layer(tempfile::tempfile().unwrap()).unwrap();
        copy
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        let mut content = vec![0xee; usize::try_from(self.bytes).unwrap()];
        self.read_at(0, &mut content).unwrap();
        content
    }

    /// Bytes of the host's disk that the own layer occupies.
    fn host_bytes(&self) -> u64 {
        self.layer(self.own).unwrap().file.metadata().unwrap().blocks() * 512
    }
}

/// A disk, and the content that it must have.
pub(super) struct Pair {
    pub(super) disk: Disk,
    pub(super) model: Vec<u8>,
}

/// The base ends within a block, and before the disk does.
pub(super) fn new_pair() -> Pair {
    let content: Vec<u8> = (1..=249).cycle().take(10 * 4096 + 1000).collect();
    let mut base = tempfile::tempfile().unwrap();
    base.write_all(&content).unwrap();
    let disk = Disk::new(base, tempfile::tempfile().unwrap(), DISK_LEN).unwrap();
    let mut model = content;
    model.resize(usize::try_from(DISK_LEN).unwrap(), 0);
    Pair { disk, model }
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Write { offset: u64, len: u64, byte: u8 },
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64 },
    LayOver(Vec<Laid>),
    Fork,
    End,
}

fn any_range() -> impl Strategy<Value = (u64, u64)> {
    let bytes = (0..DISK_LEN).prop_flat_map(|offset| (Just(offset), 0..=(DISK_LEN - offset).min(20_000)));
    let blocks = (0..BLOCKS)
        .prop_flat_map(|block| (Just(block), 1..=BLOCKS - block))
        .prop_map(|(block, blocks)| (block * BLOCK_LEN, blocks * BLOCK_LEN));
    prop_oneof![bytes, blocks]
}

pub(super) fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any_range(), 1..=255_u8)
            .prop_map(|((offset, len), byte)| Step::Write { offset, len, byte }),
        2 => any_range().prop_map(|(offset, len)| Step::Discard { offset, len }),
        1 => any_range().prop_map(|(offset, len)| Step::WriteZeroes { offset, len }),
        1 => any_laid().prop_map(Step::LayOver),
        2 => Just(Step::Fork),
        1 => Just(Step::End),
    ]
}

fn range_of(offset: u64, len: u64) -> Range<usize> {
    usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap()
}

pub(super) fn apply(pairs: &mut Vec<Pair>, which: usize, step: &Step) {
    let Pair { disk, model } = &mut pairs[which];
    match *step {
        Step::Write { offset, len, byte } => {
            let data: Vec<u8> = (0..len).map(|index| byte.wrapping_add((index % 7) as u8)).collect();
            disk.write_at(offset, &data).unwrap();
            model[range_of(offset, len)].copy_from_slice(&data);
        }
        Step::Discard { offset, len } => {
            disk.discard(offset, len).unwrap();
            let (start, end) = (offset.next_multiple_of(BLOCK_LEN), (offset + len) / BLOCK_LEN * BLOCK_LEN);
            if start < end {
                model[range_of(start, end - start)].fill(0);
            }
        }
        Step::WriteZeroes { offset, len } => {
            disk.write_zeroes(offset, len).unwrap();
            model[range_of(offset, len)].fill(0);
        }
        Step::LayOver(ref laid) => lay_over(disk, model, laid),
        Step::Fork => {
            let copy = Pair { disk: disk.fork(), model: model.clone() };
            pairs.push(copy);
        }
        Step::End => {
            if pairs.len() > 1 {
                pairs.swap_remove(which);
            }
        }
    }
}

proptest! {
    #[test]
    fn every_disk_of_a_family_keeps_its_own_content(
        steps in prop::collection::vec((any::<prop::sample::Index>(), any_step()), 1..60),
    ) {
        let mut pairs = vec![new_pair()];
        for (which, step) in &steps {
            let which = which.index(pairs.len());
            apply(&mut pairs, which, step);
            for Pair { disk, model } in &pairs {
                prop_assert!(disk.content() == *model, "after {step:?}");
            }
        }
    }

    #[test]
    fn parts_are_read_as_the_whole_is(steps in prop::collection::vec(any_step(), 1..20), (offset, len) in any_range()) {
        let mut pairs = vec![new_pair()];
        for step in &steps {
            let youngest = pairs.len() - 1;
            apply(&mut pairs, youngest, step);
        }
        for Pair { disk, model } in &pairs {
            let mut part = vec![0xee; usize::try_from(len).unwrap()];
            disk.read_at(offset, &mut part).unwrap();
            prop_assert_eq!(&part, &model[range_of(offset, len)]);
        }
    }
}

#[test]
fn a_disk_of_the_wrong_size_is_refused() {
    let base = || {
        let base = tempfile::tempfile().unwrap();
        base.set_len(8192).unwrap();
        base
    };
    let layer = || tempfile::tempfile().unwrap();
    assert!(matches!(Disk::new(base(), layer(), 4096), Err(DiskError::BaseTooLong { .. })));
    assert!(matches!(Disk::new(base(), layer(), 8192 + 512), Err(DiskError::Unaligned { .. })));
    assert!(Disk::new(base(), layer(), 8192).is_ok());
}

#[test]
fn blocks_are_overwritten_in_place_until_they_are_shared() {
    let mut disk = new_pair().disk;
    for _ in 0..3 {
        disk.write_at(0, &[1; 8192]).unwrap();
        disk.write_at(100, &[2; 10]).unwrap();
    }
    assert_eq!(disk.layer_bytes(), 8192);
    let copy = disk.fork();
    disk.write_at(0, &[3; 4096]).unwrap();
    disk.write_at(0, &[4; 4096]).unwrap();
    assert_eq!(disk.layer_bytes(), 8192 + 4096);
    assert_eq!(copy.content()[100], 2);
    assert_eq!((disk.layers(), copy.layers()), (1, 2));
}

#[test]
fn discarded_blocks_are_given_back_to_the_host_and_used_again() {
    // Other file systems count a file's blocks in ways of their own.
    let layer = File::from(memfd_create("layer", MemfdFlags::CLOEXEC).unwrap());
    let mut disk = Disk::new(tempfile::tempfile().unwrap(), layer, DISK_LEN).unwrap();
    disk.write_at(0, &[1; 16 * 4096]).unwrap();
    assert_eq!(disk.host_bytes(), 16 * BLOCK_LEN);
    disk.discard(0, 8 * BLOCK_LEN).unwrap();
    assert_eq!((disk.layer_bytes(), disk.host_bytes()), (8 * BLOCK_LEN, 8 * BLOCK_LEN));
    disk.write_at(0, &[2; 8 * 4096]).unwrap();
    assert_eq!(disk.layer(disk.own).unwrap().file.metadata().unwrap().len(), 16 * BLOCK_LEN);
    assert_eq!(disk.host_bytes(), 16 * BLOCK_LEN);
}

#[test]
fn discarding_shared_blocks_leaves_them_to_the_copy() {
    let mut disk = new_pair().disk;
    disk.write_at(0, &[1; 4096]).unwrap();
    let copy = disk.fork();
    disk.discard(0, BLOCK_LEN).unwrap();
    assert_eq!(disk.content()[0], 0);
    assert_eq!(copy.content()[0], 1);
    assert_eq!(disk.layer_bytes(), BLOCK_LEN);
}

#[test]
fn a_copy_of_a_disk_that_wrote_nothing_reads_no_layer_but_its_own() {
    let mut disk = new_pair().disk;
    let mut copy = disk.fork();
    for _ in 0..2 * LAYERS_MAX {
        copy = copy.fork();
    }
    assert_eq!(copy.layers(), 1);
}

#[test]
fn an_ancestor_is_closed_with_the_last_block_that_is_read_from_it() {
    let mut disk = new_pair().disk;
    disk.write_at(0, &[1; 8192]).unwrap();
    let mut copy = disk.fork();
    copy.write_at(0, &[2; 4096]).unwrap();
    assert_eq!(copy.layers(), 2);
    copy.discard(BLOCK_LEN, BLOCK_LEN).unwrap();
    assert_eq!(copy.layers(), 1);
}

#[test]
fn a_disk_too_deep_is_refused_another_layer() {
    let base = tempfile::tempfile().unwrap();
    let blocks = byte_len(LAYERS_MAX);
    let mut disk = Disk::new(base, tempfile::tempfile().unwrap(), blocks * BLOCK_LEN).unwrap();
    for block in 0..blocks - 1 {
        disk.write_at(block * BLOCK_LEN, &[1; 4096]).unwrap();
        disk.adopt_layer(tempfile::tempfile().unwrap()).unwrap();
    }
    disk.write_at((blocks - 1) * BLOCK_LEN, &[1; 4096]).unwrap();
    assert!(matches!(disk.seal(), Err(DiskError::TooManyLayers)));
    assert!(disk.content().iter().all(|&byte| byte == 1));
    // Nothing is shared: what is written goes to the same place.
    disk.write_at((blocks - 1) * BLOCK_LEN, &[1; 4096]).unwrap();
    assert_eq!(disk.layer_bytes(), BLOCK_LEN);
}

#[test]
fn access_beyond_the_end_is_refused() {
    let mut disk = new_pair().disk;
    assert!(disk.read_at(DISK_LEN, &mut [0]).is_err());
    assert!(disk.write_at(DISK_LEN - 1, &[0; 2]).is_err());
    assert!(disk.discard(u64::MAX, 2).is_err());
    assert!(disk.write_zeroes(0, DISK_LEN + 1).is_err());
}

#[test]
fn a_disk_that_has_grown_keeps_what_it_has_and_its_copies_their_length() {
    let Pair { mut disk, mut model } = new_pair();
    disk.write_at(DISK_LEN - 100, &[7; 100]).unwrap();
    let shorter = disk.fork();
    disk.grow(DISK_LEN + 3 * BLOCK_LEN).unwrap();
    model[usize::try_from(DISK_LEN).unwrap() - 100..].fill(7);
    assert!(shorter.content() == model);
    model.resize(model.len() + 3 * BLOCK_BYTES, 0);
    assert!(disk.content() == model);
    // Across the former end.
    disk.write_at(DISK_LEN - 5000, &[9; 10_000]).unwrap();
    let start = usize::try_from(DISK_LEN - 5000).unwrap();
    model[start..start + 10_000].fill(9);
    let mut copy = disk.fork();
    copy.grow(copy.bytes() + BLOCK_LEN).unwrap();
    assert!(disk.content() == model);
    assert!(copy.content()[..model.len()] == model);
    assert!(shorter.read_at(DISK_LEN, &mut [0]).is_err());
}

#[test]
fn a_disk_grows_in_whole_blocks_within_its_limit_and_never_shrinks() {
    let Pair { mut disk, .. } = new_pair();
    disk.grow(DISK_LEN).unwrap();
    for bytes in [DISK_LEN - BLOCK_LEN, 0, (u64::from(DISK_GIB_MAX) << 30) + BLOCK_LEN, u64::MAX - 4095] {
        assert!(matches!(disk.grow(bytes), Err(DiskError::NotLarger { .. })), "{bytes}");
    }
    assert!(matches!(disk.grow(DISK_LEN + 512), Err(DiskError::Unaligned { .. })));
    assert_eq!(disk.bytes(), DISK_LEN);
}
