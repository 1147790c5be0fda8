//! Who still needs a block of the log, and pointing them at a copy of it.
//!
//! Where blocks stand is each replica's own matter: no entry of the Raft log and no digest says it.

use super::Replica;
use crate::index::{BlockPlace, Usage};
use crate::log::Location;
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
    }

    /// Points a block at a copy of it, if it still stands at `from`; says whether it did. The page is
    /// given to the next checkpoint.
    pub fn relocate(&mut self, id: VolumeId, block: u64, from: BlockPlace, to: Location) -> bool {
        let Some(volume) = self.volumes.get_mut(&id) else { return false };
        let (moved, page) = volume.index.relocate(block, from, to, &mut self.usage);
        self.changes.pages.extend(page.map(|chunk| (id, chunk)));
        moved
    }

    /// Live blocks by segment, counted anew from all pages: what [`Replica::usage`] must be equal to.
    pub fn recount(&self) -> Usage {
        let mut usage = Usage::default();
        for volume in self.volumes.values() {
            volume.index.recount(&mut usage);
        }
        usage
    }

    /// Mapped blocks of each volume that has any, in order.
    pub fn mapped_by_volume(&self) -> Vec<(VolumeId, u64)> {
        let all = self.volumes.iter().map(|(id, volume)| (*id, volume.index.mapped_blocks()));
        let mut all: Vec<_> = all.filter(|(_, blocks)| *blocks > 0).collect();
        all.sort_unstable();
        all
    }
}
