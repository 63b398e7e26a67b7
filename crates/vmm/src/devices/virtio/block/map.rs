//! Where each block of a disk is: a flat table of 8 bytes a block, in memory that costs nothing until
//! it is written and that fork(2) copies with the rest. A disk that has grown has one for each piece.

/// The unit of copy-on-write, in bytes.
pub(super) const BLOCK_LEN: u64 = 4096;

/// Block numbers of a layer file are below this.
pub(super) const LAYER_BLOCKS_MAX: u64 = 1 << BLOCK_BITS;

const BLOCK_BITS: u32 = 40;
const BASE: u64 = 0;
const ZERO: u64 = 1;

/// Where the content of one block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// At the same offset of the base image; zeros beyond its end.
    Base,
    /// Nowhere: it reads as zeros.
    Zero,
    /// In a layer's file, at this block number.
    Layer { layer: u16, block: u64 },
}

impl Place {
    /// The place that continues this one `blocks` further on.
    pub(super) fn after(self, blocks: u64) -> Place {
        match self {
            Place::Layer { layer, block } => Place::Layer { layer, block: block + blocks },
            place => place,
        }
    }
}

/// The map of a disk. Every block begins in the base.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct BlockMap {
    tables: Vec<Vec<u64>>,
}

impl BlockMap {
    pub(super) fn new(blocks: usize) -> BlockMap {
        let mut map = BlockMap { tables: Vec::with_capacity(1) };
        map.grow(blocks);
        map
    }

    /// Adds so many blocks, which begin in the base, too.
    pub(super) fn grow(&mut self, blocks: usize) {
        // All-zero entries are asked for as zeroed pages, which the kernel hands out on first touch. To lengthen a
        // table would touch them all.
        self.tables.push(vec![BASE; blocks]);
    }

    /// The table that a block is in, and where.
    fn locate(&self, block: u64) -> (usize, usize) {
        let mut index = index(block);
        for (table, entries) in self.tables.iter().enumerate() {
            if index < entries.len() {
                return (table, index);
            }
            index -= entries.len();
        }
        panic!("block {block} is beyond the end of the map");
    }

    pub(super) fn get(&self, block: u64) -> Place {
        let (table, index) = self.locate(block);
        match self.tables[table][index] {
            BASE => Place::Base,
            ZERO => Place::Zero,
            entry => Place::Layer {
                layer: u16::try_from((entry >> BLOCK_BITS) - 1).unwrap_or(u16::MAX),
                block: entry & (LAYER_BLOCKS_MAX - 1),
            },
        }
    }

    pub(super) fn set(&mut self, block: u64, place: Place) {
        let (table, index) = self.locate(block);
        self.tables[table][index] = match place {
            Place::Base => BASE,
            Place::Zero => ZERO,
            Place::Layer { layer, block } => (u64::from(layer) + 1) << BLOCK_BITS | block,
        };
    }
}

/// Block numbers of a disk fit, because the map that has them is in memory.
fn index(block: u64) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_has_grown_keeps_what_it_had() {
        let mut map = BlockMap::new(2);
        map.set(1, Place::Zero);
        map.grow(3);
        map.grow(1);
        map.set(5, Place::Layer { layer: 3, block: 9 });
        let places: Vec<Place> = (0..6).map(|block| map.get(block)).collect();
        let (base, zero) = (Place::Base, Place::Zero);
        assert_eq!(places, [base, zero, base, base, base, Place::Layer { layer: 3, block: 9 }]);
    }

    #[test]
    fn every_place_is_read_back_as_it_was_set() {
        let mut map = BlockMap::new(2);
        let places = [
            Place::Zero,
            Place::Layer { layer: 0, block: 0 },
            Place::Layer { layer: u16::MAX - 1, block: LAYER_BLOCKS_MAX - 1 },
            Place::Base,
        ];
        for place in places {
            map.set(1, place);
            assert_eq!(map.get(1), place);
            assert_eq!(map.get(0), Place::Base);
        }
    }
}
