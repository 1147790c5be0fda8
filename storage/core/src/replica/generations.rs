//! The generations of a volume: which one writes go to, and which are kept as snapshots.
//!
//! A session writes to one generation and moves to the next at one instant, for all groups at once:
//! when it takes a snapshot itself, or when a group refuses a write because somebody else froze the
//! generation that it carries. A group learns of the next generation by a freeze, or by the first write
//! that carries it, whichever comes first: it freezes what is before. A write that is in the snapshot was
//! submitted before the session moved, so whatever had been acknowledged by then was applied, in its
//! own group, before that was frozen: a write submitted after another's acknowledgement is never in a
//! snapshot without it (invariant I5), and no group waits for another.

use super::{Outcome, Replica, Volume};
use crate::mark;
use crate::planted::{Bug, Planted};
use basalt_wire::disk::checkpoint::{SNAPSHOTS_MAX, VolumeRecord};
use basalt_wire::frame::Refusal;
use basalt_wire::ids::{Epoch, Generation, LogIndex, VolumeId};

/// The generations of one volume in one group.
#[derive(Clone, Default, Debug)]
pub(super) struct Generations {
    current: Generation,
    /// The one in which the group heard of the volume first: all before it are empty here.
    first: Generation,
    /// Those that are kept, ascending.
    snapshots: Vec<Generation>,
}

impl Generations {
    pub(super) fn starting_at(generation: Generation) -> Generations {
        Generations { current: generation, first: generation, snapshots: Vec::new() }
    }

    pub(super) fn from_record(record: &VolumeRecord) -> Generations {
        let snapshots = record.snapshots.clone();
        Generations { current: record.generation, first: record.first, snapshots }
    }

    pub(super) fn to_record(&self, epoch: Epoch, deleted: bool) -> VolumeRecord {
        let Generations { current, first, snapshots } = self.clone();
        VolumeRecord {
            epoch,
            deleted,
            generation: current,
            first,
            snapshots,
            ..VolumeRecord::default()
        }
    }

    /// Whether nothing is known of them.
    pub(super) fn are_untold(&self) -> bool {
        self.current == Generation(0)
    }

    /// The generation that writes go to.
    pub(super) fn current(&self) -> Generation {
        self.current
    }

    /// The one in which the group heard of the volume first.
    pub(super) fn first(&self) -> Generation {
        self.first
    }

    /// The newest snapshot.
    pub(super) fn newest(&self) -> Option<Generation> {
        self.snapshots.last().copied()
    }

    /// Whether blocks may be kept for a generation, as far as is known.
    pub(super) fn may_hold(&self, generation: Generation) -> bool {
        generation >= self.current || self.snapshots.contains(&generation)
    }

    /// All numbers, for a digest.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        let counts = [self.current.0, self.first.0, self.snapshots.len() as u32];
        counts.into_iter().chain(self.snapshots.iter().map(|g| g.0)).map(u64::from)
    }

    /// The volume is deleted.
    pub(super) fn forget(&mut self) {
        self.snapshots = Vec::new();
    }

    /// Freezes what is before a generation. Says whether it was news.
    pub(super) fn reach(&mut self, generation: Generation) -> Result<bool, Refusal> {
        let more = generation.0.saturating_sub(self.current.0) as usize;
        if self.snapshots.len() + more > SNAPSHOTS_MAX {
            return Err(Refusal::TooManySnapshots);
        }
        self.snapshots.extend((self.current.0..generation.0).map(Generation));
        self.current = self.current.max(generation);
        Ok(more > 0)
    }

    /// A session that writes to a generation begins.
    pub(super) fn fence(&mut self, generation: Generation, planted: Planted) -> Outcome {
        if !planted.is(Bug::SnapshotAcrossCommit) {
            self.reach(generation)?;
        }
        Ok(())
    }

    /// Whether a change of a generation that is not the current one may be applied. Says whether it
    /// brought the group to that generation.
    pub(super) fn admit(
        &mut self,
        generation: Generation,
        planted: Planted,
    ) -> Result<bool, Refusal> {
        if generation < self.current {
            mark!("write of a frozen generation");
            return Err(Refusal::Frozen);
        }
        if planted.is(Bug::SnapshotAcrossCommit) {
            return Ok(false);
        }
        mark!("generation frozen by a write");
        self.reach(generation)
    }
}

impl Replica {
    /// Freezes a generation, unless it is frozen already. A volume that the group has not heard of has
    /// nothing to be kept.
    pub(super) fn freeze(&mut self, id: VolumeId, generation: Generation) -> Outcome {
        let next = next(generation)?;
        let volume = self.volumes.entry(id).or_default();
        if volume.is_unknown() {
            volume.generations = Generations::starting_at(next);
        }
        if volume.deleted {
            return Err(Refusal::NoSnapshot);
        }
        volume.generations.reach(next)?;
        self.changes.volumes.push(id);
        Ok(())
    }

    /// Drops a snapshot. Of a generation that is not frozen there will be none.
    pub(super) fn drop_snapshot(
        &mut self,
        at: LogIndex,
        id: VolumeId,
        generation: Generation,
    ) -> Outcome {
        let next = next(generation)?;
        let lax = self.planted.is(Bug::MergeDropsOlder);
        let known = |volume: &Volume| !volume.deleted && !volume.is_unknown();
        if !self.volumes.get(&id).is_some_and(known) {
            return Ok(());
        }
        self.check_no_clones(id, Some(generation))?;
        let volume: &mut Volume = self.volumes.entry(id).or_default();
        let known = &mut volume.generations;
        if generation >= known.current {
            known.reach(generation)?;
            known.current = next;
            self.changes.volumes.push(id);
            return Ok(());
        }
        let Ok(place) = known.snapshots.binary_search(&generation) else { return Ok(()) };
        mark!("snapshot dropped");
        known.snapshots.remove(place);
        let older = place.checked_sub(1).map(|before| known.snapshots[before]);
        let pages =
            volume.index.drop_snapshot(generation, older.filter(|_| !lax), at, &mut self.usage);
        self.changes.volumes.push(id);
        self.changes.pages.extend(pages.into_iter().map(|chunk| (id, chunk)));
        Ok(())
    }

    /// Makes a volume what it was in a snapshot, and drops the later ones.
    pub(super) fn revert(
        &mut self,
        at: LogIndex,
        id: VolumeId,
        epoch: Epoch,
        generation: Generation,
    ) -> Outcome {
        self.check_epoch(id, epoch)?;
        self.check_snapshot(id, generation).map_err(|_| Refusal::NoSnapshot)?;
        self.check_no_clones_behind(id, generation)?;
        let volume: &mut Volume = self.volumes.entry(id).or_default();
        let known = &mut volume.generations;
        let pages = match generation < known.first {
            true => volume.index.unmap_all(known.current, at, &mut self.usage),
            false => volume.index.revert(generation, known.current, at, &mut self.usage),
        };
        known.snapshots.retain(|snapshot| *snapshot <= generation);
        if volume.index.has_doomed() {
            mark!("volume reverted whose pages are not all in memory");
            self.doomed.insert(id);
        }
        mark!("volume reverted");
        self.changes.volumes.push(id);
        self.changes.pages.extend(pages.into_iter().map(|chunk| (id, chunk)));
        Ok(())
    }

    /// Whether a change of this generation has a chance: it is not frozen.
    pub fn check_generation(&self, id: VolumeId, generation: Generation) -> Outcome {
        match self.volumes.get(&id) {
            Some(volume) if generation < volume.generations.current => Err(Refusal::Frozen),
            _ => Ok(()),
        }
    }

    /// Whether a snapshot can be read here now. It never changes, so neither session nor floor matter.
    pub fn check_snapshot(&self, id: VolumeId, generation: Generation) -> Outcome {
        let Some(volume) = self.known(id) else { return Err(Refusal::Behind) };
        let known = &volume.generations;
        if volume.deleted {
            return Err(Refusal::NoSnapshot);
        }
        if generation >= known.current {
            return Err(Refusal::Behind);
        }
        match generation < known.first || known.snapshots.contains(&generation) {
            true => Ok(()),
            false => Err(Refusal::NoSnapshot),
        }
    }

    /// Whether a group that heard of the volume later has nothing of a snapshot.
    pub(super) fn is_before(&self, id: VolumeId, snapshot: Generation) -> bool {
        self.volumes.get(&id).is_some_and(|volume| snapshot < volume.generations.first)
    }

    /// The generation that a volume's writes go to, and its snapshots.
    pub fn generations(&self, id: VolumeId) -> Option<(Generation, &[Generation])> {
        let known = &self.volumes.get(&id)?.generations;
        Some((known.current, &known.snapshots))
    }
}

fn next(generation: Generation) -> Result<Generation, Refusal> {
    generation.0.checked_add(1).map(Generation).ok_or(Refusal::Invalid)
}
