//! The table of segments: which are free, and which use of the others counts.
//!
//! Each use of a segment has a sequence number, one higher than that of the use before it in the chain.
//! A segment is taken when its predecessor is closed, in circular order, and is free again when its
//! owner releases it: then a durable checkpoint needs nothing in it any more.

use basalt_wire::disk::checkpoint::{ChainPlace, SegmentUse};
use basalt_wire::ids::SegmentId;

/// What a segment is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Never used, or released.
    Free,
    /// Filled and closed.
    Closed,
    /// The next batch goes there.
    Open,
}

/// A segment as the table knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which.
    pub id: SegmentId,
    /// The sequence of its use; 0 if it is free.
    pub seq: u64,
    /// What it is used for.
    pub state: SegmentState,
}

/// All segments of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    /// The sequence of each one's use; 0 is none.
    uses: Vec<u64>,
    /// The first batch of each one's use, as far as this run of the log has come by it.
    starts: Vec<Option<ChainPlace>>,
    /// The one of the highest sequence.
    open: u32,
    free: u32,
}

impl Segments {
    /// All of them free.
    pub fn new(count: u32) -> Segments {
        let count_of = count as usize;
        Segments { uses: vec![0; count_of], starts: vec![None; count_of], open: 0, free: count }
    }

    /// Notes a use. It must be of a segment of the device that is free or in that very use.
    pub fn note(&mut self, segment: u32, seq: u64) {
        let before = std::mem::replace(&mut self.uses[segment as usize], seq);
        assert!(seq > 0 && (before == 0 || before == seq), "segment {segment} has use {before}");
        self.free -= u32::from(before == 0);
        if seq > self.uses[self.open as usize] || self.uses[self.open as usize] == 0 {
            self.open = segment;
        }
    }

    /// Notes the first batch of a use that was noted.
    pub fn begin(&mut self, place: ChainPlace) {
        let used = self.use_of(place.segment);
        assert!(place.block == 0 && used == Some(place.segment_seq), "{place:?} begins no segment");
        self.starts[place.segment as usize] = Some(place);
    }

    /// The first batch of a segment's use: replay may begin with it. Nothing if the segment is free, or if
    /// replay began behind it.
    pub fn start_of(&self, segment: u32) -> Option<ChainPlace> {
        self.starts.get(segment as usize).copied().flatten()
    }

    /// The next free segment behind another one, in circular order.
    pub fn next_free(&self, after: u32) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let count = self.uses.len() as u32;
        (1..=count)
            .map(|n| ((u64::from(after) + u64::from(n)) % u64::from(count)) as u32)
            .find(|segment| self.uses[*segment as usize] == 0)
    }

    /// Frees a closed segment.
    pub fn release(&mut self, segment: u32) {
        let seq = std::mem::replace(&mut self.uses[segment as usize], 0);
        assert!(seq > 0 && segment != self.open, "segment {segment} of use {seq} is released");
        self.starts[segment as usize] = None;
        self.free += 1;
    }

    /// How many are free.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// The sequence of a segment's use; nothing if it is free or there is none.
    pub fn use_of(&self, segment: u32) -> Option<u64> {
        self.uses.get(segment as usize).copied().filter(|seq| *seq > 0)
    }

    /// A segment, if there is one of that id.
    pub fn get(&self, id: SegmentId) -> Option<Segment> {
        let seq = *self.uses.get(id.0 as usize)?;
        let state = match seq {
            0 => SegmentState::Free,
            _ if id.0 == self.open => SegmentState::Open,
            _ => SegmentState::Closed,
        };
        Some(Segment { id, seq, state })
    }

    /// All segments, in order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = Segment> + '_ {
        (0..self.uses.len() as u32).filter_map(|id| self.get(SegmentId(id)))
    }

    /// The sequence of the newest use; nothing if all are free.
    pub fn newest(&self) -> Option<u64> {
        self.use_of(self.open)
    }

    /// Those that are filled and closed, in order of their ids.
    pub fn closed(&self) -> impl Iterator<Item = SegmentUse> + '_ {
        let closed = self.iter().filter(|s| s.state == SegmentState::Closed);
        closed.map(|s| SegmentUse { segment: s.id, seq: s.seq })
    }

    /// Those in a use before `seq`, in order of their ids.
    pub fn used_before(&self, seq: u64) -> Vec<SegmentUse> {
        let used = self.iter().filter(|s| s.seq > 0 && s.seq < seq);
        used.map(|s| SegmentUse { segment: s.id, seq: s.seq }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_free_one_is_found_all_around() {
        let mut table = Segments::new(4);
        table.note(0, 1);
        assert_eq!((table.next_free(0), table.free()), (Some(1), 3));
        (1..4).for_each(|n| table.note(n, u64::from(n) + 1));
        assert_eq!((table.next_free(3), table.free()), (None, 0));
        table.release(2);
        table.release(0);
        assert_eq!((table.next_free(3), table.next_free(0)), (Some(0), Some(2)));
        table.note(2, 5);
        assert_eq!((table.use_of(2), table.use_of(0), table.use_of(9)), (Some(5), None, None));
        let states: Vec<_> = table.iter().map(|s| s.state).collect();
        use SegmentState::{Closed, Free, Open};
        assert_eq!(states, [Free, Closed, Open, Closed]);
        let used: Vec<_> = table.used_before(5).iter().map(|u| (u.segment.0, u.seq)).collect();
        assert_eq!(used, [(1, 2), (3, 4)]);
    }

    #[test]
    fn a_use_has_a_start_until_it_is_released() {
        let mut table = Segments::new(2);
        table.note(1, 7);
        let place = ChainPlace { segment: 1, segment_seq: 7, ..ChainPlace::default() };
        table.begin(place);
        table.note(0, 8);
        assert_eq!((table.start_of(1), table.start_of(0)), (Some(place), None));
        table.release(1);
        assert_eq!((table.start_of(1), table.start_of(9)), (None, None));
    }

    #[test]
    #[should_panic(expected = "is released")]
    fn the_open_one_is_not_released() {
        let mut table = Segments::new(2);
        table.note(1, 7);
        table.release(1);
    }

    #[test]
    #[should_panic(expected = "has use 7")]
    fn a_use_does_not_take_the_place_of_another() {
        let mut table = Segments::new(2);
        table.note(1, 7);
        table.note(1, 8);
    }
}
