//! Random changes of an index: the account of live blocks stays equal to a recount, and snapshots read
//! as copies of the volume do that were made when they were taken.

use super::*;
use basalt_wire::disk::checkpoint::GRANULE_BLOCKS;
use basalt_wire::ids::SegmentId;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Map { block: u64, count: u32, segment: u32, at: u32 },
    Unmap { block: u64, count: u32 },
    Relocate { block: u64, segment: u32, at: u32, stale: bool },
    Restore { chunk: u64, number: u8, mask: u16, segment: u32 },
    Clear,
}

fn ranges() -> impl Strategy<Value = (u64, u32)> {
    (0u64..3, 0u64..1024, 1u32..200).prop_map(|(chunk, first, count)| {
        (chunk * CHUNK_BLOCKS + first, count.min((CHUNK_BLOCKS - first) as u32))
    })
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (ranges(), 0u32..6, 0u32..500).prop_map(|((block, count), segment, at)| {
            Step::Map { block, count, segment, at }
        }),
        4 => ranges().prop_map(|(block, count)| Step::Unmap { block, count }),
        6 => (ranges(), 0u32..6, 0u32..500, any::<bool>()).prop_map(
            |((block, _), segment, at, stale)| Step::Relocate { block, segment, at, stale }
        ),
        2 => (0u64..3, 0u8..64, any::<u16>(), 0u32..6).prop_map(|(chunk, number, mask, segment)| {
            Step::Restore { chunk, number, mask, segment }
        }),
        1 => Just(Step::Clear),
    ]
}

fn granule(mask: u16, segment: u32) -> Granule {
    let mut granule = Granule { changed_at: LogIndex(1), ..Granule::default() };
    for i in (0..GRANULE_BLOCKS).filter(|i| mask >> i & 1 == 1) {
        granule.places[i] = Some((SegmentId(segment), i as u32, 7));
    }
    granule
}

fn apply(index: &mut VolumeIndex, usage: &mut Usage, step: &Step, at: LogIndex) {
    match *step {
        Step::Map { block, count, segment, at: first } => {
            let place = BlockPlace { segment: SegmentId(segment), block: first, checksum: 0 };
            let sums = vec![0; count as usize].into_iter();
            index.map(BlockRange { block, count }, place, sums, at, None, usage);
        }
        Step::Unmap { block, count } => {
            index.unmap(BlockRange { block, count }, block.is_multiple_of(2), at, None, usage);
        }
        Step::Relocate { block, segment, at: first, stale } => {
            let to = Location { segment: SegmentId(segment), block: first };
            let Some(mut from) = index.place(block) else { return };
            from.checksum ^= u32::from(stale);
            let (moved, _) = index.relocate(block, from, to, usage);
            assert_eq!(moved, !stale, "only what still stands there is moved");
            let now = index.place(block).expect("it was mapped");
            let stands = Location { segment: now.segment, block: now.block };
            let was = Location { segment: from.segment, block: from.block };
            assert_eq!(stands, if stale { was } else { to });
        }
        Step::Restore { chunk, number, mask, segment } => {
            index.restore((chunk, number), &granule(mask, segment), LogIndex(1), usage);
        }
        Step::Clear => index.clear(usage),
    }
}

proptest! {
    #[test]
    fn usage_equals_a_recount(all in prop::collection::vec(steps(), 1..120)) {
        let (mut index, mut usage) = (VolumeIndex::new(), Usage::default());
        for (n, step) in (1..).zip(&all) {
            apply(&mut index, &mut usage, step, LogIndex(n));
            let mut counted = Usage::default();
            index.recount(&mut counted, |_| Vec::new());
            prop_assert_eq!(&usage, &counted, "after {:?}", step);
            prop_assert_eq!(usage.total(), index.mapped_blocks() + index.kept_blocks());
        }
    }
}

/// Where blocks stand; nothing for one that was unmapped in a clone.
type Copy = BTreeMap<u64, Option<(u32, u32)>>;

/// A volume with snapshots as a naive mind keeps it: whole copies.
#[derive(Default)]
struct Copies {
    clone: bool,
    now: Copy,
    snapshots: BTreeMap<Generation, Copy>,
    generation: u32,
}

#[derive(Clone, Debug)]
enum Turn {
    Change(Step),
    Freeze,
    Drop(prop::sample::Index),
    Revert(prop::sample::Index),
}

fn turns() -> impl Strategy<Value = Turn> {
    let ranges = || (0u64..2, 0u64..64, 1u32..24).prop_map(|(c, f, n)| (c * CHUNK_BLOCKS + f, n));
    prop_oneof![
        8 => (ranges(), 0u32..6, 0u32..500).prop_map(|((block, count), segment, at)| {
            Turn::Change(Step::Map { block, count, segment, at })
        }),
        4 => ranges().prop_map(|(block, count)| Turn::Change(Step::Unmap { block, count })),
        3 => Just(Turn::Freeze),
        2 => any::<prop::sample::Index>().prop_map(Turn::Drop),
        1 => any::<prop::sample::Index>().prop_map(Turn::Revert),
    ]
}

impl Copies {
    fn pick(&self, which: &prop::sample::Index) -> Option<Generation> {
        let all: Vec<_> = self.snapshots.keys().copied().collect();
        (!all.is_empty()).then(|| all[which.index(all.len())])
    }

    /// Does the same to the copies and to the index.
    fn take(&mut self, turn: &Turn, index: &mut VolumeIndex, usage: &mut Usage, at: LogIndex) {
        let newest = self.snapshots.keys().last().copied();
        match turn {
            Turn::Change(Step::Map { block, count, segment, at: first }) => {
                let place = BlockPlace { segment: SegmentId(*segment), block: *first, checksum: 0 };
                let (range, sums) =
                    (BlockRange { block: *block, count: *count }, vec![0; *count as usize]);
                index.map(range, place, sums.into_iter(), at, newest, usage);
                for i in 0..*count {
                    self.now.insert(block + u64::from(i), Some((*segment, first + i)));
                }
            }
            Turn::Change(Step::Unmap { block, count }) => {
                let range = BlockRange { block: *block, count: *count };
                index.unmap(range, self.clone, at, newest, usage);
                for block in *block..block + u64::from(*count) {
                    match self.clone {
                        true => self.now.insert(block, None),
                        false => self.now.remove(&block),
                    };
                }
            }
            Turn::Change(_) => {}
            Turn::Freeze => {
                self.snapshots.insert(Generation(self.generation), self.now.clone());
                self.generation += 1;
            }
            Turn::Drop(which) => {
                let Some(snapshot) = self.pick(which) else { return };
                let older = self.snapshots.range(..snapshot).next_back().map(|(g, _)| *g);
                index.drop_snapshot(snapshot, older, at, usage);
                self.snapshots.remove(&snapshot);
            }
            Turn::Revert(which) => {
                let Some(snapshot) = self.pick(which) else { return };
                index.revert(snapshot, Generation(self.generation), at, usage);
                self.now = self.snapshots[&snapshot].clone();
                self.snapshots.retain(|generation, _| *generation <= snapshot);
            }
        }
    }

    fn check(&self, index: &VolumeIndex) -> Result<(), TestCaseError> {
        for block in (0..90).chain(CHUNK_BLOCKS..CHUNK_BLOCKS + 90) {
            let (page, first) = index.page(BlockRange { block, count: 1 });
            let place = |page: &Page, snapshot| match page.state(snapshot, first) {
                BlockState::Open => None,
                BlockState::Zeros => Some(None),
                BlockState::At(p) => Some(Some((p.segment.0, p.block))),
            };
            let now = page.and_then(|page| place(page, None));
            prop_assert_eq!(now, self.now.get(&block).copied(), "block {}", block);
            for (generation, copy) in &self.snapshots {
                let was = page.and_then(|page| place(page, Some(*generation)));
                prop_assert_eq!(
                    was,
                    copy.get(&block).copied(),
                    "block {} in {:?}",
                    block,
                    generation
                );
                let later = self.snapshots.range(generation..).map(|(g, copy)| (Some(*g), copy));
                for (until, then) in later.chain([(None, &self.now)]) {
                    let differs = then.get(&block) != copy.get(&block);
                    let changed =
                        page.is_some_and(|page| page.changed_since(*generation, until, first));
                    prop_assert!(changed || !differs, "block {} since {:?}", block, generation);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn snapshots_equal_copies(clone: bool, all in prop::collection::vec(turns(), 1..60)) {
        let (mut index, mut usage) = (VolumeIndex::new(), Usage::default());
        let mut copies = Copies { clone, ..Copies::default() };
        for (n, turn) in (1..).zip(&all) {
            copies.take(turn, &mut index, &mut usage, LogIndex(n));
            let mut counted = Usage::default();
            index.recount(&mut counted, |_| Vec::new());
            prop_assert_eq!(&usage, &counted, "after {:?}", turn);
            prop_assert_eq!(usage.total(), index.mapped_blocks() + index.kept_blocks());
            copies.check(&index)?;
        }
        // Without snapshots exactly the volume's own blocks are left.
        while let Some((snapshot, _)) = copies.snapshots.pop_first() {
            index.drop_snapshot(snapshot, None, LogIndex(1000), &mut usage);
        }
        let mapped = copies.now.values().flatten().count() as u64;
        prop_assert_eq!((index.kept_blocks(), usage.total()), (0, mapped));
        copies.check(&index)?;
    }
}
