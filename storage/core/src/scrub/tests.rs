use super::*;
use crate::config::ScrubPlace;
use crate::log::RecordSeq;
use basalt_wire::block::crc32c;
use basalt_wire::buffer::Payload;
use basalt_wire::ids::{Address, NodeId, SegmentId, ShardId};
use std::collections::BTreeMap;

const SECOND: Duration = Duration::from_secs(1);

/// Blocks by where they stand, and a device that holds them.
#[derive(Default)]
struct Fake {
    groups: Vec<BTreeMap<(VolumeId, u64), Vec<MovedBlock>>>,
    device: BTreeMap<(SegmentId, u32), Vec<u8>>,
    /// Reads of these blocks fail so many times.
    failing: BTreeMap<(SegmentId, u32), u32>,
}

impl Fake {
    fn with(groups: usize) -> Fake {
        Fake { groups: vec![BTreeMap::new(); groups], ..Fake::default() }
    }

    fn put(&mut self, slot: usize, volume: u64, block: u64, at: (u32, u32)) -> MovedBlock {
        let content = vec![(block * 7 + volume) as u8; BLOCK_BYTES];
        let from = (SegmentId(at.0), at.1);
        let checksum = crc32c(&content);
        self.device.insert(from, content);
        let moved = MovedBlock { volume: VolumeId(volume), block, checksum, from: Some(from) };
        let page = self.groups[slot].entry((VolumeId(volume), block / CHUNK_BLOCKS)).or_default();
        page.push(moved);
        page.sort_by_key(|block| block.from);
        moved
    }

    fn read(&mut self, at: Location, blocks: u32) -> Option<Bytes> {
        let mut bytes = Vec::new();
        for block in at.block..at.block + blocks {
            let place = (at.segment, block);
            if let Some(left) = self.failing.get_mut(&place).filter(|left| **left > 0) {
                *left -= 1;
                return None;
            }
            bytes.extend_from_slice(&self.device[&place]);
        }
        Some(bytes.into())
    }
}

impl Known for Fake {
    fn groups(&self) -> usize {
        self.groups.len()
    }

    fn pages(&self, slot: usize, from: (VolumeId, u64), most: usize) -> Vec<(VolumeId, u64)> {
        self.groups[slot].range(from..).take(most).map(|(key, _)| *key).collect()
    }

    fn places(&self, target: &Target) -> Vec<MovedBlock> {
        let key = (target.volume, target.range.block / CHUNK_BLOCKS);
        let end = target.range.block + u64::from(target.range.count);
        let all = self.groups[target.slot].get(&key).into_iter().flatten().copied();
        all.filter(|b| (target.range.block..end).contains(&b.block)).collect()
    }

    fn is_known(&self, _: &Target) -> bool {
        true
    }

    fn is_live(&self, slot: usize, block: &MovedBlock) -> bool {
        self.groups[slot].values().flatten().any(|live| live == block)
    }
}

/// Lets a scrub run until it has nothing to read now.
fn run(scrub: &mut Scrub, now: Time, fake: &mut Fake) -> Vec<(usize, MovedBlock)> {
    let mut bad = Vec::new();
    while let Some((at, blocks)) = scrub.next_read(now, fake, (1000, true, false)) {
        let piece = fake.read(at, blocks);
        bad.extend(scrub.take(piece.as_ref(), fake));
    }
    bad
}

fn filled() -> Fake {
    let mut fake = Fake::with(3);
    for block in 0..200 {
        fake.put(1, 5, block * 20, (block as u32 % 3, block as u32 / 3));
    }
    fake.put(2, 9, 4, (7, 7));
    fake
}

#[test]
fn a_pass_sees_every_block_once_whatever_the_group_it_begins_with() {
    for first in 0..4 {
        let mut fake = filled();
        let mut scrub = Scrub::new(Scrubbing::WEEKLY, first, Time(5));
        assert_eq!(scrub.deadline(false), Some(Time(5)));
        assert_eq!(run(&mut scrub, Time(5), &mut fake), []);
        let report = scrub.take_end().expect("the pass is over");
        assert_eq!((report.verified, report.bad), (201, 0));
        assert_eq!((scrub.counts().passes, scrub.take_end(), scrub.position()), (1, None, None));
        // The next one begins a week after this one began.
        assert_eq!(scrub.deadline(false), Some(Time(5) + Scrubbing::WEEKLY.every));
    }
}

#[test]
fn a_shard_without_groups_waits_for_the_next_pass() {
    let mut scrub = Scrub::new(Scrubbing::WEEKLY, 3, Time(5));
    assert_eq!(run(&mut scrub, Time(5), &mut Fake::default()), []);
    assert_eq!(scrub.deadline(false), Some(Time(5) + Scrubbing::WEEKLY.every));
    scrub.ask(Time(6), 0);
    let counts = scrub.counts();
    assert_eq!((scrub.position(), counts.passes, counts.asked), (None, 2, 1));
}

#[test]
fn what_fails_twice_is_damaged_and_what_fails_once_is_not() {
    let mut fake = filled();
    fake.device.get_mut(&(SegmentId(1), 30)).unwrap()[17] ^= 4;
    fake.device.insert((SegmentId(2), 3), vec![0; BLOCK_BYTES]);
    fake.failing.insert((SegmentId(0), 11), 1);
    fake.failing.insert((SegmentId(0), 12), 9);
    let mut scrub = Scrub::new(Scrubbing::ASKED, 0, Time(5));
    assert_eq!((scrub.deadline(false), run(&mut scrub, Time(5), &mut fake).len()), (None, 0));
    scrub.ask(Time(6), 3);
    let mut found: Vec<_> = run(&mut scrub, Time(6), &mut fake);
    found.sort_by_key(|(_, block)| block.from);
    let found: Vec<_> = found.iter().map(|(slot, b)| (*slot, b.from.unwrap())).collect();
    let expected = [(SegmentId(0), 12), (SegmentId(1), 30), (SegmentId(2), 3)];
    assert_eq!(found, expected.map(|place| (1, place)));
    assert_eq!((scrub.counts().verified, scrub.counts().bad), (198, 3));
}

#[test]
fn a_block_that_moved_while_it_was_read_is_not_damaged() {
    let mut fake = Fake::with(1);
    fake.put(0, 1, 3, (4, 5));
    let mut scrub = Scrub::new(Scrubbing::ASKED, 0, Time(0));
    scrub.ask(Time(0), 1);
    for _ in 0..2 {
        let read = scrub.next_read(Time(0), &fake, (1, false, false));
        assert_eq!(read, Some((Location { segment: SegmentId(4), block: 5 }, 1)));
        assert_eq!(scrub.next_read(Time(0), &fake, (1, false, false)), None);
        fake.groups[0].clear();
        assert_eq!(scrub.take(Some(&Bytes::from(vec![9; BLOCK_BYTES])), &fake), []);
    }
    assert_eq!(scrub.counts().bad, 0);
}

#[test]
fn a_pass_takes_as_long_as_it_may_and_suspects_do_not_wait_for_it() {
    let mut fake = Fake::with(1);
    // 64 MiB in 16 chunks.
    let blocks = 16 * CHUNK_BLOCKS;
    (0..blocks).for_each(|block| {
        fake.put(0, 1, block, (block as u32 / 8192, block as u32 % 8192));
    });
    let pace = Scrubbing { every: Duration::from_secs(64), ..Scrubbing::WEEKLY };
    let mut scrub = Scrub::new(pace, 0, Time::ZERO);
    let mut now = Time::ZERO;
    let live = (blocks, false, false);
    while scrub.counts().passes == 0 {
        while let Some((at, count)) = scrub.next_read(now, &fake, live) {
            let piece = fake.read(at, count);
            assert_eq!(scrub.take(piece.as_ref(), &fake), []);
        }
        if scrub.counts().passes == 0 {
            let range = BlockRange { block: 7, count: 2 };
            let verified = scrub.counts().verified;
            scrub.suspect(Target { slot: 0, volume: VolumeId(1), range });
            assert_eq!(scrub.deadline(false), Some(Time::ZERO));
            let (at, count) = scrub.next_read(now, &fake, live).expect("it is read at once");
            assert_eq!((at.block, count), (7, 2));
            let piece = fake.read(at, count);
            scrub.take(piece.as_ref(), &fake);
            assert_eq!(scrub.next_read(now, &fake, live), None);
            assert_eq!(scrub.counts().verified, verified + 2);
            assert!(scrub.next_read(now, &fake, (blocks, false, true)).is_none());
            now = scrub.deadline(false).expect("the pass goes on");
        }
    }
    let took = scrub.last().unwrap().took;
    assert!((50 * SECOND..=64 * SECOND).contains(&took), "{took:?}");
}

fn peer(n: u32) -> Address {
    Address { node: NodeId(n), shard: ShardId(0) }
}

fn plan(repairs: &mut Repairs, now: Time) -> Vec<Todo> {
    repairs.plan(now, SECOND, |_, _| true, |_| vec![peer(2), peer(3)])
}

fn damaged(content: &[u8]) -> MovedBlock {
    let from = Some((SegmentId(3), 9));
    MovedBlock { volume: VolumeId(1), block: 8, checksum: crc32c(content), from }
}

#[test]
fn one_peer_after_the_other_is_asked_and_only_what_fits_is_taken() {
    let content = Bytes::from(vec![7; BLOCK_BYTES]);
    let block = damaged(&content);
    let mut repairs = Repairs::new(0);
    assert!(repairs.add(Time(0), 4, block) && !repairs.add(Time(0), 4, block));
    let ask = |to, request| Todo::Ask { to: peer(to), request, slot: 4, block };
    assert_eq!(plan(&mut repairs, Time(0)), [ask(2, 1)]);
    assert_eq!(plan(&mut repairs, Time(0)), []);
    // Wrong content, from the one who was asked and from another.
    let wrong = Payload::from(Bytes::from(vec![8; BLOCK_BYTES]));
    let good = Payload::from(content);
    assert_eq!(repairs.given(Time(1), (peer(3), 1), &good, false), None);
    assert_eq!(repairs.given(Time(1), (peer(2), 1), &wrong, false), None);
    assert_eq!(plan(&mut repairs, Time(1)), [ask(3, 1)]);
    // No answer: nobody is left in this round.
    let late = Time(1) + SECOND;
    assert_eq!(repairs.deadline(), Some(late));
    assert_eq!(plan(&mut repairs, late), [Todo::Lost { slot: 4, block }]);
    assert_eq!((repairs.counts().waiting, repairs.counts().lost), (1, 1));
    // Later it goes on, without another alarm.
    let later = repairs.deadline().expect("it is asked for again");
    assert!(later > late + SECOND);
    assert_eq!(plan(&mut repairs, later), [ask(2, 1)]);
    let given = repairs.given(later, (peer(2), 1), &good, false);
    assert_eq!(given, Some(Given { slot: 4, block }));
    repairs.recorded(1, RecordSeq(30));
    assert_eq!(repairs.durable(RecordSeq(29), true), None);
    assert_eq!(repairs.durable(RecordSeq(30), true), Some(SegmentId(3)));
    let counts = repairs.counts();
    assert_eq!((counts.repaired, counts.waiting, counts.lost), (1, 0, 0));
    assert!(repairs.add(later, 4, block), "the same place may be damaged again");
}

#[test]
fn what_is_overwritten_is_forgotten() {
    let mut repairs = Repairs::new(0);
    assert!(repairs.add(Time(0), 0, damaged(b"")));
    let todo = repairs.plan(Time(0), SECOND, |_, _| false, |_| vec![peer(2)]);
    assert_eq!((todo, repairs.counts().overwritten, repairs.deadline()), (vec![], 1, None));
}

#[test]
fn questions_and_memory_are_bounded() {
    let mut repairs = Repairs::new(0);
    let block = |n: u32| MovedBlock { from: Some((SegmentId(1), n)), ..damaged(b"") };
    let taken = (0..5000).filter(|n| repairs.add(Time(0), 0, block(*n))).count();
    assert_eq!(taken, 4096);
    assert!(repairs.is_backlogged());
    assert_eq!(plan(&mut repairs, Time(0)).len(), 64);
    assert_eq!(repairs.deadline(), Some(Time(0) + SECOND));
    assert_eq!(plan(&mut repairs, Time(0)).len(), 0);
    for request in 1..=10 {
        repairs.refused(Time(1), peer(2), request);
        repairs.refused(Time(1), peer(2), request);
    }
    assert_eq!(plan(&mut repairs, Time(1)).len(), 10);
}

/// Stopped after any number of reads, and started again each time, a pass sees every block.
#[test]
fn a_pass_goes_on_where_an_earlier_start_had_come_to() {
    let pace = Scrubbing { every: Duration::from_secs(1000), ..Scrubbing::WEEKLY };
    let slot_of = |group: GroupId| (group.0 < 3).then_some(group.0 as usize);
    // The blocks of a page stand in three runs at most, and a page is begun anew.
    for reads in 3..9 {
        let (mut fake, mut resume, mut verified, mut starts) = (filled(), None, 0, 0);
        loop {
            let now = Time(7) + Duration::from_secs(starts);
            let mut scrub = Scrub::new(pace, 1, now);
            if let Some(resume) = resume {
                scrub.resume(now, resume, slot_of, 3);
            }
            for _ in 0..reads {
                let Some((at, blocks)) = scrub.next_read(now, &fake, (1000, true, false)) else {
                    break;
                };
                let piece = fake.read(at, blocks);
                scrub.take(piece.as_ref(), &fake);
            }
            verified += scrub.counts().verified;
            starts += 1;
            assert!(starts < 100, "no pass ends");
            let since = Duration::from_secs(starts);
            let Some(at) = scrub.position() else {
                assert_eq!((scrub.counts().passes, scrub.take_end().is_some()), (1, true));
                // The next one is due when it would have been.
                let ended = ScrubResume { since, place: None };
                let mut next = Scrub::new(pace, 0, now);
                next.resume(now, ended, slot_of, 3);
                let due = now + (pace.every - since);
                assert_eq!(next.deadline(false), Some(due));
                break;
            };
            let (group, left) = (GroupId(at.slot as u32), at.left);
            let page = at.page.unwrap_or((VolumeId(u64::MAX), u64::MAX));
            resume = Some(ScrubResume { since, place: Some(ScrubPlace { group, page, left }) });
        }
        assert!(verified >= 201, "{verified} blocks with {reads} reads a start");
        assert!(starts > 1, "{starts} starts");
    }
    // A group that is gone: it begins anew.
    let mut scrub = Scrub::new(pace, 0, Time(7));
    let place = ScrubPlace { group: GroupId(9), page: (VolumeId(0), 0), left: 2 };
    let since = Duration::from_secs(1);
    scrub.resume(Time(7), ScrubResume { since, place: Some(place) }, slot_of, 3);
    assert_eq!((scrub.position(), scrub.deadline(false)), (None, Some(Time(7))));
}
