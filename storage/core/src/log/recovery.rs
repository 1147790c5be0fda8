//! Opening a device: find its superblock, replay its log, decide what its end is.
//!
//! Recovery walks from batch to batch along the chain, through the segments in the order of their use.
//! A batch whose successor proves that it had been durable is replayed from its header alone. The others
//! wait: when the walk reaches a place without a next batch, everything behind that place is searched for
//! valid batches, the facts are looked up in the [decision table](super::table), and the waiting batches
//! are verified down to their payload. Crash and corruption thus take different paths: only what no later
//! batch covers can be cut.
//!
//! Before the log is declared open, a new boot generation is made durable, so that nothing of a
//! dropped tail can ever be taken for what is written now, and the device's cache is flushed, so
//! that nothing that was replayed can still be lost.

use super::place::{Geometry, Tail};
use super::scan::{HeaderView, Scan, read_header};
use super::segments::Segments;
use super::table::{Facts, Header, Payload, Verdict, decide};
use super::window::{View, Window};
use super::writer::summaries_of;
use super::{Damage, DataLocation, HardState, Location, LogEvent, OpenReport, Record, Start};
use crate::config::ShardConfig;
use crate::mark;
use crate::planted::Bug;
use basalt_wire::block::{BLOCK_BYTES, crc32c};
use basalt_wire::disk::DiskFormatError;
use basalt_wire::disk::batch::{
    BatchHeader, Descriptor, EntryRange, FLAG_PREDECESSOR_LOST, GroupSummary, HardStateFields,
};
use basalt_wire::disk::checkpoint::ChainPlace;
use basalt_wire::ids::{GroupId, LogIndex, SegmentId, Term};
use basalt_wire::io::DiskOp;
use std::collections::{BTreeMap, VecDeque};

/// The most blocks of payload verified at a time.
const VERIFY_BLOCKS: u32 = 256;

/// Walks the log of a device.
pub struct Recovery {
    config: ShardConfig,
    geometry: Geometry,
    window: Window,
    phase: Phase,
    tail: Tail,
    /// The boot generation of the last batch.
    boot: u64,
    /// The highest boot generation seen, dropped batches included.
    boot_highest: u64,
    /// Whether the next batch follows a lost one, so that it can not be checked against the chain.
    chain_open: bool,
    /// The highest durable mark seen, and the boot generation that wrote it.
    mark: u64,
    mark_boot: u64,
    /// Batches and gaps that no mark covers yet, in order.
    waiting: VecDeque<Waiting>,
    last_with_records: u64,
    /// What the last batch held, if it is known.
    last_summaries: Option<Vec<GroupSummary>>,
    /// Where it stands.
    last: Option<ChainPlace>,
    damages: BTreeMap<GroupId, Lost>,
    /// Damage of unknown extent.
    unknown: Option<Damage>,
    report: OpenReport,
    /// The checkpoint behind which it began.
    start: Option<Start>,
    /// What a checkpoint proves, be it used or not.
    proof: Option<Proof>,
    /// The segments that the checkpoint lists, and those visited.
    segments: Segments,
    /// Segments whose heads were damaged where a batch was missing: they may be in use.
    damaged_heads: Vec<u32>,
    /// Why the log can not be recovered from where it began.
    refused: Option<String>,
    /// The place that was read once more because of what it held.
    doubted: Option<(u32, u32)>,
}

/// A batch that is known to have been durable, whatever the log says now: a checkpoint stands for it.
struct Proof {
    seq: u64,
    /// The checksum of its header.
    crc: u32,
    /// Whether it stands in the log, or the next one is chained to it.
    found: bool,
}

enum Phase {
    Walk,
    Scan(Box<Scan>, Header),
    Settle(Settle),
    Done,
}

/// A place that was passed and not replayed yet.
enum Waiting {
    Batch(BatchHeader),
    Gap(Gap),
}

/// A batch (or several) that can not be read.
struct Gap {
    /// The sequence number that was expected.
    seq: u64,
    /// What its records were, if the next batch says so.
    summaries: Option<Vec<GroupSummary>>,
}

/// Entries of a group that were lost.
struct Lost {
    damage: Damage,
    /// The highest term that the group's log is known to have had behind the first of them.
    term: Term,
}

/// Where the verification of the waiting batches stands.
#[derive(Default)]
struct Settle {
    ordinal: u32,
    /// Blocks of the record's payload that were verified.
    blocks: u32,
    /// Whether the place behind the last batch could not be read.
    unreadable_end: bool,
}

/// What a recovered log looks like.
pub struct Recovered {
    /// Where it goes on.
    pub tail: Tail,
    /// Where the last batch stands; nothing if there is none, or if it is lost.
    pub last: Option<ChainPlace>,
    /// The highest durable mark that it carries.
    pub mark: u64,
    /// The last batch that holds records.
    pub last_with_records: u64,
    /// The highest boot generation in it.
    pub boot: u64,
    /// What was found.
    pub report: OpenReport,
    /// The segments in use, that of the tail included.
    pub segments: Segments,
}

/// Whether recovery can go on at once.
enum Step {
    Again,
    Wait,
}

impl Recovery {
    /// Starts at the first segment, or where a checkpoint says. `proven` is a batch that was durable,
    /// number and checksum: the log is damaged if it does not hold it.
    pub fn new(
        config: &ShardConfig,
        geometry: Geometry,
        window: Window,
        start: Option<&Start>,
        proven: Option<(u64, u32)>,
    ) -> Recovery {
        let (mut tail, mut boot) = (Tail::start(), 0);
        let mut segments = Segments::new(geometry.segments);
        if let Some(Start { from, segments: used, copies, .. }) = start {
            used.iter().for_each(|used| segments.note(used.segment.0, used.seq));
            copies.iter().for_each(|used| segments.note_copies(used.segment.0, used.seq, false));
            tail = Tail {
                segment: from.segment,
                segment_seq: from.segment_seq,
                block: from.block,
                seq: from.seq,
                crc: from.previous_crc,
                ..Tail::start()
            };
            boot = from.boot;
        }
        segments.note(tail.segment, tail.segment_seq);
        Recovery {
            config: config.clone(),
            geometry,
            window,
            phase: Phase::Walk,
            last_with_records: tail.seq - 1,
            tail,
            boot,
            boot_highest: boot,
            chain_open: false,
            mark: 0,
            mark_boot: 0,
            waiting: VecDeque::new(),
            last_summaries: Some(Vec::new()),
            last: None,
            damages: BTreeMap::new(),
            unknown: None,
            report: OpenReport::default(),
            start: start.cloned(),
            proof: proven
                .filter(|_| !config.planted.is(Bug::CheckpointBeyondLog))
                .map(|(seq, crc)| Proof { seq, crc, found: false }),
            segments,
            damaged_heads: Vec::new(),
            refused: None,
            doubted: None,
        }
    }

    /// A read ended.
    pub fn read_done(&mut self, number: u64, done: basalt_wire::io::DiskDone) {
        self.window.done(number, done);
    }

    /// Goes on until a read is needed or everything is known: the log, or why it can not be recovered
    /// from where it began.
    pub fn advance(
        &mut self,
        out: &mut Vec<DiskOp>,
        events: &mut Vec<LogEvent>,
    ) -> Option<Result<Recovered, String>> {
        loop {
            if let Some(reason) = self.refused.take() {
                return Some(Err(reason));
            }
            let step = match &mut self.phase {
                Phase::Walk => self.walk(out, events),
                Phase::Scan(..) => self.scan(out, events),
                Phase::Settle(_) => self.settle(out, events),
                Phase::Done => return Some(self.check_proof().map(|()| self.finish(events))),
            };
            if matches!(step, Step::Wait) {
                return None;
            }
        }
    }

    /// Looks at the place where the next batch is expected.
    fn walk(&mut self, out: &mut Vec<DiskOp>, events: &mut Vec<LogEvent>) -> Step {
        let (segment, block) = (self.tail.segment, self.tail.block);
        if block >= self.geometry.segment_blocks {
            // A closing batch always has room, so nothing can follow a full segment.
            self.begin_scan(Header::Blank);
            return Step::Again;
        }
        match read_header(&mut self.window, &self.geometry, segment, block, out) {
            HeaderView::Pending => Step::Wait,
            HeaderView::Unreadable => {
                self.begin_scan(Header::Unreadable);
                Step::Again
            }
            HeaderView::Bad(_) if self.doubts((segment, block)) => Step::Again,
            HeaderView::Bad(error) => {
                self.begin_scan(classify(error));
                Step::Again
            }
            HeaderView::Good(header) if self.is_next(&header) => {
                self.accept(header, events);
                Step::Again
            }
            HeaderView::Good(_) if self.doubts((segment, block)) => Step::Again,
            HeaderView::Good(_) => {
                mark!("log.stale_header");
                self.begin_scan(Header::Stale);
                Step::Again
            }
        }
    }

    /// Whether what was read of a place is still to be doubted: a device may give something else once. What
    /// decides that the log ends is read twice, for the last batch may hold a vote that was given.
    fn doubts(&mut self, place: (u32, u32)) -> bool {
        if self.doubted.replace(place) == Some(place) {
            return false;
        }
        self.window.read_anew();
        true
    }

    /// Whether a valid header is that of the batch expected at the tail.
    fn is_next(&self, header: &BatchHeader) -> bool {
        let f = &header.fields;
        if self.config.planted.is(Bug::StaleSegmentAccepted) && f.block == 0 && self.tail.seq > 1 {
            return true;
        }
        if f.device != self.geometry.device || f.seq != self.tail.seq || header.holds_copies() {
            return false;
        }
        if self.config.planted.is(Bug::ChainUnchecked) {
            return true;
        }
        f.segment_seq == self.tail.segment_seq
            && f.boot >= self.boot
            && (f.previous_crc == self.tail.crc || self.chain_open)
    }

    fn accept(&mut self, header: BatchHeader, events: &mut Vec<LogEvent>) {
        let fields = header.fields;
        if let Some(proof) = self.proof.as_mut().filter(|proof| proof.seq == fields.seq) {
            proof.found = proof.crc == header.crc;
        }
        let tells = fields.flags & FLAG_PREDECESSOR_LOST == 0;
        if let Some(Waiting::Gap(gap)) = self.waiting.back_mut()
            && tells
            && gap.seq + 1 == fields.seq
        {
            gap.summaries = Some(header.summaries.clone());
            if let Some(proof) = self.proof.as_mut().filter(|proof| proof.seq == gap.seq) {
                // What it is chained to tells that the lost batch was that one.
                proof.found = proof.crc == fields.previous_crc;
            }
        }
        if fields.boot > self.mark_boot {
            // This generation uses the numbers from here on anew: older marks do not speak of them.
            self.mark = self.mark.min(fields.seq - 1);
        }
        self.raise_mark(fields.durable, fields.boot);
        self.boot = fields.boot;
        self.boot_highest = self.boot_highest.max(fields.boot);
        self.chain_open = false;
        self.tail = Tail { summaries: Vec::new(), ..Tail::after(&header) };
        self.waiting.push_back(Waiting::Batch(header));
        self.release(events);
        self.visit();
    }

    fn raise_mark(&mut self, mark: u64, boot: u64) {
        if mark > self.mark {
            (self.mark, self.mark_boot) = (mark, boot);
        }
    }

    /// Notes the segment where the log goes on.
    fn visit(&mut self) {
        let Tail { segment, segment_seq, .. } = self.tail;
        match self.segments.use_of(segment) {
            Some(seq) if seq == segment_seq && !self.segments.holds_copies(segment) => {}
            Some(seq) => self.contradict(segment, seq),
            None => self.segments.note(segment, segment_seq),
        }
        self.check_uses(segment_seq);
    }

    /// The checkpoint is older than a use of a segment that it needs, or there is none and a segment was used twice.
    fn contradict(&mut self, segment: u32, seq: u64) {
        mark!("log.segment_contradicts");
        if self.start.is_none() {
            let text =
                format!("what stood in segment {segment} in its use {seq} was written over later");
            return self.refuse_without_checkpoint(text);
        }
        self.refused = Some(format!(
            "it needs what stood in segment {segment} in its use {seq}, and the log used that segment \
             again"
        ));
    }

    /// Without a checkpoint everything must be here that was ever written. The first use of each segment
    /// is in order; a higher use than there are segments means that one was used again.
    fn check_uses(&mut self, highest: u64) {
        let segments = u64::from(self.geometry.segments);
        if self.start.is_none() && highest > segments {
            mark!("log.recycled_without_checkpoint");
            let text =
                format!("the {segments} segments of the device were used {highest} times in all");
            self.refuse_without_checkpoint(text);
        }
    }

    /// A copy segment is begun only behind a durable checkpoint, and may stand where the log stood before.
    fn check_copies(&mut self, seen: bool) {
        if self.start.is_none() && seen {
            mark!("log.copies_without_checkpoint");
            let text = "blocks were copied to segments that were free, where the log may have stood before";
            self.refuse_without_checkpoint(text.into());
        }
    }

    fn refuse_without_checkpoint(&mut self, why: String) {
        self.refused.get_or_insert(format!(
            "{why}, so that only a checkpoint tells what stands there, and none can be used; what this \
             shard held must be rebuilt from its peers; nothing was changed on the device"
        ));
    }

    /// Whether a batch of this number had been durable.
    fn is_covered(&self, seq: u64) -> bool {
        seq <= self.mark.max(self.proof.as_ref().map_or(0, |proof| proof.seq))
    }

    /// Replays what the durable mark covers.
    fn release(&mut self, events: &mut Vec<LogEvent>) {
        while let Some(front) = self.waiting.front() {
            let seq = match front {
                Waiting::Batch(header) => header.fields.seq,
                Waiting::Gap(gap) => gap.seq,
            };
            if !self.is_covered(seq) {
                break;
            }
            self.replay_front(events);
        }
    }

    fn replay_front(&mut self, events: &mut Vec<LogEvent>) {
        match self.waiting.pop_front() {
            Some(Waiting::Batch(header)) => self.replay(&header, events),
            Some(Waiting::Gap(gap)) => self.lose(gap, events),
            None => {}
        }
    }

    /// Searches what lies behind the tail for valid batches.
    fn begin_scan(&mut self, header: Header) {
        let scan = Scan::behind(&self.tail, self.boot, &self.segments, self.start.is_some());
        self.phase = Phase::Scan(Box::new(scan), header);
    }

    fn scan(&mut self, out: &mut Vec<DiskOp>, events: &mut Vec<LogEvent>) -> Step {
        let Phase::Scan(scan, header) = &mut self.phase else { return Step::Again };
        if !scan.advance(&mut self.window, &self.geometry, out) {
            return Step::Wait;
        }
        let (header, next) = (*header, scan.next());
        let (highest_use, highest_boot) = (scan.highest_use(), scan.highest_boot());
        let reused = scan.reused();
        let copies = scan.saw_copies();
        self.damaged_heads.extend(scan.damaged());
        let (mark, mark_boot) = scan.highest_mark();
        self.raise_mark(mark, mark_boot);
        self.boot_highest = self.boot_highest.max(highest_boot);
        self.check_uses(highest_use);
        self.check_copies(copies);
        if let Some((segment, seq)) = reused {
            self.contradict(segment, seq);
            return Step::Again;
        }
        let seq = self.tail.seq;
        if let Some(next) = next
            && next.seq == seq
        {
            // An opening before this one could not read this place and left it; now it can be read.
            self.resume(next.place, next.segment_seq, seq);
            return Step::Again;
        }
        let covered = self.is_covered(seq);
        if covered && next.is_none() {
            // What proved it was read before and is not given any more, or only a checkpoint proves it:
            // nothing can be said of the rest.
            mark!("log.proof_vanished");
            self.phase = Phase::Settle(Settle { unreadable_end: true, ..Settle::default() });
            self.release(events);
            return Step::Again;
        }
        let facts = Facts { header, payload: Payload::NotRead, covered, later: next.is_some() };
        let mut verdict = decide(facts);
        if self.config.planted.is(Bug::CutOnChecksumError) && verdict == Verdict::Damage {
            verdict = Verdict::TornTail;
        }
        match (verdict, next) {
            (Verdict::Damage, Some(next)) => {
                mark!("log.damage_header");
                self.waiting.push_back(Waiting::Gap(Gap { seq, summaries: None }));
                self.resume(next.place, next.segment_seq, next.seq);
            }
            (Verdict::TornTail, _) => {
                mark!("log.torn_tail");
                self.report.torn += 1;
                self.phase = Phase::Settle(Settle::default());
            }
            (Verdict::DamagedTail, _) => {
                mark!("log.damaged_tail");
                self.phase = Phase::Settle(Settle { unreadable_end: true, ..Settle::default() });
            }
            (verdict, _) => {
                assert_eq!(verdict, Verdict::End, "{facts:?}");
                self.phase = Phase::Settle(Settle::default());
            }
        }
        // The mark may have risen. A gap waits for its successor, which says what is lost.
        if matches!(self.phase, Phase::Settle(_)) {
            self.release(events);
        }
        Step::Again
    }

    /// Goes on with a batch behind a lost one.
    fn resume(&mut self, (segment, block): (u32, u32), segment_seq: u64, seq: u64) {
        self.tail = Tail { segment, segment_seq, block, seq, ..Tail::start() };
        self.chain_open = true;
        self.window.go_back();
        self.phase = Phase::Walk;
        self.visit();
    }

    /// Verifies the waiting batches; the first torn one ends the log.
    fn settle(&mut self, out: &mut Vec<DiskOp>, events: &mut Vec<LogEvent>) -> Step {
        let Phase::Settle(settle) = &mut self.phase else { return Step::Again };
        let header = match self.waiting.front() {
            Some(Waiting::Batch(header)) => header,
            Some(Waiting::Gap(_)) => {
                self.replay_front(events);
                return Step::Again;
            }
            None => {
                if settle.unreadable_end {
                    self.leave_unreadable_end(events);
                }
                self.phase = Phase::Done;
                return Step::Again;
            }
        };
        let mut facts =
            Facts { header: Header::Good, payload: Payload::NotRead, covered: false, later: false };
        if self.config.planted.is(Bug::TornTailAccepted) {
            facts.payload = Payload::Good;
        }
        if decide(facts) == Verdict::ReadPayload {
            match verify(&mut self.window, &self.geometry, header, settle, out) {
                None => return Step::Wait,
                Some(payload) => facts.payload = payload,
            }
        }
        settle.ordinal = 0;
        settle.blocks = 0;
        let first = header.fields;
        if facts.payload == Payload::Bad && self.doubts((first.segment, first.block)) {
            return Step::Again;
        }
        match decide(facts) {
            Verdict::TornTail => {
                mark!("log.torn_payload");
                self.report.torn += self.waiting.len() as u64;
                self.waiting.clear();
                self.tail.segment = first.segment;
                self.tail.segment_seq = first.segment_seq;
                self.tail.block = first.block;
                self.tail.seq = first.seq;
                self.tail.crc = first.previous_crc;
                self.phase = Phase::Done;
            }
            _ => self.replay_front(events),
        }
        Step::Again
    }

    /// The place behind the last batch can not be read, so it can not be said that nothing stood
    /// there. It is left as it is, counted as one lost batch, and the log goes on in another segment.
    fn leave_unreadable_end(&mut self, events: &mut Vec<LogEvent>) {
        let seq = self.tail.seq;
        self.lose(Gap { seq, summaries: None }, events);
        self.last_with_records = seq;
        let Some(next) = self.segments.next_free(self.tail.segment) else {
            let reason = "the end of the log can not be read, and no segment is free to go on in";
            self.refused = Some(reason.into());
            return;
        };
        self.segments.note(next, self.tail.segment_seq + 1);
        self.tail = Tail {
            segment: next,
            segment_seq: self.tail.segment_seq + 1,
            seq: seq + 1,
            predecessor_lost: true,
            ..Tail::start()
        };
    }
}

impl Recovery {
    /// Hands out the records of a batch.
    fn replay(&mut self, header: &BatchHeader, events: &mut Vec<LogEvent>) {
        let f = &header.fields;
        let segment = SegmentId(f.segment);
        let payload_at = f.block + header.header_blocks();
        for (ordinal, record) in header.records().enumerate() {
            let data_at = DataLocation { segment, block: f.block, record: ordinal as u16 };
            let (record, block, blocks) = match record {
                Descriptor::Entry {
                    group,
                    term,
                    index,
                    kind,
                    payload_block,
                    payload_blocks,
                    data,
                } => {
                    self.replaced(group, index, term);
                    let payload = basalt_wire::buffer::Payload::empty();
                    let record = Record::Entry { group, term, index, kind, data, payload };
                    (record, payload_at + payload_block, payload_blocks)
                }
                Descriptor::HardState { group, state } => {
                    let record = Record::HardState { group, state: hard_state(&state) };
                    (record, payload_at, 0)
                }
                Descriptor::Moved { group, payload_block, payload_blocks, data } => {
                    let payload = basalt_wire::buffer::Payload::empty();
                    let record = Record::Moved { group, data, payload };
                    (record, payload_at + payload_block, payload_blocks)
                }
            };
            let location = Location { segment, block };
            events.push(LogEvent::Replayed { record, location, blocks, data_at });
        }
        self.report.batches += 1;
        self.report.bytes += u64::from(header.blocks()) * BLOCK_BYTES as u64;
        if header.record_count() > 0 {
            self.last_with_records = f.seq;
        }
        self.last_summaries = Some(summaries_of(header));
        let place = ChainPlace {
            segment: f.segment,
            segment_seq: f.segment_seq,
            block: f.block,
            seq: f.seq,
            previous_crc: f.previous_crc,
            boot: f.boot,
        };
        if place.block == 0 && self.segments.use_of(place.segment) == Some(place.segment_seq) {
            self.segments.begin(place);
        }
        self.last = Some(place);
    }

    /// An entry at or before the first lost one replaces everything from there on. If its term is
    /// higher, a leader has overruled what was lost, and the loss is void. If not, the replica was
    /// getting back what it lost, of which the rest is still lost.
    fn replaced(&mut self, group: GroupId, index: LogIndex, term: Term) {
        let Some(Lost { damage, term: lost }) = self.damages.get_mut(&group) else { return };
        if damage.first_lost.is_none_or(|first| index > first) {
            damage.last_known = damage.last_known.max(index);
            *lost = term.max(*lost);
            return;
        }
        damage.first_lost = Some(LogIndex(index.0 + 1));
        if term > *lost || index >= damage.last_known {
            mark!("log.damage_replaced");
            self.damages.remove(&group);
        }
    }

    /// Notes what was lost with a batch. Its hard states are known from its successor's summary.
    fn lose(&mut self, gap: Gap, events: &mut Vec<LogEvent>) {
        self.last_with_records = gap.seq;
        self.last = None;
        let Some(summaries) = gap.summaries else {
            let text = format!("batch {} of the log can not be read, nor what it held", gap.seq);
            self.unknown.get_or_insert(Damage {
                group: None,
                first_lost: None,
                last_known: LogIndex(0),
                vote_lost: true,
                text,
            });
            self.last_summaries = None;
            return;
        };
        for summary in &summaries {
            let group = summary.group;
            if let Some(state) = summary.hard_state {
                mark!("log.hard_state_from_summary");
                events.push(LogEvent::Replayed {
                    record: Record::HardState { group, state: hard_state(&state) },
                    location: Location::default(),
                    blocks: 0,
                    data_at: DataLocation::default(),
                });
            }
            if let Some(entries) = summary.entries {
                self.lose_entries(group, gap.seq, entries);
            }
        }
        self.last_summaries = Some(summaries);
    }

    fn lose_entries(&mut self, group: GroupId, seq: u64, lost: EntryRange) {
        let EntryRange { first, last, term } = lost;
        let text = format!(
            "batch {seq} of the log can not be read: entries {first} to {last} of group {group}"
        );
        let Lost { damage, term: known } = self.damages.entry(group).or_insert(Lost {
            damage: Damage {
                group: Some(group),
                first_lost: Some(first),
                last_known: last,
                vote_lost: false,
                text,
            },
            term,
        });
        damage.first_lost = damage.first_lost.map(|known| known.min(first));
        damage.last_known = damage.last_known.max(last);
        *known = term.max(*known);
    }

    /// Judges the batch that a checkpoint proves to have been durable. If the log does not hold it, a
    /// checkpoint can not be used; and whatever else it lacks, votes among it, nobody can tell.
    fn check_proof(&mut self) -> Result<(), String> {
        let Some(proof) = self.proof.as_ref().filter(|proof| !proof.found) else { return Ok(()) };
        let (seq, end) = (proof.seq, self.tail.seq);
        let lacks = format!(
            "it stands for batch {seq}, which the log does not hold (it ends before batch {end}): the \
             device has lost writes that were durable, or is an older image of itself"
        );
        if self.start.is_some() {
            return Err(lacks);
        }
        mark!("log.proven_batch_lost");
        self.unknown.get_or_insert(Damage {
            group: None,
            first_lost: None,
            last_known: LogIndex(0),
            vote_lost: true,
            text: format!("of its checkpoint: {lacks}"),
        });
        Ok(())
    }

    fn finish(&mut self, events: &mut Vec<LogEvent>) -> Recovered {
        self.settle_segments();
        let known = std::mem::take(&mut self.damages).into_values().map(|lost| lost.damage);
        let damages = self.unknown.take().into_iter().chain(known);
        events.extend(damages.map(LogEvent::Damaged));
        let summaries = self.last_summaries.take();
        let predecessor_lost = self.tail.predecessor_lost || summaries.is_none();
        let summaries = summaries.unwrap_or_default();
        let tail = Tail { predecessor_lost, summaries, ..self.tail.clone() };
        Recovered {
            tail,
            last: self.last,
            mark: self.mark,
            last_with_records: self.last_with_records,
            boot: self.boot_highest,
            report: self.report.clone(),
            segments: self.segments.clone(),
        }
    }

    fn settle_segments(&mut self) {
        let first = self.start.as_ref().map(|start| start.from.segment_seq);
        let damaged = std::mem::take(&mut self.damaged_heads);
        self.segments = self.segments.settled(&self.tail, first, damaged);
    }
}

fn hard_state(state: &HardStateFields) -> HardState {
    HardState { term: state.term, vote: state.vote, commit: state.commit }
}

fn classify(error: DiskFormatError) -> Header {
    match error {
        DiskFormatError::Blank => Header::Blank,
        DiskFormatError::Foreign => Header::Stale,
        _ => Header::Damaged,
    }
}

/// Verifies the payload of a batch against the checksums in its data, piece by piece; nothing
/// if a read must end first.
fn verify(
    window: &mut Window,
    geometry: &Geometry,
    header: &BatchHeader,
    settle: &mut Settle,
    out: &mut Vec<DiskOp>,
) -> Option<Payload> {
    while let Some(record) = header.record(settle.ordinal) {
        if let Some((payload_block, payload_blocks)) = record.payload()
            && settle.blocks < payload_blocks
        {
            let checksums = record.payload_checksums();
            if checksums.len() != payload_blocks as usize {
                // The header is whole, so this is what was appended: it says nothing of its payload,
                // and nothing can be verified.
                settle.blocks = payload_blocks;
                continue;
            }
            let start = header.fields.block + header.header_blocks() + payload_block;
            let count = (payload_blocks - settle.blocks).min(VERIFY_BLOCKS);
            let range = (header.fields.segment, start + settle.blocks, count);
            let content = match window.view(geometry, range, out) {
                View::Pending => return None,
                View::Unreadable => return Some(Payload::Unreadable),
                View::Have(content) => content,
            };
            let expected = &checksums[settle.blocks as usize..];
            let good = content.chunks(BLOCK_BYTES).zip(expected).all(|(b, c)| crc32c(b) == *c);
            if !good {
                return Some(Payload::Bad);
            }
            settle.blocks += count;
            continue;
        }
        settle.ordinal += 1;
        settle.blocks = 0;
    }
    Some(Payload::Good)
}
