//! The segment log: the one place where anything is written.
//!
//! Records (Raft entries with their block data, and Raft hard state) are queued, put together into
//! batches, and written as one sequential device write each. Batches become durable strictly in
//! order. Block data stays where its batch put it: the index points into the log.
//!
//! What the cleaner copies may stand in segments of its own beside the log: [`copies`].
//!
//! Opening a device replays the headers of all batches. What is found at each place decides by a
//! table what becomes of it; a bad checksum alone never cuts the log.

mod copies;
mod opening;
mod place;
mod reads;
mod recovery;
mod scan;
mod segments;
pub mod table;
#[cfg(test)]
mod tests;
mod window;
mod writer;

use crate::config::ShardConfig;
use crate::mark;
use basalt_wire::buffer::Payload;
use basalt_wire::disk::DiskFormatError;
use basalt_wire::disk::batch::BatchHeader;
use basalt_wire::disk::checkpoint::{ChainPlace, SegmentUse};
use basalt_wire::ids::{GroupId, LogIndex, NodeId, SegmentId, Term};
use basalt_wire::io::{DiskDone, DiskOp, OpToken};
use basalt_wire::time::Time;
use bytes::Bytes;
pub use copies::{Copied, CopiesWritten};
use opening::Opening;
use reads::Reads;
pub use segments::{Segment, SegmentState, Segments};
use std::collections::VecDeque;
use std::time::Duration;
use writer::Writer;

/// How long the log must have been idle before it is sealed: long against a round trip, so that a
/// client with one write in flight does not have each of them sealed.
pub const SEAL_DELAY: Duration = Duration::from_millis(20);

/// Blocks of the reserve that only elections may use.
const ELECTIONS_ALONE: u32 = 6;

const TOKEN_OPEN: u8 = 1;
const TOKEN_BATCH: u8 = 2;
const TOKEN_READ: u8 = 3;
const TOKEN_FORMAT: u8 = 4;
const TOKEN_COPIES: u8 = 5;

/// An operation's token: its owner within the log in the top byte, a number of the owner's below.
fn token(owner: u8, number: u64) -> OpToken {
    u64::from(owner) << 56 | (number & (u64::MAX >> 8))
}

/// The segment log of one shard.
///
/// It owns its device: every operation and every token on it. Nothing is done by itself: the owner
/// carries out the [`DiskOp`]s, hands their ends to [`Log::on_disk`], and calls [`Log::flush`] at
/// the end of each of its turns.
pub struct Log {
    state: State,
    reads: Reads,
    /// Since when the log is known to be idle and unsealed.
    idle_since: Option<Time>,
    /// Segments that are released as soon as nothing is read from them.
    leaving: Vec<SegmentUse>,
}

enum State {
    /// It is not known yet from where to open.
    Waiting,
    Opening(Box<Opening>),
    Open(Box<Writer>),
    Failed,
}

impl Log {
    /// The writes that make a fresh device. Two lives of one device are told apart by
    /// [`ShardConfig::seed`], which must be another one whenever a device is formatted.
    ///
    /// Panics if the sizes in `config` are impossible; see [`Log::validate`].
    pub fn format(config: &ShardConfig) -> Vec<DiskOp> {
        opening::format(config)
    }

    /// A sentence why a device can not be cut up as `config` says.
    pub fn validate(config: &ShardConfig) -> Result<(), String> {
        opening::validate(config)
    }

    /// A log that [`Log::open`] will take the place of.
    pub fn waiting() -> Log {
        Log::in_state(State::Waiting)
    }

    /// Starts to open a device. Ends with [`LogEvent::Opened`] or [`LogEvent::OpenFailed`].
    pub fn open(config: &ShardConfig, out: &mut Vec<DiskOp>) -> Log {
        Log::open_from(config, None, out)
    }

    /// Starts to open a device whose log is replayed from where a checkpoint says. If the log does not
    /// support that, [`LogEvent::CheckpointRefused`] comes, and the whole log is replayed; if it does,
    /// [`LogEvent::CheckpointReplayed`] comes, to be answered by [`Log::judge_checkpoint`].
    pub fn open_from(config: &ShardConfig, start: Option<Start>, out: &mut Vec<DiskOp>) -> Log {
        Log::in_state(State::Opening(Box::new(Opening::start(config, start, out))))
    }

    fn in_state(state: State) -> Log {
        Log { state, reads: Reads::default(), idle_since: None, leaving: Vec::new() }
    }

    /// An operation ended.
    pub fn on_disk(&mut self, done: DiskDone, out: &mut Vec<DiskOp>, events: &mut Vec<LogEvent>) {
        let number = done.token & (u64::MAX >> 8);
        match ((done.token >> 56) as u8, &mut self.state) {
            (TOKEN_OPEN, State::Opening(opening)) => match opening.on_disk(done, out, events) {
                opening::Progress::Going => {}
                opening::Progress::Open(writer) => {
                    self.reads.geometry(writer.geometry());
                    self.state = State::Open(writer);
                }
                opening::Progress::Failed => self.state = State::Failed,
            },
            (TOKEN_BATCH, State::Open(writer)) => writer.written(number, done.result, events),
            (TOKEN_COPIES, State::Open(writer)) => {
                writer.copies_written(number, done.result, events);
            }
            (TOKEN_READ, _) => {
                self.reads.on_disk(number, done, out, events);
                self.let_go();
            }
            _ => {}
        }
        self.reads.refused(events);
    }

    /// Says whether what was replayed fits the checkpoint. If not, the whole log is replayed.
    pub fn judge_checkpoint(
        &mut self,
        fits: Result<(), String>,
        out: &mut Vec<DiskOp>,
        events: &mut Vec<LogEvent>,
    ) {
        if let State::Opening(opening) = &mut self.state
            && let Err(reason) = opening.judge_checkpoint(fits, out, events)
        {
            events.push(LogEvent::OpenFailed(reason));
            self.state = State::Failed;
        }
    }

    /// Where the next batch goes.
    pub fn end(&self) -> Option<ChainPlace> {
        self.writer().map(Writer::end)
    }

    /// Where the highest batch known durable stands: replay may begin with it. Nothing if there is none,
    /// or if it is lost.
    pub fn durable_place(&self) -> Option<ChainPlace> {
        self.writer().and_then(Writer::durable_place)
    }

    /// The highest batch known durable, and the checksum of its header.
    pub fn durable_batch(&self) -> (u64, u32) {
        self.writer().map_or((0, 0), Writer::durable_batch)
    }

    /// The device's id and the bytes of its segments.
    pub fn device(&self) -> (u64, u64) {
        self.writer().map_or((0, 0), |w| (w.geometry().device, w.geometry().segment_bytes))
    }

    /// Queues a record; it is written by one of the next [`Log::flush`]es.
    ///
    /// Panics if the log is not open, or if the record does not fit; see [`Log::fits`].
    pub fn append(&mut self, record: Record) -> RecordSeq {
        let State::Open(writer) = &mut self.state else {
            panic!("a record was appended to a log that is not open")
        };
        self.idle_since = None;
        writer.append(record)
    }

    /// Whether a record can be appended: it fits a segment of this device, and a header. To be asked
    /// of what comes from a peer, whose device may be cut up otherwise.
    pub fn fits(&self, record: &Record) -> bool {
        self.writer().is_some_and(|w| w.fits(record))
    }

    /// Starts batches as far as the number in flight allows; tells where records were placed.
    /// Also delivers the errors of reads that were refused at once.
    pub fn flush(&mut self, out: &mut Vec<DiskOp>, events: &mut Vec<LogEvent>) {
        if let State::Open(writer) = &mut self.state {
            writer.flush(out, events);
        }
        self.reads.refused(events);
    }

    /// Reads block data. Ends with [`LogEvent::Read`].
    pub fn read(&mut self, token: u64, at: Location, blocks: u32, out: &mut Vec<DiskOp>) {
        let held = match &self.state {
            State::Open(writer) => blocks > 0 && writer.holds(at, blocks),
            _ => false,
        };
        self.reads.read(token, at, blocks, held, out);
    }

    /// Reads the `data` of a record. Ends with [`LogEvent::ReadData`].
    pub fn read_data(&mut self, token: u64, at: DataLocation, out: &mut Vec<DiskOp>) {
        let place = Location { segment: at.segment, block: at.block };
        let held = matches!(&self.state, State::Open(writer) if writer.holds(place, 1));
        self.reads.read_data(token, at, held, out);
    }

    /// Writes an empty batch with the durable mark once the log has been idle for [`SEAL_DELAY`]:
    /// from then on a bad checksum in its last records is known to be damage. Writes once, and
    /// nothing more until records were appended.
    pub fn seal_if_idle(&mut self, now: Time, out: &mut Vec<DiskOp>) {
        let State::Open(writer) = &mut self.state else { return };
        if !writer.wants_seal() {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(now);
        if now.since(since) >= SEAL_DELAY {
            self.idle_since = None;
            writer.seal(false, out);
        }
    }

    /// When [`Log::seal_if_idle`] should be called again, if it has anything to do.
    pub fn seal_deadline(&self) -> Option<Time> {
        self.idle_since.map(|since| since + SEAL_DELAY)
    }

    /// Seals at once, if there is anything to seal: the node is about to stop.
    pub fn seal_now(&mut self, out: &mut Vec<DiskOp>) {
        if let State::Open(writer) = &mut self.state
            && writer.wants_seal()
        {
            self.idle_since = None;
            writer.seal(false, out);
        }
    }

    /// Whether copy segments take so many blocks, headers included, if so many segments must stay free.
    pub fn has_copy_room(&self, blocks: u32, leave: u32) -> bool {
        self.writer().is_some_and(|w| w.has_copy_room(blocks, leave))
    }

    /// Writes as many of the copies as one batch holds to a copy segment, and takes them away from those that
    /// wait; nothing if so many segments must stay free that none can be had. They may be pointed at when
    /// [`LogEvent::CopiesDurable`] comes.
    pub fn copy(
        &mut self,
        copies: &mut VecDeque<Copied>,
        leave: u32,
        out: &mut Vec<DiskOp>,
    ) -> Option<CopiesWritten> {
        match &mut self.state {
            State::Open(writer) if !copies.is_empty() => writer.copy(copies, leave, out),
            _ => None,
        }
    }

    /// Counts the segments that are taken, for the log and for copies, from some number on; 0 if the log is not
    /// open.
    pub fn segments_taken(&self) -> u64 {
        self.writer().map_or(0, Writer::segments_taken)
    }

    /// The copy segment that is being filled.
    pub fn filling(&self) -> Option<SegmentId> {
        self.writer().and_then(Writer::filling).map(|(segment, _)| SegmentId(segment))
    }

    /// Blocks of it that are written or on their way.
    pub fn filled(&self) -> u32 {
        self.writer().and_then(Writer::filling).map_or(0, |(_, block)| block)
    }

    /// Nothing more is written to the copy segment that is being filled: it can be cleaned, or released.
    pub fn close_copies(&mut self) {
        if let State::Open(writer) = &mut self.state {
            writer.close_copies();
        }
    }

    /// Writes an empty batch if the log is idle: somebody waits for one.
    pub fn write_on(&mut self, out: &mut Vec<DiskOp>) {
        if let State::Open(writer) = &mut self.state
            && writer.is_idle()
        {
            self.idle_since = None;
            writer.seal(true, out);
        }
    }

    /// Whether a batch is being written.
    pub fn is_writing(&self) -> bool {
        self.writer().is_some_and(Writer::is_writing)
    }

    /// Bytes queued and not yet part of a batch.
    pub fn queued_bytes(&self) -> usize {
        self.writer().map_or(0, Writer::queued_bytes)
    }

    /// Whether a record with so many blocks of payload leaves the reserve of segments alone.
    pub fn has_room(&self, payload_blocks: u32) -> bool {
        self.writer().is_some_and(|w| w.has_room(payload_blocks, None))
    }

    /// Whether a record with so many blocks of payload leaves at least so many segments free.
    pub fn has_room_above(&self, payload_blocks: u32, segments: u32) -> bool {
        self.writer().is_some_and(|w| w.has_room_above(payload_blocks, segments))
    }

    /// Whether records with so many blocks of payload, agreed elsewhere, leave enough of the reserve
    /// for elections. A record `alone` is known to fit a segment.
    pub fn has_room_in_reserve(&self, payload_blocks: u32, alone: bool) -> bool {
        let fits =
            |w: &Writer| w.has_room(payload_blocks, Some(1)) || alone && w.has_segment_for_one();
        self.writer().is_some_and(fits)
    }

    /// Whether a fence or a delete may use the reserve: some blocks are left to elections alone.
    pub fn has_room_for_fence(&self) -> bool {
        self.writer().is_some_and(|w| w.has_room(ELECTIONS_ALONE, Some(0)))
    }

    /// Whether a record with so many blocks of payload may use all that is left but what is for elections.
    pub fn has_room_at_last(&self, payload_blocks: u32) -> bool {
        let blocks = payload_blocks.saturating_add(ELECTIONS_ALONE);
        self.writer().is_some_and(|w| w.has_room(blocks, Some(0)))
    }

    /// All segments of an open log: their uses, and which are free.
    pub fn segments(&self) -> Option<&Segments> {
        self.writer().map(Writer::segments)
    }

    /// Frees segments: they may be written to. To be called when a checkpoint is durable that needs
    /// nothing in them, in the run of the log in which it was taken. What is being read from one of them
    /// is read to its end first.
    ///
    /// Panics if one of them is not in that use, or is the one where the log goes on.
    pub fn release(&mut self, segments: &[SegmentUse]) {
        let Some(table) = self.segments() else { return };
        for used in segments {
            let is_closed = |s: Segment| {
                matches!(s.state, SegmentState::Closed | SegmentState::Copies) && s.seq == used.seq
            };
            let closed = table.get(used.segment).is_some_and(is_closed);
            assert!(closed && !self.leaving.contains(used), "{used:?} can not be released");
        }
        self.leaving.extend(segments);
        self.let_go();
    }

    fn let_go(&mut self) {
        let State::Open(writer) = &mut self.state else { return };
        let reads = &self.reads;
        for used in self.leaving.extract_if(.., |used| !reads.is_reading(used.segment)) {
            mark!("log.segment_released");
            writer.release_segment(used.segment.0);
        }
    }

    /// Whether segments are released once reads from them have ended.
    pub fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Whether a segment is released once reads from it have ended.
    pub fn is_leaving(&self, segment: SegmentId) -> bool {
        self.leaving.iter().any(|used| used.segment == segment)
    }

    /// The header at a place, as part of what was read from there on: of this device, of that place, and of
    /// the present use of its segment, be that the log's or one for copies.
    pub fn batch_at(&self, bytes: &[u8], at: Location) -> Result<BatchHeader, DiskFormatError> {
        let writer = self.writer().ok_or(DiskFormatError::Unreadable)?;
        let header = BatchHeader::decode(bytes)?;
        let stands = scan::stands_at(&header, &writer.geometry(), at.segment.0, at.block);
        let used = writer.segments().use_of(at.segment.0);
        let same_kind = writer.segments().holds_copies(at.segment.0) == header.holds_copies();
        if !stands || !same_kind || used != Some(header.fields.segment_seq) {
            return Err(DiskFormatError::Foreign);
        }
        Ok(header)
    }

    /// Blocks of a segment.
    pub fn segment_blocks(&self) -> u32 {
        self.writer().map_or(0, |w| w.geometry().segment_blocks)
    }

    /// Segments that may be written to.
    pub fn segments_free(&self) -> u32 {
        self.writer().map_or(0, Writer::segments_free)
    }

    /// Segments of the device.
    pub fn segments_total(&self) -> u32 {
        self.writer().map_or(0, |w| w.geometry().segments)
    }

    /// What was written since the log was opened.
    pub fn counts(&self) -> LogCounts {
        self.writer().map_or(LogCounts::default(), Writer::counts)
    }

    fn writer(&self) -> Option<&Writer> {
        match &self.state {
            State::Open(writer) => Some(writer),
            _ => None,
        }
    }
}

/// What a log wrote since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCounts {
    /// Batches started: as many device writes.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Blocks of payload in them.
    pub payload_blocks: u64,
    /// Bytes of all batches: headers, padding, empty batches and batches of copies included.
    pub bytes: u64,
}

/// From where a log is replayed, as a checkpoint says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The device's id.
    pub device: u64,
    /// Where replay begins.
    pub from: ChainPlace,
    /// A batch that the log must hold: number and checksum of its header.
    pub until: (u64, u32),
    /// The segments of the log that the checkpoint needs besides those that the log visits from `from` on,
    /// without repetition, all in uses before that of `from`.
    pub segments: Vec<SegmentUse>,
    /// The copy segments that it needs, without repetition. All others may have been written to.
    pub copies: Vec<SegmentUse>,
}

/// Where a record's block data stands: a run of blocks within one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Location {
    /// The segment.
    pub segment: SegmentId,
    /// The first block of the data, counted in blocks from the start of the segment.
    pub block: u32,
}

/// Raft's hard state of one group, as recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HardState {
    /// Current term.
    pub term: Term,
    /// Whom the replica voted for in it; node 0 is nobody.
    pub vote: NodeId,
    /// Commit index.
    pub commit: LogIndex,
}

/// Something to be made durable.
#[derive(Clone, Debug)]
pub enum Record {
    /// A Raft entry. One with an index that the group already has replaces that entry and all
    /// after it.
    Entry {
        /// The group.
        group: GroupId,
        /// Its term.
        term: Term,
        /// Its index.
        index: LogIndex,
        /// `eraftpb::EntryType` as a number.
        kind: u8,
        /// Packed commands, or a metadata command.
        data: Bytes,
        /// Block data of the commands: a whole number of blocks.
        payload: Payload,
    },
    /// A group's hard state.
    HardState {
        /// The group.
        group: GroupId,
        /// The state.
        state: HardState,
    },
    /// Blocks of a group that stood elsewhere. Nobody depends on the record before the index points
    /// into it.
    Moved {
        /// The group.
        group: GroupId,
        /// Which blocks they are: see [`basalt_wire::disk::moved`].
        data: Bytes,
        /// The blocks.
        payload: Payload,
    },
}

impl Record {
    /// The group that it is of.
    pub fn group(&self) -> GroupId {
        match self {
            Record::Entry { group, .. }
            | Record::HardState { group, .. }
            | Record::Moved { group, .. } => *group,
        }
    }
}

/// Counts records from the start of a run; the first appended record has 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct RecordSeq(pub u64);

/// What the log tells its owner.
#[derive(Debug)]
pub enum LogEvent {
    /// Opening: a record that stands in the log, in order. Its payload was not read.
    Replayed {
        /// The record; its payload is empty.
        record: Record,
        /// Where its block data stands.
        location: Location,
        /// Blocks of it.
        blocks: u32,
        /// Where the record's `data` stands on the device, to be read again by [`Log::read_data`].
        data_at: DataLocation,
    },
    /// Opening from a checkpoint: everything behind it was replayed, and the log supports it.
    CheckpointReplayed,
    /// Opening from a checkpoint: it does not fit the log, and everything told so far is void. The
    /// whole log is replayed.
    CheckpointRefused(String),
    /// Opening: acknowledged records are gone or unreadable. Comes after all `Replayed`.
    Damaged(Damage),
    /// Opening is over; appends are welcome.
    Opened(OpenReport),
    /// Opening failed: the device is of another cluster, another version, or can not be read.
    OpenFailed(String),
    /// The record got its place (its batch was started).
    Placed {
        /// Which, as returned by [`Log::append`].
        seq: RecordSeq,
        /// Where its block data stands.
        location: Location,
        /// Where its `data` stands.
        data_at: DataLocation,
        /// The block data as it is written: the memory that it came in is needed no more.
        payload: Bytes,
    },
    /// All records up to here are durable.
    Durable(RecordSeq),
    /// What was written to a copy segment is durable: the number of [`CopiesWritten`].
    CopiesDurable(u64),
    /// A read of block data ended.
    Read {
        /// As given to [`Log::read`].
        token: u64,
        /// The blocks, not verified: the caller holds the checksums.
        result: Result<Bytes, basalt_wire::io::DiskError>,
    },
    /// A read of entry data ended, verified against the batch header's own checksum.
    ReadData {
        /// As given to [`Log::read_data`].
        token: u64,
        /// The data, or nothing if the header is damaged.
        result: Option<Bytes>,
    },
    /// There is no room for the next record: no record that is not durable yet will be, nor any later
    /// one, until segments are released. What stands in the log can be read as ever.
    Full,
    /// Segments were released while the log was full: it goes on with what is queued.
    Room,
    /// A log write failed: nothing more will become durable. The shard must be opened again.
    Suspect(String),
}

/// Where a record's `data` stands on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DataLocation {
    /// The segment.
    pub segment: SegmentId,
    /// The first block of the batch header, from the start of the segment.
    pub block: u32,
    /// The record's ordinal in the batch.
    pub record: u16,
}

/// Records that were acknowledged (or may have been) and can not be replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The group, or nothing if it is not known which groups the lost batch held: then every group
    /// of the shard must be taken for damaged.
    pub group: Option<GroupId>,
    /// The first lost index of the group, if known.
    pub first_lost: Option<LogIndex>,
    /// The highest index that the group is known to have held.
    pub last_known: LogIndex,
    /// Whether a hard state may be lost too: the replica may not vote any more.
    pub vote_lost: bool,
    /// A line for the operator.
    pub text: String,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Batches replayed.
    pub batches: u64,
    /// Bytes of log between the first and the last of them.
    pub bytes: u64,
    /// Batches of a torn, never acknowledged tail that were dropped.
    pub torn: u64,
    /// Segments that may be written to.
    pub segments_free: u32,
    /// The checkpoint behind which replay began; nothing if the whole log was replayed.
    pub checkpoint: Option<u64>,
}
