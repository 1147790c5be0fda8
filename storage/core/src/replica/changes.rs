//! What a replica gives to checkpoints, and what it takes from them.

use super::generations::Generations;
use super::{PageKey, Replica, Volume};
use basalt_wire::disk::checkpoint::{Granule, Record, VolumeRecord};
use basalt_wire::ids::{GroupId, LogIndex, VolumeId};

/// What was taken to be given to a checkpoint, page by page.
pub type DirtyPages = Vec<(VolumeId, u64)>;

impl Replica {
    /// Takes the pages that changed since this was asked last.
    pub fn take_dirty_pages(&mut self) -> DirtyPages {
        std::mem::take(&mut self.changes.pages)
    }

    /// The store is emptied: all that it held has changed since, but for pages whose tables are out of memory.
    /// Gives those, with a bit for each granule that the store holds, or `forgets` them (a planted bug).
    pub fn store_is_lost(&mut self, forgets: bool) -> Vec<(PageKey, u64)> {
        self.changes.stored = 0;
        (self.changes.pages, self.changes.volumes) = (Vec::new(), Vec::new());
        let mut carried = Vec::new();
        for (id, volume) in &mut self.volumes {
            let cold = volume.index.cold_granules().filter(|_| !forgets);
            let before = carried.len();
            carried.extend(cold.map(|(chunk, granules)| ((*id, chunk), granules)));
            let granules = |(_, granules): &(PageKey, u64)| u64::from(granules.count_ones());
            volume.stored = carried[before..].iter().map(granules).sum();
            self.changes.stored += volume.stored;
            self.changes.volumes.push(*id);
            let pages = volume.index.store_is_lost();
            self.changes.pages.extend(pages.into_iter().map(|chunk| (*id, chunk)));
        }
        carried
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
            records.push(Record::Volume(group, id, volume.record()));
            if volume.deleted && volume.index.is_empty() {
                self.changes.stored -= std::mem::take(&mut volume.stored);
                deleted.push(id);
            }
        }
        (records, deleted)
    }

    /// The next granule of a page to be given to the checkpoint of a number, as it is now. When there is none
    /// the page may go out of memory as soon as that is durable.
    pub fn take_granule(
        &mut self,
        id: VolumeId,
        chunk: u64,
        checkpoint: u64,
    ) -> Option<(u8, Granule)> {
        let volume = self.volumes.get_mut(&id)?;
        let Some((number, fresh, granule)) =
            volume.index.take_dirty(chunk, self.applied, checkpoint)
        else {
            if volume.index.list(chunk) {
                self.idle.push_back((id, chunk));
            }
            return None;
        };
        volume.stored += u64::from(fresh);
        self.changes.stored += u64::from(fresh);
        Some((number, granule))
    }

    /// Volumes known, and granules that the store holds.
    pub fn stored(&self) -> (u64, u64) {
        (self.volumes.len() as u64, self.changes.stored)
    }

    /// Takes a volume from a checkpoint.
    pub fn restore_volume(&mut self, id: VolumeId, record: &VolumeRecord) {
        let volume = self.volumes.entry(id).or_default();
        (volume.epoch, volume.deleted) = (record.epoch, record.deleted);
        volume.detached = record.detached;
        volume.generations = Generations::from_record(record);
        self.set_parent(id, record.parent);
    }

    /// Takes a granule from a checkpoint that is of the entries up to `applied`.
    pub fn restore_granule(
        &mut self,
        id: VolumeId,
        (chunk, number): (u64, u8),
        granule: &Granule,
        applied: LogIndex,
    ) {
        let volume: &mut Volume = self.volumes.entry(id).or_default();
        volume.stored += 1;
        self.changes.stored += 1;
        self.seen = self.seen.max(granule.changed_at);
        volume.index.restore((chunk, number), granule, applied, &mut self.usage);
    }

    /// Goes on behind an entry whose state was taken from a checkpoint. Fails if blocks are kept for a
    /// snapshot that was not there, or a clone hangs on one.
    pub fn restored(&mut self, applied: LogIndex) -> Result<(), String> {
        for (id, volume) in &self.volumes {
            let mut kept = volume.index.pages().into_iter().flat_map(|(_, page)| page.kept());
            if let Some((generation, ..)) = kept.find(|(g, ..)| !volume.generations.may_hold(*g)) {
                return Err(format!(
                    "volume {id} holds blocks of generation {generation}, which is no snapshot"
                ));
            }
        }
        self.check_parents()?;
        self.give_back_deleted(applied);
        self.applied = applied;
        self.catch_up();
        Ok(())
    }

    /// Forgets which pages were ahead, once everything is applied that any of them has seen.
    pub(super) fn catch_up(&mut self) {
        if self.seen.0 > 0 && self.applied >= self.seen {
            self.volumes.values_mut().for_each(|volume| volume.index.caught_up());
            self.seen = LogIndex(0);
        }
    }
}
