//! Bringing a replica up by pages: what the leader tells of its pages, and what the follower makes of it.
//!
//! While this lasts, and until everything up to [`Replica::ahead`] is applied, pages may hold later
//! entries than the one that is applied. Entries applied in order over such pages give the same pages,
//! but nothing may be read before that. This is so only while no volume has generations: what a block was
//! when one was frozen can not be told from a page that is ahead of it. No session is opened or goes on in
//! a group that has any, so that no page that came in a session has seen an entry behind a freeze.

use super::read::Plan;
use super::{Replica, Volume};
use crate::index::{BlockPlace, Page};
use crate::log::Location;
use crate::mark;
use crate::planted::Bug;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::command::BlockRange;
use basalt_wire::ids::{LogIndex, VolumeId};
use basalt_wire::pages::{PageSums, VolumeState};
use std::collections::BinaryHeap;

/// The range of a single block of a chunk.
fn single(chunk: u64, block: u16) -> BlockRange {
    BlockRange { block: chunk * CHUNK_BLOCKS + u64::from(block), count: 1 }
}

impl Replica {
    /// No page holds a later entry than this one, or than the one that is applied.
    pub fn ahead(&self) -> LogIndex {
        self.ahead
    }

    /// Whether pages may hold entries that are not applied yet.
    pub fn is_fuzzy(&self) -> bool {
        self.applied < self.ahead
    }

    /// Pages may hold entries up to this one from here on.
    pub fn note_ahead(&mut self, at: LogIndex) {
        self.ahead = self.ahead.max(at);
    }

    /// Whether some volume is not, or not any more, in its first generation: pages alone do not tell what
    /// it holds.
    pub fn has_generations(&self) -> bool {
        let later = |v: &Volume| v.generations.current().0 > 0 || v.generations.newest().is_some();
        self.volumes.values().any(|volume| !volume.deleted && later(volume))
    }

    /// All volumes, ordered by id.
    pub fn volume_states(&self) -> Vec<VolumeState> {
        let volumes = self.volumes.iter();
        let mut states: Vec<VolumeState> = volumes
            .map(|(id, v)| VolumeState { volume: *id, epoch: v.epoch, deleted: v.deleted })
            .collect();
        states.sort_unstable_by_key(|state| state.volume);
        states
    }

    /// The first pages, from one on, that changed after an entry, in order; and whether there are more.
    pub fn changed_pages(
        &self,
        since: LogIndex,
        from: (VolumeId, u64),
        most: usize,
    ) -> (Vec<PageSums>, bool) {
        // As if an entry that changed a page had been taken for one that the follower has.
        let skipped = if self.planted.is(Bug::PagesSkipped) { 8 } else { 0 };
        let since = LogIndex(since.0 + skipped);
        let mut first = BinaryHeap::with_capacity(most + 2);
        for (id, volume) in self.volumes.iter().filter(|(id, _)| **id >= from.0) {
            for chunk in volume.index.changed_after(since) {
                let key = (*id, chunk);
                if key >= from && (first.len() <= most || first.peek() > Some(&key)) {
                    first.push(key);
                    if first.len() > most + 1 {
                        first.pop();
                    }
                }
            }
        }
        let more = first.len() > most;
        let mut keys = first.into_sorted_vec();
        keys.truncate(most);
        (keys.into_iter().map(|(id, chunk)| self.page_sums(id, chunk)).collect(), more)
    }

    fn page_sums(&self, volume: VolumeId, chunk: u64) -> PageSums {
        let page = self.page(volume, chunk);
        let sums = page.into_iter().flat_map(Page::iter);
        let sums = sums.map(|(block, place)| (block as u16, place.checksum)).collect();
        PageSums { volume, chunk, changed_at: self.page_changed_at(volume, chunk), sums }
    }

    fn page(&self, volume: VolumeId, chunk: u64) -> Option<&Page> {
        self.volumes.get(&volume)?.index.page(single(chunk, 0)).0
    }

    fn page_changed_at(&self, volume: VolumeId, chunk: u64) -> LogIndex {
        self.page(volume, chunk).map_or(LogIndex(0), Page::changed_at)
    }

    /// Blocks of a page as they are now: the numbers of those asked for with their checksums, and the
    /// plan to read those that are mapped.
    pub fn plan_blocks(
        &self,
        volume: VolumeId,
        chunk: u64,
        blocks: &[u16],
    ) -> (Vec<(u16, Option<u32>)>, Plan) {
        let page = self.page(volume, chunk);
        let places: Vec<(u16, Option<BlockPlace>)> =
            blocks.iter().map(|b| (*b, page.and_then(|page| page.get(usize::from(*b))))).collect();
        let plan = Plan::of(places.iter().filter_map(|(_, place)| *place));
        (places.into_iter().map(|(b, place)| (b, place.map(|p| p.checksum))).collect(), plan)
    }

    /// Compares a page with what the leader has: gives the blocks that the leader has and this replica
    /// does not, and unmaps those that only this one has.
    pub fn compare(&mut self, offered: &PageSums) -> Vec<u16> {
        let (id, chunk) = (offered.volume, offered.chunk);
        self.known_volume(id);
        let page = self.page(id, chunk);
        let mut theirs = offered.sums.iter().copied().peekable();
        let (mut wanted, mut gone) = (Vec::new(), Vec::new());
        for block in 0..CHUNK_BLOCKS as u16 {
            let sum = theirs.next_if(|(number, _)| *number == block).map(|(_, sum)| sum);
            let own = page.and_then(|page| page.get(usize::from(block))).map(|p| p.checksum);
            match (sum, own) {
                (Some(_), own) if sum != own => wanted.push(block),
                (None, Some(_)) => gone.push(block),
                _ => {}
            }
        }
        self.unmap_blocks((id, chunk), &gone, offered.changed_at);
        wanted
    }

    /// The volume, made known if it is not.
    fn known_volume(&mut self, id: VolumeId) -> &mut Volume {
        let changes = &mut self.changes.volumes;
        self.volumes.entry(id).or_insert_with(|| {
            changes.push(id);
            Volume::default()
        })
    }

    /// Unmaps blocks of a page that the leader does not map; the page changed at an entry, or later.
    pub fn unmap_blocks(&mut self, (id, chunk): (VolumeId, u64), blocks: &[u16], at: LogIndex) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let at = at.max(volume.index.changed_at(chunk));
        let touched = volume.index.touch(chunk, at);
        self.changes.pages.extend(touched.map(|chunk| (id, chunk)));
        for block in blocks {
            let dirtied = volume.index.unmap(single(chunk, *block), at, None, &mut self.usage);
            self.changes.pages.extend(dirtied.map(|chunk| (id, chunk)));
        }
    }

    /// Maps blocks of a page, with their checksums, to consecutive places from `first` on; the page
    /// changed at an entry, or later.
    pub fn fill(
        &mut self,
        (id, chunk): (VolumeId, u64),
        blocks: &[(u16, u32)],
        first: Location,
        at: LogIndex,
    ) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let at = at.max(volume.index.changed_at(chunk));
        for ((number, checksum), block) in blocks.iter().zip(first.block..) {
            let place = BlockPlace { segment: first.segment, block, checksum: *checksum };
            let range = single(chunk, *number);
            let sums = [*checksum].into_iter();
            let dirtied = volume.index.map(range, place, sums, at, None, &mut self.usage);
            self.changes.pages.extend(dirtied.map(|chunk| (id, chunk)));
        }
    }

    /// Takes the state as of an entry: the pages were brought up, these are the volumes.
    pub fn start_at(&mut self, applied: LogIndex, states: &[VolumeState]) {
        for state in states {
            let volume = self.volumes.entry(state.volume).or_default();
            (volume.epoch, volume.deleted) = (state.epoch, state.deleted);
            if state.deleted {
                mark!("volume deleted while its replica was away");
                volume.generations.forget();
                volume.index.clear(&mut self.usage);
            }
            self.changes.volumes.push(state.volume);
        }
        self.applied = applied;
        self.catch_up();
    }
}
