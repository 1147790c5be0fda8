//! What a scrub looks at besides blocks: the records of the checkpoint in the store, and the headers of
//! batches in segments that get nothing more, be they the log's or copy segments.
//!
//! Neither is read while all is well. The records are needed by the next start; a header by a start whose
//! replay comes by it, by a follower that lacks its entries, and by the cleaner, for it says which blocks
//! stand behind it. So damage there would be met when it is needed most.
//!
//! * What the records say stands in memory, but for pages whose tables have left it. If one is damaged, or
//!   the store can not read what it wrote, all of them are written anew, and those pages taken over.
//! * In a segment with a damaged header what is live is found through the index and moved elsewhere, and a
//!   checkpoint is taken at once, so that no replay begins before it.
//! * A copy segment has no closing batch, and may have been given its last one before it was full. So a place
//!   without a header is a *gap* at first, and a damaged header if something live stands behind it.
//!
//! It is a state machine of its own, which begins with each pass over the blocks and goes on beside it.

use crate::checkpoint::Verified;
use crate::cleaner::Judge;
use crate::log::Location;
use crate::mark;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::DiskFormatError;
use basalt_wire::disk::blocks_of;
use basalt_wire::disk::checkpoint::SegmentUse;
use basalt_wire::time::Time;
use bytes::Bytes;
use rustc_hash::FxHashSet;
use std::collections::VecDeque;
use std::time::Duration;

/// Bytes that are looked at in one go.
const STEP_BYTES: u64 = 256 << 10;
/// Bytes a second of a pass that was not asked for.
const CALM_RATE: u64 = 256 << 10;
/// Blocks of a header read at first; most headers are no longer.
const HEADER_BLOCKS: u32 = 2;
/// Blocks read at a time where a header is looked for behind a damaged one.
const SEARCH_BLOCKS: u32 = 64;
/// Damaged headers that are remembered, so that each is told once.
const KNOWN_MAX: usize = 4096;

/// What came of it since the shard was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SurveyCounts {
    /// Times that everything was looked at, and those of them that were asked for before they began.
    pub passes: u64,
    /// See `passes`.
    pub asked: u64,
    /// Records of the store that were read and are as they should be.
    pub records: u64,
    /// Times that the store held a damaged record, or could not read what it wrote.
    pub records_bad: u64,
    /// Headers that were read and are as they should be.
    pub headers: u64,
    /// Headers that are not.
    pub headers_bad: u64,
}

/// A segment whose headers are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Which, in which use.
    pub used: SegmentUse,
    /// Whether it is a copy segment.
    pub copies: bool,
}

/// A place without the header that is expected there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHeader {
    /// The segment. In one of the log the header is damaged, in a copy segment this is a gap.
    pub at: Closed,
    /// Where in it.
    pub block: u32,
}

/// Something that the shard must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have the store read and verify records from a key on, so many bytes of them.
    Verify {
        /// The first key.
        from: Vec<u8>,
        /// Bytes.
        bytes: u64,
    },
    /// Read blocks.
    Read(Location, u32),
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    /// Records from this key on, until the answer comes if it was asked.
    Records(Vec<u8>, bool),
    /// The segments to come, and the one that is gone through.
    Headers(VecDeque<Closed>, Option<Walk>),
}

#[derive(Debug)]
struct Walk {
    of: Closed,
    at: u32,
    need: u32,
    reading: bool,
    /// Whether it was read before: what failed once may be the fault of the way to here.
    again: bool,
    /// Whether a header is looked for behind a damaged one.
    lost: bool,
}

/// The survey of one shard.
#[derive(Debug, Default)]
pub struct Survey {
    stage: Stage,
    asked: bool,
    /// Whether it was when it began.
    begun_asked: bool,
    /// Whether it was asked for while it was under way: part of it had been looked at before.
    again: bool,
    next_at: Time,
    spent: u64,
    known: FxHashSet<(u32, u64, u32)>,
    counts: SurveyCounts,
}

impl Survey {
    /// What was done so far.
    pub fn counts(&self) -> SurveyCounts {
        self.counts
    }

    /// Whether it is under way.
    pub fn is_running(&self) -> bool {
        self.again || !matches!(self.stage, Stage::Idle)
    }

    /// Whether it is to begin once more at once.
    pub fn is_due_again(&self) -> bool {
        self.again && matches!(self.stage, Stage::Idle)
    }

    /// Begins, with the records of a store or, if there is none, with the segments that are `closed` now. One that
    /// was asked for goes as fast as it may. One that is under way goes on, and another one follows if that was
    /// asked for.
    pub fn begin(&mut self, now: Time, asked: bool, closed: Option<Vec<Closed>>) {
        if !matches!(self.stage, Stage::Idle) {
            if asked {
                (self.asked, self.again, self.next_at, self.spent) = (true, true, now, 0);
            }
            return;
        }
        mark!("survey begins");
        let asked = asked || self.again;
        (self.asked, self.begun_asked, self.again) = (asked, asked, false);
        (self.next_at, self.spent) = (now, 0);
        self.stage = match closed {
            None => Stage::Records(Vec::new(), false),
            Some(closed) => Stage::Headers(closed.into(), None),
        };
    }

    /// When [`Survey::next`] must be called, unless something else happens before.
    pub fn deadline(&self) -> Option<Time> {
        match &self.stage {
            Stage::Idle | Stage::Records(_, true) => None,
            Stage::Headers(_, Some(walk)) if walk.reading => None,
            _ => Some(self.next_at),
        }
    }

    /// What is to be done now, at `rate` bytes a second at most. `in_use` says whether a segment still has that
    /// use.
    pub fn next(
        &mut self,
        now: Time,
        rate: u64,
        segment_blocks: u32,
        in_use: impl Fn(&SegmentUse) -> bool,
    ) -> Option<Step> {
        if self.spent >= STEP_BYTES {
            let rate = if self.asked { rate.max(1) } else { CALM_RATE.min(rate.max(1)) };
            let nanos = u128::from(self.spent) * 1_000_000_000 / u128::from(rate);
            (self.next_at, self.spent) = (now + Duration::from_nanos(nanos as u64), 0);
        }
        if now < self.next_at {
            return None;
        }
        match &mut self.stage {
            Stage::Idle | Stage::Records(_, true) => None,
            Stage::Records(from, asked) => {
                *asked = true;
                Some(Step::Verify { from: from.clone(), bytes: STEP_BYTES })
            }
            Stage::Headers(left, walk) => {
                if walk.as_ref().is_some_and(|walk| walk.reading) {
                    return None;
                }
                // What was given back since holds nothing any more.
                walk.take_if(|walk| walk.at >= segment_blocks || !in_use(&walk.of.used));
                while walk.is_none() {
                    let Some(of) = left.pop_front() else {
                        self.stage = Stage::Idle;
                        self.counts.passes += 1;
                        self.counts.asked += u64::from(self.begun_asked);
                        return None;
                    };
                    let (at, need, reading) = (0, HEADER_BLOCKS, false);
                    let (again, lost) = (false, false);
                    *walk = in_use(&of.used).then_some(Walk { of, at, need, reading, again, lost });
                }
                let walk = walk.as_mut().expect("there is one");
                walk.reading = true;
                let most = if walk.lost { SEARCH_BLOCKS } else { HEADER_BLOCKS };
                let blocks = most.max(walk.need).min(segment_blocks - walk.at);
                let at = Location { segment: walk.of.used.segment, block: walk.at };
                Some(Step::Read(at, blocks))
            }
        }
    }

    /// The store has looked at records, or met damage. After the last of them it goes on with the segments that
    /// are `closed` now. Says whether damage is to be made good.
    pub fn verified(&mut self, result: &Result<Verified, String>, closed: Vec<Closed>) -> bool {
        if !matches!(self.stage, Stage::Records(_, true)) {
            return false;
        }
        let next = match result {
            Ok(Verified { records, bytes, next }) => {
                self.counts.records += records;
                self.spent += bytes;
                next.clone()
            }
            Err(_) => {
                mark!("survey finds a damaged record");
                self.counts.records_bad += 1;
                None
            }
        };
        self.stage = match next {
            Some(next) => Stage::Records(next, false),
            None => Stage::Headers(closed.into(), None),
        };
        result.is_err()
    }

    /// Takes what was read, or nothing if it can not be read. Gives a header that is damaged, or a gap, if that
    /// is news; if `lenient` none is looked at (a planted bug).
    pub fn take(
        &mut self,
        piece: Option<&Bytes>,
        judge: &impl Judge,
        segment_blocks: u32,
        lenient: bool,
    ) -> Option<BadHeader> {
        let Stage::Headers(_, Some(walk)) = &mut self.stage else { return None };
        if !std::mem::take(&mut walk.reading) {
            return None;
        }
        self.spent += piece.map_or(BLOCK_BYTES, Bytes::len) as u64;
        let (found, damaged) = walk.look(piece, judge, segment_blocks);
        self.counts.headers += u64::from(found);
        let at = walk.of;
        let SegmentUse { segment, seq } = at.used;
        let block = damaged.filter(|_| !lenient)?;
        let news = self.known.len() < KNOWN_MAX && self.known.insert((segment.0, seq, block));
        self.counts.headers_bad += u64::from(news && !at.copies);
        news.then_some(BadHeader { at, block })
    }

    /// A gap was a damaged header.
    pub fn was_header(&mut self) {
        self.counts.headers_bad += 1;
    }

    /// Segments are used again: what was damaged in them is gone.
    pub fn released(&mut self, segments: &[SegmentUse]) {
        if !self.known.is_empty() {
            self.known.retain(|(id, ..)| segments.iter().all(|used| used.segment.0 != *id));
        }
    }
}

impl Walk {
    /// Goes through the headers in what was read. Gives how many are sound, and where one is damaged: then it
    /// is looked for the next, block by block.
    fn look(
        &mut self,
        piece: Option<&Bytes>,
        judge: &impl Judge,
        segment_blocks: u32,
    ) -> (u32, Option<u32>) {
        let first = self.at;
        let blocks = piece.map_or(1, |piece| (piece.len() / BLOCK_BYTES) as u32);
        self.need = HEADER_BLOCKS;
        let mut found = 0;
        while self.at < segment_blocks && self.at - first < blocks {
            let skipped = (self.at - first) as usize * BLOCK_BYTES;
            let header = piece.map(|piece| {
                let at = Location { segment: self.of.used.segment, block: self.at };
                judge.header(&piece[skipped..], at)
            });
            match header {
                Some(Ok(header)) => {
                    found += 1;
                    (self.again, self.lost) = (false, false);
                    let closing = header.is_closing();
                    self.at = if closing { segment_blocks } else { self.at + header.blocks() };
                }
                Some(Err(DiskFormatError::Short(bytes)))
                    if blocks_of(bytes as usize) > blocks - (self.at - first)
                        && blocks_of(bytes as usize) <= segment_blocks - self.at =>
                {
                    self.need = blocks_of(bytes as usize);
                    break;
                }
                // No header with a block behind it stands there.
                _ if self.of.copies && self.at + 1 == segment_blocks => self.at += 1,
                _ if self.lost => self.at += 1,
                _ if !self.again => {
                    mark!("survey looks again");
                    self.again = true;
                    break;
                }
                _ => {
                    mark!("survey finds no header");
                    let damaged = self.at;
                    (self.again, self.lost) = (false, true);
                    self.at += 1;
                    return (found, Some(damaged));
                }
            }
        }
        (found, None)
    }
}
