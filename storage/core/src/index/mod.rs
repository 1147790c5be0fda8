//! Where each block of a volume stands in the log.
//!
//! A [`VolumeIndex`] maps block numbers of one volume, in one group, to places in the log and the
//! checksums of their content. It has two levels: a directory of pages, one for each chunk of
//! 1024 blocks, and in a page 12 bytes a block. A page that maps nothing keeps only the log index
//! of its last change, and a bit for each block if blocks were unmapped in a clone. What blocks were
//! in snapshots stands beside the page, see `versions`. Every change also tells [`Usage`], which
//! counts live blocks by segment. The tables of pages that nobody uses are in the store alone, see `cold`.

mod cold;
mod page;
#[cfg(test)]
mod random;
mod usage;
mod versions;

pub use page::{BlockPlace, BlockState, Cooling, CoolingRule, Loss, Page, PageContent};
pub use usage::Usage;

use crate::log::Location;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::command::BlockRange;
use basalt_wire::disk::checkpoint::{GRANULE_BLOCKS, Granule};
use basalt_wire::ids::{Generation, LogIndex};
use page::Footprint;
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// Granules of a chunk.
const GRANULES: usize = CHUNK_BLOCKS as usize / GRANULE_BLOCKS;

/// The index of one volume in one group.
#[derive(Default, Debug)]
pub struct VolumeIndex {
    pages: FxHashMap<u64, Page>,
    mapped: u64,
    kept: u64,
    bytes: u64,
    /// Of the chunks that a checkpoint or a peer gave ahead of the entries: the last entry that each granule
    /// has seen. What it has seen is not done to it again.
    ahead: FxHashMap<u64, Box<[LogIndex; GRANULES]>>,
    /// Pages that are to be emptied and whose tables are not in memory.
    doomed: BTreeSet<u64>,
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

    /// Maps the blocks of `range` to consecutive places from `first` on; what they were is kept for the
    /// newest snapshot, if there is one. Gives the chunk, if nothing of it had changed since it was given
    /// to a checkpoint.
    pub fn map(
        &mut self,
        range: BlockRange,
        first: BlockPlace,
        checksums: impl ExactSizeIterator<Item = u32> + Clone,
        at: LogIndex,
        newest: Option<Generation>,
        usage: &mut Usage,
    ) -> Option<u64> {
        assert_eq!(checksums.len(), range.count as usize, "one checksum for each block");
        let (chunk, block) = split(range);
        let fresh = self.fresh(chunk, at);
        let page = self.pages.entry(chunk).or_default();
        let (before, clean) = (page.footprint(), !page.is_dirty());
        for (start, count) in fresh_runs(block, range.count as usize, fresh) {
            let skipped = start - block;
            let first = BlockPlace { block: first.block + skipped as u32, ..first };
            let checksums = checksums.clone().skip(skipped).take(count);
            page.map(start, first, checksums, at, newest, usage);
        }
        let (after, dirty) = (page.footprint(), page.is_dirty());
        self.account(before, after, usage);
        (clean && dirty).then_some(chunk)
    }

    /// Unmaps the blocks of `range`. A chunk that was never written stays unknown, but for a clone's: what
    /// its parent holds is to be hidden. Keeps what they were, and gives the chunk, as
    /// [`VolumeIndex::map`] does.
    pub fn unmap(
        &mut self,
        range: BlockRange,
        hide: bool,
        at: LogIndex,
        newest: Option<Generation>,
        usage: &mut Usage,
    ) -> Option<u64> {
        let (chunk, block) = split(range);
        let fresh = self.fresh(chunk, at);
        let page = match hide {
            true => self.pages.entry(chunk).or_default(),
            false => self.pages.get_mut(&chunk)?,
        };
        let (before, clean) = (page.footprint(), !page.is_dirty());
        for run in fresh_runs(block, range.count as usize, fresh) {
            page.unmap(run, hide, at, newest, usage);
        }
        let (after, dirty) = (page.footprint(), page.is_dirty());
        self.account(before, after, usage);
        (clean && dirty).then_some(chunk)
    }

    /// Gives blocks of one chunk, each with its place, what their volume's parent holds, as far as they are
    /// open. What was unmapped counts as open if it `shows`. Gives the chunk as [`VolumeIndex::map`] does.
    pub fn fill(
        &mut self,
        chunk: u64,
        blocks: impl Iterator<Item = (u64, BlockPlace)>,
        shows: bool,
        at: LogIndex,
        usage: &mut Usage,
    ) -> Option<u64> {
        let fresh = self.fresh(chunk, at);
        let page = self.pages.entry(chunk).or_default();
        let (before, clean) = (page.footprint(), !page.is_dirty());
        for (block, place) in blocks {
            let (of, block) = split(BlockRange { block, count: 1 });
            assert_eq!(of, chunk, "a fill keeps to one chunk");
            if fresh >> (block / GRANULE_BLOCKS) & 1 == 1 {
                page.fill(block, place, shows, at, usage);
            }
        }
        let (after, dirty) = (page.footprint(), page.is_dirty());
        self.account(before, after, usage);
        (clean && dirty).then_some(chunk)
    }

    /// Makes a page known that changed at an entry, as a peer says, none of whose granules has seen that
    /// yet. Gives the chunk as [`VolumeIndex::map`] does.
    pub fn touch(&mut self, chunk: u64, at: LogIndex) -> Option<u64> {
        self.ahead.entry(chunk).or_insert_with(unseen);
        let page = self.pages.entry(chunk).or_default();
        let clean = !page.is_dirty();
        (page.touch(at) && clean).then_some(chunk)
    }

    /// The last entry that a granule has seen ahead of those that are applied.
    pub fn seen(&self, chunk: u64, number: u8) -> LogIndex {
        self.ahead.get(&chunk).map_or(LogIndex(0), |seen| seen[usize::from(number)])
    }

    /// A granule has seen all entries up to one.
    pub fn note_seen(&mut self, chunk: u64, number: u8, at: LogIndex) {
        self.ahead.entry(chunk).or_insert_with(unseen)[usize::from(number)] = at;
    }

    /// A granule of a page; nothing if the page is not known.
    pub fn granule(&self, chunk: u64, number: u8) -> Option<Granule> {
        Some(self.pages.get(&chunk)?.granule(number))
    }

    /// Makes a granule what a peer says. Gives the chunk as [`VolumeIndex::map`] does.
    pub fn replace(
        &mut self,
        (chunk, number): (u64, u8),
        granule: &Granule,
        usage: &mut Usage,
    ) -> Option<u64> {
        let page = self.pages.entry(chunk).or_default();
        let (before, clean) = (page.footprint(), !page.is_dirty());
        page.replace(number, granule, usage);
        let after = page.footprint();
        self.account(before, after, usage);
        clean.then_some(chunk)
    }

    /// Drops what is kept for generations that are not to be. Gives chunks as [`VolumeIndex::map`] does.
    pub fn keep_only(
        &mut self,
        keep: impl Fn(Generation) -> bool,
        at: LogIndex,
        usage: &mut Usage,
    ) -> Vec<u64> {
        self.each_page(at, usage, |page, _, usage| page.keep_only(&keep, at, usage))
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

    /// Drops a snapshot: what only it held is given back, the rest goes to the next `older` one. Gives
    /// chunks as [`VolumeIndex::map`] does.
    pub fn drop_snapshot(
        &mut self,
        snapshot: Generation,
        older: Option<Generation>,
        at: LogIndex,
        usage: &mut Usage,
    ) -> Vec<u64> {
        self.each_page(at, usage, |page, fresh, usage| {
            page.drop_snapshot(snapshot, older, fresh, at, usage)
        })
    }

    /// Makes all blocks what they were in a snapshot, and drops what is kept for later ones before the
    /// generation `until`. Gives chunks as [`VolumeIndex::map`] does.
    pub fn revert(
        &mut self,
        snapshot: Generation,
        until: Generation,
        at: LogIndex,
        usage: &mut Usage,
    ) -> Vec<u64> {
        self.each_page(at, usage, |page, fresh, usage| {
            page.revert(snapshot, until, fresh, at, usage)
        })
    }

    /// Unmaps all blocks, and drops what is kept for snapshots before the generation `until`. Pages whose
    /// tables are out of memory follow when they are back. Gives chunks as [`VolumeIndex::map`] does.
    pub fn unmap_all(&mut self, until: Generation, at: LogIndex, usage: &mut Usage) -> Vec<u64> {
        for (chunk, page) in &mut self.pages {
            let fresh = self.ahead.get(chunk).map_or(u64::MAX, |seen| fresh_of(seen, at));
            if page.is_cold() && !page.is_lost() && page.doom(fresh, at) {
                self.doomed.insert(*chunk);
            }
        }
        self.each_page(at, usage, |page, fresh, usage| match page.is_lost() {
            true => page.empty_lost(fresh, at),
            false => !page.is_cold() && page.clear(until, fresh, at, usage),
        })
    }

    /// Gives everything back, snapshots included, and forgets all pages. All tables must be in memory.
    pub fn clear(&mut self, usage: &mut Usage) {
        self.each_page(LogIndex(0), usage, |page, _, usage| {
            page.clear(Generation(u32::MAX), u64::MAX, LogIndex(0), usage)
        });
        *self = VolumeIndex::default();
    }

    /// Points a block, or what it was in a snapshot, at another place with the same content, if it
    /// still stands at `from`: says whether it did, and gives the chunk as [`VolumeIndex::map`] does.
    pub fn relocate(
        &mut self,
        block: u64,
        from: BlockPlace,
        to: Location,
        usage: &mut Usage,
    ) -> (bool, Option<u64>) {
        let (chunk, block) = split(BlockRange { block, count: 1 });
        let Some(page) = self.pages.get_mut(&chunk) else { return (false, None) };
        if page.is_lost() {
            return (false, None);
        }
        let clean = !page.is_dirty();
        let moved = page.relocate(block, from, to, usage);
        (moved, (moved && clean).then_some(chunk))
    }

    /// Where a block stands, after it was given the checksum of a copy (a planted bug).
    pub fn forge(&mut self, block: u64, copy: BlockPlace, usage: &mut Usage) -> BlockPlace {
        let Some(place) = self.place(block) else { return copy };
        let (range, sums) = (BlockRange { block, count: 1 }, std::iter::once(copy.checksum));
        let at = self.page(range).0.map_or(LogIndex(0), Page::changed_at);
        self.map(range, place, sums, at, None, usage);
        BlockPlace { checksum: copy.checksum, ..place }
    }

    /// Where a block stands.
    pub fn place(&self, block: u64) -> Option<BlockPlace> {
        let (page, block) = self.page(BlockRange { block, count: 1 });
        page?.get(block)
    }

    /// Whether a block, or what it was in a snapshot, stands at a place.
    pub fn refers_to(&self, block: u64, place: BlockPlace) -> bool {
        let (page, block) = self.page(BlockRange { block, count: 1 });
        page.is_some_and(|page| page.refers_to(block, place))
    }

    /// Counts the live blocks of all pages, snapshots included. `stored` gives what the store holds of a page
    /// whose table is out of memory.
    pub fn recount(&self, usage: &mut Usage, stored: impl Fn(u64) -> PageContent) {
        for (chunk, page) in &self.pages {
            if page.is_lost() {
                continue;
            }
            if page.is_cold() {
                let granules = stored(*chunk);
                let places =
                    granules.iter().flat_map(|(_, granule)| granule.places.iter().flatten());
                places.for_each(|(segment, ..)| usage.add(*segment, 1));
                continue;
            }
            let kept = page.kept().filter_map(|(.., was)| was.place());
            page.iter().map(|(_, place)| place).chain(kept).for_each(|p| usage.add(p.segment, 1));
        }
    }

    /// Does something to every page, each with its granules that have not seen the entry `at`.
    fn each_page(
        &mut self,
        at: LogIndex,
        usage: &mut Usage,
        mut run: impl FnMut(&mut Page, u64, &mut Usage) -> bool,
    ) -> Vec<u64> {
        let (mut soiled, mut before, mut after) =
            (Vec::new(), Footprint::default(), Footprint::default());
        for (chunk, page) in &mut self.pages {
            let fresh = self.ahead.get(chunk).map_or(u64::MAX, |seen| fresh_of(seen, at));
            before += page.footprint();
            let clean = !page.is_dirty();
            if run(page, fresh, usage) && clean {
                soiled.push(*chunk);
            }
            after += page.footprint();
        }
        self.account(before, after, usage);
        soiled.sort_unstable();
        soiled
    }

    /// The granules of a chunk that have not seen the entry `at`.
    fn fresh(&self, chunk: u64, at: LogIndex) -> u64 {
        if self.ahead.is_empty() {
            return u64::MAX;
        }
        self.ahead.get(&chunk).map_or(u64::MAX, |seen| fresh_of(seen, at))
    }

    /// The next granule of a chunk to be given to the checkpoint of a number, and whether none holds it
    /// yet, when all entries up to `applied` are applied.
    pub fn take_dirty(
        &mut self,
        chunk: u64,
        applied: LogIndex,
        checkpoint: u64,
    ) -> Option<(u8, bool, Granule)> {
        let (number, fresh, mut granule) = self.pages.get_mut(&chunk)?.take_dirty(checkpoint)?;
        if let Some(seen) = self.ahead.get(&chunk) {
            // The last change of the page may be one that this granule has not seen yet.
            granule.changed_at = seen[usize::from(number)].max(applied);
        }
        Some((number, fresh, granule))
    }

    /// No checkpoint holds anything any more. Gives the chunks that changed since.
    pub fn store_is_lost(&mut self) -> Vec<u64> {
        let pages = self.pages.iter_mut();
        pages.filter_map(|(chunk, page)| page.store_is_lost().then_some(*chunk)).collect()
    }

    /// Takes a granule of a chunk from a checkpoint that is of the entries up to `applied`.
    pub fn restore(
        &mut self,
        (chunk, number): (u64, u8),
        granule: &Granule,
        applied: LogIndex,
        usage: &mut Usage,
    ) {
        let page = self.pages.entry(chunk).or_default();
        let before = page.footprint();
        page.restore(number, granule, usage);
        let after = page.footprint();
        self.account(before, after, usage);
        if granule.changed_at > applied {
            self.note_seen(chunk, number, granule.changed_at);
        }
    }

    /// Every entry that any granule has seen is applied.
    pub fn caught_up(&mut self) {
        self.ahead = FxHashMap::default();
    }

    /// The page that `range` lies in, and the number of its first block there.
    pub fn page(&self, range: BlockRange) -> (Option<&Page>, usize) {
        let (chunk, block) = split(range);
        let page = self.pages.get(&chunk);
        page.inspect(|page| page.note_used());
        (page, block)
    }

    /// A page, without its counting as used.
    pub fn peek(&self, chunk: u64) -> Option<&Page> {
        self.pages.get(&chunk)
    }

    /// Blocks that are mapped.
    pub fn mapped_blocks(&self) -> u64 {
        self.mapped
    }

    /// Blocks that are kept for snapshots.
    pub fn kept_blocks(&self) -> u64 {
        self.kept
    }

    /// Bytes of memory in use.
    pub fn memory(&self) -> u64 {
        let slot = size_of::<u64>() + size_of::<Page>() + 1;
        // Of eight places of the directory one is kept free.
        self.bytes + (self.pages.capacity() * slot) as u64 / 7 * 8
    }

    /// All pages with their chunk numbers, in order.
    pub fn pages(&self) -> Vec<(u64, &Page)> {
        let mut pages: Vec<_> = self.pages.iter().map(|(chunk, page)| (*chunk, page)).collect();
        pages.sort_unstable_by_key(|(chunk, _)| *chunk);
        pages
    }

    fn account(&mut self, before: Footprint, after: Footprint, usage: &mut Usage) {
        self.mapped = self.mapped + after.mapped - before.mapped;
        self.kept = self.kept + after.kept - before.kept;
        self.bytes = self.bytes + after.bytes - before.bytes;
        usage.tables = usage.tables + after.tables - before.tables;
        usage.cold = usage.cold + after.cold - before.cold;
    }
}

/// The finalizer of splitmix64 over a running value.
pub(crate) fn mix(digest: u64, value: u64) -> u64 {
    let mut z = (digest ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn unseen() -> Box<[LogIndex; GRANULES]> {
    Box::new([LogIndex(0); GRANULES])
}

/// The granules that have not seen the entry `at`, a bit for each.
fn fresh_of(seen: &[LogIndex; GRANULES], at: LogIndex) -> u64 {
    seen.iter().enumerate().fold(0, |fresh, (i, seen)| fresh | u64::from(*seen < at) << i)
}

/// The runs of blocks in a range that lie in granules of `fresh`: first block and number.
fn fresh_runs(block: usize, count: usize, fresh: u64) -> impl Iterator<Item = (usize, usize)> {
    let (mut next, end) = (block, block + count);
    std::iter::from_fn(move || {
        while next < end {
            let start = next;
            next = match fresh {
                u64::MAX => end,
                _ => end.min((start / GRANULE_BLOCKS + 1) * GRANULE_BLOCKS),
            };
            if fresh >> (start / GRANULE_BLOCKS) & 1 == 1 {
                return Some((start, next - start));
            }
        }
        None
    })
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
        index.map(
            range(1030, 3),
            place(1, 100),
            [7, 8, 9].into_iter(),
            LogIndex(4),
            None,
            &mut usage,
        );
        index.map(range(1031, 1), place(2, 5), [88].into_iter(), LogIndex(6), None, &mut usage);
        let (page, first) = index.page(range(1030, 3));
        let page = page.unwrap();
        assert_eq!(first, 6);
        assert_eq!(page.changed_at(), LogIndex(6));
        assert_eq!(page.get(5), None);
        assert_eq!(page.get(6), Some(BlockPlace { checksum: 7, ..place(1, 100) }));
        assert_eq!(page.get(7), Some(BlockPlace { checksum: 88, ..place(2, 5) }));
        assert_eq!(page.get(8), Some(BlockPlace { checksum: 9, ..place(1, 102) }));
        assert_eq!(index.mapped_blocks(), 3);

        index.unmap(range(1024, 8), false, LogIndex(9), None, &mut usage);
        assert_eq!(index.mapped_blocks(), 1);
        let (page, _) = index.page(range(1024, 1));
        assert_eq!(page.unwrap().changed_at(), LogIndex(9));
    }

    #[test]
    fn an_empty_page_gives_its_memory_back_and_keeps_its_change() {
        let (mut index, mut usage) = (VolumeIndex::new(), Usage::default());
        index.map(range(0, 1), place(0, 1), [1].into_iter(), LogIndex(1), None, &mut usage);
        let full = index.memory();
        index.unmap(range(0, 1024), false, LogIndex(2), None, &mut usage);
        assert!(index.memory() + Page::TABLE_BYTES <= full);
        assert_eq!(index.page(range(0, 1)).0.unwrap().changed_at(), LogIndex(2));
        assert_eq!(index.page(range(0, 1)).0.unwrap().get(0), None);
    }

    #[test]
    fn unmapping_what_was_never_written_changes_nothing() {
        let (mut index, mut usage) = (VolumeIndex::new(), Usage::default());
        index.unmap(range(5, 5), false, LogIndex(3), None, &mut usage);
        assert!(index.page(range(5, 5)).0.is_none());
        assert_eq!(index.mapped_blocks(), 0);
    }

    #[test]
    fn what_a_clone_unmaps_takes_a_bit_a_block() {
        let (mut index, mut usage) = (VolumeIndex::new(), Usage::default());
        index.unmap(range(0, 1024), true, LogIndex(3), None, &mut usage);
        let (page, small) = (index.page(range(0, 1)).0.unwrap(), index.memory());
        assert_eq!((page.state(None, 0), page.zeros().count()), (BlockState::Zeros, 1024));
        index.map(range(7, 1), place(0, 1), [1].into_iter(), LogIndex(4), None, &mut usage);
        let page = index.page(range(0, 1)).0.unwrap();
        assert_eq!((page.state(None, 7).place().is_some(), page.zeros().count()), (true, 1023));
        assert!(small + Page::TABLE_BYTES <= index.memory());
        index.clear(&mut usage);
        assert_eq!(index.mapped_blocks(), 0);
    }

    #[test]
    #[should_panic(expected = "crosses the border of a chunk")]
    fn a_range_across_chunks_is_a_bug_of_the_caller() {
        VolumeIndex::new().unmap(range(1023, 2), false, LogIndex(1), None, &mut Usage::default());
    }

    #[test]
    fn an_entry_has_twelve_bytes() {
        assert_eq!(Page::TABLE_BYTES, 12 * 1024 + 16);
    }
}
