//! Three shards, an instant network and memory for disks: small, deterministic, and stopped at will.

use crate::checkpoint::{
    Change, Changes, Loader, SaveError, Snapshot, StoreDone, StoreOp, Verified, page_content,
    prefix_of,
};
use crate::config::{GroupConfig, Limits, Scrubbing, ShardConfig, Timing};
use crate::consensus::PageId;
use crate::event::{Effect, Event, LinkId};
use crate::index::PageContent;
use crate::planted::Planted;
use crate::shard::{GroupRole, Shard};
use basalt_wire::block::{BLOCK_BYTES, crc32c};
use basalt_wire::buffer::{IoBuf, Payload};
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{Frame, Priority, ReplyResult, Request, RequestOp};
use basalt_wire::ids::*;
use basalt_wire::io::{DiskDone, DiskOp, DiskOpKind};
use basalt_wire::time::Time;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub const G: GroupId = GroupId(0);
pub const V: VolumeId = VolumeId(7);
const SEGMENT: u64 = 256 << 10;

pub fn node(n: u32) -> NodeId {
    NodeId(n)
}

pub fn address(n: u32) -> Address {
    Address { node: NodeId(n), shard: ShardId(0) }
}

pub struct Node {
    pub config: ShardConfig,
    pub shard: Option<Shard>,
    pub disk: Vec<u8>,
    pub ops: VecDeque<DiskOp>,
    /// Writes wait while this is set; reads go on.
    pub writes_held: bool,
    /// Writes that are carried out before the others wait for ever.
    pub writes_left: usize,
    pub effects: Vec<Effect>,
    /// The store of its checkpoints.
    pub store: BTreeMap<Vec<u8>, Vec<u8>>,
    pub saves_held: bool,
    /// Checkpoints that are saved before the others wait for ever.
    pub saves_left: usize,
    pub saves: VecDeque<Changes>,
    /// Pages that the store was asked for; it gives none while this is set.
    pub pages_held: bool,
    pub pages: VecDeque<Vec<PageId>>,
}

pub struct World {
    pub now: Time,
    pub nodes: BTreeMap<u32, Node>,
    pub net: VecDeque<(u32, u32, Frame)>,
    pub cut: BTreeSet<(u32, u32)>,
    pub replies: BTreeMap<u64, ReplyResult>,
    pub log: Vec<String>,
    pub notices: Vec<String>,
    pub applied: BTreeMap<u32, Vec<(u64, Bytes)>>,
    pub proposed: BTreeMap<u64, Result<LogIndex, crate::event::ProposeError>>,
    /// The entry as of which a node asks for the state of the metadata group.
    pub wanted: BTreeMap<u32, LogIndex>,
    pub drained: BTreeSet<u32>,
    pub leaders: BTreeMap<(u32, u64), u32>,
    pub log_frames: bool,
    /// Bytes of block data sent to each.
    sent_bytes: BTreeMap<u32, usize>,
    /// The volume that requests are about.
    pub volume: VolumeId,
    next_id: u64,
}

/// A small generator of random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

pub struct Options {
    pub nodes: u32,
    /// How many of them hold the groups at first.
    pub founders: u32,
    pub groups: u32,
    pub seed: u64,
    pub planted: Planted,
    pub limits: Limits,
    pub segments: u64,
    pub checkpoint_bytes: u64,
    /// None by default: what a checkpoint holds leaves memory at once, and comes back when it is needed.
    pub index_bytes: u64,
    pub scrub: Scrubbing,
}

impl Default for Options {
    fn default() -> Options {
        let limits = Limits { segments_reserved: 1, ..Limits::default() };
        Options {
            nodes: 3,
            founders: u32::MAX,
            groups: 1,
            seed: 1,
            planted: Planted::NONE,
            limits,
            segments: 32,
            checkpoint_bytes: 0,
            index_bytes: 0,
            scrub: Scrubbing::ASKED,
        }
    }
}

impl World {
    pub fn new(options: Options) -> World {
        let mut world = World {
            now: Time(1_000_000),
            nodes: BTreeMap::new(),
            net: VecDeque::new(),
            cut: BTreeSet::new(),
            replies: BTreeMap::new(),
            log: Vec::new(),
            notices: Vec::new(),
            applied: BTreeMap::new(),
            proposed: BTreeMap::new(),
            wanted: BTreeMap::new(),
            drained: BTreeSet::new(),
            leaders: BTreeMap::new(),
            log_frames: true,
            sent_bytes: BTreeMap::new(),
            volume: V,
            next_id: 0,
        };
        let founders = options.founders.min(options.nodes);
        let voters: Vec<Address> = (1..=founders).map(address).collect();
        let ids = (0..options.groups).map(GroupId).chain([GroupId::METADATA]);
        let groups: Vec<_> = ids.map(|id| GroupConfig::new(id, voters.clone())).collect();
        for n in 1..=options.nodes {
            let config = ShardConfig {
                cluster: ClusterId(5),
                address: address(n),
                device_bytes: (128 << 10) + options.segments * SEGMENT,
                segment_bytes: SEGMENT,
                volatile_cache: false,
                groups: if n <= founders { groups.clone() } else { Vec::new() },
                timing: Timing::default(),
                limits: options.limits,
                checkpoint_bytes: options.checkpoint_bytes,
                index_bytes: options.index_bytes,
                scrub: options.scrub,
                metadata_saved: LogIndex(0),
                seed: options.seed,
                planted: options.planted,
            };
            let disk = vec![0; config.device_bytes as usize];
            let ops: Vec<_> = Shard::format(&config);
            let mut node = Node {
                config,
                shard: None,
                disk,
                ops: VecDeque::new(),
                writes_held: false,
                writes_left: usize::MAX,
                effects: Vec::new(),
                store: BTreeMap::new(),
                saves_held: false,
                saves_left: usize::MAX,
                saves: VecDeque::new(),
                pages_held: false,
                pages: VecDeque::new(),
            };
            for op in ops {
                node.carry_out(op);
            }
            world.nodes.insert(n, node);
        }
        for n in 1..=options.nodes {
            world.start(n);
        }
        world
    }

    pub fn start(&mut self, n: u32) {
        let node = self.nodes.get_mut(&n).unwrap();
        let mut effects = Vec::new();
        node.shard = Some(Shard::open(node.config.clone(), self.now, &mut effects));
        node.effects = effects;
        self.applied.remove(&n);
        self.run();
        let others: Vec<u32> = self.nodes.keys().copied().filter(|m| *m != n).collect();
        for m in others {
            self.event(m, Event::PeerLink { peer: node_id(n), up: true });
        }
        self.run();
    }

    /// Stops a node as a power cut does: what its disk had not done is gone.
    pub fn crash(&mut self, n: u32) {
        self.crash_silently(n);
        let others: Vec<u32> = self.nodes.keys().copied().filter(|m| *m != n).collect();
        for m in others {
            self.event(m, Event::PeerLink { peer: node_id(n), up: false });
        }
        self.run();
    }

    /// The same, and nobody notices.
    pub fn crash_silently(&mut self, n: u32) {
        let node = self.nodes.get_mut(&n).unwrap();
        node.shard = None;
        node.ops.clear();
        node.effects.clear();
        node.saves.clear();
        node.pages.clear();
        node.writes_held = false;
        node.writes_left = usize::MAX;
        node.saves_left = usize::MAX;
        self.net.retain(|(from, to, _)| *from != n && *to != n);
    }

    pub fn isolate(&mut self, n: u32, yes: bool) {
        for m in self.nodes.keys().copied().filter(|m| *m != n).collect::<Vec<_>>() {
            for pair in [(n, m), (m, n)] {
                if yes {
                    self.cut.insert(pair);
                } else {
                    self.cut.remove(&pair);
                }
            }
        }
    }

    pub fn event(&mut self, n: u32, event: Event) {
        let now = self.now;
        let node = self.nodes.get_mut(&n).unwrap();
        if let Some(shard) = &mut node.shard {
            shard.handle(now, event, &mut node.effects);
        }
    }

    /// Ends turns and carries out effects until nothing moves.
    pub fn run(&mut self) {
        for round in 0.. {
            assert!(round < 5_000, "the world does not come to rest");
            let mut moved = false;
            for n in self.nodes.keys().copied().collect::<Vec<_>>() {
                moved |= self.turn(n);
            }
            while let Some((from, to, frame)) = self.net.pop_front() {
                moved = true;
                if !self.cut.contains(&(from, to)) {
                    self.event(to, Event::Peer { from: address(from), frame });
                }
            }
            if !moved {
                break;
            }
        }
    }

    fn turn(&mut self, n: u32) -> bool {
        let now = self.now;
        let node = self.nodes.get_mut(&n).unwrap();
        let Some(shard) = &mut node.shard else { return false };
        let mut moved = false;
        for _ in 0..node.ops.len() {
            let op = node.ops.pop_front().unwrap();
            if matches!(op.kind, DiskOpKind::Write { .. } | DiskOpKind::Flush) {
                if node.writes_held || node.writes_left == 0 {
                    node.ops.push_back(op);
                    continue;
                }
                node.writes_left -= 1;
            }
            moved = true;
            let done = carry_out(&mut node.disk, op);
            shard.handle(now, Event::Disk(done), &mut node.effects);
        }
        if !node.saves_held {
            while node.saves_left > 0
                && let Some(changes) = node.saves.pop_front()
            {
                node.saves_left -= 1;
                let saved = save(&mut node.store, &changes);
                let event = Event::Store(StoreDone::Saved(saved));
                shard.handle(now, event, &mut node.effects);
            }
        }
        while !node.pages_held
            && let Some(pages) = node.pages.pop_front()
        {
            let content = |page| (page, content_of(&node.store, &page));
            let pages = pages.into_iter().map(content).collect();
            shard.handle(now, Event::Store(StoreDone::Pages(pages)), &mut node.effects);
            moved = true;
        }
        shard.end_turn(now, &mut node.effects);
        moved |= !node.effects.is_empty();
        let effects = std::mem::take(&mut node.effects);
        for effect in effects {
            self.effect(n, effect);
        }
        moved
    }

    fn effect(&mut self, n: u32, effect: Effect) {
        match effect {
            Effect::Disk(op) => self.nodes.get_mut(&n).unwrap().ops.push_back(op),
            Effect::Store(StoreOp::Save(changes)) => {
                self.nodes.get_mut(&n).unwrap().saves.push_back(changes);
            }
            Effect::Store(StoreOp::Verify { from, .. }) => {
                let mut verified = Verified::default();
                let records = self.nodes[&n].store.range(from..);
                let mut added = records.map(|(key, value)| verified.add(key, value));
                let result = added.find_map(Result::err).map_or(Ok(()), Err);
                let result = result.map(|()| Verified { next: None, ..verified });
                self.event(n, Event::Store(StoreDone::Verified(result)));
            }
            Effect::Store(StoreOp::Load { index_bytes }) => {
                let loaded = load(&self.nodes[&n].store, index_bytes);
                self.event(n, Event::Store(StoreDone::Loaded(loaded)));
            }
            Effect::Store(StoreOp::Pages(pages)) => {
                self.nodes.get_mut(&n).unwrap().pages.push_back(pages);
            }
            Effect::Send { to, frame } => {
                if self.log_frames {
                    self.log.push(format!("{n}->{}: {frame:?}", to.node));
                }
                if let Frame::Raft(message) = &frame {
                    let payload = message.entries.iter().map(|e| e.payload.len()).sum::<usize>();
                    *self.sent_bytes.entry(to.node.0).or_default() += payload;
                }
                self.net.push_back((n, to.node.0, frame));
            }
            Effect::Reply { reply, .. } => {
                let again = self.replies.insert(reply.id.0, reply.result);
                assert!(again.is_none(), "request {} was answered twice", reply.id);
            }
            Effect::FetchMetadata { at_least, .. } => {
                self.wanted.insert(n, at_least);
            }
            Effect::Proposed { token, result } => {
                self.proposed.insert(token, result);
            }
            Effect::Applied { index, command, .. } => {
                self.applied.entry(n).or_default().push((index.0, command));
            }
            Effect::LeaderChanged { group, leader, term } => {
                if group == G && leader == Some(node_id(n)) {
                    let other = self.leaders.insert((group.0, term.0), n);
                    assert!(other.is_none_or(|m| m == n), "two leaders in term {term}");
                }
            }
            Effect::Drained => {
                self.drained.insert(n);
            }
            Effect::DeviceSuspect { reason } => panic!("node {n}: device suspect: {reason}"),
            Effect::Notice { text, .. } => self.notices.push(format!("{n}: {text}")),
        }
    }

    /// Some single steps in random order: a turn of a node, or the next frame of a link.
    pub fn shuffle(&mut self, random: &mut Random, steps: u32) {
        for _ in 0..steps {
            if random.below(3) == 0 || self.net.is_empty() {
                let n = random.below(self.nodes.len() as u64) as u32 + 1;
                self.turn(n);
                continue;
            }
            let pick = random.below(self.net.len() as u64) as usize;
            let (from, to, _) = self.net[pick];
            let first = self.net.iter().position(|(f, t, _)| (*f, *t) == (from, to)).unwrap();
            let (_, _, frame) = self.net.remove(first).unwrap();
            if !self.cut.contains(&(from, to)) {
                self.event(to, Event::Peer { from: address(from), frame });
            }
        }
    }

    /// Lets time pass, from deadline to deadline.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.run();
        loop {
            let deadlines = self.nodes.values().filter_map(|n| n.shard.as_ref()?.next_deadline());
            let Some(next) = deadlines.min().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            self.run();
        }
        self.now = end;
        self.run();
    }

    /// Lets the time pass after which every follower that can be reached knows what is committed.
    pub fn announce(&mut self) {
        self.pass(Timing::default().announce_after);
    }

    pub fn shard(&self, n: u32) -> &Shard {
        self.nodes[&n].shard.as_ref().expect("the node runs")
    }

    pub fn leader(&self) -> Option<u32> {
        let leads = |n: &Node| {
            n.shard.as_ref().is_some_and(|s| {
                s.status().groups.iter().any(|g| g.group == G && g.role == GroupRole::Leader)
            })
        };
        let mut leaders: Vec<_> =
            self.nodes.iter().filter(|(_, n)| leads(n)).map(|(n, _)| (self.term(*n), *n)).collect();
        leaders.sort_unstable();
        leaders.last().map(|(_, n)| *n)
    }

    pub fn term(&self, n: u32) -> u64 {
        self.status(n).term.0
    }

    pub fn status(&self, n: u32) -> crate::shard::GroupStatus {
        let status = self.shard(n).status();
        status.groups.into_iter().find(|g| g.group == G).unwrap()
    }

    /// Waits until a leader is there and has applied an entry of its term.
    pub fn elect(&mut self) -> u32 {
        for _ in 0..100 {
            if let Some(n) = self.leader() {
                let status = self.status(n);
                if status.applied == status.last {
                    return n;
                }
            }
            self.pass(Duration::from_millis(50));
        }
        panic!("no leader was elected: {:#?}", self.notices);
    }

    /// Bytes of block data that were sent to a node by its peers.
    pub fn sent_bytes(&self, n: u32) -> usize {
        self.sent_bytes.get(&n).copied().unwrap_or(0)
    }

    pub fn request(&mut self, n: u32, epoch: u64, incarnation: u64, op: RequestOp) -> u64 {
        let (link, priority) = (LinkId(1), Priority::BestEffort);
        self.request_as(n, (link, priority), (epoch, incarnation), op)
    }

    pub fn request_as(
        &mut self,
        n: u32,
        (link, priority): (LinkId, Priority),
        (epoch, incarnation): (u64, u64),
        op: RequestOp,
    ) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        let traced = false;
        let request = Request {
            traced,
            id: RequestId(id),
            group: G,
            volume: self.volume,
            epoch: Epoch(epoch),
            incarnation: Incarnation(incarnation),
            priority,
            op,
        };
        self.event(n, Event::Request { link, remote: true, request });
        id
    }

    pub fn ask(&mut self, n: u32, epoch: u64, op: RequestOp) -> ReplyResult {
        let id = self.request(n, epoch, 1, op);
        self.run();
        self.replies.get(&id).cloned().unwrap_or_else(|| panic!("no answer to {id}"))
    }

    pub fn fence(&mut self, epoch: u64) -> ReplyResult {
        let leader = self.elect();
        let term = Term(self.term(leader));
        self.ask(leader, epoch, RequestOp::Fence { term, generation: Generation(0) })
    }

    pub fn write(&mut self, epoch: u64, block: u64, fill: u8) -> ReplyResult {
        let leader = self.elect();
        let op = self.write_op(leader, block, fill, 1);
        self.ask(leader, epoch, op)
    }

    pub fn write_op(&self, leader: u32, block: u64, fill: u8, count: u32) -> RequestOp {
        let bytes = Bytes::from(vec![fill; BLOCK_BYTES]);
        let mut payload = Payload::empty();
        (0..count).for_each(|_| payload.push(bytes.clone()));
        RequestOp::Write {
            term: Term(self.term(leader)),
            generation: Generation(0),
            range: BlockRange { block, count },
            checksums: vec![crc32c(&bytes); count as usize],
            payload,
        }
    }

    /// The first byte of a block as one node reads it.
    pub fn read(&mut self, n: u32, epoch: u64, block: u64, floor: u64) -> Result<u8, ReplyResult> {
        let range = BlockRange { block, count: 1 };
        match self.ask(n, epoch, RequestOp::Read { range, floor: LogIndex(floor), snapshot: None })
        {
            ReplyResult::Data { payload, .. } => Ok(payload.contiguous()[0]),
            other => Err(other),
        }
    }

    /// What is to be known after a failure.
    pub fn tell(&self) -> Vec<String> {
        let nodes = self.nodes.iter().filter(|(_, node)| node.shard.is_some());
        let states = nodes.map(|(n, _)| format!("{n}: {:?}", self.shard(*n).status().groups));
        let recent = self.log.iter().rev().take(60).rev().cloned();
        states.chain(self.notices.iter().cloned()).chain(recent).collect()
    }

    /// All replicas that run hold the same.
    pub fn check_converged(&self) {
        let running: Vec<u32> =
            self.nodes.iter().filter(|(_, n)| n.shard.is_some()).map(|(n, _)| *n).collect();
        self.check_converged_among(&running);
    }

    /// These replicas hold the same.
    pub fn check_converged_among(&self, running: &[u32]) {
        let digests: Vec<_> = running.iter().map(|n| self.shard(*n).digest(G).unwrap()).collect();
        assert!(digests.windows(2).all(|w| w[0] == w[1]), "replicas differ: {digests:?}");
    }
}

fn node_id(n: u32) -> NodeId {
    NodeId(n)
}

impl Node {
    fn carry_out(&mut self, op: DiskOp) {
        let _ = carry_out(&mut self.disk, op);
    }
}

fn save(store: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: &Changes) -> Result<(), SaveError> {
    let (mut kept, mut lost) = (BTreeMap::new(), Vec::new());
    for carried in changes.carried() {
        let prefix = prefix_of(&carried.page);
        let records = store.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        if !carried.is_sound(records.clone().map(|(key, value)| (&key[..], &value[..]))) {
            lost.push(carried.page);
        }
        kept.extend(records.map(|(key, value)| (key.clone(), value.clone())));
    }
    if !lost.is_empty() {
        return Err(SaveError::Lost(lost));
    }
    for change in changes.iter() {
        match change {
            Change::Put { key, value } => drop(store.insert(key.to_vec(), value.to_vec())),
            Change::DeletePrefix(prefix) => store.retain(|key, _| !key.starts_with(prefix)),
        }
    }
    store.append(&mut kept);
    Ok(())
}

pub fn load(
    store: &BTreeMap<Vec<u8>, Vec<u8>>,
    index_bytes: u64,
) -> Result<Option<Box<Snapshot>>, String> {
    let mut loader = Loader::new(index_bytes, Planted::NONE);
    store.iter().try_for_each(|(key, value)| loader.add(key, value))?;
    loader.finish()
}

/// What a store holds of a page.
fn content_of(store: &BTreeMap<Vec<u8>, Vec<u8>>, page: &PageId) -> Result<PageContent, String> {
    let prefix = prefix_of(page);
    let records = store.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
    page_content(page, records.map(|(key, value)| (&key[..], &value[..])))
}

fn carry_out(disk: &mut [u8], op: DiskOp) -> DiskDone {
    let mut done = DiskDone { token: op.token, buf: None, result: Ok(()) };
    match op.kind {
        DiskOpKind::Read { offset, mut buf } => {
            let at = offset as usize;
            let len = buf.len();
            buf.copy_from_slice(&disk[at..at + len]);
            done.buf = Some::<IoBuf>(buf);
        }
        DiskOpKind::Write { offset, data, .. } => {
            disk[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
        }
        DiskOpKind::Flush | DiskOpKind::Discard { .. } => {}
    }
    done
}
