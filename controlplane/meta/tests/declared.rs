//! The rules of the metadata group for classes, quotas, updates, operations and events, and the feed of changes.

use basalt_api::v1::{ErrorReason, Qos};
use basalt_meta::feed::{Feed, Key, Kind};
use basalt_meta::operation_record::Verb;
use basalt_meta::{
    AttachVolume, ClassRecord, CreateSnapshot, CreateVolume, DeleteClass, DeleteQuota,
    DeleteSnapshot, DeleteVolume, DetachVolume, ENTRY_VERSION, Entry, FlattenVolume,
    ForgetOperation, MetaState, Op, Outcome, PurgeSnapshot, PurgeVolume, PutClass, PutQuota,
    QuotaRecord, Refused, ResizeVolume, RevertVolume, SettleClone, SettleFlatten, SettleRevert,
    SettleSnapshot, UpdateVolume, Used, VolumeRecord, encode, etag_of,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SIZE: u64 = 1 << 20;

#[derive(Default)]
struct Machine {
    state: MetaState,
    index: u64,
    feed: Feed,
}

impl Machine {
    fn run(&mut self, op: Op) -> Outcome {
        self.index += 1;
        let now_ms = self.index as i64 * 10;
        let entry = Entry { version: ENTRY_VERSION, now_ms, op: Some(op), ..Entry::default() };
        let outcome = self.state.apply(self.index, &encode(&entry));
        assert!(self.state.indexes_are_exact());
        let changed = self.state.take_changes();
        self.feed.take(self.index, changed);
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

    fn changed_since(&self, revision: u64) -> Vec<String> {
        let keys = self.feed.since(revision).expect("kept");
        keys.into_iter().map(|(_, key)| format!("{:?} {}", key.kind, key.id)).collect()
    }

    fn reasons(&self) -> Vec<&str> {
        self.state.events().map(|event| event.reason.as_str()).collect()
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn create(id: &str, team: &str) -> Op {
    let (id, labels) = (id.to_owned(), labels(&[("team", team)]));
    Op::CreateVolume(CreateVolume { id, size_bytes: SIZE, labels, ..CreateVolume::default() })
}

fn class(id: &str, is_default: bool, iops_max: u64) -> Op {
    let qos = Some(Qos { iops_max, ..Qos::default() });
    let class = ClassRecord { id: id.to_owned(), is_default, qos, ..ClassRecord::default() };
    Op::PutClass(PutClass { class: Some(class), create: true, etag: String::new() })
}

fn quota(id: &str, team: &str, max_volumes: u32, max_bytes: u64) -> QuotaRecord {
    let selector = if team.is_empty() { labels(&[]) } else { labels(&[("team", team)]) };
    QuotaRecord { id: id.to_owned(), selector, max_volumes, max_bytes, ..QuotaRecord::default() }
}

fn put(quota: QuotaRecord, create: bool) -> Op {
    Op::PutQuota(PutQuota { quota: Some(quota), create, etag: String::new() })
}

fn update(id: &str, fields: &[&str]) -> UpdateVolume {
    let fields = fields.iter().map(|field| (*field).to_owned()).collect();
    UpdateVolume { id: id.to_owned(), fields, ..UpdateVolume::default() }
}

#[test]
fn a_volume_has_the_bounds_of_its_class_unless_it_has_its_own() {
    let mut m = Machine::default();
    assert!(matches!(m.run(class("slow", true, 100)), Outcome::Class(_)));
    assert!(matches!(m.run(class("fast", false, 9000)), Outcome::Class(_)));
    let demo = m.volume(create("demo", "a"));
    assert_eq!(demo.storage_class, "slow");
    assert_eq!(m.state.effective_qos(&demo).iops_max, 100);
    let to_fast = UpdateVolume {
        storage_class: "fast".to_owned(),
        qos: Some(Qos { bandwidth_max: 5 << 20, ..Qos::default() }),
        ..update("demo", &["storage_class", "qos"])
    };
    let demo = m.volume(Op::UpdateVolume(to_fast));
    let qos = m.state.effective_qos(&demo);
    assert_eq!((qos.iops_max, qos.bandwidth_max), (9000, 5 << 20));
    // The other default goes, and only one is left.
    m.run(class("new", true, 1));
    let defaults: Vec<_> = m.state.classes().filter(|c| c.is_default).map(|c| &c.id).collect();
    assert_eq!(defaults, ["new"]);
    let delete = |id: &str| Op::DeleteClass(DeleteClass { id: id.to_owned(), etag: String::new() });
    assert_eq!(m.refused(delete("fast")).reason, ErrorReason::StorageClassInUse);
    assert_eq!(m.run(delete("slow")), Outcome::Nothing);
    assert_eq!(m.refused(delete("slow")).reason, ErrorReason::StorageClassNotFound);
    assert_eq!(m.refused(class("new", false, 1)).reason, ErrorReason::StorageClassExists);
}

#[test]
fn no_more_is_guaranteed_than_a_quota_allows() {
    let mut m = Machine::default();
    let bound = QuotaRecord { max_iops_min: 1000, ..quota("all", "", 0, 0) };
    m.run(put(bound, true));
    let gold = |iops_min: u64, create: bool| {
        let qos = Some(Qos { iops_min, ..Qos::default() });
        let class = ClassRecord { id: "gold".to_owned(), qos, ..ClassRecord::default() };
        Op::PutClass(PutClass { class: Some(class), create, etag: String::new() })
    };
    let of_gold = |id: &str| {
        let Op::CreateVolume(create) = create(id, "a") else { unreachable!() };
        Op::CreateVolume(CreateVolume { storage_class: "gold".to_owned(), ..create })
    };
    m.run(gold(400, true));
    m.volume(of_gold("one"));
    m.volume(of_gold("two"));
    let used = |m: &Machine| m.state.iops_min_of(m.state.quota("all").expect("the quota"));
    assert_eq!(used(&m), 800);
    assert_eq!(m.refused(of_gold("three")).reason, ErrorReason::QuotaExceeded);
    // The name was not taken, nor the number.
    let three = m.volume(create("three", "a"));
    assert_eq!(three.number, 3);
    let own = |iops_min: u64| {
        let qos = Some(Qos { iops_min, ..Qos::default() });
        Op::UpdateVolume(UpdateVolume { qos, ..update("three", &["qos"]) })
    };
    assert_eq!(m.refused(own(201)).reason, ErrorReason::QuotaExceeded);
    m.volume(own(200));
    assert_eq!(m.refused(gold(401, false)).reason, ErrorReason::QuotaExceeded);
    // A bound that comes later takes nothing away, and less is always allowed.
    let bound = QuotaRecord { max_iops_min: 500, ..quota("all", "", 0, 0) };
    m.run(put(bound, false));
    assert_eq!(used(&m), 1000);
    m.volume(own(100));
    assert!(matches!(m.run(gold(300, false)), Outcome::Class(_)));
    assert_eq!(used(&m), 700);
    // A minimum is no more than the bound of the same volume.
    let wrong = Some(Qos { iops_min: 20, iops_max: 10, ..Qos::default() });
    let wrong = UpdateVolume { qos: wrong, ..update("three", &["qos"]) };
    assert_eq!(m.refused(Op::UpdateVolume(wrong)).reason, ErrorReason::InvalidField);
}

#[test]
fn a_change_of_a_class_is_one_of_its_volumes() {
    let mut m = Machine::default();
    m.run(class("slow", true, 100));
    m.volume(create("demo", "a"));
    let before = m.index;
    let class = ClassRecord { id: "slow".to_owned(), ..ClassRecord::default() };
    m.run(Op::PutClass(PutClass { class: Some(class), create: false, etag: String::new() }));
    assert_eq!(m.changed_since(before), ["Volume demo", "Class slow"]);
}

#[test]
fn all_of_an_update_happens_or_nothing() {
    let mut m = Machine::default();
    let before = m.volume(create("demo", "a"));
    let labels = labels(&[("team", "b")]);
    let fields = ["labels", "size_bytes"];
    let smaller =
        UpdateVolume { labels: labels.clone(), size_bytes: 4096, ..update("demo", &fields) };
    assert_eq!(m.refused(Op::UpdateVolume(smaller.clone())).reason, ErrorReason::VolumeShrinks);
    assert_eq!(m.state.volume("demo"), Some(&before));
    let stale = UpdateVolume { etag: "0-0".to_owned(), size_bytes: 2 * SIZE, ..smaller.clone() };
    assert_eq!(m.refused(Op::UpdateVolume(stale)).reason, ErrorReason::EtagMismatch);
    let good = UpdateVolume { etag: etag_of(&before), size_bytes: 2 * SIZE, ..smaller };
    let after = m.volume(Op::UpdateVolume(good.clone()));
    assert_eq!((after.size_bytes, &after.labels), (2 * SIZE, &labels));
    // The same again changes nothing, not even the revision.
    let again = UpdateVolume { etag: String::new(), ..good };
    assert_eq!(m.volume(Op::UpdateVolume(again)), after);
    let unknown = Op::UpdateVolume(update("demo", &["epoch"]));
    assert_eq!(m.refused(unknown).reason, ErrorReason::InvalidField);
}

#[test]
fn a_quota_holds_for_every_way_to_grow() {
    let mut m = Machine::default();
    m.volume(create("a1", "a"));
    m.run(put(quota("team-a", "a", 2, 3 * SIZE), true));
    m.volume(create("a2", "a"));
    assert_eq!(m.refused(create("a3", "a")).reason, ErrorReason::QuotaExceeded);
    m.volume(create("b1", "b"));
    // By another label.
    let relabel = UpdateVolume { labels: labels(&[("team", "a")]), ..update("b1", &["labels"]) };
    assert_eq!(m.refused(Op::UpdateVolume(relabel)).reason, ErrorReason::QuotaExceeded);
    // By growing.
    let resize = |id: &str, size_bytes| {
        Op::ResizeVolume(ResizeVolume { id: id.to_owned(), size_bytes, etag: String::new() })
    };
    m.volume(resize("a1", 2 * SIZE));
    assert_eq!(m.refused(resize("a2", 2 * SIZE)).reason, ErrorReason::QuotaExceeded);
    m.volume(resize("b1", 9 * SIZE));
    let team_a = m.state.quota("team-a").expect("there");
    assert_eq!(m.state.used_of(team_a), Used { volumes: 2, bytes: 3 * SIZE });
    // A quota below what there is refuses only more.
    m.run(put(quota("team-a", "a", 1, SIZE), false));
    m.volume(Op::UpdateVolume(UpdateVolume {
        labels: labels(&[("team", "a"), ("env", "prod")]),
        ..update("a1", &["labels"])
    }));
    let delete = Op::DeleteQuota(DeleteQuota { id: "team-a".to_owned(), etag: String::new() });
    assert_eq!(m.run(delete), Outcome::Nothing);
    m.volume(create("a3", "a"));
}

#[test]
fn an_operation_ends_when_the_state_is_as_wanted() {
    let mut m = Machine::default();
    m.volume(create("demo", "a"));
    let (volume, id) = ("demo".to_owned(), "monday".to_owned());
    m.run(Op::CreateSnapshot(CreateSnapshot { volume, id, ..CreateSnapshot::default() }));
    let number = m.index;
    let op = m.state.operation(number).expect("it began").clone();
    assert_eq!((op.verb(), op.target.as_str()), (Verb::Create, "volumes/demo/snapshots/monday"));
    assert_eq!(op.end_time_ms, 0);
    let forget = |number| Op::ForgetOperation(ForgetOperation { number });
    assert_eq!(m.refused(forget(number)).reason, ErrorReason::OperationUnderWay);
    m.run(Op::SettleSnapshot(SettleSnapshot { volume: 1, generation: 0 }));
    let op = m.state.operation(number).expect("kept").clone();
    assert_eq!((op.end_time_ms, op.cancelled, op.revision), (m.index as i64 * 10, false, m.index));
    m.run(forget(number));
    assert_eq!(m.refused(forget(number)).reason, ErrorReason::OperationNotFound);
}

#[test]
fn what_is_called_off_or_gone_ends_too() {
    let mut m = Machine::default();
    m.volume(create("demo", "a"));
    let name = || ("demo".to_owned(), "monday".to_owned());
    let (volume, id) = name();
    m.run(Op::CreateSnapshot(CreateSnapshot { volume, id, ..CreateSnapshot::default() }));
    m.run(Op::SettleSnapshot(SettleSnapshot { volume: 1, generation: 0 }));
    let source = Some(basalt_meta::CloneSource { volume: name().0, snapshot: name().1 });
    m.volume(Op::CreateVolume(CreateVolume {
        id: "clone".to_owned(),
        source,
        ..CreateVolume::default()
    }));
    let created = m.index;
    assert_eq!(m.state.operation_on(2).map(|op| op.number), Some(created));
    m.run(Op::SettleClone(SettleClone { volume: 2 }));
    assert_eq!(m.state.operation_on(2), None);
    let flatten = |cancel| {
        let id = "clone".to_owned();
        Op::FlattenVolume(FlattenVolume { id, cancel, ..FlattenVolume::default() })
    };
    m.volume(flatten(false));
    let first = m.index;
    m.volume(flatten(false));
    assert!(m.state.operation(m.index).is_none(), "asked for again while it is under way");
    m.volume(flatten(true));
    assert!(m.state.operation(first).is_some_and(|op| op.cancelled));
    m.volume(flatten(false));
    let second = m.index;
    m.run(Op::SettleFlatten(SettleFlatten { volume: 2 }));
    assert!(m.state.operation(second).is_some_and(|op| op.end_time_ms > 0 && !op.cancelled));
    m.volume(Op::RevertVolume(RevertVolume {
        id: "demo".to_owned(),
        snapshot: "monday".to_owned(),
        ..RevertVolume::default()
    }));
    let reverted = m.index;
    m.volume(Op::DeleteVolume(DeleteVolume {
        id: "demo".to_owned(),
        with_snapshots: true,
        ..DeleteVolume::default()
    }));
    let deleted = m.index;
    assert!(m.state.operation(reverted).is_some_and(|op| op.cancelled));
    assert_eq!(m.state.operation(deleted).map(|op| op.end_time_ms), Some(0));
    m.run(Op::PurgeVolume(PurgeVolume { volume: 1 }));
    assert!(m.state.operation(deleted).is_some_and(|op| op.end_time_ms > 0 && !op.cancelled));
    assert_eq!(m.state.operations().filter(|op| op.end_time_ms == 0).count(), 0);
}

#[test]
fn events_tell_what_happened() {
    let mut m = Machine::default();
    m.volume(create("demo", "a"));
    let attach = |host: &str, r#move| {
        let (id, host) = ("demo".to_owned(), host.to_owned());
        Op::AttachVolume(AttachVolume { id, host, r#move, renew: true, ..AttachVolume::default() })
    };
    m.volume(attach("n1", false));
    m.volume(attach("n1", false));
    m.volume(attach("n2", true));
    m.volume(Op::DetachVolume(DetachVolume { id: "demo".to_owned(), ..DetachVolume::default() }));
    m.volume(Op::DeleteVolume(DeleteVolume { id: "demo".to_owned(), ..DeleteVolume::default() }));
    m.run(Op::PurgeVolume(PurgeVolume { volume: 1 }));
    m.run(Op::PurgeVolume(PurgeVolume { volume: 1 }));
    assert_eq!(
        m.reasons(),
        [
            "VOLUME_CREATED",
            "VOLUME_ATTACHED",
            "VOLUME_MOVED",
            "VOLUME_DETACHED",
            "VOLUME_DELETING",
            "VOLUME_DELETED"
        ]
    );
    let moved = m.state.event(3).expect("kept");
    assert!(moved.message.contains("'n1'") && moved.message.contains("'n2'"), "{moved:?}");
    assert_eq!((moved.target.as_str(), moved.time_ms), ("volumes/demo", 40));
}

#[derive(Clone, Debug)]
enum Step {
    Create(u8),
    Label(u8, u8),
    Resize(u8, u8),
    Attach(u8),
    Detach(u8),
    Snapshot(u8),
    Settle(u8),
    DropSnapshot(u8),
    PurgeSnapshot(u8),
    Revert(u8),
    SettleRevert(u8),
    Delete(u8),
    Purge(u8),
    Class(u8),
    Quota(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 0..4u8;
    prop_oneof![
        n().prop_map(Step::Create),
        (n(), n()).prop_map(|(a, b)| Step::Label(a, b)),
        (n(), n()).prop_map(|(a, b)| Step::Resize(a, b)),
        n().prop_map(Step::Attach),
        n().prop_map(Step::Detach),
        n().prop_map(Step::Snapshot),
        n().prop_map(Step::Settle),
        n().prop_map(Step::DropSnapshot),
        n().prop_map(Step::PurgeSnapshot),
        n().prop_map(Step::Revert),
        n().prop_map(Step::SettleRevert),
        n().prop_map(Step::Delete),
        n().prop_map(Step::Purge),
        n().prop_map(Step::Class),
        n().prop_map(Step::Quota),
    ]
}

fn op_of(step: &Step, state: &MetaState) -> Op {
    let id = |n: u8| format!("v{n}");
    let number = |n: u8| state.volume(&id(n)).map_or(0, |volume| volume.number);
    let first = |n: u8| state.snapshots_after(number(n), None).next().map_or(0, |s| s.generation);
    let snapshot = |n: u8| {
        state.snapshots_after(number(n), None).next().map_or_else(String::new, |s| s.id.clone())
    };
    match *step {
        Step::Create(n) => create(&id(n), "a"),
        Step::Label(n, to) => Op::UpdateVolume(UpdateVolume {
            labels: labels(&[("team", &to.to_string())]),
            ..update(&id(n), &["labels"])
        }),
        Step::Resize(n, by) => Op::ResizeVolume(ResizeVolume {
            id: id(n),
            size_bytes: SIZE * (u64::from(by) + 1),
            ..ResizeVolume::default()
        }),
        Step::Attach(n) => Op::AttachVolume(AttachVolume {
            id: id(n),
            host: "h".to_owned(),
            ..AttachVolume::default()
        }),
        Step::Detach(n) => Op::DetachVolume(DetachVolume { id: id(n), ..DetachVolume::default() }),
        Step::Snapshot(n) => Op::CreateSnapshot(CreateSnapshot {
            volume: id(n),
            id: format!("s{}", state.applied()),
            ..CreateSnapshot::default()
        }),
        Step::Settle(n) => {
            Op::SettleSnapshot(SettleSnapshot { volume: number(n), generation: first(n) })
        }
        Step::DropSnapshot(n) => Op::DeleteSnapshot(DeleteSnapshot {
            volume: id(n),
            id: snapshot(n),
            ..DeleteSnapshot::default()
        }),
        Step::PurgeSnapshot(n) => {
            Op::PurgeSnapshot(PurgeSnapshot { volume: number(n), generation: first(n) })
        }
        Step::Revert(n) => Op::RevertVolume(RevertVolume {
            id: id(n),
            snapshot: snapshot(n),
            drop_later: true,
            ..RevertVolume::default()
        }),
        Step::SettleRevert(n) => {
            Op::SettleRevert(SettleRevert { volume: number(n), generation: first(n) })
        }
        Step::Delete(n) => Op::DeleteVolume(DeleteVolume {
            id: id(n),
            with_snapshots: true,
            ..DeleteVolume::default()
        }),
        Step::Purge(n) => Op::PurgeVolume(PurgeVolume { volume: number(n) }),
        Step::Class(n) => class(&format!("c{n}"), n == 0, 100),
        Step::Quota(n) => put(quota(&format!("q{n}"), "", 3, 0), true),
    }
}

/// What a watch shows of a state.
fn shown(state: &MetaState) -> BTreeMap<Key, String> {
    let mut all = BTreeMap::new();
    let mut put = |kind, id: String, what: String| all.insert(Key { kind, id }, what);
    state.volumes().for_each(|v| drop(put(Kind::Volume, v.id.clone(), format!("{v:?}"))));
    for volume in state.volumes() {
        for s in state.snapshots_after(volume.number, None) {
            put(Kind::Snapshot, format!("{}/snapshots/{}", s.volume_id, s.id), format!("{s:?}"));
        }
    }
    state.classes().for_each(|c| drop(put(Kind::Class, c.id.clone(), format!("{c:?}"))));
    state.quotas().for_each(|q| drop(put(Kind::Quota, q.id.clone(), format!("{q:?}"))));
    let number = |n: u64| n.to_string();
    state.events().for_each(|e| drop(put(Kind::Event, number(e.number), format!("{e:?}"))));
    state.operations().for_each(|o| drop(put(Kind::Operation, number(o.number), format!("{o:?}"))));
    all
}

proptest! {
    /// Whoever takes the feed now and then, and looks at what it names, knows the state.
    #[test]
    fn the_feed_forgets_no_change(steps in proptest::collection::vec((step(), any::<bool>()), 1..60)) {
        let mut m = Machine::default();
        let mut known: BTreeMap<Key, String> = BTreeMap::new();
        let mut at = 0;
        for (step, look) in steps {
            let op = op_of(&step, &m.state);
            m.run(op);
            if !look {
                continue;
            }
            let now = shown(&m.state);
            for (_, key) in m.feed.since(at).expect("kept") {
                match now.get(&key) {
                    Some(what) => drop(known.insert(key, what.clone())),
                    None => drop(known.remove(&key)),
                }
            }
            at = m.feed.latest();
            prop_assert_eq!(&known, &now);
        }
    }

    /// No operation is under way whose work is over, and none has ended whose work is not.
    #[test]
    fn operations_end_with_their_work(steps in proptest::collection::vec(step(), 1..60)) {
        let mut m = Machine::default();
        for step in steps {
            let op = op_of(&step, &m.state);
            m.run(op);
            for volume in m.state.volumes() {
                let verbs: Vec<Verb> = m
                    .state
                    .operations()
                    .filter(|op| op.end_time_ms == 0 && op.volume == volume.number && op.generation == u32::MAX)
                    .map(|op| op.verb())
                    .collect();
                prop_assert_eq!(verbs.contains(&Verb::Delete), volume.deleting);
                let reverting = volume.revert.is_some() && !volume.deleting;
                prop_assert_eq!(verbs.contains(&Verb::Revert), reverting);
            }
        }
    }
}
