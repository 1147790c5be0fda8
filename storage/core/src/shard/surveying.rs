//! Looking after what is needed only when something fails: the store's records, the headers in segments that get
//! nothing more.

use super::Shard;
use super::cleaning::Known;
use crate::checkpoint::{StoreOp, Verified};
use crate::cleaner::Victim;
use crate::consensus::{Cx, Group, Loads, LogRead};
use crate::event::Effect;
use crate::log::{Log, Segment, SegmentState};
use crate::mark;
use crate::planted::Bug;
use crate::scrub::{BadHeader, Closed, Step};
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::command::BlockRange;
use basalt_wire::disk::checkpoint::SegmentUse;
use basalt_wire::disk::moved::MovedBlock;
use basalt_wire::ids::{GroupId, LogIndex, VolumeId};
use basalt_wire::time::Time;
use bytes::Bytes;
use std::collections::VecDeque;

/// Pages that one turn looks through for live blocks of a segment.
const PAGES_MAX: usize = 64;
/// Segments that wait to be emptied. Others are found again by the next pass.
const HOLLOW_MAX: usize = 64;

/// Finds what is live in segments that their headers do not tell it of any more.
#[derive(Debug, Default)]
pub(super) struct Evacuation {
    waiting: VecDeque<BadHeader>,
    search: Option<Search>,
    /// Since when it waits for tables of pages.
    pub(super) since: Option<u64>,
    /// Segments of which everything that is live was handed to the cleaner.
    pub(super) begun: u64,
}

/// The walk through the index.
#[derive(Debug)]
struct Search {
    bad: BadHeader,
    slot: usize,
    page: (VolumeId, u64),
    found: Vec<(GroupId, MovedBlock)>,
}

fn is_closed(log: &Log, used: &SegmentUse) -> bool {
    let segment = log.segments().and_then(|segments| segments.get(used.segment));
    segment.is_some_and(|s| {
        s.seq == used.seq && matches!(s.state, SegmentState::Closed | SegmentState::Copies)
    })
}

impl BadHeader {
    /// Whether something of what is live stands where the header, or another behind it, should tell of it.
    fn hides_some(&self, live: &[(GroupId, MovedBlock)]) -> bool {
        live.iter().any(|(_, block)| block.from.is_some_and(|(_, at)| at > self.block))
    }
}

impl Evacuation {
    pub(super) fn is_busy(&self) -> bool {
        self.search.is_some() || !self.waiting.is_empty()
    }

    /// Of a segment the first place counts: all that is live in it is moved.
    fn add(&mut self, bad: BadHeader) {
        let mut under_way = self.search.iter().map(|search| &search.bad).chain(&self.waiting);
        if !under_way.any(|known| known.at == bad.at) && self.waiting.len() < HOLLOW_MAX {
            self.waiting.push_back(bad);
        }
    }

    /// Looks through some pages. Gives the live blocks of a segment in the order of their places, when all were
    /// looked at.
    fn advance(
        &mut self,
        groups: &[Group],
        loads: &mut Loads,
    ) -> Option<(BadHeader, Vec<(GroupId, MovedBlock)>)> {
        let search = match &mut self.search {
            Some(search) => search,
            None => {
                let (bad, page) = (self.waiting.pop_front()?, (VolumeId(0), 0));
                self.search.insert(Search { bad, slot: 0, page, found: Vec::new() })
            }
        };
        let Some(group) = groups.get(search.slot) else {
            let mut search = self.search.take()?;
            search.found.sort_unstable_by_key(|(_, block)| block.from);
            return Some((search.bad, search.found));
        };
        let pages = group.replica.pages_from(LogIndex(0), search.page, PAGES_MAX);
        if !loads.hold_places(&group.replica, group.id, pages.iter().copied()) {
            mark!("search for live blocks waits for tables");
            self.since.get_or_insert(loads.clock);
            return None;
        }
        self.since = None;
        for (volume, chunk) in &pages {
            let (block, count) = (chunk * CHUNK_BLOCKS, CHUNK_BLOCKS as u32);
            let places = group.replica.places(*volume, BlockRange { block, count }, true);
            let inside = places.into_iter().filter(|place| {
                place.from.is_some_and(|(segment, _)| segment == search.bad.at.used.segment)
            });
            search.found.extend(inside.map(|place| (group.id, place)));
        }
        match pages.last().filter(|_| pages.len() == PAGES_MAX) {
            Some((volume, chunk)) => search.page = (*volume, chunk + 1),
            None => (search.slot, search.page) = (search.slot + 1, (VolumeId(0), 0)),
        }
        None
    }
}

impl Shard {
    /// Begins to look, with a pass over the blocks.
    pub(super) fn begin_survey(&mut self, now: Time, asked: bool) {
        let closed = (!self.taker.is_on()).then(|| self.closed());
        self.survey.begin(now, asked, closed);
    }

    /// The segments that get nothing more and of which all is durable: what was written last to one of the log may
    /// still be on its way.
    fn closed(&self) -> Vec<Closed> {
        let log = &self.shared.log;
        let Some(segments) = log.segments() else { return Vec::new() };
        let before = match log.durable_place() {
            Some(place) => place.segment_seq,
            None if log.is_writing() => 0,
            None => u64::MAX,
        };
        let skipped = self.shared.planted.is(Bug::CopyHeadersSkipped);
        let looked_at = |s: &Segment| match s.state {
            SegmentState::Closed => s.seq < before,
            SegmentState::Copies => !skipped,
            _ => false,
        };
        let closed = |s: Segment| Closed {
            used: SegmentUse { segment: s.id, seq: s.seq },
            copies: s.state == SegmentState::Copies,
        };
        segments.iter().filter(looked_at).map(closed).collect()
    }

    /// Goes on with it.
    pub(super) fn look_around(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.evacuate(out);
        if self.survey.is_due_again() {
            self.begin_survey(now, true);
        }
        let busy = self.shared.pending_requests + self.shared.client_reads.len() > 0;
        let pace = self.start.scrubbing();
        let rate = if busy { pace.busy_bytes } else { pace.idle_bytes };
        let (blocks, log) = (self.shared.log.segment_blocks(), &self.shared.log);
        match self.survey.next(now, rate, blocks, |used| is_closed(log, used)) {
            Some(Step::Verify { from, bytes }) => {
                out.push(Effect::Store(StoreOp::Verify { from, bytes }));
            }
            Some(Step::Read(at, blocks)) => {
                Cx { shared: &mut self.shared, now, out }.read(LogRead::Header, at, blocks);
            }
            None => {}
        }
    }

    /// The store has looked at some of its records.
    pub(super) fn records_verified(
        &mut self,
        result: &Result<Verified, String>,
        out: &mut Vec<Effect>,
    ) {
        let closed = self.closed();
        if !self.survey.verified(result, closed) {
            return;
        }
        let Err(reason) = result else { return };
        let text =
            format!("the checkpoint in the store is damaged ({reason}): all of it is written anew");
        out.push(Effect::Notice { alarm: true, text });
        self.taker.write_anew();
    }

    /// A header was read, or can not be read.
    pub(super) fn header_read(&mut self, piece: Option<&Bytes>, out: &mut Vec<Effect>) {
        let known = Known { groups: &self.groups, by_id: &self.by_id, log: &self.shared.log };
        let lenient = self.shared.planted.is(Bug::HeadersUnchecked);
        let blocks = self.shared.log.segment_blocks();
        let bad = self.survey.take(piece, &known, blocks, lenient);
        let Some(bad) = bad else { return };
        if !bad.at.copies {
            tell(&bad, out);
        }
        if self.taker.is_on() {
            if !bad.at.copies {
                self.taker.ask();
            }
            self.evacuation.add(bad);
        }
    }

    /// Has the cleaner move what is live in a segment with a damaged header.
    fn evacuate(&mut self, out: &mut Vec<Effect>) {
        if !self.evacuation.is_busy() || !self.cleaner.is_free() {
            return;
        }
        let Some((bad, live)) = self.evacuation.advance(&self.groups, &mut self.shared.loads)
        else {
            return;
        };
        let used = bad.at.used;
        if !is_closed(&self.shared.log, &used) || live.is_empty() {
            return;
        }
        if bad.at.copies {
            if !bad.hides_some(&live) {
                mark!("copy segment ends before it is full");
                return;
            }
            self.survey.was_header();
            tell(&bad, out);
        }
        mark!("segment with a damaged header is emptied");
        self.evacuation.begun += 1;
        let victim = Victim { segment: used.segment, seq: used.seq, live: live.len() as u32 };
        let blocks = self.shared.log.segment_blocks();
        self.cleaner.begin_listed(victim, blocks, live.into());
    }

    /// When [`Shard::look_around`] must be called, unless something else happens before.
    pub(super) fn survey_deadline(&self) -> Option<Time> {
        // While it waits for tables it goes on with the turn that brings them.
        let ready = self.evacuation.is_busy() && self.evacuation.since.is_none();
        let busy = ready && self.cleaner.is_free();
        if busy || self.survey.is_due_again() { Some(Time::ZERO) } else { self.survey.deadline() }
    }
}

fn tell(bad: &BadHeader, out: &mut Vec<Effect>) {
    let (segment, block) = (bad.at.used.segment, bad.block);
    let then =
        if bad.at.copies { "" } else { ", and a checkpoint is taken, so that no start needs it" };
    let text = format!(
        "segment {segment}: the header at block {block} is damaged; what is live in the segment is moved \
         elsewhere{then}"
    );
    out.push(Effect::Notice { alarm: true, text });
}
