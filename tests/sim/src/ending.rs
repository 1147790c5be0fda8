//! The end of a run: faults stop, everything pending must finish, replicas must agree, histories are
//! judged.
//!
//! Half of the runs end in two steps: first a majority is healed while one node is frozen in a broken
//! state for good (down, cut off both ways or one way, or very slow), and everything asked must be
//! answered; only then is that node healed too.

use crate::check::register::{self, Action, Record};
use crate::event::{Ev, Who};
use crate::node::address;
use crate::options::{Family, SEGMENTS_RESERVED};
use crate::queue::{Instant, MILLI, SECOND};
use crate::report::Class;
use crate::rng::Rng;
use crate::snapshots::Snapshot;
use crate::workload::windows;
use crate::world::{PROBE, World};
use basalt_core::cleaner::{CleanerCounts, Levels};
use basalt_core::event::Event;
use basalt_core::shard::{GroupRole, GroupStatus, Phase};
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS, COMMAND_BLOCKS_MAX, group_of_chunk};
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{Priority, Refusal, Reply, ReplyResult, Request, RequestOp};
use basalt_wire::ids::{Epoch, Generation, GroupId, Incarnation, LogIndex, RequestId, VolumeId};
use bytes::Bytes;

/// Time between two looks at the world.
pub const CHECK_EVERY: u64 = 100 * MILLI;
/// Within this everything must be answered once a majority is well.
const ANSWER_BOUND: u64 = 40 * SECOND;
/// Within this all replicas must have caught up once all nodes are well.
const CONVERGE_BOUND: u64 = 60 * SECOND;
/// Within this all damage must be repaired then: a block that nobody has is asked for every 30 seconds.
const SCRUB_BOUND: u64 = 100 * SECOND;

/// Within this something must move on a node that has no room for writes and garbage to make it of.
const ROOM_BOUND: u64 = 10 * SECOND;

/// How far the end of a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Everything pending must be answered; a node may be frozen.
    Answer,
    /// All nodes are well and must come to agree.
    Converge,
    /// Every device is looked at for damage, and what is found is repaired.
    Scrub,
    /// Every replica is asked for every block.
    Probe,
    /// All is judged.
    Done,
}

/// The end of a run under way.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// How far it has come.
    pub stage: Stage,
    deadline: Instant,
    restarts_left: u32,
    frozen: Option<Who>,
}

/// One question to one replica, at the end.
pub struct Probe {
    node: Who,
    volume: usize,
    range: BlockRange,
    /// Of the volume as it is, or of this snapshot.
    snapshot: Option<usize>,
    answer: Option<Bytes>,
    /// For each block whether the replica says that it is mapped.
    mapped: Option<Vec<bool>>,
}

impl World {
    /// Looks at the world now and then: states that may never be, and the end of the run.
    pub fn check(&mut self) {
        self.watch_nodes();
        self.drive_moves();
        self.drive_clones();
        self.drive_flattenings();
        match self.ending {
            None if self.scripted => {}
            None => {
                let now = self.queue.now();
                let idle = self.clients.iter().all(|c| c.budget == 0 && c.is_settled());
                if now >= self.options.horizon || (idle && now > 2 * SECOND) {
                    self.begin_ending();
                }
            }
            Some(ending) => self.go_on(ending),
        }
        self.queue.push_in(CHECK_EVERY, Ev::Check);
    }

    fn watch_nodes(&mut self) {
        for n in 0..self.nodes.len() {
            let Some(status) = self.nodes[n].shard.as_ref().map(|s| s.status()) else { continue };
            if let Phase::Failed(reason) = &status.phase {
                if !self.declares_damage(n) && !self.declares_write_faults() {
                    self.fail(
                        Class::Alarm,
                        format!("node {n} could not open its device: {reason}"),
                    );
                }
                self.nodes[n].lost = reason.contains("only a checkpoint tells what stands there");
                self.restart_failed(n);
                continue;
            }
            if status.phase == Phase::Opening {
                continue;
            }
            self.watch_space(n);
            self.watch_room(n);
            // With one segment left no block data is taken any more, not even what others agreed on.
            self.ran_full |= self.declares_full() && status.segments_free <= 1;
            let limits = self.nodes[n].config.limits;
            if status.pending_requests > limits.pending_requests
                || status.pending_bytes > limits.pending_bytes
            {
                let text = format!(
                    "node {n} holds {} requests with {} bytes, beyond its bounds",
                    status.pending_requests, status.pending_bytes
                );
                self.fail(Class::Resources, text);
            }
            for g in &status.groups {
                self.watch_group(n, g);
            }
        }
    }

    /// Every byte of a device has an owner.
    fn watch_space(&mut self, n: Who) {
        let Some(status) = self.nodes[n].shard.as_ref().map(|s| s.status()) else { return };
        let space = status.space;
        let by_volume: u64 = status.space_by_volume.values().map(|v| v.own + v.snapshots).sum();
        if space.sum() != self.options.device || by_volume != space.live {
            let text = format!("node {n} does not account for its device: {space:?}, {by_volume}");
            self.fail(Class::Raft, text);
        }
    }

    /// A node that has no room for writes although it holds less than it promises to take makes some, or
    /// waits for somebody.
    fn watch_room(&mut self, n: Who) {
        let now = self.queue.now();
        let Some(status) = self.nodes[n].shard.as_ref().map(|s| s.status()) else { return };
        let blocks = (self.options.segment / BLOCK_BYTES as u64) as u32;
        let levels = Levels::of(status.segments_total, blocks, SEGMENTS_RESERVED);
        let used = u64::from(status.segments_total - status.segments_free);
        let live = (status.space.live / BLOCK_BYTES as u64).div_ceil(u64::from(levels.usable));
        let settled = status.groups.iter().all(|g| {
            let sound = !matches!(g.role, GroupRole::Impaired | GroupRole::Quarantined);
            sound && g.applied == g.last && !g.fuzzy
        });
        let wasteful = status.space.capacity > 0
            && status.segments_free <= levels.wait
            && used >= live + 4
            && status.space.live <= status.space.capacity;
        let frozen = self.ending.is_some_and(|ending| ending.frozen == Some(n));
        let excused = frozen || self.declares_damage(n) || self.declares_write_faults();
        if !wasteful || !settled || excused || status.phase != Phase::Running {
            self.room.remove(&n);
            return;
        }
        let applied = status.groups.iter().map(|g| g.applied.0).sum();
        let CleanerCounts { moved, released, .. } = status.cleaner;
        let boot = u64::from(self.nodes[n].boot);
        let seen = [boot, u64::from(status.segments_free), applied, moved, released];
        let (before, since) = *self.room.entry(n).or_insert((seen, now));
        if before != seen {
            self.room.insert(n, (seen, now));
        } else if now > since + self.patience(ROOM_BOUND) {
            let text = format!("node {n} makes no room: {}", self.describe());
            self.fail(Class::Liveness, text);
        }
    }

    fn watch_group(&mut self, n: Who, g: &GroupStatus) {
        if g.role == GroupRole::Quarantined {
            self.fail(
                Class::Raft,
                format!("node {n} quarantined its replica of group {}", g.group),
            );
        }
        if g.applied > g.commit || (g.commit > g.last && g.role != GroupRole::Impaired) {
            self.fail(Class::Raft, format!("node {n} has an impossible position: {g:?}"));
        }
        let boot = self.nodes[n].boot;
        let seen = self.positions.entry((n, g.group)).or_insert((boot, g.term, g.commit));
        if seen.0 == boot && (g.term < seen.1 || g.commit < seen.2) {
            let text = format!("node {n} went back from {seen:?} to {g:?}");
            self.fail(Class::Raft, text);
            return;
        }
        *seen = (boot, g.term, g.commit);
    }

    /// Ends the faults, and begins the end of the run.
    pub fn begin_ending(&mut self) {
        let mut rng = Rng::stream(self.options.seed, "ending", 0);
        let victim = self.options.victim as usize;
        let o = &self.options;
        let harmed = o.families.has(Family::Damage) || o.families.has(Family::ReadFault);
        let frozen = o.core_first.then(|| match harmed {
            true => victim,
            false => rng.below(self.nodes.len() as u64) as usize,
        });
        self.trace(|| format!("faults end, frozen node {frozen:?}"));
        let restarts_left = u32::from(self.options.restart_last);
        let deadline = self.queue.now() + self.patience(ANSWER_BOUND);
        self.ending = Some(Ending { stage: Stage::Answer, deadline, restarts_left, frozen });
        self.heal_network();
        for n in 0..self.nodes.len() {
            if frozen != Some(n) {
                self.make_well(n);
            }
        }
        if let Some(n) = frozen {
            self.freeze(n, &mut rng);
        }
        for c in &mut self.clients {
            c.paused_until = 0;
            c.budget = 0;
        }
    }

    fn heal_network(&mut self) {
        for fault in 0..self.cuts.len() as u32 {
            self.heal(fault);
        }
        self.net.options_mut().corrupt = 0.0;
        (0..self.nodes.len()).for_each(|n| self.net.set_gray(n, 1.0));
    }

    fn make_well(&mut self, n: Who) {
        let faults = self.nodes[n].disk.faults_mut();
        faults.read_error = 0.0;
        faults.read_wrong = 0.0;
        faults.write_error = 0.0;
        faults.slowness = 1.0;
        self.nodes[n].dead = false;
        self.unpause_node(n);
        self.start_node(n);
    }

    fn freeze(&mut self, n: Who, rng: &mut Rng) {
        let others: Vec<Who> =
            (0..self.nodes.len() + self.clients.len()).filter(|w| *w != n).collect();
        let out: Vec<_> = others.iter().map(|w| (n, *w)).collect();
        let into: Vec<_> = others.iter().map(|w| (*w, n)).collect();
        let how = rng.below(5);
        self.trace(|| format!("node {n} is frozen in state {how}"));
        match how {
            0 => {
                self.stop_node(n, None);
                self.nodes[n].dead = true;
            }
            1 => self.cut_network(out, u64::MAX / 4),
            2 => self.cut_network(into, u64::MAX / 4),
            3 => self.cut_network(out.into_iter().chain(into).collect(), u64::MAX / 4),
            _ => {
                // As slow as an overloaded spinning disk, whatever its usual speed.
                let latency = self.options.disk_latency as f64;
                self.nodes[n].disk.faults_mut().slowness = (200e6 / latency).clamp(1.0, 100.0);
            }
        }
    }

    /// Slow disks and links have more time.
    fn patience(&self, bound: u64) -> u64 {
        let o = &self.options;
        bound + 2_000 * (o.disk_latency + o.delay + o.delay_min)
    }

    fn go_on(&mut self, ending: Ending) {
        let now = self.queue.now();
        let next = match ending.stage {
            Stage::Answer if self.clients.iter().all(|c| c.is_settled()) => {
                self.trace(|| "everything is answered".to_owned());
                self.heal_network();
                (0..self.nodes.len()).for_each(|n| self.make_well(n));
                Ending {
                    stage: Stage::Converge,
                    deadline: now + self.patience(CONVERGE_BOUND),
                    ..ending
                }
            }
            Stage::Converge if self.is_converged() => {
                if self.diverged.is_empty() {
                    self.compare_digests();
                }
                self.judge_kept();
                self.diverge_at_the_end();
                self.ask_scrubs();
                Ending { stage: Stage::Scrub, deadline: now + self.patience(SCRUB_BOUND), ..ending }
            }
            Stage::Scrub if self.scrubs_are_over() => {
                self.judge_places();
                self.judge_mended();
                self.compare_digests();
                self.ask_replicas();
                Ending {
                    stage: Stage::Probe,
                    deadline: now + self.patience(ANSWER_BOUND),
                    ..ending
                }
            }
            Stage::Probe
                if self.probes.iter().all(|p| p.answer.is_some() && p.mapped.is_some()) =>
            {
                self.compare_probes();
                match ending.restarts_left.checked_sub(1) {
                    Some(restarts_left) => {
                        self.restart_all();
                        let deadline = now + self.patience(CONVERGE_BOUND);
                        Ending { stage: Stage::Converge, deadline, restarts_left, ..ending }
                    }
                    None => Ending { stage: Stage::Done, ..ending },
                }
            }
            // A log without a free segment can neither elect nor catch up: until there is a cleaner,
            // that is a lawful end.
            _ if now > ending.deadline && self.ran_full && !self.reads_hang() => {
                self.ended_full = true;
                Ending { stage: Stage::Done, ..ending }
            }
            _ if now > ending.deadline && ending.frozen.is_some_and(|n| self.two_are_out(n)) => {
                self.trace(|| "two are out: the frozen node comes back".to_owned());
                self.heal_network();
                (0..self.nodes.len()).for_each(|n| self.make_well(n));
                let deadline = now + self.patience(ANSWER_BOUND);
                Ending { deadline, frozen: None, ..ending }
            }
            _ if now > ending.deadline => {
                let text = self.explain(&ending);
                self.fail(Class::Liveness, text);
                ending
            }
            _ => ending,
        };
        self.ending = Some(next);
    }

    /// Whether a session that has begun waits for a read: a full device is no reason for that.
    fn reads_hang(&self) -> bool {
        self.clients.iter().any(|c| c.ready.is_some() && c.lost.is_none() && c.waits_for_read())
    }

    /// Whether a group has no majority because another of its voters lacks entries that it once had, beside the
    /// frozen node: such a voter takes part again when a leader has told it, and there is none. That is one
    /// failure more than a group survives. It must go on when the node is back.
    fn two_are_out(&self, frozen: Who) -> bool {
        let running = (0..self.nodes.len()).filter(|n| *n != frozen);
        let status = |n: Who| Some((n, self.nodes[n].shard.as_ref()?.status()));
        let all: Vec<_> = running.filter_map(status).collect();
        let replicas = || all.iter().flat_map(|(n, s)| s.groups.iter().map(|g| (*n, g)));
        let newest = |g: &GroupStatus| {
            replicas().all(|(_, other)| other.group != g.group || other.applied <= g.applied)
        };
        replicas().filter(|(_, g)| newest(g)).any(|(_, g)| {
            let voters = &g.members.voters;
            let of_group = |(n, other): &(Who, &GroupStatus)| {
                other.group == g.group && voters.contains(&address(*n))
            };
            let (impaired, sound): (Vec<_>, Vec<_>) = replicas()
                .filter(of_group)
                .partition(|(_, other)| other.role == GroupRole::Impaired);
            !impaired.is_empty() && sound.len() * 2 <= voters.len()
        })
    }

    fn explain(&self, ending: &Ending) -> String {
        let clients: Vec<String> = self
            .clients
            .iter()
            .filter(|c| !c.is_settled())
            .map(|c| {
                let (pending, epoch) = (c.pending(), c.epoch);
                format!(
                    "client {} (epoch {epoch}, ready {}) waits for {pending}",
                    c.who,
                    c.ready.is_some()
                )
            })
            .collect();
        let stage = match ending.stage {
            Stage::Answer => "not everything is answered",
            Stage::Converge => "the replicas do not come to agree",
            Stage::Scrub => "not all damage is repaired",
            Stage::Probe => "a replica does not answer a read",
            Stage::Done => "it is over",
        };
        format!(
            "{stage} (frozen {:?}): {} | {}",
            ending.frozen,
            clients.join(", "),
            self.describe()
        )
    }

    /// All nodes and their replicas, in words.
    pub fn describe(&self) -> String {
        let nodes: Vec<String> = (0..self.nodes.len())
            .map(|n| match &self.nodes[n].shard {
                None => format!("node {n} is down"),
                Some(s) => {
                    let status = s.status();
                    let groups: Vec<String> = status
                        .groups
                        .iter()
                        .map(|g| {
                            format!(
                                "{:?} {:?} leader {:?} term {} {}/{}/{}{} of {}",
                                g.group,
                                g.role,
                                g.leader,
                                g.term,
                                g.applied,
                                g.commit,
                                g.last,
                                if g.asleep { " asleep" } else { "" },
                                crate::members::brief(&g.members)
                            )
                        })
                        .collect();
                    format!(
                        "node {n} {:?}: {}; {} of {} segments free, pending {}, {:?}, {:?}, {:?}",
                        status.phase,
                        groups.join("; "),
                        status.segments_free,
                        status.segments_total,
                        status.pending_requests,
                        status.space,
                        status.cleaner,
                        status.scrub,
                    )
                }
            })
            .collect();
        nodes.join(" | ")
    }

    /// Whether all nodes run and all replicas of each group have applied all that there is.
    pub fn is_converged(&self) -> bool {
        if !self.have_moved() {
            return false;
        }
        let mut at: Vec<(GroupId, LogIndex)> = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            if node.lost {
                continue;
            }
            let Some(status) = node.shard.as_ref().map(|s| s.status()) else { return false };
            if status.phase != Phase::Running {
                return false;
            }
            for g in &status.groups {
                // One that is no member, or none yet, hears of nothing: that it is there at all is judged above.
                if !self.is_placed(n, g.group) {
                    continue;
                }
                let whole = g.applied == g.last && self.metadata_is_whole(n, g);
                if !whole || g.role == GroupRole::Impaired || g.leader.is_none() {
                    return false;
                }
                match at.iter().find(|a| a.0 == g.group) {
                    Some(a) if a.1 != g.applied => return false,
                    Some(_) => {}
                    None => at.push((g.group, g.applied)),
                }
            }
        }
        true
    }

    fn compare_digests(&mut self) {
        for n in 0..self.nodes.len() {
            let (shard, store) = (&self.nodes[n].shard, &self.nodes[n].store);
            // What a damaged record said of a page that nobody has asked for is not known here.
            if self.damaged && shard.as_ref().is_some_and(|shard| shard.status().index.cold > 0) {
                continue;
            }
            let stored = |page| store.page(&page).unwrap_or_default();
            if shard.as_ref().is_some_and(|shard| !shard.usage_is_exact(stored)) {
                self.fail(Class::Raft, format!("node {n} miscounts its live blocks"));
            }
        }
        if let Some(text) = self.difference() {
            self.fail(Class::Divergence, text);
        }
    }

    /// Two replicas that applied the same and do not hold the same.
    pub fn difference(&self) -> Option<String> {
        for group in (0..self.options.groups).map(GroupId) {
            let digests: Vec<(Who, (LogIndex, u64))> = (0..self.nodes.len())
                .filter_map(|n| Some((n, self.nodes[n].shard.as_ref()?.digest(group)?)))
                .collect();
            for pair in digests.windows(2) {
                let ((a, (i, x)), (b, (j, y))) = (pair[0], pair[1]);
                if i == j && x != y {
                    return Some(format!("nodes {a} and {b} differ in group {group} at index {i}"));
                }
            }
        }
        None
    }

    /// Asks every replica for every block that may have been written.
    fn ask_replicas(&mut self) {
        self.probes.clear();
        for volume in self.begun_volumes() {
            for (low, high) in windows(&self.options, self.volumes[volume].chunks) {
                let mut block = low;
                while block < high {
                    let chunk = block / CHUNK_BLOCKS;
                    let end = high
                        .min((chunk + 1) * CHUNK_BLOCKS)
                        .min(block + u64::from(COMMAND_BLOCKS_MAX));
                    let range = BlockRange { block, count: (end - block) as u32 };
                    self.ask_range(volume, None, range);
                    for at in self.snapshots_of(volume, Snapshot::is_there) {
                        self.ask_range(volume, Some(at), range);
                    }
                    block = end;
                }
            }
        }
    }

    fn ask_range(&mut self, volume: usize, snapshot: Option<usize>, range: BlockRange) {
        let chunk = range.block / CHUNK_BLOCKS;
        let lineage = self.volumes[volume].lineage;
        let group = group_of_chunk(lineage, chunk, self.options.groups);
        let voters = self.map.groups[group.0 as usize].clone();
        for node in (0..self.nodes.len()).filter(|n| voters.contains(&address(*n))) {
            let (answer, mapped) = (None, None);
            self.probes.push(Probe { node, volume, range, snapshot, answer, mapped });
            self.send_probe(self.probes.len() - 1, false);
            self.send_probe(self.probes.len() - 1, true);
        }
    }

    fn send_probe(&mut self, at: usize, extents: bool) {
        let node = &self.nodes[self.probes[at].node];
        if node.lost {
            self.probes[at].answer = Some(Bytes::new());
            self.probes[at].mapped = Some(Vec::new());
            return;
        }
        let Probe { node, volume, range, snapshot, .. } = self.probes[at];
        let snapshot = snapshot.map(|at| Generation(self.snapshots[at].generation));
        let v = &self.volumes[volume];
        let group = group_of_chunk(v.lineage, range.block / CHUNK_BLOCKS, self.options.groups);
        let floor = LogIndex(0);
        let op = match extents {
            true => RequestOp::Extents { range, floor, snapshot },
            false => RequestOp::Read { range, floor, snapshot },
        };
        let request = Request {
            id: RequestId((at as u64) << 1 | u64::from(extents)),
            group,
            volume: VolumeId(v.id),
            epoch: Epoch(v.epoch),
            incarnation: Incarnation(0),
            priority: Priority::Guaranteed,
            traced: false,
            op,
        };
        self.give(node, Event::Request { link: PROBE, remote: false, request }, 0);
    }

    /// A replica answered a question of the end.
    pub fn probe_answer(&mut self, n: Who, reply: Reply) {
        let (at, extents) = ((reply.id.0 >> 1) as usize, reply.id.0 & 1 == 1);
        match reply.result {
            ReplyResult::Extents { runs, .. } if extents => {
                let blocks = |(count, mapped): &(u32, bool)| vec![*mapped; *count as usize];
                self.probes[at].mapped = Some(runs.iter().flat_map(blocks).collect());
            }
            ReplyResult::Data { payload, .. } => {
                let Probe { volume, range, .. } = self.probes[at];
                let payload = match self.cipher_of(volume) {
                    Some(cipher) => cipher.decrypt(range.block, &payload),
                    None => payload,
                };
                self.probes[at].answer = Some(payload.contiguous());
            }
            // Its own copy is damaged and could not be repaired, and it says so.
            ReplyResult::Refused(Refusal::Damaged)
                if self.declares_damage(n) && self.declares_full() =>
            {
                self.probes[at].answer = Some(Bytes::new());
            }
            ReplyResult::Refused(Refusal::Busy | Refusal::Unavailable) => {
                self.send_probe(at, extents);
            }
            other => {
                self.fail(Class::ClientError, format!("node {n} answers a read by {other:?}"));
            }
        }
    }

    /// All replicas must hold the same, and what they hold must be explained by the history.
    fn compare_probes(&mut self) {
        let (call, end) = (self.moment(), self.moment());
        let probes = std::mem::take(&mut self.probes);
        probes.iter().for_each(|probe| self.compare_extents(probe));
        let same = |a: &Probe, b: &Probe| {
            (a.volume, a.snapshot, a.range) == (b.volume, b.snapshot, b.range)
        };
        for group in probes.chunk_by(same) {
            let answers: Vec<&Probe> =
                group.iter().filter(|p| p.answer.as_ref().is_some_and(|a| !a.is_empty())).collect();
            for pair in answers.windows(2) {
                if pair[0].answer != pair[1].answer {
                    let text = format!(
                        "nodes {} and {} hold different data for {:?} of volume {}, snapshot {:?}",
                        pair[0].node, pair[1].node, pair[0].range, pair[0].volume, pair[0].snapshot
                    );
                    self.fail(Class::Divergence, text);
                }
            }
            if let Some(Probe { volume, range, snapshot, answer: Some(data), .. }) = answers.first()
            {
                let first = range.block * (BLOCK_BYTES / self.options.unit) as u64;
                if let Some(at) = snapshot {
                    self.judge_snapshot(*at, first, &data.clone());
                    continue;
                }
                let reader = self.volumes[*volume].client;
                self.judge_read(reader, *volume, first, &data.clone(), call, end);
            }
        }
    }

    /// What a replica says of mapped blocks must fit what it returned for them: data only where it is
    /// mapped and, where clients wrote whole blocks, nothing mapped without data.
    fn compare_extents(&mut self, probe: &Probe) {
        let (Some(data), Some(mapped)) = (&probe.answer, &probe.mapped) else { return };
        if data.is_empty() {
            return;
        }
        let whole = self.options.unit == BLOCK_BYTES;
        let zero = data.chunks_exact(BLOCK_BYTES).map(|block| block.iter().all(|byte| *byte == 0));
        let fits = mapped.len() == data.len() / BLOCK_BYTES
            && zero
                .zip(mapped)
                .all(|(zero, mapped)| if zero { !mapped || !whole } else { *mapped });
        if !fits {
            let text = format!(
                "node {} says of {:?} of volume {} that {mapped:?} is mapped, which is not so",
                probe.node, probe.range, probe.volume
            );
            self.fail(Class::Content, text);
        }
    }

    fn restart_all(&mut self) {
        self.trace(|| "all nodes restart".to_owned());
        for n in 0..self.nodes.len() {
            self.stop_node(n, None);
            self.start_node(n);
        }
    }

    /// Judges the whole history: fencing first, then each unit.
    pub fn judge_history(&mut self) {
        self.note_unanswered();
        let history = std::mem::take(&mut self.history);
        self.judge_snapshots(&history);
        let mut records: Vec<Record> = Vec::with_capacity(history.len());
        for a in &history {
            let mut r = a.record;
            // The moment at which a higher epoch was granted: nothing of this session takes effect
            // after it.
            let granted =
                self.volumes[a.volume].grants.iter().filter(|g| g.0 > a.epoch).map(|g| g.1).min();
            if let Some(granted) = granted.filter(|g| *g < r.end) {
                if r.action == Action::Read {
                    // A fenced session may see the past; it was judged for content.
                    continue;
                }
                if r.call > granted {
                    if r.certain {
                        let text = format!(
                            "write {} of epoch {} was asked at {} and acknowledged at {}, after a \
                             higher epoch was granted at {granted}",
                            r.value, a.epoch, r.call, r.end
                        );
                        self.fail(Class::Fencing, text);
                    }
                    // It must never be seen: reads of it have no write to come from.
                    continue;
                }
                r.end = granted;
            }
            records.push(r);
        }
        match register::check(&mut records) {
            Ok(checked) => self.counts.checked = checked,
            Err(violation) => self.fail(Class::Register, violation.to_string()),
        }
    }
}
