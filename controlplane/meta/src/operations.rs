//! Operations: what takes longer than a call, from the entry that began it to the one after which the state is as
//! wanted.
//!
//! Nothing reports to an operation. Whether it has ended is asked of the records that it is about whenever they
//! change,
//! so that it can not be left over from work whose end somebody forgot to tell.

use crate::layout;
use crate::state::{MetaState, Outcome, Refused, refusal};
use crate::tracked::Shared;
use basalt_api::meta::v1::entry::Op;
use basalt_api::meta::v1::operation_record::Verb;
use basalt_api::meta::v1::{ForgetOperation, OperationRecord, SnapshotRecord, VolumeRecord};
use basalt_api::v1::{ClusterSpec, ErrorReason, Member};
use std::collections::BTreeSet;

/// Ended operations that are kept; the oldest go first.
pub const ENDED_MAX: usize = 1024;

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The state is as wanted.
    Done,
    /// It was called off, or what it was about is gone.
    Cancelled,
}

impl MetaState {
    /// The operations, oldest first.
    pub fn operations(&self) -> impl DoubleEndedIterator<Item = &OperationRecord> {
        self.operations.values()
    }

    /// An operation by its number.
    pub fn operation(&self, number: u64) -> Option<&OperationRecord> {
        self.operations.get(&number)
    }

    /// The operation under way on a volume itself that began last.
    pub fn operation_on(&self, volume: u64) -> Option<&OperationRecord> {
        self.open_on(volume).filter(|op| op.generation == NO_SNAPSHOT).last()
    }

    /// Operations under way that are about a volume or its snapshots, oldest first; 0: about none.
    fn open_on(&self, volume: u64) -> impl Iterator<Item = &OperationRecord> {
        let numbers = self.open.range((volume, 0)..=(volume, u64::MAX));
        numbers.filter_map(|(_, number)| self.operations.get(number))
    }

    /// Begins what an entry began.
    pub(crate) fn begin_operations(&mut self, at: (u64, i64), op: &Op, outcome: &Outcome) {
        let of_volume = |verb, volume: &VolumeRecord| OperationRecord {
            target: format!("volumes/{}", volume.id),
            ..made(at, verb, volume.number, NO_SNAPSHOT)
        };
        let of_snapshot = |verb, s: &SnapshotRecord| OperationRecord {
            target: format!("volumes/{}/snapshots/{}", s.volume_id, s.id),
            ..made(at, verb, s.volume, s.generation)
        };
        let of_cut = |verb, snapshots: &[SnapshotRecord]| OperationRecord {
            target: format!("cuts/{}", snapshots.first().map_or(0, |s| s.cut)),
            cut: snapshots.first().map_or(0, |s| s.cut),
            ..made(at, verb, 0, NO_SNAPSHOT)
        };
        let of_member = |verb, member: &Member| OperationRecord {
            target: format!("nodes/{}", member.name),
            node: member.node,
            ..made(at, verb, 0, NO_SNAPSHOT)
        };
        let begun = match (op, outcome) {
            (Op::CreateVolume(_), Outcome::Volume(v)) if v.cloning => of_volume(Verb::Create, v),
            (Op::DeleteVolume(_), Outcome::Volume(v)) => of_volume(Verb::Delete, v),
            (Op::AdoptVolume(adopt), Outcome::Volume(v)) if adopt.delete => {
                of_volume(Verb::Delete, v)
            }
            (Op::FlattenVolume(_), Outcome::Volume(v)) if v.flattening => {
                of_volume(Verb::Flatten, v)
            }
            (Op::RevertVolume(_), Outcome::Volume(v)) => of_volume(Verb::Revert, v),
            (Op::CreateSnapshot(_), Outcome::Snapshot(s)) => of_snapshot(Verb::Create, s),
            (Op::DeleteSnapshot(_), Outcome::Snapshot(s)) => of_snapshot(Verb::Delete, s),
            (Op::CreateCut(_), Outcome::Cut(all)) => of_cut(Verb::Create, all),
            (Op::DeleteCut(_), Outcome::Cut(all)) => of_cut(Verb::Delete, all),
            (Op::DrainMember(_), Outcome::Member(m)) if m.draining => of_member(Verb::Drain, m),
            (Op::RemoveMember(_), Outcome::Member(m)) => of_member(Verb::Remove, m),
            _ => return,
        };
        let same =
            |known: &OperationRecord| (known.verb, &known.target) == (begun.verb, &begun.target);
        // Asked for again while it is under way.
        if self.open_on(begun.volume).any(same) {
            return;
        }
        self.open.insert((begun.volume, begun.number));
        self.operations.insert(begun.number, begun);
    }

    /// Ends what the state says has ended. Only what is about records that changed can have.
    pub(crate) fn end_operations(&mut self, (index, now_ms): (u64, i64)) {
        let ended: Vec<(u64, u64, End)> = self
            .changed_volumes()
            .into_iter()
            .flat_map(|volume| self.open_on(volume))
            .filter_map(|op| self.end_of(op).map(|end| (op.volume, op.number, end)))
            .collect();
        for (volume, number, end) in ended {
            self.open.remove(&(volume, number));
            let mut op = self.operations.get_mut(&number).expect("found above");
            op.end_time_ms = now_ms.max(1);
            op.cancelled = end == End::Cancelled;
            op.revision = index;
        }
        let over = self.operations.len() - self.open.len();
        let oldest = self.operations.values().filter(|op| op.end_time_ms != 0);
        let oldest: Vec<u64> =
            oldest.map(|op| op.number).take(over.saturating_sub(ENDED_MAX)).collect();
        oldest.iter().for_each(|number| self.operations.remove(number));
    }

    /// The numbers of the volumes that the entry may have changed, themselves or their snapshots, and 0 for all else.
    fn changed_volumes(&self) -> BTreeSet<u64> {
        let number = |(id, gone): (&String, Option<&Shared<VolumeRecord>>)| {
            gone.map(|volume| &**volume).or_else(|| self.volume(id)).map(|volume| volume.number)
        };
        let volumes = self.volumes.touched().filter_map(number);
        let snapshots = self.snapshots.touched().map(|((volume, _), _)| *volume);
        volumes.chain(snapshots).chain([0]).collect()
    }

    fn end_of(&self, op: &OperationRecord) -> Option<End> {
        let when = |done: bool| done.then_some(End::Done);
        if op.cut != 0 {
            let mut all = self.cut(op.cut).peekable();
            return match op.verb() {
                Verb::Create if all.peek().is_none() => Some(End::Cancelled),
                Verb::Create if all.any(|s| s.deleting) => Some(End::Cancelled),
                Verb::Create => when(self.cut(op.cut).all(|s| s.ready)),
                _ => when(all.peek().is_none()),
            };
        }
        if op.node != 0 {
            return self.end_of_member(op);
        }
        if op.generation != NO_SNAPSHOT {
            let snapshot = self.snapshot_of(op.volume, op.generation);
            return match (op.verb(), snapshot) {
                (Verb::Delete, snapshot) => when(snapshot.is_none()),
                (_, Some(s)) if !s.deleting => when(s.ready),
                (_, _) => Some(End::Cancelled),
            };
        }
        let volume = self.volume_by_number(op.volume);
        match (op.verb(), volume) {
            (Verb::Delete, volume) => when(volume.is_none()),
            (_, None) => Some(End::Cancelled),
            (_, Some(v)) if v.deleting => Some(End::Cancelled),
            (Verb::Create, Some(v)) => when(!v.cloning),
            (Verb::Revert, Some(v)) => when(v.revert.is_none()),
            (_, Some(v)) if v.parent.is_none() => Some(End::Done),
            (_, Some(v)) => (!v.flattening).then_some(End::Cancelled),
        }
    }

    fn end_of_member(&self, op: &OperationRecord) -> Option<End> {
        let spec = self.cluster()?;
        let Some(member) = spec.members.iter().find(|m| m.node == op.node) else {
            return Some(End::Done);
        };
        match op.verb() {
            Verb::Drain if !member.draining => Some(End::Cancelled),
            Verb::Drain => (groups_named(spec, op.node) == 0).then_some(End::Done),
            _ => None,
        }
    }

    pub(crate) fn forget_operation(
        &mut self,
        forget: &ForgetOperation,
    ) -> Result<Outcome, Refused> {
        let known = self.operation(forget.number);
        let known =
            known.ok_or_else(|| Refused::operation_not_found(&forget.number.to_string()))?;
        if known.end_time_ms == 0 {
            return Err(refusal(
                ErrorReason::OperationUnderWay,
                format!(
                    "the operation {} is under way; it can be forgotten when it has ended",
                    known.number
                ),
                vec![("operation", known.number.to_string())],
            ));
        }
        self.operations.remove(&forget.number);
        Ok(Outcome::Nothing)
    }
}

/// Stands for no snapshot: no volume has so many.
const NO_SNAPSHOT: u32 = u32::MAX;

fn made((index, now_ms): (u64, i64), verb: Verb, volume: u64, generation: u32) -> OperationRecord {
    OperationRecord {
        number: index,
        verb: verb.into(),
        volume,
        generation,
        create_time_ms: now_ms,
        revision: index,
        ..OperationRecord::default()
    }
}

/// How many volume groups are on a node, or on their way from it.
pub fn groups_named(spec: &ClusterSpec, node: u32) -> usize {
    let named = |group: &u32| layout::names(&layout::placement_of(spec, *group), node);
    (0..spec.group_count).filter(named).count()
}

impl Refused {
    /// There is no such operation.
    pub fn operation_not_found(number: &str) -> Refused {
        let shown = number.escape_debug().to_string();
        refusal(
            ErrorReason::OperationNotFound,
            format!(
                "there is no operation '{shown}'; of those that have ended the newest {ENDED_MAX} are kept \
                 ('basalt operation list')"
            ),
            vec![("operation", shown)],
        )
    }
}
