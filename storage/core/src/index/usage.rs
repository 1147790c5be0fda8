//! How many live blocks each segment holds, and how many pages have their tables in memory.
//!
//! A block of the log is live while the index refers to it. What of a segment is not live is garbage:
//! once nothing of it is live, the segment can be used again. The counts are kept exactly, with
//! every change of the index, and are never estimated: a segment that counts too few would be
//! released with data in it, one that counts too many would be lost for good. There is one exception: where
//! the blocks of a page stood is not known once the store has lost the page, see [`Usage::lost`]. They count
//! until the next start, which counts anew.

use basalt_wire::ids::SegmentId;

/// Live blocks by segment, and pages.
#[derive(Clone, Default)]
pub struct Usage {
    live: Vec<u32>,
    total: u64,
    /// Pages whose tables are in memory and may leave it some time, and those whose tables are not there.
    pub(super) tables: u64,
    /// See `tables`.
    pub(super) cold: u64,
    /// Blocks that count as live where nothing is known to stand any more.
    pub(super) lost: u64,
}

impl Usage {
    /// Live blocks of a segment.
    pub fn live(&self, segment: SegmentId) -> u32 {
        self.live.get(segment.0 as usize).copied().unwrap_or(0)
    }

    /// Live blocks of all segments.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Pages whose tables are in memory, and that hold nothing for snapshots, for which they would stay there.
    pub fn tables(&self) -> u64 {
        self.tables
    }

    /// Pages whose tables are not in memory.
    pub fn cold(&self) -> u64 {
        self.cold
    }

    /// Whether it is what a count of all pages gives, but for blocks whose places were lost.
    pub fn is_exact(&self, counted: &Usage) -> bool {
        let covers = |(segment, live)| self.live(segment) >= live;
        self.total == counted.total + self.lost && counted.segments().all(covers)
    }

    /// Blocks that count as live where nothing is known to stand any more.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The segments that hold live blocks, with their number, in order.
    pub fn segments(&self) -> impl Iterator<Item = (SegmentId, u32)> + '_ {
        let counts = (0..).zip(&self.live);
        counts.filter(|(_, live)| **live > 0).map(|(segment, live)| (SegmentId(segment), *live))
    }

    pub(crate) fn add(&mut self, segment: SegmentId, blocks: u32) {
        let at = segment.0 as usize;
        if at >= self.live.len() {
            self.live.resize(at + 1, 0);
        }
        self.live[at] += blocks;
        self.total += u64::from(blocks);
    }

    pub(crate) fn sub(&mut self, segment: SegmentId, blocks: u32) {
        let live = self.live.get_mut(segment.0 as usize).map_or(0, |live| {
            let before = *live;
            *live = live.wrapping_sub(blocks);
            before
        });
        assert!(live >= blocks, "{blocks} blocks of segment {segment} die, {live} were live");
        self.total -= u64::from(blocks);
    }
}

/// Two usages are equal if every segment has the same count, whatever is in memory.
impl PartialEq for Usage {
    fn eq(&self, other: &Usage) -> bool {
        self.total == other.total && self.segments().eq(other.segments())
    }
}

impl Eq for Usage {}

impl std::fmt::Debug for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.segments()).finish()
    }
}

/// Blocks that die one after the other, put together as long as they stand in one segment: a run of
/// overwritten blocks mostly does, and is then one subtraction.
pub(super) struct Dying<'a> {
    usage: &'a mut Usage,
    segment: u32,
    blocks: u32,
}

impl<'a> Dying<'a> {
    /// None so far.
    pub fn new(usage: &'a mut Usage) -> Dying<'a> {
        Dying { usage, segment: 0, blocks: 0 }
    }

    /// One more block of a segment dies.
    #[inline]
    pub fn push(&mut self, segment: u32) {
        if segment != self.segment {
            self.settle();
            self.segment = segment;
        }
        self.blocks += 1;
    }

    fn settle(&mut self) {
        if self.blocks > 0 {
            self.usage.sub(SegmentId(self.segment), std::mem::take(&mut self.blocks));
        }
    }

    /// The end of the run.
    pub fn finish(mut self) {
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_rise_and_fall() {
        let mut usage = Usage::default();
        usage.add(SegmentId(3), 7);
        usage.add(SegmentId(1), 2);
        let mut dying = Dying::new(&mut usage);
        [3, 3, 1, 3].into_iter().for_each(|segment| dying.push(segment));
        dying.finish();
        assert_eq!((usage.live(SegmentId(3)), usage.live(SegmentId(1))), (4, 1));
        assert_eq!((usage.live(SegmentId(99)), usage.total()), (0, 5));
        let all: Vec<_> = usage.segments().collect();
        assert_eq!(all, [(SegmentId(1), 1), (SegmentId(3), 4)]);
    }

    #[test]
    fn tables_of_other_lengths_are_equal() {
        let (mut a, mut b) = (Usage::default(), Usage::default());
        a.add(SegmentId(1), 2);
        b.add(SegmentId(1), 2);
        b.add(SegmentId(9), 1);
        assert_ne!(a, b);
        b.sub(SegmentId(9), 1);
        assert_eq!(a, b);
    }

    #[test]
    #[should_panic(expected = "were live")]
    fn more_than_there_is_can_not_die() {
        Usage::default().sub(SegmentId(1), 1);
    }
}
