//! Snapshots in the world: who takes, drops and reads them, and how they are judged.
//!
//! A snapshot must be one point in time (invariant I5). Its content is the last write of each unit that
//! it holds. It must hold nothing that was asked for after it was complete, and whatever was answered
//! before it was asked for; and if it holds a write, it holds whatever was answered before that write was
//! asked for. And it must never change, nor differ from replica to replica.

use crate::actor::Attributed;
use crate::check::register::{Action, Moment, Record};
use crate::event::Who;
use crate::report::Class;
use crate::stamp::{Content, OpId, judge};
use crate::workload::{Kind, Plan};
use crate::world::World;
use rustc_hash::FxHashMap;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Snapshots of a volume above which more are dropped than taken.
const MANY: usize = 8;

/// One snapshot, as those who asked for it know it.
pub struct Snapshot {
    /// The volume's place.
    pub volume: usize,
    /// The generation that it keeps.
    pub generation: u32,
    /// How often the volume had been reverted.
    reverts: u64,
    /// The volume's chunks when it was asked for.
    pub chunks: u32,
    /// When it was asked for first.
    call: Moment,
    /// When it was complete.
    done: Option<Moment>,
    /// Whether somebody waits for it to be complete.
    asked: bool,
    /// Whether it was to be dropped, and whether that was answered.
    dropping: bool,
    dropped: bool,
    /// Whether somebody was to drop it although clones hang on it.
    pub asked_in_vain: bool,
    /// What was read of it.
    content: BTreeMap<u64, OpId>,
}

impl Snapshot {
    /// Whether it was dropped, and that was answered.
    pub fn is_dropped(&self) -> bool {
        self.dropped
    }

    /// What was read of it: units and the writes that they come from, 0 for zeros.
    pub fn content(&self) -> impl Iterator<Item = (u64, OpId)> + '_ {
        self.content.iter().map(|(unit, value)| (*unit, *value))
    }

    /// It is taken together with others, by whom nobody else needs to ask for it.
    pub fn await_cut(&mut self) {
        self.asked = true;
    }

    /// It is complete.
    pub fn complete(&mut self, end: Moment) {
        self.asked = false;
        self.done.get_or_insert(end);
    }

    /// Whether it is complete, and nobody wanted it away.
    pub fn is_there(&self) -> bool {
        self.done.is_some() && !self.dropping
    }
}

impl World {
    /// Takes, drops or reads a snapshot of some volume.
    pub fn disturb_snapshots(&mut self) {
        let volume = self.some_volume();
        let client = self.volumes[volume].client;
        let c = self.client(client);
        if c.ready.is_none() || c.lost.is_some() {
            return;
        }
        let there = self.snapshots_of(volume, Snapshot::is_there);
        let left = self
            .snapshots_of(volume, |s| (s.done.is_none() && !s.asked) || (s.dropping && !s.dropped));
        if !left.is_empty() && self.fault_rng.chance(0.7) {
            // What a session left half done is brought to one end or the other.
            let at = *self.fault_rng.pick(&left);
            let by = self.somebody(at);
            match self.snapshots[at].dropping || self.fault_rng.chance(0.3) {
                true => self.drop_snapshot(by, at),
                false => self.ask_snapshot(by, at),
            }
            return;
        }
        let clones = self.volumes.len() as u32 - self.options.volumes;
        if clones < self.options.clones && !there.is_empty() && self.fault_rng.chance(0.3) {
            let at = *self.fault_rng.pick(&there);
            let budget = self.fault_rng.within(5, 60) as u32;
            self.begin_clone(at, budget);
            return;
        }
        if self.may_flatten(volume) && self.fault_rng.chance(0.3) {
            self.begin_flatten(volume);
            return;
        }
        let others = self.volumes_to_cut();
        if others.len() > 1 && others.contains(&volume) && self.fault_rng.chance(0.3) {
            self.begin_cut(&others);
            return;
        }
        match self.fault_rng.below(10) {
            0..=3 if there.len() < MANY => {
                let at = self.plan_snapshot(volume);
                let by = self.somebody(at);
                self.ask_snapshot(by, at);
            }
            4..=6 if !there.is_empty() => {
                let at = *self.fault_rng.pick(&there);
                let by = self.somebody(at);
                match self.may_hold_clones(at) {
                    false => self.drop_snapshot(by, at),
                    true if self.may_drop_in_vain(at) => self.drop_in_vain(by, at),
                    true => {}
                }
            }
            _ if !there.is_empty() => {
                let at = *self.fault_rng.pick(&there);
                let reads = self.fault_rng.within(1, 10) as u32;
                self.attach_view(at, reads);
            }
            _ => self.take_snapshot(volume),
        }
    }

    /// The volumes that are attached, and of which no snapshot is under way.
    fn volumes_to_cut(&mut self) -> Vec<usize> {
        let mut fit: Vec<usize> = (0..self.volumes.len()).collect();
        fit.retain(|volume| {
            let c = self.client(self.volumes[*volume].client);
            let attached = c.ready.is_some() && c.lost.is_none();
            let under_way = self.snapshots_of(*volume, |s| s.done.is_none() && !s.dropped);
            attached && under_way.is_empty() && self.volumes[*volume].begun
        });
        fit
    }

    /// The places of a volume's snapshots of which something holds.
    pub fn snapshots_of(&self, volume: usize, holds: impl Fn(&Snapshot) -> bool) -> Vec<usize> {
        let all = self.snapshots.iter().enumerate();
        all.filter(|(_, s)| s.volume == volume && holds(s)).map(|(at, _)| at).collect()
    }

    /// The attached session, or now and then somebody else.
    fn somebody(&mut self, at: usize) -> Who {
        match self.fault_rng.chance(0.4) {
            true => self.attach_view(at, 0),
            false => self.volumes[self.snapshots[at].volume].client,
        }
    }

    /// Takes a snapshot. Its generation is written down before anybody is asked for it, so that every
    /// later session is behind it.
    pub fn take_snapshot(&mut self, volume: usize) {
        let at = self.plan_snapshot(volume);
        self.ask_snapshot(self.volumes[volume].client, at);
    }

    /// Writes down that a snapshot is wanted, and gives its place.
    pub fn plan_snapshot(&mut self, volume: usize) -> usize {
        let generation = self.volumes[volume].generation;
        self.volumes[volume].generation += 1;
        let call = self.moment();
        self.snapshots.push(Snapshot {
            volume,
            generation,
            reverts: self.volumes[volume].reverts,
            chunks: self.volumes[volume].chunks,
            call,
            done: None,
            asked: false,
            dropping: false,
            dropped: false,
            asked_in_vain: false,
            content: BTreeMap::new(),
        });
        self.snapshots.len() - 1
    }

    /// Asks a session to complete a snapshot.
    pub fn ask_snapshot(&mut self, who: Who, at: usize) {
        self.snapshots[at].asked = true;
        let unit = u64::from(self.snapshots[at].generation);
        self.submit_plan(who, Plan { kind: Kind::Freeze, unit, count: 1 });
    }

    /// Asks a session to drop a snapshot.
    pub fn drop_snapshot(&mut self, who: Who, at: usize) {
        self.snapshots[at].dropping = true;
        let unit = u64::from(self.snapshots[at].generation);
        self.submit_plan(who, Plan { kind: Kind::Drop, unit, count: 1 });
    }

    /// A session completed or dropped a snapshot, or could not.
    pub fn snapshot_answered(&mut self, volume: usize, plan: &Plan, end: Moment, well: bool) {
        let this = |s: &Snapshot| s.volume == volume && u64::from(s.generation) == plan.unit;
        let Some(at) = self.snapshots.iter().position(this) else { return };
        let cloned = self.holds_clones(at);
        let snapshot = &mut self.snapshots[at];
        match plan.kind {
            Kind::Freeze => {
                snapshot.asked = false;
                if well {
                    snapshot.done.get_or_insert(end);
                }
            }
            _ if cloned && well => {
                let text = format!("snapshot {} was dropped below its clones", plan.unit);
                self.fail(Class::Snapshot, text);
            }
            _ => snapshot.dropped |= well,
        }
    }

    /// A volume was reverted to a snapshot, all of which was read before. From here on its units have a
    /// history of their own, which begins with what the snapshot holds. Later snapshots are gone.
    pub fn reverted(&mut self, who: Who, plan: &Plan, call: Moment, end: Moment) {
        let volume = self.client(who).volume;
        self.volumes[volume].reverts += 1;
        let mut content = BTreeMap::new();
        for snapshot in self.snapshots.iter_mut().filter(|s| s.volume == volume) {
            match u64::from(snapshot.generation).cmp(&plan.unit) {
                Ordering::Less => {}
                Ordering::Equal => content = snapshot.content.clone(),
                Ordering::Greater => (snapshot.dropping, snapshot.dropped) = (true, true),
            }
        }
        for (unit, value) in content {
            self.note(who, unit, Action::Write, value, call, end, true);
        }
    }

    /// Whether a snapshot of this generation may stay for its clones.
    pub fn may_be_kept_for_clones(&self, volume: usize, generation: u64) -> bool {
        let this = |s: &Snapshot| s.volume == volume && u64::from(s.generation) == generation;
        let all = self.snapshots.iter().enumerate();
        all.filter(|(_, s)| this(s)).any(|(at, _)| self.may_hold_clones(at))
    }

    /// Whether a read of a snapshot may find it gone.
    pub fn is_gone(&self, at: usize) -> bool {
        self.snapshots[at].dropping
    }

    /// Judges what was read of a snapshot: it is always the same.
    pub fn judge_snapshot(&mut self, at: usize, first: u64, data: &[u8]) {
        let (volume, generation) = (self.snapshots[at].volume, self.snapshots[at].generation);
        self.counts.snapshot_units += (data.len() / self.options.unit) as u64;
        for (i, bytes) in data.chunks_exact(self.options.unit).enumerate() {
            let unit = first + i as u64;
            let value = match judge(bytes) {
                Content::Zero => 0,
                Content::Value(s) if s.unit == unit && self.may_hold(volume, s.volume) => s.op,
                other => {
                    let text = format!("unit {unit} of snapshot {generation} holds {other:?}");
                    return self.fail(Class::Content, text);
                }
            };
            let before = *self.snapshots[at].content.entry(unit).or_insert(value);
            if before != value {
                let text = format!(
                    "unit {unit} of snapshot {generation} of volume {volume} was write {before} \
                     and is write {value}"
                );
                return self.fail(Class::Snapshot, text);
            }
        }
    }

    /// Judges all snapshots by the history of the volumes.
    pub fn judge_snapshots(&mut self, history: &[Attributed]) {
        let mut writes: FxHashMap<u64, Vec<Record>> = FxHashMap::default();
        for record in history.iter().map(|a| a.record).filter(|r| r.action == Action::Write) {
            writes.entry(record.unit).or_default().push(record);
        }
        for at in 0..self.snapshots.len() {
            let snapshot = &self.snapshots[at];
            let Some(done) = snapshot.done else { continue };
            self.counts.snapshots += 1;
            let judged = is_one_point_in_time(&[snapshot], (snapshot.call, done), &writes);
            if let Err(text) = judged {
                let (volume, generation) = (snapshot.volume, snapshot.generation);
                let text = format!("snapshot {generation} of volume {volume}: {text}");
                return self.fail(Class::Snapshot, text);
            }
        }
        for cut in &self.together {
            let Some(done) = cut.done else { continue };
            let all: Vec<&Snapshot> = cut.snapshots.iter().map(|s| &self.snapshots[*s]).collect();
            if let Err(text) = is_one_point_in_time(&all, (cut.call, done), &writes) {
                return self.fail(Class::Snapshot, format!("volumes cut together: {text}"));
            }
        }
    }

    /// When no snapshot is left, nothing is kept for one.
    pub fn judge_kept(&mut self) {
        if !self.snapshots.iter().all(|s| s.dropped) {
            return;
        }
        for n in 0..self.nodes.len() {
            let kept = self.nodes[n].shard.as_ref().map_or(0, |s| s.status().kept_blocks);
            if kept > 0 {
                let text = format!("node {n} keeps {kept} blocks for snapshots that are gone");
                self.fail(Class::Snapshot, text);
            }
        }
    }
}

/// Judges snapshots that were asked for and completed together.
fn is_one_point_in_time(
    snapshots: &[&Snapshot],
    (call, done): (Moment, Moment),
    writes: &FxHashMap<u64, Vec<Record>>,
) -> Result<(), String> {
    let none = Vec::new();
    let of = |snapshot: &Snapshot, unit: u64| {
        let (volume, reverts) = (snapshot.volume as u64, snapshot.reverts);
        writes.get(&(volume << 32 | reverts << 24 | unit)).unwrap_or(&none)
    };
    let units = || snapshots.iter().flat_map(|s| s.content.iter().map(move |(u, v)| (*s, *u, *v)));
    // The last moment at which something that they hold was asked for.
    let mut bound = call;
    for (snapshot, unit, value) in units().filter(|(_, _, value)| *value > 0) {
        let volume = snapshot.volume;
        let Some(write) = of(snapshot, unit).iter().find(|r| r.value == value) else {
            return Err(format!("unit {unit} of volume {volume} holds write {value} of nobody"));
        };
        if write.call > done {
            return Err(format!(
                "complete at {done}, it holds write {value}, asked for at {}",
                write.call
            ));
        }
        bound = bound.max(write.call);
    }
    for (snapshot, unit, value) in units() {
        let held = of(snapshot, unit).iter().filter(|r| r.value == value).map(|r| r.end);
        // Zeros may come from any unmap, or from the beginning.
        let end = held.chain((value == 0).then_some(0)).max().unwrap_or(0);
        let mut all = of(snapshot, unit).iter();
        if let Some(r) = all.find(|r| r.certain && r.call > end && r.end < bound) {
            return Err(format!(
                "asked for at {call}, it holds something asked for at {bound}, and of unit {unit} of \
                 volume {} write {value}, but not write {} of {} to {}",
                snapshot.volume, r.value, r.call, r.end
            ));
        }
    }
    Ok(())
}
