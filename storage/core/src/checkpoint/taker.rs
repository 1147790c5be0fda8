//! Taking checkpoints: by volume of log written, a little in each turn.

use super::outlook::{position, replay_from, waits_before};
use super::{Changes, SaveError, StoreOp};
use crate::cleaner::garbage_only;
use crate::config::ShardConfig;
use crate::consensus::{Cx, Frozen, Group, Retention, Shared};
use crate::event::Effect;
use crate::log::{HardState, Log, RecordSeq, Segments};
use crate::mark;
use crate::planted::{Bug, Planted};
use crate::shard::totals;
use basalt_wire::disk::checkpoint::{
    COMMANDS_PREFIX, ChainPlace, GroupManifest, Manifest, Record, SegmentUse, granules_prefix,
    group_prefixes,
};
use basalt_wire::ids::{Address, ClusterId, GroupId, SegmentId};
use std::collections::BTreeMap;

/// The part of what is not live on a device that is written between two at most.
const SPARE_SHARE: u64 = 8;
/// Where the index takes more memory than it should, one is taken after this part of the log that is written
/// between two else: pages leave memory only behind a checkpoint.
const PRESSED: u64 = 32;
/// Granules, or as much of other records, that one turn encodes.
const SLICE: usize = 512;
/// Checkpoints back that the next ones are judged by.
const LEADS: usize = 16;
/// Ticks that one which was asked for waits until everything before its place is applied.
const ASKED_PATIENCE: u64 = 2;

/// Groups that were removed from a shard, and the last hard state of each.
pub type Departed = BTreeMap<GroupId, HardState>;

/// Takes the checkpoints of a shard.
pub struct Taker {
    /// Bytes of log between two at most; 0 takes none.
    interval: u64,
    cluster: ClusterId,
    address: Address,
    planted: Planted,
    /// Up to here of the log, in bytes since the device was formatted, the last one reaches.
    reached: u64,
    /// The number of the last one, and of the last one that is durable.
    number: u64,
    durable: u64,
    /// Whether what the store holds is not known: it is emptied with the next one.
    fresh: bool,
    /// Whether what it holds is damaged, so that the next one holds everything again.
    anew: bool,
    /// Whether no other one will do: what was given to the last one went nowhere.
    owes_whole: bool,
    /// Segments that the durable checkpoint does not need.
    released: Vec<SegmentUse>,
    /// Whether one is wanted before its time.
    asked: bool,
    /// Where replay behind the durable one begins.
    last: Option<ChainPlace>,
    /// The sequence of a use of a segment: the log is damaged before it. What was lost was made good since,
    /// and must not be found missing again by a replay that begins there.
    damaged_before: u64,
    /// Groups whose records the next checkpoint deletes, and those whose records the present one does.
    retired: Vec<GroupId>,
    leaving: Vec<GroupId>,
    /// Segments that were begun while the last ones were taken, by their numbers.
    leads: [u32; LEADS],
    stage: Stage,
}

enum Stage {
    Idle,
    /// Entries before the place are not applied yet; since this tick.
    Waiting {
        place: ChainPlace,
        since: u64,
    },
    Encoding(Box<Job>),
    /// What was recorded up to here is not durable yet.
    Settling(Box<Job>, RecordSeq),
    Saving(Box<Saving>),
    /// The store failed: none is taken any more.
    Stopped,
}

struct Saving {
    from: ChainPlace,
    reached: u64,
    began: u64,
    groups: Vec<Frozen>,
    /// Segments that are free once it is durable.
    given_up: Vec<SegmentUse>,
}

struct Job {
    from: ChainPlace,
    reached: u64,
    /// How many segments had been taken when it was begun.
    began: u64,
    changes: Changes,
    groups: Vec<Frozen>,
    at: usize,
    manifests: Vec<GroupManifest>,
    /// Segments that it gives up.
    given_up: Vec<SegmentUse>,
}

impl Taker {
    /// For a shard that starts.
    pub fn new(config: &ShardConfig) -> Taker {
        Taker {
            interval: config.checkpoint_bytes,
            cluster: config.cluster,
            address: config.address,
            planted: config.planted,
            reached: 0,
            number: 0,
            durable: 0,
            fresh: true,
            anew: false,
            owes_whole: false,
            released: Vec::new(),
            asked: false,
            last: None,
            damaged_before: 0,
            retired: Vec::new(),
            leaving: Vec::new(),
            leads: [0; LEADS],
            stage: Stage::Idle,
        }
    }

    /// Has the next checkpoint begin at once.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// Has the next checkpoint begin at once and hold everything, as if the store held nothing.
    pub fn write_anew(&mut self) {
        (self.anew, self.asked) = (true, true);
    }

    /// Whether one is being taken or was asked for.
    pub fn is_under_way(&self) -> bool {
        self.asked || !matches!(self.stage, Stage::Idle | Stage::Stopped)
    }

    /// Whether none is taken any more.
    pub fn is_stopped(&self) -> bool {
        matches!(self.stage, Stage::Stopped)
    }

    /// Whether one is being taken whose place in the log is settled.
    pub fn has_begun(&self) -> bool {
        matches!(self.stage, Stage::Encoding(_) | Stage::Settling(..) | Stage::Saving(_))
    }

    /// Whether what it has begun to encode is not all encoded: no group may go meanwhile.
    pub fn is_encoding(&self) -> bool {
        matches!(self.stage, Stage::Encoding(_))
    }

    /// A group is gone: the next checkpoint does not hold it.
    pub fn retire(&mut self, group: GroupId) {
        if self.is_on() {
            self.retired.push(group);
        }
    }

    /// Whether the durable checkpoint may still hold a group that is gone.
    pub fn still_holds(&self, group: GroupId) -> bool {
        self.retired.contains(&group) || self.leaving.contains(&group)
    }

    /// Segments that may be taken while the next one is: one more than were begun during any of the last ones.
    pub fn lead(&self) -> u32 {
        self.leads.iter().max().map_or(0, |begun| begun.saturating_add(1))
    }

    /// Whether there is a durable one that this run has started from or taken.
    pub fn has_one(&self) -> bool {
        self.last.is_some()
    }

    /// Whether checkpoints are taken at all.
    pub fn is_on(&self) -> bool {
        self.interval > 0
    }

    /// The number of the last one.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The number of the last one that is durable.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// The shard started from this one.
    pub fn started_from(&mut self, manifest: &Manifest) {
        (self.number, self.durable) = (manifest.number, manifest.number);
        self.reached = reached(&manifest.from, manifest.segment_bytes);
        self.last = Some(manifest.from);
        self.fresh = false;
    }

    /// The log that was replayed is damaged.
    pub fn damaged(&mut self, log: &Log) {
        self.damaged_before = log.end().map_or(u64::MAX, |end| end.segment_seq + 1);
    }

    /// Where replay would begin behind a checkpoint at a place of the log.
    pub fn replay_from(
        &self,
        groups: &[Group],
        log: &Log,
        place: ChainPlace,
    ) -> Option<ChainPlace> {
        let from = replay_from(groups, log, self.last, place)?;
        (from == place || from.segment_seq >= self.damaged_before).then_some(from)
    }

    /// Whether the next turn has a slice to encode.
    pub fn is_busy(&self) -> bool {
        matches!(self.stage, Stage::Encoding(_))
    }

    /// Does what one turn may do.
    pub fn end_turn(&mut self, groups: &mut [Group], departed: &Departed, cx: &mut Cx<'_>) {
        self.asked |= std::mem::take(&mut cx.shared.debt_paid);
        match &mut self.stage {
            Stage::Idle => self.start(groups, cx),
            Stage::Waiting { .. }
                if groups.iter().any(|g| g.may_restore(cx) && !g.will_restore()) =>
            {
                // What holds the others up may be what this one leaves behind.
                self.stage = Stage::Idle;
                self.start(groups, cx);
            }
            Stage::Waiting { .. } => self.begin_if_ready(groups, cx),
            Stage::Encoding(_) => self.encode(groups, departed, cx),
            Stage::Settling(job, until) => {
                let log = &cx.shared.log;
                let (seq, crc) = match self.planted.is(Bug::CheckpointNotDurable) {
                    true => log.end().map_or((0, 0), |end| (end.seq - 1, end.previous_crc)),
                    // A full log makes nothing more durable before this checkpoint gives it room. Pages
                    // follow only what is durable.
                    false if cx.shared.durable < *until && !cx.shared.read_only => return,
                    false => log.durable_batch(),
                };
                assert!(seq >= job.from.seq, "batch {} was durable", job.from.seq);
                // A page may have been given a block there meanwhile.
                let totals = totals(groups);
                let careless = u32::from(self.planted.is(Bug::CleanerDropsLive));
                let settled = |used: &SegmentUse| !cx.shared.loads.is_settling(used.segment);
                job.given_up.retain(|used| totals.live(used.segment) <= careless && settled(used));
                self.save((seq, crc), cx);
            }
            Stage::Saving(..) | Stage::Stopped => {}
        }
    }

    /// Notes the place of the next one, if it is due or was asked for.
    fn start(&mut self, groups: &mut [Group], cx: &mut Cx<'_>) {
        if self.interval == 0 {
            return;
        }
        // A state that came in pages takes effect with a checkpoint and no sooner.
        let due = self.anew && cx.shared.loads.lost() == 0;
        let asked = self.asked || due || groups.iter().any(|group| group.may_restore(cx));
        let Some(place) = cx.shared.log.durable_place() else {
            if asked {
                mark!("checkpoint waits on an idle log");
                cx.shared.log.write_on(&mut cx.shared.ops);
            }
            return;
        };
        let now = reached(&place, cx.shared.log.device().1);
        let pressed = if cx.shared.index_pressure { PRESSED } else { 1 };
        if asked || now.saturating_sub(self.reached) >= self.interval(cx.shared) / pressed {
            groups.iter_mut().for_each(|group| group.promise_restore(cx));
            self.stage = Stage::Waiting { place, since: cx.shared.tick };
            self.begin_if_ready(groups, cx);
        }
    }

    /// Bytes of log between two. What was written since the last one is not given back, and the less room
    /// there is beside what is live, the shorter that has to be.
    fn interval(&self, shared: &Shared) -> u64 {
        let spare = shared.spare_bytes().map_or(u64::MAX, |bytes| bytes / SPARE_SHARE);
        self.interval.min(spare.max(shared.segment_bytes as u64))
    }

    /// Begins at the place that was noted, once everything before it is applied. What is not may wait for
    /// ever: for a majority, or for a replica here that goes over to another state with this very
    /// checkpoint, or for room that this very checkpoint makes. Then it begins with replay from further back.
    fn begin_if_ready(&mut self, groups: &mut [Group], cx: &mut Cx<'_>) {
        let Stage::Waiting { place, since } = self.stage else { return };
        let late = self.planted.is(Bug::CheckpointTooEarly);
        let log = &cx.shared.log;
        let held_up = |g: &Group| !late && !g.will_restore() && waits_before(g, &place, log);
        // What the store has lost can not be taken over from it.
        let lacks = cx.shared.loads.lost() > 0;
        if lacks && self.owes_whole {
            return;
        }
        // What was moved before the start has to be where the log says that it is.
        if !groups.iter().all(|group| group.is_sound() && !group.is_replaying()) {
            return;
        }
        if groups.iter().any(held_up) {
            let restores = groups.iter().any(Group::will_restore);
            let patience = match self.asked || restores {
                _ if cx.shared.read_only => 0,
                true => ASKED_PATIENCE,
                false => u64::from(cx.shared.timing.election_ticks),
            };
            if cx.shared.tick < since + patience {
                return;
            }
            groups.iter_mut().for_each(Group::withdraw_restore);
        }
        groups.iter_mut().for_each(|group| group.restore_as_promised(cx));
        let from = match late {
            true => Some(place),
            false => self.replay_from(groups, &cx.shared.log, place),
        };
        let Some(from) = from.filter(|_| groups.iter().all(Group::is_sound)) else { return };
        let reached = reached(&from, cx.shared.log.device().1);
        let restored = groups.iter().any(|group| group.in_limbo(cx));
        if self.asked || restored || self.anew && !lacks || reached > self.reached {
            if position(&from) < position(&place) {
                mark!("checkpoint begun with entries that are not applied");
            }
            self.asked = false;
            self.begin(groups, cx, (from, reached));
        }
    }

    fn begin(&mut self, groups: &mut [Group], cx: &mut Cx<'_>, (from, reached): (ChainPlace, u64)) {
        mark!("checkpoint begun");
        let mut changes = Changes::default();
        let anew = cx.shared.loads.lost() == 0 && std::mem::take(&mut self.anew);
        if self.fresh || anew {
            changes.delete_prefix(b"");
        }
        if anew {
            mark!("checkpoint written anew");
            self.owes_whole = false;
            let forgets = self.planted.is(Bug::ColdPagesNotCarried);
            for group in groups.iter_mut() {
                let carried = group.store_is_lost(forgets);
                changes.carry(carried.into_iter());
            }
        }
        let retention = Retention::of(cx.shared, groups.len());
        let mut frozen = Vec::with_capacity(groups.len());
        self.leaving = std::mem::take(&mut self.retired);
        for group in &self.leaving {
            group_prefixes(*group).iter().for_each(|prefix| changes.delete_prefix(prefix));
            if *group == GroupId::METADATA {
                changes.delete_prefix(COMMANDS_PREFIX);
            }
        }
        for group in groups.iter_mut() {
            if !group.is_retired() {
                let forgets = self.planted.is(Bug::MembersForgotten);
                let members = if forgets { group.founders() } else { group.members() };
                changes.put(&Record::Members(group.id, members.clone()));
            }
            let (volumes, deleted) = group.replica.take_dirty_volumes(group.id);
            for volume in deleted {
                changes.delete_prefix(&granules_prefix(group.id, volume));
            }
            if !self.planted.is(Bug::CheckpointWithoutEpochs) {
                volumes.iter().for_each(|record| changes.put(record));
            }
            frozen.push(group.freeze(&retention, &mut changes));
        }
        let given_up = self.choose_given_up(groups, &frozen, &from, cx.shared);
        let (at, manifests) = (0, Vec::new());
        let began = cx.shared.log.segments_taken();
        let job = Job { from, reached, began, changes, groups: frozen, at, manifests, given_up };
        self.stage = Stage::Encoding(Box::new(job));
    }

    /// The segments that the checkpoint gives up: those of the log before the place where its replay begins and
    /// before all entries that the groups keep, in which nothing is live, and copy segments in which nothing
    /// is. From here on nothing in them can become live again but blocks that a peer gave and that are being
    /// recorded: what is on its way to a copy segment keeps that from being given up.
    fn choose_given_up(
        &self,
        groups: &[Group],
        frozen: &[Frozen],
        from: &ChainPlace,
        shared: &Shared,
    ) -> Vec<SegmentUse> {
        let log = &shared.log;
        let Some(segments) = log.segments() else { return Vec::new() };
        let pins = groups.iter().zip(frozen).filter_map(|(group, job)| group.first_segment(job));
        let pinned = pins.filter_map(|segment| segments.use_of(segment.0)).min();
        let before = pinned.unwrap_or(u64::MAX).min(from.segment_seq);
        let careless = u32::from(self.planted.is(Bug::CleanerDropsLive));
        let empty = garbage_only(segments, &totals(groups), before, careless);
        let in_use = |id: SegmentId| {
            let used = segments.use_of(id.0).map(|seq| SegmentUse { segment: id, seq });
            used.filter(|_| !log.is_leaving(id) && !shared.loads.is_settling(id))
        };
        empty.into_iter().filter_map(in_use).collect()
    }

    /// Encodes a slice. When everything is encoded, notes how far the pages may have come.
    fn encode(&mut self, groups: &mut [Group], departed: &Departed, cx: &Cx<'_>) {
        let Stage::Encoding(job) = &mut self.stage else { return };
        let mut budget = SLICE;
        while budget > 0 {
            let (Some(frozen), Some(group)) = (job.groups.get_mut(job.at), groups.get_mut(job.at))
            else {
                break;
            };
            if !group.encode(frozen, &mut job.changes, &mut budget, self.number + 1) {
                job.at += 1;
            }
        }
        if job.at < job.groups.len() {
            return;
        }
        if !groups.iter().take(job.groups.len()).all(Group::is_sound) {
            // What was taken from the pages is not in the store: the next one would lack it.
            mark!("checkpoint given up");
            self.stage = Stage::Stopped;
            return;
        }
        let held = groups.iter().zip(&job.groups).filter(|(group, _)| !group.is_retired());
        job.manifests = held.map(|(group, frozen)| group.manifest(frozen)).collect();
        // Of those that came since it began only the hard state counts too: the rest stands behind it.
        let came = groups.iter().skip(job.groups.len()).map(|group| (group.id, group.recorded()));
        let others = departed.iter().map(|(group, hard)| (*group, *hard)).chain(came);
        job.manifests.extend(others.map(|(group, hard)| departed_manifest(group, hard)));
        job.manifests.sort_by_key(|manifest| manifest.group);
        let Stage::Encoding(job) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        self.stage = Stage::Settling(job, cx.shared.recorded());
    }

    fn save(&mut self, until: (u64, u32), cx: &mut Cx<'_>) {
        let Stage::Settling(job, _) = std::mem::replace(&mut self.stage, Stage::Stopped) else {
            return;
        };
        let Job { from, reached, began, mut changes, manifests, mut given_up, groups, .. } = *job;
        let (device, segment_bytes) = cx.shared.log.device();
        let log = &cx.shared.log;
        let needed = |mut all: Vec<SegmentUse>| {
            // Those that are being read are free as soon as that ends.
            all.retain(|used| !given_up.contains(used) && !log.is_leaving(used.segment));
            all
        };
        let table = log.segments();
        let segments = needed(table.map_or(Vec::new(), |s| s.used_before(from.segment_seq)));
        let mut copies = needed(table.map_or(Vec::new(), Segments::copies));
        if self.planted.is(Bug::CopiesForgotten) {
            copies.clear();
        }
        self.number += 1;
        changes.put(&Record::Manifest(Manifest {
            cluster: self.cluster,
            address: self.address,
            device,
            segment_bytes,
            number: self.number,
            from,
            until,
            groups: manifests,
            segments,
            copies,
        }));
        if self.planted.is(Bug::SegmentReleasedEarly) {
            self.released.append(&mut given_up);
        }
        mark!("checkpoint handed to the store");
        self.stage = Stage::Saving(Box::new(Saving { from, reached, began, groups, given_up }));
        cx.out.push(Effect::Store(StoreOp::Save(changes)));
    }

    /// The segments that may be [released](Log::release) now: the checkpoint that has become durable
    /// does not need them.
    pub fn take_released(&mut self) -> Vec<SegmentUse> {
        std::mem::take(&mut self.released)
    }

    /// The store has ended a save.
    pub fn saved(&mut self, result: Result<(), SaveError>, groups: &mut [Group], cx: &mut Cx<'_>) {
        if !matches!(self.stage, Stage::Saving(_)) {
            return;
        }
        let Stage::Saving(saving) = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return;
        };
        match result {
            Ok(()) => {
                (self.reached, self.fresh) = (saving.reached, false);
                self.durable = self.number;
                self.last = Some(saving.from);
                let begun = cx.shared.log.segments_taken().saturating_sub(saving.began);
                self.leads[self.number as usize % LEADS] = begun.min(u64::from(u32::MAX)) as u32;
                self.leaving.clear();
                self.released.extend(saving.given_up);
                for (group, frozen) in groups.iter_mut().zip(&saving.groups) {
                    group.checkpointed(cx, frozen);
                }
            }
            Err(SaveError::Lost(_)) => {
                // Everything is given to the next one again, once the pages are here.
                mark!("page lost that a checkpoint takes over");
                self.number -= 1;
                (self.anew, self.owes_whole) = (true, true);
            }
            Err(SaveError::Failed(reason)) => {
                self.number -= 1;
                self.stage = Stage::Stopped;
                let text = format!(
                    "checkpoint {} was not kept: {reason}; none is taken until the node starts again, \
                     and then more of the log is replayed",
                    self.number + 1
                );
                cx.notice(true, text);
            }
        }
    }
}

/// What is kept of a group that was removed: its term and its vote, should it come back.
fn departed_manifest(group: GroupId, hard: HardState) -> GroupManifest {
    GroupManifest::gone(group, hard.term, hard.vote)
}

/// Bytes of log before a place, since the device was formatted.
fn reached(place: &ChainPlace, segment_bytes: u64) -> u64 {
    place.segment_seq * segment_bytes + u64::from(place.block) * 4096
}
