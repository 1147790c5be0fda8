//! Where blocks stand, as the scrub and the repairs of others want to know it, and digests of them.

use super::Replica;
use crate::index::{BlockPlace, Page};
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::command::BlockRange;
use basalt_wire::disk::moved::MovedBlock;
use basalt_wire::ids::{LogIndex, VolumeId};
use std::collections::BinaryHeap;

impl Replica {
    /// The first pages from one on that changed after an entry, in order, but for deleted volumes'.
    pub fn pages_from(
        &self,
        since: LogIndex,
        from: (VolumeId, u64),
        most: usize,
    ) -> Vec<(VolumeId, u64)> {
        let mut first = BinaryHeap::new();
        for (id, volume) in self.volumes.iter().filter(|(id, v)| **id >= from.0 && !v.deleted) {
            let chunks = volume.index.changed_after(since);
            for key in chunks.map(|chunk| (*id, chunk)).filter(|key| *key >= from) {
                if first.len() < most || first.peek() > Some(&key) {
                    first.push(key);
                    if first.len() > most {
                        first.pop();
                    }
                }
            }
        }
        first.into_sorted_vec()
    }

    /// Where the blocks of a range of one chunk stand, ordered by place; with those that are `kept` for
    /// snapshots or without.
    pub fn places(&self, id: VolumeId, range: BlockRange, kept: bool) -> Vec<MovedBlock> {
        let Some(volume) = self.volumes.get(&id) else { return Vec::new() };
        let (Some(page), first) = volume.index.page(range) else { return Vec::new() };
        let start = range.block - range.block % CHUNK_BLOCKS;
        let snapshots = page.kept().filter(|_| kept);
        let snapshots = snapshots.filter_map(|(_, block, was)| Some((block, was.place()?)));
        let inside = |(block, _): &(usize, BlockPlace)| {
            (first..first + range.count as usize).contains(block)
        };
        let mut places: Vec<MovedBlock> = page
            .iter()
            .chain(snapshots)
            .filter(inside)
            .map(|(block, place)| MovedBlock {
                volume: id,
                block: start + block as u64,
                checksum: place.checksum,
                from: Some((place.segment, place.block)),
            })
            .collect();
        places.sort_unstable_by_key(|block| block.from);
        places
    }

    /// Where a block stands with this content, as it is or in snapshots.
    pub fn copies(&self, id: VolumeId, block: u64, checksum: u32) -> Vec<BlockPlace> {
        let places = self.places(id, BlockRange { block, count: 1 }, true);
        let same = places.into_iter().filter(|place| place.checksum == checksum);
        same.filter_map(|place| {
            let (segment, block) = place.from?;
            Some(BlockPlace { segment, block, checksum })
        })
        .collect()
    }

    /// Whether a volume was heard of.
    pub fn knows(&self, id: VolumeId) -> bool {
        self.volumes.contains_key(&id)
    }

    /// A digest of what a page holds, wherever its blocks stand. 0 for a page that holds nothing; nothing for
    /// one that is to be emptied.
    pub fn page_digest(&self, id: VolumeId, chunk: u64) -> Option<u64> {
        let Some(volume) = self.volumes.get(&id) else { return Some(0) };
        volume.index.peek(chunk).map_or(Some(0), Page::digest)
    }

    /// The same as of an entry that is applied, if that can be told: the page has not changed since.
    pub fn page_digest_at(&self, id: VolumeId, chunk: u64, at: LogIndex) -> Option<u64> {
        let volume = self.volumes.get(&id);
        // The pages of a deleted volume do not tell when they were given back.
        if volume.is_some_and(|v| v.deleted || v.index.changed_at(chunk) > at) {
            return None;
        }
        self.page_digest(id, chunk)
    }

    /// Has a block forgotten, as by a fault of memory or program: nothing notices at once. False if
    /// it was not mapped, or counts as seen of a later entry.
    #[cfg(any(test, feature = "planted"))]
    pub(crate) fn forget_block(&mut self, id: VolumeId, block: u64) -> bool {
        let before = self.mapped_blocks();
        let Some(volume) = self.volumes.get_mut(&id) else { return false };
        if volume.index.is_cold(block / CHUNK_BLOCKS) {
            return false;
        }
        let at = volume.index.changed_at(block / CHUNK_BLOCKS);
        let page =
            volume.index.unmap(BlockRange { block, count: 1 }, false, at, None, &mut self.usage);
        self.changes.pages.extend(page.map(|chunk| (id, chunk)));
        self.mapped_blocks() < before
    }
}
