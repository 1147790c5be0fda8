//! Where each block of a volume stands in the log.
//!
//! A [`VolumeIndex`] maps block numbers of one volume, in one group, to places in the log and the
//! checksums of their content. It has two levels: a directory of pages, one for each chunk of
//! 1024 blocks, and in a page 12 bytes a block. A page that maps nothing keeps only the log index
//! of its last change. Every change also tells [`Usage`], which counts live blocks by segment.

mod page;
#[cfg(test)]
mod random;
mod usage;

pub use page::{BlockPlace, Page};
pub use usage::Usage;

use crate::log::Location;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::command::BlockRange;
use basalt_wire::disk::checkpoint::Granule;
use basalt_wire::ids::LogIndex;
use rustc_hash::FxHashMap;

/// The index of one volume in one group.
#[derive(Default, Debug)]
pub struct VolumeIndex {
    pages: FxHashMap<u64, Page>,
    mapped: u64,
    tables: u64,
}

/// The chunk that a range lies in, and its first block's number within it.
fn split(range: BlockRange) -> (u64, usize) {
    let (chunk, first) = (range.block / CHUNK_BLOCKS, range.block % CHUNK_BLOCKS);
    assert!(
        first + u64::from(range.count) <= CHUNK_BLOCKS,
        "the range {range:?} crosses the border of a chunk"
    );
    (chunk, first as usize)
}

impl VolumeIndex {
    /// An index that maps nothing.
    pub fn new() -> VolumeIndex {
        VolumeIndex::default()
    }

    /// Maps the blocks of `range` to consecutive places from `first` on. Gives the chunk, if nothing
    /// of it had changed since it was given to a checkpoint.
    pub fn map(
        &mut self,
        range: BlockRange,
        first: BlockPlace,
        checksums: impl ExactSizeIterator<Item = u32>,
        at: LogIndex,
        usage: &mut Usage,
    ) -> Option<u64> {
        assert_eq!(checksums.len(), range.count as usize, "one checksum for each block");
        let (chunk, block) = split(range);
        let page = self.pages.entry(chunk).or_default();
        let (before, clean) = (page.footprint(), !page.is_dirty());
        page.map(block, first, checksums, at, usage);
        let after = page.footprint();
        self.account(before, after);
        clean.then_some(chunk)
    }

    /// Unmaps the blocks of `range`. A chunk that was never written stays unknown. Gives the chunk as
    /// [`VolumeIndex::map`] does.
    pub fn unmap(&mut self, range: BlockRange, at: LogIndex, usage: &mut Usage) -> Option<u64> {
        let (chunk, block) = split(range);
        let page = self.pages.get_mut(&chunk)?;
        let (before, clean) = (page.footprint(), !page.is_dirty());
        page.unmap(block, range.count as usize, at, usage);
        let after = page.footprint();
        self.account(before, after);
        clean.then_some(chunk)
    }

    /// Makes a page known that changed at an entry, as a peer says. Gives the chunk as
    /// [`VolumeIndex::map`] does.
    pub fn touch(&mut self, chunk: u64, at: LogIndex) -> Option<u64> {
        let page = self.pages.entry(chunk).or_default();
        let clean = !page.is_dirty();
        (page.touch(at) && clean).then_some(chunk)
    }

    /// When a page changed last; nothing before the first change.
    pub fn changed_at(&self, chunk: u64) -> LogIndex {
        self.pages.get(&chunk).map_or(LogIndex(0), Page::changed_at)
    }

    /// The chunks that changed after an entry, in no order.
    pub fn changed_after(&self, since: LogIndex) -> impl Iterator<Item = u64> + '_ {
        let pages = self.pages.iter();
        pages.filter(move |(_, page)| page.changed_at() > since).map(|(chunk, _)| *chunk)
    }

    /// Points a block at another place with the same content, if it still stands at `from`: says whether
    /// it did, and gives the chunk as [`VolumeIndex::map`] does.
    pub fn relocate(
        &mut self,
        block: u64,
        from: BlockPlace,
        to: Location,
        usage: &mut Usage,
    ) -> (bool, Option<u64>) {
        let (chunk, block) = split(BlockRange { block, count: 1 });
        let Some(page) = self.pages.get_mut(&chunk) else { return (false, None) };
        let clean = !page.is_dirty();
        let moved = page.relocate(block, from, to, usage);
        (moved, (moved && clean).then_some(chunk))
    }

    /// Where a block stands, after it was given the checksum of a copy (a planted bug).
    pub fn forge(&mut self, block: u64, copy: BlockPlace, usage: &mut Usage) -> BlockPlace {
        let Some(place) = self.place(block) else { return copy };
        let (range, sums) = (BlockRange { block, count: 1 }, std::iter::once(copy.checksum));
        let at = self.page(range).0.map_or(LogIndex(0), Page::changed_at);
        self.map(range, place, sums, at, usage);
        BlockPlace { checksum: copy.checksum, ..place }
    }

    /// Where a block stands.
    pub fn place(&self, block: u64) -> Option<BlockPlace> {
        let (page, block) = self.page(BlockRange { block, count: 1 });
        page?.get(block)
    }

    /// Unmaps everything and forgets all pages.
    pub fn clear(&mut self, usage: &mut Usage) {
        for page in self.pages.values_mut() {
            page.unmap(0, CHUNK_BLOCKS as usize, LogIndex(0), usage);
        }
        *self = VolumeIndex::default();
    }

    /// A page that is to be given to a checkpoint.
    pub fn page_mut(&mut self, chunk: u64) -> Option<&mut Page> {
        self.pages.get_mut(&chunk)
    }

    /// Takes a granule of a chunk from a checkpoint.
    pub fn restore(&mut self, chunk: u64, number: u8, granule: &Granule, usage: &mut Usage) {
        let page = self.pages.entry(chunk).or_default();
        let before = page.footprint();
        page.restore(number, granule, usage);
        let after = page.footprint();
        self.account(before, after);
    }

    /// Counts the live blocks of all pages.
    pub fn recount(&self, usage: &mut Usage) {
        for (_, place) in self.pages.values().flat_map(Page::iter) {
            usage.add(place.segment, 1);
        }
    }

    /// The page that `range` lies in, and the number of its first block there.
    pub fn page(&self, range: BlockRange) -> (Option<&Page>, usize) {
        let (chunk, block) = split(range);
        (self.pages.get(&chunk), block)
    }

    /// Blocks that are mapped.
    pub fn mapped_blocks(&self) -> u64 {
        self.mapped
    }

    /// Bytes of memory in use.
    pub fn memory(&self) -> u64 {
        let slot = size_of::<u64>() + size_of::<Page>() + 1;
        self.tables * Page::TABLE_BYTES + (self.pages.capacity() * slot) as u64
    }

    /// All pages with their chunk numbers, in order.
    pub fn pages(&self) -> Vec<(u64, &Page)> {
        let mut pages: Vec<_> = self.pages.iter().map(|(chunk, page)| (*chunk, page)).collect();
        pages.sort_unstable_by_key(|(chunk, _)| *chunk);
        pages
    }

    fn account(&mut self, before: (u64, u64), after: (u64, u64)) {
        self.mapped = self.mapped + after.0 - before.0;
        self.tables = self.tables + after.1 - before.1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_wire::ids::SegmentId;

    fn range(block: u64, count: u32) -> BlockRange {
        BlockRange { block, count }
    }

    fn place(segment: u32, block: u32) -> BlockPlace {
        BlockPlace { segment: SegmentId(segment), block, checksum: 0 }
    }

    #[test]
    fn maps_overwrites_and_unmaps() {
        let (mut index, mut usage) = (VolumeIndex::new(), Usage::default());
        index.map(range(1030, 3), place(1, 100), [7, 8, 9].into_iter(), LogIndex(4), &mut usage);
        index.map(range(1031, 1), place(2, 5), [88].into_iter(), LogIndex(6), &mut usage);
        let (page, first) = index.page(range(1030, 3));
        let page = page.unwrap();
        assert_eq!(first, 6);
        assert_eq!(page.changed_at(), LogIndex(6));
        assert_eq!(page.get(5), None);
        assert_eq!(page.get(6), Some(BlockPlace { checksum: 7, ..place(1, 100) }));
        assert_eq!(page.get(7), Some(BlockPlace { checksum: 88, ..place(2, 5) }));
        assert_eq!(page.get(8), Some(BlockPlace { checksum: 9, ..place(1, 102) }));
        assert_eq!(index.mapped_blocks(), 3);

        index.unmap(range(1024, 8), LogIndex(9), &mut usage);
        assert_eq!(index.mapped_blocks(), 1);
        let (page, _) = index.page(range(1024, 1));
        assert_eq!(page.unwrap().changed_at(), LogIndex(9));
    }

    #[test]
    fn an_empty_page_gives_its_memory_back_and_keeps_its_change() {
        let (mut index, mut usage) = (VolumeIndex::new(), Usage::default());
        index.map(range(0, 1), place(0, 1), [1].into_iter(), LogIndex(1), &mut usage);
        let full = index.memory();
        index.unmap(range(0, 1024), LogIndex(2), &mut usage);
        assert!(index.memory() + Page::TABLE_BYTES <= full);
        assert_eq!(index.page(range(0, 1)).0.unwrap().changed_at(), LogIndex(2));
        assert_eq!(index.page(range(0, 1)).0.unwrap().get(0), None);
    }

    #[test]
    fn unmapping_what_was_never_written_changes_nothing() {
        let (mut index, mut usage) = (VolumeIndex::new(), Usage::default());
        index.unmap(range(5, 5), LogIndex(3), &mut usage);
        assert!(index.page(range(5, 5)).0.is_none());
        assert_eq!(index.mapped_blocks(), 0);
    }

    #[test]
    #[should_panic(expected = "crosses the border of a chunk")]
    fn a_range_across_chunks_is_a_bug_of_the_caller() {
        VolumeIndex::new().unmap(range(1023, 2), LogIndex(1), &mut Usage::default());
    }

    #[test]
    fn an_entry_has_twelve_bytes() {
        assert_eq!(Page::TABLE_BYTES, 12 * 1024);
    }
}
