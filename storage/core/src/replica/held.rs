//! What a group holds of volumes, whether anybody's records know them or not.

use super::{Replica, Volume};
use basalt_wire::ids::{Epoch, Generation, SnapshotId, VolumeId};

/// What a group holds of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldVolume {
    /// The volume.
    pub volume: VolumeId,
    /// The highest epoch that was fenced in.
    pub epoch: Epoch,
    /// Whether it was deleted: then nothing else of it is held, and no session may begin.
    pub deleted: bool,
    /// The generation that writes go to.
    pub generation: Generation,
    /// The first generation that the group heard of: all before it are empty here.
    pub first: Generation,
    /// The generations that are kept as snapshots, ascending.
    pub snapshots: Vec<Generation>,
    /// What it is a clone of.
    pub parent: Option<SnapshotId>,
    /// Blocks that it maps itself.
    pub blocks: u64,
    /// The chunk behind the last of which anything is held.
    pub end_chunk: u64,
}

impl Replica {
    /// All volumes that a command has named, in order. Looks at all pages.
    pub fn held_volumes(&self) -> Vec<HeldVolume> {
        let held = |(id, volume): (&VolumeId, &Volume)| {
            let generations = volume.generations.to_record(volume.epoch, volume.deleted);
            HeldVolume {
                volume: *id,
                epoch: volume.epoch,
                deleted: volume.deleted,
                generation: generations.generation,
                first: generations.first,
                snapshots: generations.snapshots,
                parent: volume.parent,
                blocks: volume.index.mapped_blocks(),
                end_chunk: volume.index.pages().last().map_or(0, |(chunk, _)| chunk + 1),
            }
        };
        let told = self.volumes.iter().filter(|(_, volume)| !volume.is_unknown());
        let mut all: Vec<HeldVolume> = told.map(held).collect();
        all.sort_unstable_by_key(|held| held.volume);
        all
    }
}
