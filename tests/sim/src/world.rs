//! The world: nodes, clients, links and the heap of events, with the loop that runs them.

use crate::actor::{Attributed, Latency, SimClient};
use crate::check::oracle::Oracle;
use crate::check::raft::RaftMonitor;
use crate::check::register::Moment;
use crate::clones::{Flattening, Making};
use crate::disk::{Disk, DiskOptions};
use crate::ending::{CHECK_EVERY, Ending, Probe, Stage};
use crate::event::{Ev, Who};
use crate::members::Moves;
use crate::metadata::ControlPlane;
use crate::net::{Arrival, Connected, LinkIndex, LinkKind, Net, NetOptions, SILENCE};
use crate::node::{SimNode, address};
use crate::options::{Family, Options, SEGMENTS_RESERVED};
use crate::queue::{Instant, MILLI, Queue};
use crate::report::{Class, Counts, Failure, Outcome};
use crate::rng::{Rng, mix};
use crate::snapshots::Snapshot;
use crate::store::{Store, draw_index, draw_interval};
use crate::together::Together;
use basalt_client::{ClientEvent, PoolMap};
use basalt_core::Shard;
use basalt_core::config::{GroupConfig, Limits, Scrubbing, ShardConfig, Timing};
use basalt_core::event::{Effect, Event, LinkId};
use basalt_wire::frame::{Frame, Request};
use basalt_wire::ids::{Address, ClusterId, GroupId, LogIndex, Term};
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::Duration;

/// The link over which the checkers ask replicas at the end.
pub const PROBE: LinkId = LinkId(u64::MAX);
/// Events after which a run is taken for endless.
const EVENTS_MAX: u64 = 60_000_000;
/// Events of one instant after which it is taken for endless.
const EVENTS_AT_ONCE_MAX: u32 = 10_000;

/// One volume.
pub struct Volume {
    /// Its id.
    pub id: u64,
    /// The id of the volume that it descends from, or its own: decides which group holds a chunk.
    pub lineage: u64,
    /// The place of the snapshot that it is a clone of.
    pub above: Option<usize>,
    /// Whether it was to hang on that no more, and whether that was answered.
    pub detaching: bool,
    /// See `detaching`.
    pub detached: bool,
    /// Whether it may be attached: a clone, once all groups have begun it.
    pub begun: bool,
    /// The epoch given out last.
    pub epoch: u64,
    /// Its chunks, as the record says.
    pub chunks: u32,
    /// The generation that its next session writes to.
    pub generation: u32,
    /// How often it was reverted: each time its units begin a history of their own.
    pub reverts: u64,
    /// The client attached last.
    pub client: Who,
    /// When sessions began: epoch and moment.
    pub grants: Vec<(u64, Moment)>,
}

impl Volume {
    /// One that was never attached.
    pub fn new(id: u64, o: &Options) -> Volume {
        Volume {
            id,
            lineage: id,
            above: None,
            detaching: false,
            detached: false,
            begun: true,
            epoch: 0,
            chunks: o.first_chunks(),
            generation: 0,
            reverts: 0,
            client: 0,
            grants: Vec::new(),
        }
    }
}

/// Everything there is.
pub struct World {
    /// What was drawn.
    pub options: Options,
    /// What happens next.
    pub queue: Queue<Ev>,
    /// The links.
    pub net: Net,
    /// The machines.
    pub nodes: Vec<SimNode>,
    /// The sessions, in order of their attachment.
    pub clients: Vec<SimClient>,
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// The snapshots, in the order in which they were asked for.
    pub snapshots: Vec<Snapshot>,
    /// Those that were taken together.
    pub together: Vec<Together>,
    /// The clones in the making.
    pub makings: Vec<Making>,
    /// The clones that are being flattened.
    pub flattenings: Vec<Flattening>,
    /// Where the groups are.
    pub map: Arc<PoolMap>,
    /// Where they are to be.
    pub moves: Moves,
    /// The acknowledgement oracle.
    pub oracle: Oracle,
    /// The monitors of consensus.
    pub raft: RaftMonitor,
    /// Everything that clients did to units.
    pub history: Vec<Attributed>,
    /// Requests that reached a node and are not answered, by link and id.
    pub requests: FxHashMap<(LinkIndex, u64), Request>,
    /// Boot, term and commit index seen last of each replica.
    pub positions: FxHashMap<(Who, GroupId), (u32, Term, LogIndex)>,
    /// What moves while a node makes room, as seen last, and since when it stands still.
    pub room: FxHashMap<Who, ([u64; 5], Instant)>,
    /// The digest of the metadata state as of each entry.
    pub metadata: FxHashMap<u64, u64>,
    /// Metadata proposals and what they came to.
    pub proposals: Vec<Option<LogIndex>>,
    /// Network faults: the pairs that each keeps apart.
    pub cuts: Vec<Vec<(Who, Who)>>,
    /// Questions of the end.
    pub probes: Vec<Probe>,
    /// The end of the run, once it has begun.
    pub ending: Option<Ending>,
    /// Whether a script decides when the run ends.
    pub scripted: bool,
    /// How long operations took, if a script runs.
    pub latencies: Vec<Latency>,
    /// Whether some node's log ran out of segments.
    pub ran_full: bool,
    /// Whether the run ended with work left over, because logs are full.
    pub ended_full: bool,
    /// Whether data at rest was damaged.
    pub damaged: bool,
    /// Whether that is so on all nodes, no block on two of them.
    pub all_damaged: bool,
    /// Nodes on which replicas were made to hold something else than the others, and in which boot.
    pub diverged: Vec<(Who, u32)>,
    /// What took place.
    pub counts: Counts,
    /// Number of the operation submitted last.
    pub last_op: u32,
    /// Frames between peers since a disk was asked for anything, and since when they are counted.
    pub frames_in_vain: (Instant, u32),
    /// An empty list, kept for its memory.
    pub spare_effects: Vec<Effect>,
    /// Draws of the drivers.
    pub rng: Rng,
    /// Draws of the nemesis.
    pub fault_rng: Rng,
    /// The present instant, and the events that fell on it.
    same_instant: (Instant, u32),
    failure: Option<Failure>,
    last_moment: Moment,
    hash: u64,
    tracing: bool,
}

impl World {
    /// A world of formatted devices, with nothing started.
    pub fn new(options: Options, tracing: bool) -> World {
        let stream = |name, index| Rng::stream(options.seed, name, index);
        let net_options = NetOptions {
            delay_min: options.delay_min,
            delay: options.delay,
            per_byte: 1.0,
            split: 0.05,
            corrupt: 0.0,
        };
        let groups = place_groups(&options);
        let map = PoolMap { version: 1, group_count: options.groups, groups: groups.clone() };
        let mut world = World {
            queue: Queue::new(stream("heap", 0)),
            net: Net::new(net_options, stream("net", 0)),
            nodes: Vec::new(),
            clients: Vec::new(),
            volumes: Vec::new(),
            snapshots: Vec::new(),
            together: Vec::new(),
            makings: Vec::new(),
            flattenings: Vec::new(),
            map: Arc::new(map),
            moves: Moves::new(&groups),
            oracle: Oracle::new(options.unit, options.encrypted),
            raft: RaftMonitor::default(),
            history: Vec::new(),
            requests: FxHashMap::default(),
            positions: FxHashMap::default(),
            room: FxHashMap::default(),
            metadata: FxHashMap::default(),
            proposals: Vec::new(),
            cuts: Vec::new(),
            probes: Vec::new(),
            ending: None,
            scripted: false,
            latencies: Vec::new(),
            ran_full: false,
            ended_full: false,
            damaged: false,
            all_damaged: false,
            diverged: Vec::new(),
            counts: Counts::default(),
            last_op: 0,
            frames_in_vain: (0, 0),
            same_instant: (0, 0),
            spare_effects: Vec::new(),
            rng: stream("world", 0),
            fault_rng: stream("nemesis", 0),
            failure: None,
            last_moment: 0,
            hash: mix(options.seed),
            tracing,
            options,
        };
        for n in 0..world.options.all_nodes() {
            let node = world.make_node(n, &groups);
            world.nodes.push(node);
        }
        world
    }

    fn make_node(&mut self, n: Who, groups: &[Vec<Address>]) -> SimNode {
        let o = &self.options;
        let mut rng = Rng::stream(o.seed, "node", n as u64);
        let mut store_rng = Rng::stream(o.seed, "store", n as u64);
        let mut meta_rng = Rng::stream(o.seed, "metadata", n as u64);
        let own = address(n);
        let mut held: Vec<GroupConfig> = groups
            .iter()
            .enumerate()
            .filter(|(_, voters)| voters.contains(&own))
            .map(|(g, voters)| GroupConfig::new(GroupId(g as u32), voters.clone()))
            .collect();
        let metadata: Vec<Address> = (0..3).map(address).collect();
        if metadata.contains(&own) {
            held.push(GroupConfig::new(GroupId::METADATA, metadata));
        }
        let config = ShardConfig {
            cluster: ClusterId(77),
            address: own,
            device_bytes: o.device,
            segment_bytes: o.segment,
            volatile_cache: o.volatile,
            groups: held,
            timing: Timing {
                sleep_after: Duration::from_millis(rng.within(300, 3_000)),
                ..Timing::default()
            },
            limits: Limits {
                copy_segments: draw_copies(o.seed, n),
                metadata_retain_entries: *meta_rng.pick(&[0, 1, 8, 64]),
                metadata_retain_bytes: *meta_rng.pick(&[0, 1 << 10, 1 << 20]),
                ..draw_limits(&mut rng)
            },
            checkpoint_bytes: draw_interval(&mut store_rng),
            index_bytes: draw_index(&mut store_rng),
            scrub: Scrubbing { every: Duration::from_nanos(o.scrub), ..Scrubbing::ASKED },
            metadata_saved: LogIndex(0),
            seed: rng.bits(),
            planted: o.planted,
        };
        let disk = DiskOptions {
            bytes: o.device,
            volatile: o.volatile,
            atom: o.atom,
            durable_flushes: o.durable_flushes,
            latency: o.disk_latency,
        };
        let mut disk = Disk::new(disk, Rng::stream(o.seed, "disk", n as u64));
        for op in Shard::format(&config) {
            disk.execute(op);
        }
        let rate = self.draw_rate();
        let kept = (Store::new(store_rng), ControlPlane::new(meta_rng));
        SimNode::new(config, disk, kept, self.options.all_nodes(), rate)
    }

    /// How fast a clock runs.
    pub fn draw_rate(&mut self) -> f64 {
        let rate = 0.6 + self.rng.fraction() * 0.8;
        if self.options.families.has(Family::Drift) { rate } else { 1.0 }
    }

    /// Starts everything and runs until the end or the first broken rule.
    pub fn run(&mut self) {
        for n in 0..self.nodes.len() {
            self.start_node(n);
        }
        let budget = self.options.ops / self.options.volumes;
        for volume in 0..self.options.volumes as usize {
            let id = volume as u64 + 1;
            self.volumes.push(Volume::new(id, &self.options));
            self.attach(volume, budget);
        }
        self.unleash();
        self.queue.push_in(CHECK_EVERY, Ev::Check);
        self.run_until_end();
    }

    /// Runs the heap until the run is over or a rule is broken.
    pub fn run_until_end(&mut self) {
        while self.ending.is_none_or(|e| e.stage != Stage::Done) && self.step() {}
    }

    /// Runs the heap up to an instant. False if a rule is broken.
    pub fn run_until(&mut self, instant: Instant) -> bool {
        while self.queue.next_at().is_some_and(|at| at <= instant) {
            if !self.step() {
                return false;
            }
        }
        self.queue.advance(instant);
        self.failure.is_none()
    }

    /// Takes the next event. False if there is none, or a rule is broken.
    fn step(&mut self) -> bool {
        if self.failure.is_some() {
            return false;
        }
        let Some((at, event)) = self.queue.pop() else { return false };
        self.counts.events += 1;
        if self.counts.events > EVENTS_MAX {
            self.fail(Class::Resources, format!("the run did not end in {EVENTS_MAX} events"));
        }
        self.same_instant = match self.same_instant {
            (instant, count) if instant == at => (at, count + 1),
            _ => (at, 1),
        };
        // A fault that takes all links at once has both ends of each look at it at one later instant.
        let watches = || 4 * self.net.live().count() as u32;
        let count = self.same_instant.1;
        if count > EVENTS_AT_ONCE_MAX && count > EVENTS_AT_ONCE_MAX + watches() {
            let text = format!("{count} events at one instant, such as {event:?}");
            self.fail(Class::Resources, text);
        }
        self.hash = mix(self.hash ^ at ^ code(&event));
        self.dispatch(event);
        self.failure.is_none()
    }

    /// Whether a rule is broken.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Judges the run and gives its outcome.
    pub fn finish(mut self) -> Outcome {
        if self.failure.is_none() {
            for at in 0..self.clients.len() {
                let left = self.clients[at].engine_in_flight();
                if left > 0 && self.clients[at].lost.is_none() && !self.ended_full {
                    let who = self.clients[at].who;
                    self.fail(Class::Resources, format!("client {who} keeps {left} operations"));
                }
            }
            self.judge_history();
        }
        self.counts.simulated = self.queue.now();
        let (trace_hash, failure, counts) = (self.hash, self.failure, self.counts);
        Outcome { trace_hash, failure, counts, marks: basalt_core::planted::take() }
    }

    fn dispatch(&mut self, event: Ev) {
        let nodes = self.nodes.len();
        match event {
            Ev::Turn { who, boot } if who < nodes => {
                if self.nodes[who].boot == boot {
                    self.node_turn(who);
                }
            }
            Ev::Turn { who, .. } => self.client_turn(who),
            Ev::Timer { who, boot } if who < nodes => {
                if self.nodes[who].boot == boot {
                    self.node_timer(who);
                }
            }
            Ev::Timer { who, .. } => self.client_timer(who),
            Ev::Resume { who, boot } => {
                if self.nodes[who].boot == boot {
                    self.node_resumes(who);
                }
            }
            Ev::Disk { node, boot, id } => {
                if self.nodes[node].boot == boot {
                    self.disk_done(node, id);
                }
            }
            Ev::Store { node, boot } => {
                if self.nodes[node].boot == boot {
                    self.store_done(node);
                }
            }
            Ev::Pages { node, boot } => {
                if self.nodes[node].boot == boot {
                    self.pages_read(node);
                }
            }
            Ev::MetadataKept { node, boot } => {
                if self.nodes[node].boot == boot {
                    self.metadata_kept(node);
                }
            }
            Ev::MetadataAsked { node, boot } => {
                if self.nodes[node].boot == boot {
                    self.ask_for_metadata(node);
                }
            }
            Ev::Connect { link } => self.connect(link),
            Ev::Deliver { link, dir } => self.deliver(link, dir),
            Ev::GiveUp { link, end, if_silent } => {
                let other = self.net.ends(link).map_or(0, |e| e[usize::from(1 - end)]);
                let silent = self.net.is_silent(link, self.queue.now()) || self.is_paused(other);
                if !if_silent || silent {
                    self.break_link(link, end);
                }
            }
            Ev::Redial { node, boot, to } => self.redial(node, boot, to),
            Ev::Start { node } => self.start_node(node),
            Ev::Drained { node, boot } => self.recycle(node, boot),
            Ev::Crash { node, power } => self.crash(node, power),
            Ev::Nemesis(family) => self.nemesis(family),
            Ev::Heal { fault } => self.heal(fault),
            Ev::Think { who } => self.client_thinks(who),
            Ev::Check => self.check(),
        }
    }

    /// How much of what a closing end has under way still arrives, in 256ths: often all of it.
    pub fn draw_keep(&mut self) -> u64 {
        if self.rng.chance(0.5) { 256 } else { self.rng.below(257) }
    }

    /// Whether a process stands still.
    fn is_paused(&self, who: Who) -> bool {
        let now = self.queue.now();
        match who.checked_sub(self.nodes.len()) {
            None => self.nodes[who].is_up() && self.nodes[who].paused_until > now,
            Some(client) => self.clients[client].paused_until > now,
        }
    }

    /// Both ends of a process's links look later whether it still stands still.
    pub fn watch_paused(&mut self, who: Who) {
        for link in self.net.live().collect::<Vec<_>>() {
            if self.net.ends(link).is_some_and(|e| e[1] == who) {
                self.queue.push_in(SILENCE, Ev::GiveUp { link, end: 0, if_silent: true });
            }
        }
    }

    fn connect(&mut self, link: LinkIndex) {
        let Some([from, to]) = self.net.ends(link) else { return };
        let kind = self.net.kind(link).expect("it has ends");
        if self.is_paused(to) {
            // The kernel accepts, but nobody answers the handshake.
            let again = self.rng.within(50, 250) * MILLI;
            self.queue.push_in(again, Ev::Connect { link });
            return;
        }
        let listening = self.nodes[to].is_up();
        let outcome = self.net.connect(link, listening, &mut self.queue);
        match (outcome, kind) {
            (Connected::Open, LinkKind::Peer) => self.peer_link_up(from, to),
            (Connected::Open, LinkKind::Client) => self.client_link_up(from, to),
            (Connected::Refused, LinkKind::Peer) => self.peer_link_down(from, to, link, false),
            (Connected::Refused, LinkKind::Client) => self.client_link_down(from, to, link),
            (Connected::Waiting | Connected::Gone, _) => {}
        }
    }

    fn deliver(&mut self, link: LinkIndex, dir: u8) {
        let Some(ends) = self.net.ends(link) else { return };
        let kind = self.net.kind(link).expect("it has ends");
        let receiver = 1 - dir;
        let (from, who) = (ends[usize::from(dir)], ends[usize::from(receiver)]);
        let arrivals = self.net.deliver(link, dir, &mut self.queue);
        for arrival in arrivals {
            match arrival {
                Arrival::Frame(frame) => self.arrives(link, kind, from, who, frame),
                Arrival::Closed => self.break_link(link, receiver),
                Arrival::Corrupt(text) => {
                    self.trace(|| format!("{who} drops link {link}: {text}"));
                    if !self.options.families.has(Family::Corrupt) {
                        self.fail(Class::Content, format!("{who} got a bad frame: {text}"));
                    }
                    self.break_link(link, receiver);
                }
            }
        }
    }

    fn arrives(&mut self, link: LinkIndex, kind: LinkKind, from: Who, who: Who, frame: Frame) {
        self.hash = mix(self.hash ^ u64::from(link));
        match (kind, frame) {
            (LinkKind::Peer, frame) => {
                self.give(who, Event::Peer { from: address(from), frame }, 0);
            }
            (LinkKind::Client, Frame::Request(request)) => {
                self.requests.insert((link, request.id.0), request.clone());
                let link = LinkId(u64::from(link));
                self.give(who, Event::Request { link, remote: true, request }, 0);
            }
            (LinkKind::Client, Frame::Reply(reply)) => {
                self.client_event(who, ClientEvent::Reply { from: address(from), reply });
            }
            (_, frame) => self.fail(Class::Content, format!("{who} got {frame:?}")),
        }
    }

    /// One end of a link closes it, and its driver is told. What it had sent may still arrive.
    pub fn break_link(&mut self, link: LinkIndex, end: u8) {
        let Some(ends) = self.net.ends(link) else { return };
        if !self.net.is_open(link, end) {
            return;
        }
        let kind = self.net.kind(link).expect("it has ends");
        let keep = self.draw_keep();
        self.net.close(link, end, keep, false, &mut self.queue);
        match (kind, end) {
            (LinkKind::Peer, 0) => self.peer_link_down(ends[0], ends[1], link, true),
            (LinkKind::Peer, _) => {}
            (LinkKind::Client, 0) => self.client_link_down(ends[0], ends[1], link),
            (LinkKind::Client, _) => {
                let link = LinkId(u64::from(link));
                self.give(ends[1], Event::LinkClosed { link }, 0);
            }
        }
    }

    /// The next moment of the history.
    pub fn moment(&mut self) -> Moment {
        self.last_moment += 1;
        self.last_moment
    }

    /// Notes a broken rule. The first one ends the run.
    pub fn fail(&mut self, class: Class, text: String) {
        self.trace(|| format!("BROKEN {class:?}: {text}"));
        if self.failure.is_none() {
            self.failure = Some(Failure { class, text, at: self.queue.now() });
        }
    }

    /// Prints a line of the trace, if one was asked for.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        if self.tracing {
            println!("{:>14.6} {}", self.queue.now() as f64 / 1e9, line());
        }
    }

    /// Whether a node may complain about its data.
    pub fn declares_damage(&self, n: Who) -> bool {
        let f = self.options.families;
        self.all_damaged
            || !self.diverged.is_empty()
            || n == self.options.victim as usize && (self.damaged || f.has(Family::ReadFault))
    }

    /// Whether devices may fail writes.
    pub fn declares_write_faults(&self) -> bool {
        self.options.families.has(Family::WriteFault)
    }

    /// Whether devices may be full: they are too small, or hold the data and little more, and what is
    /// kept for snapshots beside it does not fit, or what is damaged on one of them can not be moved.
    pub fn declares_full(&self) -> bool {
        let f = self.options.families;
        let harmed = f.has(Family::Damage) || f.has(Family::ReadFault);
        f.has(Family::Full) || f.has(Family::Space) && (harmed || f.has(Family::Snapshot))
    }
}

/// Three voters for each group.
fn place_groups(o: &Options) -> Vec<Vec<Address>> {
    let nodes = o.nodes as usize;
    (0..o.groups as usize).map(|g| (0..3).map(|i| address((g + i) % nodes)).collect()).collect()
}

/// Small bounds, so that each is reached.
fn draw_limits(rng: &mut Rng) -> Limits {
    Limits {
        pending_bytes: *rng.pick(&[128 << 10, 1 << 20, 16 << 20]),
        pending_requests: *rng.pick(&[4, 64, 1024]),
        entry_cache_bytes: *rng.pick(&[0, 16 << 10, 1 << 20]),
        entry_bytes: *rng.pick(&[4 << 10, 16 << 10]),
        batch_bytes: *rng.pick(&[8 << 10, 32 << 10]),
        batches_in_flight: *rng.pick(&[1, 2, 4]),
        appends_in_flight: *rng.pick(&[1, 4, 64]),
        segments_reserved: SEGMENTS_RESERVED,
        log_retain_bytes: *rng.pick(&[0, 32 << 10, 256 << 10, 1 << 20]),
        gather_bytes: *rng.pick(&[0, 0, 16 << 10, 128 << 10]),
        ..Limits::default()
    }
}

/// Whether a node has copy segments: of its own stream, so that the seed's other draws do not depend on it.
fn draw_copies(seed: u64, node: usize) -> bool {
    Rng::stream(seed, "copies", node as u64).chance(0.8)
}

/// A number that tells events apart, for the hash over the run.
fn code(event: &Ev) -> u64 {
    let (kind, a, b) = match *event {
        Ev::Turn { who, boot } => (1, who as u64, u64::from(boot)),
        Ev::Timer { who, boot } => (2, who as u64, u64::from(boot)),
        Ev::Resume { who, boot } => (3, who as u64, u64::from(boot)),
        Ev::Disk { node, boot, id } => (4, node as u64, u64::from(boot) << 32 | u64::from(id)),
        Ev::Connect { link } => (5, u64::from(link), 0),
        Ev::Deliver { link, dir } => (6, u64::from(link), u64::from(dir)),
        Ev::GiveUp { link, end, .. } => (7, u64::from(link), u64::from(end)),
        Ev::Redial { node, boot, to } => (8, node as u64, u64::from(boot) << 32 | to as u64),
        Ev::Start { node } => (9, node as u64, 0),
        Ev::Drained { node, boot } => (10, node as u64, u64::from(boot)),
        Ev::Crash { node, power } => (11, node as u64, u64::from(power)),
        Ev::Nemesis(family) => (12, family as u64, 0),
        Ev::Heal { fault } => (13, u64::from(fault), 0),
        Ev::Think { who } => (14, who as u64, 0),
        Ev::Check => (15, 0, 0),
        Ev::Store { node, boot } => (16, node as u64, u64::from(boot)),
        Ev::Pages { node, boot } => (17, node as u64, u64::from(boot)),
        Ev::MetadataKept { node, boot } => (18, node as u64, u64::from(boot)),
        Ev::MetadataAsked { node, boot } => (19, node as u64, u64::from(boot)),
    };
    mix(a << 8 | kind) ^ b.rotate_left(17)
}
