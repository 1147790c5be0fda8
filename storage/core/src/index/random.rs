//! Random changes of an index: the account of live blocks stays equal to a recount.

use super::*;
use basalt_wire::disk::checkpoint::GRANULE_BLOCKS;
use basalt_wire::ids::SegmentId;
use proptest::prelude::*;

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
            index.map(BlockRange { block, count }, place, sums, at, usage);
        }
        Step::Unmap { block, count } => {
            index.unmap(BlockRange { block, count }, at, usage);
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
            index.restore(chunk, number, &granule(mask, segment), usage);
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
            index.recount(&mut counted);
            prop_assert_eq!(&usage, &counted, "after {:?}", step);
            prop_assert_eq!(usage.total(), index.mapped_blocks());
        }
    }
}
