//! Three shards on three images, in memory: an instant network, instant devices, simulated time.

use super::{GROUPS, NODES, VOLUME, address, shard_config};
use basalt_core::Shard;
use basalt_core::config::ShardConfig;
use basalt_core::event::{Effect, Event, LinkId};
use basalt_core::shard::{GroupRole, GroupStatus, Phase};
use basalt_device::record::{RecordEvent, Recorded, Recording};
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{Frame, Priority, ReplyResult, Request, RequestOp};
use basalt_wire::ids::{Epoch, Generation, GroupId, Incarnation, LogIndex, RequestId, VolumeId};
use basalt_wire::io::{DiskDone, DiskOp, DiskOpKind};
use basalt_wire::time::Time;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Simulated time within which three healthy nodes must agree on everything.
const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(50);
/// Rounds after which a world that still moves at one instant is broken.
const ROUNDS_MAX: usize = 5_000;
/// Frames of one round after which it is broken too. No exchange of two replicas may go on at once.
const FRAMES_MAX: usize = 2_000;

struct Node {
    config: ShardConfig,
    shard: Shard,
    disk: Vec<u8>,
    ops: VecDeque<DiskOp>,
    effects: Vec<Effect>,
    recording: Recording,
}

/// The revived cluster.
pub struct World {
    now: Time,
    nodes: Vec<Node>,
    network: VecDeque<(usize, usize, Frame)>,
    replies: BTreeMap<u64, ReplyResult>,
    asked: u64,
    /// Whether the nodes were once busy for ever at one instant.
    restless: bool,
    /// Instants of this revival: the lengths of the records after each device operation.
    pub instants: Vec<[usize; NODES]>,
    /// What the nodes told their operator.
    pub notices: Vec<String>,
}

impl World {
    /// Opens all nodes.
    pub fn open(images: Vec<Vec<u8>>, seed: u64) -> World {
        let now = Time(1_000_000);
        let open = |(n, disk): (usize, Vec<u8>)| {
            let config = shard_config(n, seed);
            let mut effects = Vec::new();
            let shard = Shard::open(config.clone(), now, &mut effects);
            let recording = Recording::default();
            Node { config, shard, disk, ops: VecDeque::new(), effects, recording }
        };
        let mut world = World {
            now,
            nodes: images.into_iter().enumerate().map(open).collect(),
            network: VecDeque::new(),
            replies: BTreeMap::new(),
            asked: 0,
            restless: false,
            instants: Vec::new(),
            notices: Vec::new(),
        };
        world.connect();
        world
    }

    /// Opens all nodes again on what is on their devices.
    pub fn reopen(&mut self) {
        for node in &mut self.nodes {
            node.effects.clear();
            node.ops.clear();
            node.shard = Shard::open(node.config.clone(), self.now, &mut node.effects);
        }
        self.network.clear();
        self.connect();
    }

    fn connect(&mut self) {
        self.run();
        for n in 0..NODES {
            for m in (0..NODES).filter(|m| *m != n) {
                self.event(n, Event::PeerLink { peer: address(m).node, up: true });
            }
        }
    }

    /// What reached each device since the world began.
    pub fn recordings(&self) -> Vec<&Recording> {
        self.nodes.iter().map(|node| &node.recording).collect()
    }

    /// Waits until every group has a leader and all its replicas hold and applied the same.
    ///
    /// # Errors
    /// Says what does not come to rest, or which replica is not whole.
    pub fn settle(&mut self) -> Result<(), String> {
        let end = self.now + PATIENCE;
        while self.now < end {
            self.pass();
            if self.settled()? {
                return Ok(());
            }
        }
        let states: Vec<_> = self.nodes.iter().map(|n| n.shard.status().groups).collect();
        Err(format!("no agreement within {PATIENCE:?}: {states:?}; {:?}", self.notices))
    }

    fn settled(&self) -> Result<bool, String> {
        if self.restless {
            return Err(format!("the nodes are busy for ever: {:?}", self.notices));
        }
        for (n, node) in self.nodes.iter().enumerate() {
            match node.shard.status().phase {
                Phase::Running => {}
                Phase::Opening => return Ok(false),
                other => return Err(format!("node {n} is {other:?}; {:?}", self.notices)),
            }
        }
        let ids = self.nodes[0].config.groups.iter().map(|group| group.id);
        ids.map(|id| self.group_settled(id)).try_fold(true, |all, one| Ok(all & one?))
    }

    fn group_settled(&self, id: GroupId) -> Result<bool, String> {
        let replicas: Vec<GroupStatus> = self.nodes.iter().map(|n| status(n, id)).collect();
        let bad = |r: &&GroupStatus| matches!(r.role, GroupRole::Impaired | GroupRole::Quarantined);
        if let Some(replica) = replicas.iter().find(bad) {
            return Err(format!("a replica is not whole: {replica:?}; {:?}", self.notices));
        }
        let Some(leader) = replicas.iter().find(|r| r.role == GroupRole::Leader) else {
            return Ok(false);
        };
        let level = |r: &GroupStatus| {
            r.term == leader.term && r.last == leader.last && r.applied == leader.last
        };
        Ok(replicas.iter().all(level))
    }

    /// Commits an epoch in every group of the volume, and gives the index of it in each.
    ///
    /// # Errors
    /// If a group does not take it.
    pub fn fence(&mut self, epoch: u64) -> Result<Vec<LogIndex>, String> {
        let mut indices = Vec::new();
        for group in (0..GROUPS).map(GroupId) {
            let leads = |n: &Node| status(n, group).role == GroupRole::Leader;
            let leader = self.nodes.iter().position(leads).ok_or("no leader")?;
            let term = status(&self.nodes[leader], group).term;
            match self.ask(
                leader,
                group,
                epoch,
                RequestOp::Fence { term, generation: Generation(1) },
            )? {
                ReplyResult::Done { index } => indices.push(index),
                other => return Err(format!("{group:?} refused epoch {epoch}: {other:?}")),
            }
        }
        Ok(indices)
    }

    /// Blocks as one node reads them.
    ///
    /// # Errors
    /// If the node does not give them.
    pub fn read(
        &mut self,
        n: usize,
        group: GroupId,
        epoch: u64,
        range: BlockRange,
        floor: LogIndex,
    ) -> Result<bytes::Bytes, String> {
        match self.ask(n, group, epoch, RequestOp::Read { range, floor, snapshot: None })? {
            ReplyResult::Data { payload, .. } => Ok(payload.contiguous()),
            other => Err(format!("node {n} can not read {range:?}: {other:?}; {:?}", self.notices)),
        }
    }

    /// Checks that all replicas of every group hold the same.
    ///
    /// # Errors
    /// If they do not.
    pub fn converged(&self) -> Result<(), String> {
        for group in (0..GROUPS).map(GroupId) {
            let digests: Vec<_> = self.nodes.iter().map(|n| n.shard.digest(group)).collect();
            if digests.windows(2).any(|pair| pair[0] != pair[1]) {
                return Err(format!("the replicas of {group:?} differ: {digests:?}"));
            }
        }
        Ok(())
    }

    fn ask(
        &mut self,
        n: usize,
        group: GroupId,
        epoch: u64,
        op: RequestOp,
    ) -> Result<ReplyResult, String> {
        self.asked += 1;
        let id = self.asked;
        let request = Request {
            id: RequestId(id),
            group,
            volume: VolumeId(VOLUME),
            epoch: Epoch(epoch),
            incarnation: Incarnation(1),
            priority: Priority::BestEffort,
            traced: false,
            op,
        };
        self.event(n, Event::Request { link: LinkId(1), remote: true, request });
        let end = self.now + PATIENCE;
        loop {
            self.run();
            if let Some(result) = self.replies.remove(&id) {
                return Ok(result);
            }
            if self.now >= end {
                return Err(format!("node {n} did not answer a request within {PATIENCE:?}"));
            }
            self.pass();
        }
    }

    fn event(&mut self, n: usize, event: Event) {
        let node = &mut self.nodes[n];
        node.shard.handle(self.now, event, &mut node.effects);
    }

    /// Lets a moment pass, from deadline to deadline.
    fn pass(&mut self) {
        let end = self.now + STEP;
        self.run();
        loop {
            let deadlines = self.nodes.iter().filter_map(|n| n.shard.next_deadline());
            let Some(next) = deadlines.min().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            self.run();
        }
        self.now = end;
        self.run();
    }

    /// Ends turns and carries out effects until nothing moves.
    fn run(&mut self) {
        if self.restless {
            // It is a finding already; more rounds would only cost time.
            return;
        }
        for round in 0..ROUNDS_MAX {
            let mut moved = false;
            for n in 0..NODES {
                moved |= self.turn(n);
            }
            let mut frames = 0;
            while let Some((from, to, frame)) = self.network.pop_front() {
                moved = true;
                frames += 1;
                if frames > FRAMES_MAX {
                    self.notices.push(format!("{from} to {to} in one round: {frame:?}"));
                    self.restless = true;
                    return;
                }
                if round + 2 >= ROUNDS_MAX {
                    self.notices.push(format!("{from} to {to} for ever: {frame:?}"));
                }
                self.event(to, Event::Peer { from: address(from), frame });
            }
            if !moved {
                return;
            }
        }
        self.restless = true;
    }

    fn turn(&mut self, n: usize) -> bool {
        let mut moved = false;
        for _ in 0..self.nodes[n].ops.len() {
            moved = true;
            let op = self.nodes[n].ops.pop_front().expect("as many as were counted");
            let done = self.carry_out(n, op);
            self.event(n, Event::Disk(done));
        }
        let node = &mut self.nodes[n];
        node.shard.end_turn(self.now, &mut node.effects);
        let effects = std::mem::take(&mut node.effects);
        moved |= !effects.is_empty();
        effects.into_iter().for_each(|effect| self.effect(n, effect));
        moved
    }

    fn effect(&mut self, n: usize, effect: Effect) {
        match effect {
            Effect::Disk(op) => {
                self.note_submit(n, &op);
                self.nodes[n].ops.push_back(op);
            }
            Effect::Send { to, frame } => {
                let to = (0..NODES).find(|m| address(*m) == to).expect("a node of the cluster");
                self.network.push_back((n, to, frame));
            }
            Effect::Reply { reply, .. } => {
                self.replies.insert(reply.id.0, reply.result);
            }
            Effect::DeviceSuspect { reason } => self.notices.push(format!("{n}: {reason}")),
            Effect::Notice { alarm, text } => self.notices.push(format!("{n}: {alarm} {text}")),
            Effect::Store(_) => unreachable!("no checkpoints are asked for"),
            Effect::FetchMetadata { .. } => unreachable!("no metadata command is forgotten"),
            Effect::Proposed { .. }
            | Effect::Applied { .. }
            | Effect::LeaderChanged { .. }
            | Effect::Drained => {}
        }
    }

    /// Writes an operation down under its token, which is not used twice while it is under way.
    fn note_submit(&mut self, n: usize, op: &DiskOp) {
        let recorded = match &op.kind {
            DiskOpKind::Read { .. } => return,
            DiskOpKind::Write { offset, data, durable } => {
                Recorded::Write { offset: *offset, data: data.clone(), durable: *durable }
            }
            DiskOpKind::Flush => Recorded::Flush,
            DiskOpKind::Discard { offset, len } => Recorded::Discard { offset: *offset, len: *len },
        };
        self.note(n, RecordEvent::Submit { id: op.token, op: recorded });
    }

    fn note(&mut self, n: usize, event: RecordEvent) {
        self.nodes[n].recording.events.push(event);
        self.instants.push(std::array::from_fn(|n| self.nodes[n].recording.events.len()));
    }

    fn carry_out(&mut self, n: usize, op: DiskOp) -> DiskDone {
        let mut done = DiskDone { token: op.token, buf: None, result: Ok(()) };
        let disk = &mut self.nodes[n].disk;
        match op.kind {
            DiskOpKind::Read { offset, mut buf } => {
                let at = offset as usize;
                let len = buf.len();
                buf.copy_from_slice(&disk[at..at + len]);
                done.buf = Some(buf);
                return done;
            }
            DiskOpKind::Write { offset, data, .. } => {
                disk[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
            }
            DiskOpKind::Flush | DiskOpKind::Discard { .. } => {}
        }
        self.note(n, RecordEvent::Complete { id: done.token, ok: true });
        done
    }
}

fn status(node: &Node, id: GroupId) -> GroupStatus {
    let groups = node.shard.status().groups;
    groups.into_iter().find(|group| group.group == id).expect("every node holds every group")
}
