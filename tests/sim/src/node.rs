//! A simulated node: a shard, its disk, its clock, and the driver's duties that the reactor has in
//! production.

use crate::clock::Clock;
use crate::disk::{CutPolicy, Disk};
use crate::event::{Ev, Who};
use crate::metadata::ControlPlane;
use crate::net::{LinkIndex, LinkKind};
use crate::queue::{Instant, MICRO, MILLI, SECOND};
use crate::report::Class;
use crate::store::Store;
use crate::world::{PROBE, World};
use basalt_core::Shard;
use basalt_core::config::ShardConfig;
use basalt_core::event::{Effect, Event, LinkId};
use basalt_core::shard::Phase;
use basalt_wire::codec::Encoder;
use basalt_wire::frame::{Frame, Reply, ReplyResult, Request, RequestOp};
use basalt_wire::ids::{Address, GroupId, NodeId, ShardId};

/// The address of a node's only shard.
pub fn address(node: Who) -> Address {
    Address { node: NodeId(node as u32 + 1), shard: ShardId(0) }
}

/// The node at an address.
pub fn node_of(address: Address) -> Who {
    address.node.0 as usize - 1
}

/// What became of a node's last turn that is not carried out yet.
struct Held {
    effects: Vec<Effect>,
}

/// One machine.
pub struct SimNode {
    /// What its shard is told at its start.
    pub config: ShardConfig,
    /// Its disk.
    pub disk: Disk,
    /// Where its checkpoints stand.
    pub store: Store,
    /// Its running process.
    pub shard: Option<Shard>,
    /// Counts its starts.
    pub boot: u32,
    /// Scrubs and surveys that were asked for and were over when it was asked for one last.
    pub scrubs: (u64, u64),
    /// Its clock.
    pub clock: Clock,
    /// Its clock's speed.
    pub rate: f64,
    /// Links to peers, by node; what this node sends goes over them.
    pub peers: Vec<Option<LinkIndex>>,
    /// No turn before this.
    pub paused_until: Instant,
    /// Whether the next turn's effects wait until the pause is over.
    pub hold_next: bool,
    /// Whether its device can not be opened any more without its peers: it stays down.
    pub lost: bool,
    /// Whether it may be started at all: a frozen node of the liveness phase may not.
    pub dead: bool,
    inbox: Vec<(Event, u64)>,
    turn_armed: bool,
    timer_at: Instant,
    held: Option<Held>,
    /// The latest disk completion that the shard has heard of.
    known: u64,
    /// Turns that nothing but a timer caused, since something else did.
    idle_turns: u32,
    /// What it does with the commands of the metadata group.
    pub control: ControlPlane,
}

impl SimNode {
    /// A node that was not started yet.
    pub fn new(
        config: ShardConfig,
        disk: Disk,
        (store, control): (Store, ControlPlane),
        nodes: usize,
        rate: f64,
    ) -> SimNode {
        SimNode {
            config,
            disk,
            store,
            shard: None,
            boot: 0,
            scrubs: (0, 0),
            clock: Clock::new(0, 0, rate),
            rate,
            peers: vec![None; nodes],
            paused_until: 0,
            hold_next: false,
            lost: false,
            dead: false,
            inbox: Vec::new(),
            turn_armed: false,
            timer_at: Instant::MAX,
            held: None,
            known: 0,
            idle_turns: 0,
            control,
        }
    }

    /// Whether its process runs.
    pub fn is_up(&self) -> bool {
        self.shard.is_some()
    }
}

/// By how much a node's turn may be late, as one in a hundred is: the machine had something else to do. In nanoseconds.
pub const LATE_TURN: Instant = 3 * MILLI;
/// Turns in a row that nothing but timers may cause within a simulated second.
const IDLE_TURNS_MAX: u32 = 20_000;
/// Frames between peers within a simulated second that lead to no disk operation at all.
const FRAMES_IN_VAIN_MAX: u32 = 3_000;

/// Finds reads that a replica answered while its pages were ahead of what it has applied: they mix the future
/// and the past. What counts is its state when it answered, before and after one event: pages may be ahead from
/// a later event of the same turn on.
struct FuzzyWatch {
    before: Vec<GroupId>,
    judged: usize,
    found: Option<GroupId>,
}

impl FuzzyWatch {
    fn new(shard: &Shard) -> FuzzyWatch {
        FuzzyWatch { before: shard.fuzzy_groups(), judged: 0, found: None }
    }

    /// After an event, with all effects of the turn so far.
    fn look(&mut self, shard: &Shard, effects: &[Effect]) {
        let now = shard.fuzzy_groups();
        let fuzzy = |group: &GroupId| self.before.contains(group) && now.contains(group);
        for effect in &effects[self.judged..] {
            if let Effect::Reply { reply: Reply { group, result, .. }, .. } = effect
                && matches!(result, ReplyResult::Data { .. } | ReplyResult::Extents { .. })
                && fuzzy(group)
            {
                self.found = Some(*group);
            }
        }
        (self.before, self.judged) = (now, effects.len());
    }
}

impl World {
    /// Starts a node's process, if it is down and may run.
    pub fn start_node(&mut self, n: Who) {
        let now = self.queue.now();
        if self.nodes[n].is_up() || self.nodes[n].dead || self.nodes[n].lost {
            return;
        }
        self.counts.starts += 1;
        let shown = self.rng.below(1 << 40);
        let node = &mut self.nodes[n];
        node.boot += 1;
        node.clock = Clock::new(now, shown, node.rate);
        node.paused_until = 0;
        node.hold_next = false;
        node.timer_at = Instant::MAX;
        node.turn_armed = false;
        node.idle_turns = 0;
        let mut config = node.config.clone();
        config.metadata_saved = node.control.start(node.store.metadata);
        config.seed = crate::rng::mix(config.seed ^ u64::from(node.boot));
        let mut effects = Vec::new();
        node.shard = Some(Shard::open(config, node.clock.read(now), &mut effects));
        let boot = node.boot;
        self.trace(|| format!("node {n} starts, boot {boot}"));
        self.carry_out(n, effects);
        for to in (0..self.nodes.len()).filter(|to| *to != n) {
            self.dial_peer(n, to);
        }
        self.wake_node(n);
    }

    /// Ends a node's process. With a power cut the disk loses what the policy says, and nobody is
    /// told.
    pub fn stop_node(&mut self, n: Who, power: Option<CutPolicy>) {
        if !self.nodes[n].is_up() {
            return;
        }
        self.trace(|| format!("node {n} stops, power {power:?}"));
        let node = &mut self.nodes[n];
        node.shard = None;
        node.boot += 1;
        node.inbox.clear();
        node.held = None;
        node.store.crash();
        if let Some(state) = node.control.crash() {
            node.store.metadata = state;
        }
        match power {
            Some(policy) => node.disk.power_cut(policy),
            None => node.disk.kill(),
        }
        self.take_safe(n);
        self.nodes[n].peers.fill(None);
        let links: Vec<LinkIndex> = self.net.live().collect();
        for link in links {
            let Some(ends) = self.net.ends(link) else { continue };
            for end in 0..2u8 {
                if ends[usize::from(end)] == n {
                    let keep = self.draw_keep();
                    self.net.close(link, end, keep, power.is_some(), &mut self.queue);
                }
            }
        }
        let net = &self.net;
        self.requests.retain(|(link, _), _| net.ends(*link).is_none_or(|e| e[1] != n));
    }

    /// What became durable on a node's disk is told to the oracle.
    pub fn take_safe(&mut self, n: Who) {
        if self.nodes[n].disk.has_safe() {
            for data in self.nodes[n].disk.take_safe() {
                self.oracle.durable(n, &data);
            }
        }
    }

    fn dial_peer(&mut self, n: Who, to: Who) {
        let link = self.net.dial(n, to, LinkKind::Peer, &mut self.queue);
        self.nodes[n].peers[to] = Some(link);
    }

    /// A node dials a peer again, if it still runs.
    pub fn redial(&mut self, n: Who, boot: u32, to: Who) {
        if self.nodes[n].boot == boot && self.nodes[n].is_up() && self.nodes[n].peers[to].is_none()
        {
            self.dial_peer(n, to);
        }
    }

    /// A peer link of this node stands.
    pub fn peer_link_up(&mut self, n: Who, to: Who) {
        self.give(n, Event::PeerLink { peer: address(to).node, up: true }, 0);
    }

    /// A peer link of this node is gone or was refused; it tries again.
    pub fn peer_link_down(&mut self, n: Who, to: Who, link: LinkIndex, was_up: bool) {
        if !self.nodes[n].is_up() || self.nodes[n].peers[to] != Some(link) {
            return;
        }
        self.nodes[n].peers[to] = None;
        if was_up {
            self.give(n, Event::PeerLink { peer: address(to).node, up: false }, 0);
        }
        let boot = self.nodes[n].boot;
        let backoff = self.rng.within(5, 200) * MILLI;
        self.queue.push_in(backoff, Ev::Redial { node: n, boot, to });
    }

    /// Puts an event into a node's inbox. `known` is the number of a disk completion, else 0.
    pub fn give(&mut self, n: Who, event: Event, known: u64) {
        if self.nodes[n].is_up() {
            self.nodes[n].idle_turns = 0;
            self.nodes[n].inbox.push((event, known));
            self.wake_node(n);
        }
    }

    fn wake_node(&mut self, n: Who) {
        if !std::mem::replace(&mut self.nodes[n].turn_armed, true) {
            let delay = match self.rng.chance(0.01) {
                true => self.rng.below(LATE_TURN),
                false => self.rng.below(20 * MICRO),
            };
            let boot = self.nodes[n].boot;
            self.queue.push_in(delay, Ev::Turn { who: n, boot });
        }
    }

    /// A disk operation ends.
    pub fn disk_done(&mut self, n: Who, id: u32) {
        if let Some(completed) = self.nodes[n].disk.complete(id) {
            self.take_safe(n);
            self.trace(|| format!("node {n} disk {id} {:?}", completed.done.result));
            self.give(n, Event::Disk(completed.done), completed.order);
        }
    }

    /// A deadline may have come.
    pub fn node_timer(&mut self, n: Who) {
        let now = self.queue.now();
        if self.nodes[n].timer_at <= now {
            self.nodes[n].timer_at = Instant::MAX;
            self.nodes[n].idle_turns += 1;
            if self.nodes[n].idle_turns > IDLE_TURNS_MAX {
                self.fail(Class::Resources, format!("node {n} spins on its timer"));
            }
            if !std::mem::replace(&mut self.nodes[n].turn_armed, true) {
                self.node_turn(n);
            }
        }
    }

    /// A node's turn: everything that arrived, then the end of the turn.
    pub fn node_turn(&mut self, n: Who) {
        let now = self.queue.now();
        let node = &mut self.nodes[n];
        if node.paused_until > now {
            let (until, boot) = (node.paused_until, node.boot);
            self.queue.push(until, Ev::Turn { who: n, boot });
            return;
        }
        node.turn_armed = false;
        if let Some(held) = node.held.take() {
            // The end of the pause and this turn fell on one instant: what was held comes first.
            self.carry_out(n, held.effects);
        }
        let node = &mut self.nodes[n];
        let Some(shard) = &mut node.shard else { return };
        let local = node.clock.read(now);
        let mut effects = std::mem::take(&mut self.spare_effects);
        let mut watch = FuzzyWatch::new(shard);
        for (event, known) in node.inbox.drain(..) {
            node.known = node.known.max(known);
            shard.handle(local, event, &mut effects);
            watch.look(shard, &effects);
        }
        shard.end_turn(local, &mut effects);
        watch.look(shard, &effects);
        if let Some(group) = watch.found {
            let text = format!("node {n} reads group {group} behind its own pages");
            self.fail(Class::Raft, text);
        }
        let node = &mut self.nodes[n];
        if node.hold_next {
            // The process is stopped between deciding and doing.
            node.hold_next = false;
            let until = now + self.rng.log_uniform(1e6, 5e9) as u64;
            node.paused_until = until;
            node.held = Some(Held { effects });
            let boot = node.boot;
            self.trace(|| format!("node {n} holds its effects until {until}"));
            self.queue.push(until, Ev::Resume { who: n, boot });
            self.watch_paused(n);
        } else {
            self.carry_out(n, effects);
        }
        self.arm_timer(n);
    }

    /// A pause is over: what was held is carried out.
    pub fn node_resumes(&mut self, n: Who) {
        if let Some(held) = self.nodes[n].held.take() {
            self.carry_out(n, held.effects);
        }
        self.wake_node(n);
    }

    /// Ends a pause early.
    pub fn unpause_node(&mut self, n: Who) {
        self.nodes[n].paused_until = 0;
        self.nodes[n].hold_next = false;
        if self.nodes[n].is_up() {
            self.nodes[n].turn_armed = false;
            self.node_resumes(n);
        }
    }

    fn arm_timer(&mut self, n: Who) {
        let now = self.queue.now();
        let node = &mut self.nodes[n];
        let Some(deadline) = node.shard.as_ref().and_then(Shard::next_deadline) else { return };
        let at = node.clock.when(deadline).max(now + MICRO);
        if at < node.timer_at {
            node.timer_at = at;
            let boot = node.boot;
            self.queue.push(at, Ev::Timer { who: n, boot });
        }
    }

    fn carry_out(&mut self, n: Who, mut effects: Vec<Effect>) {
        let mut sends: Vec<(LinkIndex, u8, Encoder)> = Vec::new();
        for effect in effects.drain(..) {
            match effect {
                Effect::Disk(op) => {
                    let now = self.queue.now();
                    self.frames_in_vain = (now, 0);
                    let node = &mut self.nodes[n];
                    let (id, at) = node.disk.submit(now, op, node.known);
                    let boot = node.boot;
                    self.queue.push(at, Ev::Disk { node: n, boot, id });
                }
                Effect::Store(op) => self.ask_store(n, op),
                Effect::Send { to, frame } => self.send_peer(n, to, &frame, &mut sends),
                Effect::Reply { link, reply } => self.send_reply(n, link, reply, &mut sends),
                Effect::Proposed { token, result } => self.proposed(token, result.ok()),
                Effect::Applied { index, command, .. } => self.metadata_told(n, index, &command),
                Effect::FetchMetadata { from, at_least } => {
                    self.metadata_wanted(n, from, at_least);
                }
                Effect::LeaderChanged { group, leader, term } => {
                    self.trace(|| format!("node {n} group {group} leader {leader:?} term {term}"));
                }
                Effect::Drained => {
                    let delay = self.rng.below(20 * MILLI);
                    self.queue.push_in(delay, Ev::Drained { node: n, boot: self.nodes[n].boot });
                }
                Effect::DeviceSuspect { reason } => {
                    self.trace(|| format!("node {n} device suspect: {reason}"));
                    if !self.declares_write_faults() {
                        self.fail(Class::Alarm, format!("node {n}'s device is suspect: {reason}"));
                    }
                    let delay = self.rng.below(20 * MILLI);
                    self.queue.push_in(delay, Ev::Drained { node: n, boot: self.nodes[n].boot });
                }
                Effect::Notice { alarm, text } => {
                    self.trace(|| format!("node {n} notice alarm {alarm}: {text}"));
                    let full = self.declares_full() && text.contains("the device is full");
                    self.ran_full |= full;
                    let expected = full || self.nodes[n].control.may_lack(&text);
                    if alarm
                        && !expected
                        && !self.declares_damage(n)
                        && !self.declares_write_faults()
                    {
                        self.fail(Class::Alarm, format!("node {n}: {text}"));
                    }
                }
            }
        }
        self.spare_effects = effects;
        for (link, end, mut encoder) in sends {
            let pieces = encoder.take();
            self.net.send(link, end, pieces, &mut self.queue);
        }
    }

    fn send_peer(
        &mut self,
        n: Who,
        to: Address,
        frame: &Frame,
        sends: &mut Vec<(LinkIndex, u8, Encoder)>,
    ) {
        if let Frame::Raft(message) = frame {
            let damaged = self.declares_damage(n);
            if message.from != address(n).node {
                self.fail(Class::Raft, format!("node {n} speaks as {:?}", message.from));
            }
            if let Err(text) = self.raft.sent(message, damaged) {
                self.fail(Class::Raft, text);
            }
        }
        self.trace(|| format!("node {n} -> {to:?} {}", brief(frame)));
        self.count_in_vain();
        let link = self.nodes[n].peers[node_of(to)];
        if let Some(link) = link.filter(|l| self.net.is_open(*l, 0)) {
            encoder_for(sends, link, 0).push(frame);
        }
    }

    /// Peers that talk for ever without anything coming of it: no disk is asked for anything.
    fn count_in_vain(&mut self) {
        let now = self.queue.now();
        if now > self.frames_in_vain.0 + SECOND {
            self.frames_in_vain = (now, 0);
        }
        self.frames_in_vain.1 += 1;
        if self.frames_in_vain.1 == FRAMES_IN_VAIN_MAX {
            let text =
                format!("{FRAMES_IN_VAIN_MAX} frames within a second, and nothing came of it");
            self.fail(Class::Resources, text);
        }
    }

    fn send_reply(
        &mut self,
        n: Who,
        link: LinkId,
        reply: Reply,
        sends: &mut Vec<(LinkIndex, u8, Encoder)>,
    ) {
        if link == PROBE {
            self.probe_answer(n, reply);
            return;
        }
        let link = link.0 as LinkIndex;
        if let Some(request) = self.requests.remove(&(link, reply.id.0)) {
            self.judge_reply(&request, &reply);
        }
        let frame = Frame::Reply(reply);
        self.trace(|| format!("node {n} -> link {link} {}", brief(&frame)));
        if self.net.is_open(link, 1) {
            encoder_for(sends, link, 1).push(&frame);
        }
    }

    /// The acknowledgement oracle: the answer leaves now.
    fn judge_reply(&mut self, request: &Request, reply: &Reply) {
        let ReplyResult::Done { index } = reply.result else { return };
        let term = match &request.op {
            RequestOp::Write { term, payload, .. } => {
                if let Err(text) = self.oracle.acknowledged(payload, self.options.majority()) {
                    for n in 0..self.nodes.len() {
                        self.trace(|| {
                            format!("node {n} not safe: {}", self.nodes[n].disk.waiting())
                        });
                    }
                    self.fail(Class::Acknowledgement, text);
                }
                *term
            }
            RequestOp::Unmap { term, .. }
            | RequestOp::Fence { term, .. }
            | RequestOp::Freeze { term, .. }
            | RequestOp::OpenGate { term, .. }
            | RequestOp::DropSnapshot { term, .. }
            | RequestOp::Revert { term, .. }
            | RequestOp::Clone { term, .. }
            | RequestOp::Detach { term, .. }
            | RequestOp::Delete { term } => *term,
            // Where nothing is left to fill the answer names an entry of any term.
            RequestOp::Fill { .. }
            | RequestOp::Read { .. }
            | RequestOp::Extents { .. }
            | RequestOp::Changes { .. }
            // A gate is no entry.
            | RequestOp::CloseGate { .. }
            | RequestOp::Leader => return,
        };
        if let Err(text) = self.raft.acknowledged(request.group.0, index, term.0) {
            self.fail(Class::Raft, text);
        }
        let (group, volume, epoch) = (request.group.0, request.volume.0, request.epoch.0);
        let judged = match &request.op {
            RequestOp::Fence { .. } => self.raft.fenced(group, volume, epoch, index),
            // Whoever knows of a volume may take and drop its snapshots, clone them, and flatten clones.
            RequestOp::Freeze { .. }
            | RequestOp::OpenGate { .. }
            | RequestOp::DropSnapshot { .. }
            | RequestOp::Clone { .. }
            | RequestOp::Detach { .. } => Ok(()),
            _ => self.raft.written(group, volume, epoch, index),
        };
        if let Err(text) = judged {
            self.fail(Class::Fencing, text);
        }
    }

    /// A node whose device or process gave up is started anew.
    pub fn restart_failed(&mut self, n: Who) {
        let failed = matches!(
            self.nodes[n].shard.as_ref().map(|s| s.status().phase),
            Some(Phase::Failed(_))
        );
        if failed {
            self.stop_node(n, None);
            let delay = self.rng.within(50, 500) * MILLI;
            self.queue.push_in(delay, Ev::Start { node: n });
        }
    }
}

fn encoder_for(
    sends: &mut Vec<(LinkIndex, u8, Encoder)>,
    link: LinkIndex,
    end: u8,
) -> &mut Encoder {
    let at = sends.iter().position(|s| s.0 == link && s.1 == end).unwrap_or_else(|| {
        sends.push((link, end, Encoder::new()));
        sends.len() - 1
    });
    &mut sends[at].2
}

/// A frame in one line, without its data.
pub fn brief(frame: &Frame) -> String {
    match frame {
        Frame::Raft(m) => format!(
            "raft g{} kind {} term {} log {}@{} commit {} reject {} entries {:?}",
            m.group,
            m.kind,
            m.term,
            m.index,
            m.log_term,
            m.commit,
            m.reject,
            m.entries.iter().map(|e| (e.index.0, e.term.0, e.payload.len())).collect::<Vec<_>>()
        ),
        Frame::Request(r) => {
            let op = match &r.op {
                RequestOp::Write { term, range, .. } => format!("write {range:?} term {term}"),
                other => format!("{other:?}"),
            };
            format!(
                "request {} g{} v{} e{} {} {op}",
                r.id, r.group, r.volume, r.epoch, r.incarnation
            )
        }
        Frame::Reply(r) => match &r.result {
            ReplyResult::Data { index, payload, .. } => {
                format!("reply {} data of {} at {index}", r.id, payload.len())
            }
            other => format!("reply {} {other:?}", r.id),
        },
        other => format!("{other:?}"),
    }
}
