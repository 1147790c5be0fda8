//! Clones: volumes that read as a snapshot of another volume wherever they have nothing of their own.
//!
//! All volumes of a lineage put a chunk into the same group, so a block that a clone has neither written nor
//! unmapped is found without leaving the replica: in the page of its parent, at the generation that it was
//! cloned from, and so on upwards. A place in the log still belongs to one page alone.
//!
//! The parent of a volume is part of the group's replicated state, and no command changes what a snapshot
//! holds. So whoever has applied the clone's first entry reads the same below it, for good. A snapshot that a
//! clone hangs on is not dropped, its volume is not deleted and not reverted behind it.

use super::{Outcome, Replica, Volume};
use crate::index::{BlockPlace, BlockState, Page};
use crate::mark;
use crate::planted::Bug;
use basalt_wire::command::BlockRange;
use basalt_wire::frame::Refusal;
use basalt_wire::ids::{Generation, LogIndex, SnapshotId, VolumeId};
use std::collections::BTreeSet;

/// Volumes that a block of a clone may be looked for in, besides the clone itself.
pub const CLONE_DEPTH_MAX: usize = 16;

/// The clones of a group by the snapshots that they hang on.
#[derive(Default, Debug)]
pub(super) struct Clones(BTreeSet<(SnapshotId, VolumeId)>);

impl Clones {
    /// The newest snapshot of a volume that a clone hangs on.
    fn newest(&self, volume: VolumeId) -> Option<Generation> {
        let key = |generation, clone| (SnapshotId { volume, generation }, clone);
        let (first, last) =
            (key(Generation(0), VolumeId(0)), key(Generation(u32::MAX), VolumeId(u64::MAX)));
        self.0.range(first..=last).next_back().map(|(snapshot, _)| snapshot.generation)
    }

    fn any_of(&self, snapshot: SnapshotId) -> bool {
        let first = (snapshot, VolumeId(0));
        self.0.range(first..=(snapshot, VolumeId(u64::MAX))).next().is_some()
    }
}

/// A page in which blocks are looked for, and as of which snapshot.
struct Layer<'a> {
    page: &'a Page,
    snapshot: Option<Generation>,
}

/// Where the blocks of a range are looked for: in the volume's own page, then in those above it.
pub(super) struct Layers<'a> {
    /// The number of the range's first block in the pages.
    first: usize,
    own: Option<Layer<'a>>,
    parents: Vec<Layer<'a>>,
}

impl Layers<'_> {
    /// The entry that changed the volume's own page last.
    pub(super) fn changed_at(&self) -> LogIndex {
        self.own.as_ref().map_or(LogIndex(0), |layer| layer.page.changed_at())
    }

    /// Where a block of the range stands, counted from the range's first; nothing if it reads as zeros.
    pub(super) fn place(&self, block: usize) -> Option<BlockPlace> {
        self.find(self.own.iter().chain(&self.parents), block)
    }

    /// Where a block of the range stands that the volume, or a snapshot of it, has from its parent; nothing if
    /// none has it from there, or it reads as zeros there. What is unmapped counts as shared if it `shows`.
    pub(super) fn shared(&self, block: usize, shows: bool) -> Option<BlockPlace> {
        let open = |layer: &Layer<'_>| {
            let zeros = layer.page.state(None, self.first + block) == BlockState::Zeros;
            layer.page.is_open(self.first + block) || (shows && zeros)
        };
        match self.own.as_ref().is_none_or(open) {
            true => self.find(self.parents.iter(), block),
            false => None,
        }
    }

    fn find<'a>(
        &self,
        layers: impl Iterator<Item = &'a Layer<'a>>,
        block: usize,
    ) -> Option<BlockPlace> {
        let state = |layer: &Layer<'_>| layer.page.state(layer.snapshot, self.first + block);
        layers.map(state).find(|state| *state != BlockState::Open)?.place()
    }

    /// Whether a block of the range was changed in the volume itself, as [`Page::changed_since`].
    pub(super) fn changed_since(
        &self,
        since: Generation,
        until: Option<Generation>,
        block: usize,
    ) -> bool {
        let changed =
            |layer: &Layer<'_>| layer.page.changed_since(since, until, self.first + block);
        self.own.as_ref().is_some_and(changed)
    }
}

impl Replica {
    /// Makes a volume that is not known yet a clone of a snapshot. Done again it changes nothing.
    ///
    /// A group that has not heard of the parent has nothing of the snapshot. It takes note of its generation
    /// as of a freeze, so that no late write of the parent gets into the snapshot.
    pub(super) fn begin_clone(&mut self, id: VolumeId, parent: SnapshotId) -> Outcome {
        if let Some(volume) = self.volumes.get(&id).filter(|volume| !volume.is_unknown()) {
            return match volume.parent == Some(parent) {
                true => Ok(()),
                false => Err(Refusal::Exists),
            };
        }
        if parent.volume == id {
            return Err(Refusal::Invalid);
        }
        if self.lineage(parent.volume).count() > CLONE_DEPTH_MAX {
            return Err(Refusal::TooDeep);
        }
        if self.volumes.get(&parent.volume).is_none_or(Volume::is_unknown) {
            mark!("clone in a group without its parent");
            self.freeze(parent.volume, parent.generation)?;
        }
        let there = self.check_snapshot(parent.volume, parent.generation);
        there.map_err(|_| Refusal::NoSnapshot)?;
        mark!("clone begun");
        self.volumes.entry(id).or_default();
        self.set_parent(id, Some(parent));
        self.changes.volumes.push(id);
        Ok(())
    }

    /// Notes what a volume hangs on. A volume that is not known hangs on nothing.
    pub(super) fn set_parent(&mut self, id: VolumeId, parent: Option<SnapshotId>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if let Some(before) = std::mem::replace(&mut volume.parent, parent) {
            self.clones.0.remove(&(before, id));
        }
        self.clones.0.extend(parent.map(|parent| (parent, id)));
    }

    /// Whether a snapshot, or if none is given a volume with all of them, may be given up.
    pub(super) fn check_no_clones(
        &self,
        volume: VolumeId,
        snapshot: Option<Generation>,
    ) -> Outcome {
        let any = match snapshot {
            Some(generation) => self.clones.any_of(SnapshotId { volume, generation }),
            None => self.clones.newest(volume).is_some(),
        };
        self.refuse_clones(any)
    }

    /// Whether the snapshots of a volume that are later than one may be given up.
    pub(super) fn check_no_clones_behind(&self, id: VolumeId, snapshot: Generation) -> Outcome {
        self.refuse_clones(self.clones.newest(id).is_some_and(|newest| newest > snapshot))
    }

    fn refuse_clones(&self, any: bool) -> Outcome {
        if any {
            mark!("volume or snapshot kept for a clone");
        }
        match any && !self.planted.is(Bug::ClonesForgotten) {
            true => Err(Refusal::HasClones),
            false => Ok(()),
        }
    }

    /// A volume and those that its blocks may be found in, the nearest first.
    pub fn lineage(&self, id: VolumeId) -> impl Iterator<Item = VolumeId> + '_ {
        // Whatever a peer or a store says of parents, the walk ends.
        let above = |id: &VolumeId| Some(self.volumes.get(id)?.parent?.volume);
        std::iter::successors(Some(id), above).take(CLONE_DEPTH_MAX + 1)
    }

    /// Where the blocks of a range of one chunk are looked for, of a volume as it is or of a snapshot of it.
    pub(super) fn layers(
        &self,
        id: VolumeId,
        range: BlockRange,
        snapshot: Option<Generation>,
    ) -> Layers<'_> {
        let mut layers = Layers { first: 0, own: None, parents: Vec::new() };
        let (mut id, mut snapshot) = (id, snapshot);
        for depth in 0..=CLONE_DEPTH_MAX {
            let Some(volume) = self.volumes.get(&id) else { break };
            let (page, first) = volume.index.page(range);
            layers.first = first;
            // A volume that the group heard of later has nothing of its own in this snapshot.
            let page = page.filter(|_| snapshot.is_none_or(|s| s >= volume.generations.first()));
            let layer = page.map(|page| Layer { page, snapshot });
            match depth {
                0 => layers.own = layer,
                _ => layers.parents.extend(layer),
            }
            let Some(parent) = volume.parent else { break };
            (id, snapshot) = (parent.volume, Some(parent.generation));
            if self.planted.is(Bug::CloneReadsParentNow) {
                snapshot = None;
            }
        }
        layers
    }

    /// Whether every clone hangs on a snapshot that is there, and no chain is too long: what a checkpoint
    /// must hold.
    pub(super) fn check_parents(&self) -> Result<(), String> {
        for (parent, clone) in &self.clones.0 {
            if self.check_snapshot(parent.volume, parent.generation).is_err() {
                return Err(format!(
                    "volume {clone} is a clone of generation {} of volume {}, which is no snapshot",
                    parent.generation, parent.volume
                ));
            }
            let top = self.lineage(*clone).last();
            if top.and_then(|id| self.volumes.get(&id)).is_none_or(|top| top.parent.is_some()) {
                return Err(format!("volume {clone} is a clone of too many clones"));
            }
        }
        Ok(())
    }
}
