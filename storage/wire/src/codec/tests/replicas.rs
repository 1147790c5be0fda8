//! Messages by which replicas bring each other up, repair and compare.

use super::*;
use crate::disk::checkpoint::SNAPSHOTS_MAX;
use crate::pages::{WANT_HELD_MAX, granules_that_fit, volumes_that_fit};

pub(super) fn repair_message(step: RepairStep) -> Frame {
    Frame::Repair(Box::new(Repair { group: GroupId(4), request: 9, step }))
}

pub(super) fn digest_message(pages: Vec<PageDigest>) -> Frame {
    let (group, kind, at) = (GroupId(4), DigestsKind::Ask, LogIndex(9));
    Frame::Digests(Box::new(Digests { group, kind, at, pages }))
}

pub(super) fn page_digest(volume: u64, chunk: u64) -> PageDigest {
    PageDigest { volume: VolumeId(volume), chunk, digest: 77 }
}

#[test]
fn digests_out_of_order_or_bounds_are_refused() {
    let many = |count| (0..count).map(|chunk| page_digest(1, chunk)).collect::<Vec<_>>();
    assert!(decode(&wire(&[digest_message(many(128))])).is_ok());
    let unsorted = vec![page_digest(1, 5), page_digest(1, 5)];
    let far = vec![page_digest(1, BLOCK_END_MAX / 1024)];
    for pages in [Vec::new(), many(129), unsorted, far] {
        let refused = decode(&wire(&[digest_message(pages)]));
        assert!(matches!(refused, Err(CodecError::OutOfBounds { .. })), "{refused:?}");
    }
}

#[test]
fn repairs_out_of_bounds_are_refused() {
    let block = BLOCK_END_MAX;
    let want = RepairStep::Want { volume: VolumeId(1), block, checksum: 5 };
    assert!(matches!(
        decode(&wire(&[repair_message(want)])),
        Err(CodecError::OutOfBounds { field: "block", .. })
    ));
    // The content is one block, no more and no less.
    for count in [0, 2] {
        let have = RepairStep::Have { content: blocks(count, 6) };
        let refused = decode(&wire(&[repair_message(have)]));
        assert!(matches!(refused, Err(CodecError::Mismatch { .. })), "{refused:?}");
    }
}

pub(super) fn page_message(step: Step) -> Frame {
    Frame::Pages(Box::new(Pages { group: GroupId(4), term: Term(5), session: 6, step }))
}

pub(super) fn held(number: u8, blocks: Vec<(u8, u32)>) -> HeldBlocks {
    HeldBlocks { number, blocks }
}

pub(super) fn page_digests(volume: u64, chunk: u64) -> PageDigests {
    let (volume, changed_at) = (VolumeId(volume), LogIndex(8));
    PageDigests { volume, chunk, changed_at, granules: vec![(3, 77), (63, 88)] }
}

#[test]
fn page_messages_out_of_order_or_bounds_are_refused() {
    let offer = |pages| Step::Offer { ask: 4, at: LogIndex(9), more: false, pages };
    let want_at = |chunk, most, granules| {
        let volume = VolumeId(1);
        Step::Want { ask: 5, volume, chunk, most, granules }
    };
    let want = |granules| want_at(0, 1, granules);
    let empty = |number| held(number, Vec::new());
    let sent = |granules, blocks: Vec<(u16, u32)>| {
        let payload = self::blocks(blocks.len(), 1);
        let (at, changed_at) = (LogIndex(9), LogIndex(8));
        Step::Blocks { ask: 5, at, changed_at, granules, blocks, payload }
    };
    let bare = |number| GranuleSums { number, ..GranuleSums::default() };
    let kept = |deltas: &[(u32, u16)]| {
        let mut sums = [None; 16];
        sums[3] = Some(7);
        let delta = |&(generation, held): &(u32, u16)| DeltaSums {
            generation: Generation(generation),
            held,
            sums,
            ..DeltaSums::default()
        };
        GranuleSums { deltas: deltas.iter().map(delta).collect(), ..bare(1) }
    };
    // Mapped and zeros at once, and zeros of what is not held.
    let zeros = |zeros| GranuleSums { zeros, sums: kept(&[(5, 8)]).deltas[0].sums, ..bare(1) };
    let unheld = DeltaSums { generation: Generation(5), held: 8, zeros: 2, ..DeltaSums::default() };
    let begin = |start, start_term, from, more, volumes| {
        let (start, start_term) = (LogIndex(start), Term(start_term));
        Step::Begin { start, start_term, members: members(), from: VolumeId(from), more, volumes }
    };
    let volume = |id| (VolumeId(id), record(3, false));
    let late = VolumeRecord { first: Generation(5), ..record(3, false) };
    let bad = [
        offer(vec![page_digests(1, 1), page_digests(1, 0)]),
        offer(vec![page_digests(2, 0), page_digests(1, 0)]),
        offer(vec![page_digests(1, 1), page_digests(1, 1)]),
        offer(vec![page_digests(1, 1 << 41)]),
        offer((0..17).map(|chunk| page_digests(1, chunk)).collect()),
        Step::Offer { ask: 4, at: LogIndex(9), more: true, pages: Vec::new() },
        want(Vec::new()),
        want(vec![empty(5), empty(4)]),
        want(vec![empty(64)]),
        want((0..17).map(empty).collect()),
        want(vec![held(1, vec![(16, 0)])]),
        want(vec![held(1, vec![(5, 0), (4, 0)])]),
        want_at(1 << 41, 1, vec![empty(1)]),
        want_at(0, 0, vec![empty(1)]),
        want_at(0, 257, vec![empty(1)]),
        sent(Vec::new(), Vec::new()),
        sent(vec![bare(3), bare(3)], Vec::new()),
        sent(vec![bare(3)], vec![(7, 0), (6, 0)]),
        sent(vec![bare(3)], vec![(1024, 0)]),
        sent(vec![kept(&[(5, 0)])], Vec::new()),
        sent(vec![kept(&[(5, 1)])], Vec::new()),
        sent(vec![kept(&[(5, 8), (5, 8)])], Vec::new()),
        sent(vec![zeros(8)], Vec::new()),
        sent(vec![GranuleSums { deltas: vec![unheld], ..bare(1) }], Vec::new()),
        begin(0, 1, 0, false, Vec::new()),
        begin(1, 0, 0, false, Vec::new()),
        begin(1, 1, 0, true, Vec::new()),
        begin(1, 1, 0, false, vec![volume(7), volume(7)]),
        begin(1, 1, 0, false, vec![volume(u64::MAX), volume(u64::MAX)]),
        begin(1, 1, 8, false, vec![volume(7)]),
        begin(1, 1, 0, false, vec![(VolumeId(7), late)]),
        begin(1, 1, 0, false, vec![(VolumeId(5), record(4, false))]),
    ];
    for step in bad {
        let bytes = wire(&[page_message(step.clone())]);
        assert!(decode(&bytes).is_err(), "{step:?}");
    }
}

#[test]
fn the_digest_of_a_granule_tells_its_parts_apart() {
    let one = |at: usize, sum| {
        let mut sums = [None; 16];
        sums[at] = Some(sum);
        sums
    };
    let live = |sums| GranuleSums { sums, ..GranuleSums::default() };
    let kept = |generation, held, sums| {
        let generation = Generation(generation);
        let deltas = vec![DeltaSums { generation, held, sums, ..DeltaSums::default() }];
        GranuleSums { deltas, ..GranuleSums::default() }
    };
    let zeros = |at: u16| GranuleSums { zeros: 1 << at, ..GranuleSums::default() };
    let kept_zero = |zeros| {
        let delta = DeltaSums { generation: Generation(1), held: 3, zeros, ..DeltaSums::default() };
        GranuleSums { deltas: vec![delta], ..GranuleSums::default() }
    };
    let all = [
        live([None; 16]),
        live(one(0, 0)),
        live(one(1, 0)),
        live(one(1, 5)),
        kept(0, 1, [None; 16]),
        kept(1, 1, [None; 16]),
        kept(1, 3, [None; 16]),
        kept(1, 3, one(1, 5)),
        zeros(0),
        zeros(1),
        kept_zero(1),
        kept_zero(3),
    ];
    let digests: std::collections::BTreeSet<u64> = all.iter().map(GranuleSums::digest).collect();
    assert_eq!((digests.len(), all[0].digest()), (all.len(), 0));
}

/// As many volumes as there may be, each with as many snapshots as it may have.
#[test]
fn a_state_of_any_size_is_told_in_frames_that_are_taken() {
    let snapshots: Vec<Generation> = (1..=SNAPSHOTS_MAX as u32).map(Generation).collect();
    let generation = Generation(SNAPSHOTS_MAX as u32 + 1);
    let full = VolumeRecord { snapshots, generation, ..VolumeRecord::default() };
    let record =
        |id: u64| if id.is_multiple_of(3) { VolumeRecord::default() } else { full.clone() };
    let all: Vec<_> = (0..4_000).map(|id| (VolumeId(id), record(id))).collect();
    let (mut rest, mut told, mut parts) = (&all[..], Vec::new(), 0);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(volumes_that_fit(rest));
        let step = Step::Begin {
            start: LogIndex(9),
            start_term: Term(3),
            members: members(),
            from: now[0].0,
            more: !later.is_empty(),
            volumes: now.to_vec(),
        };
        let frames = decode(&wire(&[page_message(step)])).expect("a frame within its bounds");
        let Some(Frame::Pages(message)) = frames.first() else { panic!("{frames:?}") };
        let Step::Begin { volumes, .. } = &message.step else { panic!("{message:?}") };
        told.extend(volumes.clone());
        (rest, parts) = (later, parts + 1);
    }
    assert_eq!(told, all);
    assert!((40..60).contains(&parts), "{parts} parts");
    // One that is alone too large for the bound would be told all the same.
    assert_eq!((volumes_that_fit(&all[1..2]), volumes_that_fit(&[])), (1, 0));
}

/// Every block of each granule was written again after each of as many snapshots as there may be.
#[test]
fn questions_for_granules_of_any_history_are_taken() {
    let blocks: Vec<(u8, u32)> =
        (0..16).flat_map(|block| (0..=SNAPSHOTS_MAX as u32).map(move |sum| (block, sum))).collect();
    let granules: Vec<HeldBlocks> = (0..16).map(|number| held(number, blocks.clone())).collect();
    let fit = granules_that_fit(&granules);
    assert_eq!(fit, 3);
    let (volume, granules) = (VolumeId(1), granules[..fit].to_vec());
    let step = Step::Want { ask: 5, volume, chunk: 3, most: 256, granules };
    assert!(decode(&wire(&[page_message(step)])).is_ok());
    assert_eq!(granules_that_fit(&[held(3, vec![(0, 1); WANT_HELD_MAX + 1])]), 1);
}
