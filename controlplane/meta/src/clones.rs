//! Clones: volumes that read as a snapshot of another one wherever they have nothing of their own.
//!
//! A clone shares its parent's lineage, so that a chunk of both is in one group. It may be attached when every
//! group has begun it; what it hangs on stays until it is deleted or flattened. A snapshot may be deleted
//! while the last clones that hang on it are: it goes after them.

use crate::state::{MetaState, Outcome, Refused, being_deleted, check_etag, find, refusal};
use basalt_api::meta::v1::{
    CloneParent, CloneSource, FlattenVolume, SettleClone, SettleFlatten, VolumeRecord,
};
use basalt_api::v1::ErrorReason;

/// Snapshots of other volumes that the blocks of a clone may come from, one above the other: what a group
/// looks through for a block.
pub const CLONE_DEPTH_MAX: u32 = 16;
/// A clone with more of them is flattened without being asked for, so that the bound is seldom met.
pub const FLATTEN_DEPTH: u32 = 8;
/// Clones that a refusal names.
const NAMED: usize = 3;

/// What becomes of a new volume that is to be a clone.
pub(crate) struct Clone {
    pub(crate) size_bytes: u64,
    pub(crate) lineage: u64,
    pub(crate) parent: CloneParent,
}

impl MetaState {
    /// How many snapshots of other volumes the blocks of a volume may come from, one above the other.
    pub fn clone_depth(&self, volume: &VolumeRecord) -> u32 {
        let above = |volume: &&VolumeRecord| self.volume(&volume.parent.as_ref()?.volume_id);
        let chain = std::iter::successors(Some(volume), above).take(CLONE_DEPTH_MAX as usize + 1);
        chain.filter(|volume| volume.parent.is_some()).count() as u32
    }

    /// Clones that not every group has begun yet, of snapshots that are complete.
    pub fn clones_to_begin(&self) -> Vec<&VolumeRecord> {
        let complete = |parent: &CloneParent| {
            let key = (parent.volume, parent.generation);
            self.snapshots.get(&key).is_some_and(|snapshot| snapshot.ready)
        };
        let wanted =
            |v: &&VolumeRecord| v.cloning && !v.deleting && v.parent.as_ref().is_some_and(complete);
        self.volumes.followed().clones().filter(wanted).collect()
    }

    /// Whether a clone is to be made a volume of its own.
    pub fn is_to_be_flattened(&self, volume: &VolumeRecord) -> bool {
        let clone = volume.parent.is_some() && !volume.cloning && !volume.deleting;
        clone && (volume.flattening || self.clone_depth(volume) > FLATTEN_DEPTH)
    }

    /// Clones that are to be made volumes of their own: first those for which that was asked, then those that
    /// hang on the fewest others, for each of them makes all below it less deep.
    pub fn clones_to_flatten(&self) -> Vec<&VolumeRecord> {
        let wanted = |volume: &&VolumeRecord| self.is_to_be_flattened(volume);
        let clones = self.volumes.followed().clones();
        let mut found: Vec<&VolumeRecord> = clones.filter(wanted).collect();
        found.sort_by_key(|v| (!v.flattening, self.clone_depth(v), v.number));
        found
    }

    /// Volumes that are being deleted and on which no clone hangs any more.
    pub fn volumes_to_delete(&self) -> impl Iterator<Item = &VolumeRecord> {
        let deleting = self.volumes.followed().deleting();
        deleting.filter(|volume| !self.is_held_by_clones(volume))
    }

    /// Whether a volume that is being deleted has to wait for clones that hang on it.
    pub fn is_held_by_clones(&self, volume: &VolumeRecord) -> bool {
        self.holds_clones(volume.number, None)
    }

    /// Whether a clone hangs on a snapshot of a volume, or on any of it.
    pub(crate) fn holds_clones(&self, volume: u64, generation: Option<u32>) -> bool {
        self.clones_of(volume, generation).next().is_some()
    }

    fn clones_of(
        &self,
        volume: u64,
        generation: Option<u32>,
    ) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.followed().clones_of(volume, generation)
    }

    /// Refuses to give up a snapshot, or a volume with all of them, on which clones hang that stay.
    pub(crate) fn check_no_clones(&self, id: &str, snapshot: Option<&str>) -> Result<(), Refused> {
        let Some(volume) = self.volume(id) else { return Ok(()) };
        let generation = match snapshot {
            Some(name) => match self.snapshot(volume.number, name) {
                Some(snapshot) => Some(snapshot.generation),
                None => return Ok(()),
            },
            None => None,
        };
        let clones = self.clones_of(volume.number, generation).filter(|clone| !clone.deleting);
        let names: Vec<String> = clones.map(|clone| clone.id.clone()).collect();
        let what = match snapshot {
            Some(name) => format!("the snapshot '{id}@{name}' is"),
            None => format!("snapshots of the volume '{id}' are"),
        };
        match names.is_empty() {
            true => Ok(()),
            false => Err(has_clones(&what, id, &names)),
        }
    }

    /// Refuses to give up the snapshots of a volume that are later than one, if clones that stay hang on them.
    pub(crate) fn check_no_clones_behind(&self, id: &str, generation: u32) -> Result<(), Refused> {
        let Some(volume) = self.volume(id) else { return Ok(()) };
        let later = self.snapshots_after(volume.number, Some(generation));
        let mut all = later.map(|snapshot| self.check_no_clones(id, Some(&snapshot.id)));
        all.find(Result::is_err).unwrap_or(Ok(()))
    }

    /// What a clone of a snapshot is to be like.
    pub(crate) fn clone_of(&self, source: &CloneSource, size: u64) -> Result<Clone, Refused> {
        let CloneSource { volume: id, snapshot: name } = source;
        let volume = self.volume(id).ok_or_else(|| Refused::volume_not_found(id))?;
        if volume.deleting {
            return Err(being_deleted(id, "cloned"));
        }
        let found = self.snapshot(volume.number, name);
        let snapshot = found.ok_or_else(|| Refused::snapshot_not_found(id, name))?;
        if snapshot.deleting {
            return Err(refusal(
                ErrorReason::VolumeDeleting,
                format!("the snapshot '{id}@{name}' is being deleted; it can not be cloned"),
                vec![("volume", id.clone()), ("snapshot", name.clone())],
            ));
        }
        if snapshot.cut != 0 && !snapshot.ready {
            // It may be given up yet.
            return Err(Refused::volume_busy(volume, "cloned"));
        }
        let depth = self.clone_depth(volume);
        if depth >= CLONE_DEPTH_MAX {
            return Err(refusal(
                ErrorReason::CloneTooDeep,
                format!(
                    "the volume '{id}' is a clone of a clone and so on, {depth} deep, the most there can \
                     be; flatten it first ('basalt volume flatten {id} --wait 600'), or clone another one"
                ),
                vec![("volume", id.clone()), ("depth", depth.to_string())],
            ));
        }
        let size_bytes = if size == 0 { snapshot.size_bytes } else { size };
        if size_bytes < snapshot.size_bytes {
            let message = format!(
                "the snapshot '{id}@{name}' has {} bytes, and a clone of it can not have less ({size})",
                snapshot.size_bytes
            );
            let facts = vec![("field", "size_bytes".to_owned())];
            return Err(refusal(ErrorReason::InvalidField, message, facts));
        }
        let parent = CloneParent {
            volume: volume.number,
            generation: snapshot.generation,
            volume_id: id.clone(),
            snapshot_id: name.clone(),
            size_bytes: snapshot.size_bytes,
        };
        Ok(Clone { size_bytes, lineage: volume.lineage, parent })
    }

    pub(crate) fn settle_clone(
        &mut self,
        index: u64,
        settle: &SettleClone,
    ) -> Result<Outcome, Refused> {
        // One that is gone meanwhile needs nothing any more.
        if let Some(mut volume) = self.find_number(settle.volume).filter(|v| v.cloning) {
            volume.cloning = false;
            volume.revision = index;
        }
        Ok(Outcome::Nothing)
    }

    pub(crate) fn flatten_volume(
        &mut self,
        index: u64,
        flatten: &FlattenVolume,
    ) -> Result<Outcome, Refused> {
        let mut volume = find(&mut self.volumes, &flatten.id)?;
        check_etag(&volume, &flatten.etag)?;
        if volume.deleting {
            return Err(being_deleted(&flatten.id, "flattened"));
        }
        let wanted = volume.parent.is_some() && !flatten.cancel;
        if volume.flattening != wanted {
            volume.flattening = wanted;
            volume.revision = index;
        }
        Ok(Outcome::Volume(volume.clone()))
    }

    pub(crate) fn settle_flatten(
        &mut self,
        index: u64,
        settle: &SettleFlatten,
    ) -> Result<Outcome, Refused> {
        let found = self.find_number(settle.volume);
        if let Some(mut volume) = found.filter(|volume| volume.parent.is_some()) {
            (volume.parent, volume.flattening) = (None, false);
            volume.revision = index;
        }
        Ok(Outcome::Nothing)
    }
}

/// Whether every group has begun a volume, so that it may be attached.
pub(crate) fn check_begun(volume: &VolumeRecord) -> Result<(), Refused> {
    if !volume.cloning {
        return Ok(());
    }
    Err(refusal(
        ErrorReason::VolumeCreating,
        format!(
            "the volume '{}' is still being created; ask again, and see 'basalt cluster status' if it stays \
             so",
            volume.id
        ),
        vec![("volume", volume.id.clone())],
    ))
}

fn has_clones(what: &str, id: &str, names: &[String]) -> Refused {
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| format!("'{name}'")).collect();
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let first = names.first().map_or("", String::as_str);
    refusal(
        ErrorReason::HasClones,
        format!(
            "{what} what {}{more} read where they have nothing of their own; delete them first, or make them \
             volumes of their own ('basalt volume flatten {first} --wait 600')",
            shown.join(", ")
        ),
        vec![("volume", id.to_owned()), ("clones", names.join(","))],
    )
}
