//! What all groups of a shard share: the log, the clock, the bounds.

use super::loads::Loads;
use super::pace::Pace;
use super::resync::{MovedCounts, PageRead};
use super::traces::{Arrival, Traces};
use crate::cleaner::Levels;
use crate::config::{Limits, ShardConfig, Timing};
use crate::event::{Effect, LinkId};
use crate::log::{Log, Record, RecordSeq};
use crate::planted::{Bug, Planted};
use crate::replica::Plan;
use crate::score::Scores;
use crate::scrub::Target;
use crate::shard::ProposedCounts;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::blockset::BlockSet;
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{Frame, Reply, ReplyResult};
use basalt_wire::ids::{
    Address, Epoch, GroupId, Incarnation, NodeId, RequestId, SnapshotId, Term, VolumeId,
};
use basalt_wire::io::DiskOp;
use basalt_wire::time::Time;
use std::collections::{BTreeSet, VecDeque};

/// Descriptors after which a packed entry is closed in any case.
const ENTRY_DATA_MAX: usize = 256 << 10;

/// Bytes that a shard reads for followers far behind between two ticks: at most, and at least.
const CATCH_UP_MAX: usize = 32 << 20;
const CATCH_UP_MIN: usize = 2 << 20;

/// Whether there is room for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// It is taken.
    Yes,
    /// Not before the cleaner made some.
    Wait,
    /// The device holds as much live data as it can.
    No,
}

/// What is known of the room on the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoomState {
    /// The levels; nothing if the cleaner does not work here.
    pub levels: Option<Levels>,
    /// Live blocks of all groups.
    pub live: u64,
    /// Free segments, as seen last.
    pub free: u32,
    /// What was recorded last when nothing that is known could free a segment: what is recorded later may
    /// leave garbage behind.
    pub hopeless: Option<RecordSeq>,
}

/// A record that was handed to the log and is not durable yet.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// The position of its group in the shard.
    pub group: usize,
    /// Index and term, of an entry.
    pub entry: Option<(u64, u64)>,
}

/// A fill of a clone: what is proposed when its blocks were read.
#[derive(Clone, Copy, Debug)]
pub struct Filling {
    /// The snapshot that holds the blocks.
    pub parent: SnapshotId,
    /// Which blocks of the range.
    pub blocks: BlockSet,
    /// The session of the request: its epoch and its link's number.
    pub session: (Epoch, Incarnation),
    /// The term of the leader that the request is meant for.
    pub term: Term,
}

/// A read under way, of a client or for one.
#[derive(Debug)]
pub struct ClientRead {
    /// Where to answer.
    pub link: LinkId,
    /// The request.
    pub id: RequestId,
    /// The group.
    pub group: GroupId,
    /// What is read.
    pub volume: VolumeId,
    /// Its blocks.
    pub range: BlockRange,
    /// What was read so far.
    pub plan: Plan,
    /// Set if the blocks are not for the client, but for a clone.
    pub filling: Option<Filling>,
    /// Reads not ended yet.
    pub outstanding: u32,
    /// Whether one of them failed.
    pub failed: bool,
    /// When it arrived and when it began, if it is traced.
    pub traced: Option<(Arrival, Time)>,
}

/// What a read of the log is for.
#[derive(Clone, Copy, Debug)]
pub enum LogRead {
    /// A run of a client's read: position of the read, number of the run.
    Client(usize, usize),
    /// A piece of the segment that is being cleaned.
    Cleaner,
    /// Part of an entry for a follower: group's position, follower, message, entry's ordinal.
    Entry {
        /// The group's position in the shard.
        group: usize,
        /// The follower.
        peer: NodeId,
        /// The message that waits for it.
        message: u64,
        /// The entry's ordinal in the message.
        entry: usize,
    },
    /// A run of blocks for a replica that is brought up: position of the read, number of the run.
    Page(usize, usize),
    /// Blocks that the scrub verifies.
    Scrub,
    /// A header that the scrub looks at.
    Header,
    /// A block for another replica's repair: position of what is given.
    Repair(usize),
}

/// A table of things under way, numbered for as long as they last.
#[derive(Debug)]
pub struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { items: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Puts an item in and gives its number.
    pub fn insert(&mut self, item: T) -> usize {
        match self.free.pop() {
            Some(at) => {
                self.items[at] = Some(item);
                at
            }
            None => {
                self.items.push(Some(item));
                self.items.len() - 1
            }
        }
    }

    /// Takes an item out.
    pub fn take(&mut self, at: usize) -> Option<T> {
        let item = self.items.get_mut(at)?.take();
        if item.is_some() {
            self.free.push(at);
        }
        item
    }

    /// An item.
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.items.get_mut(at)?.as_mut()
    }

    /// Items in the table.
    pub fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What all groups of a shard share.
pub struct Shared {
    /// This shard.
    pub me: Address,
    /// The planted bug, if any.
    pub planted: Planted,
    /// Bounds.
    pub limits: Limits,
    /// Raft's clock.
    pub timing: Timing,
    /// Bytes of a segment, which no entry may exceed.
    pub segment_bytes: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// The log.
    pub log: Log,
    /// Device operations that the log asked for in this call.
    pub ops: Vec<DiskOp>,
    /// All records up to here are durable.
    pub durable: RecordSeq,
    /// The records after it.
    pub written: VecDeque<Written>,
    /// Ticks since the shard was opened.
    pub tick: u64,
    /// Write payload accepted and not answered yet.
    pub pending_bytes: usize,
    /// Requests accepted and not answered yet.
    pub pending_requests: usize,
    /// Whether proposals wait for others while the log is being written.
    pub gathering: bool,
    /// What was proposed since the shard was opened.
    pub proposed: ProposedCounts,
    /// The last command of the metadata group that a state in the control plane's own store stands for.
    pub metadata_saved: u64,
    /// Peers that can not be reached, as far as the driver knows.
    pub down: BTreeSet<NodeId>,
    /// Whether leaderships are being handed over.
    pub draining: bool,
    /// Whether the log takes no more records.
    pub read_only: bool,
    /// What is known of the room on the device.
    pub room: RoomState,
    /// Reads of the log under way.
    pub log_reads: Slab<LogRead>,
    /// Messages to followers that had to wait for content, since the shard was opened.
    pub messages: u64,
    /// Clients' reads under way.
    pub client_reads: Slab<ClientRead>,
    /// Entries whose content is in memory, oldest first: the group's position and the index.
    pub cache_order: VecDeque<(usize, u64)>,
    /// Bytes of that content.
    pub cached_bytes: usize,
    /// Payload recorded since the shard was opened, in bytes, but for that of pages.
    pub recorded_bytes: u64,
    /// Payload of pages that leaders gave, recorded since then, in bytes.
    pub page_bytes: u64,
    /// What was recorded up to the last tick.
    recorded_before: u64,
    /// What may be read until the next tick for followers that are far behind.
    pub catch_up_bytes: usize,
    /// How fast pages are read for others, and taken from others.
    pub pace: Pace,
    /// Whether checkpoints are taken.
    pub checkpoints: bool,
    /// Whether room is needed: checkpoints leave nothing in the log that followers could do without.
    pub pressure: bool,
    /// Replicas of this shard that are being brought up by pages.
    pub sessions: usize,
    /// Replicas of other shards that this one brings up by pages.
    pub helping: usize,
    /// Reads of blocks for replicas that are brought up.
    pub page_reads: Slab<PageRead>,
    /// What bringing replicas up by pages moved since the shard was opened.
    pub moved: MovedCounts,
    /// How fast this shard and its peers are.
    pub scores: Scores,
    /// Where the time of traced writes goes.
    pub traces: Traces,
    /// Followers that have so much under way that they are sent more only as they acknowledge it. Seen
    /// anew at each tick.
    pub choked: BTreeSet<NodeId>,
    /// Where damage was met, for the scrub to look at.
    pub suspects: Vec<Target>,
    /// Whether a replica holds again what it had lost, and what it would start from does not say so yet.
    pub debt_paid: bool,
    /// Tables of pages that come from the store.
    pub loads: Loads,
    /// Whether more of the index is in memory than should be, and only a checkpoint lets some of it leave.
    pub index_pressure: bool,
}

impl Shared {
    /// The state of a shard that starts.
    pub fn new(config: &ShardConfig, log: Log) -> Shared {
        Shared {
            me: config.address,
            planted: config.planted,
            limits: config.limits,
            timing: config.timing,
            segment_bytes: config.segment_bytes as usize,
            seed: config.seed,
            log,
            ops: Vec::new(),
            durable: RecordSeq(0),
            written: VecDeque::new(),
            tick: 0,
            pending_bytes: 0,
            pending_requests: 0,
            gathering: false,
            proposed: ProposedCounts::default(),
            metadata_saved: config.metadata_saved.0,
            down: BTreeSet::new(),
            draining: false,
            read_only: false,
            room: RoomState::default(),
            log_reads: Slab::default(),
            messages: 0,
            client_reads: Slab::default(),
            cache_order: VecDeque::new(),
            cached_bytes: 0,
            recorded_bytes: 0,
            page_bytes: 0,
            recorded_before: 0,
            catch_up_bytes: CATCH_UP_MIN,
            pace: Pace::new(config.limits.pages_least_bytes),
            checkpoints: config.checkpoint_bytes > 0,
            pressure: false,
            sessions: 0,
            helping: 0,
            page_reads: Slab::default(),
            moved: MovedCounts::default(),
            choked: BTreeSet::new(),
            scores: Scores::new(config.address.node, config.timing.tick, config.planted),
            traces: Traces::default(),
            suspects: Vec::new(),
            debt_paid: false,
            loads: Loads::default(),
            index_pressure: false,
        }
    }

    /// Sets the pace for the next tick: followers that are far behind get twice of what is written
    /// meanwhile, so that they come nearer and those who write are not held up.
    /// Says whether clients' payload was recorded since it was set last.
    pub fn set_pace(&mut self) -> bool {
        let before = std::mem::replace(&mut self.recorded_before, self.recorded_bytes);
        let written = (self.recorded_bytes - before) as usize;
        let asked = self.pending_requests > 0 || !self.client_reads.is_empty();
        self.pace.tick(written > 0 || asked);
        let twice = (2 * written).clamp(CATCH_UP_MIN, CATCH_UP_MAX);
        self.catch_up_bytes = if written == 0 { CATCH_UP_MAX } else { twice };
        written > 0
    }

    /// Queues a record and remembers whose it is.
    pub fn record(&mut self, record: Record, written: Written) -> RecordSeq {
        let seq = self.log.append(record);
        self.written.push_back(written);
        assert_eq!(seq.0, self.durable.0 + self.written.len() as u64, "records are counted by one");
        seq
    }

    /// The record that was appended last.
    pub fn recorded(&self) -> RecordSeq {
        RecordSeq(self.durable.0 + self.written.len() as u64)
    }

    /// Bytes of payload and of data after which a packed entry is closed.
    pub fn entry_limits(&self) -> (usize, usize) {
        let payload = self.limits.entry_bytes.min(self.segment_bytes / 2);
        (payload, ENTRY_DATA_MAX.min(self.segment_bytes / 16))
    }

    /// Whether an entry of this size fits the log in any case.
    pub fn fits_surely(&self, bytes: usize) -> bool {
        bytes <= self.segment_bytes / 4 * 3
    }

    /// Whether Raft's reserve would be left alone by so many blocks more.
    pub fn has_room(&self, blocks: u32) -> bool {
        self.planted.is(Bug::RoomUnchecked) || self.log.has_room(blocks)
    }

    /// Bytes of the segments that are not live; nothing if none of them is ever given back.
    pub fn spare_bytes(&self) -> Option<u64> {
        self.room.levels?;
        let all = u64::from(self.log.segments_total()) * self.segment_bytes as u64;
        Some(all.saturating_sub(self.room.live * BLOCK_BYTES as u64))
    }

    /// Whether the device takes more of the clients' data: `blocks` more into the log, of which some are
    /// `fresh`, so that more is live with them.
    pub fn room(&self, blocks: u32, fresh: impl FnOnce() -> u32) -> Room {
        if self.planted.is(Bug::RoomUnchecked) {
            return Room::Yes;
        }
        let Some(levels) = self.room.levels else {
            // Nothing is ever given back on such a device.
            return if self.log.has_room(blocks) { Room::Yes } else { Room::No };
        };
        let accepted = (self.pending_bytes / BLOCK_BYTES) as u64;
        if self.room.live + accepted > levels.capacity && fresh() > 0 {
            return Room::No;
        }
        match self.log.has_room_above(blocks, levels.wait) {
            true => Room::Yes,
            false if self.room.hopeless == Some(self.recorded()) => Room::No,
            false => Room::Wait,
        }
    }

    /// Blocks that leaders elsewhere may have under way to this shard.
    pub fn blocks_ahead(&self) -> u32 {
        (self.segment_bytes / 2 / BLOCK_BYTES) as u32
    }

    /// Whether the device takes more of what leaders elsewhere have under way: half a segment of it.
    pub fn room_ahead(&self) -> Room {
        let ahead = self.blocks_ahead();
        let full = |levels: Levels| self.room.live + u64::from(ahead) > levels.capacity;
        if self.room.levels.is_some_and(full) && !self.planted.is(Bug::RoomUnchecked) {
            return Room::No;
        }
        self.room(ahead, || 0)
    }

    /// A number drawn from the seed for `what`; the same for the same arguments.
    pub fn draw(&self, what: [u64; 3]) -> u64 {
        let mut z = self.seed ^ u64::from(self.me.node.0) << 32 ^ u64::from(self.me.shard.0);
        for value in what {
            z = (z ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
        }
        z
    }
}

/// One call of the shard: what is shared, the time, and where effects go.
pub struct Cx<'a> {
    /// What all groups share.
    pub shared: &'a mut Shared,
    /// The time.
    pub now: Time,
    /// The effects of this call.
    pub out: &'a mut Vec<Effect>,
}

impl Cx<'_> {
    /// Sends a frame to a peer.
    pub fn send(&mut self, to: Address, frame: Frame) {
        self.out.push(Effect::Send { to, frame });
    }

    /// Answers a client.
    pub fn reply(&mut self, link: LinkId, id: RequestId, group: GroupId, result: ReplyResult) {
        self.out.push(Effect::Reply { link, reply: Reply::new(id, group, result) });
    }

    /// Writes a line for the operator.
    pub fn notice(&mut self, alarm: bool, text: String) {
        self.out.push(Effect::Notice { alarm, text });
    }

    /// Starts a read of block data.
    pub fn read(&mut self, what: LogRead, at: crate::log::Location, blocks: u32) {
        let token = self.shared.log_reads.insert(what) as u64;
        self.shared.log.read(token, at, blocks, &mut self.shared.ops);
    }

    /// Starts a read of an entry's data.
    pub fn read_data(&mut self, what: LogRead, at: crate::log::DataLocation) {
        let token = self.shared.log_reads.insert(what) as u64;
        self.shared.log.read_data(token, at, &mut self.shared.ops);
    }
}
