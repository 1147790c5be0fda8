//! A state that goes on from a backup gives out nothing that was given out before.

use basalt_api::v1::{ErrorReason, Member};
use basalt_meta::restore::Plan;
use basalt_meta::{
    AdoptVolume, AttachVolume, CreateSnapshot, CreateToken, CreateVolume, DeleteVolume,
    ENTRY_VERSION, Entry, HeldRecord, InitCluster, MetaState, Op, Outcome, SettleRestore,
    UseJoinToken, VolumeRecord, encode, layout,
};
use proptest::prelude::*;

const NOW_US: u64 = 1_790_000_000_000_000;

fn run(state: &mut MetaState, op: Op) -> Outcome {
    let entry = Entry { version: ENTRY_VERSION, now_ms: 7, op: Some(op), ..Entry::default() };
    let outcome = state.apply(state.applied() + 1, &encode(&entry));
    assert!(state.indexes_are_exact());
    outcome
}

fn volume(state: &mut MetaState, op: Op) -> VolumeRecord {
    match run(state, op) {
        Outcome::Volume(volume) => volume.into_inner(),
        other => panic!("{other:?}"),
    }
}

fn refused(state: &mut MetaState, op: Op) -> ErrorReason {
    match run(state, op) {
        Outcome::Refused(refused) => refused.reason,
        other => panic!("{other:?}"),
    }
}

fn create(id: &str) -> Op {
    Op::CreateVolume(CreateVolume {
        id: id.to_owned(),
        size_bytes: 1 << 30,
        ..CreateVolume::default()
    })
}

fn attach(id: &str, host: &str) -> Op {
    let (id, host) = (id.to_owned(), host.to_owned());
    Op::AttachVolume(AttachVolume { id, host, r#move: true, ..AttachVolume::default() })
}

fn snapshot(volume: &str, id: &str) -> Op {
    let (volume, id) = (volume.to_owned(), id.to_owned());
    Op::CreateSnapshot(CreateSnapshot { volume, id, ..CreateSnapshot::default() })
}

/// Four nodes, two volumes, one of them attached and with a snapshot, and a token.
fn cluster() -> MetaState {
    let member = |node: u32| Member {
        node,
        name: format!("n{node}"),
        grpc_address: format!("127.0.0.1:{}", 7100 + node),
        data_address: format!("127.0.0.1:{}", 7200 + node),
        ..Member::default()
    };
    let spec = layout::plan(9, (1..=4).map(member).collect(), 4).expect("a good plan");
    let mut state = MetaState::default();
    run(&mut state, Op::InitCluster(InitCluster { spec: Some(spec) }));
    run(&mut state, create("a"));
    run(&mut state, create("b"));
    run(&mut state, attach("a", "host"));
    run(&mut state, snapshot("a", "early"));
    let token = CreateToken {
        id: "ci".to_owned(),
        role: "viewer".to_owned(),
        sha256: vec![1; 32],
        ttl_ms: 1000,
        creator: "x".to_owned(),
    };
    assert!(matches!(run(&mut state, Op::CreateToken(token)), Outcome::Token(_)));
    state
}

fn plan(now_us: u64) -> Plan {
    Plan { now_us, taken_ms: 5, ..Plan::default() }
}

fn settled(state: &mut MetaState, volumes: Vec<HeldRecord>) {
    let index = state.restored().expect("it was").index;
    run(state, Op::SettleRestore(SettleRestore { index, volumes, last: true }));
    assert!(!state.is_settling());
}

#[test]
fn a_join_token_that_was_used_stays_used() {
    let join = || Op::UseJoinToken(UseJoinToken { id: "once".to_owned() });
    let mut backup = cluster();
    assert_eq!(run(&mut backup, join()), Outcome::Nothing);
    for keep_tokens in [false, true] {
        let plan = Plan { keep_tokens, ..plan(NOW_US) };
        let mut state = backup.restore(&plan).expect("restored");
        assert_eq!(refused(&mut state, join()), ErrorReason::JoinTokenUsed);
    }
}

#[test]
fn what_can_not_go_back_is_raised_and_the_rest_is_as_it_was() {
    let backup = cluster();
    let state = backup.restore(&plan(NOW_US)).expect("restored");
    assert_eq!(state.applied(), NOW_US);
    assert_eq!(MetaState::from_chunks(state.chunks()).expect("sound"), state);
    assert!(state.volumes().all(|v| v.epoch == NOW_US && v.attachment.is_none()));
    assert_eq!(state.attached_count(), 0);
    assert!(state.volumes().map(|v| &v.id).eq(["a", "b"]));
    assert!(state.tokens_after("").next().is_none(), "it may have been revoked since");
    let kept = Plan { keep_tokens: true, ..plan(NOW_US) };
    assert_eq!(backup.restore(&kept).expect("restored").tokens_after("").count(), 1);
    // Each group may be anywhere, and none of its replicas is a stray before it is where the records say.
    let spec = state.cluster().expect("a cluster");
    for group in (0..4).chain([layout::METADATA_GROUP]) {
        let placement = layout::placement_of(spec, group);
        let named = (1..=4).filter(|node| layout::names(&placement, *node)).count();
        assert!(placement.moving && named == 4, "{placement:?}");
    }
    let fewer = backup.restore(&Plan { voters: vec![2, 4], ..plan(NOW_US) }).expect("restored");
    let spec = fewer.cluster().expect("a cluster");
    assert_eq!(layout::founders_of(spec, layout::METADATA_GROUP), [2, 4]);
    assert_eq!(layout::placement_of(spec, layout::METADATA_GROUP).learners, [1, 3]);
    backup.restore(&Plan { voters: vec![5], ..plan(NOW_US) }).expect_err("no member");
    state.restore(&plan(NOW_US)).expect_err("a clock that stands still");
    state.restore(&plan(NOW_US + 1)).expect("later");
    MetaState::default().restore(&plan(NOW_US)).expect_err("of no cluster");
}

#[test]
fn the_records_catch_up_with_what_is_held_before_anything_else() {
    let mut state = cluster().restore(&plan(NOW_US)).expect("restored");
    assert_eq!(refused(&mut state, attach("a", "host")), ErrorReason::VolumeBusy);
    assert_eq!(refused(&mut state, snapshot("a", "x")), ErrorReason::VolumeBusy);
    let other = SettleRestore { index: 3, volumes: vec![], last: true };
    run(&mut state, Op::SettleRestore(other));
    assert!(state.is_settling(), "of another restore");
    let a = state.volume("a").expect("there").number;
    let held = HeldRecord {
        number: a,
        epoch: 6,
        generation: 4,
        snapshots: vec![0, 2],
        ..HeldRecord::default()
    };
    let orphan =
        HeldRecord { number: 77, epoch: 3, generation: 1, snapshots: vec![0], ..held.clone() };
    settled(&mut state, vec![held, orphan.clone()]);
    let a = state.volume("a").expect("there").clone();
    assert_eq!((a.generation, a.epoch), (4, NOW_US));
    let names = state.snapshots_after(a.number, None).map(|s| (s.id.as_str(), s.generation));
    assert!(names.eq([("early", 0), ("restored-2", 2)]));
    // The next snapshot is behind all that is held.
    run(&mut state, snapshot("a", "next"));
    assert_eq!(state.snapshot(a.number, "next").expect("there").generation, 4);
    assert!(volume(&mut state, attach("a", "host")).epoch > NOW_US);
    let adopt = |id: &str, delete| {
        let (held, id, size_bytes) = (Some(orphan.clone()), id.to_owned(), 1 << 20);
        Op::AdoptVolume(AdoptVolume { held, id, size_bytes, delete })
    };
    assert_eq!(refused(&mut state, adopt("a", false)), ErrorReason::VolumeExists);
    let adopted = volume(&mut state, adopt("found", false));
    assert_eq!((adopted.number, adopted.generation, adopted.deleting), (77, 1, false));
    assert!(adopted.epoch > NOW_US && state.snapshot(77, "restored-0").is_some());
    assert_eq!(refused(&mut state, adopt("again", false)), ErrorReason::VolumeExists);
    assert_eq!(MetaState::from_chunks(state.chunks()).expect("sound"), state);
}

#[test]
fn what_is_adopted_to_be_deleted_is_deleted_and_clones_wait_for_their_parents() {
    let mut state = cluster().restore(&plan(NOW_US)).expect("restored");
    settled(&mut state, vec![]);
    let held =
        HeldRecord { number: 50, generation: 1, snapshots: vec![0], ..HeldRecord::default() };
    let clone = HeldRecord { number: 51, parent: 50, snapshots: vec![], ..held.clone() };
    let adopt = |held: &HeldRecord, id: &str, delete| {
        let (held, id, size_bytes) = (Some(held.clone()), id.to_owned(), 1 << 20);
        Op::AdoptVolume(AdoptVolume { held, id, size_bytes, delete })
    };
    assert_eq!(refused(&mut state, adopt(&clone, "c", false)), ErrorReason::SnapshotNotFound);
    volume(&mut state, adopt(&held, "p", false));
    let cloned = volume(&mut state, adopt(&clone, "c", false));
    assert_eq!(cloned.parent.expect("a clone").volume_id, "p");
    let delete =
        DeleteVolume { id: "p".to_owned(), with_snapshots: true, ..DeleteVolume::default() };
    assert_eq!(refused(&mut state, Op::DeleteVolume(delete)), ErrorReason::HasClones);
    let last = HeldRecord { number: 52, ..HeldRecord::default() };
    assert!(volume(&mut state, adopt(&last, "gone", true)).deleting);
    assert!(state.volumes_to_delete().map(|v| v.number).eq([52]));
    let never = HeldRecord { number: u64::MAX, ..HeldRecord::default() };
    assert_eq!(refused(&mut state, adopt(&never, "n", false)), ErrorReason::InvalidField);
}

/// Some changes, whatever they come to.
fn changes() -> impl Strategy<Value = Vec<Op>> {
    let id = (0..6u8).prop_map(|n| format!("v{n}"));
    let one = (0..4u8, id).prop_map(|(kind, id)| match kind {
        0 => create(&id),
        1 => attach(&id, "h"),
        2 => snapshot(&id, "s"),
        _ => Op::DeleteVolume(DeleteVolume { id, ..DeleteVolume::default() }),
    });
    proptest::collection::vec(one, 0..60)
}

proptest! {
    /// Whatever was done since the backup, and by a restore from it before: what follows gives out other numbers,
    /// higher epochs and later revisions.
    #[test]
    fn nothing_is_given_out_twice(before in changes(), since in changes(), first in changes()) {
        let mut backup = cluster();
        before.into_iter().for_each(|op| drop(run(&mut backup, op)));
        let mut lost = backup.clone();
        since.into_iter().for_each(|op| drop(run(&mut lost, op)));
        let mut once = backup.restore(&plan(NOW_US)).expect("restored");
        settled(&mut once, vec![]);
        first.into_iter().for_each(|op| drop(run(&mut once, op)));
        let mut again = backup.restore(&plan(NOW_US + 1_000)).expect("restored");
        settled(&mut again, vec![]);
        for earlier in [&lost, &once] {
            prop_assert!(again.applied() > earlier.applied());
            prop_assert!(again.map_version() > earlier.map_version());
            let epochs = earlier.volumes().map(|volume| volume.epoch).max().unwrap_or(0);
            prop_assert!(again.volumes().all(|volume| volume.epoch > epochs));
            let numbers = earlier.volumes().map(|volume| volume.number).max().unwrap_or(0);
            let made = volume(&mut again.clone(), create("made"));
            prop_assert!(made.number > numbers && made.revision > earlier.applied());
        }
    }
}
