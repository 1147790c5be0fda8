//! The state machine: events in, effects out.
//!
//! A request of the user is an [`Op`]; its cursor gives [`Part`]s, a bounded number at a time. A part
//! that changes blocks first takes their lock, then is routed: to the leader or to a reader, onto a
//! link with credit, or into the waiting list of its group. What was sent is a [`Sent`] until it is
//! answered or its link breaks. Everything is found by number in slabs, in constant time.

mod readers;
mod reply;
mod route;
mod session;
mod timers;

use crate::chunks::Chunks;
use crate::group::{FenceState, Group};
use crate::latency::Latencies;
use crate::limit::{Cost, Limiter};
use crate::link::Link;
use crate::minimum::Minimum;
use crate::part::{
    Change, Control, ExtentSum, InOrder, NONE, Op, Part, PartKind, Sent, Traced, Verb,
    block_checksums,
};
use crate::retry::Copies;
use crate::slab::Slab;
use crate::split::{Cursor, Cut, Piece};
use crate::trace::{Kind, Sampler, Stopwatch, Traces};
use crate::types::{
    BlockError, BlockOp, BlockResult, ClientEffect, ClientEvent, ClientStats, RateLimits, Tuning,
    VolumeConfig,
};
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS, group_of_chunk};
use basalt_wire::buffer::Payload;
use basalt_wire::command::BlockRange;
use basalt_wire::ids::{Generation, GroupId};
use basalt_wire::time::Time;
use std::collections::VecDeque;

type Out = Vec<ClientEffect>;

/// One session with one volume. See the crate's documentation.
#[derive(Debug)]
pub struct VolumeClient {
    config: VolumeConfig,
    tuning: Tuning,
    now: Time,
    phase: Phase,
    /// Whether it reads a snapshot and changes nothing.
    view: bool,
    /// Links that came up so far in this session.
    incarnations: u64,
    /// How far the incarnation jumps when a replica has seen a higher one.
    leap: u64,
    links: Vec<Link>,
    groups: Vec<Group>,
    /// Groups to look after: those where something waits.
    listed: Vec<GroupId>,
    chunks: Chunks,
    ops: Slab<Op>,
    parts: Slab<Part>,
    sent: Slab<Sent>,
    sent_count: u64,
    /// Links that reads avoid, and reads routed while there are any or reads take long.
    avoided: usize,
    slow_reads: u64,
    /// A leader was heard of that the map does not know.
    map_is_old: bool,
    /// Parts to be routed before the call returns.
    todo: Vec<u32>,
    /// Requests that came before the session was ready.
    backlog: VecDeque<(u64, BlockOp)>,
    limiter: Limiter,
    minimum: Minimum,
    /// Requests that wait until the session's bounds let them begin, in order.
    limited: VecDeque<Limited>,
    stats: ClientStats,
    latencies: Latencies,
    sampler: Sampler,
    traces: Box<Traces>,
}

/// A request that waits until the session's bounds let it begin.
#[derive(Debug)]
struct Limited {
    tag: u64,
    op: BlockOp,
    cost: Cost,
    submitted: Time,
    traced: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Fencing,
    Ready,
    Over(BlockError),
}

impl VolumeClient {
    /// Begins a session: dials every replica and fences.
    pub fn new(config: VolumeConfig, now: Time, out: &mut Out) -> VolumeClient {
        VolumeClient::with_tuning(config, Tuning::default(), now, out)
    }

    /// As [`VolumeClient::new`], with other times and bounds than the usual ones.
    pub fn with_tuning(
        config: VolumeConfig,
        tuning: Tuning,
        now: Time,
        out: &mut Out,
    ) -> VolumeClient {
        VolumeClient::make(config, tuning, false, now, out)
    }

    /// A view of the snapshot of the configuration's generation. It fences nothing, so that any number
    /// of them may be there beside the volume's session. It reads, takes and drops snapshots, begins
    /// a volume as a clone and ends it as one; a session that writes moves on to the next generation when it
    /// meets one that was frozen.
    pub fn view(config: VolumeConfig, tuning: Tuning, now: Time, out: &mut Out) -> VolumeClient {
        VolumeClient::make(config, tuning, true, now, out)
    }

    fn make(
        config: VolumeConfig,
        tuning: Tuning,
        view: bool,
        now: Time,
        out: &mut Out,
    ) -> VolumeClient {
        let seed = config.volume.0 ^ config.epoch.0.rotate_left(32);
        let mut client = VolumeClient {
            sampler: Sampler::new(tuning.trace_period, seed, now),
            traces: Box::default(),
            config,
            tuning,
            now,
            phase: Phase::Fencing,
            view,
            incarnations: 0,
            leap: 1,
            links: Vec::new(),
            groups: Vec::new(),
            listed: Vec::new(),
            chunks: Chunks::default(),
            ops: Slab::default(),
            parts: Slab::default(),
            sent: Slab::default(),
            sent_count: 0,
            avoided: 0,
            slow_reads: 0,
            map_is_old: false,
            todo: Vec::new(),
            backlog: VecDeque::new(),
            limiter: Limiter::default(),
            minimum: Minimum::default(),
            limited: VecDeque::new(),
            stats: ClientStats::default(),
            latencies: Latencies::default(),
        };
        client.limit(client.config.limits);
        client.begin(out);
        client
    }

    /// Takes an event. Effects are appended to `out`.
    pub fn handle(&mut self, now: Time, event: ClientEvent, out: &mut Out) {
        self.now = now;
        if let Phase::Over(error) = self.phase {
            if let ClientEvent::Submit { tag, .. } = event {
                out.push(ClientEffect::Complete { tag, result: Err(error) });
            }
            return;
        }
        match event {
            ClientEvent::Submit { tag, op } if self.phase == Phase::Ready => {
                self.submit(tag, op, out);
            }
            ClientEvent::Submit { tag, op } => self.backlog.push_back((tag, op)),
            ClientEvent::LinkUp { to, credit_bytes, credit_requests } => {
                self.link_up(to, credit_bytes, credit_requests);
            }
            ClientEvent::LinkDown { to } => self.link_down(to),
            ClientEvent::Reply { from, reply } => self.on_reply(from, reply, out),
            ClientEvent::Map(map) => self.new_map(map, out),
            ClientEvent::Limit(limits) => self.limit(limits),
            ClientEvent::Resize { size_bytes, generation } => self.resize(size_bytes, generation),
        }
        self.run(out);
    }

    /// Called once after all events of a turn, and no later than [`VolumeClient::next_deadline`].
    pub fn end_turn(&mut self, now: Time, out: &mut Out) {
        self.now = now;
        if !self.is_over() {
            self.look_after_links(out);
            self.look_after_groups(out);
            self.begin_limited(out);
            self.run(out);
        }
    }

    /// When [`VolumeClient::end_turn`] has to be called even if nothing happens.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.is_over() {
            return None;
        }
        let links = self.links.iter().filter_map(|link| link.deadline(&self.tuning));
        let groups = self.listed.iter().map(|group| self.groups[group.0 as usize].next_at);
        let limited = self.limited.front().map(|_| self.limiter.opens_at());
        links.chain(groups).chain(limited).min()
    }

    /// Ends the session: everything unanswered is completed with [`BlockError::Closed`].
    pub fn close(&mut self, out: &mut Out) {
        if !self.is_over() {
            self.end(BlockError::Closed, out);
        }
    }

    /// Requests of the user that are not answered.
    pub fn in_flight(&self) -> usize {
        self.ops.len() + self.backlog.len() + self.limited.len()
    }

    /// Whether the session has begun and is not over.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether no group is being fenced: not at its beginning, and not after the volume has grown.
    pub fn is_fenced(&self) -> bool {
        self.groups.iter().all(|group| group.fence != FenceState::Pending)
    }

    /// The generation that writes go to.
    pub fn generation(&self) -> Generation {
        self.config.generation
    }

    /// The volume and session.
    pub fn config(&self) -> &VolumeConfig {
        &self.config
    }

    /// What was done so far.
    pub fn stats(&self) -> ClientStats {
        ClientStats { ops: self.in_flight(), unanswered: self.sent.len(), ..self.stats }
    }

    /// How long its requests took.
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// Where the time of those of its requests went that were traced.
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    fn run(&mut self, out: &mut Out) {
        let mut next = 0;
        while let Some(part) = self.todo.get(next).copied() {
            next += 1;
            self.route(part, out);
        }
        self.todo.clear();
        if std::mem::take(&mut self.map_is_old) {
            out.push(ClientEffect::AskMap);
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    fn group(&mut self, group: GroupId) -> &mut Group {
        &mut self.groups[group.0 as usize]
    }

    fn limit(&mut self, limits: RateLimits) {
        self.limiter.set(self.now, limits);
        self.minimum.set(self.now, limits);
    }

    // ---- requests of the user ----

    /// Begins a request, or has it wait if the session has done as much as it may.
    fn submit(&mut self, tag: u64, op: BlockOp, out: &mut Out) {
        let traced = self.sampler.takes(self.now).then(|| self.depth());
        if self.limiter.bounds()
            && let Some(cost) = Cost::of(&op)
        {
            if !self.limited.is_empty() || self.limiter.opens_at() > self.now {
                self.stats.limited += 1;
                self.stats.write_bytes += write_bytes(&op);
                let submitted = self.now;
                return self.limited.push_back(Limited { tag, op, cost, submitted, traced });
            }
            self.limiter.spend(self.now, cost);
        }
        self.submit_now((tag, op), (self.now, traced), out);
    }

    /// Begins what waited for the session's bounds and may begin now.
    fn begin_limited(&mut self, out: &mut Out) {
        while self.limiter.opens_at() <= self.now
            && let Some(Limited { tag, op, cost, submitted, traced }) = self.limited.pop_front()
        {
            self.limiter.spend(self.now, cost);
            self.stats.write_bytes -= write_bytes(&op);
            self.submit_now((tag, op), (submitted, traced), out);
        }
    }

    fn submit_now(
        &mut self,
        (tag, op): (u64, BlockOp),
        (began, traced): (Time, Option<u32>),
        out: &mut Out,
    ) {
        let cost = if self.minimum.is_set() { Cost::of(&op) } else { None };
        match self.accept(tag, op) {
            Ok(Some(op)) => {
                let counted = cost.map(|cost| (cost, self.minimum.begin(self.now, cost)));
                let traced = traced.and_then(|depth| self.trace(&op, depth));
                self.start(Op { began, traced, counted, ..op }, out);
            }
            Ok(None) => out.push(ClientEffect::Complete { tag, result: Ok(BlockResult::Done) }),
            Err(error) => out.push(ClientEffect::Complete { tag, result: Err(error) }),
        }
    }

    /// The request with its range checked; nothing for a flush, which has nothing to do: whatever
    /// was acknowledged is durable.
    fn accept(&self, tag: u64, op: BlockOp) -> Result<Option<Op>, BlockError> {
        if let Some(control) = self.control(&op)? {
            let cursor = Cursor::new(Cut::Read, 0, 0);
            return Ok(Some(new_op(tag, Verb::Control(control), (cursor, 0))));
        }
        let (verb, cut, offset, len) = match op {
            BlockOp::Read { offset, len } => {
                (Verb::Read(InOrder::new(), Payload::empty()), Cut::Read, offset, u64::from(len))
            }
            BlockOp::Write { offset, data, fua: _ } => {
                let len = data.len() as u64;
                (Verb::Write(data), Cut::Write, offset, len)
            }
            BlockOp::Unmap { offset, len } => (Verb::Unmap, Cut::Unmap, offset, len),
            BlockOp::Fill { offset, len, parent } => (Verb::Fill(parent), Cut::Fill, offset, len),
            BlockOp::Extents { offset, len } => {
                let verb = Verb::Extents(InOrder::new(), ExtentSum::default(), None);
                (verb, Cut::Extents, offset, len)
            }
            BlockOp::Changes { offset, len, since } => {
                let verb = Verb::Extents(InOrder::new(), ExtentSum::default(), Some(since));
                (verb, Cut::Extents, offset, len)
            }
            _ => return Ok(None),
        };
        if len == 0 {
            return Err(BlockError::Invalid);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.config.size_bytes => {
                Ok(Some(new_op(tag, verb, (Cursor::new(cut, offset, len), len))))
            }
            _ => Err(BlockError::OutOfRange),
        }
    }

    /// What is to be done to the volume as a whole, if anything. A view changes nothing of it.
    fn control(&self, op: &BlockOp) -> Result<Option<Control>, BlockError> {
        let control = match op {
            BlockOp::Snapshot { generation } => return Ok(Some(Control::Freeze(*generation))),
            BlockOp::CloseGate { generation } => return Ok(Some(Control::CloseGate(*generation))),
            BlockOp::OpenGate { generation } => return Ok(Some(Control::OpenGate(*generation))),
            BlockOp::DropSnapshot { generation } => {
                return Ok(Some(Control::DropSnapshot(*generation)));
            }
            BlockOp::Read { .. } | BlockOp::Extents { .. } => return Ok(None),
            BlockOp::Changes { .. } | BlockOp::Flush => return Ok(None),
            BlockOp::Clone { parent } if self.view => Control::Clone(*parent),
            BlockOp::Detach { parent } if self.view => Control::Detach(*parent),
            BlockOp::Fill { .. } if self.view => return Ok(None),
            BlockOp::Clone { .. } | BlockOp::Fill { .. } | BlockOp::Detach { .. } => {
                return Err(BlockError::Io("clones are made and flattened beside their sessions"));
            }
            _ if self.view => return Err(BlockError::ReadOnly),
            BlockOp::Write { .. } | BlockOp::Unmap { .. } => return Ok(None),
            BlockOp::Delete => Control::Delete,
            BlockOp::Revert { .. } if self.ops.len() > 0 || !self.limited.is_empty() => {
                return Err(BlockError::Io("a volume in use can not be reverted"));
            }
            BlockOp::Revert { generation } => Control::Revert(*generation),
        };
        Ok(Some(control))
    }

    fn start(&mut self, op: Op, out: &mut Out) {
        self.stats.write_bytes += op.write_bytes;
        let control = match op.verb {
            Verb::Control(control) => Some(control),
            _ => None,
        };
        let id = self.ops.insert(op);
        if let Some(control) = control {
            self.start_control(id, control);
        }
        self.advance(id, out);
    }

    /// Starts as many parts as may be under way, and completes the request after its last one.
    fn advance(&mut self, id: u32, out: &mut Out) {
        while self.ops[id].under_way < self.ops[id].verb.parts_max() {
            let Some(piece) = self.ops[id].cursor.piece() else { break };
            let part = self.make_part(id, piece);
            self.start_part(part);
        }
        let op = &self.ops[id];
        if op.under_way == 0 && op.cursor.is_done() {
            let mut op = self.ops.remove(id);
            self.stats.write_bytes -= op.write_bytes;
            self.note_latency(&op);
            if let Some((cost, _)) = op.counted {
                self.minimum.end(self.now, cost);
            }
            self.note_trace(&mut op);
            let deleted = matches!(op.verb, Verb::Control(Control::Delete)) && op.error.is_none();
            let result = match op.error {
                Some(error) => Err(error),
                None => Ok(op.verb.into_result()),
            };
            out.push(ClientEffect::Complete { tag: op.tag, result });
            if deleted {
                self.end(BlockError::Closed, out);
            }
        }
    }

    fn note_latency(&mut self, op: &Op) {
        let histogram = match op.verb {
            Verb::Read(..) => &mut self.latencies.read,
            Verb::Write(_) => &mut self.latencies.write,
            Verb::Unmap => &mut self.latencies.unmap,
            _ => return,
        };
        histogram.add(self.now.since(op.began), op.bytes, op.error.is_some());
    }

    /// Requests under way, with the one that comes now.
    fn depth(&self) -> u32 {
        u32::try_from(self.in_flight() + 1).unwrap_or(u32::MAX)
    }

    /// What a request of a kind that is traced begins with.
    fn trace(&self, op: &Op, depth: u32) -> Option<Box<Traced>> {
        kind_of(&op.verb)?;
        Some(Box::new(Traced { started: self.now, depth, last: None }))
    }

    /// A traced request was answered: its last part says where its time went.
    fn note_trace(&mut self, op: &mut Op) {
        let Some(traced) = op.traced.take() else { return };
        if let (Some(watch), None, Some(kind)) = (traced.last, op.error, kind_of(&op.verb)) {
            let record = watch.stop(self.now, (op.bytes, traced.depth));
            self.traces.add(kind, record);
        }
    }

    fn make_part(&mut self, id: u32, piece: Piece) -> Part {
        let op = &mut self.ops[id];
        let alone = op.started == 0 && op.cursor.is_done();
        let change = |data| {
            let (skip, len) = (piece.skip as usize, piece.len as usize);
            PartKind::Change(Box::new(Change { skip, len, data }))
        };
        let kind = match &mut op.verb {
            Verb::Read(..) => PartKind::Read { skip: piece.skip, len: piece.len as u32 },
            Verb::Extents(_, _, since) => {
                PartKind::Extents { skip: piece.skip, len: piece.len, since: *since }
            }
            Verb::Write(data) => {
                let payload = if alone {
                    std::mem::take(data)
                } else {
                    data.slice(piece.at as usize, piece.len as usize)
                };
                if piece.is_whole() {
                    // The checksums travel with what is sent and stored, so it is encrypted before they are computed.
                    let payload = match &self.config.cipher {
                        Some(cipher) => cipher.encrypt(piece.range.block, &payload),
                        None => payload,
                    };
                    let checksums = block_checksums(&payload);
                    PartKind::Write { payload, checksums }
                } else {
                    change(Some(payload))
                }
            }
            Verb::Fill(parent) => PartKind::Fill(*parent),
            Verb::Unmap if piece.is_whole() => PartKind::Unmap,
            Verb::Unmap => change(None),
            Verb::Control(_) => unreachable!("what is done to all groups is not cut"),
        };
        let chunk = piece.range.block / CHUNK_BLOCKS;
        let group = group_of_chunk(self.config.lineage, chunk, self.config.map.group_count);
        self.new_part(id, group, piece.range, kind)
    }

    fn new_part(&mut self, op: u32, group: GroupId, range: BlockRange, kind: PartKind) -> Part {
        let (mut number, mut watch) = (0, None);
        if op != NONE {
            let op = &mut self.ops[op];
            if let Some(traced) = &op.traced {
                watch = Some(Box::new(Stopwatch::start(op.began, traced.started, self.now)));
            }
            number = op.started;
            op.started += 1;
            op.under_way += 1;
        }
        Part {
            op,
            number,
            group,
            range,
            kind,
            copies: Copies::default(),
            generation: Generation::default(),
            sent: NONE,
            tried: Default::default(),
            damaged: Default::default(),
            damaged_rounds: 0,
            again_at: Time::default(),
            watch,
        }
    }

    fn start_part(&mut self, part: Part) {
        let (chunk, range, locked) = (part.chunk(), part.range, part.is_locked());
        let id = self.parts.insert(part);
        if !locked || self.chunks.lock(chunk, range, id) {
            self.todo.push(id);
        } else {
            self.stats.conflicts += 1;
        }
    }

    /// A part did what it was for; `collect` puts its result into the request's.
    fn finish_part(&mut self, id: u32, out: &mut Out, collect: impl FnOnce(&mut Op, &Part)) {
        let mut part = self.parts.remove(id);
        assert_eq!(part.sent, NONE, "a finished part waits for no answer");
        if part.is_locked() {
            self.chunks.unlock(part.chunk(), id, &mut self.todo);
        }
        if part.op != NONE {
            let op = &mut self.ops[part.op];
            op.under_way -= 1;
            if let Some(traced) = &mut op.traced {
                traced.last = part.watch.take();
            }
            collect(op, &part);
            self.advance(part.op, out);
        }
    }

    /// A part can not be done: neither can its request.
    fn fail_part(&mut self, id: u32, error: BlockError, out: &mut Out) {
        if self.parts[id].op == NONE {
            self.parts.remove(id);
            return self.end(error, out);
        }
        self.finish_part(id, out, |op, _| {
            op.error.get_or_insert(error);
            op.cursor.stop();
        });
    }
}

/// Bytes of data that a request holds in memory.
fn write_bytes(op: &BlockOp) -> usize {
    match op {
        BlockOp::Write { data, .. } => data.len(),
        _ => 0,
    }
}

fn new_op(tag: u64, verb: Verb, (cursor, bytes): (Cursor, u64)) -> Op {
    let write_bytes = match &verb {
        Verb::Write(data) => data.len(),
        _ => 0,
    };
    let (began, error, traced) = (Time::ZERO, None, None);
    Op {
        tag,
        verb,
        cursor,
        under_way: 0,
        started: 0,
        error,
        write_bytes,
        began,
        bytes,
        counted: None,
        traced,
    }
}

/// The kind of a request, if such are traced.
fn kind_of(verb: &Verb) -> Option<Kind> {
    match verb {
        Verb::Read(..) => Some(Kind::Read),
        Verb::Write(_) => Some(Kind::Write),
        Verb::Unmap => Some(Kind::Unmap),
        _ => None,
    }
}

/// Blocks of a volume, the last one perhaps not whole.
fn blocks_of(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK_BYTES as u64)
}
