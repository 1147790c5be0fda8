//! Appending: records are queued, put together into batches, and written as one device write each.
//!
//! Invariants:
//!
//! * batches are numbered without a gap and each carries the checksum of its predecessor's header;
//! * a batch counts as durable when its write ended and every earlier batch counts as durable;
//! * behind each batch its segment has room for the closing batch that summarises it;
//! * after a failed write nothing becomes durable any more.

use super::copies::{Around, Copied, Copies, CopiesWritten};
use super::place::{Geometry, Tail};
use super::recovery::Recovered;
use super::segments::Segments;
use super::{DataLocation, HardState, Location, LogCounts, LogEvent, Record, RecordSeq};
use crate::config::ShardConfig;
use crate::mark;
use crate::planted::{Bug, Planted};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::{IoBuf, Payload};
use basalt_wire::disk::batch::{
    self, BatchFields, Descriptor, FLAG_CLOSING, FLAG_PREDECESSOR_LOST, FLAG_SEAL, GroupSummary,
    HEADER_BYTES_MAX, HardStateFields, RECORDS_MAX,
};
use basalt_wire::disk::blocks_of;
use basalt_wire::disk::checkpoint::ChainPlace;
use basalt_wire::ids::{GroupId, SegmentId};
use basalt_wire::io::{DiskError, DiskOp, DiskOpKind};
use bytes::Bytes;
use std::collections::VecDeque;

/// The most batches in flight, whatever the configuration asks for.
const IN_FLIGHT_MAX: usize = 64;

/// Appends at the end of an opened log.
pub struct Writer {
    geometry: Geometry,
    tail: Tail,
    segments: Segments,
    copies: Copies,
    boot: u64,
    /// The highest batch known durable.
    durable: u64,
    durable_crc: u32,
    /// Its place, if it is known.
    durable_at: Option<ChainPlace>,
    /// The highest durable mark that a batch carries.
    mark_written: u64,
    /// The last batch that holds records.
    last_with_records: u64,
    queue: VecDeque<Record>,
    queued_bytes: usize,
    /// The number of the record that was placed last.
    placed: u64,
    in_flight: VecDeque<InFlight>,
    in_flight_max: usize,
    gather_bytes: usize,
    batch_bytes: usize,
    reserved: u32,
    group_count: usize,
    write_durably: bool,
    planted: Planted,
    failed: bool,
    counts: LogCounts,
    /// Whether a record waits for which there is no room.
    full: bool,
    /// Scratch, kept between batches.
    descriptors: Vec<Descriptor<Bytes>>,
    groups: Vec<GroupId>,
    payload_blocks: Vec<u32>,
}

struct InFlight {
    seq: u64,
    last_record: u64,
    done: bool,
    crc: u32,
    place: ChainPlace,
}

/// What the next batch will hold.
struct Plan {
    records: usize,
    header_blocks: u32,
    payload_blocks: u32,
}

impl Writer {
    /// Goes on behind what recovery found, all of which is durable.
    pub fn new(
        config: &ShardConfig,
        geometry: Geometry,
        mut found: Recovered,
        boot: u64,
    ) -> Writer {
        found.segments.forget(found.tail.segment_seq);
        Writer {
            geometry,
            boot,
            durable: found.tail.seq - 1,
            durable_crc: found.tail.crc,
            durable_at: found.last,
            mark_written: found.mark,
            last_with_records: found.last_with_records,
            tail: found.tail,
            segments: found.segments,
            copies: Copies::default(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            placed: 0,
            in_flight: VecDeque::new(),
            in_flight_max: config.limits.batches_in_flight.clamp(1, IN_FLIGHT_MAX),
            gather_bytes: config.limits.gather_bytes,
            batch_bytes: config.limits.batch_bytes,
            reserved: config.limits.segments_reserved,
            group_count: config.groups.len() + 1,
            write_durably: config.volatile_cache && !config.planted.is(Bug::NoFlush),
            planted: config.planted,
            failed: false,
            counts: LogCounts::default(),
            full: false,
            descriptors: Vec::new(),
            groups: Vec::new(),
            payload_blocks: Vec::new(),
        }
    }

    /// How the device is cut up.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Where the next batch goes.
    pub fn end(&self) -> ChainPlace {
        let tail = &self.tail;
        ChainPlace {
            segment: tail.segment,
            segment_seq: tail.segment_seq,
            block: tail.block,
            seq: tail.seq,
            previous_crc: tail.crc,
            boot: self.boot,
        }
    }

    /// The highest batch known durable, and the checksum of its header.
    pub fn durable_batch(&self) -> (u64, u32) {
        (self.durable, self.durable_crc)
    }

    /// The place of the highest batch known durable; nothing if there is none, or if it is lost.
    pub fn durable_place(&self) -> Option<ChainPlace> {
        self.durable_at
    }

    /// Queues a record.
    pub fn append(&mut self, record: Record) -> RecordSeq {
        assert!(self.fits(&record), "a record that fits no segment, or half a block of payload");
        let (data, payload) = sizes(&record);
        self.queued_bytes += data + payload;
        self.queue.push_back(record);
        RecordSeq(self.placed + self.queue.len() as u64)
    }

    /// Whether a record can be appended at all: it fits a fresh segment, and a header.
    pub fn fits(&self, record: &Record) -> bool {
        let (data, payload) = sizes(record);
        let header = batch::header_bytes(self.group_count, 1, data);
        let blocks = u64::from(self.record_blocks(data)) + (payload / BLOCK_BYTES) as u64;
        payload.is_multiple_of(BLOCK_BYTES)
            && header <= HEADER_BYTES_MAX
            && blocks <= u64::from(self.geometry.segment_blocks)
    }

    /// Header and closing batch of a record alone in a fresh segment.
    fn record_blocks(&self, data_bytes: usize) -> u32 {
        blocks_of(batch::header_bytes(self.group_count, 1, data_bytes))
            + blocks_of(batch::header_bytes(1, 0, 0))
    }

    /// What was written since the log was opened.
    pub fn counts(&self) -> LogCounts {
        self.counts
    }

    /// Bytes queued and not yet part of a batch.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Whether a batch is being written.
    pub fn is_writing(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Starts as many batches as may be in flight. Beside another one a batch is started only when
    /// enough is queued for it: the fixed cost of a device write is that of copying some ten blocks.
    pub fn flush(&mut self, out: &mut Vec<DiskOp>, events: &mut Vec<LogEvent>) {
        if self.full && self.segments_free() > 0 {
            mark!("log.room_again");
            self.full = false;
            events.push(LogEvent::Room);
        }
        let stopped = self.failed || self.full;
        while !stopped && !self.queue.is_empty() && self.takes_batch() {
            match (self.plan(), self.segments.next_free(self.tail.segment)) {
                (Some(plan), _) => self.start_batch(&plan, out, events),
                (None, None) => {
                    // What was written before becomes durable as ever.
                    mark!("log.full");
                    self.full = true;
                    events.push(LogEvent::Full);
                    break;
                }
                (None, Some(next)) => self.close_segment(next, out, events),
            }
        }
    }

    /// Whether another batch may be started.
    fn takes_batch(&self) -> bool {
        let enough = !self.is_writing() || self.queued_bytes >= self.gather_bytes;
        enough && self.in_flight.len() < self.in_flight_max
    }

    /// As many queued records as one batch and the segment hold; nothing if the segment must be
    /// closed first.
    fn plan(&mut self) -> Option<Plan> {
        let room = self.geometry.segment_blocks - self.tail.block;
        let summaries = self.tail.summaries.len();
        let (mut bytes, mut data_bytes, mut payload_blocks) = (0, 0, 0u32);
        let mut plan = None;
        self.groups.clear();
        for (n, record) in self.queue.iter().enumerate() {
            let (data, payload) = sizes(record);
            let group = record.group();
            if !self.groups.contains(&group) {
                self.groups.push(group);
            }
            data_bytes += data;
            bytes += data + payload;
            payload_blocks += blocks_of(payload);
            let header = batch::header_bytes(summaries, n + 1, data_bytes);
            let header_blocks = blocks_of(header);
            let closing_blocks = blocks_of(batch::header_bytes(self.groups.len(), 0, 0));
            let fits = header <= HEADER_BYTES_MAX
                && n < RECORDS_MAX
                && header_blocks + payload_blocks + closing_blocks <= room;
            if !fits || (n > 0 && bytes > self.batch_bytes) {
                break;
            }
            plan = Some(Plan { records: n + 1, header_blocks, payload_blocks });
        }
        plan
    }

    fn start_batch(&mut self, plan: &Plan, out: &mut Vec<DiskOp>, events: &mut Vec<LogEvent>) {
        let header_len = plan.header_blocks as usize * BLOCK_BYTES;
        let mut buf = IoBuf::alloc(header_len + plan.payload_blocks as usize * BLOCK_BYTES);
        let (mut payload_at, mut payload_block) = (header_len, 0);
        let mut descriptors = std::mem::take(&mut self.descriptors);
        for _ in 0..plan.records {
            let Some(record) = self.queue.pop_front() else { break };
            let (data, payload) = sizes(&record);
            self.queued_bytes -= data + payload;
            self.placed += 1;
            let (descriptor, payload) = describe(record, payload_block);
            payload.copy_to(&mut buf[payload_at..payload_at + payload.len()]);
            payload_at += payload.len();
            payload_block += blocks_of(payload.len());
            self.payload_blocks.push(blocks_of(payload.len()));
            descriptors.push(descriptor);
        }
        assert_eq!(payload_block, plan.payload_blocks, "payload differs from what was planned");
        let fields = self.fields(0, plan.payload_blocks, 0);
        let header = &mut buf[..header_len];
        let crc = batch::encode(&fields, &self.tail.summaries, &descriptors, header);
        self.tail.summaries.clear();
        for descriptor in &descriptors {
            batch::summarise(&mut self.tail.summaries, descriptor);
        }
        descriptors.clear();
        self.descriptors = descriptors;
        self.last_with_records = fields.seq;
        self.counts.records += plan.records as u64;
        self.counts.payload_blocks += u64::from(plan.payload_blocks);
        let data = buf.freeze();
        self.tell_places(plan, &data, events);
        self.tail.block += plan.header_blocks + plan.payload_blocks;
        self.submit(&fields, crc, data, out, events);
    }

    /// Tells where the records of the batch at the tail stand, on the device and in memory.
    fn tell_places(&mut self, plan: &Plan, data: &Bytes, events: &mut Vec<LogEvent>) {
        let (segment, first) = (SegmentId(self.tail.segment), self.tail.block);
        let (mut seq, mut at) = (self.placed - plan.records as u64, plan.header_blocks);
        for (ordinal, blocks) in self.payload_blocks.drain(..).enumerate() {
            seq += 1;
            let bytes = at as usize * BLOCK_BYTES..(at + blocks) as usize * BLOCK_BYTES;
            events.push(LogEvent::Placed {
                seq: RecordSeq(seq),
                location: Location { segment, block: first + at },
                data_at: DataLocation { segment, block: first, record: ordinal as u16 },
                payload: data.slice(bytes),
            });
            at += blocks;
        }
    }

    /// Writes a batch without records: it closes the segment or seals the log.
    fn write_empty(
        &mut self,
        fields: &BatchFields,
        out: &mut Vec<DiskOp>,
        events: &mut Vec<LogEvent>,
    ) {
        let blocks = blocks_of(batch::header_bytes(self.tail.summaries.len(), 0, 0));
        let mut buf = IoBuf::alloc(blocks as usize * BLOCK_BYTES);
        let crc = batch::encode::<Bytes>(fields, &self.tail.summaries, &[], &mut buf);
        self.tail.summaries.clear();
        self.tail.block += blocks;
        assert!(self.tail.block <= self.geometry.segment_blocks, "no room for a closing batch");
        self.submit(fields, crc, buf.freeze(), out, events);
    }

    fn close_segment(&mut self, next: u32, out: &mut Vec<DiskOp>, events: &mut Vec<LogEvent>) {
        mark!("log.segment_roll");
        let fields = self.fields(FLAG_CLOSING, 0, next);
        self.write_empty(&fields, out, events);
        self.tail.segment = next;
        self.tail.segment_seq += 1;
        self.tail.block = 0;
        self.segments.note(next, self.tail.segment_seq);
    }

    fn fields(&self, flags: u16, payload_blocks: u32, next_segment: u32) -> BatchFields {
        let lost = if self.tail.predecessor_lost { FLAG_PREDECESSOR_LOST } else { 0 };
        BatchFields {
            flags: flags | lost,
            device: self.geometry.device,
            segment_seq: self.tail.segment_seq,
            segment: self.tail.segment,
            block: self.tail.block,
            seq: self.tail.seq,
            boot: self.boot,
            previous_crc: self.tail.crc,
            payload_blocks,
            durable: self.durable,
            next_segment,
        }
    }

    fn submit(
        &mut self,
        fields: &BatchFields,
        crc: u32,
        data: Bytes,
        out: &mut Vec<DiskOp>,
        events: &mut Vec<LogEvent>,
    ) {
        self.counts.batches += 1;
        self.counts.bytes += data.len() as u64;
        out.push(DiskOp {
            token: super::token(super::TOKEN_BATCH, fields.seq),
            kind: DiskOpKind::Write {
                offset: self.geometry.offset(fields.segment, fields.block),
                data,
                durable: self.write_durably,
            },
        });
        self.mark_written = fields.durable;
        self.tail.seq += 1;
        self.tail.crc = crc;
        self.tail.predecessor_lost = false;
        let place = ChainPlace {
            segment: fields.segment,
            segment_seq: fields.segment_seq,
            block: fields.block,
            seq: fields.seq,
            previous_crc: fields.previous_crc,
            boot: fields.boot,
        };
        if place.block == 0 {
            self.segments.begin(place);
        }
        let last_record = self.placed;
        self.in_flight.push_back(InFlight {
            seq: fields.seq,
            last_record,
            done: false,
            crc,
            place,
        });
        if self.planted.is(Bug::AckBeforeDurable) {
            events.push(LogEvent::Durable(RecordSeq(self.placed)));
        }
    }

    /// A batch's write ended.
    pub fn written(&mut self, seq: u64, result: Result<(), DiskError>, events: &mut Vec<LogEvent>) {
        if self.failed {
            return;
        }
        if let Err(error) = result
            && !self.planted.is(Bug::WriteErrorIgnored)
        {
            self.fail(&format!("writing batch {seq} of the log failed: {error}"), events);
            return;
        }
        let Some(batch) = self.in_flight.iter_mut().find(|b| b.seq == seq) else { return };
        batch.done = true;
        if self.planted.is(Bug::DurableOutOfOrder) {
            events.push(LogEvent::Durable(RecordSeq(batch.last_record)));
        }
        let before = self.durable;
        let mut last_record = 0;
        while let Some(batch) = self.in_flight.pop_front_if(|b| b.done) {
            (self.durable, self.durable_crc) = (batch.seq, batch.crc);
            self.durable_at = Some(batch.place);
            last_record = batch.last_record;
        }
        if self.durable > before && last_record > 0 {
            events.push(LogEvent::Durable(RecordSeq(last_record)));
        }
    }

    fn fail(&mut self, reason: &str, events: &mut Vec<LogEvent>) {
        mark!("log.suspect");
        self.failed = true;
        events.push(LogEvent::Suspect(reason.to_string()));
    }

    /// Whether the log is idle and its last records are not covered by a durable mark yet.
    pub fn wants_seal(&self) -> bool {
        self.is_idle() && self.last_with_records > self.mark_written
    }

    /// Whether nothing is queued or on its way.
    pub fn is_idle(&self) -> bool {
        !self.failed && self.queue.is_empty() && self.in_flight.is_empty()
    }

    /// Writes the durable mark in a batch of its own. Without room for it nothing is written: the
    /// next opening then reads the payload of the last batch instead.
    /// If it is `wanted` it may use the last blocks, as far as they are not for elections.
    pub fn seal(&mut self, wanted: bool, out: &mut Vec<DiskOp>) {
        let events = &mut Vec::new();
        assert!(self.is_idle(), "a log that is busy");
        let own = blocks_of(batch::header_bytes(self.tail.summaries.len(), 0, 0));
        let closing = blocks_of(batch::header_bytes(0, 0, 0));
        let Some(next) = self.segments.next_free(self.tail.segment) else {
            // The last blocks are for elections.
            self.mark_written = self.last_with_records;
            let left = own + closing + super::ELECTIONS_ALONE;
            if wanted && self.tail.block + left <= self.geometry.segment_blocks {
                let fields = self.fields(FLAG_SEAL, 0, 0);
                self.write_empty(&fields, out, events);
            }
            return;
        };
        if self.tail.block + own + closing > self.geometry.segment_blocks {
            self.close_segment(next, out, events);
            return;
        }
        mark!("log.sealed");
        let fields = self.fields(FLAG_SEAL, 0, 0);
        self.write_empty(&fields, out, events);
    }

    /// Where the log is, for copies.
    fn around(&self) -> Around {
        Around {
            geometry: self.geometry,
            boot: self.boot,
            segment: self.tail.segment,
            seq: self.tail.seq,
            durable_use: self.durable_at.map(|place| place.segment_seq),
            durably: self.write_durably,
        }
    }

    /// Whether copy segments take so many blocks, headers included, if so many segments must stay free.
    pub fn has_copy_room(&self, blocks: u32, leave: u32) -> bool {
        !self.failed && self.copies.has_room(&self.segments, &self.around(), blocks, leave)
    }

    /// Writes as many of the copies as one batch holds to a copy segment; nothing if so many segments must
    /// stay free that none can be had.
    pub fn copy(
        &mut self,
        copies: &mut VecDeque<Copied>,
        leave: u32,
        out: &mut Vec<DiskOp>,
    ) -> Option<CopiesWritten> {
        if self.failed {
            return None;
        }
        let around = self.around();
        let written = self.copies.write(&mut self.segments, &around, leave, copies, out)?;
        self.counts.bytes += written.bytes;
        Some(written)
    }

    /// A write of copies ended.
    pub fn copies_written(
        &mut self,
        number: u64,
        result: Result<(), DiskError>,
        events: &mut Vec<LogEvent>,
    ) {
        match result {
            _ if self.failed => {}
            Err(error) if !self.planted.is(Bug::WriteErrorIgnored) => {
                self.fail(&format!("writing copies of blocks failed: {error}"), events);
            }
            _ => {
                self.copies.written(&mut self.segments, number);
                events.push(LogEvent::CopiesDurable(number));
            }
        }
    }

    /// Counts the segments that were taken, for the log and for copies, from some number on.
    pub fn segments_taken(&self) -> u64 {
        self.tail.segment_seq + self.copies.taken()
    }

    /// The copy segment that is being filled.
    pub fn filling(&self) -> Option<(u32, u32)> {
        self.copies.filling()
    }

    /// Nothing more is written to the copy segment that is being filled.
    pub fn close_copies(&mut self) {
        self.copies.close(&mut self.segments);
    }

    /// Segments that may be written to.
    pub fn segments_free(&self) -> u32 {
        self.segments.free()
    }

    /// All segments.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Frees a segment. Of it nothing is in flight, for its batches are durable.
    pub fn release_segment(&mut self, segment: u32) {
        self.segments.release(segment);
    }

    /// Whether a record with so many blocks of payload still leaves so many segments of the reserve
    /// alone; all of it without `leave`.
    pub fn has_room(&self, payload_blocks: u32, leave: Option<u32>) -> bool {
        self.has_room_above(payload_blocks, leave.unwrap_or(self.reserved).min(self.reserved))
    }

    /// Whether a record with so many blocks of payload leaves at least so many segments free.
    pub fn has_room_above(&self, payload_blocks: u32, reserved: u32) -> bool {
        let free = self.segments_free();
        if self.failed || self.full || free < reserved {
            return false;
        }
        // What is queued takes its payload and data, and in the worst case a header block a record.
        let queued = blocks_of(self.queued_bytes) as u64 + 2 * self.queue.len() as u64;
        let wanted = queued + u64::from(payload_blocks) + u64::from(self.record_blocks(0)) + 1;
        let here = u64::from(self.geometry.segment_blocks - self.tail.block);
        if wanted <= here {
            return true;
        }
        // A record that does not fit the rest of a segment leaves that rest unused. What is asked for
        // may be many records; none of them takes more than three quarters of a segment.
        let segment = u64::from(self.geometry.segment_blocks);
        let waste = u64::from(payload_blocks) + u64::from(self.record_blocks(0));
        let each = segment - waste.min(segment / 4 * 3);
        wanted <= u64::from(free - reserved) * each
    }

    /// Whether nothing waits, and one segment can be used with another left.
    pub fn has_segment_for_one(&self) -> bool {
        !self.failed && !self.full && self.queue.is_empty() && self.segments_free() > 1
    }

    /// Whether blocks at a location were given to a record.
    pub fn holds(&self, at: Location, blocks: u32) -> bool {
        let end = u64::from(at.block) + u64::from(blocks);
        let used = match self.copies.filling() {
            _ if at.segment.0 == self.tail.segment => self.tail.block,
            Some((filling, block)) if filling == at.segment.0 => block,
            _ => self.geometry.segment_blocks,
        };
        self.segments.use_of(at.segment.0).is_some() && end <= u64::from(used)
    }
}

fn sizes(record: &Record) -> (usize, usize) {
    match record {
        Record::Entry { data, payload, .. } | Record::Moved { data, payload, .. } => {
            (data.len(), payload.len())
        }
        Record::HardState { .. } => (0, 0),
    }
}

fn describe(record: Record, payload_block: u32) -> (Descriptor<Bytes>, Payload) {
    match record {
        Record::Entry { group, term, index, kind, data, payload } => {
            let payload_blocks = blocks_of(payload.len());
            let entry =
                Descriptor::Entry { group, term, index, kind, payload_block, payload_blocks, data };
            (entry, payload)
        }
        Record::HardState { group, state } => {
            let HardState { term, vote, commit } = state;
            let state = HardStateFields { term, vote, commit };
            (Descriptor::HardState { group, state }, Payload::empty())
        }
        Record::Moved { group, data, payload } => {
            let payload_blocks = blocks_of(payload.len());
            (Descriptor::Moved { group, payload_block, payload_blocks, data }, payload)
        }
    }
}

/// The summary of a batch that was read back.
pub fn summaries_of(header: &batch::BatchHeader) -> Vec<GroupSummary> {
    let mut summaries = Vec::new();
    for record in header.records() {
        batch::summarise(&mut summaries, &record);
    }
    summaries
}
