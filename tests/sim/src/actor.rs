//! A simulated client: a volume session, its links, its clock, and a user who keeps asking.

use crate::check::register::{Action, Moment, NEVER, Record};
use crate::clock::Clock;
use crate::event::{Ev, Who};
use crate::net::{LinkIndex, LinkKind};
use crate::node::{address, brief, node_of};
use crate::queue::{Instant, MICRO, MILLI};
use crate::report::Class;
use crate::rng::Rng;
use crate::stamp::{Content, OpId, judge};
use crate::workload::{self, Kind, Plan};
use crate::world::World;
use basalt_client::trace::Traces;
use basalt_client::{
    BlockError, BlockResult, ClientEffect, ClientEvent, RateLimits, Tuning, VolumeClient,
    VolumeConfig,
};
use basalt_core::planted::Bug;
use basalt_crypt::{Flaw, KEY_BYTES, VolumeCipher, VolumeKey};
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::codec::Encoder;
use basalt_wire::frame::{Frame, Request};
use basalt_wire::ids::{Address, Epoch, Generation, NodeId, VolumeId};
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a session stays that has nothing to do, in nanoseconds.
const LINGERS: Instant = 500 * MILLI;

const CHUNK_BYTES: u64 = CHUNK_BLOCKS * BLOCK_BYTES as u64;

/// An operation under way.
struct Pending {
    plan: Plan,
    call: Moment,
    asked_at: Instant,
}

/// How long an operation took, in a scripted world.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// When it was asked for.
    pub asked_at: Instant,
    /// Nanoseconds until it was answered.
    pub nanos: u64,
}

/// One session of one user.
pub struct SimClient {
    /// Its place among nodes and clients.
    pub who: Who,
    /// Which volume, by its place in the world's list.
    pub volume: usize,
    /// Its epoch.
    pub epoch: u64,
    /// Whether the session began, and when.
    pub ready: Option<Moment>,
    /// Why the session is over, if it is.
    pub lost: Option<BlockError>,
    /// Whether its process has ended, and its links with it.
    pub left: bool,
    /// Chunks of the volume that it has heard of.
    pub chunks: u32,
    /// Operations that it may still submit.
    pub budget: u32,
    /// No turn before this.
    pub paused_until: Instant,
    client: VolumeClient,
    /// The snapshot that it reads, if it has not attached the volume.
    view: Option<usize>,
    /// Whether it only begins the volume, as a clone.
    maker: bool,
    /// The node that it runs on.
    local: Option<NodeId>,
    clock: Clock,
    inbox: Vec<ClientEvent>,
    links: Vec<(Address, LinkIndex)>,
    pending: FxHashMap<u64, Pending>,
    turn_armed: bool,
    timer_at: Instant,
    think_armed: bool,
    rng: Rng,
}

impl SimClient {
    /// Whether everything that it was asked is answered, and its session has begun, in the groups of a
    /// volume that grew too, or is over.
    pub fn is_settled(&self) -> bool {
        let begun = self.ready.is_some() && self.inbox.is_empty() && self.client.is_fenced();
        self.pending.is_empty() && (begun || self.lost.is_some() || self.left)
    }

    /// Whether a read is under way.
    pub fn waits_for_read(&self) -> bool {
        self.pending.values().any(|p| p.plan.kind == Kind::Read)
    }

    /// The node that it runs on.
    pub fn local(&self) -> Option<NodeId> {
        self.local
    }

    /// Where the time of its requests went.
    pub fn traces(&self) -> &Traces {
        self.client.traces()
    }

    /// Operations under way.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// What the engine's client believes to have under way.
    pub fn engine_in_flight(&self) -> usize {
        self.client.in_flight()
    }
}

/// What a judged operation on one unit belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Attributed {
    /// The operation.
    pub record: Record,
    /// The volume's place.
    pub volume: usize,
    /// The session's epoch.
    pub epoch: u64,
}

/// One session of so many may do only so much in a second: some of its requests wait for that. It is guaranteed more
/// than it can get, so that those of others wait for its.
const LIMITED_EVERY: u64 = 8;
const LIMITS: RateLimits = RateLimits {
    iops_max: 500,
    iops_burst: 4,
    bandwidth_max: 16 << 20,
    bandwidth_burst: 64 << 10,
    iops_min: 400,
};

impl World {
    /// Attaches a volume: a new session with the next epoch.
    pub fn attach(&mut self, volume: usize, budget: u32) -> Who {
        self.volumes[volume].epoch += 1;
        let who = self.add_client(volume, None, false, budget);
        self.volumes[volume].client = who;
        who
    }

    /// A user who reads a snapshot.
    pub fn attach_view(&mut self, snapshot: usize, budget: u32) -> Who {
        self.add_client(self.snapshots[snapshot].volume, Some(snapshot), false, budget)
    }

    /// Who begins a volume that nobody has attached yet.
    pub fn attach_maker(&mut self, volume: usize) -> Who {
        self.add_client(volume, None, true, 0)
    }

    fn add_client(&mut self, volume: usize, view: Option<usize>, maker: bool, budget: u32) -> Who {
        let who = self.nodes.len() + self.clients.len();
        let now = self.queue.now();
        let (epoch, volume_chunks) = (self.volumes[volume].epoch, self.volumes[volume].chunks);
        let mut rng = Rng::stream(self.options.seed, "client", who as u64);
        let rate = self.draw_rate();
        let clock = Clock::new(now, rng.below(1 << 40), rate);
        let local = rng.chance(0.5).then(|| NodeId(rng.within(1, self.nodes.len() as u64) as u32));
        let config = VolumeConfig {
            volume: VolumeId(self.volumes[volume].id),
            epoch: Epoch(epoch),
            generation: Generation(match view {
                Some(snapshot) => self.snapshots[snapshot].generation,
                None => self.volumes[volume].generation,
            }),
            lineage: self.volumes[volume].lineage,
            size_bytes: u64::from(volume_chunks) * CHUNK_BYTES,
            map: Arc::clone(&self.map),
            local,
            limits: match epoch % LIMITED_EVERY {
                // Not those of scenarios, which tell what comes when.
                6 => LIMITS,
                _ => RateLimits::default(),
            },
            cipher: self.cipher_of(volume),
        };
        let mut effects = Vec::new();
        let now_there = clock.read(now);
        let usual = Tuning::default();
        let trace_period = if self.options.traced { Duration::ZERO } else { usual.trace_period };
        let tuning = Tuning { trace_period, ..usual };
        let mut client = match maker || view.is_some() {
            true => VolumeClient::view(config, tuning, now_there, &mut effects),
            false => VolumeClient::with_tuning(config, tuning, now_there, &mut effects),
        };
        self.tell_leaders(who, &mut client);
        self.counts.sessions += 1;
        self.trace(|| {
            format!("client {who} attaches volume {volume} with epoch {epoch}, snapshot {view:?}")
        });
        self.clients.push(SimClient {
            who,
            volume,
            epoch,
            ready: None,
            lost: None,
            left: false,
            chunks: view.map_or(volume_chunks, |at| self.snapshots[at].chunks),
            budget,
            paused_until: 0,
            client,
            view,
            maker,
            local,
            clock,
            inbox: Vec::new(),
            links: Vec::new(),
            pending: FxHashMap::default(),
            turn_armed: false,
            timer_at: Instant::MAX,
            think_armed: true,
            rng,
        });
        self.client_effects(who, effects);
        self.queue.push_in(0, Ev::Think { who });
        self.wake_client(who);
        who
    }

    /// Half of the sessions are told what another one knows of leaders, which may be over and may be so for long: those
    /// of a door tell each other.
    fn tell_leaders(&self, who: Who, client: &mut VolumeClient) {
        let mut rng = Rng::stream(self.options.seed, "leaders", who as u64);
        if !self.clients.is_empty() && rng.chance(0.5) {
            let other = &self.clients[rng.below(self.clients.len() as u64) as usize];
            client.expect_leaders(other.client.leaders());
        }
    }

    /// What a volume is encrypted with, if it is: its lineage decides, as a clone reads its parent's blocks.
    pub fn cipher_of(&self, volume: usize) -> Option<Arc<VolumeCipher>> {
        if !self.options.encrypted {
            return None;
        }
        let mut rng = Rng::stream(self.options.seed, "key", self.volumes[volume].lineage);
        let bytes: Vec<u8> = (0..KEY_BYTES).map(|_| rng.below(256) as u8).collect();
        let key = VolumeKey::new(&bytes).expect("its halves differ");
        let flaw = match self.options.planted {
            planted if planted.is(Bug::TweakOfPart) => Some(Flaw::TweakOfPart),
            planted if planted.is(Bug::HolesDeciphered) => Some(Flaw::HolesDeciphered),
            _ => None,
        };
        Some(Arc::new(VolumeCipher::new(&key).planted(flaw)))
    }

    /// A volume gets so many chunks more, as far as the run lets it. The session that its record names
    /// reads that record, and acts on it in a turn to come: by then it may be another that has the
    /// volume, which began with the new size.
    pub fn grow(&mut self, volume: usize, more: u32) {
        let grown = &mut self.volumes[volume];
        let chunks = (grown.chunks + more).min(self.options.chunks);
        if chunks == std::mem::replace(&mut grown.chunks, chunks) {
            return;
        }
        let (epoch, generation) = (grown.epoch, Generation(grown.generation));
        self.trace(|| format!("volume {volume} has {chunks} chunks now"));
        for at in 0..self.clients.len() {
            let client = &mut self.clients[at];
            let other = client.volume != volume || client.view.is_some() || client.maker;
            if other || client.epoch != epoch {
                continue;
            }
            client.chunks = chunks;
            let who = client.who;
            let size_bytes = u64::from(chunks) * CHUNK_BYTES;
            self.client_event(who, ClientEvent::Resize { size_bytes, generation });
        }
    }

    /// The client at a place among nodes and clients.
    pub fn client(&mut self, who: Who) -> &mut SimClient {
        let at = who - self.nodes.len();
        &mut self.clients[at]
    }

    /// The user submits what fits its depth.
    pub fn client_thinks(&mut self, who: Who) {
        let paused_until = self.client(who).paused_until;
        if paused_until > self.queue.now() {
            self.queue.push(paused_until, Ev::Think { who });
            return;
        }
        self.client(who).think_armed = false;
        if self.ending.is_some() || self.leaves(who) {
            return;
        }
        let room = self.options.depth as usize;
        let mut burst = 1 + self.client(who).rng.below(room as u64);
        while burst > 0 && self.client(who).pending.len() < room {
            let c = self.client(who);
            if c.budget == 0 || c.lost.is_some() {
                break;
            }
            c.budget -= 1;
            burst -= 1;
            self.submit(who);
        }
        self.think_later(who);
    }

    fn think_later(&mut self, who: Who) {
        let think = self.options.think;
        let scripted = self.scripted;
        let c = self.client(who);
        let done = c.budget == 0 || c.lost.is_some();
        if c.think_armed || c.left || scripted && done {
            return;
        }
        c.think_armed = true;
        if done {
            self.queue.push_in(LINGERS, Ev::Think { who });
            return;
        }
        // Now and then the user is away long enough for groups to fall asleep.
        let pause = match c.rng.chance(0.005) {
            true => c.rng.within(500, 4_000) * MILLI,
            false => c.rng.exponential(think as f64),
        };
        self.queue.push_in(pause, Ev::Think { who });
    }

    /// A session that was asked for everything, got every answer, and that nobody counts on any more ends
    /// with its process, as those of a real cluster do: its links close. Says whether it is over.
    fn leaves(&mut self, who: Who) -> bool {
        let scripted = self.scripted;
        let c = self.client(who);
        let idle = c.pending.is_empty() && c.inbox.is_empty();
        let done = c.lost.is_some() || c.budget == 0;
        if scripted || c.left || !idle || !done || self.counts_on(who) {
            return self.client(who).left;
        }
        self.trace(|| format!("client {who} leaves"));
        self.client(who).left = true;
        for (_, link) in std::mem::take(&mut self.client(who).links) {
            let keep = self.draw_keep();
            self.net.close(link, 0, keep, false, &mut self.queue);
        }
        true
    }

    /// Whether a session may still be asked for something.
    fn counts_on(&self, who: Who) -> bool {
        self.volumes.iter().any(|volume| volume.client == who)
            || self.together.iter().any(|cut| cut.needs(who))
            || self.makings.iter().any(|making| making.needs(who))
            || self.flattenings.iter().any(|flattening| flattening.needs(who))
    }

    fn submit(&mut self, who: Who) {
        let nodes = self.nodes.len();
        let c = &mut self.clients[who - nodes];
        let mut plan = workload::plan(&self.options, c.chunks, &mut c.rng);
        if c.view.is_some() {
            plan.kind = Kind::Read;
        }
        self.submit_plan(who, plan);
    }

    /// A user asks for something.
    pub fn submit_plan(&mut self, who: Who, plan: Plan) {
        assert!(!self.client(who).left, "client {who} is asked for something after it left");
        self.last_op += 1;
        let op: OpId = self.last_op;
        let call = self.moment();
        let asked_at = self.queue.now();
        let volume = self.client(who).volume;
        let named = (self.volumes[volume].id, self.parent_of(volume));
        let nodes = self.nodes.len();
        let options = &self.options;
        let c = &mut self.clients[who - nodes];
        let request = workload::request(&plan, options, named, who as u32, op);
        c.pending.insert(u64::from(op), Pending { plan, call, asked_at });
        c.inbox.push(ClientEvent::Submit { tag: u64::from(op), op: request });
        self.trace(|| format!("client {who} submits {op} at moment {call}: {plan:?}"));
        self.wake_client(who);
    }

    fn wake_client(&mut self, who: Who) {
        if !std::mem::replace(&mut self.client(who).turn_armed, true) {
            let delay = self.rng.below(20 * MICRO);
            self.queue.push_in(delay, Ev::Turn { who, boot: 0 });
        }
    }

    /// A client's turn.
    pub fn client_turn(&mut self, who: Who) {
        let now = self.queue.now();
        let c = self.client(who);
        if c.paused_until > now {
            let until = c.paused_until;
            self.queue.push(until, Ev::Turn { who, boot: 0 });
            return;
        }
        c.turn_armed = false;
        if c.left {
            return;
        }
        let local = c.clock.read(now);
        let mut effects = Vec::new();
        for event in std::mem::take(&mut c.inbox) {
            c.client.handle(local, event, &mut effects);
        }
        c.client.end_turn(local, &mut effects);
        self.client_effects(who, effects);
        let c = self.client(who);
        if let Some(deadline) = c.client.next_deadline() {
            let at = c.clock.when(deadline).max(now + MICRO);
            if at < c.timer_at {
                c.timer_at = at;
                self.queue.push(at, Ev::Timer { who, boot: 0 });
            }
        }
    }

    /// A client's deadline may have come.
    pub fn client_timer(&mut self, who: Who) {
        let now = self.queue.now();
        let c = self.client(who);
        if c.timer_at <= now {
            c.timer_at = Instant::MAX;
            if !std::mem::replace(&mut c.turn_armed, true) {
                self.client_turn(who);
            }
        }
    }

    fn client_effects(&mut self, who: Who, effects: Vec<ClientEffect>) {
        let mut sends: Vec<(LinkIndex, Encoder)> = Vec::new();
        for effect in effects {
            match effect {
                ClientEffect::Dial { to } => self.client_dials(who, to),
                ClientEffect::Reset { to } => {
                    // What was written before it goes first: the link closes behind it.
                    self.flush_sends(&mut sends);
                    self.trace(|| format!("client {who} resets its link to {to:?}"));
                    if let Some(link) = self.take_client_link(who, to) {
                        let keep = self.draw_keep();
                        self.net.close(link, 0, keep, false, &mut self.queue);
                    }
                    self.client_dials(who, to);
                }
                ClientEffect::Send { to, request } => {
                    self.client_sends(who, to, request, &mut sends)
                }
                ClientEffect::Complete { tag, result } => self.complete(who, tag, result),
                ClientEffect::AskMap => {
                    // It asks the nodes, which answer a moment later.
                    let map = self.map.clone();
                    self.client_event(who, ClientEvent::Map(map));
                }
                ClientEffect::Ready => {
                    let moment = self.moment();
                    self.trace(|| format!("client {who} is ready at moment {moment}"));
                    let c = self.client(who);
                    c.ready = Some(moment);
                    let (volume, epoch) = (c.volume, c.epoch);
                    if c.view.is_none() && !c.maker {
                        self.volumes[volume].grants.push((epoch, moment));
                    }
                    self.think_later(who);
                }
                ClientEffect::Lost(error) => {
                    self.trace(|| format!("client {who} lost its session: {error}"));
                    self.client(who).lost = Some(error);
                    let (volume, epoch) = (self.client(who).volume, self.client(who).epoch);
                    if error != BlockError::Fenced || epoch == self.volumes[volume].epoch {
                        self.fail(
                            Class::ClientError,
                            format!("client {who} lost its session: {error}"),
                        );
                    }
                }
            }
        }
        self.flush_sends(&mut sends);
    }

    fn flush_sends(&mut self, sends: &mut Vec<(LinkIndex, Encoder)>) {
        for (link, mut encoder) in sends.drain(..) {
            let pieces = encoder.take();
            self.net.send(link, 0, pieces, &mut self.queue);
        }
    }

    fn client_dials(&mut self, who: Who, to: Address) {
        if self.client(who).links.iter().any(|(a, _)| *a == to) {
            return;
        }
        let link = self.net.dial(who, node_of(to), LinkKind::Client, &mut self.queue);
        if self.client(who).local == Some(to.node) {
            // The client trusts what its own machine's replica sends.
            self.net.set_local(link);
        }
        self.client(who).links.push((to, link));
    }

    fn take_client_link(&mut self, who: Who, to: Address) -> Option<LinkIndex> {
        let links = &mut self.client(who).links;
        let at = links.iter().position(|(a, _)| *a == to)?;
        Some(links.swap_remove(at).1)
    }

    fn client_sends(
        &mut self,
        who: Who,
        to: Address,
        request: Request,
        sends: &mut Vec<(LinkIndex, Encoder)>,
    ) {
        let link = self.client(who).links.iter().find(|(a, _)| *a == to).map(|l| l.1);
        let Some(link) = link.filter(|l| self.net.is_open(*l, 0)) else { return };
        let frame = Frame::Request(request);
        self.trace(|| format!("client {who} -> {to:?} on link {link} {}", brief(&frame)));
        let at = sends.iter().position(|s| s.0 == link).unwrap_or_else(|| {
            sends.push((link, Encoder::new()));
            sends.len() - 1
        });
        sends[at].1.push(&frame);
    }

    /// A client's link stands.
    pub fn client_link_up(&mut self, who: Who, to: Who) {
        let credit_bytes = if self.rng.chance(0.2) { 64 << 10 } else { 4 << 20 };
        let credit_requests = if self.rng.chance(0.2) { 2 } else { 256 };
        let event = ClientEvent::LinkUp { to: address(to), credit_bytes, credit_requests };
        self.client_event(who, event);
    }

    /// A client's link is gone, or was refused.
    pub fn client_link_down(&mut self, who: Who, to: Who, link: LinkIndex) {
        let to = address(to);
        if self.client(who).links.contains(&(to, link)) {
            self.take_client_link(who, to);
            self.client_event(who, ClientEvent::LinkDown { to });
        }
    }

    /// Puts an event into a client's inbox.
    pub fn client_event(&mut self, who: Who, event: ClientEvent) {
        self.client(who).inbox.push(event);
        self.wake_client(who);
    }

    fn complete(&mut self, who: Who, tag: u64, result: Result<BlockResult, BlockError>) {
        let end = self.moment();
        self.trace(|| {
            let text = match &result {
                Ok(BlockResult::Data(data)) => format!("{} bytes", data.len()),
                other => format!("{other:?}"),
            };
            format!("client {who} completes {tag} at moment {end}: {text}")
        });
        let c = self.client(who);
        let Some(pending) = c.pending.remove(&tag) else {
            self.fail(Class::ClientError, format!("client {who} answered {tag} twice"));
            return;
        };
        if self.scripted {
            let asked_at = pending.asked_at;
            let nanos = self.queue.now() - asked_at;
            self.latencies.push(Latency { asked_at, nanos });
        }
        if self.cut_answered(who, pending.plan.kind, end, &result) {
            return;
        }
        match result {
            Ok(result) => self.complete_well(who, tag as OpId, &pending, end, &result),
            Err(error) => self.complete_badly(who, tag as OpId, &pending, error),
        }
        self.think_later(who);
    }

    fn complete_well(
        &mut self,
        who: Who,
        op: OpId,
        p: &Pending,
        end: Moment,
        result: &BlockResult,
    ) {
        self.counts.done += 1;
        match (p.plan.kind, result) {
            (Kind::Read, BlockResult::Data(data)) => {
                let want = p.plan.count as usize * self.options.unit;
                if data.len() != want {
                    let text = format!("read {op} returned {} of {want} bytes", data.len());
                    self.fail(Class::Content, text);
                    return;
                }
                let volume = self.client(who).volume;
                if let Some(snapshot) = self.client(who).view {
                    return self.judge_snapshot(snapshot, p.plan.unit, &data.contiguous());
                }
                self.judge_read(who, volume, p.plan.unit, &data.contiguous(), p.call, end);
            }
            (Kind::Write, BlockResult::Done) => self.note_writes(who, op, p, end, true),
            (Kind::Unmap, BlockResult::Done) => self.note_writes(who, 0, p, end, true),
            (Kind::Other, BlockResult::Done | BlockResult::Extents(_)) => {}
            (Kind::Freeze | Kind::Drop, BlockResult::Done) => {
                let volume = self.client(who).volume;
                self.snapshot_answered(volume, &p.plan, end, true);
            }
            (Kind::Clone, BlockResult::Done) => {
                let volume = self.client(who).volume;
                self.clone_made(volume);
            }
            (Kind::Fill | Kind::Detach, BlockResult::Done) => {
                let volume = self.client(who).volume;
                self.flatten_answered(volume, p.plan.kind, true);
            }
            (Kind::Revert, BlockResult::Done) => self.reverted(who, &p.plan, p.call, end),
            (kind, result) => {
                let text = format!("a {kind:?} was answered by {result:?}");
                self.fail(Class::ClientError, text);
            }
        }
    }

    fn complete_badly(&mut self, who: Who, op: OpId, p: &Pending, error: BlockError) {
        self.counts.errors += 1;
        let expected = match error {
            BlockError::Fenced | BlockError::Closed => {
                let c = self.client(who);
                let (volume, epoch) = (c.volume, c.epoch);
                self.volumes[volume].epoch > epoch
            }
            BlockError::NoSpace => self.declares_full() && p.plan.kind != Kind::Read,
            BlockError::Io(_) if p.plan.kind == Kind::Drop => {
                let volume = self.client(who).volume;
                self.may_be_kept_for_clones(volume, p.plan.unit)
            }
            BlockError::Io(_) if self.client(who).view.is_some() => {
                self.client(who).view.is_some_and(|snapshot| self.is_gone(snapshot))
            }
            BlockError::ReadOnly
            | BlockError::Io(_)
            | BlockError::OutOfRange
            | BlockError::Invalid => false,
        };
        if !expected {
            self.fail(
                Class::ClientError,
                format!("operation {op} of client {who} failed: {error}"),
            );
        }
        self.note_uncertain(who, op, p);
    }

    fn note_uncertain(&mut self, who: Who, op: OpId, p: &Pending) {
        match p.plan.kind {
            Kind::Write => self.note_writes(who, op, p, NEVER, false),
            Kind::Unmap => self.note_writes(who, 0, p, NEVER, false),
            Kind::Read | Kind::Other | Kind::Revert | Kind::Clone => {}
            Kind::CloseGate | Kind::OpenGate => {}
            Kind::Fill | Kind::Detach => {
                let volume = self.client(who).volume;
                self.flatten_answered(volume, p.plan.kind, false);
            }
            Kind::Freeze | Kind::Drop => {
                let volume = self.client(who).volume;
                self.snapshot_answered(volume, &p.plan, NEVER, false);
            }
        }
    }

    fn note_writes(&mut self, who: Who, value: u32, p: &Pending, end: Moment, certain: bool) {
        for unit in p.plan.unit..p.plan.unit + u64::from(p.plan.count) {
            self.note(who, unit, Action::Write, value, p.call, end, certain);
        }
    }

    /// Notes an operation on one unit.
    #[allow(clippy::too_many_arguments)] // One line of the history has that many columns.
    pub fn note(
        &mut self,
        who: Who,
        unit: u64,
        action: Action,
        value: u32,
        call: Moment,
        end: Moment,
        certain: bool,
    ) {
        let (volume, epoch) = match who.checked_sub(self.nodes.len()) {
            Some(at) if at < self.clients.len() => {
                (self.clients[at].volume, self.clients[at].epoch)
            }
            _ => return,
        };
        let unit = (volume as u64) << 32 | self.volumes[volume].reverts << 24 | unit;
        let record = Record { unit, action, value, call, end, certain };
        self.history.push(Attributed { record, volume, epoch });
    }

    /// Judges what a read returned, and notes it.
    pub fn judge_read(
        &mut self,
        who: Who,
        volume: usize,
        first: u64,
        data: &[u8],
        call: Moment,
        end: Moment,
    ) {
        let id = self.volumes[volume].id;
        for (i, bytes) in data.chunks_exact(self.options.unit).enumerate() {
            let unit = first + i as u64;
            let value = match judge(bytes) {
                Content::Zero => 0,
                Content::Value(s) if s.unit == unit && self.may_hold(volume, s.volume) => s.op,
                other => {
                    let text = format!(
                        "unit {unit} of volume {id} read from {call} to {end} by {who} holds {other:?}"
                    );
                    self.fail(Class::Content, text);
                    return;
                }
            };
            self.note(who, unit, Action::Read, value, call, end, true);
        }
    }

    /// Operations that will never be answered enter the history as uncertain.
    pub fn note_unanswered(&mut self) {
        for at in 0..self.clients.len() {
            let who = self.clients[at].who;
            let mut pending: Vec<(u64, Pending)> = self.clients[at].pending.drain().collect();
            pending.sort_unstable_by_key(|p| p.0);
            for (tag, p) in pending {
                self.note_uncertain(who, tag as OpId, &p);
            }
        }
    }
}
