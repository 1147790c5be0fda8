//! Flattening: a clone gets blocks of its own wherever it reads as its parent does, and hangs on it no more.
//!
//! The leader copies: it reads what the parent holds and proposes it as a *fill*, which each replica puts where
//! the clone is open. No instant of the clone reads otherwise afterwards, now or in its snapshots. So fills may
//! come in any order, twice, late and beside every write; and what is open never becomes more, so that a range
//! that was filled once is filled for good. When all are, *detach* ends the clone.
//!
//! What a fill changes depends on the clone's own record and page alone, as all that is done to a clone: which
//! blocks are filled stands in the command.

use super::read::Plan;
use super::{Outcome, Replica};
use crate::index::BlockPlace;
use crate::mark;
use crate::planted::Bug;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::blockset::BlockSet;
use basalt_wire::command::BlockRange;
use basalt_wire::frame::Refusal;
use basalt_wire::ids::{LogIndex, SnapshotId, VolumeId};

impl Replica {
    /// Whether blocks of a clone can be filled from here now.
    pub fn check_fill(&self, id: VolumeId, parent: SnapshotId) -> Outcome {
        match self.known(id) {
            _ if self.is_fuzzy() => Err(Refusal::Behind),
            None => Err(Refusal::Behind),
            Some(volume) if volume.deleted => Err(Refusal::NoSnapshot),
            Some(volume) if volume.parent.is_some_and(|other| other != parent) => {
                Err(Refusal::Exists)
            }
            Some(_) => Ok(()),
        }
    }

    /// The blocks of a range of one chunk that a clone shares with its parent, and how to read them.
    pub fn plan_fill(&self, id: VolumeId, range: BlockRange) -> (BlockSet, Plan) {
        let layers = self.layers(id, range, None);
        let (short, shows) =
            (self.planted.is(Bug::FillShort), self.planted.is(Bug::FillShowsUnmapped));
        let (mut blocks, mut places) = (BlockSet::default(), Vec::new());
        for n in 0..range.count - u32::from(short) {
            if let Some(place) = layers.shared(n as usize, shows) {
                blocks.insert(n);
                places.push(place);
            }
        }
        (blocks, Plan::of(places.into_iter()))
    }

    /// Gives a clone blocks, whose content begins at a place in the log, as far as they are open. A volume
    /// that hangs on nothing any more has them already.
    pub(super) fn fill(
        &mut self,
        (id, parent): (VolumeId, SnapshotId),
        range: BlockRange,
        blocks: impl Iterator<Item = (u64, u32)>,
        first: BlockPlace,
        at: LogIndex,
    ) -> Outcome {
        let shows = self.planted.is(Bug::FillShowsUnmapped);
        let Some(volume) = self.volumes.get_mut(&id).filter(|v| v.parent == Some(parent)) else {
            mark!("late fill");
            return self.check_detached(id);
        };
        let places = blocks.zip(first.block..).map(|((block, checksum), number)| {
            (block, BlockPlace { segment: first.segment, block: number, checksum })
        });
        let chunk = range.block / CHUNK_BLOCKS;
        let page = volume.index.fill(chunk, places, shows, at, &mut self.usage);
        self.changes.pages.extend(page.map(|chunk| (id, chunk)));
        mark!("clone filled");
        Ok(())
    }

    /// Makes a clone a volume like any other. Done again it changes nothing.
    pub(super) fn detach(&mut self, id: VolumeId, parent: SnapshotId) -> Outcome {
        let Some(volume) = self.volumes.get_mut(&id).filter(|v| v.parent == Some(parent)) else {
            return self.check_detached(id);
        };
        volume.detached = true;
        self.set_parent(id, None);
        self.changes.volumes.push(id);
        mark!("clone detached");
        Ok(())
    }

    /// Whether a volume that does not hang on a snapshot is as if it had been detached from it.
    fn check_detached(&self, id: VolumeId) -> Outcome {
        match self.volumes.get(&id) {
            Some(volume) if volume.deleted => Err(Refusal::NoSnapshot),
            Some(volume) if volume.parent.is_some() => Err(Refusal::Exists),
            _ => Ok(()),
        }
    }
}
