//! Snapshots: names for the generations of a volume.
//!
//! A snapshot gets its volume's generation, and the volume the next one, in one step: so each generation
//! is given once, and every session that begins afterwards writes behind the snapshot. That makes it safe
//! to carry it out at leisure: the groups freeze the generation one by one, and a session that meets the
//! first of them goes on in the next one everywhere.

use crate::rules;
use crate::state::{MetaState, Outcome, Refused, being_deleted, find, not_found, refusal};
use basalt_api::meta::v1::{
    CreateSnapshot, DeleteSnapshot, DeleteVolume, PurgeSnapshot, SettleSnapshot, SnapshotRecord,
};
use basalt_api::v1::ErrorReason;
use std::collections::BTreeMap;

/// The most snapshots of a volume: what its groups can hold.
const SNAPSHOTS_MAX: usize = 1024;

/// The etag of a snapshot.
pub fn etag_of_snapshot(snapshot: &SnapshotRecord) -> String {
    format!("{}-{}", snapshot.generation, snapshot.revision)
}

impl MetaState {
    /// A volume's snapshots whose generations come after one, oldest first; all without one.
    pub fn snapshots_after(
        &self,
        volume: u64,
        generation: Option<u32>,
    ) -> impl Iterator<Item = &SnapshotRecord> {
        use std::ops::Bound::{Excluded, Included};
        let first = generation.map_or(Included((volume, 0)), |g| Excluded((volume, g)));
        self.snapshots.range((first, Included((volume, u32::MAX)))).map(|(_, snapshot)| snapshot)
    }

    /// The keys of a volume's snapshots.
    pub(crate) fn snapshot_keys(&self, volume: u64) -> impl Iterator<Item = (u64, u32)> {
        self.snapshots.range((volume, 0)..=(volume, u32::MAX)).map(|(key, _)| *key)
    }

    /// A volume's snapshot by the last part of its name.
    pub fn snapshot(&self, volume: u64, id: &str) -> Option<&SnapshotRecord> {
        self.snapshot_of(volume, self.snapshots.followed().named(volume, id)?)
    }

    /// A volume's snapshot by its generation.
    pub fn snapshot_of(&self, volume: u64, generation: u32) -> Option<&SnapshotRecord> {
        self.snapshots.get(&(volume, generation))
    }

    /// Snapshots that have to be carried out or deleted one by one, of volumes that stay: one of each volume,
    /// the oldest first, for the groups freeze generations in order.
    pub fn unsettled_snapshots(&self) -> Vec<&SnapshotRecord> {
        let mut all = self.unsettled();
        all.retain(|snapshot| snapshot.deleting || snapshot.cut == 0);
        all
    }

    /// What has to be done next to each volume that stays, if it is about a snapshot.
    pub(crate) fn unsettled(&self) -> Vec<&SnapshotRecord> {
        // A clone begins before anything else is said of it to any group.
        let stays =
            |number: u64| self.volume_by_number(number).is_some_and(|v| !v.deleting && !v.cloning);
        // One on which clones hang that are being deleted waits for their end.
        let held =
            |s: &SnapshotRecord| s.deleting && self.holds_clones(s.volume, Some(s.generation));
        let mut found: Vec<&SnapshotRecord> = Vec::new();
        let unsettled = self.snapshots.followed().unsettled();
        for snapshot in unsettled.map(|key| &self.snapshots[key]).filter(|s| !held(s)) {
            let known = found.last().is_some_and(|last| last.volume == snapshot.volume);
            if !known && stays(snapshot.volume) {
                found.push(snapshot);
            }
        }
        found
    }

    pub(crate) fn create_snapshot(
        &mut self,
        index: u64,
        now_ms: i64,
        create: CreateSnapshot,
    ) -> Result<Outcome, Refused> {
        check_new_snapshot(self, &create.volume, &create.id, &create.labels)?;
        let named = (create.volume, create.id, create.labels);
        Ok(Outcome::Snapshot(new_snapshot(self, (index, now_ms), named, 0)?))
    }

    /// The revision, and so the etag, stays: it says what was asked for, and whoever heard that the snapshot is
    /// complete a moment before that was written down may go on with what he was told.
    pub(crate) fn settle_snapshot(&mut self, settle: &SettleSnapshot) -> Result<Outcome, Refused> {
        // One that is being deleted, or gone, needs nothing any more; one of a cut is settled with the others.
        let found = self.snapshots.get_mut(&(settle.volume, settle.generation));
        if let Some(mut snapshot) = found.filter(|s| !s.ready && !s.deleting && s.cut == 0) {
            snapshot.ready = true;
        }
        Ok(Outcome::Nothing)
    }

    pub(crate) fn delete_snapshot(
        &mut self,
        index: u64,
        delete: DeleteSnapshot,
    ) -> Result<Outcome, Refused> {
        self.check_no_clones(&delete.volume, Some(&delete.id))?;
        let number = self.volume(&delete.volume).ok_or_else(|| not_found(&delete.volume))?.number;
        let snapshot = self
            .snapshot(number, &delete.id)
            .ok_or_else(|| Refused::snapshot_not_found(&delete.volume, &delete.id))?;
        let etag = etag_of_snapshot(snapshot);
        if !delete.etag.is_empty() && delete.etag != etag {
            return Err(refusal(
                ErrorReason::EtagMismatch,
                format!("the snapshot '{}' changed in between; read it again", delete.id),
                vec![("volume", delete.volume), ("snapshot", delete.id), ("etag", etag)],
            ));
        }
        let (cut, ready) = (snapshot.cut, snapshot.ready);
        if cut != 0 && !snapshot.deleting && !(delete.alone && ready) {
            return Err(in_cut(self, &delete, (number, cut), ready));
        }
        let key = (number, snapshot.generation);
        let mut snapshot = self.snapshots.get_mut(&key).expect("found above");
        if !snapshot.deleting {
            snapshot.deleting = true;
            snapshot.revision = index;
        }
        Ok(Outcome::Snapshot(snapshot.clone()))
    }

    pub(crate) fn purge_snapshot(&mut self, purge: PurgeSnapshot) -> Result<Outcome, Refused> {
        // A record that is gone already is what was wanted.
        let key = (purge.volume, purge.generation);
        let held = self.holds_clones(purge.volume, Some(purge.generation));
        if !held && self.snapshots.get(&key).is_some_and(|snapshot| snapshot.deleting) {
            self.snapshots.remove(&key);
        }
        Ok(Outcome::Nothing)
    }
}

/// Whether a snapshot of a volume can be made under a name.
pub(crate) fn check_new_snapshot(
    state: &MetaState,
    volume_id: &str,
    id: &str,
    labels: &BTreeMap<String, String>,
) -> Result<(), Refused> {
    state.check_settled("kept as a snapshot")?;
    let invalid = |field: &str, message: String| {
        refusal(ErrorReason::InvalidField, message, vec![("field", field.to_owned())])
    };
    rules::check_snapshot_id(id).map_err(|e| invalid("snapshot_id", e))?;
    rules::check_labels(labels.iter()).map_err(|e| invalid("labels", e))?;
    let volume = state.volume(volume_id).ok_or_else(|| Refused::volume_not_found(volume_id))?;
    if volume.deleting {
        return Err(being_deleted(volume_id, "kept as a snapshot"));
    }
    if volume.revert.is_some() {
        return Err(Refused::volume_busy(volume, "kept as a snapshot"));
    }
    if let Some(known) = state.snapshot(volume.number, id) {
        return Err(exists(known));
    }
    let count = state.snapshots.followed().count(volume.number);
    if count >= SNAPSHOTS_MAX || volume.generation == u32::MAX {
        let message = format!(
            "the volume '{volume_id}' has {SNAPSHOTS_MAX} snapshots, the most it can have; delete one first"
        );
        return Err(refusal(ErrorReason::Limit, message, vec![("volume", volume_id.to_owned())]));
    }
    Ok(())
}

/// Gives the volume's generation to a snapshot, which was checked, and the next one to the volume.
pub(crate) fn new_snapshot(
    state: &mut MetaState,
    (index, now_ms): (u64, i64),
    (volume_id, id, labels): (String, String, BTreeMap<String, String>),
    cut: u64,
) -> Result<SnapshotRecord, Refused> {
    let mut volume = find(&mut state.volumes, &volume_id)?;
    let snapshot = SnapshotRecord {
        volume: volume.number,
        volume_id,
        id,
        generation: volume.generation,
        size_bytes: volume.size_bytes,
        ready: false,
        deleting: false,
        labels,
        create_time_ms: now_ms,
        revision: index,
        cut,
    };
    volume.generation += 1;
    volume.revision = index;
    drop(volume);
    state.snapshots.insert((snapshot.volume, snapshot.generation), snapshot.clone());
    Ok(snapshot)
}

impl Refused {
    /// There is no such snapshot.
    pub fn snapshot_not_found(volume: &str, id: &str) -> Refused {
        let shown = id.escape_debug().to_string();
        refusal(
            ErrorReason::SnapshotNotFound,
            format!(
                "the volume '{volume}' has no snapshot '{shown}'; 'basalt snapshot list {volume}' shows \
                 those that it has"
            ),
            vec![("volume", volume.to_owned()), ("snapshot", shown)],
        )
    }
}

/// A member of a cut is not deleted alone unless that is said, and not before the cut is complete.
fn in_cut(
    state: &MetaState,
    delete: &DeleteSnapshot,
    (volume, cut): (u64, u64),
    ready: bool,
) -> Refused {
    let others = state.cut(cut).filter(|other| other.volume != volume);
    let others: Vec<String> = others.map(|s| format!("{}@{}", s.volume_id, s.id)).collect();
    let with = if others.is_empty() { "others".to_owned() } else { others.join(", ") };
    let what = match ready {
        true => "delete them all (--together), or say that it alone goes (--alone)",
        false => "they are not complete yet; delete them all (--together), or ask again",
    };
    refusal(
        ErrorReason::SnapshotInCut,
        format!(
            "the snapshot '{}@{}' was taken together with {with}: {what}",
            delete.volume, delete.id
        ),
        vec![("volume", delete.volume.clone()), ("cut", cut.to_string())],
    )
}

fn exists(known: &SnapshotRecord) -> Refused {
    let state = if known.deleting { ", and is being deleted" } else { "" };
    refusal(
        ErrorReason::SnapshotExists,
        format!(
            "the volume '{}' has a snapshot '{}' already{state}; choose another name",
            known.volume_id, known.id
        ),
        vec![("volume", known.volume_id.clone()), ("snapshot", known.id.clone())],
    )
}

/// The snapshots of a volume that is to be deleted go with it, if that was said.
pub(crate) fn delete_with_volume(
    state: &mut MetaState,
    index: u64,
    number: u64,
    delete: &DeleteVolume,
) -> Result<(), Refused> {
    let keys: Vec<(u64, u32)> = state.snapshot_keys(number).collect();
    let count = keys.len();
    if count > 0 && !delete.with_snapshots {
        return Err(refusal(
            ErrorReason::VolumeHasSnapshots,
            format!(
                "the volume '{}' has {count} snapshot(s), which would be deleted with it; delete them \
                 first, or say that it is to be deleted with them (--with-snapshots)",
                delete.id
            ),
            vec![("volume", delete.id.clone()), ("snapshots", count.to_string())],
        ));
    }
    // Without one of its volumes no cut comes to be.
    while let Some(cut) = state.cut_under_way(number) {
        state.abandon_cut(index, cut);
    }
    state.snapshots.change_each(keys, |snapshot| {
        snapshot.deleting = true;
        snapshot.revision = index;
    });
    Ok(())
}
