//! Who still needs a block of the log, and pointing them at a copy of it.
//!
//! Where blocks stand is each replica's own matter: no entry of the Raft log and no digest says it.

use super::{PageKey, Replica, Volume};
use crate::index::{BlockPlace, PageContent, Usage};
use crate::log::Location;
use crate::planted::Bug;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::command::BlockRange;
use basalt_wire::disk::moved::MovedBlock;
use basalt_wire::ids::VolumeId;

impl Replica {
    /// Live blocks by segment.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Whether a block of a volume stands at a place. The checksum belongs to the place: after the
    /// segment was used again, other content may stand at the same numbers.
    pub fn is_live(&self, id: VolumeId, block: u64, place: BlockPlace) -> bool {
        self.volumes.get(&id).is_some_and(|volume| volume.index.refers_to(block, place))
            || self.staged.refers_to(id, block, place)
    }

    /// Points a block at a copy of it, if it still stands at `from`; says whether it did. The page is
    /// given to the next checkpoint.
    pub fn relocate(&mut self, id: VolumeId, block: u64, from: BlockPlace, to: Location) -> bool {
        if let Some(place) = self.staged.find_mut(id, block, from) {
            (place.segment, place.block) = (to.segment, to.block);
            self.usage.sub(from.segment, 1);
            self.usage.add(to.segment, 1);
            return true;
        }
        let Some(volume) = self.volumes.get_mut(&id) else { return false };
        let stands = volume.index.place(block);
        let same = stands.is_some_and(|p| (p.segment, p.block) == (from.segment, from.block));
        let blind = self.planted.is(Bug::MoveAppliedBlindly);
        let from = match blind || self.planted.is(Bug::BadBlockCopiedOn) && same {
            true => volume.index.forge(block, from, &mut self.usage),
            false => from,
        };
        let (moved, page) = volume.index.relocate(block, from, to, &mut self.usage);
        self.changes.pages.extend(page.map(|chunk| (id, chunk)));
        moved
    }

    /// Points blocks at their copies, which stand one behind the other from `at` on and are durable. A
    /// block that does not stand any more where it was copied from stays as it is. Gives the number of
    /// those that were pointed anew.
    pub fn moved(&mut self, blocks: &[MovedBlock], at: Location) -> u64 {
        let mut moved = 0;
        for (to, block) in (at.block..).zip(blocks) {
            let Some((segment, from)) = block.from else { continue };
            let from = BlockPlace { segment, block: from, checksum: block.checksum };
            let to = Location { block: to, ..at };
            moved += u64::from(self.relocate(block.volume, block.block, from, to));
        }
        moved
    }

    /// Live blocks by segment, counted anew from all pages: what [`Replica::usage`] must be equal to. `stored`
    /// gives what the store holds of pages whose tables are not in memory.
    pub fn recount(&self, stored: impl Fn(PageKey) -> PageContent) -> Usage {
        let mut usage = Usage::default();
        for (id, volume) in &self.volumes {
            volume.index.recount(&mut usage, |chunk| stored((*id, chunk)));
        }
        self.staged.places().for_each(|place| usage.add(place.segment, 1));
        usage
    }

    /// So many blocks more are live once a range is written: those that are not mapped, and in a volume
    /// with snapshots all, for what they were may be kept.
    pub fn unmapped_blocks(&self, id: VolumeId, range: BlockRange) -> u32 {
        if self.volumes.get(&id).is_some_and(|volume| volume.generations.newest().is_some()) {
            return range.count;
        }
        let page = self.volumes.get(&id).map(|volume| volume.index.page(range));
        let Some((Some(page), first)) = page else { return range.count };
        if page.is_cold() && page.mapped_blocks() == CHUNK_BLOCKS as u32 {
            return 0;
        }
        let blocks = first..first + range.count as usize;
        blocks.filter(|block| page.get(*block).is_none()).count() as u32
    }

    /// For each volume that has any live blocks, in order: those that it maps itself, with those that
    /// came from a peer and wait for others, and those that are kept for its snapshots alone.
    pub fn blocks_by_volume(&self) -> Vec<(VolumeId, u64, u64)> {
        let count = |(id, v): (&VolumeId, &Volume)| {
            let own = v.index.mapped_blocks() + self.staged.blocks_of(*id);
            (*id, own, v.index.kept_blocks())
        };
        let mut all: Vec<_> =
            self.volumes.iter().map(count).filter(|(_, own, kept)| own + kept > 0).collect();
        all.sort_unstable();
        all
    }
}
