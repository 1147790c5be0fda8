//! The rules of cuts and reverts.

use basalt_api::v1::ErrorReason;
use basalt_meta::{
    AttachVolume, CreateCut, CreateSnapshot, CreateVolume, DeleteCut, DeleteSnapshot, DeleteVolume,
    DetachVolume, ENTRY_VERSION, Entry, GiveUpCut, MetaState, NewSnapshot, Op, Outcome,
    PurgeSnapshot, PurgeVolume, ResizeVolume, RevertVolume, SettleCut, SettleRevert,
    SettleSnapshot, SnapshotRecord, encode,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Default)]
struct Machine {
    state: MetaState,
    index: u64,
}

impl Machine {
    fn with(volumes: &[&str]) -> Machine {
        let mut machine = Machine::default();
        volumes.iter().for_each(|id| drop(machine.done(create(id))));
        machine
    }

    fn run(&mut self, op: Op) -> Outcome {
        self.index += 1;
        let entry = Entry { version: ENTRY_VERSION, now_ms: 1, op: Some(op), ..Entry::default() };
        let outcome = self.state.apply(self.index, &encode(&entry));
        assert!(self.state.indexes_are_exact());
        outcome
    }

    fn done(&mut self, op: Op) -> Outcome {
        match self.run(op) {
            Outcome::Refused(refused) => panic!("refused: {}", refused.message),
            outcome => outcome,
        }
    }

    fn cut(&mut self, members: &[(&str, &str)]) -> u64 {
        match self.done(cut(members)) {
            Outcome::Cut(snapshots) => snapshots[0].cut,
            other => panic!("expected a cut, got {other:?}"),
        }
    }

    fn reason(&mut self, op: Op) -> ErrorReason {
        match self.run(op) {
            Outcome::Refused(refused) => refused.reason,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn cuts_to_do(&self) -> Vec<u64> {
        self.state.unsettled_cuts().into_iter().map(|(cut, _)| cut).collect()
    }

    fn singles_to_do(&self) -> Vec<(u64, u32)> {
        self.state.unsettled_snapshots().iter().map(|s| (s.volume, s.generation)).collect()
    }
}

fn create(id: &str) -> Op {
    let (id, labels) = (id.to_owned(), BTreeMap::new());
    Op::CreateVolume(CreateVolume { id, size_bytes: 1 << 30, labels, ..CreateVolume::default() })
}

fn cut(members: &[(&str, &str)]) -> Op {
    let new = |(volume, id): &(&str, &str)| NewSnapshot {
        volume: (*volume).to_owned(),
        id: (*id).to_owned(),
    };
    let snapshots = members.iter().map(new).collect();
    Op::CreateCut(CreateCut { snapshots, labels: BTreeMap::new() })
}

fn snapshot(volume: &str, id: &str) -> Op {
    let (volume, id) = (volume.to_owned(), id.to_owned());
    Op::CreateSnapshot(CreateSnapshot { volume, id, labels: BTreeMap::new() })
}

fn settle(volume: u64, generation: u32) -> Op {
    Op::SettleSnapshot(SettleSnapshot { volume, generation })
}

fn drop_one(volume: &str, id: &str, alone: bool) -> Op {
    let (volume, id) = (volume.to_owned(), id.to_owned());
    Op::DeleteSnapshot(DeleteSnapshot { volume, id, alone, ..DeleteSnapshot::default() })
}

fn resize(id: &str) -> Op {
    let id = id.to_owned();
    Op::ResizeVolume(ResizeVolume { id, size_bytes: 2 << 30, ..ResizeVolume::default() })
}

fn attach(id: &str) -> Op {
    let (id, host) = (id.to_owned(), "h".to_owned());
    Op::AttachVolume(AttachVolume { id, host, renew: true, ..AttachVolume::default() })
}

fn revert(id: &str, to: &str, drop_later: bool) -> Op {
    let (id, snapshot) = (id.to_owned(), to.to_owned());
    Op::RevertVolume(RevertVolume { id, snapshot, drop_later, etag: String::new() })
}

#[test]
fn a_cut_is_made_whole_or_not_at_all() {
    let mut m = Machine::with(&["a", "b"]);
    for (members, reason) in [
        (&[("a", "x"), ("c", "x")][..], ErrorReason::VolumeNotFound),
        (&[("a", "x"), ("a", "y")], ErrorReason::InvalidField),
        (&[("a", "x"), ("b", "X")], ErrorReason::InvalidField),
        (&[], ErrorReason::InvalidField),
    ] {
        let before = m.state.clone();
        assert_eq!(m.reason(cut(members)), reason, "{members:?}");
        assert!(before.volumes().eq(m.state.volumes()));
        assert_eq!(m.state.snapshots_after(1, None).count(), 0, "{members:?}");
    }
    m.done(snapshot("b", "x"));
    assert_eq!(m.reason(cut(&[("a", "x"), ("b", "x")])), ErrorReason::SnapshotExists);
    assert_eq!(m.state.snapshots_after(1, None).count(), 0);
    let number = m.cut(&[("a", "x"), ("b", "y")]);
    assert_eq!(m.state.cut(number).map(|s| s.generation).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(m.state.cut(0).count(), 0, "single snapshots are no cut");
}

#[test]
fn a_cut_waits_for_what_is_older_and_is_complete_in_one_step() {
    let mut m = Machine::with(&["a", "b"]);
    m.done(snapshot("a", "old"));
    let number = m.cut(&[("a", "x"), ("b", "x")]);
    assert_eq!((m.cuts_to_do(), m.singles_to_do()), (vec![], vec![(1, 0)]));
    m.done(settle(1, 0));
    assert_eq!((m.cuts_to_do(), m.singles_to_do()), (vec![number], vec![]));
    m.done(settle(1, 1));
    assert_eq!(m.cuts_to_do(), [number], "none of its snapshots is complete alone");
    m.done(snapshot("b", "later"));
    assert_eq!(m.singles_to_do(), [], "it comes behind the cut");
    m.done(Op::SettleCut(SettleCut { cut: number }));
    assert!(m.state.cut(number).all(|s| s.ready));
    assert_eq!((m.cuts_to_do(), m.singles_to_do()), (vec![], vec![(2, 1)]));
    // Late word that it failed changes nothing.
    m.done(Op::GiveUpCut(GiveUpCut { cut: number }));
    assert!(m.state.cut(number).all(|s| s.ready && !s.deleting));
}

#[test]
fn a_cut_that_is_given_up_is_deleted() {
    let mut m = Machine::with(&["a", "b"]);
    let number = m.cut(&[("a", "x"), ("b", "x")]);
    m.done(Op::GiveUpCut(GiveUpCut { cut: number }));
    m.done(Op::SettleCut(SettleCut { cut: number }));
    assert!(m.state.cut(number).all(|s| s.deleting && !s.ready), "it stays given up");
    assert_eq!((m.cuts_to_do(), m.singles_to_do()), (vec![], vec![(1, 0), (2, 0)]));
    for volume in [1, 2] {
        m.done(Op::PurgeSnapshot(PurgeSnapshot { volume, generation: 0 }));
    }
    assert_eq!(m.state.cut(number).count(), 0);
    assert_eq!(m.reason(Op::DeleteCut(DeleteCut { cut: number })), ErrorReason::CutNotFound);
    assert_ne!(m.cut(&[("a", "x"), ("b", "x")]), number);
}

#[test]
fn what_was_taken_together_is_deleted_together_unless_that_is_said() {
    let mut m = Machine::with(&["a", "b"]);
    let number = m.cut(&[("a", "x"), ("b", "x")]);
    assert_eq!(m.reason(drop_one("a", "x", false)), ErrorReason::SnapshotInCut);
    assert_eq!(m.reason(drop_one("a", "x", true)), ErrorReason::SnapshotInCut, "not complete");
    m.done(Op::SettleCut(SettleCut { cut: number }));
    assert_eq!(m.reason(drop_one("a", "x", false)), ErrorReason::SnapshotInCut);
    m.done(drop_one("a", "x", true));
    assert_eq!(m.state.cut(number).filter(|s| s.deleting).count(), 1);
    m.done(Op::DeleteCut(DeleteCut { cut: number }));
    assert!(m.state.cut(number).all(|s| s.deleting));
}

#[test]
fn volumes_of_a_cut_keep_their_size_until_it_is_settled() {
    let mut m = Machine::with(&["a", "b"]);
    let number = m.cut(&[("a", "x"), ("b", "x")]);
    assert_eq!(m.reason(resize("a")), ErrorReason::VolumeBusy);
    m.done(Op::SettleCut(SettleCut { cut: number }));
    m.done(resize("a"));
    let second = m.cut(&[("a", "y"), ("b", "y")]);
    m.done(Op::GiveUpCut(GiveUpCut { cut: second }));
    m.done(resize("b"));
}

#[test]
fn a_cut_does_not_survive_one_of_its_volumes_before_it_is_complete() {
    let mut m = Machine::with(&["a", "b"]);
    let first = m.cut(&[("a", "x"), ("b", "x")]);
    m.done(Op::SettleCut(SettleCut { cut: first }));
    let second = m.cut(&[("a", "y"), ("b", "y")]);
    let id = "b".to_owned();
    m.done(Op::DeleteVolume(DeleteVolume { id, with_snapshots: true, etag: String::new() }));
    let left: Vec<(&str, bool)> =
        m.state.snapshots_after(1, None).map(|s| (s.id.as_str(), s.deleting)).collect();
    assert_eq!(left, [("x", false), ("y", true)], "the first one was complete");
    assert_eq!(m.cuts_to_do(), [] as [u64; 0]);
    m.done(Op::PurgeVolume(PurgeVolume { volume: 2 }));
    assert_eq!(m.state.cut(second).count(), 1);
}

#[test]
fn a_volume_goes_back_when_nobody_has_it() {
    let mut m = Machine::with(&["a"]);
    for (generation, id) in [(0, "x"), (1, "y"), (2, "z")] {
        m.done(snapshot("a", id));
        assert_eq!(m.reason(revert("a", id, true)), ErrorReason::VolumeBusy, "not complete");
        m.done(settle(1, generation));
    }
    m.done(attach("a"));
    assert_eq!(m.reason(revert("a", "y", true)), ErrorReason::VolumeAttached);
    let detach = DetachVolume { id: "a".to_owned(), ..DetachVolume::default() };
    m.done(Op::DetachVolume(detach));
    assert_eq!(m.reason(revert("a", "none", true)), ErrorReason::SnapshotNotFound);
    assert_eq!(m.reason(revert("a", "y", false)), ErrorReason::LaterSnapshots);
    m.done(revert("a", "y", true));
    let state = |m: &Machine| -> Vec<(String, bool)> {
        m.state.snapshots_after(1, None).map(|s| (s.id.clone(), s.deleting)).collect()
    };
    let after = [("x", false), ("y", false), ("z", true)].map(|(id, d)| (id.to_owned(), d));
    assert_eq!(state(&m), after);
    for op in [attach("a"), resize("a"), snapshot("a", "w"), revert("a", "y", true)] {
        assert_eq!(m.reason(op), ErrorReason::VolumeBusy);
    }
    assert_eq!(m.state.unsettled_reverts().count(), 1);
    m.done(Op::SettleRevert(SettleRevert { volume: 1, generation: 0 }));
    assert_eq!(m.state.unsettled_reverts().count(), 1, "that was another one");
    m.done(Op::SettleRevert(SettleRevert { volume: 1, generation: 1 }));
    assert_eq!(m.state.unsettled_reverts().count(), 0);
    m.done(attach("a"));
    m.done(snapshot("a", "w"));
    assert_eq!(m.state.snapshot(1, "w").map(|s| s.generation), Some(3));
}

#[test]
fn the_newest_snapshot_is_gone_back_to_without_more_words() {
    let mut m = Machine::with(&["a"]);
    m.done(snapshot("a", "x"));
    m.done(settle(1, 0));
    m.done(revert("a", "x", false));
}

fn any_op() -> impl Strategy<Value = Op> {
    let volume = || prop::sample::select(vec!["a", "b", "c"]);
    let id = || prop::sample::select(vec!["x", "y", "z"]);
    prop_oneof![
        2 => volume().prop_map(create),
        4 => prop::collection::vec((volume(), id()), 1..4).prop_map(|all| cut(&all)),
        3 => (volume(), id()).prop_map(|(v, i)| snapshot(v, i)),
        3 => (1u64..60).prop_map(|cut| Op::SettleCut(SettleCut { cut })),
        2 => (1u64..60).prop_map(|cut| Op::GiveUpCut(GiveUpCut { cut })),
        2 => (1u64..60).prop_map(|cut| Op::DeleteCut(DeleteCut { cut })),
        2 => (1u64..5, 0u32..6).prop_map(|(v, g)| settle(v, g)),
        3 => (1u64..5, 0u32..6).prop_map(|(volume, generation)| Op::PurgeSnapshot(
            PurgeSnapshot { volume, generation }
        )),
        3 => (volume(), id(), any::<bool>()).prop_map(|(v, i, alone)| drop_one(v, i, alone)),
        2 => volume().prop_map(attach),
        2 => volume().prop_map(|v| Op::DetachVolume(
            DetachVolume { id: v.to_owned(), ..DetachVolume::default() }
        )),
        2 => (volume(), id(), any::<bool>()).prop_map(|(v, i, later)| revert(v, i, later)),
        2 => (1u64..5, 0u32..6).prop_map(|(volume, generation)| Op::SettleRevert(
            SettleRevert { volume, generation }
        )),
        1 => volume().prop_map(|v| Op::DeleteVolume(
            DeleteVolume { id: v.to_owned(), with_snapshots: true, etag: String::new() }
        )),
        1 => (1u64..5).prop_map(|volume| Op::PurgeVolume(PurgeVolume { volume })),
    ]
}

proptest! {
    /// Whatever is proposed: the snapshots of a cut are all complete or none is, but for such as were deleted
    /// since; a refusal changes nothing; and no volume is attached while it is reverted.
    #[test]
    fn cuts_stay_whole(script in prop::collection::vec(any_op(), 1..60)) {
        let mut m = Machine::default();
        for op in script {
            let before = m.state.clone();
            let outcome = m.run(op);
            let all = |state: &MetaState| -> Vec<SnapshotRecord> {
                (1..60).flat_map(|v| state.snapshots_after(v, None).cloned()).collect()
            };
            if let Outcome::Refused(_) = outcome {
                prop_assert_eq!(all(&before), all(&m.state));
                prop_assert!(before.volumes().eq(m.state.volumes()));
            }
            let mut ready: BTreeMap<u64, bool> = BTreeMap::new();
            for s in all(&m.state).into_iter().filter(|s| s.cut != 0 && !s.deleting) {
                prop_assert_eq!(*ready.entry(s.cut).or_insert(s.ready), s.ready, "cut {}", s.cut);
            }
            for (cut, members) in m.state.unsettled_cuts() {
                prop_assert_eq!(members.len(), m.state.cut(cut).count());
                prop_assert!(members.iter().all(|s| !s.ready && !s.deleting));
            }
            for volume in m.state.volumes().filter(|v| v.revert.is_some()) {
                prop_assert!(volume.attachment.is_none());
            }
        }
    }
}
