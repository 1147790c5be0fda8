//! Pages that the store has lost: what they held is taken from another replica, all granules of a page at once.

use super::pages::{GRANULES, granule_with};
use super::{PageKey, Replica};
use crate::index::Loss;
use crate::mark;
use crate::planted::Bug;
use basalt_wire::disk::checkpoint::Place;
use basalt_wire::ids::LogIndex;
use basalt_wire::pages::{GranuleSums, HeldBlocks};

/// A granule as another replica told it.
#[derive(Clone, Debug)]
pub struct ToldGranule {
    /// What it holds.
    pub sums: GranuleSums,
    /// The entry that changed its page last.
    pub changed_at: LogIndex,
    /// It is as of this entry.
    pub at: LogIndex,
}

impl Replica {
    /// The store has lost a page whose table is out of memory.
    pub fn lose(&mut self, (id, chunk): PageKey) -> Loss {
        let Some(volume) = self.volumes.get_mut(&id) else { return Loss::Harmless };
        let mut loss = volume.index.lose(chunk, &mut self.usage);
        if loss == Loss::Needed && self.planted.is(Bug::LostPageIsEmpty) {
            volume.index.abandon(chunk, &mut self.usage);
            loss = Loss::Gone;
        }
        if loss == Loss::Gone {
            mark!("page lost that was to be emptied");
            self.changes.pages.push((id, chunk));
            self.settle_doomed(id);
        }
        loss
    }

    /// Whether the store has lost a page, and the last entry that emptied a part of it since it left memory.
    pub fn lost(&self, (volume, chunk): PageKey) -> Option<LogIndex> {
        self.volumes.get(&volume)?.index.lost(chunk)
    }

    /// Asks that a page stay in memory, as [`Replica::hold`] does. Says whether it is known which places it
    /// refers to: a lost one refers to none.
    pub fn hold_places(&self, page: PageKey, clock: u64) -> bool {
        self.hold(page, clock) || self.lost(page).is_some()
    }

    /// The blocks that came of granules of a page and wait for others.
    pub fn staged(&self, (volume, chunk): PageKey, numbers: &[u8]) -> Vec<HeldBlocks> {
        let held = |number: &u8| {
            let staged = self.staged.of((volume, chunk, *number));
            let mut blocks: Vec<(u8, u32)> =
                staged.map(|(block, at)| (block, at.checksum)).collect();
            blocks.sort_unstable();
            HeldBlocks { number: *number, blocks }
        };
        numbers.iter().map(held).collect()
    }

    /// Whether all blocks of a granule came.
    pub fn is_staged(&self, page: PageKey, sums: &GranuleSums) -> bool {
        granule_with(sums, LogIndex(0), self.find_staged(page, sums.number)).is_some()
    }

    /// Finds blocks of a granule among those that came, each once.
    fn find_staged(
        &self,
        (volume, chunk): PageKey,
        number: u8,
    ) -> impl FnMut(u8, u32) -> Option<Place> {
        let mut left: Vec<_> = self.staged.of((volume, chunk, number)).collect();
        move |block, checksum| {
            let at =
                left.iter().position(|(b, place)| *b == block && place.checksum == checksum)?;
            let (_, place) = left.swap_remove(at);
            Some((place.segment, place.block, place.checksum))
        }
    }

    /// Makes a lost page what was told of all its granules, each as of an entry of its own: entries up to that
    /// are not done to it again. Fails if a block is not there.
    pub fn recover(&mut self, page: PageKey, told: &[ToldGranule]) -> bool {
        assert_eq!(told.len(), usize::from(GRANULES), "a page is recovered as a whole");
        let granule = |one: &ToldGranule| {
            let find = self.find_staged(page, one.sums.number);
            Some((one.sums.number, granule_with(&one.sums, one.changed_at, find)?))
        };
        let Some(granules) = told.iter().map(granule).collect::<Option<Vec<_>>>() else {
            return false;
        };
        let Some(volume) = self.volumes.get_mut(&page.0) else { return false };
        volume.index.recover(page.1, granules.into_iter(), &mut self.usage);
        for one in told {
            self.note_ahead(one.at);
            self.note_seen((page.0, page.1, one.sums.number), one.at);
        }
        self.unstage_page(page);
        self.changes.pages.push(page);
        true
    }

    /// Forgets the blocks that came of a page and were not put to use.
    pub fn unstage_page(&mut self, (volume, chunk): PageKey) {
        for number in 0..GRANULES {
            let staged = self.staged.take((volume, chunk, number));
            staged.into_iter().for_each(|(_, place)| self.usage.sub(place.segment, 1));
        }
    }
}
