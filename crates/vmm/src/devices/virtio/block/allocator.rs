//! Which blocks of a disk's own layer file are free, private or shared with copies. It holds no file.

use super::map::LAYER_BLOCKS_MAX;

#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Allocator {
    /// The end of the file, in blocks.
    end: u64,
    /// Blocks before this one may be read by copies of this disk and are never written again.
    shared_end: u64,
    /// Private blocks that nothing refers to.
    free: Vec<u64>,
    /// Free blocks that were forgotten when their neighbours became shared.
    forgotten: u64,
}

impl Allocator {
    /// Everything allocated so far is shared from now on. Free blocks become holes for good: to know
    /// them as private would take a set where the watermark is one number.
    pub(super) fn seal(&mut self) {
        self.shared_end = self.end;
        self.forgotten += self.held_free();
        self.free.clear();
    }

    pub(super) fn is_private(&self, block: u64) -> bool {
        block >= self.shared_end
    }

    /// Gives `count` blocks, in ascending order where possible; none if so many are not left.
    pub(super) fn allocate(&mut self, count: usize) -> Option<Vec<u64>> {
        let reused = count.min(self.free.len());
        let end = self.end.checked_add(u64::try_from(count - reused).ok()?)?;
        if end > LAYER_BLOCKS_MAX {
            return None;
        }
        let mut blocks: Vec<u64> = self.free.drain(self.free.len() - reused..).rev().collect();
        blocks.extend(self.end..end);
        self.end = end;
        Some(blocks)
    }

    /// Takes back a private block. The last one in is the first one out.
    pub(super) fn release(&mut self, block: u64) {
        self.free.push(block);
    }

    /// Blocks of the file that hold something.
    pub(super) fn held(&self) -> u64 {
        self.end - self.forgotten - self.held_free()
    }

    fn held_free(&self) -> u64 {
        u64::try_from(self.free.len()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_released_from_the_last_to_the_first_are_given_out_as_one_run() {
        let mut allocator = Allocator::default();
        assert_eq!(allocator.allocate(4), Some(vec![0, 1, 2, 3]));
        for block in [3, 2, 1] {
            allocator.release(block);
        }
        assert_eq!(allocator.allocate(4), Some(vec![1, 2, 3, 4]));
    }

    #[test]
    fn a_seal_makes_blocks_shared_and_forgets_free_ones() {
        let mut allocator = Allocator::default();
        allocator.allocate(3);
        allocator.release(1);
        allocator.seal();
        assert!(!allocator.is_private(0));
        assert_eq!(allocator.held(), 2);
        assert_eq!(allocator.allocate(1), Some(vec![3]));
        assert!(allocator.is_private(3));
    }

    #[test]
    fn more_blocks_than_a_file_can_have_are_refused_and_nothing_changes() {
        let mut allocator = Allocator { end: LAYER_BLOCKS_MAX - 1, ..Allocator::default() };
        allocator.release(7);
        assert_eq!(allocator.allocate(3), None);
        assert_eq!(allocator.allocate(2), Some(vec![7, LAYER_BLOCKS_MAX - 1]));
    }
}
