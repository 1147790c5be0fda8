//! Tests of the records of checkpoints.

use super::*;

fn samples() -> Vec<Record> {
    let mut granule = Granule { changed_at: LogIndex(9), ..Granule::default() };
    granule.places[0] = Some((SegmentId(3), 7, 0xdead_beef));
    granule.places[15] = Some((SegmentId(4), 8, 1));
    let mut versions = granule.clone();
    let mut delta = GranuleDelta { generation: Generation(2), held: 5, ..Default::default() };
    delta.places[2] = Some((SegmentId(1), 2, 3));
    versions.deltas = vec![delta, GranuleDelta { generation: Generation(7), ..delta }];
    let volume = VolumeRecord {
        epoch: Epoch(8),
        deleted: false,
        generation: Generation(9),
        first: Generation(1),
        snapshots: vec![Generation(2), Generation(8)],
        parent: None,
        detached: false,
    };
    let parent = SnapshotId { volume: VolumeId(3), generation: Generation(4) };
    let clone = VolumeRecord { parent: Some(parent), ..volume.clone() };
    let mut zeros = versions.clone();
    (zeros.zeros, zeros.deltas[1].zeros) = (0x0102, 1);
    let entry = EntryPlace {
        term: Term(3),
        segment: SegmentId(9),
        batch_block: 4,
        record: 2,
        block: 6,
        blocks: 5,
        kind: 0,
    };
    let change = EntryPlace { term: Term(4), kind: ENTRY_KIND_MEMBERS, ..entry };
    let member = |node| Address { node: NodeId(node), shard: ShardId(0) };
    let members = Membership::new(vec![member(1), member(4)], vec![member(2)]);
    let group = |id| GroupManifest {
        group: GroupId(id),
        applied: LogIndex(5),
        end: LogIndex(6),
        hard: HardStateFields { term: Term(2), vote: NodeId(1), commit: LogIndex(5) },
        volumes: 3,
        granules: 4,
        first: LogIndex(4),
        before: Term(2),
        ahead: LogIndex(9),
        owed: LogIndex(7),
        owed_term: Term(3),
        gone: false,
    };
    let used = |segment, seq| SegmentUse { segment: SegmentId(segment), seq };
    let manifest = Manifest {
        cluster: ClusterId(7),
        address: Address { node: NodeId(2), shard: ShardId(1) },
        device: 0x1234_5678_9abc_def0,
        segment_bytes: 1 << 20,
        number: 11,
        from: ChainPlace {
            segment: 2,
            segment_seq: 3,
            block: 40,
            seq: 77,
            previous_crc: 5,
            boot: 4,
        },
        until: (80, 99),
        groups: vec![group(0), GroupManifest { gone: true, ..group(u32::MAX) }],
        segments: vec![used(1, 2), used(7, 1)],
        copies: vec![used(3, 2), used(9, 3)],
    };
    let entry_of = |kind, data| MetadataEntry { term: Term(1), kind, data };
    let leave = MembersChange::Leave.encode();
    vec![
        Record::Command(LogIndex(1), entry_of(0, Bytes::from_static(b"create"))),
        Record::Command(LogIndex(2), entry_of(0, Bytes::new())),
        Record::Entries(GroupId(3), 2, vec![entry, change]),
        Record::Manifest(manifest),
        Record::Granule(GroupId(1), VolumeId(5), 1 << 40, 63, granule),
        Record::Granule(GroupId(1), VolumeId(5), 0, 0, Granule::default()),
        Record::Granule(GroupId(1), VolumeId(5), 0, 1, versions),
        Record::Volume(GroupId(1), VolumeId(5), volume.clone()),
        Record::Volume(
            GroupId(1),
            VolumeId(6),
            VolumeRecord { deleted: true, ..VolumeRecord::default() },
        ),
        Record::Members(GroupId(1), members),
        Record::Command(LogIndex(3), entry_of(ENTRY_KIND_MEMBERS, leave)),
        Record::Volume(GroupId(1), VolumeId(8), VolumeRecord { detached: true, ..volume }),
        Record::Granule(GroupId(1), VolumeId(5), 0, 2, zeros),
        Record::Volume(GroupId(1), VolumeId(7), clone),
    ]
}

fn encoded(record: &Record) -> (Vec<u8>, Vec<u8>) {
    let (mut key, mut value) = (Vec::new(), Vec::new());
    record.key(&mut key);
    record.value(&key, &mut value);
    (key, value)
}

#[test]
fn records_survive_a_round_trip() {
    for record in samples() {
        let (key, value) = encoded(&record);
        assert_eq!(Record::decode(&key, &value), Ok(record));
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    for record in samples() {
        let (key, value) = encoded(&record);
        for bit in 0..value.len() * 8 {
            let mut bad = value.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&key, &bad).is_err(), "{record:?} bit {bit}");
        }
        for len in 0..value.len() {
            assert!(Record::decode(&key, &value[..len]).is_err(), "{record:?} cut at {len}");
        }
        for bit in 0..key.len() * 8 {
            let mut bad = key.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&bad, &value).is_err(), "{record:?} key bit {bit}");
        }
    }
}

#[test]
fn generations_that_contradict_each_other_are_refused() {
    let good = samples();
    let spoils: [fn(&mut VolumeRecord); 5] = [
        |v| v.first = Generation(10),
        |v| v.snapshots[0] = Generation(8),
        |v| v.snapshots[1] = Generation(9),
        |v| v.snapshots[0] = Generation(0),
        |v| {
            v.parent = Some(SnapshotId { volume: VolumeId(3), generation: Generation(4) });
            v.detached = true;
        },
    ];
    for spoil in spoils {
        let Record::Volume(group, id, mut bad) = good[7].clone() else { panic!("the order") };
        spoil(&mut bad);
        let (key, value) = encoded(&Record::Volume(group, id, bad));
        assert!(matches!(Record::decode(&key, &value), Err(CheckpointError::Field(_))));
    }
    let spoils: [fn(&mut Granule); 6] = [
        |g| g.deltas[0].held = 0,
        |g| g.deltas[0].held = 1,
        |g| g.deltas[1].generation = Generation(2),
        |g| g.zeros = 1,
        |g| g.deltas[0].zeros = 2,
        |g| g.deltas[0].zeros = 4,
    ];
    for spoil in spoils {
        let Record::Granule(group, id, chunk, number, mut bad) = good[6].clone() else {
            panic!("the order")
        };
        spoil(&mut bad);
        let (key, value) = encoded(&Record::Granule(group, id, chunk, number, bad));
        assert!(matches!(Record::decode(&key, &value), Err(CheckpointError::Field(_))));
    }
}

#[test]
fn metadata_entries_of_unknown_types_are_refused() {
    let leave = MembersChange::Leave.encode();
    for (kind, data) in [(1, leave), (3, Bytes::new()), (ENTRY_KIND_MEMBERS, Bytes::new())] {
        let entry = MetadataEntry { term: Term(1), kind, data };
        let (key, value) = encoded(&Record::Command(LogIndex(3), entry));
        assert_eq!(Record::decode(&key, &value), Err(CheckpointError::Field("type")));
    }
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let Record::Manifest(good) = samples().remove(3) else { panic!("the order of samples") };
    let spoils: [fn(&mut Manifest); 17] = [
        |m| m.from.seq = 0,
        |m| m.until.0 = m.from.seq - 1,
        |m| m.groups[1].group = GroupId(0),
        |m| m.groups[0].end = LogIndex(4),
        |m| m.segments[0].seq = 0,
        |m| m.segments[0].seq = m.from.segment_seq,
        |m| m.segments[1].seq = m.segments[0].seq,
        |m| m.segments[1].segment = m.segments[0].segment,
        |m| m.segments[0].segment = SegmentId(m.from.segment),
        |m| m.groups[0].first = LogIndex(0),
        |m| m.groups[0].first = LogIndex(7),
        |m| m.groups[0].first = LogIndex(1),
        |m| m.groups[0].before = Term(0),
        |m| m.copies[0].seq = 0,
        |m| m.copies[1].segment = m.copies[0].segment,
        |m| m.copies[0].segment = m.segments[0].segment,
        |m| m.copies[0].segment = SegmentId(m.from.segment),
    ];
    for spoil in spoils {
        let mut bad = good.clone();
        spoil(&mut bad);
        let (key, value) = encoded(&Record::Manifest(bad));
        assert!(matches!(Record::decode(&key, &value), Err(CheckpointError::Field(_))));
    }
}

#[test]
fn a_volume_is_not_its_own_parent() {
    let Some(Record::Volume(group, _, clone)) = samples().pop() else { panic!("the order") };
    let id = clone.parent.map(|parent| parent.volume).expect("it has a parent");
    let (key, value) = encoded(&Record::Volume(group, id, clone));
    assert_eq!(Record::decode(&key, &value), Err(CheckpointError::Field("parent")));
}

#[test]
fn prefixes_of_commands_cover_them_and_no_others() {
    let key = |index: u64| {
        let entry = MetadataEntry { term: Term(1), kind: 0, data: Bytes::new() };
        let mut key = Vec::new();
        Record::Command(LogIndex(index), entry).key(&mut key);
        key
    };
    for (from, to, most) in
        [(1, 1, 0), (1, 3, 2), (250, 1030, 16), (256, 512, 1), (1, 100_000, 900)]
    {
        let prefixes: Vec<Vec<u8>> = command_prefixes(from, to).collect();
        assert!(prefixes.len() <= most, "{from}..{to} takes {}", prefixes.len());
        let covered = |index| prefixes.iter().any(|prefix| key(index).starts_with(prefix));
        let near = (from.saturating_sub(300)..from + 300).chain(to.saturating_sub(300)..to + 300);
        near.for_each(|n| assert_eq!(covered(n), (from..to).contains(&n), "{from}..{to}: {n}"));
    }
}
