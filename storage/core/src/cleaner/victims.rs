//! Which segments hold garbage, which of them to clean, and which need no cleaning any more.

use super::levels::Levels;
use crate::index::Usage;
use crate::log::{Segment, SegmentState, Segments};
use basalt_wire::ids::SegmentId;
use rustc_hash::FxHashMap;

/// Live blocks by segment, of all groups of a shard together.
#[derive(Debug, Default)]
pub struct Totals(Vec<u32>);

impl Totals {
    /// The sum of these.
    pub fn of<'a>(all: impl Iterator<Item = &'a Usage>) -> Totals {
        let mut totals = Totals::default();
        for (segment, live) in all.flat_map(Usage::segments) {
            let at = segment.0 as usize;
            if at >= totals.0.len() {
                totals.0.resize(at + 1, 0);
            }
            totals.0[at] += live;
        }
        totals
    }

    /// Live blocks of a segment.
    pub fn live(&self, segment: SegmentId) -> u32 {
        self.0.get(segment.0 as usize).copied().unwrap_or(0)
    }
}

/// A segment that may be cleaned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Which.
    pub segment: SegmentId,
    /// The sequence of its use.
    pub seq: u64,
    /// Live blocks in it.
    pub live: u32,
}

/// Whether a segment holds nothing but what the index needs of it: it is closed, in a use before `before`, or it
/// holds copies and gets no more.
fn is_of_index(segment: &Segment, before: u64) -> bool {
    match segment.state {
        SegmentState::Closed => segment.seq < before,
        SegmentState::Copies => true,
        _ => false,
    }
}

/// The closed segments in uses before `before`, and copy segments, in which nothing is live: `most` blocks,
/// which is none but under a planted bug.
pub fn garbage_only(
    segments: &Segments,
    totals: &Totals,
    before: u64,
    most: u32,
) -> Vec<SegmentId> {
    let closed = segments.iter().filter(|s| is_of_index(s, before));
    closed.map(|s| s.id).filter(|id| totals.live(*id) <= most).collect()
}

/// The segment that is best to clean: most room for what it costs, where it is likely to last. With u of
/// it live, 1 - u becomes free for reading 1 and writing u; and the older the rest is, the longer it
/// will stay as it is: (1 - u) * age / (1 + u), as log-structured file systems have it.
///
/// Only copy segments and those in uses before `before` count: what is in later ones is needed as it is. Those in
/// `cleaned`, in the use that stands there, were gone through: what is live in them can not be moved.
pub fn best(
    segments: &Segments,
    totals: &Totals,
    levels: &Levels,
    before: u64,
    cleaned: &FxHashMap<SegmentId, u64>,
) -> Option<Victim> {
    let newest = segments.iter().map(|s| s.seq).max()?;
    let usable = u64::from(levels.usable);
    let score = |victim: &Victim| {
        let live = u64::from(victim.live);
        let age = u128::from(newest - victim.seq + 1);
        // Scaled by 2^16; a segment has at most 2^18 blocks.
        u128::from(usable - live) * age * (1 << 16) / u128::from(usable + live)
    };
    let candidates = || candidates(segments, totals, levels, before, cleaned);
    // Moving what is live pays only if all the garbage together makes a segment.
    let garbage: u64 = candidates().map(|victim| usable - u64::from(victim.live)).sum();
    if garbage <= usable {
        return None;
    }
    candidates().max_by_key(|victim| (score(victim), std::cmp::Reverse(victim.seq)))
}

/// The segment with the fewest live blocks, which costs least: where there is hardly any room left.
pub fn emptiest(
    segments: &Segments,
    totals: &Totals,
    levels: &Levels,
    before: u64,
    cleaned: &FxHashMap<SegmentId, u64>,
) -> Option<Victim> {
    candidates(segments, totals, levels, before, cleaned)
        .min_by_key(|victim| (victim.live, victim.seq))
}

/// Closed segments in uses before `before` and copy segments that hold live blocks and garbage, and were not
/// gone through.
fn candidates<'a>(
    segments: &'a Segments,
    totals: &'a Totals,
    levels: &'a Levels,
    before: u64,
    cleaned: &'a FxHashMap<SegmentId, u64>,
) -> impl Iterator<Item = Victim> + 'a {
    segments
        .iter()
        .filter(move |s| is_of_index(s, before))
        .filter(|s| cleaned.get(&s.id) != Some(&s.seq))
        .map(|s| Victim { segment: s.id, seq: s.seq, live: totals.live(s.id) })
        .filter(|victim| victim.live > 0 && victim.live < levels.usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments 0 to 7 in uses 1 to 8; the last is open.
    fn table() -> Segments {
        let mut table = Segments::new(10);
        (0..8).for_each(|n| table.note(n, u64::from(n) + 1));
        table
    }

    fn totals(live: &[u32]) -> Totals {
        Totals(live.to_vec())
    }

    fn levels() -> Levels {
        Levels { usable: 100, ..Levels::of(10, 128, 2) }
    }

    #[test]
    fn the_emptiest_and_the_oldest_are_cleaned_first() {
        let (table, none) = (table(), FxHashMap::default());
        let choose = |live: &[u32]| {
            best(&table, &totals(live), &levels(), 8, &none).map(|victim| victim.segment.0)
        };
        // Of equal ones the oldest.
        assert_eq!(choose(&[50; 8]), Some(0));
        // A much emptier one although it is younger.
        assert_eq!(choose(&[90, 90, 90, 90, 90, 5, 90, 0]), Some(5));
        // An older one although it is a little fuller.
        assert_eq!(choose(&[50, 99, 99, 99, 99, 99, 48, 0]), Some(0));
        // Nothing is won by moving full ones, nothing is to be moved in empty ones.
        assert_eq!(choose(&[100, 128, 0, 0, 0, 0, 0, 10]), None);
    }

    #[test]
    fn what_is_open_pinned_or_was_gone_through_is_left_alone() {
        let table = table();
        let live = totals(&[10, 20, 30, 40, 50, 60, 70, 1]);
        let cleaned = FxHashMap::from_iter([(SegmentId(0), 1), (SegmentId(1), 99)]);
        let victim = best(&table, &live, &levels(), 4, &cleaned);
        assert_eq!(victim, Some(Victim { segment: SegmentId(1), seq: 2, live: 20 }));
        assert_eq!(best(&table, &live, &levels(), 1, &cleaned), None);
    }

    #[test]
    fn garbage_of_less_than_a_segment_is_left() {
        let (table, none) = (table(), FxHashMap::default());
        let choose = |live: &[u32]| best(&table, &totals(live), &levels(), 8, &none).is_some();
        assert!(!choose(&[50, 50, 0, 0, 0, 0, 0, 0]) && choose(&[50, 50, 99, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn only_closed_segments_without_live_blocks_are_given_up() {
        let table = table();
        let live = totals(&[0, 3, 0, 0, 9, 0, 0, 0]);
        let ids: Vec<_> = garbage_only(&table, &live, 6, 0).iter().map(|id| id.0).collect();
        assert_eq!(ids, [0, 2, 3]);
    }

    #[test]
    fn copy_segments_are_cleaned_and_given_up_whatever_the_log_needs() {
        let (mut table, none) = (table(), FxHashMap::default());
        table.note_copies(8, 2, true);
        let live = totals(&[50, 90, 90, 90, 90, 90, 90, 0, 10]);
        let choose =
            |table: &Segments| best(table, &live, &levels(), 2, &none).map(|v| v.segment.0);
        assert_eq!(choose(&table), None, "it is being filled");
        table.finish_copies(8);
        assert_eq!(choose(&table), Some(8));
        let empty = |table: &Segments| garbage_only(table, &totals(&[0; 9]), 2, 0);
        assert_eq!(empty(&table), [SegmentId(0), SegmentId(8)]);
    }

    #[test]
    fn totals_are_of_all_groups() {
        let (mut a, mut b) = (Usage::default(), Usage::default());
        a.add(SegmentId(1), 2);
        b.add(SegmentId(1), 3);
        b.add(SegmentId(4), 1);
        let all = Totals::of([&a, &b].into_iter());
        assert_eq!([0, 1, 4, 9].map(|n| all.live(SegmentId(n))), [0, 5, 1, 0]);
    }
}
