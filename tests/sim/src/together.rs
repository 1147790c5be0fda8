//! Cuts in the world: snapshots of several volumes that are one point in time together.
//!
//! They are led as a node leads them, by the client library's [`Cut`] over a view of each volume, while the
//! volumes' sessions know nothing of it. A cut that is complete is judged as one snapshot of all its volumes
//! is; one that fails is dropped.

use crate::check::register::Moment;
use crate::event::Who;
use crate::workload::{Kind, Plan};
use crate::world::World;
use basalt_client::{BlockError, BlockOp, BlockResult, Cut, CutEnd};
use basalt_wire::ids::Generation;
use basalt_wire::time::Time;

/// Snapshots that are taken together.
pub struct Together {
    cut: Cut,
    /// Their places.
    pub snapshots: Vec<usize>,
    /// The view of each volume.
    views: Vec<Who>,
    /// When it was asked for.
    pub call: Moment,
    /// When it was complete.
    pub done: Option<Moment>,
    /// Whether nobody leads it any more.
    over: bool,
    /// Whether a script takes its steps, and whether the next one is due.
    pub by_hand: bool,
    due: bool,
}

impl Together {
    /// Whether it ended, well or not.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether a session is one of its views, and may still be asked.
    pub fn needs(&self, who: Who) -> bool {
        !self.over && self.views.contains(&who)
    }

    /// Whether all volumes have ended a step, and the next one is to be taken by hand.
    pub fn is_due(&self) -> bool {
        self.due
    }
}

impl World {
    /// Whether a volume is part of a cut that is under way: its size does not change meanwhile.
    pub fn is_being_cut(&self, volume: usize) -> bool {
        let of =
            |cut: &&Together| cut.snapshots.iter().any(|s| self.snapshots[*s].volume == volume);
        self.together.iter().filter(of).any(|cut| !cut.over)
    }

    /// Begins a cut of volumes. Gives its place.
    pub fn begin_cut(&mut self, volumes: &[usize]) -> usize {
        let call = self.moment();
        let snapshots: Vec<usize> = volumes.iter().map(|v| self.plan_snapshot(*v)).collect();
        let generations = snapshots.iter().map(|s| Generation(self.snapshots[*s].generation));
        let cut = Cut::new(generations.collect(), Time::ZERO);
        let views = snapshots.iter().map(|s| self.attach_view(*s, 0)).collect();
        let together = Together {
            cut,
            snapshots,
            views,
            call,
            done: None,
            over: false,
            by_hand: false,
            due: false,
        };
        let at = self.together.len();
        self.trace(|| format!("volumes {volumes:?} are cut together at moment {call}"));
        together.snapshots.iter().for_each(|s| self.snapshots[*s].await_cut());
        self.together.push(together);
        self.ask_for_cut(at);
        at
    }

    fn ask_for_cut(&mut self, at: usize) {
        for place in 0..self.together[at].cut.volumes() {
            self.ask_for_cut_of(at, place);
        }
    }

    /// Takes the present step of a cut with one of its volumes.
    pub fn ask_for_cut_of(&mut self, at: usize, place: usize) {
        let cut = &mut self.together[at];
        if cut.over {
            return;
        }
        cut.due = false;
        let (kind, generation) = match cut.cut.op(place) {
            BlockOp::CloseGate { generation } => (Kind::CloseGate, generation),
            BlockOp::OpenGate { generation } => (Kind::OpenGate, generation),
            BlockOp::Snapshot { generation } => (Kind::Freeze, generation),
            other => unreachable!("a cut asks for {other:?}"),
        };
        let plan = Plan { kind, unit: u64::from(generation.0), count: 1 };
        let view = cut.views[place];
        self.submit_plan(view, plan);
    }

    /// Takes an answer that belongs to a cut; says whether it does.
    pub fn cut_answered(
        &mut self,
        who: Who,
        kind: Kind,
        end: Moment,
        result: &Result<BlockResult, BlockError>,
    ) -> bool {
        if !matches!(kind, Kind::CloseGate | Kind::OpenGate | Kind::Freeze) {
            return false;
        }
        let Some(at) = self.together.iter().position(|cut| cut.views.contains(&who)) else {
            return false;
        };
        if self.together[at].over {
            return true;
        }
        match self.together[at].cut.ended(result) {
            CutEnd::Waits => {}
            // Now and then whoever leads it dies.
            CutEnd::Next if !self.scripted && self.fault_rng.chance(0.1) => self.give_up_cut(at),
            CutEnd::Next if self.together[at].by_hand => self.together[at].due = true,
            CutEnd::Next => self.ask_for_cut(at),
            CutEnd::Over(Err(_)) => self.give_up_cut(at),
            CutEnd::Over(Ok(())) => {
                self.counts.cuts += 1;
                self.together[at].over = true;
                self.together[at].done = Some(end);
                for place in self.together[at].snapshots.clone() {
                    self.snapshots[place].complete(end);
                }
            }
        }
        true
    }

    /// A cut failed, or whoever led it is gone: what it kept is dropped.
    pub fn give_up_cut(&mut self, at: usize) {
        self.trace(|| format!("cut {at} is given up"));
        self.counts.cuts_given_up += 1;
        self.together[at].over = true;
        self.together[at].due = false;
        for (place, view) in
            self.together[at].snapshots.clone().into_iter().zip(self.together[at].views.clone())
        {
            self.drop_snapshot(view, place);
        }
    }
}
