//! Pages whose tables are out of memory, as the rest of the shard has to know of them.
//!
//! Whoever looks into a page asks first whether its table is there, has it loaded if it is not, and waits. What
//! needs no table is done without: digests, the entry of the last change, and giving back what a volume held,
//! which is noted and done page by page as the tables come (the page is *doomed*).

use super::Replica;
use crate::index::{Cooling, CoolingRule, PageContent};
use crate::mark;
use crate::planted::Bug;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::command::{BlockRange, CommandReader, CommandView};
use basalt_wire::ids::{LogIndex, VolumeId};
use bytes::Bytes;

/// The page of a volume: the chunk that it is of.
pub type PageKey = (VolumeId, u64);

fn key(volume: VolumeId, range: BlockRange) -> PageKey {
    (volume, range.block / CHUNK_BLOCKS)
}

impl Replica {
    /// Whether the table of a page is out of memory.
    pub fn is_cold(&self, (volume, chunk): PageKey) -> bool {
        self.volumes.get(&volume).is_some_and(|volume| volume.index.is_cold(chunk))
    }

    /// Asks that a page stay in memory for a while; the time is counted by [`crate::consensus::Loads`].
    /// Says whether all that is known of the page is there.
    pub fn hold(&self, (volume, chunk): PageKey, clock: u64) -> bool {
        self.volumes.get(&volume).is_none_or(|volume| volume.index.hold(chunk, clock))
    }

    /// Of how many pages the table is out of memory.
    pub fn cold_pages(&self) -> u64 {
        self.usage.cold()
    }

    /// The pages that the commands of an entry change.
    pub fn pages_of_entry(data: &Bytes) -> Vec<PageKey> {
        let Ok(reader) = CommandReader::new(data) else { return Vec::new() };
        let changed = |command| match command {
            CommandView::Write { volume, range, .. }
            | CommandView::Unmap { volume, range, .. }
            | CommandView::Fill { volume, range, .. } => Some(key(volume, range)),
            _ => None,
        };
        reader.filter_map(|command| changed(command.ok()?)).collect()
    }

    /// The pages that a read of a range looks into.
    pub fn pages_of_read(
        &self,
        volume: VolumeId,
        range: BlockRange,
    ) -> impl Iterator<Item = PageKey> + '_ {
        self.lineage(volume).map(move |volume| key(volume, range))
    }

    /// Takes the table of a page from the store. Fails if it is not the one that left memory.
    pub fn warm(
        &mut self,
        (id, chunk): PageKey,
        content: &PageContent,
        clock: u64,
    ) -> Result<(), &'static str> {
        let careless = self.planted.is(Bug::PageLeavesEarly);
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(()) };
        let index = &mut volume.index;
        if index.warm(chunk, content, clock, careless, &mut self.usage)? {
            mark!("page emptied that was out of memory");
            self.changes.pages.push((id, chunk));
        }
        if volume.index.list(chunk) {
            self.idle.push_back((id, chunk));
        }
        self.settle_doomed(id);
        Ok(())
    }

    /// Goes on with a volume of which no page may be left that is to be emptied.
    pub(super) fn settle_doomed(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if volume.index.has_doomed() {
            return;
        }
        self.doomed.remove(&id);
        if volume.deleted {
            mark!("deleted volume given back page by page");
            volume.index.clear(&mut self.usage);
            self.changes.volumes.push(id);
        }
    }

    /// Has tables leave memory, so many at most, and looks at no more than so many: gives how many went.
    pub fn cool(&mut self, looks: usize, most: u64, rule: &CoolingRule) -> u64 {
        let mut gone = 0;
        for _ in 0..looks.min(self.idle.len()) {
            if gone == most {
                break;
            }
            let Some((id, chunk)) = self.idle.pop_front() else { break };
            let Some(volume) = self.volumes.get_mut(&id) else { continue };
            match volume.index.cool(chunk, rule, &mut self.usage) {
                Cooling::Cold => gone += 1,
                Cooling::Later => self.idle.push_back((id, chunk)),
                Cooling::Never => {}
            }
        }
        gone
    }

    /// Pages that may go out of memory some time, but for those that changed.
    pub fn idle_pages(&self) -> usize {
        self.idle.len()
    }

    /// The first pages that are to be emptied once their tables are here.
    pub fn doomed_pages(&self, most: usize) -> Vec<PageKey> {
        let volumes = self.doomed.iter().filter_map(|id| Some((*id, self.volumes.get(id)?)));
        let pages = volumes.flat_map(|(id, v)| v.index.doomed().map(move |chunk| (id, chunk)));
        pages.take(most).collect()
    }

    /// Gives back what a deleted volume holds.
    pub(super) fn give_back(&mut self, at: LogIndex, id: VolumeId) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let pages = volume.index.give_back(at, &mut self.usage);
        if volume.index.has_doomed() {
            mark!("volume deleted whose pages are not all in memory");
            self.doomed.insert(id);
        }
        self.changes.pages.extend(pages.into_iter().map(|chunk| (id, chunk)));
    }

    /// Goes on giving back what deleted volumes held when a checkpoint was taken.
    pub(super) fn give_back_deleted(&mut self, at: LogIndex) {
        let left = |volume: &super::Volume| volume.deleted && !volume.index.is_empty();
        let mut deleted: Vec<VolumeId> =
            self.volumes.iter().filter(|(_, volume)| left(volume)).map(|(id, _)| *id).collect();
        deleted.sort_unstable();
        for id in deleted {
            self.give_back(at, id);
            self.changes.volumes.push(id);
        }
    }

    /// All granules of a page came from a checkpoint: its table stays in memory or does not. Says whether one
    /// stayed that may leave.
    pub fn page_restored(&mut self, (id, chunk): PageKey, keep: bool) -> bool {
        let Some(volume) = self.volumes.get_mut(&id) else { return false };
        if !volume.index.list(chunk) {
            // It maps nothing, or holds something for snapshots.
            return false;
        }
        if !keep {
            let rule = CoolingRule { durable: 0, held_since: u64::MAX, careless: false };
            return volume.index.cool(chunk, &rule, &mut self.usage) != Cooling::Cold;
        }
        self.idle.push_back((id, chunk));
        true
    }
}
