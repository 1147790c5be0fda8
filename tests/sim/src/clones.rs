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
use basalt_wire::block::BLOCK_BYTES;

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

impl World {
    /// Begins a clone of a complete snapshot, to be attached by a session with so many operations. Gives its
    /// place among the volumes.
    pub fn begin_clone(&mut self, snapshot: usize, budget: u32) -> usize {
        let of = self.snapshots[snapshot].volume;
        let (parent, lineage) = (self.volumes[of].id, self.volumes[of].lineage);
        let volume = self.volumes.len();
        self.volumes.push(Volume {
            lineage,
            chunks: self.snapshots[snapshot].chunks,
            above: Some(snapshot),
            begun: false,
            ..Volume::new(volume as u64 + 1, &self.options)
        });
        self.snapshots[snapshot].cloned = true;
        let maker = self.attach_maker(volume);
        self.volumes[volume].client = maker;
        let generation = u64::from(self.snapshots[snapshot].generation);
        let plan = Plan { kind: Kind::Clone, unit: generation, count: parent as u32 };
        self.submit_plan(maker, plan);
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

    /// Tries in vain to drop a snapshot that clones hang on.
    pub fn drop_in_vain(&mut self, who: Who, snapshot: usize) {
        let unit = u64::from(self.snapshots[snapshot].generation);
        self.submit_plan(who, Plan { kind: Kind::Drop, unit, count: 1 });
    }
}
