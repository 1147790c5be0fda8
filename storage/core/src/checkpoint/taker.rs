//! Taking checkpoints: by volume of log written, a little in each turn.

use super::{Changes, StoreOp};
use crate::config::ShardConfig;
use crate::consensus::{Frozen, Group};
use crate::event::Effect;
use crate::log::{HardState, Log, RecordSeq};
use crate::mark;
use crate::planted::{Bug, Planted};
use basalt_wire::disk::batch::HardStateFields;
use basalt_wire::disk::checkpoint::{
    ChainPlace, GroupManifest, Manifest, Record, SegmentUse, granules_prefix, group_prefixes,
};
use basalt_wire::ids::{Address, ClusterId, GroupId, LogIndex};
use std::collections::BTreeMap;

/// Granules, or as much of other records, that one turn encodes.
const SLICE: usize = 512;

/// Groups that were removed from a shard, and the last hard state of each.
pub type Departed = BTreeMap<GroupId, HardState>;

/// Takes the checkpoints of a shard.
pub struct Taker {
    /// Bytes of log between two; 0 takes none.
    interval: u64,
    cluster: ClusterId,
    address: Address,
    planted: Planted,
    /// Up to here of the log, in bytes since the device was formatted, the last one reaches.
    reached: u64,
    /// The number of the last one.
    number: u64,
    /// Whether what the store holds is not known: it is emptied with the next one.
    fresh: bool,
    /// Whether the next one is not to wait for more of the log.
    hurried: bool,
    /// Segments that the next checkpoint gives up.
    to_give_up: Vec<SegmentUse>,
    /// Segments that the durable checkpoint does not need.
    released: Vec<SegmentUse>,
    /// Groups whose records the next checkpoint deletes.
    retired: Vec<GroupId>,
    stage: Stage,
}

enum Stage {
    Idle,
    /// Entries before the place are not applied yet.
    Waiting(ChainPlace, u64),
    Encoding(Box<Job>),
    /// What was recorded up to here is not durable yet.
    Settling(Box<Job>, RecordSeq),
    Saving(u64, Vec<SegmentUse>),
    /// The store failed: none is taken any more.
    Stopped,
}

struct Job {
    from: ChainPlace,
    reached: u64,
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
            fresh: true,
            hurried: false,
            to_give_up: Vec::new(),
            released: Vec::new(),
            retired: Vec::new(),
            stage: Stage::Idle,
        }
    }

    /// Has a checkpoint that begins after this give up segments: it does not list them, and
    /// [`Taker::take_released`] hands them back once it is durable. To be called for closed segments in which
    /// nothing is live and no entry stands that a group still holds. Those in which replay would begin, or
    /// that lie behind that place, are kept for the checkpoint after.
    pub fn give_up(&mut self, segments: impl IntoIterator<Item = SegmentUse>) {
        for used in segments {
            if !self.to_give_up.contains(&used) {
                self.to_give_up.push(used);
            }
        }
    }

    /// Whether what it has begun to encode is not all encoded: no group may go meanwhile.
    pub fn is_encoding(&self) -> bool {
        matches!(self.stage, Stage::Encoding(_))
    }

    /// A group is gone: the next checkpoint does not hold it.
    pub fn retire(&mut self, group: GroupId) {
        self.retired.push(group);
    }

    /// Whether checkpoints are taken at all.
    pub fn is_on(&self) -> bool {
        self.interval > 0
    }

    /// The number of the last one.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The shard started from this one.
    pub fn started_from(&mut self, manifest: &Manifest) {
        self.number = manifest.number;
        self.reached = reached(&manifest.from, manifest.segment_bytes);
        self.fresh = false;
    }

    /// Has a checkpoint begin as soon as no other is under way, however little was written since the last
    /// one: space is needed that it gives up.
    pub fn hurry(&mut self) {
        self.hurried = self.is_on() && !matches!(self.stage, Stage::Stopped);
    }

    /// Whether the next turn has something to do.
    pub fn is_busy(&self) -> bool {
        matches!(self.stage, Stage::Encoding(_))
            || self.hurried && matches!(self.stage, Stage::Idle)
    }

    /// Does what one turn may do.
    pub fn end_turn(
        &mut self,
        (groups, departed): (&mut [Group], &Departed),
        log: &Log,
        (recorded, durable): (RecordSeq, RecordSeq),
        out: &mut Vec<Effect>,
    ) {
        match &mut self.stage {
            Stage::Idle => {
                let Some(place) = log.durable_place() else {
                    self.hurried = false;
                    return;
                };
                let now = reached(&place, log.device().1);
                let due = now.saturating_sub(self.reached) >= self.interval || self.hurried;
                if self.interval == 0 || !due {
                    return;
                }
                self.hurried = false;
                self.stage = Stage::Waiting(place, now);
                self.begin_if_ready(groups, log);
            }
            Stage::Waiting(..) => self.begin_if_ready(groups, log),
            Stage::Encoding(_) => self.encode(groups, departed, recorded),
            Stage::Settling(job, until) => {
                let (seq, crc) = match self.planted.is(Bug::CheckpointNotDurable) {
                    true => log.end().map_or((0, 0), |end| (end.seq - 1, end.previous_crc)),
                    false if durable < *until => return,
                    false => log.durable_batch(),
                };
                assert!(seq >= job.from.seq, "batch {} was durable", job.from.seq);
                self.save((seq, crc), log, out);
            }
            Stage::Saving(..) | Stage::Stopped => {}
        }
    }

    fn begin_if_ready(&mut self, groups: &mut [Group], log: &Log) {
        let Stage::Waiting(from, reached) = self.stage else { return };
        let Some(segments) = log.segments() else { return };
        let late = self.planted.is(Bug::CheckpointTooEarly);
        let ready = |g: &Group| g.is_sound() && (late || g.applied_before(&from, segments));
        if !groups.iter().all(ready) {
            return;
        }
        // What was released meanwhile may be in another use by now.
        self.to_give_up.retain(|used| segments.use_of(used.segment.0) == Some(used.seq));
        let lies_before = |used: &mut SegmentUse| used.seq < from.segment_seq;
        let given_up = self.to_give_up.extract_if(.., lies_before).collect();
        mark!("checkpoint begun");
        let mut changes = Changes::default();
        if self.fresh {
            changes.delete_prefix(b"");
        }
        let mut frozen = Vec::with_capacity(groups.len());
        for group in std::mem::take(&mut self.retired) {
            group_prefixes(group).iter().for_each(|prefix| changes.delete_prefix(prefix));
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
            frozen.push(group.freeze());
        }
        let (at, manifests) = (0, Vec::new());
        let job = Job { from, reached, changes, groups: frozen, at, manifests, given_up };
        self.stage = Stage::Encoding(Box::new(job));
    }

    /// Encodes a slice. When everything is encoded, notes how far the pages may have come.
    fn encode(&mut self, groups: &mut [Group], departed: &Departed, recorded: RecordSeq) {
        let Stage::Encoding(job) = &mut self.stage else { return };
        let mut budget = SLICE;
        while budget > 0 {
            let (Some(frozen), Some(group)) = (job.groups.get_mut(job.at), groups.get_mut(job.at))
            else {
                break;
            };
            if !group.encode(frozen, &mut job.changes, &mut budget) {
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
        self.stage = Stage::Settling(job, recorded);
    }

    fn save(&mut self, until: (u64, u32), log: &Log, out: &mut Vec<Effect>) {
        let Stage::Settling(job, _) = std::mem::replace(&mut self.stage, Stage::Stopped) else {
            return;
        };
        let Job { from, reached, mut changes, manifests, mut given_up, .. } = *job;
        let (device, segment_bytes) = log.device();
        let mut segments = log.segments().map_or(Vec::new(), |s| s.used_before(from.segment_seq));
        segments.retain(|used| !given_up.contains(used));
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
        }));
        if self.planted.is(Bug::SegmentReleasedEarly) {
            self.released.append(&mut given_up);
        }
        mark!("checkpoint handed to the store");
        self.stage = Stage::Saving(reached, given_up);
        out.push(Effect::Store(StoreOp::Save(changes)));
    }

    /// The segments that may be [released](Log::release) now: the checkpoint that has become durable
    /// does not need them.
    pub fn take_released(&mut self) -> Vec<SegmentUse> {
        std::mem::take(&mut self.released)
    }

    /// The store has ended a save.
    pub fn saved(&mut self, result: Result<(), String>, out: &mut Vec<Effect>) {
        let Stage::Saving(reached, given_up) = &mut self.stage else { return };
        match result {
            Ok(()) => {
                (self.reached, self.fresh) = (*reached, false);
                self.released.append(given_up);
                self.stage = Stage::Idle;
            }
            Err(reason) => {
                self.number -= 1;
                self.stage = Stage::Stopped;
                let text = format!(
                    "checkpoint {} was not kept: {reason}; none is taken until the node starts again, \
                     and then more of the log is replayed",
                    self.number + 1
                );
                out.push(Effect::Notice { alarm: true, text });
            }
        }
    }
}

/// What is kept of a group that was removed: its term and its vote, should it come back.
fn departed_manifest(group: GroupId, hard: HardState) -> GroupManifest {
    let hard = HardStateFields { term: hard.term, vote: hard.vote, commit: LogIndex(0) };
    GroupManifest { group, hard, gone: true, ..GroupManifest::default() }
}

/// Bytes of log before a place, since the device was formatted.
fn reached(place: &ChainPlace, segment_bytes: u64) -> u64 {
    place.segment_seq * segment_bytes + u64::from(place.block) * 4096
}
