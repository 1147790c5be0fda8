//! The messages between nodes, and between a client and a node.
//!
//! A *link* is one connection between two reactors (or between a client and a reactor). It starts
//! with [`Hello`] and [`Welcome`], and between them proofs of who both are if the cluster has a secret
//! (crate `basalt-link`); afterwards both ends send [`Frame`]s. Peers dial a link each for what they send; a
//! client's link carries requests one way and replies the other.

use crate::buffer::Payload;
use crate::command::BlockRange;
use crate::digests::Digests;
use crate::ids::{
    Address, ClusterId, Epoch, Generation, GroupId, Incarnation, LogIndex, NodeId, RequestId,
    SnapshotId, Term, VolumeId,
};
use crate::pages::Pages;
use crate::repair::Repair;
use crate::trace::{Trace, Watch, Watched};
use bytes::Bytes;

/// Version of this protocol. A node refuses a version that it does not know.
pub const PROTOCOL_VERSION: u16 = 6;

/// Every message of the data path.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// First frame of a link, from the side that dialled.
    Hello(Hello),
    /// The end of the handshake.
    Welcome(Welcome),
    /// Answer to a [`Hello`] that claims to know a key: it is to be proven.
    Challenge(Challenge),
    /// Answer to [`Frame::Challenge`].
    Proof(Mac),
    /// Client to node, on an open link: one more ticket.
    Present(Present),
    /// A Raft message between two replicas of a group.
    Raft(RaftMessage),
    /// A client's request to a replica.
    Request(Request),
    /// A replica's answer.
    Reply(Reply),
    /// Peer to peer: "please hand me the leadership of this group".
    AskLeadership {
        /// The group.
        group: GroupId,
        /// Who wants it.
        candidate: NodeId,
    },
    /// Peer to peer: "I lost entries of this group that I had acknowledged; start over from here".
    LogDamaged {
        /// The group.
        group: GroupId,
        /// The reporting replica.
        node: NodeId,
        /// The last index that it still has intact, with everything before.
        intact: LogIndex,
    },
    /// Peer to peer: "a vote of mine may be lost; have something committed without me, and tell me".
    VoteLost {
        /// The group.
        group: GroupId,
        /// The reporting replica.
        node: NodeId,
        /// Drawn when the replica noticed it: an answer to an earlier report is none to this one.
        loss: u64,
    },
    /// Leader to a replica whose vote may be lost: an entry is committed that it did not acknowledge.
    Readmit {
        /// The group.
        group: GroupId,
        /// The leader's term, which is the entry's.
        term: Term,
        /// The entry.
        index: LogIndex,
        /// As in the report.
        loss: u64,
    },
    /// Peer to peer: the group goes to sleep; the leader will not send heartbeats until it wakes.
    Sleep {
        /// The group.
        group: GroupId,
        /// The leader's term.
        term: Term,
        /// Everything up to here is committed and must be held by the receiver.
        commit: LogIndex,
    },
    /// Peer to peer: how fast the sender's device and links are.
    Score(NodeScore),
    /// Keeps an idle link alive and proves that the other side lives.
    Ping {
        /// Echoed in the answer.
        nonce: u64,
    },
    /// Answer to [`Frame::Ping`].
    Pong {
        /// As in the ping.
        nonce: u64,
    },
    /// Peer to peer: brings a replica up that the leader's log does not reach back to.
    Pages(Box<Pages>),
    /// Peer to peer: repairs a block that is damaged on one replica.
    Repair(Box<Repair>),
    /// Leader to followers: what their pages must have been as of an entry.
    Digests(Box<Digests>),
    /// Leader to follower, ahead of an append: how long does the log's write of this entry take?
    Watch(Watch),
    /// Follower to leader, ahead of the acknowledgement: so long.
    Watched(Watched),
}

/// Who dials, and whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`].
    pub version: u16,
    /// The cluster that the dialling side belongs to.
    pub cluster: ClusterId,
    /// The reactor that it means to reach.
    pub target: Address,
    /// What the dialling side is.
    pub role: Role,
    /// By what it is going to prove that; nothing in a cluster without a secret.
    pub claim: Option<Claim>,
}

/// A number that is used once, drawn so that nobody can foresee it.
pub type Nonce = [u8; 32];
/// An HMAC-SHA256.
pub type Mac = [u8; 32];

/// By what the dialling side of a link is going to prove who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its nonce.
    pub nonce: Nonce,
    /// The key that it knows.
    pub by: ClaimBy,
}

/// A key of the data path that one side of a link says to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimBy {
    /// That of the cluster's secret, by its public name.
    Secret {
        /// Which of the secrets.
        key: u64,
    },
    /// That of a ticket.
    Ticket {
        /// The ticket, at most [`TICKET_BYTES_MAX`](crate::codec::TICKET_BYTES_MAX).
        body: Bytes,
    },
}

/// What the dialling side of a link has to prove that it knows its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// [`PROTOCOL_VERSION`].
    pub version: u16,
    /// The nonce of the other side.
    pub nonce: Nonce,
}

/// A ticket that a client shows on a link which stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// The ticket, at most [`TICKET_BYTES_MAX`](crate::codec::TICKET_BYTES_MAX).
    pub body: Bytes,
    /// Proves that the client knows the ticket's key, on this link.
    pub proof: Mac,
}

/// What the dialling side of a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Another reactor of the cluster.
    Peer {
        /// Which.
        from: Address,
        /// Random number drawn when the peer's process started.
        boot: u64,
    },
    /// A client of volumes.
    Client {
        /// A name for logs, at most 64 bytes.
        name: String,
    },
}

// Frames are moved around by value: what opens a link must not make them larger.
const _: () = assert!(size_of::<Hello>() <= size_of::<RaftMessage>());

/// The end of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// [`PROTOCOL_VERSION`].
    pub version: u16,
    /// Who answers.
    pub from: Address,
    /// Random number drawn when the answering process started.
    pub boot: u64,
    /// Bytes of request payload that a client may have unanswered on this link (credit).
    pub credit_bytes: u32,
    /// Requests that a client may have unanswered on this link (credit).
    pub credit_requests: u32,
    /// Why the link is refused, empty if it is not.
    pub refusal: String,
    /// Proves that the answering side knows the key that the dialling side has proven to know.
    pub proof: Option<Mac>,
}

/// How fast a node's device and its links to peers were lately, as the node itself measured them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeScore {
    /// Counts the windows of time in which log writes were measured: the same as in the score before if
    /// there were none since.
    pub window: u32,
    /// Mean nanoseconds from the start of a log write to its durability; 0 if it is not known.
    pub write_nanos: u64,
    /// Mean nanoseconds of a read of the device; 0 if it is not known.
    pub read_nanos: u64,
    /// The sender's clock in nanoseconds, never 0, to be sent back.
    pub stamp: u64,
    /// The latest stamp that the sender had from the receiver; 0 if there is none.
    pub echo: u64,
    /// Nanoseconds since that one had arrived.
    pub held_nanos: u64,
    /// By how many nanoseconds turns of the sender came late lately, at most: no fault of device or link.
    pub late_nanos: u64,
    /// Nanoseconds to each peer and back, where they are known: at most
    /// [`SCORE_PATHS_MAX`](crate::codec::SCORE_PATHS_MAX).
    pub paths: Vec<(NodeId, u64)>,
}

/// A Raft message, field by field that of the raft library's `eraftpb::Message`.
#[derive(Clone, Debug, PartialEq)]
pub struct RaftMessage {
    /// The group.
    pub group: GroupId,
    /// `eraftpb::MessageType` as a number.
    pub kind: u8,
    /// Sending replica.
    pub from: NodeId,
    /// Receiving replica.
    pub to: NodeId,
    /// The sender's term.
    pub term: Term,
    /// Term of the entry before `entries`.
    pub log_term: Term,
    /// Index of the entry before `entries`.
    pub index: LogIndex,
    /// The sender's commit index.
    pub commit: LogIndex,
    /// Term of the sender's commit index.
    pub commit_term: Term,
    /// Whether the message rejects.
    pub reject: bool,
    /// Where to go on after a rejection.
    pub reject_hint: LogIndex,
    /// Election priority.
    pub priority: i64,
    /// Whether a snapshot is asked for, and from which index.
    pub request_snapshot: LogIndex,
    /// The library's context (which election a pre-vote belongs to, read contexts).
    pub context: Bytes,
    /// Entries to append.
    pub entries: Vec<RaftEntry>,
}

/// A Raft entry with its payload beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct RaftEntry {
    /// `eraftpb::EntryType` as a number.
    pub kind: u8,
    /// Term.
    pub term: Term,
    /// Index.
    pub index: LogIndex,
    /// The entry's data: packed commands (volume groups) or a metadata command.
    pub data: Bytes,
    /// Block data of the commands, in order.
    pub payload: Payload,
}

/// Whether a request is within the minimum that its volume is guaranteed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// It is not, or there is none: it may wait for those that are.
    #[default]
    BestEffort,
    /// It is.
    Guaranteed,
    /// It is, and the volume gets less than its minimum although it asks for it: others are to wait.
    Behind,
}

/// A client's request to a replica of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Echoed in the reply.
    pub id: RequestId,
    /// The group that it is about.
    pub group: GroupId,
    /// The volume.
    pub volume: VolumeId,
    /// The session's epoch. `(volume, epoch)` names the session.
    pub epoch: Epoch,
    /// The link's number within the session; see [`Incarnation`].
    pub incarnation: Incarnation,
    /// Whether it may wait for others.
    pub priority: Priority,
    /// Whether the answer is to say where its time went. Of reads, writes and unmaps.
    pub traced: bool,
    /// What is asked.
    pub op: RequestOp,
}

/// What a [`Request`] asks.
#[derive(Clone, Debug, PartialEq)]
pub enum RequestOp {
    /// Replace blocks. Only the leader of `term` accepts it.
    Write {
        /// The term of the leader that the request is meant for.
        term: Term,
        /// The generation in which the write was submitted.
        generation: Generation,
        /// Where.
        range: BlockRange,
        /// CRC-32C of each block.
        checksums: Vec<u32>,
        /// The blocks.
        payload: Payload,
    },
    /// Make blocks read as zeros. Only the leader of `term` accepts it.
    Unmap {
        /// The term of the leader that the request is meant for.
        term: Term,
        /// The generation in which it was submitted.
        generation: Generation,
        /// Where.
        range: BlockRange,
    },
    /// Read blocks. Any replica that has applied `floor` answers.
    Read {
        /// Where.
        range: BlockRange,
        /// The highest index of this group that the session has seen acknowledged or read.
        floor: LogIndex,
        /// The snapshot to read; the volume as it is if there is none.
        snapshot: Option<Generation>,
    },
    /// Which blocks are mapped. Any replica that has applied `floor` answers.
    Extents {
        /// Where; the whole range within one chunk.
        range: BlockRange,
        /// As in a read.
        floor: LogIndex,
        /// As in a read.
        snapshot: Option<Generation>,
    },
    /// Which blocks were changed between two snapshots, or between one and now. Any replica that has
    /// applied `floor` answers, as for extents, with runs of blocks and whether they were changed.
    Changes {
        /// Where; the whole range within one chunk.
        range: BlockRange,
        /// As in a read.
        floor: LogIndex,
        /// The older snapshot.
        since: Generation,
        /// As in a read: the newer one, or the volume as it is.
        snapshot: Option<Generation>,
    },
    /// Commit the session's epoch in the group; every lower epoch is shut out afterwards.
    Fence {
        /// The term of the leader that the request is meant for.
        term: Term,
        /// The generation that the session writes to.
        generation: Generation,
    },
    /// Delete the volume's blocks in the group. Its epoch must be the newest.
    Delete {
        /// The term of the leader that the request is meant for.
        term: Term,
    },
    /// Keep the volume's blocks in the group as the snapshot of a generation. Any epoch may.
    Freeze {
        /// The term of the leader that the request is meant for.
        term: Term,
        /// The generation to freeze.
        generation: Generation,
    },
    /// Acknowledge no write of a later generation before the gate is opened: snapshots of several volumes
    /// are taken together. Any epoch may. Refused as [`Refusal::GateLost`] if it is too late for that.
    CloseGate {
        /// The term of the leader that the request is meant for.
        term: Term,
        /// The generation that is about to be frozen.
        generation: Generation,
    },
    /// Open a gate, now that all groups of all these volumes have frozen their generations. Refused as
    /// [`Refusal::GateLost`] if it was not closed all the while.
    OpenGate {
        /// The term of the leader that the request is meant for.
        term: Term,
        /// As when it was closed.
        generation: Generation,
    },
    /// Drop the snapshot of a generation in the group. Any epoch may.
    DropSnapshot {
        /// The term of the leader that the request is meant for.
        term: Term,
        /// The snapshot's generation.
        generation: Generation,
    },
    /// Make the volume's blocks in the group what they were in a snapshot, and drop the later ones.
    Revert {
        /// The term of the leader that the request is meant for.
        term: Term,
        /// The snapshot's generation.
        generation: Generation,
    },
    /// Begin the volume in the group as a clone of a snapshot. Nobody is attached to it yet.
    Clone {
        /// The term of the leader that the request is meant for.
        term: Term,
        /// The snapshot.
        parent: SnapshotId,
    },
    /// Give a clone blocks of its own in a range where it reads as its parent does: the leader takes them
    /// from the parent. Nobody has to be attached, and whoever is notices nothing.
    Fill {
        /// The term of the leader that the request is meant for.
        term: Term,
        /// The snapshot that the clone hangs on.
        parent: SnapshotId,
        /// At most [`crate::block::COMMAND_BLOCKS_MAX`] blocks.
        range: BlockRange,
    },
    /// Make a clone that has been filled a volume like any other.
    Detach {
        /// The term of the leader that the request is meant for.
        term: Term,
        /// The snapshot that the clone hangs on.
        parent: SnapshotId,
    },
    /// Who leads the group.
    Leader,
}

/// A replica's answer to a [`Request`].
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// As in the request.
    pub id: RequestId,
    /// The group that it is about.
    pub group: GroupId,
    /// The outcome.
    pub result: ReplyResult,
    /// Where the time of a traced request went, if it was carried out.
    pub trace: Option<Box<Trace>>,
}

impl Reply {
    /// An answer that says nothing of its request's time.
    pub fn new(id: RequestId, group: GroupId, result: ReplyResult) -> Reply {
        Reply { id, group, result, trace: None }
    }
}

/// The outcome of a [`Request`].
#[derive(Clone, Debug, PartialEq)]
pub enum ReplyResult {
    /// A change is durable on a majority and applied.
    Done {
        /// The index of its entry.
        index: LogIndex,
    },
    /// A read's blocks.
    Data {
        /// The highest index that changed any of the chunks read: a later read of this session must
        /// not be served by a replica that has applied less.
        index: LogIndex,
        /// CRC-32C of each block.
        checksums: Vec<u32>,
        /// The blocks.
        payload: Payload,
    },
    /// Which blocks are mapped, or were changed.
    Extents {
        /// As in [`ReplyResult::Data`].
        index: LogIndex,
        /// Runs in order: blocks, and whether they are (were). They sum to the range's count.
        runs: Vec<(u32, bool)>,
    },
    /// Answer to [`RequestOp::Leader`], and sent when the asked replica does not lead.
    Leader {
        /// The leader if one is known.
        leader: Option<NodeId>,
        /// The replica's term.
        term: Term,
    },
    /// The request did not take effect and never will.
    Refused(Refusal),
    /// The request may or may not take effect: the leader lost its place with the entry proposed.
    /// The client may ask again over a new incarnation.
    Unknown,
}

/// Why a request was refused before it had any effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// A higher epoch is attached. The session is over.
    Fenced = 1,
    /// A newer incarnation of the session has spoken: this is a late duplicate.
    LateDuplicate = 2,
    /// The replica has not applied the floor yet. Ask another, or the leader.
    Behind = 3,
    /// Too much is queued. Ask again later.
    Busy = 4,
    /// No room on the device.
    NoSpace = 5,
    /// The replica's copy is damaged. Ask another replica.
    Damaged = 6,
    /// The request is malformed: an empty range, one across a chunk, lengths that do not match.
    Invalid = 7,
    /// The replica does not hold this group.
    NotHere = 8,
    /// The replica is starting or stopping.
    Unavailable = 9,
    /// The epoch is higher than any that was fenced in: fence first.
    NotAttached = 10,
    /// The payload does not match its checksums: it was damaged on the way.
    BadChecksum = 11,
    /// The generation of the write is frozen: submit it again in the next one.
    Frozen = 12,
    /// There is no such snapshot (any more).
    NoSnapshot = 13,
    /// The volume has as many snapshots as it may have.
    TooManySnapshots = 14,
    /// Clones hang on the volume or snapshot: it can not be given up before them.
    HasClones = 15,
    /// The snapshot is that of a clone of a clone, and so on: no more can hang on it.
    TooDeep = 16,
    /// There is such a volume already, and it is no clone of this snapshot.
    Exists = 17,
    /// The gate was not closed all the while: the snapshots are no point in time.
    GateLost = 18,
    /// The ticket of the link does not say that its client may do this.
    NotPermitted = 20,
}
