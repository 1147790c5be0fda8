//! What a shard says about itself.

use crate::log::{LogCounts, OpenReport};
use basalt_wire::ids::{GroupId, LogIndex, NodeId, Term};
use basalt_wire::membership::Membership;
use std::time::Duration;

/// Where a shard is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The log is being replayed; requests are refused as unavailable.
    Opening,
    /// Serving.
    Running,
    /// Leaderships are being handed over; new ones are refused.
    Draining,
    /// The device failed a write: nothing is acknowledged any more, the shard must be opened again.
    Suspect(String),
    /// The device could not be opened.
    Failed(String),
}

/// The part that a replica plays in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupRole {
    /// Copies a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
    /// Its log lost entries: it takes part again when it holds them again.
    Impaired,
    /// It broke a rule of Raft and was stopped; the other groups go on.
    Quarantined,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// Its part.
    pub role: GroupRole,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// Everything up to here is committed.
    pub commit: LogIndex,
    /// Everything up to here is applied.
    pub applied: LogIndex,
    /// The last entry it holds.
    pub last: LogIndex,
    /// Whether the group sleeps.
    pub asleep: bool,
    /// Its members, as far as the replica has applied.
    pub members: Membership,
    /// Whether the replica will know them after a crash too. A replica that was removed is retired only when
    /// all voters say so: one that does not know yet still needs its vote.
    pub members_durable: bool,
}

/// A shard's state, for operators and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Where it is in its life.
    pub phase: Phase,
    /// Its replicas, ordered by group.
    pub groups: Vec<GroupStatus>,
    /// Segments of the device that hold nothing.
    pub segments_free: u32,
    /// All segments of the device.
    pub segments_total: u32,
    /// What opening found, once it is over.
    pub open_report: Option<OpenReport>,
    /// How long opening took.
    pub opened_in: Duration,
    /// The number of the last checkpoint; 0 if there is none.
    pub checkpoint: u64,
    /// Blocks mapped, all volumes together.
    pub mapped_blocks: u64,
    /// Blocks that are kept for snapshots alone.
    pub kept_blocks: u64,
    /// Bytes of memory that the index uses.
    pub index_bytes: u64,
    /// Requests accepted and not yet answered.
    pub pending_requests: usize,
    /// Payload bytes accepted and not yet applied.
    pub pending_bytes: usize,
    /// What the log wrote since the shard was opened.
    pub log: LogCounts,
    /// What the replicas proposed since then.
    pub proposed: ProposedCounts,
}

/// What leaders proposed: `commands / entries` is how well a turn's requests are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProposedCounts {
    /// Raft entries.
    pub entries: u64,
    /// Commands in them.
    pub commands: u64,
}
