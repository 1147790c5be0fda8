//! The state in pieces: whatever happened before, it is the same when it is read again, and goes on alike; and
//! nothing that is not a whole state is taken for one.

use basalt_api::meta::v1::StateChunk;
use basalt_api::meta::v1::state_record::Record;
use basalt_api::v1::Member;
use basalt_meta::backup::{self, BadBackup};
use basalt_meta::{
    AddMember, AttachVolume, BackupHeader, BadState, ClassRecord, CloneSource, CreateCut,
    CreateSnapshot, CreateVolume, DeleteCut, DeleteSnapshot, DeleteVolume, DetachVolume,
    DrainMember, ENTRY_VERSION, Entry, FlattenVolume, ForgetOperation, InitCluster, MetaState,
    NewSnapshot, Op, PurgeVolume, PutClass, PutQuota, QuotaRecord, ResizeVolume, RevertVolume,
    SettleClone, SettleCut, SettleFlatten, SettleRevert, SettleSnapshot, StateReader, encode,
    layout,
};
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;

fn member(node: u32) -> Member {
    Member {
        node,
        name: format!("n{node}"),
        grpc_address: format!("127.0.0.1:{}", 7000 + node),
        data_address: format!("127.0.0.1:{}", 8000 + node),
        ..Member::default()
    }
}

fn labels(n: u8) -> BTreeMap<String, String> {
    (0..n).map(|k| (format!("k{k}"), "x".repeat(usize::from(k) * 7))).collect()
}

/// Any operation on a few volumes and snapshots.
fn any_op() -> impl Strategy<Value = Op> {
    (0u8..27, 0u8..4, 0u8..3, 0u64..6, any::<bool>()).prop_map(
        |(kind, volume, snapshot, n, flag)| {
            let (id, name) = (format!("v{volume}"), format!("s{snapshot}"));
            let (number, generation) = (u64::from(volume) + 1, n as u32);
            match kind {
                0..=3 => Op::CreateVolume(CreateVolume {
                    id,
                    size_bytes: (n + 1) << 20,
                    labels: labels(snapshot),
                    ..CreateVolume::default()
                }),
                4 => Op::CreateVolume(CreateVolume {
                    id: format!("c{volume}"),
                    source: Some(CloneSource { volume: id, snapshot: name }),
                    ..CreateVolume::default()
                }),
                5 => Op::AttachVolume(AttachVolume {
                    id,
                    host: name,
                    r#move: flag,
                    ..AttachVolume::default()
                }),
                6 => Op::DetachVolume(DetachVolume { id, ..DetachVolume::default() }),
                7 => Op::ResizeVolume(ResizeVolume {
                    id,
                    size_bytes: (n + 2) << 20,
                    ..ResizeVolume::default()
                }),
                8..=10 => Op::CreateSnapshot(CreateSnapshot {
                    volume: id,
                    id: name,
                    labels: labels(snapshot),
                }),
                11 => Op::SettleSnapshot(SettleSnapshot { volume: number, generation }),
                12 => Op::DeleteSnapshot(DeleteSnapshot {
                    volume: id,
                    id: name,
                    alone: flag,
                    ..DeleteSnapshot::default()
                }),
                13 | 14 => {
                    let new = |v: u8| NewSnapshot { volume: format!("v{v}"), id: name.clone() };
                    let snapshots = (0..=volume).map(new).collect();
                    Op::CreateCut(CreateCut { snapshots, labels: labels(4) })
                }
                15 => Op::SettleCut(SettleCut { cut: n * 9 }),
                16 => Op::DeleteCut(DeleteCut { cut: n * 9 }),
                17 => Op::RevertVolume(RevertVolume {
                    id,
                    snapshot: name,
                    drop_later: flag,
                    ..RevertVolume::default()
                }),
                18 => Op::SettleRevert(SettleRevert { volume: number, generation }),
                19 => Op::DeleteVolume(DeleteVolume {
                    id,
                    with_snapshots: flag,
                    ..DeleteVolume::default()
                }),
                20 => Op::PurgeVolume(PurgeVolume { volume: number }),
                21 => match flag {
                    true => Op::FlattenVolume(FlattenVolume {
                        id: format!("c{volume}"),
                        ..FlattenVolume::default()
                    }),
                    false => Op::SettleFlatten(SettleFlatten { volume: n }),
                },
                24 => {
                    let class =
                        ClassRecord { id: name, is_default: flag, ..ClassRecord::default() };
                    Op::PutClass(PutClass { class: Some(class), ..PutClass::default() })
                }
                25 => {
                    let quota = QuotaRecord { id: name, max_volumes: 9, ..QuotaRecord::default() };
                    Op::PutQuota(PutQuota { quota: Some(quota), ..PutQuota::default() })
                }
                26 => Op::ForgetOperation(ForgetOperation { number: n * 7 }),
                22 => Op::SettleClone(SettleClone { volume: n }),
                _ => match flag {
                    true => {
                        Op::AddMember(AddMember { member: Some(member(n as u32 + 4)), replaces: 0 })
                    }
                    false => Op::DrainMember(DrainMember { node: n as u32 + 1, cancel: false }),
                },
            }
        },
    )
}

fn entry(request: u8, op: Op) -> Vec<u8> {
    let request_id = if request == 0 { String::new() } else { format!("r{request}") };
    encode(&Entry {
        version: ENTRY_VERSION,
        request_id,
        now_ms: 1,
        op: Some(op),
        ..Entry::default()
    })
}

fn begun() -> MetaState {
    let mut state = MetaState::default();
    let spec = layout::plan(9, (1..=3).map(member).collect(), 16).expect("a good list");
    state.apply(1, &entry(0, Op::InitCluster(InitCluster { spec: Some(spec) })));
    state
}

/// A state of several pieces.
fn large() -> MetaState {
    let mut state = begun();
    for n in 0..3_000u64 {
        let create = CreateVolume {
            id: format!("v{n}"),
            size_bytes: 1 << 20,
            labels: labels(4),
            ..CreateVolume::default()
        };
        let request_id = format!("request-{n}");
        let op = Some(Op::CreateVolume(create));
        let entry = Entry { version: ENTRY_VERSION, request_id, now_ms: 1, op, ..Entry::default() };
        state.apply(n + 2, &encode(&entry));
    }
    let snapshots = (0..200).map(|n| NewSnapshot { volume: format!("v{n}"), id: "all".to_owned() });
    let cut = CreateCut { snapshots: snapshots.collect(), labels: labels(60) };
    state.apply(4_000, &entry(1, Op::CreateCut(cut)));
    state
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written(
        script in prop::collection::vec((any_op(), 0u8..12), 0..120),
        later in prop::collection::vec((any_op(), 0u8..12), 1..40),
    ) {
        let mut state = begun();
        for (op, request) in script {
            state.apply(state.applied() + 1, &entry(request, op));
        }
        let mut read = MetaState::from_chunks(state.chunks()).expect("a sound state");
        prop_assert_eq!(&read, &state);
        prop_assert!(read.chunks().eq(state.chunks()), "equal states have equal pieces");
        for (op, request) in later {
            let (index, bytes) = (state.applied() + 1, entry(request, op));
            prop_assert_eq!(read.apply(index, &bytes), state.apply(index, &bytes));
        }
        prop_assert_eq!(read, state);
    }

    /// Whatever becomes of a byte, it is noticed.
    #[test]
    fn a_changed_byte_is_noticed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut state = begun();
        for (n, name) in ["a", "b"].iter().enumerate() {
            let create = CreateVolume { id: (*name).to_owned(), size_bytes: 1 << 20, ..CreateVolume::default() };
            state.apply(n as u64 + 2, &entry(n as u8 + 1, Op::CreateVolume(create)));
        }
        let mut chunks: Vec<Vec<u8>> = state.chunks().collect();
        let at = at.index(chunks.iter().map(Vec::len).sum());
        let (mut left, mut piece) = (at, 0);
        while left >= chunks[piece].len() {
            left -= chunks[piece].len();
            piece += 1;
        }
        chunks[piece][left] ^= 1 << bit;
        let read = MetaState::from_chunks(&chunks);
        prop_assert!(read.is_err(), "byte {} of piece {}", left, piece);
    }

    /// Bytes from outside are refused, and do no harm.
    #[test]
    fn bytes_that_are_no_state_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(MetaState::from_chunks([bytes]).is_err());
    }
}

#[test]
fn a_large_state_comes_in_pieces_that_are_bounded() {
    let state = large();
    let chunks: Vec<Vec<u8>> = state.chunks().collect();
    assert!(chunks.len() > 3, "{} pieces", chunks.len());
    assert!(chunks.iter().all(|chunk| chunk.len() < 512 << 10));
    let mut reader = StateReader::default();
    for chunk in &chunks {
        assert!(!reader.is_ended());
        reader.add(chunk).expect("a sound piece");
        assert_eq!(reader.applied(), Some(4_000));
    }
    assert!(reader.is_ended());
    assert_eq!(reader.finish().as_ref(), Ok(&state));
    assert_eq!(MetaState::from_chunks(MetaState::default().chunks()), Ok(MetaState::default()));
}

#[test]
fn missing_doubled_and_mixed_pieces_are_noticed() {
    let state = large();
    let chunks: Vec<Vec<u8>> = state.chunks().collect();
    let count = chunks.len() as u32;
    let without = |at: usize| {
        let mut chunks = chunks.clone();
        chunks.remove(at);
        MetaState::from_chunks(chunks)
    };
    assert_eq!(without(chunks.len() - 1), Err(BadState::Short(count - 1)));
    for at in 0..chunks.len() - 1 {
        assert!(matches!(without(at), Err(BadState::Order { .. })), "piece {at}");
    }
    let doubled = MetaState::from_chunks(chunks.iter().chain([&chunks[chunks.len() - 1]]));
    assert!(matches!(doubled, Err(BadState::Order { .. })));
    let mut later = state.clone();
    later.apply(4_001, b"");
    let other: Vec<Vec<u8>> = later.chunks().collect();
    let mixed = MetaState::from_chunks(chunks[..2].iter().chain(&other[2..]));
    assert!(matches!(mixed, Err(BadState::Order { found_applied: 4_001, .. })), "{mixed:?}");
    assert_eq!(MetaState::from_chunks(Vec::<Vec<u8>>::new()), Err(BadState::Short(0)));
}

/// Records that can not be are refused even if the digest fits.
#[test]
fn records_that_contradict_each_other_are_refused() {
    let forged = |change: &dyn Fn(&mut StateChunk)| {
        let mut state = begun();
        for (n, name) in ["a", "b"].iter().enumerate() {
            let create = CreateVolume {
                id: (*name).to_owned(),
                size_bytes: 1 << 20,
                ..CreateVolume::default()
            };
            state.apply(n as u64 + 2, &entry(n as u8 + 1, Op::CreateVolume(create)));
        }
        let first = state.chunks().next().expect("some records");
        let mut chunk = StateChunk::decode(&first[..]).expect("a piece");
        change(&mut chunk);
        let mut reader = StateReader::default();
        reader.add(&chunk.encode_to_vec())
    };
    let at = |chunk: &StateChunk, wanted: fn(&Record) -> bool| {
        let found = chunk.records.iter().position(|r| r.record.as_ref().is_some_and(wanted));
        found.expect("it is among them")
    };
    let volume = |chunk: &StateChunk| at(chunk, |r| matches!(r, Record::Volume(_)));
    let request = |chunk: &StateChunk| at(chunk, |r| matches!(r, Record::Request(_)));
    assert_eq!(forged(&|_| {}), Ok(()));
    assert_eq!(forged(&|chunk| chunk.format = 2), Err(BadState::Format(2)));
    let wrong: [&dyn Fn(&mut StateChunk); 7] = [
        &|chunk| drop(chunk.records.remove(0)),
        &|chunk| {
            let first = volume(chunk);
            chunk.records.swap(first, first + 1);
        },
        &|chunk| chunk.records.insert(1, chunk.records[0].clone()),
        &|chunk| {
            let first = volume(chunk);
            chunk.records.insert(first, chunk.records[first].clone());
        },
        &|chunk| chunk.records.push(chunk.records[request(chunk)].clone()),
        &|chunk| chunk.records[1].record = None,
        &|chunk| chunk.applied = 1,
    ];
    for (n, change) in wrong.iter().enumerate() {
        assert!(matches!(forged(change), Err(BadState::Contradiction(_))), "{n}");
    }
}

#[test]
fn a_backup_is_read_as_it_was_written_or_not_at_all() {
    let state = large();
    let header =
        BackupHeader { cluster: 9, taken_ms: 77, version: "0.1.0".to_owned(), restore: None };
    let mut file = backup::begin(&header);
    state.chunks().for_each(|chunk| file.extend(backup::framed(&chunk)));
    let read = backup::read(&file).expect("it is whole");
    assert_eq!((read.header, read.state, read.digest.len()), (header.clone(), state.clone(), 32));
    for cut in [0, 4, 11, 13, 30, file.len() / 2, file.len() - 1] {
        assert!(backup::read(&file[..cut]).is_err(), "cut off at {cut}");
    }
    for at in (0..file.len()).step_by(9_973) {
        let mut bad = file.clone();
        bad[at] ^= 16;
        let bad = backup::read(&bad);
        // When it was taken is nobody's concern but its owner's.
        assert!(bad.is_err() || bad.is_ok_and(|bad| bad.state == state), "byte {at}");
    }
    let longer = [&file[..], b"x"].concat();
    assert_eq!(backup::read(&longer), Err(BadBackup::Length));
    assert_eq!(backup::read(b"PK\x03\x04 something else"), Err(BadBackup::Other));
    let mut other = backup::begin(&BackupHeader { cluster: 8, ..header });
    state.chunks().for_each(|chunk| other.extend(backup::framed(&chunk)));
    assert!(matches!(backup::read(&other), Err(BadBackup::Header(_))));
}
