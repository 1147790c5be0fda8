//! What a shard is told at its start.

use crate::planted::Planted;
use basalt_wire::ids::{Address, ClusterId, GroupId, LogIndex, NodeId, Term, VolumeId};
use std::time::Duration;

/// Everything that a shard needs to know before it opens its device.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// The cluster; a device of another one is refused.
    pub cluster: ClusterId,
    /// This shard's address.
    pub address: Address,
    /// Bytes of device that belong to this shard (a multiple of `segment_bytes` plus the
    /// superblock's area).
    pub device_bytes: u64,
    /// Bytes in a segment; a multiple of 64 KiB. Written on the device when it is formatted.
    pub segment_bytes: u64,
    /// Whether the device keeps completed writes in a volatile cache, so that log writes must ask
    /// for durability.
    pub volatile_cache: bool,
    /// The groups with a replica on this shard.
    pub groups: Vec<GroupConfig>,
    /// Raft's clock.
    pub timing: Timing,
    /// Bounds.
    pub limits: Limits,
    /// Bytes of log after which a checkpoint is taken, or sooner where there is little room; 0 takes none
    /// and looks for none.
    pub checkpoint_bytes: u64,
    /// Bytes of memory that the tables of pages may take, but for those that changed since the last
    /// checkpoint and those of pages that hold something for snapshots.
    pub index_bytes: u64,
    /// How damage is looked for.
    pub scrub: Scrubbing,
    /// The last command of the metadata group that the state stands for which the control plane starts from: it
    /// is told those behind it. 0 for none.
    pub metadata_saved: LogIndex,
    /// Seed of the shard's own randomness (election timeouts).
    pub seed: u64,
    /// A bug planted by the simulator; none in production.
    pub planted: Planted,
}

impl ShardConfig {
    /// Bytes of memory that the tables of pages may usually take: half a kilobyte for each megabyte of the
    /// device, which is 488 MB for a terabyte, and 64 MiB at least.
    pub fn usual_index_bytes(device_bytes: u64) -> u64 {
        (device_bytes / 2048).max(64 << 20)
    }
}

/// One group's membership.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group.
    pub id: GroupId,
    /// The voters that it began with. This shard's address is not among them if the replica came later.
    pub voters: Vec<Address>,
    /// Term and index that the group's leader had reached when this replica was a member already. Until its log
    /// goes as far it has no say in elections: it may have been here before, and does not hold what it
    /// promised then. Nothing for a founder.
    pub since: (Term, LogIndex),
    /// Term and index of the entry at which the group began anew, from a state that came another way; zeros for one
    /// that never did. Whatever a lower term left of it on the device or in the store is not of it any more. To be
    /// given at each start, the same to all replicas, higher than all that any of them ever had.
    pub begins: (Term, LogIndex),
}

impl GroupConfig {
    /// A group as its founders see it.
    pub fn new(id: GroupId, voters: Vec<Address>) -> GroupConfig {
        let zero = (Term(0), LogIndex(0));
        GroupConfig { id, voters, since: zero, begins: zero }
    }

    /// The address of one of them.
    pub fn address_of(&self, node: NodeId) -> Option<Address> {
        self.voters.iter().copied().find(|a| a.node == node)
    }
}

/// Raft's clock.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Length of a Raft tick.
    pub tick: Duration,
    /// Ticks between two heartbeats.
    pub heartbeat_ticks: u32,
    /// Ticks without a leader before an election: drawn from this to twice this.
    pub election_ticks: u32,
    /// Idle time after which a group sleeps.
    pub sleep_after: Duration,
    /// How long a leader waits for an append that takes a new commit index along before it sends the
    /// index alone. Until then followers refuse reads of what was just acknowledged.
    pub announce_after: Duration,
}

impl Default for Timing {
    /// 50 ms ticks, a heartbeat every 100 ms, elections after 500 to 1000 ms, commit indexes alone
    /// after 1 ms.
    fn default() -> Timing {
        Timing {
            tick: Duration::from_millis(50),
            heartbeat_ticks: 2,
            election_ticks: 10,
            sleep_after: Duration::from_secs(5),
            announce_after: Duration::from_millis(1),
        }
    }
}

/// Bounds of a shard. What reaches one is refused as busy and asked again by the client.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of write payload accepted but not yet applied.
    pub pending_bytes: usize,
    /// Requests accepted but not yet answered.
    pub pending_requests: usize,
    /// Bytes of entries kept in memory for followers that are a little behind.
    pub entry_cache_bytes: usize,
    /// Payload bytes of one packed entry.
    pub entry_bytes: usize,
    /// Payload bytes of one log batch.
    pub batch_bytes: usize,
    /// Log batches in flight at a time.
    pub batches_in_flight: usize,
    /// Bytes below which what waits goes on waiting while a log batch is in flight, so that more joins
    /// it: payload that is not proposed yet, and records that are in no batch yet. 0 keeps nothing
    /// waiting.
    pub gather_bytes: usize,
    /// Raft append messages in flight to one follower of one group.
    pub appends_in_flight: usize,
    /// Segments kept free for Raft's own records when clients get ENOSPC.
    pub segments_reserved: u32,
    /// Whether what the cleaner copies gets segments of its own, apart from what is written anew, as far as some
    /// can be spared.
    pub copy_segments: bool,
    /// Bytes of Raft entries, all groups together, that a checkpoint leaves in the log for followers
    /// that come back, if there is room: those that need older ones get pages.
    pub log_retain_bytes: u64,
    /// Bytes of pages a second that replicas are brought up with at least, however much clients' writes are held up
    /// by them: until it is over, the next loss may cost data.
    pub pages_least_bytes: u64,
    /// Newest commands of the metadata group that are kept although the control plane's state stands for them:
    /// followers that need older ones get that state.
    pub metadata_retain_entries: u64,
    /// Bytes of them that are kept at most.
    pub metadata_retain_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            pending_bytes: 64 << 20,
            pending_requests: 16 << 10,
            entry_cache_bytes: 32 << 20,
            entry_bytes: 1 << 20,
            batch_bytes: 2 << 20,
            batches_in_flight: 4,
            gather_bytes: 128 << 10,
            appends_in_flight: 64,
            segments_reserved: 2,
            copy_segments: true,
            log_retain_bytes: 1 << 30,
            pages_least_bytes: 8 << 20,
            metadata_retain_entries: 4 << 10,
            metadata_retain_bytes: 4 << 20,
        }
    }
}

/// How a shard looks for damage among its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrubbing {
    /// From the start of a pass over all blocks to the start of the next. Zero for none but those that are
    /// asked for.
    pub every: Duration,
    /// Bytes a second that a pass reads at most while clients' requests are under way.
    pub busy_bytes: u64,
    /// The same while there are none.
    pub idle_bytes: u64,
    /// How far an earlier start had come; nothing if that is not known.
    pub resume: Option<ScrubResume>,
}

/// How far a shard had come with looking for damage when it was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubResume {
    /// The time since the last pass began.
    pub since: Duration,
    /// Where it stands, if it is not over.
    pub place: Option<ScrubPlace>,
}

/// Where a pass stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPlace {
    /// The group that it is at.
    pub group: GroupId,
    /// The first page of it that was not looked at.
    pub page: (VolumeId, u64),
    /// Groups that are not looked at yet, with this one.
    pub left: usize,
}

impl Scrubbing {
    /// A pass in about a week.
    pub const WEEKLY: Scrubbing =
        Scrubbing { every: Duration::from_secs(7 * 86_400), ..Scrubbing::ASKED };
    /// No pass but those that are asked for.
    pub const ASKED: Scrubbing = Scrubbing {
        every: Duration::ZERO,
        busy_bytes: 32 << 20,
        idle_bytes: 256 << 20,
        resume: None,
    };
}
