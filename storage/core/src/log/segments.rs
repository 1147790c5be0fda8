//! The table of segments: which are free, and which use of the others counts.
//!
//! Each use of a segment by the log has a sequence number, one higher than that of the use before it in the
//! chain. A segment is taken when its predecessor is closed, in circular order, and is free again when its
//! owner releases it: then a durable checkpoint needs nothing in it any more.
//!
//! A copy segment is taken from the free ones too. Its use has the number of the use in which the log is known
//! to be durable at that moment, so that it tells the segment's age, and is never lower than that of anything
//! that stood there before. It is taken only if the number is higher than that of all earlier uses of this
//! segment; of a segment that was free at the start of a run these are not known, but all are lower than that
//! in which the log ended.

use super::place::Tail;
use crate::mark;
use basalt_wire::disk::checkpoint::{ChainPlace, SegmentUse};
use basalt_wire::ids::SegmentId;

/// What a segment is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Never used, or released.
    Free,
    /// Filled and closed.
    Closed,
    /// The log's next batch goes there.
    Open,
    /// A copy segment that is being filled, or to which something is on its way.
    Filling,
    /// A copy segment that gets nothing more.
    Copies,
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

/// What a segment in use holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Log,
    /// Copies, and whether all of them are there.
    Copies(bool),
}

/// All segments of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    /// The sequence of each one's use; 0 is none.
    uses: Vec<u64>,
    /// What those in use hold.
    holds: Vec<Holds>,
    /// The first batch of each one's use, as far as this run of the log has come by it.
    starts: Vec<Option<ChainPlace>>,
    /// The highest sequence that any former use of a free one may have.
    before: Vec<u64>,
    /// The one of the log's highest sequence.
    open: Option<u32>,
    free: u32,
}

impl Segments {
    /// All of them free.
    pub fn new(count: u32) -> Segments {
        let count_of = count as usize;
        Segments {
            uses: vec![0; count_of],
            holds: vec![Holds::Log; count_of],
            starts: vec![None; count_of],
            before: vec![0; count_of],
            open: None,
            free: count,
        }
    }

    /// Notes a use by the log. It must be of a segment of the device that is free or in that very use.
    pub fn note(&mut self, segment: u32, seq: u64) {
        let at = segment as usize;
        let before = std::mem::replace(&mut self.uses[at], seq);
        let same = before == seq && self.holds[at] == Holds::Log;
        assert!(seq > 0 && (before == 0 || same), "segment {segment} has use {before}");
        self.holds[at] = Holds::Log;
        self.free -= u32::from(before == 0);
        if self.newest().is_none_or(|newest| seq > newest) {
            self.open = Some(segment);
        }
    }

    /// Notes that a free segment is a copy segment now; `filling` if more is to be written to it.
    pub fn note_copies(&mut self, segment: u32, seq: u64, filling: bool) {
        let before = std::mem::replace(&mut self.uses[segment as usize], seq);
        assert!(seq > 0 && before == 0, "segment {segment} has use {before}");
        self.holds[segment as usize] = Holds::Copies(!filling);
        self.free -= 1;
    }

    /// A copy segment gets nothing more, and nothing is on its way to it.
    pub fn finish_copies(&mut self, segment: u32) {
        let holds = &mut self.holds[segment as usize];
        assert_eq!(*holds, Holds::Copies(false), "segment {segment} is not being filled");
        *holds = Holds::Copies(true);
    }

    /// Uses of the free ones are not known, but that they come before `seq` or are of that number.
    pub fn forget(&mut self, seq: u64) {
        self.before.fill(seq);
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
        self.free_from(after).next()
    }

    /// The next free segment behind another one that may be a copy segment in a use `seq`.
    pub fn next_for_copies(&self, after: u32, seq: u64) -> Option<u32> {
        self.free_from(after).find(|segment| self.before[*segment as usize] < seq)
    }

    /// The free ones behind a segment, in circular order.
    pub fn free_from(&self, after: u32) -> impl Iterator<Item = u32> + '_ {
        let count = if self.free > 0 { self.uses.len() as u64 } else { 0 };
        (1..=count)
            .map(move |n| ((u64::from(after) + n) % count) as u32)
            .filter(|segment| self.uses[*segment as usize] == 0)
    }

    /// Frees a closed segment, or a copy segment that gets nothing more.
    pub fn release(&mut self, segment: u32) {
        let at = segment as usize;
        let seq = std::mem::replace(&mut self.uses[at], 0);
        let done = Some(segment) != self.open && self.holds[at] != Holds::Copies(false);
        assert!(seq > 0 && done, "segment {segment} of use {seq} is released");
        self.before[at] = self.before[at].max(seq);
        self.starts[at] = None;
        self.free += 1;
    }

    /// What is in use of these, which a recovery visited or a checkpoint lists, if the log goes on at `tail`:
    /// those that it reaches, and in the places of those that it must have used from the use `first` on and that
    /// were not found, ones with `damaged` heads. Without a checkpoint it began at its start, and no segment
    /// was used twice.
    pub(super) fn settled(&self, tail: &Tail, first: Option<u64>, damaged: Vec<u32>) -> Segments {
        let last = tail.segment_seq;
        let used = self.used_before(last);
        let mut segments = Segments::new(self.uses.len() as u32);
        used.iter().for_each(|used| segments.note(used.segment.0, used.seq));
        segments.note(tail.segment, last);
        for segment in used.iter().map(|used| used.segment.0).chain([tail.segment]) {
            self.start_of(segment).into_iter().for_each(|place| segments.begin(place));
        }
        for used in self.copies() {
            segments.note_copies(used.segment.0, used.seq, false);
        }
        let mut damaged = damaged.into_iter();
        for seq in first.unwrap_or(1)..last {
            if used.iter().any(|used| used.seq == seq) {
                continue;
            }
            // Blocks in it may still be mapped, so it is not written to.
            let lost = match first {
                None => u32::try_from(seq - 1).ok(),
                Some(_) => damaged.find(|segment| segments.use_of(*segment).is_none()),
            };
            if let Some(segment) = lost.filter(|segment| segments.use_of(*segment).is_none()) {
                mark!("log.lost_segment_kept");
                segments.note(segment, seq);
            }
        }
        segments
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
        let state = match (seq, self.holds[id.0 as usize]) {
            (0, _) => SegmentState::Free,
            (_, Holds::Copies(true)) => SegmentState::Copies,
            (_, Holds::Copies(false)) => SegmentState::Filling,
            _ if Some(id.0) == self.open => SegmentState::Open,
            _ => SegmentState::Closed,
        };
        Some(Segment { id, seq, state })
    }

    /// All segments, in order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = Segment> + '_ {
        (0..self.uses.len() as u32).filter_map(|id| self.get(SegmentId(id)))
    }

    /// Those that are not free, in order of their ids.
    pub fn in_use(&self) -> impl Iterator<Item = Segment> + '_ {
        let used = self.uses.iter().enumerate().filter(|(_, seq)| **seq > 0);
        used.filter_map(|(id, _)| self.get(SegmentId(id as u32)))
    }

    /// Whether a segment in use is a copy segment.
    pub fn holds_copies(&self, segment: u32) -> bool {
        let holds = self.holds.get(segment as usize).filter(|_| self.use_of(segment).is_some());
        matches!(holds, Some(Holds::Copies(_)))
    }

    /// The sequence of the log's newest use; nothing if it has none.
    pub fn newest(&self) -> Option<u64> {
        self.use_of(self.open?)
    }

    /// Those that the log has filled and closed, in order of their ids.
    pub fn closed(&self) -> impl Iterator<Item = SegmentUse> + '_ {
        let closed = self.in_use().filter(|s| s.state == SegmentState::Closed);
        closed.map(|s| SegmentUse { segment: s.id, seq: s.seq })
    }

    /// Those of the log in a use before `seq`, in order of their ids.
    pub fn used_before(&self, seq: u64) -> Vec<SegmentUse> {
        let of_log = |s: &Segment| matches!(s.state, SegmentState::Closed | SegmentState::Open);
        let used = self.in_use().filter(|s| of_log(s) && s.seq < seq);
        used.map(|s| SegmentUse { segment: s.id, seq: s.seq }).collect()
    }

    /// The copy segments, in order of their ids.
    pub fn copies(&self) -> Vec<SegmentUse> {
        let copies = self.in_use().filter(|s| self.holds_copies(s.id.0));
        copies.map(|s| SegmentUse { segment: s.id, seq: s.seq }).collect()
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
    fn copy_segments_are_apart_from_the_log() {
        let mut table = Segments::new(5);
        (0..2).for_each(|n| table.note(n, u64::from(n) + 1));
        assert_eq!(table.next_for_copies(1, 2), Some(2));
        table.note_copies(2, 2, true);
        assert_eq!((table.newest(), table.free(), table.next_free(1)), (Some(2), 2, Some(3)));
        assert!(table.holds_copies(2) && !table.holds_copies(1) && !table.holds_copies(3));
        let state = |table: &Segments| table.get(SegmentId(2)).map(|s| s.state);
        assert_eq!(state(&table), Some(SegmentState::Filling));
        table.finish_copies(2);
        assert_eq!(state(&table), Some(SegmentState::Copies));
        assert_eq!(table.copies(), [SegmentUse { segment: SegmentId(2), seq: 2 }]);
        assert_eq!((table.used_before(9).len(), table.closed().count()), (2, 1));
        // As a copy segment it comes again only in a higher use, for the log at once.
        table.release(2);
        assert_eq!((table.next_for_copies(1, 2), table.next_for_copies(1, 3)), (Some(3), Some(2)));
        assert_eq!(table.next_free(1), Some(2));
        table.forget(4);
        assert_eq!((table.next_for_copies(1, 4), table.next_for_copies(1, 5)), (None, Some(2)));
    }

    #[test]
    #[should_panic(expected = "is released")]
    fn what_is_being_filled_is_not_released() {
        let mut table = Segments::new(2);
        table.note_copies(1, 7, true);
        table.release(1);
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
