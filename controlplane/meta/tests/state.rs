//! The rules of the metadata group: idempotency, epochs, attachments.

use basalt_api::v1::{ClusterSpec, ErrorReason, Member};
use basalt_meta::{
    AttachVolume, CreateSnapshot, CreateVolume, DeleteSnapshot, DeleteVolume, DetachVolume,
    ENTRY_VERSION, Entry, InitCluster, MetaState, Op, Outcome, PurgeSnapshot, PurgeVolume,
    RaiseEpoch, ResizeVolume, SettleSnapshot, SnapshotRecord, UpdateMember, VolumeRecord, encode,
    etag_of, etag_of_snapshot, layout,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

struct Machine {
    state: MetaState,
    index: u64,
}

impl Machine {
    fn new() -> Machine {
        Machine { state: MetaState::default(), index: 0 }
    }

    fn with_demo() -> Machine {
        let mut machine = Machine::new();
        machine.volume(create("demo"));
        machine
    }

    fn propose(&mut self, request_id: &str, now_ms: i64, op: Op) -> Outcome {
        self.index += 1;
        let request_id = request_id.to_owned();
        let entry =
            Entry { version: ENTRY_VERSION, request_id, now_ms, op: Some(op), ..Entry::default() };
        let outcome = self.state.apply(self.index, &encode(&entry));
        assert!(self.state.indexes_are_exact());
        outcome
    }

    fn run(&mut self, op: Op) -> Outcome {
        self.propose("", 1, op)
    }

    fn volume(&mut self, op: Op) -> VolumeRecord {
        match self.run(op) {
            Outcome::Volume(volume) => volume.into_inner(),
            other => panic!("expected a volume, got {other:?}"),
        }
    }

    fn reason(&mut self, op: Op) -> ErrorReason {
        match self.run(op) {
            Outcome::Refused(refused) => refused.reason,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
}

fn create(id: &str) -> Op {
    Op::CreateVolume(CreateVolume {
        id: id.to_owned(),
        size_bytes: 1 << 30,
        ..CreateVolume::default()
    })
}

fn attach(host: &str) -> AttachVolume {
    AttachVolume { id: "demo".to_owned(), host: host.to_owned(), ..AttachVolume::default() }
}

fn detach(host: &str, epoch: u64) -> Op {
    let (id, host) = ("demo".to_owned(), host.to_owned());
    Op::DetachVolume(DetachVolume { id, host, epoch, etag: String::new() })
}

fn delete() -> Op {
    Op::DeleteVolume(DeleteVolume { id: "demo".to_owned(), ..DeleteVolume::default() })
}

fn resize(size_bytes: u64) -> ResizeVolume {
    ResizeVolume { id: "demo".to_owned(), size_bytes, etag: String::new() }
}

fn spec() -> ClusterSpec {
    let member = |node: u32| Member {
        node,
        name: format!("n{node}"),
        grpc_address: format!("127.0.0.1:{}", 7000 + node),
        data_address: format!("127.0.0.1:{}", 8000 + node),
        nbd_address: String::new(),
        ..Member::default()
    };
    layout::plan(9, (1..=3).map(member).collect(), 16).expect("a good list")
}

#[test]
fn a_volume_has_one_host_at_a_time() {
    let mut m = Machine::with_demo();
    let first = m.volume(Op::AttachVolume(attach("a")));
    assert_eq!((first.epoch, first.attachment.as_ref().unwrap().host.as_str()), (1, "a"));
    assert_eq!(m.reason(Op::AttachVolume(attach("b"))), ErrorReason::VolumeAttached);
    // The same host again is done already, and does not disturb its session.
    assert_eq!(m.volume(Op::AttachVolume(attach("a"))), first);
    let renewed = m.volume(Op::AttachVolume(AttachVolume { renew: true, ..attach("a") }));
    assert_eq!(renewed.epoch, 2);
    let moved = m.volume(Op::AttachVolume(AttachVolume { r#move: true, ..attach("b") }));
    assert_eq!((moved.epoch, moved.attachment.as_ref().unwrap().host.as_str()), (3, "b"));
    // A straggler of the old host can not clear the new attachment.
    assert_eq!(m.reason(detach("a", 2)), ErrorReason::AttachmentChanged);
    assert_eq!(m.reason(detach("b", 2)), ErrorReason::AttachmentChanged);
    assert!(m.volume(detach("b", 3)).attachment.is_none());
    assert!(m.volume(detach("", 0)).attachment.is_none(), "detached already counts as done");
    assert_eq!(m.volume(Op::AttachVolume(attach("a"))).epoch, 4);
}

#[test]
fn a_renewal_by_a_process_that_was_replaced_is_refused() {
    let mut m = Machine::with_demo();
    m.volume(Op::AttachVolume(attach("a")));
    m.volume(Op::AttachVolume(AttachVolume { r#move: true, ..attach("b") }));
    let late = AttachVolume { renew: true, r#move: true, expected_epoch: 1, ..attach("a") };
    assert_eq!(m.reason(Op::AttachVolume(late)), ErrorReason::AttachmentChanged);
}

#[test]
fn deletion_goes_through_its_states() {
    let mut m = Machine::with_demo();
    m.volume(Op::AttachVolume(attach("a")));
    assert_eq!(m.reason(delete()), ErrorReason::VolumeAttached);
    m.volume(detach("", 0));
    let number = m.state.volume("demo").unwrap().number;
    assert_eq!(
        m.reason(Op::RaiseEpoch(RaiseEpoch { volume: number })),
        ErrorReason::VolumeNotFound
    );
    // A purge that comes too early does nothing.
    m.run(Op::PurgeVolume(PurgeVolume { volume: number }));
    assert!(m.volume(delete()).deleting);
    assert!(m.volume(delete()).deleting, "deleting twice is done already");
    assert_eq!(m.reason(Op::AttachVolume(attach("a"))), ErrorReason::VolumeDeleting);
    assert_eq!(m.reason(create("demo")), ErrorReason::VolumeExists);
    assert_eq!(m.volume(Op::RaiseEpoch(RaiseEpoch { volume: number })).epoch, 2);
    m.run(Op::PurgeVolume(PurgeVolume { volume: number }));
    assert!(m.state.volume("demo").is_none());
    assert_eq!(m.reason(delete()), ErrorReason::VolumeNotFound);
    assert!(m.volume(create("demo")).number > number, "numbers are never used twice");
}

#[test]
fn a_volume_only_grows() {
    let mut m = Machine::with_demo();
    let before = m.volume(Op::AttachVolume(attach("a")));
    let grown = m.volume(Op::ResizeVolume(resize(2 << 30)));
    assert_eq!(grown.size_bytes, 2 << 30);
    // It stays attached to the session that it has, and the change shows in the etag.
    assert_eq!((grown.epoch, &grown.attachment), (before.epoch, &before.attachment));
    assert_ne!(etag_of(&grown), etag_of(&before));
    assert_eq!(m.volume(Op::ResizeVolume(resize(2 << 30))), grown, "done already");
    let late = ResizeVolume { etag: etag_of(&before), ..resize(3 << 30) };
    assert_eq!(m.reason(Op::ResizeVolume(late)), ErrorReason::EtagMismatch);
    assert_eq!(m.reason(Op::ResizeVolume(resize(1 << 30))), ErrorReason::VolumeShrinks);
    for size in [0, 4095, (2 << 30) + 512, (1 << 50) + 4096] {
        assert_eq!(m.reason(Op::ResizeVolume(resize(size))), ErrorReason::InvalidField, "{size}");
    }
    assert_eq!(m.state.volume("demo"), Some(&grown));
    m.volume(detach("", 0));
    m.volume(delete());
    assert_eq!(m.reason(Op::ResizeVolume(resize(4 << 30))), ErrorReason::VolumeDeleting);
    m.run(Op::PurgeVolume(PurgeVolume { volume: 1 }));
    assert_eq!(m.reason(Op::ResizeVolume(resize(4 << 30))), ErrorReason::VolumeNotFound);
}

#[test]
fn one_request_takes_effect_once() {
    let mut m = Machine::new();
    let first = m.propose("r1", 1, create("demo"));
    assert_eq!(m.propose("r1", 99, create("demo")), first, "the first answer again");
    let Outcome::Refused(other) = m.propose("r1", 100, create("else")) else { panic!("refused") };
    assert_eq!(other.reason, ErrorReason::RequestIdReused);
    // What was refused may be tried again under the same id.
    let Outcome::Refused(_) = m.propose("r2", 3, create("demo")) else { panic!("refused") };
    m.run(delete());
    m.run(Op::PurgeVolume(PurgeVolume { volume: 1 }));
    assert!(matches!(m.propose("r2", 4, create("demo")), Outcome::Volume(_)));
    // A proposer whose clock is years ahead makes nobody forget.
    m.propose("r3", i64::MAX, Op::AttachVolume(attach("a")));
    assert_eq!(m.propose("r1", 5, create("demo")), first);
}

#[test]
fn an_etag_guards_against_a_change_in_between() {
    let mut m = Machine::with_demo();
    let old = etag_of(m.state.volume("demo").unwrap());
    m.volume(Op::AttachVolume(AttachVolume { etag: old.clone(), ..attach("a") }));
    let late = AttachVolume { etag: old, r#move: true, ..attach("b") };
    assert_eq!(m.reason(Op::AttachVolume(late)), ErrorReason::EtagMismatch);
}

#[test]
fn the_cluster_is_made_once() {
    let mut m = Machine::new();
    let init = |spec: ClusterSpec| Op::InitCluster(InitCluster { spec: Some(spec) });
    assert_eq!(m.run(init(spec())), Outcome::Nothing);
    assert_eq!(m.run(init(spec())), Outcome::Nothing);
    assert_eq!(m.reason(init(ClusterSpec { id: 10, ..spec() })), ErrorReason::AlreadyBootstrapped);
    let moved = Member { data_address: "127.0.0.1:9999".to_owned(), ..spec().members[1].clone() };
    m.run(Op::UpdateMember(UpdateMember { member: Some(moved.clone()) }));
    assert_eq!(m.state.map_version(), 2);
    assert_eq!(m.state.cluster().unwrap().members[1], moved);
    m.run(Op::UpdateMember(UpdateMember { member: Some(moved) }));
    assert_eq!(m.state.map_version(), 2, "no change, no new map");
}

#[test]
fn bad_fields_are_refused_by_name() {
    let mut m = Machine::new();
    for id in ["", "Demo", "-demo", "demo-", "a/b", "ä", &"x".repeat(64)] {
        assert_eq!(m.reason(create(id)), ErrorReason::InvalidField, "{id:?}");
    }
    for size_bytes in [0, 1, 4095, u64::MAX] {
        let op = CreateVolume { id: "a".to_owned(), size_bytes, ..CreateVolume::default() };
        assert_eq!(m.reason(Op::CreateVolume(op)), ErrorReason::InvalidField, "{size_bytes}");
    }
    m.volume(create("demo"));
    assert_eq!(m.reason(Op::AttachVolume(attach("a b"))), ErrorReason::InvalidField);
    assert_eq!(m.reason(Op::AttachVolume(attach(""))), ErrorReason::InvalidField);
}

fn any_op() -> impl Strategy<Value = Op> {
    let name = prop::sample::select(vec!["one", "two", "three"]).prop_map(str::to_owned);
    let id = prop::sample::select(vec!["aa", "bb"]).prop_map(str::to_owned);
    let host = prop::sample::select(vec!["h1", "h2", "h3"]).prop_map(str::to_owned);
    prop_oneof![
        2 => id.clone().prop_map(|id| Op::CreateVolume(CreateVolume {
            id, size_bytes: 4096, ..CreateVolume::default()
        })),
        6 => (id.clone(), host.clone(), any::<bool>(), any::<bool>()).prop_map(
            |(id, host, r#move, renew)| Op::AttachVolume(AttachVolume {
                id, host, r#move, renew, ..AttachVolume::default()
            })
        ),
        3 => (id.clone(), host, 0u64..4).prop_map(|(id, host, epoch)| Op::DetachVolume(
            DetachVolume { id, host, epoch, etag: String::new() }
        )),
        3 => (id.clone(), 0u64..6).prop_map(|(id, blocks)| Op::ResizeVolume(ResizeVolume {
            id, size_bytes: blocks * 4096, etag: String::new()
        })),
        1 => (id.clone(), any::<bool>()).prop_map(|(id, with_snapshots)| Op::DeleteVolume(
            DeleteVolume { id, etag: String::new(), with_snapshots }
        )),
        1 => (1u64..6).prop_map(|volume| Op::RaiseEpoch(RaiseEpoch { volume })),
        1 => (1u64..6).prop_map(|volume| Op::PurgeVolume(PurgeVolume { volume })),
        6 => (id.clone(), name.clone()).prop_map(|(volume, id)| Op::CreateSnapshot(CreateSnapshot {
            volume, id, labels: BTreeMap::new()
        })),
        3 => (id, name).prop_map(|(volume, id)| Op::DeleteSnapshot(DeleteSnapshot {
            volume, id, etag: String::new(), alone: false
        })),
        3 => (1u64..6, 0u32..8).prop_map(|(volume, generation)| Op::SettleSnapshot(
            SettleSnapshot { volume, generation }
        )),
        3 => (1u64..6, 0u32..8).prop_map(|(volume, generation)| Op::PurgeSnapshot(
            PurgeSnapshot { volume, generation }
        )),
    ]
}

fn snapshot(id: &str) -> Op {
    let (volume, id) = ("demo".to_owned(), id.to_owned());
    Op::CreateSnapshot(CreateSnapshot { volume, id, labels: BTreeMap::new() })
}

fn drop_snapshot(id: &str, etag: String) -> Op {
    Op::DeleteSnapshot(DeleteSnapshot {
        volume: "demo".to_owned(),
        id: id.to_owned(),
        etag,
        alone: false,
    })
}

impl Machine {
    fn snapshot(&mut self, op: Op) -> SnapshotRecord {
        match self.run(op) {
            Outcome::Snapshot(snapshot) => snapshot,
            other => panic!("expected a snapshot, got {other:?}"),
        }
    }

    fn unsettled(&self) -> Vec<u32> {
        self.state.unsettled_snapshots().iter().map(|snapshot| snapshot.generation).collect()
    }
}

#[test]
fn snapshots_go_through_their_states() {
    let mut m = Machine::with_demo();
    let before = m.volume(Op::AttachVolume(attach("a")));
    let first = m.snapshot(snapshot("monday"));
    assert_eq!((first.generation, first.size_bytes, first.ready), (0, before.size_bytes, false));
    // Sessions that begin from now on are behind it, and the one that there is stays.
    let now = m.state.volume("demo").unwrap().clone();
    assert_eq!((now.generation, now.epoch, &now.attachment), (1, before.epoch, &before.attachment));
    assert_eq!(m.reason(snapshot("monday")), ErrorReason::SnapshotExists);
    assert_eq!(m.reason(snapshot("Monday")), ErrorReason::InvalidField);
    let second = m.snapshot(snapshot("tuesday"));
    assert_eq!(second.generation, 1);
    assert_eq!(m.unsettled(), [0], "one at a time, in order");
    let settle = |generation| Op::SettleSnapshot(SettleSnapshot { volume: 1, generation });
    let purge = |generation| Op::PurgeSnapshot(PurgeSnapshot { volume: 1, generation });
    m.run(settle(0));
    assert!(m.state.snapshot(1, "monday").unwrap().ready);
    assert_eq!(m.unsettled(), [1]);
    m.run(purge(0));
    assert!(m.state.snapshot(1, "monday").is_some(), "nobody wanted it away");
    let other = drop_snapshot("monday", etag_of_snapshot(&second));
    assert_eq!(m.reason(other), ErrorReason::EtagMismatch);
    // What was told at its creation is good: whoever asked for it changed nothing since.
    let deleting = m.snapshot(drop_snapshot("monday", etag_of_snapshot(&first)));
    assert!(deleting.deleting);
    assert_eq!(m.snapshot(drop_snapshot("monday", String::new())), deleting, "done already");
    assert_eq!(m.reason(snapshot("monday")), ErrorReason::SnapshotExists);
    // One that was never complete is deleted as well, and completes no more.
    m.run(drop_snapshot("tuesday", String::new()));
    m.run(settle(1));
    assert!(!m.state.snapshot(1, "tuesday").unwrap().ready);
    m.run(purge(0));
    m.run(purge(1));
    assert_eq!(m.reason(drop_snapshot("monday", String::new())), ErrorReason::SnapshotNotFound);
    assert_eq!(m.snapshot(snapshot("monday")).generation, 2, "generations are never used twice");
}

#[test]
fn a_volume_with_snapshots_is_deleted_only_with_them() {
    let mut m = Machine::with_demo();
    m.snapshot(snapshot("monday"));
    assert_eq!(m.reason(delete()), ErrorReason::VolumeHasSnapshots);
    assert!(!m.state.volume("demo").unwrap().deleting);
    let id = "demo".to_owned();
    let all = DeleteVolume { id, with_snapshots: true, ..DeleteVolume::default() };
    assert!(m.volume(Op::DeleteVolume(all)).deleting);
    assert_eq!(m.reason(snapshot("tuesday")), ErrorReason::VolumeDeleting);
    assert_eq!(m.unsettled(), [0; 0], "they go with the volume");
    m.run(Op::PurgeVolume(PurgeVolume { volume: 1 }));
    assert_eq!(m.state.snapshots_after(1, None).count(), 0);
    m.volume(create("demo"));
    assert_eq!(m.reason(drop_snapshot("monday", String::new())), ErrorReason::SnapshotNotFound);
}

proptest! {
    /// A generation of a volume belongs to one snapshot for good, every session begins behind all
    /// snapshots, names are unique, and no snapshot outlives its volume.
    #[test]
    fn generations_are_given_once(script in prop::collection::vec(any_op(), 1..120)) {
        let mut m = Machine::new();
        let mut owners: BTreeMap<(u64, u32), (String, i64)> = BTreeMap::new();
        for (time, op) in script.into_iter().enumerate() {
            let before = m.state.clone();
            let outcome = m.propose("", time as i64, op);
            if let Outcome::Refused(_) = outcome {
                let same = |number| before.snapshots_after(number, None)
                    .eq(m.state.snapshots_after(number, None));
                prop_assert!((1..6).all(same), "a refusal changes nothing");
            }
            for number in 1..9 {
                let volume = m.state.volume_by_number(number).cloned();
                let mut names = std::collections::BTreeSet::new();
                for s in m.state.snapshots_after(number, None) {
                    let Some(volume) = &volume else { panic!("{s:?} has no volume") };
                    prop_assert!(s.generation < volume.generation);
                    prop_assert!(s.size_bytes <= volume.size_bytes);
                    prop_assert!(names.insert(s.id.clone()));
                    let owner = (s.id.clone(), s.create_time_ms);
                    prop_assert_eq!(owners.entry((number, s.generation)).or_insert(owner.clone()), &owner);
                }
            }
        }
    }

    /// Whatever is proposed, in whatever order and however often: an epoch never falls and never
    /// belongs to two attachments, a volume never gets smaller, and replaying the log gives the same
    /// state.
    #[test]
    fn epochs_only_grow(script in prop::collection::vec((any_op(), 0u8..12), 1..80)) {
        let mut m = Machine::new();
        let mut replay = MetaState::default();
        let mut epochs: BTreeMap<u64, u64> = BTreeMap::new();
        let mut sizes: BTreeMap<u64, u64> = BTreeMap::new();
        let mut holders: BTreeMap<(u64, u64), String> = BTreeMap::new();
        for (op, request) in script {
            let request = if request == 0 { String::new() } else { format!("r{request}") };
            m.index += 1;
            let (version, request_id, op) = (ENTRY_VERSION, request, Some(op));
            let entry = Entry { version, request_id, now_ms: 1, op, ..Entry::default() };
            let bytes = encode(&entry);
            let before = m.state.clone();
            let outcome = m.state.apply(m.index, &bytes);
            prop_assert_eq!(&outcome, &replay.apply(m.index, &bytes));
            prop_assert!(m.state.indexes_are_exact());
            prop_assert_eq!(&m.state, &replay);
            if let Outcome::Refused(_) = outcome {
                prop_assert!(before.volumes().eq(m.state.volumes()), "a refusal changes nothing");
            }
            for volume in m.state.volumes() {
                let known = epochs.entry(volume.number).or_default();
                prop_assert!(volume.epoch >= *known);
                *known = volume.epoch;
                let size = sizes.entry(volume.number).or_default();
                prop_assert!(volume.size_bytes >= *size && volume.size_bytes.is_multiple_of(4096));
                *size = volume.size_bytes;
                if let Some(a) = &volume.attachment {
                    prop_assert!(!volume.deleting);
                    prop_assert_eq!(a.epoch, volume.epoch);
                    let holder = holders.entry((volume.number, a.epoch)).or_insert_with(|| a.host.clone());
                    prop_assert_eq!(&*holder, &a.host);
                }
            }
        }
    }

    /// Bytes that are no entry are refused, and change nothing but the applied index.
    #[test]
    fn garbage_changes_nothing(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        let mut state = MetaState::default();
        let outcome = state.apply(1, &bytes);
        prop_assert!(state.volumes().next().is_none() || matches!(outcome, Outcome::Volume(_)));
    }
}
