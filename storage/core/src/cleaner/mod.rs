//! The cleaner: makes room on a device by copying live blocks out of segments that hold garbage.
//!
//! It is a state machine inside the shard and works on one segment at a time, its victim: reads it piece by
//! piece, asks the index which blocks in it are live, verifies them against their checksums, and
//! writes them to a copy segment, or, where none can be spared, appends them to the log as [`Record::Moved`].
//! Once a copy is durable the index is pointed at it, if the block still stands where it was copied from. When
//! nothing in a segment is live, no group's Raft log needs it, and a durable checkpoint says so, it may be used
//! again.
//!
//! * A block that does not have its checksum is not copied on: it stays where it is, for a repair, and so
//!   does its segment.
//! * Everything that the cleaner does may be lost or come too late; nothing depends on it but the room.
//! * Its memory is bounded: one piece of a segment, and copies not durable yet.

mod levels;
#[cfg(test)]
mod tests;
mod victims;
mod walk;

pub use levels::{Levels, Pace};
pub use victims::{Totals, Victim, best, emptiest, garbage_only};
pub use walk::{Judge, Live, Walk};

use levels::{EVEN, IDLE_BYTES};

use crate::log::{Copied, CopiesWritten, Location, Record, RecordSeq};
use crate::mark;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::Payload;
use basalt_wire::disk::checkpoint::SegmentUse;
use basalt_wire::disk::moved::{MovedBlock, encode_moved};
use basalt_wire::ids::{GroupId, SegmentId};
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Bytes of copies that may be on their way to the device.
const MOVING_BYTES_MAX: usize = 4 << 20;
/// Bytes that may be owed to it: what it could not move along with the writes it need not make good at once.
const OWED_BYTES_MAX: i64 = 4 << 20;

/// What was done since the shard was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CleanerCounts {
    /// Segments gone through.
    pub victims: u64,
    /// Blocks copied.
    pub copied: u64,
    /// Of those, blocks that still stood where they were copied from.
    pub moved: u64,
    /// Of these, blocks that were moved to copy segments.
    pub apart: u64,
    /// Live blocks that did not have their checksum.
    pub bad: u64,
    /// Segments given back by checkpoints.
    pub released: u64,
}

/// Copies that were appended to the log and are not durable yet.
#[derive(Debug)]
pub struct Move {
    /// The record.
    pub seq: RecordSeq,
    /// The group.
    pub group: GroupId,
    /// The blocks.
    pub blocks: Vec<MovedBlock>,
    /// Where the first of them stands.
    pub at: Location,
}

/// What came of a piece.
#[derive(Debug, Default)]
pub struct Taken {
    /// The copies to be written, in order.
    pub records: Vec<Copied>,
    /// The segment that was gone through, and what of it is bad, if this was its end.
    pub ended: Option<(SegmentId, u32)>,
    /// Live blocks that do not have their checksum, or can not be read.
    pub bad: Vec<(GroupId, MovedBlock)>,
}

/// The cleaner of one shard.
#[derive(Debug, Default)]
pub struct Cleaner {
    walk: Option<Walk>,
    reading: bool,
    /// Live blocks of the victim when it was chosen.
    live: u32,
    /// Bytes that may be moved at once. Below 0 more was moved than was allowed, for a piece is moved whole.
    allowance: i64,
    /// What it is allowed, in parts of [`EVEN`], for each byte of payload that is recorded.
    ratio: u64,
    /// Bytes of payload that were recorded when it was allowed something last.
    recorded: u64,
    moves: VecDeque<Move>,
    /// Copies that were written to copy segments and are not durable yet.
    apart: VecDeque<CopiesWritten>,
    moving_bytes: usize,
    /// Segments that were gone through, and in which use.
    cleaned: FxHashMap<SegmentId, u64>,
    counts: CleanerCounts,
}

impl Cleaner {
    /// What was done so far.
    pub fn counts(&self) -> CleanerCounts {
        self.counts
    }

    /// Whether it has something to do when time passes.
    pub fn is_busy(&self) -> bool {
        let moving = !self.moves.is_empty() || !self.apart.is_empty();
        self.walk.is_some() || self.reading || moving
    }

    /// Sets the pace, with so many segments free, and `ahead` of them once the next checkpoint is durable.
    pub fn set_pace(&mut self, levels: &Levels, free: u32, ahead: u32, busy: bool) {
        let owed = if self.ratio > 0 { self.allowance } else { self.allowance.min(0) };
        (self.allowance, self.ratio) = match levels.pace(free, ahead, busy, self.live) {
            Pace::Rest => (owed.min(0), 0),
            Pace::Along(ratio) => (owed, ratio),
            Pace::Idle => (IDLE_BYTES, 0),
            Pace::Full => (i64::MAX, 0),
        };
    }

    /// Goes along with the writes: so many bytes of payload were recorded since the shard was opened.
    pub fn keep_pace(&mut self, recorded: u64) {
        let bytes = recorded - std::mem::replace(&mut self.recorded, recorded);
        if self.ratio > 0 {
            let more = (bytes.saturating_mul(self.ratio) / EVEN).min(OWED_BYTES_MAX as u64) as i64;
            self.allowance = (self.allowance + more).min(OWED_BYTES_MAX);
        }
    }

    /// Lifts the pace at once: writes have begun to wait.
    pub fn hurry(&mut self) {
        (self.allowance, self.ratio) = (i64::MAX, 0);
    }

    /// Whether it may begin with another segment.
    pub fn wants_victim(&self) -> bool {
        self.walk.is_none() && !self.reading && self.allowance > 0
    }

    /// Segments that were gone through, and in which use: what is live in them can not be moved.
    pub fn cleaned(&self) -> &FxHashMap<SegmentId, u64> {
        &self.cleaned
    }

    /// The segment that it is at.
    pub fn victim(&self) -> Option<SegmentId> {
        self.walk.as_ref().map(|walk| walk.segment)
    }

    /// Begins with a segment.
    pub fn begin(&mut self, victim: Victim, segment_blocks: u32) {
        mark!("cleaner begins a segment");
        self.live = victim.live;
        self.counts.victims += 1;
        self.walk = Some(Walk::new(victim.segment, victim.seq, segment_blocks));
    }

    /// Whether it works on no segment.
    pub fn is_free(&self) -> bool {
        self.walk.is_none() && !self.reading
    }

    /// Begins with a segment of which the live blocks are known, in the order of their places: its headers do not
    /// tell all of them. It is emptied whatever room there is.
    pub fn begin_listed(
        &mut self,
        victim: Victim,
        segment_blocks: u32,
        live: VecDeque<(GroupId, MovedBlock)>,
    ) {
        self.live = victim.live;
        self.counts.victims += 1;
        self.walk = Some(Walk::listed(victim.segment, victim.seq, segment_blocks, live));
    }

    /// Whether the pace, the memory and the reads in flight allow another piece to be read.
    pub fn wants_read(&self) -> bool {
        let Some(walk) = &self.walk else { return false };
        let paced = self.allowance <= 0 && !walk.is_listed();
        !self.reading && !paced && self.moving_bytes < MOVING_BYTES_MAX
    }

    /// The next piece to be read, if one may be.
    pub fn next_read(&mut self) -> Option<(Location, u32)> {
        let walk = self.walk.as_ref().filter(|_| self.wants_read())?;
        let (block, blocks) = walk.next_read()?;
        self.reading = true;
        Some((Location { segment: walk.segment, block }, blocks))
    }

    /// Goes through a piece that was read as [`Cleaner::take`] does, and takes nothing: `judge` sees what it will
    /// be asked.
    pub fn look_through(&self, piece: &Bytes, judge: &impl Judge) {
        if let Some(walk) = &self.walk {
            walk.clone().take(piece, judge, false);
        }
    }

    /// Takes the piece that was read: nothing if it can not be read, in which case it is read again block by
    /// block. Gives the copies to be written.
    pub fn take(
        &mut self,
        piece: Option<&Bytes>,
        move_blocks: u32,
        judge: &impl Judge,
        lenient: bool,
    ) -> Taken {
        self.reading = false;
        let Some(walk) = &mut self.walk else { return Taken::default() };
        let bad = walk.bad;
        let live = match piece {
            Some(piece) => walk.take(piece, judge, lenient),
            None => {
                walk.unreadable();
                Vec::new()
            }
        };
        let damaged = std::mem::take(&mut walk.damaged);
        self.counts.bad += u64::from(walk.bad - bad);
        let bytes = live.len() * BLOCK_BYTES;
        self.allowance = self.allowance.saturating_sub(bytes as i64);
        self.counts.copied += live.len() as u64;
        let records = packed(live, move_blocks as usize);
        let ended = walk.next_read().is_none().then(|| {
            self.cleaned.insert(walk.segment, walk.seq);
            (walk.segment, walk.bad)
        });
        if ended.is_some() {
            self.walk = None;
        }
        Taken { records, ended, bad: damaged }
    }

    /// The copies were handed to the log.
    pub fn recorded(&mut self, seq: RecordSeq, group: GroupId, blocks: Vec<MovedBlock>) {
        self.moving_bytes += blocks.len() * BLOCK_BYTES;
        self.moves.push_back(Move { seq, group, blocks, at: Location::default() });
    }

    /// A record got its place; it may be of anyone.
    pub fn placed(&mut self, seq: RecordSeq, at: Location) {
        let found = self.moves.binary_search_by_key(&seq, |m| m.seq);
        if let Ok(n) = found {
            self.moves[n].at = at;
        }
    }

    /// Takes copies that have become durable, with all records up to here.
    pub fn durable(&mut self, seq: RecordSeq) -> Option<Move> {
        let done = self.moves.pop_front_if(|m| m.seq <= seq)?;
        self.moving_bytes -= done.blocks.len() * BLOCK_BYTES;
        Some(done)
    }

    /// Copies were written to a copy segment.
    pub fn written(&mut self, copies: CopiesWritten) {
        self.moving_bytes += bytes_of(&copies);
        self.apart.push_back(copies);
    }

    /// Whether copies are on their way to a copy segment.
    pub fn is_filling(&self) -> bool {
        !self.apart.is_empty()
    }

    /// Takes copies that have become durable in a copy segment.
    pub fn apart_durable(&mut self, number: u64) -> Option<CopiesWritten> {
        let at = self.apart.iter().position(|copies| copies.number == number)?;
        let done = self.apart.remove(at)?;
        self.moving_bytes -= bytes_of(&done);
        Some(done)
    }

    /// Copies were taken over by the index; `apart`: in a copy segment.
    pub fn moved(&mut self, blocks: u64, apart: bool) {
        self.counts.moved += blocks;
        self.counts.apart += if apart { blocks } else { 0 };
    }

    /// A segment that was gone through may be emptied now.
    pub fn forget(&mut self, segment: SegmentId) {
        self.cleaned.remove(&segment);
    }

    /// Segments were released: what was gone through in them is gone.
    pub fn released(&mut self, segments: &[SegmentUse]) {
        self.counts.released += segments.len() as u64;
        for used in segments {
            self.cleaned.remove(&used.segment);
        }
        if self
            .walk
            .as_ref()
            .is_some_and(|walk| segments.iter().any(|used| used.segment == walk.segment))
        {
            mark!("victim died before it was emptied");
            self.walk = None;
        }
    }
}

fn bytes_of(copies: &CopiesWritten) -> usize {
    copies.blocks.iter().map(|(_, blocks, _)| blocks.len() * BLOCK_BYTES).sum()
}

/// Puts live blocks together by group, no more than `most` with each record.
fn packed(live: Vec<Live>, most: usize) -> Vec<Copied> {
    let mut records: Vec<Copied> = Vec::new();
    let mut open: FxHashMap<GroupId, usize> = FxHashMap::default();
    for Live { group, block, content } in live {
        let at = match open.get(&group) {
            Some(at) if records[*at].1.len() < most => *at,
            _ => {
                records.push((group, Vec::new(), Payload::empty()));
                open.insert(group, records.len() - 1);
                records.len() - 1
            }
        };
        records[at].1.push(block);
        records[at].2.push(content);
    }
    records
}

/// The record of these copies.
pub fn record(group: GroupId, blocks: &[MovedBlock], payload: Payload) -> Record {
    Record::Moved { group, data: encode_moved(blocks), payload }
}
