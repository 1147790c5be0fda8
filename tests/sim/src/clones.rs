//! Clones in the world: volumes that begin as a snapshot of another one.
//!
//! The snapshot is read whole while the groups begin the clone. From then on the clone is a volume like any
//! other, whose units begin their history with what the snapshot holds; nothing that happens to the other
//! volume may show in it.

use crate::check::register::Action;
use crate::event::Who;
use crate::stamp::OpId;
use crate::workload::{Kind, Plan, windows};
use crate::world::{Volume, World};
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::ids::{Generation, SnapshotId, VolumeId};

/// A clone in the making.
pub struct Making {
    /// The snapshot's place.
    snapshot: usize,
    /// The clone's place among the volumes.
    volume: usize,
    /// Who asks the groups to begin it.
    maker: Who,
    /// Who reads the snapshot.
    reader: Who,
    /// Operations of the session that it is attached to then.
    budget: u32,
    /// Whether every group has begun it.
    made: bool,
}

/// A clone that is to hang on its parent no more.
pub struct Flattening {
    /// Its place among the volumes.
    volume: usize,
    /// Who asks for it, beside whatever session the clone has.
    who: Who,
    /// What is asked for, or was.
    step: Step,
    /// Whether it was given up, for want of room.
    over: bool,
}

impl Making {
    /// Whether a session works for it.
    pub fn needs(&self, who: Who) -> bool {
        self.maker == who || self.reader == who
    }
}

impl Flattening {
    /// Whether a session works for it.
    pub fn needs(&self, who: Who) -> bool {
        self.who == who
    }
}

/// What is done to a clone that is flattened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Its windows are filled in pieces that fit into a segment.
    Pieces,
    /// All of it is filled, where nothing can be left.
    Whole,
    /// It is detached.
    Detach,
}

impl World {
    /// Begins a clone of a complete snapshot, to be attached by a session with so many operations. Gives its
    /// place among the volumes.
    pub fn begin_clone(&mut self, snapshot: usize, budget: u32) -> usize {
        let of = self.snapshots[snapshot].volume;
        let lineage = self.volumes[of].lineage;
        let volume = self.volumes.len();
        self.volumes.push(Volume {
            lineage,
            chunks: self.snapshots[snapshot].chunks,
            above: Some(snapshot),
            begun: false,
            ..Volume::new(volume as u64 + 1, &self.options)
        });
        let maker = self.attach_maker(volume);
        self.volumes[volume].client = maker;
        self.submit_plan(maker, Plan { kind: Kind::Clone, unit: 0, count: 0 });
        let reader = self.attach_view(snapshot, 0);
        let per_block = (BLOCK_BYTES / self.options.unit) as u64;
        for (low, high) in windows(&self.options, self.snapshots[snapshot].chunks) {
            let (unit, count) = (low * per_block, ((high - low) * per_block) as u32);
            self.submit_plan(reader, Plan { kind: Kind::Read, unit, count });
        }
        self.makings.push(Making { snapshot, volume, maker, reader, budget, made: false });
        volume
    }

    /// Every group has begun a clone.
    pub fn clone_made(&mut self, volume: usize) {
        let making = self.makings.iter_mut().find(|making| making.volume == volume);
        making.expect("only makers ask for clones").made = true;
    }

    /// Attaches the clones that are complete. One that the groups had no room for is left as it is.
    pub fn drive_clones(&mut self) {
        if self.ending.is_some() {
            return;
        }
        let mut at = 0;
        while let Some(making) = self.makings.get(at) {
            let (maker, reader) = (making.maker, making.reader);
            if self.client(maker).pending() + self.client(reader).pending() > 0 {
                at += 1;
                continue;
            }
            let making = self.makings.remove(at);
            if making.made {
                self.begin_history(&making);
                self.attach(making.volume, making.budget);
            }
        }
    }

    fn begin_history(&mut self, making: &Making) {
        let (call, end) = (self.moment(), self.moment());
        let content: Vec<(u64, OpId)> = self.snapshots[making.snapshot].content().collect();
        for (unit, value) in content {
            self.note(making.maker, unit, Action::Write, value, call, end, true);
        }
        self.volumes[making.volume].begun = true;
        self.counts.clones += 1;
    }

    /// Whether what was written to the volume of an id may stand in a volume: it is the same one, or the
    /// one that it was cloned from, and so on.
    pub fn may_hold(&self, volume: usize, id: u64) -> bool {
        let mut at = Some(volume);
        while let Some(volume) = at.map(|at| &self.volumes[at]) {
            if volume.id == id {
                return true;
            }
            at = volume.above.map(|snapshot| self.snapshots[snapshot].volume);
        }
        false
    }

    /// The volumes that were handed out.
    pub fn begun_volumes(&self) -> Vec<usize> {
        (0..self.volumes.len()).filter(|at| self.volumes[*at].begun).collect()
    }

    /// Whether some clone of a snapshot is not complete.
    pub fn is_being_cloned(&self, snapshot: usize) -> bool {
        self.volumes.iter().any(|volume| volume.above == Some(snapshot) && !volume.begun)
    }

    /// The snapshot that a volume is a clone of, or was before it was flattened.
    pub fn parent_of(&self, volume: usize) -> Option<SnapshotId> {
        let snapshot = &self.snapshots[self.volumes[volume].above?];
        let volume = VolumeId(self.volumes[snapshot.volume].id);
        Some(SnapshotId { volume, generation: Generation(snapshot.generation) })
    }

    /// Whether some clone hangs on a snapshot for sure.
    pub fn holds_clones(&self, snapshot: usize) -> bool {
        self.volumes.iter().any(|volume| volume.above == Some(snapshot) && !volume.detaching)
    }

    /// Whether some clone may hang on a snapshot.
    pub fn may_hold_clones(&self, snapshot: usize) -> bool {
        self.volumes.iter().any(|volume| volume.above == Some(snapshot) && !volume.detached)
    }

    /// Whether a volume is a clone that nobody flattens yet.
    pub fn may_flatten(&self, volume: usize) -> bool {
        let under_way = self.flattenings.iter().any(|other| other.volume == volume);
        let volume = &self.volumes[volume];
        // A copy of a drop that was refused for its sake may still be on its way.
        let free = volume.above.is_some_and(|above| !self.snapshots[above].asked_in_vain);
        free && volume.begun && !volume.detaching && !under_way
    }

    /// Whether a snapshot can be dropped in vain: clones hang on it for sure, and will for good.
    pub fn may_drop_in_vain(&self, snapshot: usize) -> bool {
        let of = |flattening: &Flattening| self.volumes[flattening.volume].above == Some(snapshot);
        let made = !self.is_being_cloned(snapshot);
        made && self.holds_clones(snapshot) && !self.flattenings.iter().any(of)
    }

    /// Begins to flatten a clone.
    pub fn begin_flatten(&mut self, volume: usize) {
        let snapshot = self.volumes[volume].above.expect("it is a clone");
        let who = self.attach_maker(volume);
        self.flattenings.push(Flattening { volume, who, step: Step::Pieces, over: false });
        let per_block = (BLOCK_BYTES / self.options.unit) as u64;
        // What one entry takes: three quarters of a segment.
        let most = (self.options.segment / BLOCK_BYTES as u64 / 2).max(1);
        for (low, high) in windows(&self.options, self.snapshots[snapshot].chunks) {
            for first in (low..high).step_by(most as usize) {
                let (unit, count) = (first * per_block, most.min(high - first) * per_block);
                let plan = Plan { kind: Kind::Fill, unit, count: count as u32 };
                self.submit_plan(who, plan);
            }
        }
    }

    /// A step of flattening a clone came to its end.
    pub fn flatten_answered(&mut self, volume: usize, kind: Kind, well: bool) {
        let under_way = self.flattenings.iter_mut().find(|flattening| flattening.volume == volume);
        // The others of some pieces may be answered after it was given up for one of them.
        let Some(flattening) = under_way else { return };
        flattening.over |= !well || kind == Kind::Detach;
        if kind == Kind::Detach {
            self.volumes[volume].detached = well;
        }
    }

    /// Goes on with clones of which a step came to its end.
    pub fn drive_flattenings(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.flattenings.retain(|flattening| !flattening.over);
        for at in 0..self.flattenings.len() {
            let Flattening { volume, who, step, .. } = self.flattenings[at];
            if self.client(who).pending() > 0 {
                continue;
            }
            let (next, kind, count) = match step {
                Step::Pieces => {
                    let above = self.volumes[volume].above.expect("it is a clone");
                    let units = CHUNK_BLOCKS as usize * BLOCK_BYTES / self.options.unit;
                    (Step::Whole, Kind::Fill, self.snapshots[above].chunks * units as u32)
                }
                Step::Whole => (Step::Detach, Kind::Detach, 0),
                Step::Detach => continue,
            };
            if kind == Kind::Detach {
                self.volumes[volume].detaching = true;
                self.counts.flattened += 1;
            }
            self.flattenings[at].step = next;
            self.submit_plan(who, Plan { kind, unit: 0, count });
        }
    }

    /// Tries in vain to drop a snapshot that clones hang on.
    pub fn drop_in_vain(&mut self, who: Who, snapshot: usize) {
        self.snapshots[snapshot].asked_in_vain = true;
        let unit = u64::from(self.snapshots[snapshot].generation);
        self.submit_plan(who, Plan { kind: Kind::Drop, unit, count: 1 });
    }
}
