//! What a volume client is told, asks for and answers.

use basalt_crypt::VolumeCipher;
use basalt_wire::buffer::Payload;
use basalt_wire::frame::{Reply, Request};
use basalt_wire::ids::{Address, Epoch, Generation, NodeId, SnapshotId, VolumeId};
use std::sync::Arc;
use std::time::Duration;

/// The volume and the session: `(volume, epoch)` names the session.
#[derive(Clone, Debug)]
pub struct VolumeConfig {
    /// The volume.
    pub volume: VolumeId,
    /// The session's epoch, higher than that of every session before it.
    pub epoch: Epoch,
    /// The generation that writes go to; that of the snapshot, in a view of one.
    pub generation: Generation,
    /// The root id that the volume shares with its clones: decides which group holds a chunk.
    pub lineage: u64,
    /// The volume's size.
    pub size_bytes: u64,
    /// Where the groups are.
    pub map: Arc<PoolMap>,
    /// The node that this client runs on, whose replicas serve reads if it has any.
    pub local: Option<NodeId>,
    /// What the session may do in a second.
    pub limits: RateLimits,
    /// What the volume's data are encrypted with, if they are: nothing beyond this client sees them otherwise.
    pub cipher: Option<Arc<VolumeCipher>>,
}

/// Bounds on what a session may do in a second: reads, writes and discards together; 0 means none. A burst is
/// what may be done beyond a bound at once after less was done; without one it is a tenth of a second's worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests, one for each 32 KiB that are begun.
    pub iops_max: u64,
    /// Requests.
    pub iops_burst: u64,
    /// Bytes.
    pub bandwidth_max: u64,
    /// Bytes.
    pub bandwidth_burst: u64,
    /// Requests that it is guaranteed: others wait for them if they have to. No bound.
    pub iops_min: u64,
}

/// Where the groups of a pool are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolMap {
    /// Rises with every change.
    pub version: u64,
    /// Groups of the pool, a power of two.
    pub group_count: u32,
    /// The voters of each group, by its number.
    pub groups: Vec<Vec<Address>>,
}

/// A request of the volume's user. Offsets and lengths are in bytes, of any alignment; what is not
/// whole blocks is read, changed and written.
#[derive(Clone, Debug)]
pub enum BlockOp {
    /// Read.
    Read {
        /// From where.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write. When it is answered it is durable, with `fua` or without.
    Write {
        /// To where.
        offset: u64,
        /// The data.
        data: Payload,
        /// Asked for by the guest; makes no difference.
        fua: bool,
    },
    /// Make a range read as zeros and give back its space.
    Unmap {
        /// From where.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Answered when every write answered before it is durable: at once.
    Flush,
    /// Which parts of a range are mapped.
    Extents {
        /// From where.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Which parts of a range were changed since a snapshot: up to now, or in a view up to its snapshot.
    /// Answered as extents are.
    Changes {
        /// From where.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The snapshot's generation.
        since: Generation,
    },
    /// Give back all blocks of the volume, in all groups, for good. The session can do nothing
    /// afterwards.
    Delete,
    /// Keep the volume as it is as the snapshot of a generation; what is submitted from now on goes to
    /// the next one, and nothing waits. Who is not attached may ask for it too: the session that is
    /// moves on when it meets the first group that keeps the generation. Answered when every group
    /// keeps it. What was answered before is in it, what is submitted after the answer is not. Asked
    /// again, it does no harm.
    Snapshot {
        /// The generation: the one that writes go to, or one that was to be kept before.
        generation: Generation,
    },
    /// Acknowledge no write of a later generation from now on, in any group, whoever sends it, until the gate
    /// is opened, or for a second. See [`crate::cut::Cut`].
    CloseGate {
        /// The generation that is about to be kept.
        generation: Generation,
    },
    /// Open the gate that was closed behind a generation. Fails if it was not closed all the while, in
    /// every group.
    OpenGate {
        /// The generation, which every group keeps by now.
        generation: Generation,
    },
    /// Drop a snapshot and give back what only it held.
    DropSnapshot {
        /// Its generation.
        generation: Generation,
    },
    /// Make the volume what it was in a snapshot, and drop all later snapshots. Nothing else may be
    /// under way in the session.
    Revert {
        /// Its generation.
        generation: Generation,
    },
    /// Begin the volume as a clone of a snapshot, in every group that holds chunks of it: where it has
    /// nothing of its own it reads as the snapshot. Only a view may ask for it, before any session of the
    /// volume begins; answered when every group has done it. The two have the same lineage, the volume is no
    /// smaller than the other was, and the snapshot is complete. Asked again, it does no harm.
    Clone {
        /// The snapshot.
        parent: SnapshotId,
    },
    /// Give the volume, a clone, blocks of its own in a range where it reads as the snapshot does, beside
    /// whatever session it has and unnoticed by that. Only a view may ask for it. What was filled once is filled
    /// for good.
    Fill {
        /// From where.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The snapshot.
        parent: SnapshotId,
    },
    /// Make the volume, a clone that was filled as far as the snapshot reaches, hang on it no more. Only a view
    /// may ask for it; answered when every group has done it. Asked again, it does no harm.
    Detach {
        /// The snapshot.
        parent: SnapshotId,
    },
}

/// The good end of a [`BlockOp`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockResult {
    /// Of what gives no data.
    Done,
    /// Of a read.
    Data(Payload),
    /// Of extents and changes: runs of bytes and whether they are mapped, or were changed, from the
    /// start of the range. They cover the range, or its beginning if there are more than
    /// [`EXTENT_RUNS_MAX`].
    Extents(Vec<(u64, bool)>),
}

/// Runs after which an answer about extents ends early: 1 MiB of answer.
pub const EXTENT_RUNS_MAX: usize = 64 << 10;

/// The bad end of a [`BlockOp`]. A write or unmap that ends so may have changed some of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Another session with a higher epoch took the volume. This session is over.
    #[error("another session was attached to the volume")]
    Fenced,
    /// The pool has no room for the write.
    #[error("no space left in the pool")]
    NoSpace,
    /// It can not be done, and asking again will not help.
    #[error("{0}")]
    Io(&'static str),
    /// Beyond the end of the volume.
    #[error("the range goes beyond the end of the volume")]
    OutOfRange,
    /// The request makes no sense (its length is zero).
    #[error("the request is malformed")]
    Invalid,
    /// A snapshot can not be changed.
    #[error("a snapshot can not be written to")]
    ReadOnly,
    /// The session was closed.
    #[error("the volume is closed")]
    Closed,
}

/// Something that happened.
#[derive(Debug)]
pub enum ClientEvent {
    /// The user asks for something. Every submit is answered by one [`ClientEffect::Complete`].
    Submit {
        /// Returned with the answer.
        tag: u64,
        /// What is asked.
        op: BlockOp,
    },
    /// A link that was dialled stands, handshake included.
    LinkUp {
        /// To whom.
        to: Address,
        /// Bytes of request payload that may be unanswered on it.
        credit_bytes: u32,
        /// Requests that may be unanswered on it.
        credit_requests: u32,
    },
    /// A link broke, or could not be made. Nothing sent on it before will be answered.
    LinkDown {
        /// To whom.
        to: Address,
    },
    /// A reply arrived.
    Reply {
        /// From whom.
        from: Address,
        /// The reply.
        reply: Reply,
    },
    /// The pool changed.
    Map(Arc<PoolMap>),
    /// The session may do so much from now on.
    Limit(RateLimits),
    /// The volume has grown, as a record says that also shows this session's epoch to be the attached
    /// one. Otherwise a later session, which was told the former size, may not have fenced the groups
    /// that this one enters now.
    Resize {
        /// The new size.
        size_bytes: u64,
        /// The generation that the same record says: a snapshot of an earlier one may not freeze the
        /// groups that the session enters now.
        generation: Generation,
    },
}

/// Something to be done by the driver, in order.
#[derive(Debug)]
pub enum ClientEffect {
    /// Make a link. Answered by LinkUp or LinkDown. No effect if it is being made already.
    Dial {
        /// To whom.
        to: Address,
    },
    /// Drop the link, if any, with all that is queued on it, and make a new one.
    Reset {
        /// To whom.
        to: Address,
    },
    /// Send a request, in order with the others of this link. Dropped if the link is down.
    Send {
        /// To whom.
        to: Address,
        /// The request.
        request: Request,
    },
    /// The end of a submitted request.
    Complete {
        /// As in the submit.
        tag: u64,
        /// How it ended.
        result: Result<BlockResult, BlockError>,
    },
    /// Look for a newer map: a node leads a group that this one does not place there. What waits for that
    /// leader goes on with the map that names it. May come again at any time.
    AskMap,
    /// Every group that holds chunks of the volume is fenced: the session has begun. Comes once.
    Ready,
    /// The session is over, everything unanswered was completed with this error. Comes once.
    Lost(BlockError),
}

/// Times and bounds of a client.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// A request unanswered for so long means that the link is stuck: it is reset, and everything
    /// unanswered on it is sent again.
    pub request_timeout: Duration,
    /// A request unanswered for so long makes the link suspect: reads go elsewhere, and the other
    /// replicas are asked who leads. Above the longest ordinary stall of a device.
    pub suspect_after: Duration,
    /// A link that does not stand after so long is dialled again.
    pub dial_timeout: Duration,
    /// The shortest time between two rounds of asking who leads, or between two dials.
    pub retry_min: Duration,
    /// The longest between two dials.
    pub retry_max: Duration,
    /// The longest between two rounds of asking who leads.
    pub ask_max: Duration,
    /// The shortest wait after a replica said that it is busy.
    pub busy_min: Duration,
    /// Whether the data of replies from the local node is verified too. Its replica has verified
    /// them after reading the device, and between it and this client there is only memory.
    pub verify_local: bool,
    /// The top 16 bits of every request id, so that clients which share links can be told apart.
    pub request_tag: u16,
    /// A request is traced in each such time: none at all traces all of them.
    pub trace_period: Duration,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            request_timeout: Duration::from_secs(2),
            suspect_after: Duration::from_millis(300),
            dial_timeout: Duration::from_secs(2),
            retry_min: Duration::from_millis(20),
            retry_max: Duration::from_millis(200),
            ask_max: Duration::from_millis(80),
            busy_min: Duration::from_millis(2),
            verify_local: false,
            request_tag: 0,
            trace_period: Duration::from_millis(100),
        }
    }
}

/// What a client did, for metrics and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Requests of the user under way or waiting.
    pub ops: usize,
    /// Bytes of data in writes under way or waiting.
    pub write_bytes: usize,
    /// Requests sent and not answered.
    pub unanswered: usize,
    /// Requests sent, since the start, as all that follow.
    pub sent: u64,
    /// Requests sent again.
    pub resent: u64,
    /// Links reset by this client.
    pub resets: u64,
    /// Leaders found.
    pub leaders: u64,
    /// Reads refused by a replica that was behind.
    pub behind: u64,
    /// Reads refused by a replica whose copy is damaged, or damaged on their way.
    pub damaged: u64,
    /// Requests refused because too much was queued.
    pub busy: u64,
    /// Links that reads avoid, because they are far faster over others.
    pub avoided: usize,
    /// Writes that waited for another write of the same blocks.
    pub conflicts: u64,
    /// Requests that waited for the session's bounds.
    pub limited: u64,
}
