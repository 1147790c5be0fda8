//! Gates: what makes snapshots of several volumes one point in time.
//!
//! Within one volume the session's move to the next generation is the instant of a snapshot. Sessions of
//! several volumes move at instants of their own: a write that one of them was acknowledged in its next
//! generation may be followed by a write of another session which has not moved yet. So whoever takes the
//! snapshots together has every group close a *gate* first. Behind a closed gate a write of a later generation
//! is carried out, but its acknowledgement waits. Then all groups freeze their generations, and when all
//! of them have, the gates are opened. What is acknowledged in a later generation was therefore acknowledged
//! when every group had frozen: nothing that is submitted afterwards is in any of the snapshots.
//!
//! A gate is in the memory of the leader of one term, and nowhere else. It is opened by an entry of the same
//! term: if that is applied, no later leader acknowledged anything before it was proposed. A gate that was
//! lost, or has been closed for too long, opens by itself; then the snapshots are given up, and no write
//! waits any longer.

use super::group::Group;
use super::propose::Pending;
use super::shared::Cx;
use crate::mark;
use crate::planted::Bug;
use crate::replica::Outcome;
use basalt_wire::command::CommandView;
use basalt_wire::frame::Refusal;
use basalt_wire::ids::{Generation, GroupId, LogIndex, VolumeId};
use basalt_wire::time::Time;
use std::time::Duration;

/// How long a gate stays closed at most: longer than a log write of a device that stalls, and shorter
/// than a client waits before it takes the link for stuck.
pub(crate) const CLOSED_MAX: Duration = Duration::from_millis(1000);
/// Gates of a group. The oldest that is open is forgotten for a new one; more are refused as busy.
const GATES_MAX: usize = 256;

/// One volume's gate in one group.
struct Gate {
    volume: VolumeId,
    /// Writes of later generations are not acknowledged while it is closed.
    generation: Generation,
    /// When it opens by itself; nothing once it was opened in time.
    closed_until: Option<Time>,
    /// What was applied, and is not acknowledged yet.
    waiting: Vec<(Pending, LogIndex)>,
}

/// The gates of a group that this replica leads.
#[derive(Default)]
pub(super) struct Gates {
    all: Vec<Gate>,
}

impl Gates {
    /// When the first of them opens by itself.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.all.iter().filter_map(|gate| gate.closed_until).min()
    }

    /// Whether nothing waits behind any of them.
    pub(super) fn are_idle(&self) -> bool {
        self.all.iter().all(|gate| gate.waiting.is_empty())
    }

    /// Whether a closed gate keeps the acknowledgement of a command that was applied.
    fn keeping(&mut self, command: &CommandView<'_>) -> Option<&mut Gate> {
        let (CommandView::Write { volume, generation, .. }
        | CommandView::Unmap { volume, generation, .. }) = *command
        else {
            return None;
        };
        let closed = |gate: &&mut Gate| gate.volume == volume && gate.closed_until.is_some();
        self.all.iter_mut().find(closed).filter(|gate| generation > gate.generation)
    }

    /// A command was applied that somebody here waits for: acknowledges it, or keeps that behind a gate.
    pub(super) fn applied(
        &mut self,
        cx: &mut Cx<'_>,
        (group, index): (GroupId, LogIndex),
        (command, outcome): (&CommandView<'_>, Outcome),
        pending: Pending,
    ) {
        if self.all.is_empty() && !pending.opens_gate() {
            return pending.done(cx, group, index, outcome);
        }
        let leaky = cx.shared.planted.is(Bug::GateLeaks);
        if let (Ok(()), Some(gate)) = (outcome, self.keeping(command))
            && !leaky
        {
            mark!("acknowledgement kept behind a gate");
            return gate.waiting.push((pending, index));
        }
        match *command {
            CommandView::Freeze { volume, generation } if pending.opens_gate() => {
                let outcome = outcome.and_then(|()| self.open(cx, group, (volume, generation)));
                pending.done(cx, group, index, outcome);
            }
            CommandView::DropSnapshot { volume, generation } => {
                pending.done(cx, group, index, outcome);
                self.end(cx, group, |gate| (gate.volume, gate.generation) == (volume, generation));
            }
            _ => pending.done(cx, group, index, outcome),
        }
    }

    /// Opens a gate. It stays known as one that was opened in time, for whoever asks again.
    fn open(
        &mut self,
        cx: &mut Cx<'_>,
        group: GroupId,
        (volume, generation): (VolumeId, Generation),
    ) -> Outcome {
        let this = |gate: &&mut Gate| (gate.volume, gate.generation) == (volume, generation);
        let gate = self.all.iter_mut().find(this).ok_or(Refusal::GateLost)?;
        gate.closed_until = None;
        gate.acknowledge(cx, group);
        Ok(())
    }

    /// Ends gates, and acknowledges what waits behind them.
    fn end(&mut self, cx: &mut Cx<'_>, group: GroupId, over: impl Fn(&Gate) -> bool) {
        for mut gate in self.all.extract_if(.., |gate| over(gate)) {
            gate.acknowledge(cx, group);
        }
    }

    /// This replica does not lead any more. Whatever waits was applied; and as no other leader can open the
    /// gates of this term, the snapshots that they were closed for are given up.
    pub(super) fn stand_down(&mut self, cx: &mut Cx<'_>, group: GroupId) {
        self.end(cx, group, |_| true);
    }

    /// What waits behind gates may be acknowledged by nobody.
    pub(super) fn give_up(&mut self, cx: &mut Cx<'_>, group: GroupId) {
        for (pending, _) in self.all.drain(..).flat_map(|gate| gate.waiting) {
            pending.unknown(cx, group);
        }
    }

    /// Those who wait for an acknowledgement.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Pending> {
        self.all.iter().flat_map(|gate| gate.waiting.iter().map(|(pending, _)| pending))
    }
}

impl Gate {
    fn acknowledge(&mut self, cx: &mut Cx<'_>, group: GroupId) {
        for (pending, index) in self.waiting.drain(..) {
            pending.done(cx, group, index, Ok(()));
        }
    }
}

impl Group {
    /// Closes the gate of a volume behind a generation. Refused if a later generation may have been
    /// acknowledged here, or the term has not begun yet.
    pub fn close_gate(
        &mut self,
        cx: &mut Cx<'_>,
        volume: VolumeId,
        generation: Generation,
    ) -> Outcome {
        if !self.leads() || !self.takes_proposals() {
            return Err(Refusal::Busy);
        }
        let same = |gate: &&mut Gate| (gate.volume, gate.generation) == (volume, generation);
        let known = self.gates.all.iter_mut().find(same);
        if self.replica.generations(volume).is_some_and(|(current, _)| current > generation) {
            mark!("gate asked for too late");
            return known.map(|_| ()).ok_or(Refusal::GateLost);
        }
        let closed_until = Some(cx.now + CLOSED_MAX);
        if let Some(gate) = known {
            gate.closed_until = closed_until;
            return Ok(());
        }
        let id = self.id;
        self.gates.end(cx, id, |gate| gate.volume == volume && gate.generation < generation);
        if self.gates.all.len() >= GATES_MAX {
            let open = self.gates.all.iter().position(|gate| gate.closed_until.is_none());
            self.gates.all.remove(open.ok_or(Refusal::Busy)?);
        }
        let waiting = Vec::new();
        self.gates.all.push(Gate { volume, generation, closed_until, waiting });
        Ok(())
    }

    /// Opens the gates that have been closed for too long.
    pub fn open_gates_if_due(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        if self.gates.deadline().is_some_and(|at| at <= now) {
            mark!("gate opened by itself");
            let id = self.id;
            self.gates.end(cx, id, |gate| gate.closed_until.is_some_and(|at| at <= now));
        }
    }
}
