//! A cluster whose metadata is lost goes on from a backup.
//!
//! The backup is older than what the nodes hold: volumes were made, attached, and kept as snapshots since, of which it
//! knows nothing. So everything that was ever given out only once is raised first, beyond whatever may have been
//! given out since: the index of the log, and with it revisions and names of operations; the metadata group's
//! term; the numbers of volumes; epochs, so that no session of before is let in beside a later one; the map's version.
//! All of these are counted up one by one, slower than once a microsecond, and the time in microseconds is what
//! they are raised to: so a second restore from the same file gives out nothing that the first one gave out.
//!
//! Generations can not be raised so: a group counts each between two as a snapshot. They are raised to what the
//! groups hold, once these can be asked ([`MetaState::settle_restore`]); until then nothing is attached, and
//! nothing is kept as a snapshot. What groups hold and no record names is shown, and adopted or deleted when somebody
//! says so ([`MetaState::adopt_volume`]); nothing of it goes by itself.

use crate::rules;
use crate::state::{MetaState, Outcome, Refused, refusal};
use crate::tracked::Shared;
use basalt_api::meta::v1::{
    AdoptVolume, CloneParent, HeldRecord, RestoreRecord, SettleRestore, SnapshotRecord,
    VolumeRecord,
};
use basalt_api::v1::event::Severity;
use basalt_api::v1::{ClusterSpec, ErrorReason, Placement, Voters};
use std::collections::BTreeSet;

/// The most volumes that one [`SettleRestore`] tells of.
pub const SETTLED_AT_ONCE: usize = 1000;

/// What is decided about a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Microseconds since 1970.
    pub now_us: u64,
    /// When the backup was taken, milliseconds since 1970.
    pub taken_ms: i64,
    /// The voters of the new metadata group; none for those of the backup.
    pub voters: Vec<u32>,
    /// Whether bearer tokens count on. One that was revoked since the backup would be good again.
    pub keep_tokens: bool,
}

impl MetaState {
    /// The restore from which the state goes on, if there ever was one.
    pub fn restored(&self) -> Option<&RestoreRecord> {
        self.restored.as_ref()
    }

    /// Whether a restore is not compared with what the groups hold yet.
    pub fn is_settling(&self) -> bool {
        self.restored.as_ref().is_some_and(|record| !record.settled)
    }

    /// The state with which a new metadata group begins, from that of a backup.
    ///
    /// # Errors
    /// If the state is of no cluster, a voter is no member, or the clock is behind what the state was raised to.
    pub fn restore(&self, plan: &Plan) -> Result<MetaState, String> {
        let Some(spec) = &self.cluster else {
            return Err("the backup is of no cluster".to_owned());
        };
        let at = plan.now_us;
        let highest = self.volumes().map(|volume| volume.epoch).max().unwrap_or(0);
        let highest = highest.max(self.applied).max(self.last_volume).max(self.map_version);
        if at <= highest {
            return Err(format!(
                "the clock stands at {at} microseconds since 1970, and the backup knows of {highest} already: set \
                 the clock"
            ));
        }
        let spec = placed_anew(spec, &plan.voters)?;
        let record = RestoreRecord {
            index: at,
            term: at,
            from_index: self.applied,
            from_taken_ms: plan.taken_ms,
            time_ms: (at / 1000) as i64,
            settled: false,
        };
        let mut state = self.clone();
        (state.applied, state.last_volume, state.map_version) = (at, at, at);
        state.cluster = Some(spec.into());
        if !plan.keep_tokens {
            state.tokens.end_all();
        }
        let names: Vec<String> = state.volumes().map(|volume| volume.id.clone()).collect();
        state.volumes.change_each(names, |volume| {
            (volume.epoch, volume.revision, volume.attachment) = (at, at, None);
        });
        let taken = record.from_index;
        state.restored = Some(record);
        let message = format!("the metadata goes on from a backup as of entry {taken}");
        state.tell(
            (at, (at / 1000) as i64),
            Severity::Warning,
            ("METADATA_RESTORED", "cluster".to_owned(), message),
        );
        state.forget_changes();
        Ok(state)
    }

    /// Refuses what has to wait until a restore is compared with what the groups hold.
    pub(crate) fn check_settled(&self, what: &str) -> Result<(), Refused> {
        if !self.is_settling() {
            return Ok(());
        }
        let message = format!(
            "the metadata was restored, and is not compared with what the nodes hold yet: no volume is {what} \
             before. It takes a leader of every group ('basalt cluster status'); ask again"
        );
        Err(refusal(ErrorReason::VolumeBusy, message, vec![]))
    }

    /// The groups hold this of volumes: the records catch up with it.
    pub(crate) fn settle_restore(
        &mut self,
        index: u64,
        now_ms: i64,
        settle: &SettleRestore,
    ) -> Result<Outcome, Refused> {
        let due = self.restored.as_ref().is_some_and(|r| r.index == settle.index && !r.settled);
        if !due {
            return Ok(Outcome::Nothing);
        }
        for held in &settle.volumes {
            self.settle_volume(index, now_ms, held);
        }
        if settle.last
            && let Some(record) = &mut self.restored
        {
            record.settled = true;
        }
        Ok(Outcome::Nothing)
    }

    fn settle_volume(&mut self, index: u64, now_ms: i64, held: &HeldRecord) {
        let Some(mut volume) = self.find_number(held.number) else { return };
        volume.epoch = volume.epoch.max(held.epoch);
        volume.generation = volume.generation.max(held.generation);
        volume.revision = index;
        let after = Shared::clone(&volume);
        drop(volume);
        self.keep_held_snapshots(index, now_ms, held, &after);
    }

    /// What is kept and has no record gets one, so that it can be read, and deleted.
    fn keep_held_snapshots(
        &mut self,
        index: u64,
        now_ms: i64,
        held: &HeldRecord,
        volume: &VolumeRecord,
    ) {
        let below = |generation: &&u32| **generation < volume.generation;
        for generation in held.snapshots.iter().filter(below) {
            let key = (volume.number, *generation);
            if self.snapshots.contains_key(&key) {
                continue;
            }
            let snapshot = SnapshotRecord {
                volume: volume.number,
                volume_id: volume.id.clone(),
                id: format!("restored-{generation}"),
                generation: *generation,
                size_bytes: volume.size_bytes,
                ready: true,
                create_time_ms: now_ms,
                revision: index,
                ..SnapshotRecord::default()
            };
            self.snapshots.insert(key, snapshot);
        }
    }

    /// Makes a volume of what groups hold under a number that no volume has.
    pub(crate) fn adopt_volume(
        &mut self,
        index: u64,
        now_ms: i64,
        adopt: AdoptVolume,
    ) -> Result<Outcome, Refused> {
        let invalid = |field: &str, message: String| {
            refusal(ErrorReason::InvalidField, message, vec![("field", field.to_owned())])
        };
        let held = adopt.held.unwrap_or_default();
        rules::check_volume_id(&adopt.id).map_err(|e| invalid("volume_id", e))?;
        rules::check_size(adopt.size_bytes).map_err(|e| invalid("size_bytes", e))?;
        self.check_settled("adopted")?;
        if held.number == 0 || held.number > self.last_volume {
            let message = format!("no volume ever had the number {}", held.number);
            return Err(invalid("number", message));
        }
        let taken = self.volume_by_number(held.number).or_else(|| self.volume(&adopt.id));
        if let Some(known) = taken {
            let message = format!(
                "the volume '{}' has the number {}; choose what no volume has",
                known.id, known.number
            );
            let facts = vec![("volume", known.id.clone())];
            return Err(refusal(ErrorReason::VolumeExists, message, facts));
        }
        let parent = self.parent_of_adopted(&held)?;
        self.check_quotas(&adopt.id, &Default::default(), adopt.size_bytes)?;
        let lineage = parent.as_ref().and_then(|parent| self.volume_by_number(parent.volume));
        let volume = Shared::new(VolumeRecord {
            number: held.number,
            id: adopt.id.clone(),
            size_bytes: adopt.size_bytes,
            lineage: lineage.map_or(held.number, |volume| volume.lineage),
            // Whoever had it is shut out by the first session.
            epoch: held.epoch.max(index),
            generation: held.generation,
            deleting: adopt.delete,
            create_time_ms: now_ms,
            revision: index,
            parent,
            ..VolumeRecord::default()
        });
        self.volumes.insert(adopt.id, volume.clone());
        self.keep_held_snapshots(index, now_ms, &held, &volume);
        if adopt.delete {
            let keys: Vec<(u64, u32)> = self.snapshot_keys(held.number).collect();
            self.snapshots.change_each(keys, |snapshot| snapshot.deleting = true);
        }
        Ok(Outcome::Volume(volume))
    }

    fn parent_of_adopted(&self, held: &HeldRecord) -> Result<Option<CloneParent>, Refused> {
        if held.parent == 0 {
            return Ok(None);
        }
        let snapshot = self.snapshot_of(held.parent, held.parent_generation);
        let Some(snapshot) = snapshot.filter(|snapshot| !snapshot.deleting) else {
            let message = format!(
                "what is held under the number {} is a clone of generation {} of volume {}, which no record \
                 names: adopt that one first",
                held.number, held.parent_generation, held.parent
            );
            return Err(refusal(ErrorReason::SnapshotNotFound, message, vec![]));
        };
        Ok(Some(CloneParent {
            volume: snapshot.volume,
            generation: snapshot.generation,
            volume_id: snapshot.volume_id.clone(),
            snapshot_id: snapshot.id.clone(),
            size_bytes: snapshot.size_bytes,
        }))
    }
}

/// The layout with a metadata group that begins anew. Where the volume groups are is what they say themselves: each
/// counts as on its way from any member to where the backup has it, so that none of its replicas is taken for a stray
/// before it is there.
fn placed_anew(spec: &ClusterSpec, voters: &[u32]) -> Result<ClusterSpec, String> {
    use crate::layout::{METADATA_GROUP, placement_of};
    let members: BTreeSet<u32> = spec.members.iter().map(|member| member.node).collect();
    let voters = match voters.is_empty() {
        true => placement_of(spec, METADATA_GROUP).voters,
        false => voters.to_vec(),
    };
    if let Some(other) = voters.iter().find(|node| !members.contains(node)) {
        return Err(format!("node {other} is no member of the cluster as of the backup"));
    }
    let on_its_way = |voters: Vec<u32>, learners: Vec<u32>| {
        let others =
            members.iter().filter(|node| !voters.contains(node) && !learners.contains(node));
        Placement { former: others.copied().collect(), voters, learners, moving: true }
    };
    let learners = members.iter().copied().filter(|node| !voters.contains(node)).collect();
    let of = |group: u32| on_its_way(placement_of(spec, group).voters, Vec::new());
    Ok(ClusterSpec {
        placements: (0..spec.group_count).map(of).collect(),
        metadata_placement: Some(on_its_way(voters.clone(), learners)),
        metadata: Some(Voters { nodes: voters }),
        ..spec.clone()
    })
}
