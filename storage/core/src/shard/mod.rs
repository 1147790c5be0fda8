//! The shard: one core's share of a node.

mod admission;
mod checkpoints;
mod cleaning;
mod filling;
mod held;
mod log_events;
mod members;
mod memory;
mod request;
mod scores;
mod scrubbing;
mod space;
mod status;
mod surveying;
#[cfg(test)]
mod tests;

pub use cleaning::totals;
pub use held::HeldGroup;
pub use memory::IndexStatus;
pub use space::{Space, VolumeSpace};
pub use status::{GroupRole, GroupStatus, Phase, ProposedCounts, ScrubStatus, ShardStatus};

use crate::checkpoint::{Departed, Taker};
use crate::cleaner::Cleaner;
use crate::config::ShardConfig;
use crate::consensus::{Cx, Group, OpenState, Proposal, Shared, Slab};
use crate::event::{Effect, Event, ProposeError};
use crate::log::{Log, LogEvent, OpenReport};
use crate::planted::Bug;
use crate::scrub::{Repairs, Scrub, Survey};
use admission::Admission;
use basalt_wire::frame::{Frame, Refusal, Reply, ReplyResult};
use basalt_wire::ids::{Address, GroupId, LogIndex};
use basalt_wire::io::{DiskDone, DiskOp};
use basalt_wire::time::Time;
use bytes::Bytes;
use checkpoints::Start;
use memory::Waiting;
use rustc_hash::FxHashMap;
use scrubbing::Give;
use surveying::Evacuation;

/// The longest command of the metadata group, in bytes.
const METADATA_BYTES_MAX: usize = 1 << 20;
/// Entries that one turn finds not to be forgotten yet before it leaves the rest to the next.
const KEPT_MAX: usize = 64;
/// Bytes of content that are kept although no voter lacks it: a new leader may find that one does.
const SPARE_BYTES: usize = 128 << 10;
/// What is drawn for the scrub.
const SCRUB_SEED: u64 = 0x5c72_7562;
/// Times that one turn goes over its groups, for what becomes ready within it.
const ROUNDS_MAX: usize = 8;

/// One core's share of a node: its segment log, its index, its replicas.
pub struct Shard {
    shared: Shared,
    groups: Vec<Group>,
    by_id: FxHashMap<GroupId, usize>,
    phase: Phase,
    /// What the log gave so far, while it opens.
    opening: Vec<OpenState>,
    open_report: Option<OpenReport>,
    events: Vec<LogEvent>,
    next_tick: Time,
    /// Whether an end of a drain was told, and when waiting for it ends.
    drain: Option<Drain>,
    taker: Taker,
    start: Start,
    cleaner: Cleaner,
    /// Whether there was nothing to clean when it was looked for last.
    no_victim: bool,
    /// Whether, as of the last tick, something is under way or can be done that gives segments back.
    gain: bool,
    scrub: Scrub,
    repairs: Repairs,
    /// The group whose turn it is to move a piece of pages.
    page_turn: usize,
    survey: Survey,
    evacuation: Evacuation,
    /// Blocks that are read for other replicas' repairs.
    gives: Slab<Give>,
    /// Those that were given.
    given: u64,
    /// Groups that were removed here: the terms and votes that they may not forget should they come back.
    departed: Departed,
    /// Whether votes may be lost that no replica here knows of: one that comes may have given one.
    votes_lost: bool,
    /// What waits for tables of pages.
    waiting: Waiting,
    /// Bytes of memory that such tables may take, and the group that is looked at first for some that may leave.
    index_bytes: u64,
    next_cooled: usize,
    admission: Admission,
}

struct Drain {
    give_up_at: u64,
    told: bool,
}

impl Shard {
    /// The device writes that make a fresh device. The driver carries all of them out before it
    /// opens the shard.
    pub fn format(config: &ShardConfig) -> Vec<DiskOp> {
        Log::format(config)
    }

    /// Starts recovery. Requests are refused as unavailable until it is over.
    pub fn open(config: ShardConfig, now: Time, out: &mut Vec<Effect>) -> Shard {
        let mut shared = Shared::new(&config, Log::waiting());
        let mut configs = config.groups.clone();
        configs.sort_by_key(|group| group.id);
        configs.dedup_by_key(|group| group.id);
        let cx = Cx { shared: &mut shared, now, out };
        let groups: Vec<Group> =
            configs.iter().enumerate().map(|(slot, group)| Group::new(group, slot, &cx)).collect();
        for peer in groups.iter().flat_map(Group::peers) {
            shared.scores.add_peer(peer.node);
        }
        let taker = Taker::new(&config);
        let first = shared.draw([SCRUB_SEED, 0, now.0]);
        let mut scrub = Scrub::new(config.scrub, (first >> 32) as usize, now);
        if let Some(resume) = config.scrub.resume {
            let slot_of = |id| groups.iter().position(|group| group.id == id);
            scrub.resume(now, resume, slot_of, groups.len());
        }
        let repairs = Repairs::new(shared.draw([SCRUB_SEED, 1, now.0]));
        let next_tick = now + config.timing.tick;
        let mut shard = Shard {
            by_id: groups.iter().map(|group| (group.id, group.slot)).collect(),
            waiting: Waiting::default(),
            index_bytes: config.index_bytes,
            next_cooled: 0,
            admission: Admission::default(),
            opening: groups.iter().map(Group::opening).collect(),
            groups,
            shared,
            phase: Phase::Opening,
            open_report: None,
            events: Vec::new(),
            next_tick,
            drain: None,
            taker,
            start: Start::new(config, now),
            cleaner: Cleaner::default(),
            no_victim: false,
            gain: false,
            scrub,
            repairs,
            page_turn: 0,
            survey: Survey::default(),
            evacuation: Evacuation::default(),
            gives: Slab::default(),
            given: 0,
            departed: Departed::new(),
            votes_lost: false,
        };
        shard.find_checkpoint(out);
        shard
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Effect>) {
        self.note_lateness(now);
        match event {
            Event::Disk(done) => self.disk(now, done, out),
            Event::Request { link, remote, request } if self.serves() => {
                self.admit(now, (link, remote), request, out);
            }
            Event::Request { link, request, .. } => {
                let result = ReplyResult::Refused(Refusal::Unavailable);
                let reply = Reply::new(request.id, request.group, result);
                out.push(Effect::Reply { link, reply });
            }
            Event::Propose { token, command } => self.propose(now, token, command, out),
            Event::Peer { from, frame } if self.serves() => self.peer(now, from, frame, out),
            Event::PeerLink { peer, up } => {
                self.shared.scores.peer_link(peer);
                let changed =
                    if up { self.shared.down.remove(&peer) } else { self.shared.down.insert(peer) };
                if self.serves() && (changed || up) {
                    self.each(now, out, |group, cx| group.peer_link(cx, peer, up));
                }
            }
            Event::MetadataSaved { index } => {
                self.shared.metadata_saved = self.shared.metadata_saved.max(index.0);
                self.with(now, out, GroupId::METADATA, Group::metadata_saved);
            }
            Event::Prefer { group, node } => {
                self.with(now, out, group, |group, cx| group.prefer(cx, node));
            }
            Event::Join(config) if self.serves() => self.join(now, &config, out),
            Event::Configure { group, voters, learners } => {
                self.with(now, out, group, |group, cx| group.configure(cx, voters, learners));
            }
            Event::Retire(group) if self.serves() => self.retire(now, group, out),
            Event::Join(_) | Event::Retire(_) => {}
            Event::Store(done) => self.store_done(now, done, out),
            Event::Scrub => self.scrub.ask(now, self.groups.len()),
            Event::Drain => self.start_drain(now, out),
            // An answer to a link that is gone is dropped by the driver.
            Event::LinkClosed { link } => self.admission.forget(link),
            Event::Peer { .. } => {}
        }
        self.flush_ops(now, out);
    }

    /// Ends a turn, after all its events: proposes, steps groups, writes the log, sends.
    pub fn end_turn(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.serves() {
            self.run_clock(now, out);
            self.admit_waiting(now, out);
            self.go_on_with_pages(now, out);
            self.clean(now, out);
            self.look_for_damage(now, out);
            self.look_around(now, out);
            self.repair(now, out);
            for _ in 0..ROUNDS_MAX {
                self.gather();
                self.run_groups(now, out);
                self.flush_log(now, out);
                if !self.groups.iter().any(|group| group.dirty) {
                    break;
                }
            }
            self.trim_cache(now, out);
            self.check_drained(out);
            self.shared.log.seal_if_idle(now, &mut self.shared.ops);
            self.take_checkpoint(now, out);
            self.mind_memory(now, out);
        }
        self.flush_ops(now, out);
    }

    /// When [`Shard::end_turn`] must be called at the latest.
    pub fn next_deadline(&self) -> Option<Time> {
        if !self.serves() {
            return None;
        }
        if self.taker.is_busy() || self.groups.iter().any(|group| group.dirty) {
            return Some(Time::ZERO);
        }
        let clock = self.needs_clock().then_some(self.next_tick);
        let groups = self.groups.iter().filter_map(Group::deadline).min();
        let seal = self.shared.log.seal_deadline();
        let scrub = self.scrub.deadline(self.repairs.is_backlogged());
        let (repairs, pages) = (self.repairs.deadline(), self.shared.pace.deadline());
        let repairs = repairs.filter(|_| self.waiting.repairs.is_none());
        let others = [repairs, pages, self.survey_deadline(), self.admission.deadline()];
        [clock, groups, seal, scrub].into_iter().chain(others).flatten().min()
    }

    /// The shard's state.
    pub fn status(&self) -> ShardStatus {
        ShardStatus {
            phase: self.phase.clone(),
            groups: self.group_statuses(),
            segments_free: self.shared.log.segments_free(),
            segments_total: self.shared.log.segments_total(),
            open_report: self.open_report.clone(),
            opened_in: self.start.took,
            checkpoint: self.taker.number(),
            kept_blocks: self.groups.iter().map(|group| group.replica.kept_blocks()).sum(),
            mapped_blocks: self.groups.iter().map(|group| group.replica.mapped_blocks()).sum(),
            index_bytes: self.groups.iter().map(|group| group.replica.index_bytes()).sum(),
            index: self.index_status(),
            pending_requests: self.requests_under_way(),
            requests_waiting: self.admission.waiting(),
            requests_held: self.admission.held(),
            pending_bytes: self.shared.pending_bytes,
            log: self.shared.log.counts(),
            cleaner: self.cleaner.counts(),
            space: self.space(),
            space_by_volume: self.space_by_volume(),
            proposed: self.shared.proposed,
            moved: self.shared.moved,
            scores: self.shared.scores.status(self.needs_clock()),
            scrub: self.scrub_status(),
        }
    }

    /// A digest of a group's mapped blocks and epochs, and the index it is of: equal on all replicas
    /// that applied the same index (invariant I6); nothing while its pages are ahead of it. Walks the
    /// whole index.
    pub fn digest(&self, group: GroupId) -> Option<(LogIndex, u64)> {
        let replica = &self.groups[*self.by_id.get(&group)?].replica;
        if replica.is_fuzzy() {
            return None;
        }
        Some((replica.applied(), replica.digest()?))
    }

    /// The groups whose pages may hold entries that they have not applied: they serve no reads.
    pub fn fuzzy_groups(&self) -> Vec<GroupId> {
        self.groups.iter().filter(|group| group.replica.is_fuzzy()).map(|group| group.id).collect()
    }

    fn serves(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Draining)
    }

    fn needs_clock(&self) -> bool {
        let draining = self.drain.as_ref().is_some_and(|drain| !drain.told);
        draining
            || self.wants_to_clean()
            || self.groups.iter().any(|group| !group.asleep && !group.is_stopped())
    }

    /// Runs something for one group.
    fn with(
        &mut self,
        now: Time,
        out: &mut Vec<Effect>,
        group: GroupId,
        run: impl FnOnce(&mut Group, &mut Cx<'_>),
    ) {
        if let Some(slot) = self.by_id.get(&group) {
            run(&mut self.groups[*slot], &mut Cx { shared: &mut self.shared, now, out });
        }
    }

    /// Runs something for every group.
    fn each(
        &mut self,
        now: Time,
        out: &mut Vec<Effect>,
        mut run: impl FnMut(&mut Group, &mut Cx<'_>),
    ) {
        let mut cx = Cx { shared: &mut self.shared, now, out };
        self.groups.iter_mut().for_each(|group| run(group, &mut cx));
    }

    fn flush_ops(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.serves() {
            self.shared.ops.iter().for_each(|op| self.shared.scores.began(op, now));
        }
        out.extend(self.shared.ops.drain(..).map(Effect::Disk));
    }

    fn disk(&mut self, now: Time, done: DiskDone, out: &mut Vec<Effect>) {
        self.shared.scores.ended(done.token, now);
        let mut events = std::mem::take(&mut self.events);
        self.shared.log.on_disk(done, &mut self.shared.ops, &mut events);
        self.log_events(now, &mut events, out);
        self.go_on_opening(&mut events);
        self.log_events(now, &mut events, out);
        self.events = events;
    }

    fn flush_log(&mut self, now: Time, out: &mut Vec<Effect>) {
        let mut events = std::mem::take(&mut self.events);
        self.shared.log.flush(&mut self.shared.ops, &mut events);
        self.log_events(now, &mut events, out);
        self.events = events;
    }

    fn run_clock(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.note_lateness(now);
        let tick = self.shared.timing.tick;
        if !self.needs_clock() {
            // Nobody listens to the clock: it starts anew with the first who wakes.
            self.next_tick = now + tick;
            self.shared.scores.rest(now);
        } else if now >= self.next_tick {
            self.shared.tick += 1;
            // Ticks that were missed (a paused process) are not caught up: what arrived meanwhile
            // must be seen before anybody draws conclusions from silence.
            self.next_tick = (self.next_tick + tick).max(now + tick / 2);
            let busy = self.shared.set_pace();
            self.plan_cleaning(now, busy, out);
            self.tell_scores(now, out);
            self.find_choked();
            self.each(now, out, |group, cx| group.tick(cx));
        }
        self.each(now, out, |group, cx| {
            group.campaign_if_due(cx);
            group.announce_if_due(cx);
            group.open_gates_if_due(cx);
        });
    }

    /// Lets those who wait for the pace of pages go on, one piece each in turn.
    fn go_on_with_pages(&mut self, now: Time, out: &mut Vec<Effect>) {
        if !self.shared.pace.resumes(now) {
            return;
        }
        let (count, mut idle) = (self.groups.len(), 0);
        let mut cx = Cx { shared: &mut self.shared, now, out };
        while idle < count {
            let at = self.page_turn % count;
            idle = if self.groups[at].go_on_with_pages(&mut cx) { 0 } else { idle + 1 };
            if cx.shared.pace.has_waiting() {
                break;
            }
            self.page_turn = at + 1;
        }
    }

    /// Decides whether proposals wait: while the log is being written others may join them, so that
    /// entries, messages and batches are fewer and larger. The end of the write lets them go.
    fn gather(&mut self) {
        let waiting: usize = self.groups.iter().map(Group::waiting_bytes).sum();
        let gathering = self.shared.log.is_writing() && waiting < self.shared.limits.gather_bytes;
        if std::mem::replace(&mut self.shared.gathering, gathering) && !gathering {
            self.groups.iter_mut().for_each(Group::look_at_inbox);
        }
    }

    fn run_groups(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.each(now, out, |group, cx| {
            if group.dirty {
                group.end_turn(cx);
            }
        });
    }

    /// Forgets the oldest entries' content: soon if every voter is known to hold them, so that a busy
    /// shard lives on little memory that stays in the processor's cache, else beyond the bound.
    fn trim_cache(&mut self, now: Time, out: &mut Vec<Effect>) {
        let mut cx = Cx { shared: &mut self.shared, now, out };
        let bound = cx.shared.limits.entry_cache_bytes;
        let mut kept = 0;
        while cx.shared.cached_bytes > bound.min(SPARE_BYTES) && kept < KEPT_MAX {
            let Some((slot, index)) = cx.shared.cache_order.front().copied() else { break };
            let group = &mut self.groups[slot];
            if cx.shared.cached_bytes <= bound && group.is_wanted(index) {
                break;
            }
            cx.shared.cache_order.pop_front();
            if !group.evict(&mut cx, index) {
                // Not applied yet. A group that can not commit must not hold up the others.
                cx.shared.cache_order.push_back((slot, index));
                kept += 1;
            }
        }
    }

    fn peer(&mut self, now: Time, from: Address, frame: Frame, out: &mut Vec<Effect>) {
        match frame {
            Frame::Raft(message) => {
                let group = message.group;
                self.with(now, out, group, |group, cx| group.message(cx, from, message));
            }
            Frame::AskLeadership { group, candidate } => {
                self.with(now, out, group, |group, cx| {
                    group.asked_for_leadership(cx, from, candidate);
                });
            }
            Frame::LogDamaged { group, node, intact } if node == from.node => {
                self.with(now, out, group, |group, cx| group.follower_damaged(cx, from, intact));
            }
            Frame::VoteLost { group, node, loss } if node == from.node => {
                self.with(now, out, group, |group, cx| group.vote_lost(cx, from, loss));
            }
            Frame::Readmit { group, term, index, loss } => {
                self.with(now, out, group, |group, cx| {
                    group.readmitted(cx, from, (term, index), loss);
                });
            }
            Frame::Pages(message) => {
                let group = message.group;
                self.with(now, out, group, |group, cx| group.pages(cx, from, *message));
            }
            Frame::Digests(message) => {
                let group = message.group;
                self.with(now, out, group, |group, cx| group.digests(cx, from, *message));
            }
            Frame::Repair(message) => self.repair_message(now, from, *message, out),
            Frame::Sleep { group, term, commit } => {
                self.with(now, out, group, |group, _| group.sleep(from, term, commit));
            }
            Frame::Score(score) => self.shared.scores.take(from.node, score, now),
            Frame::Watch(watch) => self.shared.traces.watch(from, watch, now),
            Frame::Watched(watched) => self.shared.traces.told(from.node, watched),
            // Handshakes, pings, requests and replies are the links' matter.
            _ => {}
        }
    }

    fn propose(&mut self, now: Time, token: u64, command: Bytes, out: &mut Vec<Effect>) {
        let slot = self.by_id.get(&GroupId::METADATA).copied();
        let refusal = match slot.map(|slot| &self.groups[slot]) {
            None => Some(ProposeError::Unavailable),
            Some(_) if !self.serves() => Some(ProposeError::Unavailable),
            Some(_) if command.is_empty() || command.len() > self.metadata_bytes_max() => {
                Some(ProposeError::Unavailable)
            }
            Some(_) if self.is_busy(command.len()) => Some(ProposeError::Unavailable),
            Some(group) if !group.leads() => Some(ProposeError::NotLeader(group.leader())),
            Some(_) => None,
        };
        if let Some(error) = refusal {
            out.push(Effect::Proposed { token, result: Err(error) });
            return;
        }
        let proposal = Proposal::metadata(token, command);
        self.with(now, out, GroupId::METADATA, |group, cx| group.accept(cx, proposal));
    }

    fn metadata_bytes_max(&self) -> usize {
        METADATA_BYTES_MAX.min(self.shared.segment_bytes / 4)
    }

    /// Whether a bound is reached.
    fn is_busy(&self, bytes: usize) -> bool {
        let shared = &self.shared;
        if shared.planted.is(Bug::QueueUnbounded) {
            return false;
        }
        self.requests_under_way() >= shared.limits.pending_requests
            || shared.pending_bytes + bytes > shared.limits.pending_bytes
    }

    /// Requests accepted and not answered.
    fn requests_under_way(&self) -> usize {
        self.shared.pending_requests + self.shared.client_reads.len() + self.waiting.reads.len()
    }

    fn start_drain(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.drain.is_some() {
            return;
        }
        let patience = 2 * u64::from(self.shared.timing.election_ticks);
        self.drain = Some(Drain { give_up_at: self.shared.tick + patience, told: false });
        if !self.serves() {
            return;
        }
        self.phase = Phase::Draining;
        self.shared.draining = true;
        self.each(now, out, |group, cx| {
            if group.leads() {
                group.hand_over(cx);
            }
        });
    }

    fn check_drained(&mut self, out: &mut Vec<Effect>) {
        let Some(drain) = &mut self.drain else { return };
        if drain.told {
            return;
        }
        let waiting = self.groups.iter().any(|g| g.leads() && g.has_heir(&self.shared.down));
        if !waiting || self.shared.tick >= drain.give_up_at {
            drain.told = true;
            out.push(Effect::Drained);
        }
    }
}
