//! What a replica gives to checkpoints, and what it takes from them.

use super::{Replica, Volume};
use basalt_wire::disk::checkpoint::{Granule, Record};
use basalt_wire::ids::{Epoch, GroupId, LogIndex, VolumeId};

/// What was taken to be given to a checkpoint, page by page.
pub type DirtyPages = Vec<(VolumeId, u64)>;

impl Replica {
    /// Takes the pages that changed since this was asked last.
    pub fn take_dirty_pages(&mut self) -> DirtyPages {
        std::mem::take(&mut self.changes.pages)
    }

    /// The records of the volumes that changed since this was asked last, as of what is applied now,
    /// and the deleted ones among them, whose granules are not needed any more.
    pub fn take_dirty_volumes(&mut self, group: GroupId) -> (Vec<Record>, Vec<VolumeId>) {
        let mut ids = std::mem::take(&mut self.changes.volumes);
        ids.sort_unstable();
        ids.dedup();
        let (mut records, mut deleted) = (Vec::with_capacity(ids.len()), Vec::new());
        for id in ids {
            let Some(volume) = self.volumes.get_mut(&id) else { continue };
            records.push(Record::Volume(group, id, volume.epoch, volume.deleted));
            if volume.deleted {
                self.changes.stored -= std::mem::take(&mut volume.stored);
                deleted.push(id);
            }
        }
        (records, deleted)
    }

    /// The next granule of a page to be given to a checkpoint, as it is now.
    pub fn take_granule(&mut self, id: VolumeId, chunk: u64) -> Option<(u8, Granule)> {
        let volume = self.volumes.get_mut(&id)?;
        let (number, fresh, granule) = volume.index.page_mut(chunk)?.take_dirty()?;
        volume.stored += u64::from(fresh);
        self.changes.stored += u64::from(fresh);
        Some((number, granule))
    }

    /// Volumes known, and granules that the store holds.
    pub fn stored(&self) -> (u64, u64) {
        (self.volumes.len() as u64, self.changes.stored)
    }

    /// Takes a volume from a checkpoint.
    pub fn restore_volume(&mut self, id: VolumeId, epoch: Epoch, deleted: bool) {
        let volume = self.volumes.entry(id).or_default();
        (volume.epoch, volume.deleted) = (epoch, deleted);
    }

    /// Takes a granule from a checkpoint.
    pub fn restore_granule(&mut self, id: VolumeId, chunk: u64, number: u8, granule: &Granule) {
        let volume: &mut Volume = self.volumes.entry(id).or_default();
        volume.stored += 1;
        self.changes.stored += 1;
        volume.index.restore(chunk, number, granule, &mut self.usage);
    }

    /// Goes on behind an entry whose state was taken from a checkpoint.
    pub fn restored(&mut self, applied: LogIndex) {
        self.applied = applied;
    }
}
