//! The segment log: the one place where anything is written.
//!
//! Records (Raft entries with their block data, and Raft hard state) are queued, put together into
//! batches, and written as one sequential device write each. Batches become durable strictly in
//! order. Block data stays where its batch put it: the index points into the log.
//!
//! Opening a device replays the headers of all batches. What is found at each place decides by a
//! table what becomes of it; a bad checksum alone never cuts the log.

use basalt_wire::buffer::Payload;
use basalt_wire::ids::{GroupId, LogIndex, NodeId, SegmentId, Term};
use bytes::Bytes;

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
}

/// Counts records from the start of a run; the first appended record has 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct RecordSeq(pub u64);

/// What the log tells its owner.
#[derive(Debug)]
pub enum LogEvent {
    /// Opening: a record that stands in the log, in order. Its payload was not read.
    Replayed {
        /// The record; an entry's payload is empty.
        record: Record,
        /// An entry's block data.
        location: Location,
        /// Blocks of it.
        blocks: u32,
        /// Where the record's `data` stands on the device, to be read again by [`Log::read_data`].
        data_at: DataLocation,
    },
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
        /// An entry's block data.
        location: Location,
        /// Where its `data` stands.
        data_at: DataLocation,
    },
    /// All records up to here are durable.
    Durable(RecordSeq),
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
    /// Segments never used or free for reuse.
    pub segments_free: u32,
}
