//! A cluster in memory, as a client sees it: replicas of a few groups that lead, follow, lag, refuse
//! and forget, and links that break with requests under way, some of which arrive much later.

use crate::{BlockError, BlockOp, BlockResult};
use crate::{ClientEffect, ClientEvent, PoolMap, RateLimits, Tuning, VolumeClient, VolumeConfig};
use basalt_crypt::{VolumeCipher, VolumeKey};
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS, crc32c};
use basalt_wire::buffer::Payload;
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{Refusal, Reply, ReplyResult, Request, RequestOp};
use basalt_wire::ids::{
    Address, Epoch, Generation, GroupId, LogIndex, NodeId, ShardId, Term, VolumeId,
};
use basalt_wire::time::Time;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub const NODES: usize = 3;
pub const EPOCH: Epoch = Epoch(7);

/// splitmix64, for choices.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

pub fn address(node: usize) -> Address {
    Address { node: NodeId(node as u32 + 1), shard: ShardId(0) }
}

#[derive(Default)]
pub struct Wire {
    pub up: bool,
    pub dialled: bool,
    /// Nothing moves on it, and nobody is told.
    pub silent: bool,
    pub requests: VecDeque<Request>,
    pub replies: VecDeque<Reply>,
}

/// A write that its leader has accepted and not committed.
struct Pending {
    node: usize,
    request: Request,
}

pub struct GroupModel {
    pub leader: Option<usize>,
    pub term: u64,
    /// A node that still takes itself for the leader of an old term.
    pub deposed: Option<(usize, u64)>,
    pub last: u64,
    pub applied: [u64; NODES],
    pub epoch: u64,
    newest: u64,
    pending: VecDeque<Pending>,
    generation: u32,
    /// The index up to which each generation is frozen.
    frozen: BTreeMap<u32, u64>,
    versions: BTreeMap<u64, Vec<(u64, Option<Bytes>)>>,
}

pub struct World {
    pub rng: Rng,
    pub now: Time,
    pub client: VolumeClient,
    pub wires: Vec<Wire>,
    pub groups: Vec<GroupModel>,
    /// Requests of broken links that are still under way.
    pub late: Vec<(usize, Request)>,
    /// Faults that may still happen.
    pub faults: u32,
    pub done: Vec<(u64, Time, Result<BlockResult, BlockError>)>,
    pub ready: bool,
    pub lost: Option<BlockError>,
    /// Times that the client asked for a newer map.
    pub maps_asked: u32,
    /// Answers given instead of the usual ones, first come first served.
    pub scripted: VecDeque<(usize, Refusal)>,
    /// The next data from a node is damaged on its way.
    pub damage: Option<usize>,
    pub served: Vec<(usize, RequestOp)>,
    pub credits: (u32, u32),
    out: Vec<ClientEffect>,
}

/// Whether the volume of a world with this seed is encrypted.
pub fn is_encrypted(seed: u64) -> bool {
    seed % 3 == 2
}

pub fn config(groups: u32, size_bytes: u64, local: Option<NodeId>) -> VolumeConfig {
    let voters: Vec<Address> = (0..NODES).map(address).collect();
    VolumeConfig {
        volume: VolumeId(5),
        epoch: EPOCH,
        generation: Generation(0),
        lineage: 5,
        size_bytes,
        map: Arc::new(PoolMap {
            version: 1,
            group_count: groups,
            groups: vec![voters; groups as usize],
        }),
        local,
        limits: RateLimits::default(),
        cipher: None,
    }
}

impl World {
    pub fn new(seed: u64, groups: u32, size_bytes: u64, local: Option<NodeId>) -> World {
        let mut rng = Rng(seed);
        let mut out = Vec::new();
        let mut config = config(groups, size_bytes, local);
        if is_encrypted(seed) {
            let bytes: Vec<u8> = (0..64).collect();
            let key = VolumeKey::new(&bytes).expect("its halves differ");
            config.cipher = Some(Arc::new(VolumeCipher::new(&key)));
        }
        let client = VolumeClient::with_tuning(config, Tuning::default(), Time::ZERO, &mut out);
        let models = (0..groups).map(|_| GroupModel::new(rng.below(NODES as u64) as usize));
        let groups = models.collect();
        let mut world = World {
            rng,
            now: Time::ZERO,
            client,
            wires: (0..NODES).map(|_| Wire::default()).collect(),
            groups,
            late: Vec::new(),
            faults: 0,
            done: Vec::new(),
            ready: false,
            lost: None,
            maps_asked: 0,
            scripted: VecDeque::new(),
            damage: None,
            served: Vec::new(),
            credits: (1 << 20, 8),
            out,
        };
        world.carry_out();
        world
    }

    pub fn event(&mut self, event: ClientEvent) {
        self.client.handle(self.now, event, &mut self.out);
        self.carry_out();
    }

    pub fn end_turn(&mut self) {
        self.client.end_turn(self.now, &mut self.out);
        self.carry_out();
    }

    pub fn submit(&mut self, tag: u64, op: BlockOp) {
        self.event(ClientEvent::Submit { tag, op });
    }

    fn carry_out(&mut self) {
        for effect in std::mem::take(&mut self.out) {
            match effect {
                ClientEffect::Dial { to } => self.wires[node_of(to)].dialled = true,
                ClientEffect::Reset { to } => {
                    self.cut(node_of(to));
                    self.wires[node_of(to)].dialled = true;
                }
                ClientEffect::Send { to, request } => {
                    let wire = &mut self.wires[node_of(to)];
                    assert!(wire.up, "a request for a link that is down");
                    wire.requests.push_back(request);
                }
                ClientEffect::Complete { tag, result } => self.done.push((tag, self.now, result)),
                ClientEffect::AskMap => self.maps_asked += 1,
                ClientEffect::Ready => self.ready = true,
                ClientEffect::Lost(error) => self.lost = Some(error),
            }
        }
    }

    /// Breaks a link. What was under way to the node may still arrive, at any time.
    pub fn cut(&mut self, node: usize) {
        let wire = &mut self.wires[node];
        wire.up = false;
        wire.silent = false;
        wire.replies.clear();
        for request in std::mem::take(&mut wire.requests) {
            if !self.rng.one_in(4) {
                self.late.push((node, request));
            }
        }
    }

    pub fn link_down(&mut self, node: usize) {
        self.cut(node);
        self.event(ClientEvent::LinkDown { to: address(node) });
    }

    /// One step: something that can happen does, or time passes.
    pub fn step(&mut self) {
        self.now = self.now + Duration::from_micros(200);
        let node = self.rng.below(NODES as u64) as usize;
        match self.rng.below(12) {
            0..=3 => self.take_request(node),
            4..=6 => self.give_reply(node),
            7 => self.commit_some(),
            8 => self.apply_some(),
            9 => self.connect(node),
            10 if self.faults > 0 && self.rng.one_in(3) => {
                self.faults -= 1;
                self.fault(node);
            }
            10 if self.rng.one_in(4) => self.settle(),
            11 => self.end_turn(),
            _ => {}
        }
        if self.is_quiet() {
            self.end_turn();
            if self.is_quiet()
                && let Some(at) = self.client.next_deadline()
            {
                self.now = self.now.max(at);
                self.end_turn();
                self.settle();
            }
        }
    }

    /// Runs without further faults until nothing is left to do, or panics.
    pub fn finish(&mut self) {
        self.faults = 0;
        for _ in 0..400_000 {
            if self.client.in_flight() == 0 && (self.ready || self.lost.is_some()) {
                return;
            }
            self.step();
        }
        panic!("requests hang: {:?}", self.client);
    }

    pub fn run_until(&mut self, what: impl Fn(&World) -> bool) {
        for _ in 0..100_000 {
            if what(self) {
                return;
            }
            self.step();
        }
        panic!("never happens: {:?}", self.client);
    }

    fn is_quiet(&self) -> bool {
        let idle = |wire: &Wire| {
            wire.silent || (wire.requests.is_empty() && wire.replies.is_empty() && !wire.dialled)
        };
        self.wires.iter().all(idle) && self.groups.iter().all(|group| group.pending.is_empty())
    }

    /// Groups without a leader elect one, deposed leaders notice, silent links come back.
    fn settle(&mut self) {
        for group in &mut self.groups {
            group.deposed = None;
            if group.leader.is_none() {
                group.leader = Some(self.rng.below(NODES as u64) as usize);
                group.term += 1;
                group.newest = 0;
            }
        }
        let node = self.rng.below(NODES as u64) as usize;
        self.wires[node].silent = false;
    }

    fn connect(&mut self, node: usize) {
        let wire = &mut self.wires[node];
        if !wire.dialled || wire.silent {
            return;
        }
        wire.dialled = false;
        if wire.up {
            return;
        }
        wire.requests.clear();
        wire.replies.clear();
        wire.up = !(self.faults > 0 && self.rng.one_in(8));
        let (to, up) = (address(node), self.wires[node].up);
        let (credit_bytes, credit_requests) = self.credits;
        self.event(if up {
            ClientEvent::LinkUp { to, credit_bytes, credit_requests }
        } else {
            ClientEvent::LinkDown { to }
        });
    }

    fn fault(&mut self, node: usize) {
        let group = self.rng.below(self.groups.len() as u64) as usize;
        match self.rng.below(11) {
            0 | 1 => self.depose(group),
            2 => {
                self.depose(group);
                self.groups[group].leader = None;
            }
            3 | 4 | 9 | 10 if self.wires[node].up => self.link_down(node),
            5 => drop(self.wires[node].replies.pop_front()),
            6 => self.wires[node].silent = self.wires[node].up,
            7 => {
                let refusals = [
                    Refusal::Busy,
                    Refusal::Damaged,
                    Refusal::Unavailable,
                    Refusal::NotHere,
                    Refusal::NotAttached,
                    Refusal::BadChecksum,
                ];
                let which = self.rng.below(refusals.len() as u64) as usize;
                self.scripted.push_back((node, refusals[which]));
            }
            8 => self.damage = Some(node),
            _ => {}
        }
    }

    /// Another leader. What the old one had not committed is committed by the new one up to some
    /// point, and the rest is lost.
    pub fn depose(&mut self, number: usize) {
        let keep = self.rng.below(self.groups[number].pending.len() as u64 + 1);
        for _ in 0..keep {
            let tell = self.rng.one_in(2);
            self.commit_one(number, tell);
        }
        let rest = std::mem::take(&mut self.groups[number].pending);
        for Pending { node, request } in rest {
            if self.rng.one_in(2) {
                self.reply(node, &request, ReplyResult::Unknown);
            }
        }
        let new = self.rng.below(NODES as u64) as usize;
        let group = &mut self.groups[number];
        group.deposed = group.leader.filter(|old| *old != new).map(|old| (old, group.term));
        group.leader = Some(new);
        group.term += 1;
        group.newest = 0;
    }

    /// Makes a node the leader of a term, with nothing pending.
    pub fn elect(&mut self, number: usize, node: usize, term: u64) {
        let group = &mut self.groups[number];
        group.leader = Some(node);
        group.term = term;
        group.newest = 0;
    }

    pub fn take_request(&mut self, node: usize) {
        if !self.late.is_empty() && self.rng.one_in(80) {
            let which = self.rng.below(self.late.len() as u64) as usize;
            let (node, request) = self.late.swap_remove(which);
            // Nobody listens to the answer any more.
            self.serve(node, request, false);
        }
        let wire = &mut self.wires[node];
        if wire.silent {
            return;
        }
        if let Some(request) = wire.requests.pop_front() {
            self.serve(node, request, true);
        }
    }

    fn give_reply(&mut self, node: usize) {
        let wire = &mut self.wires[node];
        if wire.silent || !wire.up {
            return;
        }
        if let Some(reply) = wire.replies.pop_front() {
            let again = self.rng.one_in(16).then(|| reply.clone());
            self.event(ClientEvent::Reply { from: address(node), reply });
            if let Some(reply) = again {
                self.event(ClientEvent::Reply { from: address(node), reply });
            }
        }
    }

    fn reply(&mut self, node: usize, request: &Request, result: ReplyResult) {
        let reply = Reply::new(request.id, request.group, result);
        if self.wires[node].up {
            self.wires[node].replies.push_back(reply);
        }
    }

    fn serve(&mut self, node: usize, request: Request, listens: bool) {
        self.served.push((node, request.op.clone()));
        let scripted = self.scripted.iter().position(|(n, _)| *n == node);
        let asks = matches!(request.op, RequestOp::Leader);
        let answer = match scripted {
            Some(at) if listens && !asks => {
                let (_, refusal) = self.scripted.remove(at).expect("just found");
                Some(ReplyResult::Refused(refusal))
            }
            _ => self.groups[request.group.0 as usize].serve(node, &request),
        };
        match answer {
            Some(mut answer) if listens => {
                if let ReplyResult::Data { payload, .. } = &mut answer
                    && self.damage == Some(node)
                {
                    self.damage = None;
                    // The way from the local replica is memory, which is not verified.
                    if node != 0 {
                        let mut bytes = payload.contiguous().to_vec();
                        bytes[17] ^= 1;
                        *payload = Payload::from(Bytes::from(bytes));
                    }
                }
                self.reply(node, &request, answer);
            }
            Some(_) => {}
            None => {
                let group = &mut self.groups[request.group.0 as usize];
                group.pending.push_back(Pending { node, request });
            }
        }
    }

    fn commit_some(&mut self) {
        let group = self.rng.below(self.groups.len() as u64) as usize;
        for _ in 0..=self.rng.below(3) {
            self.commit_one(group, true);
        }
    }

    fn commit_one(&mut self, group: usize, tell: bool) {
        let Some(Pending { node, request }) = self.groups[group].pending.pop_front() else {
            return;
        };
        let result = self.groups[group].commit(node, &request);
        if tell {
            self.reply(node, &request, result);
        }
    }

    fn apply_some(&mut self) {
        for group in &mut self.groups {
            let node = self.rng.below(NODES as u64) as usize;
            let behind = group.last - group.applied[node];
            group.applied[node] += self.rng.below(behind + 1);
        }
    }
}

fn node_of(address: Address) -> usize {
    address.node.0 as usize - 1
}

impl GroupModel {
    fn new(leader: usize) -> GroupModel {
        GroupModel {
            leader: Some(leader),
            term: 1,
            deposed: None,
            last: 1,
            applied: [0; NODES],
            epoch: 0,
            newest: 0,
            pending: VecDeque::new(),
            generation: 0,
            frozen: BTreeMap::new(),
            versions: BTreeMap::new(),
        }
    }

    /// The answer, or nothing if it is proposed, or swallowed by a leader that is none any more.
    fn serve(&mut self, node: usize, request: &Request) -> Option<ReplyResult> {
        if request.epoch.0 < self.epoch {
            return Some(ReplyResult::Refused(Refusal::Fenced));
        }
        match &request.op {
            RequestOp::Write { term, .. }
            | RequestOp::Unmap { term, .. }
            | RequestOp::Fence { term, .. }
            | RequestOp::Freeze { term, .. }
            | RequestOp::CloseGate { term, .. }
            | RequestOp::OpenGate { term, .. }
            | RequestOp::DropSnapshot { term, .. }
            | RequestOp::Revert { term, .. }
            | RequestOp::Clone { term, .. }
            | RequestOp::Fill { term, .. }
            | RequestOp::Detach { term, .. }
            | RequestOp::Delete { term } => self.accept(node, *term, request),
            RequestOp::Read { range, floor, .. } => Some(self.read(node, *range, *floor)),
            RequestOp::Extents { range, floor, .. } => Some(self.extents(node, *range, *floor)),
            RequestOp::Changes { .. } => Some(ReplyResult::Refused(Refusal::NoSnapshot)),
            RequestOp::Leader => {
                let leads = self.deposed.filter(|(old, _)| *old == node);
                let (leader, term) = match leads {
                    Some((old, term)) => (Some(old), term),
                    None => (self.leader, self.term),
                };
                let leader = leader.map(|leader| NodeId(leader as u32 + 1));
                Some(ReplyResult::Leader { leader, term: Term(term) })
            }
        }
    }

    fn accept(&mut self, node: usize, term: Term, request: &Request) -> Option<ReplyResult> {
        if self.deposed == Some((node, term.0)) {
            return Some(ReplyResult::Unknown);
        }
        if self.leader != Some(node) || self.term != term.0 {
            let leader = self.leader.map(|leader| NodeId(leader as u32 + 1));
            return Some(ReplyResult::Leader { leader, term: Term(self.term) });
        }
        if request.incarnation.0 < self.newest {
            return Some(ReplyResult::Refused(Refusal::LateDuplicate));
        }
        self.newest = request.incarnation.0;
        if let RequestOp::Write { checksums, payload, .. } = &request.op {
            let data = payload.contiguous();
            let real: Vec<u32> = data.chunks(BLOCK_BYTES).map(crc32c).collect();
            assert_eq!(*checksums, real, "checksums of a write");
        }
        let fences = matches!(request.op, RequestOp::Fence { .. });
        if !fences && self.epoch < request.epoch.0 {
            return Some(ReplyResult::Refused(Refusal::NotAttached));
        }
        None
    }

    fn commit(&mut self, node: usize, request: &Request) -> ReplyResult {
        self.last += 1;
        let index = self.last;
        self.applied[node] = index;
        if request.epoch.0 < self.epoch {
            return ReplyResult::Refused(Refusal::Fenced);
        }
        if let Err(refusal) = self.meet(&request.op) {
            return ReplyResult::Refused(refusal);
        }
        match &request.op {
            RequestOp::Write { range, payload, .. } => {
                let data = payload.contiguous();
                for i in 0..range.count as usize {
                    let block = data.slice(i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES);
                    self.set(range.block + i as u64, index, Some(block));
                }
            }
            RequestOp::Unmap { range, .. } => {
                for block in range.block..range.block + u64::from(range.count) {
                    if self.versions.contains_key(&block) {
                        self.set(block, index, None);
                    }
                }
            }
            RequestOp::Fence { .. } => self.epoch = request.epoch.0,
            RequestOp::Delete { .. } => {
                for block in self.versions.keys().copied().collect::<Vec<_>>() {
                    self.set(block, index, None);
                }
            }
            _ => {}
        }
        ReplyResult::Done { index: LogIndex(index) }
    }

    /// Compares the generation of a change with the group's, and freezes what is before it.
    fn meet(&mut self, op: &RequestOp) -> Result<(), Refusal> {
        let next = match op {
            RequestOp::Write { generation, .. } | RequestOp::Unmap { generation, .. } => {
                if generation.0 < self.generation {
                    return Err(Refusal::Frozen);
                }
                generation.0
            }
            RequestOp::Freeze { generation, .. } => generation.0 + 1,
            _ => 0,
        };
        while self.generation < next {
            self.frozen.insert(self.generation, self.last - 1);
            self.generation += 1;
        }
        Ok(())
    }

    /// Freezes the generation, without the client.
    pub fn freeze(&mut self) {
        self.frozen.insert(self.generation, self.last);
        self.generation += 1;
    }

    /// What a block was in a snapshot.
    pub fn frozen(&self, generation: u32, block: u64) -> Option<&Bytes> {
        self.get(block, self.frozen[&generation])
    }

    fn set(&mut self, block: u64, index: u64, content: Option<Bytes>) {
        self.versions.entry(block).or_default().push((index, content));
    }

    fn get(&self, block: u64, applied: u64) -> Option<&Bytes> {
        let versions = self.versions.get(&block)?;
        versions.iter().rev().find(|(index, _)| *index <= applied)?.1.as_ref()
    }

    /// The highest index, as this replica knows it, that changed the chunk.
    fn changed(&self, chunk: u64, applied: u64) -> LogIndex {
        let blocks = self.versions.range(chunk * CHUNK_BLOCKS..(chunk + 1) * CHUNK_BLOCKS);
        let indexes = blocks.flat_map(|(_, versions)| versions.iter().map(|(index, _)| *index));
        LogIndex(indexes.filter(|index| *index <= applied).max().unwrap_or(0))
    }

    fn read(&self, node: usize, range: BlockRange, floor: LogIndex) -> ReplyResult {
        let applied = self.applied[node];
        if applied < floor.0 {
            return ReplyResult::Refused(Refusal::Behind);
        }
        let (mut payload, mut checksums) = (Payload::empty(), Vec::new());
        for block in range.block..range.block + u64::from(range.count) {
            let zeros = || Bytes::from_static(&[0; BLOCK_BYTES]);
            let content = self.get(block, applied).cloned().unwrap_or_else(zeros);
            checksums.push(crc32c(&content));
            payload.push(content);
        }
        let index = self.changed(range.block / CHUNK_BLOCKS, applied);
        ReplyResult::Data { index, checksums, payload }
    }

    fn extents(&self, node: usize, range: BlockRange, floor: LogIndex) -> ReplyResult {
        let applied = self.applied[node];
        if applied < floor.0 {
            return ReplyResult::Refused(Refusal::Behind);
        }
        let mut runs: Vec<(u32, bool)> = Vec::new();
        for block in range.block..range.block + u64::from(range.count) {
            let mapped = self.get(block, applied).is_some();
            match runs.last_mut() {
                Some((count, same)) if *same == mapped => *count += 1,
                _ => runs.push((1, mapped)),
            }
        }
        let index = self.changed(range.block / CHUNK_BLOCKS, applied);
        ReplyResult::Extents { index, runs }
    }
}

/// The group that holds an offset of the model's volume.
pub fn group_of(world: &World, offset: u64) -> usize {
    let chunk = offset / BLOCK_BYTES as u64 / CHUNK_BLOCKS;
    let GroupId(group) = basalt_wire::block::group_of_chunk(5, chunk, world.groups.len() as u32);
    group as usize
}
