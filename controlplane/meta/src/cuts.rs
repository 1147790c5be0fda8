//! Cuts: snapshots of several volumes that are one point in time together.
//!
//! Their records are made in one step, as if each had been asked for alone; what is different is that they are
//! complete in one step, too, or given up in one. Until then the volumes keep their sizes: a group that a
//! volume grew into would not know that it has to wait for the others.

use crate::snapshots::{check_new_snapshot, new_snapshot};
use crate::state::{MetaState, Outcome, Refused, refusal};
use basalt_api::meta::v1::{CreateCut, DeleteCut, GiveUpCut, SettleCut, SnapshotRecord};
use basalt_api::v1::ErrorReason;
use std::collections::BTreeSet;

/// The most volumes of a cut.
const VOLUMES_MAX: usize = 256;

impl MetaState {
    /// The snapshots of a cut, by volume.
    pub fn cut(&self, cut: u64) -> impl Iterator<Item = &SnapshotRecord> {
        self.snapshots.followed().of_cut(cut).map(|key| &self.snapshots[&key])
    }

    /// Cuts that can be carried out now, with their snapshots: nothing older is to be done to any of their
    /// volumes.
    pub fn unsettled_cuts(&self) -> Vec<(u64, Vec<&SnapshotRecord>)> {
        let next = self.unsettled();
        let mut cuts: Vec<u64> = next.iter().filter(|s| is_unsettled(s)).map(|s| s.cut).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut found = Vec::new();
        for cut in cuts {
            let all: Vec<&SnapshotRecord> = self.cut(cut).collect();
            if all.iter().all(|snapshot| next.contains(snapshot)) {
                found.push((cut, all));
            }
        }
        found
    }

    /// The cut that a volume is part of and that is not settled.
    pub(crate) fn cut_under_way(&self, volume: u64) -> Option<u64> {
        self.snapshots_after(volume, None).find(|s| is_unsettled(s)).map(|s| s.cut)
    }

    pub(crate) fn create_cut(
        &mut self,
        index: u64,
        now_ms: i64,
        create: CreateCut,
    ) -> Result<Outcome, Refused> {
        let invalid = |message: String| {
            let facts = vec![("field", "snapshots".to_owned())];
            refusal(ErrorReason::InvalidField, message, facts)
        };
        let count = create.snapshots.len();
        if !(1..=VOLUMES_MAX).contains(&count) {
            return Err(invalid(format!("{count} snapshots; a cut has 1 to {VOLUMES_MAX}")));
        }
        let mut volumes = BTreeSet::new();
        for new in &create.snapshots {
            if !volumes.insert(&new.volume) {
                let message = format!("the volume '{}' is named twice", new.volume.escape_debug());
                return Err(invalid(message));
            }
            check_new_snapshot(self, &new.volume, &new.id, &create.labels)?;
        }
        let mut made = Vec::with_capacity(count);
        for new in create.snapshots {
            let labels = create.labels.clone();
            let snapshot =
                new_snapshot(self, (index, now_ms), (new.volume, new.id, labels), index)?;
            made.push(snapshot);
        }
        Ok(Outcome::Cut(made))
    }

    pub(crate) fn settle_cut(&mut self, settle: &SettleCut) -> Result<Outcome, Refused> {
        // What was given up meanwhile stays given up.
        let whole = self.cut(settle.cut).all(|snapshot| !snapshot.deleting);
        let keys = if whole { self.keys_of_cut(settle.cut) } else { Vec::new() };
        self.snapshots.change_each(keys, |snapshot| snapshot.ready = true);
        Ok(Outcome::Nothing)
    }

    pub(crate) fn give_up_cut(&mut self, index: u64, give: &GiveUpCut) -> Result<Outcome, Refused> {
        self.abandon_cut(index, give.cut);
        Ok(Outcome::Nothing)
    }

    pub(crate) fn delete_cut(
        &mut self,
        index: u64,
        delete: &DeleteCut,
    ) -> Result<Outcome, Refused> {
        if self.cut(delete.cut).next().is_none() {
            return Err(Refused::cut_not_found(delete.cut));
        }
        for snapshot in self.cut(delete.cut) {
            self.check_no_clones(&snapshot.volume_id, Some(&snapshot.id))?;
        }
        self.snapshots.change_each(self.keys_of_cut(delete.cut), |snapshot| {
            if !snapshot.deleting {
                snapshot.deleting = true;
                snapshot.revision = index;
            }
        });
        Ok(Outcome::Cut(self.cut(delete.cut).cloned().collect()))
    }

    /// All snapshots of a cut are to be deleted, unless it is complete.
    pub(crate) fn abandon_cut(&mut self, index: u64, cut: u64) {
        let mut keys = self.keys_of_cut(cut);
        keys.retain(|key| is_unsettled(&self.snapshots[key]));
        self.snapshots.change_each(keys, |snapshot| {
            snapshot.deleting = true;
            snapshot.revision = index;
        });
    }

    fn keys_of_cut(&self, cut: u64) -> Vec<(u64, u32)> {
        self.snapshots.followed().of_cut(cut).collect()
    }
}

impl Refused {
    /// There is no such cut.
    pub fn cut_not_found(cut: u64) -> Refused {
        refusal(
            ErrorReason::CutNotFound,
            format!("there is no cut {cut}, or all of its snapshots are deleted"),
            vec![("cut", cut.to_string())],
        )
    }

    /// A cut could not be completed.
    pub fn cut_given_up(cut: u64) -> Refused {
        refusal(
            ErrorReason::CutGivenUp,
            "not every group of the volumes answered in time, so that the snapshots would be no one \
             point in time; none of them is kept. Ask again; if that fails too, 'basalt cluster status' \
             tells what does not answer"
                .to_owned(),
            vec![("cut", cut.to_string())],
        )
    }
}

/// Whether a snapshot is part of a cut that is neither complete nor given up.
fn is_unsettled(snapshot: &SnapshotRecord) -> bool {
    snapshot.cut != 0 && !snapshot.ready && !snapshot.deleting
}
