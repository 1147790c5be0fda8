//! Making room: the cleaner's turns, and what the shard knows of the room there is.

use super::memory::Copies;
use super::{Phase, Shard};
use crate::checkpoint::{pinned_from, would_be_pinned_from};
use crate::cleaner::{self, Judge, Levels, Move, Taken, Totals};
use crate::consensus::{Cx, Group, LogRead, PageId, Retention, Written};
use crate::event::Effect;
use crate::index::BlockPlace;
use crate::log::{Copied, Location, Log, RecordSeq};
use crate::mark;
use crate::planted::Bug;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::disk::DiskFormatError;
use basalt_wire::disk::batch::BatchHeader;
use basalt_wire::disk::moved::MovedBlock;
use basalt_wire::ids::{GroupId, SegmentId};
use basalt_wire::time::Time;
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};

/// What the next checkpoint would bring.
#[derive(Clone, Copy, Debug, Default)]
struct Outlook {
    /// Segments that it would give back if it began now.
    gives: usize,
    /// The same once everything recorded is durable, and a batch behind it.
    gives_later: usize,
    /// Whether there would be something to clean that the Raft log needs as it is.
    opens: bool,
    /// Whether entries that are not applied keep segments: they will be, or be replaced.
    held_up: bool,
}

/// What the index and the log say to the cleaner.
pub(super) struct Known<'a> {
    pub(super) groups: &'a [Group],
    pub(super) by_id: &'a FxHashMap<GroupId, usize>,
    pub(super) log: &'a Log,
}

impl Judge for Known<'_> {
    fn is_live(&self, group: GroupId, block: &MovedBlock) -> bool {
        let (Some(slot), Some((segment, at))) = (self.by_id.get(&group), block.from) else {
            return false;
        };
        let place = BlockPlace { segment, block: at, checksum: block.checksum };
        self.groups[*slot].replica.is_live(block.volume, block.block, place)
    }

    fn header(&self, bytes: &[u8], at: Location) -> Result<BatchHeader, DiskFormatError> {
        self.log.batch_at(bytes, at)
    }
}

/// Takes note of the pages that the cleaner asks about and that are out of memory.
struct Missing<'a> {
    known: Known<'a>,
    clock: u64,
    pages: RefCell<BTreeSet<PageId>>,
}

impl Judge for Missing<'_> {
    fn is_live(&self, group: GroupId, block: &MovedBlock) -> bool {
        let Some(slot) = self.known.by_id.get(&group) else { return false };
        let (volume, chunk) = (block.volume, block.block / CHUNK_BLOCKS);
        if !self.known.groups[*slot].replica.hold_places((volume, chunk), self.clock) {
            self.pages.borrow_mut().insert(PageId { group, volume, chunk });
        }
        false
    }

    fn header(&self, bytes: &[u8], at: Location) -> Result<BatchHeader, DiskFormatError> {
        self.known.header(bytes, at)
    }
}

impl Shard {
    /// Brings the account of live blocks up to date, and goes on with the victim.
    pub(super) fn clean(&mut self, now: Time, out: &mut Vec<Effect>) {
        let live = self.groups.iter().map(|group| group.replica.usage().total()).sum();
        self.shared.room.live = live;
        let Some(levels) = self.shared.room.levels else { return };
        let free = self.shared.log.segments_free();
        if free != self.shared.room.free {
            self.shared.room.free = free;
            self.let_writes_go_on(now, out);
            // A tick may be as long as it takes to fill several small segments.
            self.plan_cleaning(now, true, out);
        }
        self.cleaner.keep_pace(self.shared.recorded_bytes + self.shared.page_bytes);
        if free <= levels.wait {
            self.cleaner.hurry();
        }
        if self.cleaner.wants_victim() && free <= levels.start && !self.no_victim {
            self.choose_victim();
        }
        if self.cleaner.wants_read()
            && self.may_copy(&levels)
            && let Some((at, blocks)) = self.cleaner.next_read()
        {
            let mut cx = Cx { shared: &mut self.shared, now, out };
            cx.read(LogRead::Cleaner, at, blocks);
        }
    }

    /// What is copied needs room itself, and Raft's reserve is not for it, unless all that is live in the
    /// victim fits there: then it gives back more than it takes.
    fn may_copy(&self, levels: &Levels) -> bool {
        let log = &self.shared.log;
        let fits = |segment| log.has_room_at_last(levels.copied(live_in(&self.groups, segment)));
        self.has_room_for_copies(levels) || self.cleaner.victim().is_some_and(fits)
    }

    /// Whether copies fit beside Raft's reserve, in copy segments or in the log.
    fn has_room_for_copies(&self, levels: &Levels) -> bool {
        let (log, leave) = (&self.shared.log, self.shared.limits.segments_reserved);
        self.copies_apart() && log.has_copy_room(levels.piece(), leave)
            || log.has_room(levels.move_blocks)
    }

    /// Whether copies may stand in segments of their own. They are of no use without a checkpoint that names
    /// them; and where there is none, everything must follow from the log.
    fn copies_apart(&self) -> bool {
        self.shared.limits.copy_segments && self.taker.has_one()
    }

    /// Whether the clock is needed for it.
    pub(super) fn wants_to_clean(&self) -> bool {
        let Some(levels) = self.shared.room.levels else { return false };
        let free = self.shared.room.free;
        let to_do = !self.no_victim || self.taker.is_under_way();
        self.cleaner.is_busy()
            || free <= levels.start && to_do
            || free <= levels.urgent && self.gain
    }

    /// Plans until the next tick, or until segments are taken or given back: the pace, whether there is anything
    /// to clean, and whether a checkpoint would give segments back. `busy`: somebody writes.
    pub(super) fn plan_cleaning(&mut self, now: Time, busy: bool, out: &mut Vec<Effect>) {
        let Some(levels) = self.shared.room.levels else { return };
        let levels = levels.with_lead(self.taker.lead());
        self.shared.room.levels = Some(levels);
        let free = self.shared.log.segments_free();
        (self.no_victim, self.shared.pressure) = (false, false);
        if free > levels.start {
            self.cleaner.set_pace(&levels, free, free, busy);
            (self.gain, self.shared.room.hopeless) = (true, None);
            return;
        }
        self.drop_dead_copies();
        // What the next checkpoint gives back without cutting the Raft log short is as good as free: to
        // clean more would only be to take victims that hold less garbage.
        let mut outlook = self.outlook(&levels);
        let ahead = free + outlook.gives.max(outlook.gives_later) as u32;
        self.shared.pressure = free <= levels.wait || ahead <= levels.urgent;
        if self.shared.pressure {
            outlook = self.outlook(&levels);
        }
        self.cleaner.set_pace(&levels, free, ahead, busy);
        if self.cleaner.wants_victim() {
            self.choose_victim();
        }
        let before = self.shared.room.hopeless;
        let enough = if free <= levels.last { 1 } else { levels.step };
        // Without a victim only a shorter Raft log makes garbage of what is needed as it is.
        let cut = self.no_victim && outlook.opens;
        if self.taker.has_begun() {
            // What it gives back is counted as well: the next tick sees what is left for another.
            mark!("checkpoint under way when the cleaner needs one");
        } else if outlook.gives >= enough as usize || cut {
            mark!("checkpoint asked for by the cleaner");
            self.taker.ask();
        } else if outlook.gives_later > outlook.gives {
            // Replay can begin later behind a batch that nothing but the need for room brings.
            mark!("batch written for a checkpoint");
            self.shared.log.write_on(&mut self.shared.ops);
        }
        self.judge_gain(&levels, outlook, cut);
        // A write may also find room because others were shorter on the device than they might have been.
        if self.shared.room.hopeless != before || self.shared.log.has_room_above(1, levels.wait) {
            self.let_writes_go_on(now, out);
        }
    }

    /// Judges whether waiting for room makes sense.
    fn judge_gain(&mut self, levels: &Levels, outlook: Outlook, cut: bool) {
        let log = &self.shared.log;
        let idle = self.no_victim && !self.cleaner.is_busy() && !self.taker.is_under_way();
        let possible = outlook.gives_later.max(outlook.gives) > 0 || cut || outlook.held_up;
        let sound = self.groups.iter().all(Group::is_sound) && !self.taker.is_stopped();
        let soon = log.has_leaving() || !self.shared.written.is_empty();
        let low = !log.has_room_above(self.shared.blocks_ahead(), levels.wait);
        self.gain = sound && (!idle || possible || soon);
        self.shared.room.hopeless = (!self.gain && low).then(|| self.shared.recorded());
    }

    /// What the next checkpoint would bring.
    fn outlook(&self, levels: &Levels) -> Outlook {
        let (log, groups) = (&self.shared.log, &self.groups);
        let (Some(segments), Some(end)) = (log.segments(), log.end()) else {
            return Outlook::default();
        };
        let totals = totals(groups);
        let retention = Retention::of(&self.shared, groups.len());
        let pinned = would_be_pinned_from(groups, log, &retention);
        let gives = |place| {
            let from = self.taker.replay_from(groups, log, place);
            let before = pinned.min(from.map_or(0, |from| from.segment_seq));
            let empty = cleaner::garbage_only(segments, &totals, before, 0);
            let kept = |id| log.is_leaving(id) || self.shared.loads.is_settling(id);
            empty.into_iter().filter(|id| !kept(*id)).count()
        };
        let from = self.taker.replay_from(groups, log, end);
        let unapplied = groups.iter().any(|group| group.unapplied_at().is_some());
        let kept = from.map_or(0, |from| from.segment_seq).min(pinned);
        let cleaned = self.cleaner.cleaned();
        Outlook {
            gives: log.durable_place().map_or(0, gives),
            gives_later: gives(end),
            opens: pinned > pinned_from(groups, log)
                && cleaner::best(segments, &totals, levels, pinned, cleaned).is_some(),
            held_up: unapplied && kept < end.segment_seq,
        }
    }

    fn choose_victim(&mut self) {
        let (Some(levels), Some(segments)) = (self.shared.room.levels, self.shared.log.segments())
        else {
            return;
        };
        let (log, cleaned) = (&self.shared.log, self.cleaner.cleaned());
        let totals = totals(&self.groups);
        let before = pinned_from(&self.groups, log);
        let victim = match self.has_room_for_copies(&levels) {
            true => cleaner::best(segments, &totals, &levels, before, cleaned),
            false => cleaner::emptiest(segments, &totals, &levels, before, cleaned)
                .filter(|victim| log.has_room_at_last(levels.copied(victim.live))),
        };
        match victim {
            Some(victim) => {
                let blocks = self.shared.log.segment_blocks();
                self.cleaner.begin(victim, blocks);
            }
            None => self.no_victim = true,
        }
    }

    /// A piece of the victim was read, or can not be.
    pub(super) fn cleaner_read(&mut self, now: Time, piece: Option<Bytes>, out: &mut Vec<Effect>) {
        let Some(levels) = self.shared.room.levels else { return };
        if self.piece_waits(&piece) {
            return;
        }
        let known = Known { groups: &self.groups, by_id: &self.by_id, log: &self.shared.log };
        let lenient = self.shared.planted.is(Bug::BadBlockCopiedOn);
        let Taken { records, ended, bad } =
            self.cleaner.take(piece.as_ref(), levels.move_blocks, &known, lenient);
        self.write_copies(records.into());
        for (group, block) in bad {
            if let Some(slot) = self.by_id.get(&group) {
                self.repairs.add(now, *slot, block);
            }
        }
        match (ended, piece) {
            (Some((segment, _)), None) => tell(out, segment, "a part of it can not be read"),
            (Some((segment, bad)), _) if bad > 0 => {
                mark!("cleaner meets a bad block");
                tell(out, segment, &format!("{bad} live blocks do not match their checksums"));
            }
            _ => {}
        }
    }

    /// Writes copies to copy segments, and to the log what finds no room there.
    fn write_copies(&mut self, mut copies: VecDeque<Copied>) {
        let leave = self.shared.limits.segments_reserved;
        while self.copies_apart()
            && let Some(written) = self.shared.log.copy(&mut copies, leave, &mut self.shared.ops)
        {
            mark!("copies written apart from the log");
            let number = written.number;
            self.cleaner.written(written);
            if self.shared.planted.is(Bug::CopiesNotDurable) {
                self.apart_durable(number);
            }
        }
        for (group, blocks, payload) in copies {
            mark!("copies written to the log");
            let Some(slot) = self.by_id.get(&group).copied() else { continue };
            let record = cleaner::record(group, &blocks, payload);
            let written = Written { group: slot, entry: None };
            let seq = self.shared.record(record, written);
            self.cleaner.recorded(seq, group, blocks);
        }
    }

    /// Points the index at copies that have become durable in a copy segment.
    pub(super) fn apart_durable(&mut self, number: u64) {
        let Some(done) = self.cleaner.apart_durable(number) else { return };
        let clock = self.shared.loads.clock;
        for (group, blocks, at) in done.blocks {
            let copies = Copies { group, blocks, at, record: None };
            self.waiting.copies.push_back((copies, clock));
        }
        self.settle_copies();
    }

    /// Closes the copy segment that is being filled if nothing of what was written there is live any more, so
    /// that a checkpoint can give it back.
    fn drop_dead_copies(&mut self) {
        let log = &self.shared.log;
        if let Some(segment) = log.filling()
            && !self.cleaner.is_filling()
            && !self.shared.loads.is_settling(segment)
            && live_in(&self.groups, segment) == 0
        {
            mark!("copy segment given up before it is full");
            self.shared.log.close_copies();
        }
    }

    /// Points the index at copies that have become durable in the log.
    pub(super) fn copies_durable(&mut self, seq: RecordSeq) {
        let clock = self.shared.loads.clock;
        while let Some(done) = self.cleaner.durable(seq) {
            let Move { seq, group, blocks, at } = done;
            let copies = Copies { group, blocks, at, record: Some(seq) };
            self.waiting.copies.push_back((copies, clock));
        }
        if !self.waiting.copies.is_empty() {
            self.settle_copies();
        }
    }

    /// Points the index at copies.
    pub(super) fn settle(&mut self, done: &Copies) {
        let Some(slot) = self.by_id.get(&done.group) else { return };
        let moved = self.groups[*slot].replica.moved(&done.blocks, done.at);
        let repaired = done.record.and_then(|seq| self.repairs.durable(seq, moved > 0));
        if let Some(segment) = repaired {
            // What kept the segment from being emptied may be gone.
            self.cleaner.forget(segment);
            return;
        }
        if moved < done.blocks.len() as u64 {
            mark!("block overwritten while it was moved");
        }
        self.cleaner.moved(moved, done.record.is_none());
    }

    /// The pages, of those whose tables are out of memory, that a piece of the victim asks about.
    pub(super) fn pages_of_piece(&self, piece: &Bytes) -> BTreeSet<PageId> {
        let known = Known { groups: &self.groups, by_id: &self.by_id, log: &self.shared.log };
        let clock = self.shared.loads.clock;
        let missing = Missing { known, clock, pages: RefCell::new(BTreeSet::new()) };
        self.cleaner.look_through(piece, &missing);
        missing.pages.into_inner()
    }

    /// Has the log use segments again that a durable checkpoint does not need.
    pub(super) fn release_segments(&mut self) {
        let segments = self.taker.take_released();
        if !segments.is_empty() {
            mark!("segments given back");
            self.cleaner.released(&segments);
            self.survey.released(&segments);
            self.shared.log.release(&segments);
        }
    }

    /// Something about the room has changed: what waits for it is looked at again.
    fn let_writes_go_on(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.each(now, out, |group, _| group.room_changed());
    }

    /// Sets the levels of the device, once it is open.
    pub(super) fn measure_room(&mut self) {
        let log = &self.shared.log;
        let reserved = self.shared.limits.segments_reserved;
        let (total, blocks) = (log.segments_total(), log.segment_blocks());
        self.shared.room.free = log.segments_free();
        self.shared.room.levels = self.taker.is_on().then(|| Levels::of(total, blocks, reserved));
        debug_assert!(matches!(self.phase, Phase::Running | Phase::Opening | Phase::Draining));
    }
}

/// Live blocks by segment, all groups together.
pub fn totals(groups: &[Group]) -> Totals {
    Totals::of(groups.iter().map(|group| group.replica.usage()))
}

/// Live blocks of one segment.
fn live_in(groups: &[Group], segment: SegmentId) -> u32 {
    groups.iter().map(|group| group.replica.usage().live(segment)).sum()
}

fn tell(out: &mut Vec<Effect>, segment: SegmentId, what: &str) {
    let text = format!(
        "segment {segment} can not be emptied: {what}; what is left in it stays there to be repaired"
    );
    out.push(Effect::Notice { alarm: true, text });
}
