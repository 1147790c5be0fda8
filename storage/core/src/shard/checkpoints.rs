//! Starting from a checkpoint, and taking the next ones.

use super::{Phase, Shard};
use crate::checkpoint::{SaveError, Snapshot, StoreDone, StoreOp};
use crate::config::{GroupConfig, Scrubbing, ShardConfig};
use crate::consensus::Cx;
use crate::event::Effect;
use crate::log::{self, HardState, Log, OpenReport};
use crate::mark;
use basalt_wire::disk::checkpoint::GroupManifest;
use basalt_wire::ids::{LogIndex, Term};
use basalt_wire::time::Time;
use std::time::Duration;

/// How a shard starts.
pub(super) struct Start {
    pub(super) config: ShardConfig,
    began: Time,
    pub(super) took: Duration,
    /// Whether the store was asked for its checkpoint and has not answered.
    asked: bool,
    /// The checkpoint that is tried.
    pub(super) snapshot: Option<Box<Snapshot>>,
    /// Whether entries do not fit it.
    judged: Option<Result<(), String>>,
    /// Whether a part of the log is lost.
    pub(super) damaged: bool,
}

impl Start {
    /// How damage is looked for.
    pub(super) fn scrubbing(&self) -> Scrubbing {
        self.config.scrub
    }

    pub(super) fn new(config: ShardConfig, now: Time) -> Start {
        let (took, asked, damaged) = (Duration::ZERO, false, false);
        Start { config, began: now, took, asked, snapshot: None, judged: None, damaged }
    }
}

impl Shard {
    /// Asks the store for a checkpoint, or opens the log at once if none are taken.
    pub(super) fn find_checkpoint(&mut self, out: &mut Vec<Effect>) {
        if self.taker.is_on() {
            self.start.asked = true;
            out.push(Effect::Store(StoreOp::Load { index_bytes: self.index_bytes }));
            return;
        }
        self.open_log(out);
    }

    pub(super) fn store_done(&mut self, now: Time, done: StoreDone, out: &mut Vec<Effect>) {
        match done {
            StoreDone::Loaded(found) if self.start.asked => {
                self.start.asked = false;
                let snapshot = match found {
                    Ok(snapshot) => snapshot.map(|snapshot| self.check_owner(snapshot)).transpose(),
                    Err(reason) => Err(reason),
                };
                match snapshot {
                    Ok(snapshot) => self.start.snapshot = snapshot,
                    Err(reason) => {
                        mark!("checkpoint can not be read");
                        self.tell_refusal(&reason, out);
                    }
                }
                self.open_log(out);
            }
            StoreDone::Loaded(_) => {}
            StoreDone::Verified(result) => self.records_verified(&result, out),
            StoreDone::Pages(pages) => self.pages_loaded(now, pages, out),
            StoreDone::Saved(result) => {
                let lost = match &result {
                    Err(SaveError::Lost(pages)) => pages.clone(),
                    _ => Vec::new(),
                };
                let mut cx = Cx { shared: &mut self.shared, now, out };
                self.taker.saved(result, &mut self.groups, &mut cx);
                self.release_segments();
                self.pages_not_carried(now, lost, out);
            }
        }
    }

    /// Refuses a checkpoint of another shard, or one that lacks a group.
    fn check_owner(&self, snapshot: Box<Snapshot>) -> Result<Box<Snapshot>, String> {
        let (found, config) = (&snapshot.manifest, &self.start.config);
        let whose = |m: &basalt_wire::disk::checkpoint::Manifest| {
            format!("shard {:?} of cluster {:016x}", m.address, m.cluster.0)
        };
        if found.cluster != config.cluster || found.address != config.address {
            return Err(format!("it is of {}", whose(found)));
        }
        if found.segment_bytes != config.segment_bytes {
            return Err(format!("it is of a device with segments of {}", found.segment_bytes));
        }
        // A group that came later has all its records behind the place where replay begins.
        let came = |group: &&GroupConfig| group.since > (Term(0), LogIndex(0));
        let mut missing =
            config.groups.iter().filter(|group| !snapshot.groups.contains_key(&group.id));
        match missing.find(|group| !came(group)) {
            Some(group) => Err(format!("it does not hold group {}", group.id)),
            None => Ok(snapshot),
        }
    }

    fn open_log(&mut self, out: &mut Vec<Effect>) {
        self.begin_groups();
        let start = self.start.snapshot.as_ref().map(|snapshot| {
            let m = &snapshot.manifest;
            let (segments, copies) = (m.segments.clone(), m.copies.clone());
            log::Start { device: m.device, from: m.from, until: m.until, segments, copies }
        });
        let mut ops = Vec::new();
        self.shared.log = Log::open_from(&self.start.config, start, &mut ops);
        out.extend(ops.into_iter().map(Effect::Disk));
    }

    /// Sets what the log's records are added to.
    fn begin_groups(&mut self) {
        for (group, state) in self.groups.iter().zip(&mut self.opening) {
            *state = group.opening();
            let part = self.start.snapshot.as_mut().and_then(|s| s.groups.get_mut(&group.id));
            if let Some(part) = part {
                state.restore(part);
            }
        }
        let snapshot = self.start.snapshot.iter();
        let others = snapshot.flat_map(|snapshot| &snapshot.manifest.groups);
        let others = others.filter(|manifest| !self.by_id.contains_key(&manifest.group));
        self.departed = others.map(|m| (m.group, hard_state_of(m))).collect();
    }

    /// Whether the groups' entries fit the checkpoint.
    pub(super) fn judge_checkpoint(&mut self) {
        let mut states = self.groups.iter().zip(&self.opening);
        let judged = states.try_for_each(|(group, state)| {
            state.fits().map_err(|reason| format!("group {}: {reason}", group.id))
        });
        self.start.judged = Some(judged);
    }

    /// Goes on with opening once the groups were asked.
    pub(super) fn go_on_opening(&mut self, events: &mut Vec<log::LogEvent>) {
        if let Some(judged) = self.start.judged.take() {
            self.shared.log.judge_checkpoint(judged, &mut self.shared.ops, events);
        }
    }

    /// The log does not support the checkpoint: everything is replayed.
    pub(super) fn checkpoint_refused(&mut self, reason: &str, out: &mut Vec<Effect>) {
        self.start.snapshot = None;
        self.votes_lost = false;
        self.tell_refusal(reason, out);
        self.begin_groups();
    }

    fn tell_refusal(&self, reason: &str, out: &mut Vec<Effect>) {
        let text = format!("the checkpoint is not used, the whole log is replayed: {reason}");
        out.push(Effect::Notice { alarm: true, text });
    }

    /// Hands the checkpoint's state to the groups.
    pub(super) fn restore(&mut self, snapshot: Option<Box<Snapshot>>) {
        let Some(mut snapshot) = snapshot else { return };
        mark!("start from a checkpoint");
        self.taker.started_from(&snapshot.manifest);
        for group in &mut self.groups {
            match snapshot.groups.remove(&group.id) {
                // What the store holds of it is to go, and not to be taken for what follows.
                Some(part) if group.is_older(&part) => self.taker.write_anew(),
                Some(part) if part.members.is_some() => group.restore(part),
                _ => {}
            }
        }
        // Of those that were removed since, only the hard state is to stay in the store.
        let held = snapshot.groups.iter().filter(|(_, part)| part.members.is_some());
        held.for_each(|(group, _)| self.taker.retire(*group));
    }

    /// Says how the start went.
    pub(super) fn tell_opening(
        &mut self,
        now: Time,
        report: OpenReport,
        snapshot: Option<&Snapshot>,
        out: &mut Vec<Effect>,
    ) {
        self.start.took = now.since(self.start.began);
        let checkpoint = snapshot.map(|snapshot| snapshot.manifest.number);
        let from = match checkpoint {
            Some(number) => format!("behind checkpoint {number}"),
            None => "from its start".to_owned(),
        };
        let (bytes, seconds) = (report.bytes, self.start.took.as_secs_f64());
        let text =
            format!("the log is open: {bytes} bytes of it replayed {from} in {seconds:.3} s");
        out.push(Effect::Notice { alarm: false, text });
        self.open_report = Some(OpenReport { checkpoint, ..report });
    }

    /// Does what one turn may do for the next checkpoint.
    pub(super) fn take_checkpoint(&mut self, now: Time, out: &mut Vec<Effect>) {
        if !self.taker.is_on() || !matches!(self.phase, Phase::Running | Phase::Draining) {
            return;
        }
        let mut cx = Cx { shared: &mut self.shared, now, out };
        self.taker.end_turn(&mut self.groups, &self.departed, &mut cx);
        self.release_segments();
    }
}

fn hard_state_of(manifest: &GroupManifest) -> HardState {
    let state = manifest.hard;
    HardState { term: state.term, vote: state.vote, commit: state.commit }
}
