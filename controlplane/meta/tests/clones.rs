//! The rules of the metadata group for clones.

use basalt_api::v1::ErrorReason;
use basalt_meta::{
    AttachVolume, CLONE_DEPTH_MAX, CloneSource, CreateCut, CreateSnapshot, CreateVolume, DeleteCut,
    DeleteSnapshot, DeleteVolume, ENTRY_VERSION, Entry, FLATTEN_DEPTH, FlattenVolume, MetaState,
    NewSnapshot, Op, Outcome, PurgeSnapshot, PurgeVolume, Refused, ResizeVolume, RevertVolume,
    SettleClone, SettleCut, SettleFlatten, SettleSnapshot, VolumeRecord, encode,
};
use proptest::prelude::*;

const SIZE: u64 = 1 << 20;

#[derive(Default)]
struct Machine {
    state: MetaState,
    index: u64,
}

impl Machine {
    fn run(&mut self, op: Op) -> Outcome {
        self.index += 1;
        let entry = Entry { version: ENTRY_VERSION, now_ms: 1, op: Some(op), ..Entry::default() };
        let outcome = self.state.apply(self.index, &encode(&entry));
        assert!(self.state.indexes_are_exact());
        outcome
    }

    fn volume(&mut self, op: Op) -> VolumeRecord {
        match self.run(op) {
            Outcome::Volume(volume) => volume.into_inner(),
            other => panic!("expected a volume, got {other:?}"),
        }
    }

    fn refused(&mut self, op: Op) -> Refused {
        match self.run(op) {
            Outcome::Refused(refused) => refused,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn number(&self, id: &str) -> u64 {
        self.state.volume(id).map_or(0, |volume| volume.number)
    }

    /// A volume with a complete snapshot.
    fn with_snapshot() -> Machine {
        let mut m = Machine::default();
        m.volume(create("demo", SIZE));
        m.snapshot("demo", "monday");
        m
    }

    fn snapshot(&mut self, volume: &str, id: &str) {
        let Outcome::Snapshot(taken) = self.run(snapshot(volume, id)) else { panic!("not taken") };
        let (volume, generation) = (taken.volume, taken.generation);
        self.run(Op::SettleSnapshot(SettleSnapshot { volume, generation }));
    }

    /// A clone that every group has begun.
    fn clone_of(&mut self, id: &str, volume: &str, snapshot: &str) -> VolumeRecord {
        let begun = self.volume(clone(id, volume, snapshot, 0));
        self.run(Op::SettleClone(SettleClone { volume: begun.number }));
        self.state.volume(id).cloned().expect("it is there")
    }
}

fn create(id: &str, size_bytes: u64) -> Op {
    Op::CreateVolume(CreateVolume { id: id.to_owned(), size_bytes, ..CreateVolume::default() })
}

fn clone(id: &str, volume: &str, snapshot: &str, size_bytes: u64) -> Op {
    let source = CloneSource { volume: volume.to_owned(), snapshot: snapshot.to_owned() };
    let (id, source) = (id.to_owned(), Some(source));
    Op::CreateVolume(CreateVolume { id, size_bytes, source, ..CreateVolume::default() })
}

fn snapshot(volume: &str, id: &str) -> Op {
    let (volume, id) = (volume.to_owned(), id.to_owned());
    Op::CreateSnapshot(CreateSnapshot { volume, id, ..CreateSnapshot::default() })
}

fn drop_snapshot(volume: &str, id: &str) -> Op {
    let (volume, id) = (volume.to_owned(), id.to_owned());
    Op::DeleteSnapshot(DeleteSnapshot { volume, id, ..DeleteSnapshot::default() })
}

fn delete(id: &str) -> Op {
    let (id, with_snapshots) = (id.to_owned(), true);
    Op::DeleteVolume(DeleteVolume { id, with_snapshots, ..DeleteVolume::default() })
}

fn flatten(id: &str, cancel: bool) -> Op {
    Op::FlattenVolume(FlattenVolume { id: id.to_owned(), cancel, ..FlattenVolume::default() })
}

fn attach(id: &str) -> Op {
    let (id, host) = (id.to_owned(), "a".to_owned());
    Op::AttachVolume(AttachVolume { id, host, ..AttachVolume::default() })
}

#[test]
fn a_clone_is_attached_when_every_group_has_begun_it() {
    let mut m = Machine::with_snapshot();
    let begun = m.volume(clone("test", "demo", "monday", 0));
    assert_eq!((begun.size_bytes, begun.lineage, begun.cloning), (SIZE, 1, true));
    assert_eq!(m.refused(attach("test")).reason, ErrorReason::VolumeCreating);
    // Nothing is said of it to any group before.
    m.run(snapshot("test", "early"));
    assert!(m.state.unsettled_snapshots().is_empty());
    assert_eq!(m.state.clones_to_begin().len(), 1);
    m.run(Op::SettleClone(SettleClone { volume: begun.number }));
    assert!(m.state.clones_to_begin().is_empty());
    assert_eq!(m.state.unsettled_snapshots().len(), 1);
    assert_eq!(m.volume(attach("test")).epoch, 1);
    let larger = m.volume(clone("larger", "demo", "monday", 2 * SIZE));
    assert_eq!((larger.size_bytes, larger.lineage), (2 * SIZE, 1));
}

#[test]
fn a_clone_waits_until_its_snapshot_is_complete() {
    let mut m = Machine::default();
    m.volume(create("demo", SIZE));
    m.run(snapshot("demo", "monday"));
    m.volume(clone("test", "demo", "monday", 0));
    assert!(m.state.clones_to_begin().is_empty());
    m.run(Op::SettleSnapshot(SettleSnapshot { volume: 1, generation: 0 }));
    assert_eq!(m.state.clones_to_begin().len(), 1);
}

#[test]
fn what_can_not_be_cloned_is_refused_by_name() {
    let mut m = Machine::with_snapshot();
    for (of, snapshot, size, reason) in [
        ("none", "monday", 0, ErrorReason::VolumeNotFound),
        ("demo", "tuesday", 0, ErrorReason::SnapshotNotFound),
        ("demo", "monday", SIZE - 4096, ErrorReason::InvalidField),
        ("demo", "monday", SIZE + 1, ErrorReason::InvalidField),
    ] {
        assert_eq!(m.refused(clone("test", of, snapshot, size)).reason, reason, "{of}@{snapshot}");
    }
    m.clone_of("test", "demo", "monday");
    assert_eq!(m.refused(clone("test", "demo", "monday", 0)).reason, ErrorReason::VolumeExists);
    // It has the size of the snapshot, whatever the volume has by now.
    let size_bytes = 4 * SIZE;
    let id = "demo".to_owned();
    m.run(Op::ResizeVolume(ResizeVolume { id, size_bytes, ..ResizeVolume::default() }));
    assert_eq!(m.clone_of("later", "demo", "monday").size_bytes, SIZE);
    m.run(delete("later"));
    assert_eq!(m.refused(flatten("later", false)).reason, ErrorReason::VolumeDeleting);
    m.snapshot("demo", "tuesday");
    m.run(drop_snapshot("demo", "tuesday"));
    let refused = m.refused(clone("late", "demo", "tuesday", 0));
    assert_eq!(refused.reason, ErrorReason::VolumeDeleting);
}

#[test]
fn what_clones_hang_on_stays_and_the_refusal_names_them() {
    let mut m = Machine::with_snapshot();
    for id in ["c1", "c2", "c3", "c4", "c5"] {
        m.clone_of(id, "demo", "monday");
    }
    let refused = m.refused(drop_snapshot("demo", "monday"));
    assert_eq!(refused.reason, ErrorReason::HasClones);
    for part in ["'demo@monday'", "'c1', 'c2', 'c3' and 2 more", "volume flatten c1"] {
        assert!(refused.message.contains(part), "{}", refused.message);
    }
    assert_eq!(m.refused(delete("demo")).reason, ErrorReason::HasClones);
    assert!(!m.state.volume("demo").is_some_and(|volume| volume.deleting));
    // While the last of them are being deleted both may be: they go after them.
    for id in ["c1", "c2", "c3", "c4", "c5"] {
        m.volume(delete(id));
    }
    m.run(drop_snapshot("demo", "monday"));
    assert!(m.state.unsettled_snapshots().is_empty());
    assert_eq!(m.refused(clone("new", "demo", "monday", 0)).reason, ErrorReason::VolumeDeleting);
    m.volume(delete("demo"));
    for _ in 0..5 {
        let next = m.state.volumes_to_delete().next().map(|v| (v.number, v.id.clone()));
        let (volume, id) = next.expect("a clone");
        assert!(id.starts_with('c'), "{id}");
        m.run(Op::PurgeVolume(PurgeVolume { volume }));
    }
    assert_eq!(m.state.volumes_to_delete().next().map(|v| v.number), Some(1));
}

#[test]
fn a_clone_that_is_flattened_is_one_no_more() {
    let mut m = Machine::with_snapshot();
    let clone = m.clone_of("test", "demo", "monday");
    assert!(!m.volume(flatten("demo", false)).flattening, "it is none");
    assert!(m.state.clones_to_flatten().is_empty());
    assert!(m.volume(flatten("test", false)).flattening);
    assert!(!m.volume(flatten("test", true)).flattening, "called off");
    let wanted = m.volume(flatten("test", false));
    assert_eq!(m.volume(flatten("test", false)), wanted, "wanted already");
    assert_eq!(m.state.clones_to_flatten(), [&wanted]);
    m.run(Op::SettleFlatten(SettleFlatten { volume: clone.number }));
    let now = m.state.volume("test").expect("it stays");
    assert_eq!((&now.parent, now.flattening, now.lineage), (&None, false, 1));
    assert_eq!(m.state.clone_depth(now), 0);
    m.run(drop_snapshot("demo", "monday"));
    m.run(Op::PurgeSnapshot(PurgeSnapshot { volume: 1, generation: 0 }));
    m.volume(delete("demo"));
    assert_eq!(m.state.volumes_to_delete().next().map(|v| v.number), Some(1));
}

#[test]
fn a_chain_of_clones_has_a_bound_and_is_flattened_before() {
    let mut m = Machine::with_snapshot();
    let (mut above, mut last) = (("demo".to_owned(), "monday".to_owned()), 0);
    for depth in 1..=CLONE_DEPTH_MAX {
        let id = format!("c{depth}");
        let clone = m.clone_of(&id, &above.0, &above.1);
        assert_eq!(m.state.clone_depth(&clone), depth);
        m.snapshot(&id, "s");
        (above, last) = ((id, "s".to_owned()), clone.number);
    }
    let refused = m.refused(clone("more", &above.0, "s", 0));
    assert_eq!(refused.reason, ErrorReason::CloneTooDeep);
    assert!(refused.message.contains("flatten"), "{}", refused.message);
    // The one that makes the others less deep comes first; asked for goes before that.
    let order = |m: &Machine| -> Vec<String> {
        m.state.clones_to_flatten().iter().map(|volume| volume.id.clone()).collect()
    };
    let by_itself: Vec<String> =
        (FLATTEN_DEPTH + 1..=CLONE_DEPTH_MAX).map(|depth| format!("c{depth}")).collect();
    assert_eq!(order(&m), by_itself);
    m.volume(flatten(&format!("c{CLONE_DEPTH_MAX}"), false));
    assert_eq!(order(&m)[0], format!("c{CLONE_DEPTH_MAX}"));
    let volume = m.number(&format!("c{}", FLATTEN_DEPTH + 1));
    m.run(Op::SettleFlatten(SettleFlatten { volume }));
    assert_eq!(order(&m), [format!("c{CLONE_DEPTH_MAX}")], "the rest is not that deep any more");
    m.run(Op::SettleFlatten(SettleFlatten { volume: last }));
    assert!(order(&m).is_empty());
    m.clone_of("more", &above.0, "s");
}

fn any_op() -> impl Strategy<Value = Op> {
    let id = || prop::sample::select(vec!["aa", "bb", "cc", "dd"]);
    let name = || prop::sample::select(vec!["one", "two"]);
    prop_oneof![
        1 => id().prop_map(|id| create(id, SIZE)),
        6 => (id(), id(), name()).prop_map(|(id, of, name)| clone(id, of, name, 0)),
        4 => (id(), name()).prop_map(|(id, name)| snapshot(id, name)),
        4 => (1u64..12, 0u32..4).prop_map(|(volume, generation)| {
            Op::SettleSnapshot(SettleSnapshot { volume, generation })
        }),
        4 => (1u64..12).prop_map(|volume| Op::SettleClone(SettleClone { volume })),
        2 => (id(), any::<bool>()).prop_map(|(id, cancel)| flatten(id, cancel)),
        1 => (1u64..12).prop_map(|volume| Op::SettleFlatten(SettleFlatten { volume })),
        2 => (id(), name()).prop_map(|(id, name)| drop_snapshot(id, name)),
        2 => (1u64..12, 0u32..4).prop_map(|(volume, generation)| {
            Op::PurgeSnapshot(PurgeSnapshot { volume, generation })
        }),
        2 => id().prop_map(delete),
        2 => (1u64..12).prop_map(|volume| Op::PurgeVolume(PurgeVolume { volume })),
        2 => id().prop_map(attach),
    ]
}

#[test]
fn nothing_goes_back_behind_a_clone() {
    let mut m = Machine::with_snapshot();
    m.snapshot("demo", "tuesday");
    m.clone_of("test", "demo", "tuesday");
    let revert = |to: &str| {
        let (id, snapshot) = ("demo".to_owned(), to.to_owned());
        Op::RevertVolume(RevertVolume { id, snapshot, drop_later: true, ..RevertVolume::default() })
    };
    let refused = m.refused(revert("monday"));
    assert_eq!(refused.reason, ErrorReason::HasClones);
    assert!(refused.message.contains("test"), "{}", refused.message);
    m.volume(delete("test"));
    assert_eq!(m.refused(revert("monday")).reason, ErrorReason::VolumeBusy, "it is there yet");
    m.run(Op::PurgeVolume(PurgeVolume { volume: m.number("test") }));
    m.volume(revert("monday"));
}

#[test]
fn a_cut_stays_while_a_clone_hangs_on_one_of_it() {
    let mut m = Machine::default();
    m.volume(create("a", SIZE));
    m.volume(create("b", SIZE));
    let member = |volume: &str| NewSnapshot { volume: volume.to_owned(), id: "x".to_owned() };
    let snapshots = vec![member("a"), member("b")];
    let Outcome::Cut(taken) = m.run(Op::CreateCut(CreateCut { snapshots, ..CreateCut::default() }))
    else {
        panic!("not cut")
    };
    let cut = taken[0].cut;
    let refused = m.refused(clone("test", "b", "x", 0));
    assert_eq!(refused.reason, ErrorReason::VolumeBusy, "it may still be given up");
    m.run(Op::SettleCut(SettleCut { cut }));
    m.clone_of("test", "b", "x");
    let refused = m.refused(Op::DeleteCut(DeleteCut { cut }));
    assert_eq!(refused.reason, ErrorReason::HasClones);
    assert!(refused.message.contains("test"), "{}", refused.message);
}

proptest! {
    /// Whatever is proposed, in whatever order: what a clone hangs on is there and stays as long as the clone is
    /// to, the two share a lineage, and no clone is attached before every group has begun it.
    #[test]
    fn clones_hang_on_what_is_there(script in prop::collection::vec(any_op(), 1..150)) {
        let mut m = Machine::default();
        for op in script {
            m.run(op);
            for volume in m.state.volumes() {
                prop_assert!(!volume.cloning || volume.attachment.is_none());
                prop_assert!(m.state.clone_depth(volume) <= CLONE_DEPTH_MAX);
                let Some(of) = &volume.parent else { continue };
                let parent = m.state.volume(&of.volume_id);
                let parent = parent.filter(|parent| parent.number == of.volume);
                let snapshot = m.state.snapshot(of.volume, &of.snapshot_id);
                let snapshot = snapshot.filter(|snapshot| snapshot.generation == of.generation);
                let (Some(parent), Some(snapshot)) = (parent, snapshot) else {
                    panic!("{volume:?} hangs on nothing")
                };
                prop_assert_eq!(parent.lineage, volume.lineage);
                prop_assert!(volume.size_bytes >= snapshot.size_bytes);
                prop_assert!(volume.deleting || !(parent.deleting || snapshot.deleting));
            }
        }
    }
}
