//! The scrub: finds damage before it is met, and has it repaired.
//!
//! It is a state machine inside the shard. A *pass* walks through the index of one group after the other,
//! page by page, reads every block that is live (those kept for snapshots included) in the order in which
//! they stand, and verifies it against the checksum that the index has for it. So it sees what a read would
//! see: rot, zeroed ranges, blocks that stand in each other's place, and writes that never reached
//! the media.
//!
//! * A block that fails twice in a row is given to [`Repairs`], which asks the other replicas for it.
//! * What a client, a follower or the cleaner finds damaged is looked at before the pass goes on.
//! * A pass is paced so that it takes nearly as long as there is until the next; one that is asked
//!   for goes as fast as [`Scrubbing`] allows.
//! * Where a pass stands is told with the shard's state. Whoever remembers it has the next start go on
//!   there; else that begins a new one at a group that is drawn anew, so that shards that start
//!   often do not always look at the same part.

mod check;
mod repairs;
mod survey;
#[cfg(test)]
mod tests;

pub use repairs::{Given, RepairCounts, Repairs, Todo};
pub use survey::{BadHeader, Closed, Step, Survey, SurveyCounts};

use crate::config::{ScrubResume, Scrubbing};
use crate::log::Location;
use crate::mark;
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::command::BlockRange;
use basalt_wire::disk::moved::MovedBlock;
use basalt_wire::ids::{GroupId, VolumeId};
use basalt_wire::time::Time;
use bytes::Bytes;
use check::Check;
use std::collections::VecDeque;
use std::time::Duration;

/// Bytes that are read in one go before the pace is kept.
const BURST_BYTES: u64 = 1 << 20;
/// Pages that are looked up at a time.
const PAGES_MAX: usize = 1024;
/// Ranges that wait to be looked at because somebody met damage there.
const SUSPECTS_MAX: usize = 256;

/// A range of blocks of a volume, within a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The group's position in the shard.
    pub slot: usize,
    /// The volume.
    pub volume: VolumeId,
    /// Its blocks.
    pub range: BlockRange,
}

/// What the rest of the shard knows.
pub trait Known {
    /// Number of groups.
    fn groups(&self) -> usize;
    /// The first pages of a group from one on, in order.
    fn pages(&self, slot: usize, from: (VolumeId, u64), most: usize) -> Vec<(VolumeId, u64)>;
    /// Where the live blocks of a range stand, those kept for snapshots included, by place.
    fn places(&self, target: &Target) -> Vec<MovedBlock>;
    /// Whether it can be told where they stand now; else it can be later.
    fn is_known(&self, target: &Target) -> bool;
    /// Whether the index still refers to a block at its place, as far as can be told.
    fn is_live(&self, slot: usize, block: &MovedBlock) -> bool;
}

/// What was done since the shard was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubCounts {
    /// Passes that began.
    pub begun: u64,
    /// Passes that are over, and those of them that were asked for.
    pub passes: u64,
    /// See `passes`.
    pub asked: u64,
    /// Blocks that were read and have their checksum.
    pub verified: u64,
    /// Blocks that do not.
    pub bad: u64,
}

/// A pass under way.
#[derive(Debug)]
struct Pass {
    asked: bool,
    began: Time,
    /// What it took before the shard was opened.
    earlier: Duration,
    /// The group that is walked through, and how many there are to come.
    slot: usize,
    left: usize,
    /// The page that was looked up last.
    at: Option<(VolumeId, u64)>,
    /// Pages of it that are known and not looked at, and the first that is not looked up.
    pages: VecDeque<(VolumeId, u64)>,
    from: Option<(VolumeId, u64)>,
    /// The counts when it began.
    before: ScrubCounts,
}

/// The end of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassReport {
    /// How long it took.
    pub took: Duration,
    /// Blocks that have their checksum.
    pub verified: u64,
    /// Blocks that do not.
    pub bad: u64,
}

/// Where a pass is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The group's position in the shard.
    pub slot: usize,
    /// The first page that is not looked at; nothing if the group is nearly done.
    pub page: Option<(VolumeId, u64)>,
    /// Groups that are not looked at yet, with this one.
    pub left: usize,
}

/// The scrub of one shard.
#[derive(Debug)]
pub struct Scrub {
    pace: Scrubbing,
    pass: Option<Pass>,
    /// When the next regular pass begins.
    due: Option<Time>,
    /// The group at which the next pass begins.
    first: usize,
    suspects: VecDeque<Target>,
    check: Option<Check>,
    /// What is to be checked as soon as it is known where it stands; whether it is the pass that wants it.
    unknown: Option<(Target, bool)>,
    /// Whether the pass looks at what is checked.
    paced: bool,
    /// Nothing is read for the pass before this.
    next_at: Time,
    /// Bytes read since then.
    spent: u64,
    counts: ScrubCounts,
    last: Option<PassReport>,
    began: Option<bool>,
    ended: bool,
}

impl Scrub {
    /// A scrub that begins with the group at a position, now or never.
    pub fn new(pace: Scrubbing, first: usize, now: Time) -> Scrub {
        Scrub {
            pace,
            pass: None,
            due: (!pace.every.is_zero()).then_some(now),
            first,
            suspects: VecDeque::new(),
            check: None,
            unknown: None,
            paced: false,
            next_at: now,
            spent: 0,
            counts: ScrubCounts::default(),
            last: None,
            began: None,
            ended: false,
        }
    }

    /// Goes on where an earlier start had come to: with a group at a position, of so many. If there is no such
    /// group any more the pass begins anew.
    pub fn resume(
        &mut self,
        now: Time,
        resume: ScrubResume,
        slot_of: impl Fn(GroupId) -> Option<usize>,
        groups: usize,
    ) {
        let Some(due) = &mut self.due else { return };
        let due_in = self.pace.every.saturating_sub(resume.since);
        let Some(place) = resume.place else {
            *due = now + due_in;
            return;
        };
        let Some(slot) = slot_of(place.group).filter(|_| place.left > 0) else { return };
        mark!("scrub goes on where it was");
        self.began = Some(false);
        *due = now + due_in;
        self.pass = Some(Pass {
            asked: false,
            began: now,
            earlier: resume.since,
            slot,
            left: place.left.min(groups),
            at: None,
            pages: VecDeque::new(),
            from: Some(place.page),
            before: self.counts,
        });
    }

    /// What was done so far.
    pub fn counts(&self) -> ScrubCounts {
        self.counts
    }

    /// What is to be checked and can not be before it is known where it stands.
    pub fn unknown(&self) -> Option<Target> {
        self.unknown.map(|(target, _)| target)
    }

    /// The pass that ended last.
    pub fn last(&self) -> Option<PassReport> {
        self.last
    }

    /// The beginning of a pass, told once, and whether it was asked for.
    pub fn take_begin(&mut self) -> Option<bool> {
        self.began.take()
    }

    /// The end of a pass, told once.
    pub fn take_end(&mut self) -> Option<PassReport> {
        std::mem::take(&mut self.ended).then_some(self.last).flatten()
    }

    /// Where the pass under way is.
    pub fn position(&self) -> Option<Position> {
        let pass = self.pass.as_ref()?;
        // What is not all read is begun anew.
        let reads = |check: &Check| self.paced && !check.is_done();
        let reading = pass.at.filter(|_| self.check.as_ref().is_some_and(reads));
        let page = reading.or(pass.pages.front().copied()).or(pass.from);
        Some(Position { slot: pass.slot, page, left: pass.left })
    }

    /// Begins a pass over everything at once, as fast as may be.
    pub fn ask(&mut self, now: Time, groups: usize) {
        self.first = self.pass.as_ref().map_or(self.first, |pass| pass.slot);
        self.begin(now, groups, true);
    }

    /// Has a range looked at, because damage was met there.
    pub fn suspect(&mut self, target: Target) {
        if self.suspects.len() < SUSPECTS_MAX && !self.suspects.contains(&target) {
            self.suspects.push_back(target);
        }
    }

    fn begin(&mut self, now: Time, groups: usize, asked: bool) {
        self.due = (!self.pace.every.is_zero()).then(|| now + self.pace.every);
        self.began = Some(asked);
        self.counts.begun += 1;
        if groups == 0 {
            // There is nothing to look at.
            self.counts.passes += 1;
            self.counts.asked += u64::from(asked);
            return;
        }
        mark!("scrub begins a pass");
        let (slot, from) = (self.first % groups, Some((VolumeId(0), 0)));
        let (pages, before) = (VecDeque::new(), self.counts);
        let (began, earlier, left) = (now, Duration::ZERO, groups);
        let at = None;
        self.pass = Some(Pass { asked, began, earlier, slot, left, at, pages, from, before });
        (self.next_at, self.spent) = (now, 0);
    }

    /// The next blocks to be read, if there are any now. `live` is the number of live blocks of the shard,
    /// `busy` whether clients' requests are under way, `held` whether as much is to be repaired as can
    /// be for now.
    pub fn next_read(
        &mut self,
        now: Time,
        known: &impl Known,
        (live, busy, held): (u64, bool, bool),
    ) -> Option<(Location, u32)> {
        loop {
            if let Some(check) = &mut self.check {
                if check.is_reading() {
                    return None;
                }
                if let Some(read) = check.next_read() {
                    return Some(read);
                }
                self.check = None;
                if self.paced {
                    self.keep_pace(now, live, busy);
                }
            }
            if held {
                return None;
            }
            let (target, paced) = match self.unknown.take() {
                Some(waited) => waited,
                None => match self.suspects.pop_front() {
                    Some(target) => (target, false),
                    None => (self.next_target(now, known)?, true),
                },
            };
            self.paced = paced;
            if !known.is_known(&target) {
                self.unknown = Some((target, paced));
                return None;
            }
            self.check = Some(Check::new(target, known.places(&target)));
        }
    }

    /// The next page of the pass.
    fn next_target(&mut self, now: Time, known: &impl Known) -> Option<Target> {
        if self.pass.is_none() && self.due.is_some_and(|due| due <= now) {
            self.begin(now, known.groups(), false);
        }
        while self.next_at <= now
            && let Some(pass) = &mut self.pass
        {
            if let Some((volume, chunk)) = pass.pages.pop_front() {
                pass.at = Some((volume, chunk));
                let range = BlockRange { block: chunk * CHUNK_BLOCKS, count: CHUNK_BLOCKS as u32 };
                return Some(Target { slot: pass.slot, volume, range });
            }
            if let Some(from) = pass.from {
                let pages = known.pages(pass.slot, from, PAGES_MAX);
                let last = pages.last().filter(|_| pages.len() == PAGES_MAX);
                pass.from = last.map(|(volume, chunk)| (*volume, chunk + 1));
                pass.pages = pages.into();
                continue;
            }
            pass.left -= 1;
            pass.slot = (pass.slot + 1) % known.groups();
            pass.from = Some((VolumeId(0), 0));
            if pass.left == 0 {
                self.end(now);
            }
        }
        None
    }

    fn end(&mut self, now: Time) {
        let Some(pass) = self.pass.take() else { return };
        self.first = pass.slot;
        self.counts.passes += 1;
        self.counts.asked += u64::from(pass.asked);
        self.last = Some(PassReport {
            took: now.since(pass.began) + pass.earlier,
            verified: self.counts.verified - pass.before.verified,
            bad: self.counts.bad - pass.before.bad,
        });
        self.ended = true;
    }

    /// After what was read in one go, waits as long as the pace asks for.
    fn keep_pace(&mut self, now: Time, live: u64, busy: bool) {
        if self.spent < BURST_BYTES {
            return;
        }
        let most = if busy { self.pace.busy_bytes } else { self.pace.idle_bytes }.max(1);
        let asked = self.pass.as_ref().is_none_or(|pass| pass.asked);
        let rate = match self.pace.every.as_secs() {
            seconds if seconds > 0 && !asked => {
                // A tenth of the time is left for repairs and for what is written meanwhile.
                let bytes = live * BLOCK_BYTES as u64;
                (bytes + bytes / 9).div_ceil(seconds).clamp(BURST_BYTES / 60, most)
            }
            _ => most,
        };
        let nanos = u128::from(self.spent) * 1_000_000_000 / u128::from(rate);
        self.next_at = now + Duration::from_nanos(nanos as u64);
        self.spent = 0;
    }

    /// The first of the blocks that are being read, and the group's position. All are of one page.
    pub fn reads(&self) -> Option<(usize, &MovedBlock)> {
        let check = self.check.as_ref()?;
        Some((check.slot(), check.first_read()?))
    }

    /// Takes what was read, or nothing if it can not be read. Gives blocks that are damaged.
    pub fn take(&mut self, piece: Option<&Bytes>, known: &impl Known) -> Vec<(usize, MovedBlock)> {
        let Some(check) = &mut self.check else { return Vec::new() };
        let slot = check.slot();
        let read = check.take(piece);
        self.counts.verified += u64::from(read.verified);
        self.spent += u64::from(read.blocks) * BLOCK_BYTES as u64;
        let bad = read.bad.into_iter().filter(|block| known.is_live(slot, block));
        let bad: Vec<_> = bad.map(|block| (slot, block)).collect();
        self.counts.bad += bad.len() as u64;
        bad
    }

    /// When [`Scrub::next_read`] must be called, unless something else happens before.
    pub fn deadline(&self, held: bool) -> Option<Time> {
        if let Some(check) = &self.check {
            // A read that was refused has ended within the turn that asked for it.
            return (!check.is_reading()).then_some(Time::ZERO);
        }
        match &self.pass {
            _ if held || self.unknown.is_some() => None,
            _ if !self.suspects.is_empty() => Some(Time::ZERO),
            Some(_) => Some(self.next_at),
            None => self.due,
        }
    }
}
