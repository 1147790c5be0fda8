//! What a shard says about itself.

use super::{IndexStatus, Space, VolumeSpace};
use crate::cleaner::CleanerCounts;
use crate::config::ScrubPlace;
use crate::consensus::{MendedCounts, MovedCounts};
use crate::log::{LogCounts, OpenReport};
use crate::score::ScoreStatus;
use crate::scrub::{PassReport, RepairCounts, ScrubCounts, SurveyCounts};
use basalt_wire::ids::{GroupId, LogIndex, NodeId, Term, VolumeId};
use basalt_wire::membership::Membership;
use std::collections::BTreeMap;
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
    /// The first entry it holds.
    pub first: LogIndex,
    /// Whether it is behind its own pages, and serves no reads.
    pub fuzzy: bool,
    /// The last entry it holds.
    pub last: LogIndex,
    /// Whether the group sleeps.
    pub asleep: bool,
    /// Its members, as far as the replica has applied.
    pub members: Membership,
    /// Whether the replica will know them after a crash too. A replica that was removed is retired only when
    /// all voters say so: one that does not know yet still needs its vote.
    pub members_durable: bool,
    /// Blocks that its volumes and their snapshots refer to.
    pub live_blocks: u64,
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
    /// How much of it is there.
    pub index: IndexStatus,
    /// Requests accepted and not yet answered.
    pub pending_requests: usize,
    /// Requests that wait for a guaranteed minimum to be kept, and those that did so far.
    pub requests_waiting: usize,
    /// Since the shard was opened.
    pub requests_held: u64,
    /// Payload bytes accepted and not yet applied.
    pub pending_bytes: usize,
    /// What the log wrote since the shard was opened.
    pub log: LogCounts,
    /// What the cleaner did since then.
    pub cleaner: CleanerCounts,
    /// What its device holds, and how much of it is free.
    pub space: Space,
    /// Live bytes of each volume, which together are [`Space::live`].
    pub space_by_volume: BTreeMap<VolumeId, VolumeSpace>,
    /// What the replicas proposed since then.
    pub proposed: ProposedCounts,
    /// What bringing replicas up by pages moved since then.
    pub moved: MovedCounts,
    /// How fast this shard's device and those of its peers are; this one first.
    pub scores: Vec<ScoreStatus>,
    /// What looking for damage came to since then.
    pub scrub: ScrubStatus,
}

/// What looking for damage came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// What the scrub did.
    pub scrub: ScrubCounts,
    /// What became of the blocks that are damaged.
    pub repairs: RepairCounts,
    /// Blocks given to other replicas for their repairs.
    pub given: u64,
    /// What looking at the store's records and at headers came to.
    pub survey: SurveyCounts,
    /// Whether that is under way.
    pub surveying: bool,
    /// Segments with damaged headers of which what is live was, or is, moved elsewhere.
    pub emptied: u64,
    /// Where the pass under way stands.
    pub position: Option<ScrubPlace>,
    /// The pass that ended last.
    pub last: Option<PassReport>,
    /// Pages that are known to differ from those of other replicas, and are not settled yet.
    pub differing_pages: u64,
    /// What became of pages that differed from the majority's.
    pub mended: MendedCounts,
}

/// What leaders proposed: `commands / entries` is how well a turn's requests are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProposedCounts {
    /// Raft entries.
    pub entries: u64,
    /// Commands in them.
    pub commands: u64,
}
