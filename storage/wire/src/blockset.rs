//! Some of the blocks of a range: what a command is about that leaves out others.

use crate::block::COMMAND_BLOCKS_MAX;

const WORDS: usize = COMMAND_BLOCKS_MAX as usize / 64;

/// Some blocks of a range of at most [`COMMAND_BLOCKS_MAX`], by their place in it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct BlockSet([u64; WORDS]);

impl BlockSet {
    /// The first blocks of a range, all of them.
    pub fn first(count: u32) -> BlockSet {
        let mut set = BlockSet::default();
        (0..count).for_each(|block| set.insert(block));
        set
    }

    /// Adds a block.
    ///
    /// # Panics
    /// If no range has such a block.
    pub fn insert(&mut self, block: u32) {
        self.0[block as usize / 64] |= 1 << (block % 64);
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The blocks in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + Clone + use<> {
        let words = self.0.into_iter().enumerate();
        words.flat_map(|(n, word)| {
            let bits = (0..64).filter(move |bit| word >> bit & 1 == 1);
            bits.map(move |bit| n as u32 * 64 + bit)
        })
    }

    /// The bytes that hold a bit for each of the first `count` blocks, the lowest bit first.
    pub fn bytes(&self, count: u32) -> impl Iterator<Item = u8> + '_ {
        let byte = |n: u32| (self.0[n as usize / 8] >> (n % 8 * 8)) as u8;
        (0..count.div_ceil(8)).map(byte)
    }

    /// The blocks that [`BlockSet::bytes`] holds; nothing if there are blocks beyond the first `count` among
    /// them, or none at all.
    pub fn from_bytes(count: u32, bytes: &[u8]) -> Option<BlockSet> {
        let mut set = BlockSet::default();
        for (n, byte) in bytes.iter().enumerate() {
            *set.0.get_mut(n / 8)? |= u64::from(*byte) << (n % 8 * 8);
        }
        let fits = set.iter().last().is_some_and(|last| last < count);
        fits.then_some(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_survive_a_round_trip(blocks in prop::collection::btree_set(0..256u32, 1..40), more in 0..9u32) {
            let mut set = BlockSet::default();
            blocks.iter().for_each(|block| set.insert(*block));
            prop_assert!(set.iter().eq(blocks.iter().copied()));
            prop_assert_eq!(set.len() as usize, blocks.len());
            let count = (blocks.last().map_or(0, |last| last + 1) + more).min(COMMAND_BLOCKS_MAX);
            let bytes: Vec<u8> = set.bytes(count).collect();
            prop_assert_eq!(BlockSet::from_bytes(count, &bytes), Some(set));
        }
    }

    #[test]
    fn blocks_beyond_the_range_and_no_blocks_are_refused() {
        assert_eq!(BlockSet::from_bytes(9, &[0xff, 1]), Some(BlockSet::first(9)));
        assert_eq!(BlockSet::from_bytes(9, &[0xff, 2]), None);
        assert_eq!(BlockSet::from_bytes(9, &[0, 0]), None);
        assert_eq!(BlockSet::from_bytes(256, &[1; 33]), None);
    }
}
