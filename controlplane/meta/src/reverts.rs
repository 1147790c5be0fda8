//! Reverts: a volume becomes what it was in one of its snapshots.
//!
//! The groups do it one by one, so nobody may write to the volume meanwhile: it is not attached, and can not be
//! until every group has done it. Later snapshots can not outlive it.

use crate::state::{MetaState, Outcome, Refused, being_deleted, check_etag, find, refusal};
use basalt_api::meta::v1::{
    RevertRecord, RevertVolume, SettleRevert, SnapshotRecord, VolumeRecord,
};
use basalt_api::v1::ErrorReason;

impl MetaState {
    /// Volumes that have to be reverted.
    pub fn unsettled_reverts(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.followed().reverting().filter(|volume| !volume.deleting)
    }

    pub(crate) fn revert_volume(
        &mut self,
        index: u64,
        revert: &RevertVolume,
    ) -> Result<Outcome, Refused> {
        self.check_settled("reverted")?;
        let volume =
            self.volumes.get(&revert.id).ok_or_else(|| Refused::volume_not_found(&revert.id))?;
        check_etag(volume, &revert.etag)?;
        check_unused(volume)?;
        let number = volume.number;
        let snapshot = self
            .snapshot(number, &revert.snapshot)
            .filter(|snapshot| !snapshot.deleting)
            .ok_or_else(|| Refused::snapshot_not_found(&revert.id, &revert.snapshot))?;
        let generation = snapshot.generation;
        self.check_no_clones_behind(&revert.id, generation)?;
        let held = |dropped: &SnapshotRecord| self.holds_clones(number, Some(dropped.generation));
        // Clones that are left are being deleted, and the groups refuse until they are.
        if self.snapshots_after(number, Some(generation)).any(held) {
            return Err(Refused::volume_busy(volume, "reverted"));
        }
        if volume.revert.is_some() || !snapshot.ready || self.cut_under_way(number).is_some() {
            return Err(Refused::volume_busy(volume, "reverted"));
        }
        let later = |s: &&SnapshotRecord| !s.deleting;
        let later: Vec<&SnapshotRecord> =
            self.snapshots_after(number, Some(generation)).filter(later).collect();
        if let (Some(first), false) = (later.first(), revert.drop_later) {
            return Err(later_snapshots(revert, &first.id, later.len()));
        }
        let gone: Vec<(u64, u32)> = later.iter().map(|s| (s.volume, s.generation)).collect();
        self.snapshots.change_each(gone, |snapshot| {
            snapshot.deleting = true;
            snapshot.revision = index;
        });
        let mut volume = find(&mut self.volumes, &revert.id)?;
        volume.revert = Some(RevertRecord { generation });
        volume.revision = index;
        Ok(Outcome::Volume(volume.clone()))
    }

    pub(crate) fn settle_revert(
        &mut self,
        index: u64,
        settle: &SettleRevert,
    ) -> Result<Outcome, Refused> {
        let Some(mut volume) = self.find_number(settle.volume) else {
            return Ok(Outcome::Nothing);
        };
        if volume.revert.as_ref().is_some_and(|revert| revert.generation == settle.generation) {
            volume.revert = None;
            volume.revision = index;
        }
        Ok(Outcome::Nothing)
    }
}

impl Refused {
    /// Something else is being done to the volume.
    pub(crate) fn volume_busy(volume: &VolumeRecord, what: &str) -> Refused {
        let why = match volume.revert {
            Some(_) => "it is being reverted to a snapshot",
            None => "a snapshot of it is not complete yet",
        };
        refusal(
            ErrorReason::VolumeBusy,
            format!(
                "the volume '{}' can not be {what} now: {why}; ask again. 'basalt volume show {}' and \
                 'basalt snapshot list {}' tell how far it is",
                volume.id, volume.id, volume.id
            ),
            vec![("volume", volume.id.clone())],
        )
    }
}

fn check_unused(volume: &VolumeRecord) -> Result<(), Refused> {
    if volume.deleting {
        return Err(being_deleted(&volume.id, "reverted"));
    }
    let Some(attachment) = &volume.attachment else { return Ok(()) };
    Err(refusal(
        ErrorReason::VolumeAttached,
        format!(
            "the volume '{}' is attached to '{}', whose caches know nothing of a revert; detach it \
             first, and attach it again afterwards",
            volume.id, attachment.host
        ),
        vec![("volume", volume.id.clone()), ("host", attachment.host.clone())],
    ))
}

fn later_snapshots(revert: &RevertVolume, first: &str, count: usize) -> Refused {
    refusal(
        ErrorReason::LaterSnapshots,
        format!(
            "{count} snapshot(s) of the volume '{}' are later than '{}', the first of them '{first}'; a \
             revert deletes them: say so (--drop-later), or make a clone of '{}' instead",
            revert.id, revert.snapshot, revert.snapshot
        ),
        vec![("volume", revert.id.clone()), ("snapshots", count.to_string())],
    )
}
