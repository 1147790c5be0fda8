//! Where a part goes: to the leader, to a reader, or into the waiting list of its group.

use super::{Out, VolumeClient};
use crate::group::FenceState;
use crate::link::Link;
use crate::pace;
use crate::part::{Control, NONE, PartKind, Sent, SentFor};
use crate::retry::Verdict;
use crate::types::{BlockError, ClientEffect};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::frame::{Priority, Request, RequestOp};
use basalt_wire::ids::{GroupId, LogIndex, NodeId, RequestId, Term};
use basalt_wire::time::Time;
use basalt_wire::trace::Stage;
use std::time::Duration;

/// A request id is, from the top: the client's tag (16 bits), a count (28), the slot in the table of
/// what is unanswered (20).
const SLOT_BITS: u32 = 20;
const COUNT_BITS: u32 = 28;
/// How often replicas that all found damage are asked again, and for how long they are left alone first;
/// longer each time, two seconds in all.
const DAMAGED_ROUNDS: u32 = 6;
const DAMAGED_PAUSE: Duration = Duration::from_millis(100);

impl VolumeClient {
    /// Sends a part, queues it on a link, or lets it wait in its group.
    pub(super) fn route(&mut self, id: u32, out: &mut Out) {
        self.waits_in(id, Stage::Route);
        let part = &self.parts[id];
        assert_eq!(part.sent, NONE, "a part is routed while it waits for an answer");
        let group = &self.groups[part.group.0 as usize];
        let fence = matches!(part.kind, PartKind::Fence);
        if !fence && group.fence != FenceState::Done {
            // The fence's end wakes the group.
            let group = part.group;
            self.group(group).waiting.push_back(id);
        } else if part.is_read() {
            self.route_read(id, out);
        } else {
            self.route_to_leader(id, out);
        }
    }

    fn route_to_leader(&mut self, id: u32, out: &mut Out) {
        let part = &self.parts[id];
        let number = part.group;
        let group = &self.groups[number.0 as usize];
        if group.busy_until > self.now {
            let until = group.busy_until;
            return self.wait(id, until);
        }
        let link = match group.leader {
            Some(leader) if self.links[usize::from(group.voters[leader])].is_up() => {
                group.voters[leader]
            }
            _ => return self.wait_for_round(id),
        };
        match part.copies.verdict(group.term, self.links[usize::from(link)].incarnation) {
            Verdict::Send => self.offer(id, link, out),
            Verdict::NeedsNewLink => {
                self.reset(link, out);
                self.wait_for_round(id);
            }
            Verdict::NeedsNewTerm => {
                self.group(number).leader = None;
                self.wait_for_round(id);
            }
        }
    }

    fn route_read(&mut self, id: u32, out: &mut Out) {
        let part = &self.parts[id];
        let group = &self.groups[part.group.0 as usize];
        if part.damaged.len() == group.voters.len() {
            return self.await_repair(id, out);
        }
        if self.now < part.again_at {
            let at = part.again_at;
            return self.wait(id, at);
        }
        match self.pick_reader(id) {
            Some(usual) => {
                let link = self.detour(id, usual).unwrap_or(usual);
                self.offer(id, link, out);
            }
            None => self.wait_for_round(id),
        }
    }

    /// Every replica has said that something in the range is damaged. It need not be the same block, and
    /// they repair what they find from each other: they are asked again before that is an error.
    fn await_repair(&mut self, id: u32, out: &mut Out) {
        const ALL: BlockError = BlockError::Io("every copy of the blocks is damaged");
        let part = &mut self.parts[id];
        if part.damaged_rounds == DAMAGED_ROUNDS {
            return self.fail_part(id, ALL, out);
        }
        part.damaged_rounds += 1;
        part.damaged.clear();
        part.tried.clear();
        let at = self.now + DAMAGED_PAUSE * part.damaged_rounds;
        self.parts[id].again_at = at;
        self.wait(id, at);
    }

    /// Sends now if the link has credit and nobody waits for it, else queues.
    fn offer(&mut self, id: u32, link: u16, out: &mut Out) {
        let bytes = self.parts[id].payload_bytes();
        let state = &mut self.links[usize::from(link)];
        if state.queue.is_empty() && state.has_credit(bytes) {
            self.send_part(id, link, out);
        } else {
            state.queue.push_back(id);
            self.waits_in(id, Stage::Credit);
        }
    }

    /// Notes what a traced part waits for from now on.
    fn waits_in(&mut self, id: u32, stage: Stage) {
        if let Some(watch) = &mut self.parts[id].watch {
            watch.waits(self.now, stage);
        }
    }

    /// Sends what the link's credit allows of its queue.
    pub(super) fn pump(&mut self, link: u16, out: &mut Out) {
        while let Some(id) = self.links[usize::from(link)].queue.front().copied() {
            if !self.links[usize::from(link)].has_credit(self.parts[id].payload_bytes()) {
                return;
            }
            self.links[usize::from(link)].queue.pop_front();
            if self.belongs_on(id, link) {
                self.send_part(id, link, out);
            } else {
                self.todo.push(id);
            }
        }
    }

    /// Whether a part that was queued on a link may still be sent on it.
    fn belongs_on(&self, id: u32, link: u16) -> bool {
        let part = &self.parts[id];
        let group = &self.groups[part.group.0 as usize];
        let Some(voter) = group.voters.iter().position(|l| *l == link) else { return false };
        if part.is_read() {
            return !part.tried.contains(voter);
        }
        let incarnation = self.links[usize::from(link)].incarnation;
        group.leader == Some(voter)
            && group.busy_until <= self.now
            && part.copies.verdict(group.term, incarnation) == Verdict::Send
    }

    fn send_part(&mut self, id: u32, link: u16, out: &mut Out) {
        let group = &self.groups[self.parts[id].group.0 as usize];
        let (term, fence_index) = (group.term, group.fence_index);
        let Link { incarnation, address, .. } = self.links[usize::from(link)];
        let part = &mut self.parts[id];
        if let Some(watch) = &mut part.watch {
            watch.sent(self.now, address.node);
        }
        let number = part.group;
        part.generation = self.config.generation;
        if !part.is_read() {
            self.stats.resent += u64::from(part.copies.is_repeat());
            part.copies.sent(term, incarnation);
        }
        let bytes = part.payload_bytes();
        let op = self.request_op(id, term, fence_index);
        self.parts[id].sent = self.send(link, number, op, SentFor::Part(id), bytes, out);
    }

    fn request_op(&self, id: u32, term: Term, fence_index: LogIndex) -> RequestOp {
        let part = &self.parts[id];
        let (range, generation) = (part.range, self.config.generation);
        let floor = || self.chunks.floor(part.chunk()).max(fence_index);
        let snapshot = self.view.then_some(generation);
        match &part.kind {
            PartKind::Read { .. } | PartKind::Change(_) => {
                RequestOp::Read { range, floor: floor(), snapshot }
            }
            PartKind::Extents { since: Some(since), .. } => {
                RequestOp::Changes { range, floor: floor(), since: *since, snapshot }
            }
            PartKind::Extents { .. } => RequestOp::Extents { range, floor: floor(), snapshot },
            PartKind::Write { payload, checksums } => RequestOp::Write {
                term,
                generation,
                range,
                checksums: checksums.clone(),
                payload: payload.clone(),
            },
            PartKind::Unmap => RequestOp::Unmap { term, generation, range },
            PartKind::Fill(parent) => RequestOp::Fill { term, parent: *parent, range },
            PartKind::Fence => RequestOp::Fence { term, generation },
            PartKind::Control(Control::Delete) => RequestOp::Delete { term },
            PartKind::Control(Control::Freeze(generation)) => {
                RequestOp::Freeze { term, generation: *generation }
            }
            PartKind::Control(Control::CloseGate(generation)) => {
                RequestOp::CloseGate { term, generation: *generation }
            }
            PartKind::Control(Control::OpenGate(generation)) => {
                RequestOp::OpenGate { term, generation: *generation }
            }
            PartKind::Control(Control::DropSnapshot(generation)) => {
                RequestOp::DropSnapshot { term, generation: *generation }
            }
            PartKind::Control(Control::Revert(generation)) => {
                RequestOp::Revert { term, generation: *generation }
            }
            PartKind::Control(Control::Clone(parent)) => RequestOp::Clone { term, parent: *parent },
            PartKind::Control(Control::Detach(parent)) => {
                RequestOp::Detach { term, parent: *parent }
            }
        }
    }

    fn send(
        &mut self,
        link: u16,
        group: GroupId,
        op: RequestOp,
        what: SentFor,
        bytes: usize,
        out: &mut Out,
    ) -> u32 {
        self.sent_count += 1;
        self.stats.sent += 1;
        let priority = self.priority(&what);
        let read = match &op {
            RequestOp::Read { range, .. } => {
                let unanswered = self.links[usize::from(link)].unanswered();
                Some(pace::weight(range.count as usize * BLOCK_BYTES, unanswered))
            }
            _ => None,
        };
        let at = self.now;
        let slot = self.sent.insert(Sent { id: RequestId(0), link, what, bytes, at, read });
        assert!(slot < 1 << SLOT_BITS, "a million requests are unanswered: credits are too large");
        let count = self.sent_count & ((1 << COUNT_BITS) - 1);
        let tag = u64::from(self.tuning.request_tag) << (SLOT_BITS + COUNT_BITS);
        let id = RequestId(tag | count << SLOT_BITS | u64::from(slot));
        self.sent[slot].id = id;
        let link = &mut self.links[usize::from(link)];
        link.take_credit(bytes);
        link.sent.push_back((id, self.now));
        let (volume, epoch) = (self.config.volume, self.config.epoch);
        let incarnation = link.incarnation;
        let traced = match what {
            SentFor::Part(id) => self.parts[id].watch.is_some(),
            _ => false,
        };
        let request = Request { id, group, volume, epoch, incarnation, priority, traced, op };
        out.push(ClientEffect::Send { to: link.address, request });
        slot
    }

    /// Whether what is sent is within the minimum that the volume is guaranteed.
    fn priority(&self, what: &SentFor) -> Priority {
        match what {
            SentFor::Part(id) if self.parts[*id].op != NONE => {
                let op = &self.ops[self.parts[*id].op];
                self.minimum.priority(op.counted.is_some_and(|(_, within)| within))
            }
            _ => Priority::BestEffort,
        }
    }

    /// What is unanswered by this id.
    pub(super) fn find_sent(&self, id: RequestId) -> Option<u32> {
        let slot = (id.0 & ((1 << SLOT_BITS) - 1)) as u32;
        self.sent.get(slot).filter(|sent| sent.id == id).map(|_| slot)
    }

    // ---- waiting ----

    /// Lets a part wait in its group for a leader, a link or another replica, until the next round.
    pub(super) fn wait_for_round(&mut self, id: u32) {
        let at = self.groups[self.parts[id].group.0 as usize].next_round(self.now);
        self.wait(id, at);
    }

    fn wait(&mut self, id: u32, until: Time) {
        let group = self.parts[id].group;
        self.group(group).waiting.push_back(id);
        self.look_after(group, until);
    }

    pub(super) fn look_after(&mut self, number: GroupId, at: Time) {
        let group = self.group(number);
        if group.listed {
            group.next_at = group.next_at.min(at);
        } else {
            group.listed = true;
            group.next_at = at;
            self.listed.push(number);
        }
    }

    /// Routes everything that waits in a group.
    pub(super) fn wake(&mut self, group: GroupId) {
        let waiting = std::mem::take(&mut self.groups[group.0 as usize].waiting);
        self.todo.extend(waiting);
    }

    // ---- leaders ----

    /// Asks every replica of a group that can be reached who leads it.
    pub(super) fn ask_for_leader(&mut self, number: GroupId, out: &mut Out) {
        for voter in 0..self.group(number).voters.len() {
            let group = self.group(number);
            let link = group.voters[voter];
            let state = &self.links[usize::from(link)];
            if state.is_up() && state.has_credit(0) && !self.group(number).asked.contains(voter) {
                self.group(number).asked.insert(voter);
                self.send(link, number, RequestOp::Leader, SentFor::Leader(number, voter), 0, out);
            }
        }
    }

    /// Tells who led groups when another session met them. A session that begins so asks no replica who leads, unless
    /// one turns out to lead no more. What is told may be old; a leader that is not where the map has the group is
    /// passed over.
    pub fn expect_leaders(&mut self, leaders: impl IntoIterator<Item = (GroupId, NodeId, Term)>) {
        for (number, node, term) in leaders {
            let Some(group) = self.groups.get(number.0 as usize) else { continue };
            let mut voters = group.voters.iter().map(|link| &self.links[usize::from(*link)]);
            if voters.any(|link| link.address.node == node) {
                self.learn(number, node, term);
            }
        }
    }

    /// Who leads which group in which term, as far as this session knows.
    pub fn leaders(&self) -> impl Iterator<Item = (GroupId, NodeId, Term)> {
        self.groups.iter().enumerate().filter_map(|(number, group)| {
            let link = &self.links[usize::from(group.voters[group.leader?])];
            Some((GroupId(number as u32), link.address.node, group.term))
        })
    }

    /// A replica says who leads in which term. Only a higher term, or a leader where none was known,
    /// is news: what a replica says may be old.
    pub(super) fn learn(&mut self, number: GroupId, node: NodeId, term: Term) {
        let group = &self.groups[number.0 as usize];
        let is_there = |link: &u16| self.links[usize::from(*link)].address.node == node;
        let Some(voter) = group.voters.iter().position(is_there) else {
            if term >= group.term {
                self.group(number).unplaced = Some((node, term));
                self.map_is_old = true;
            }
            return;
        };
        let newer = term > group.term;
        if newer || (term == group.term && group.leader.is_none()) {
            self.stats.leaders += 1;
            let group = self.group(number);
            group.leader = Some(voter);
            group.term = term;
            group.doubted = false;
            if newer {
                self.recall(number, term);
            }
            self.wake(number);
        }
    }

    /// Takes back what was sent to, or is queued for, the leader of a lower term: it may hang there,
    /// and the higher term makes another copy safe.
    fn recall(&mut self, number: GroupId, term: Term) {
        for link in 0..self.links.len() {
            for i in 0..self.links[link].sent.len() {
                let Some(slot) = self.find_sent(self.links[link].sent[i].0) else { continue };
                let SentFor::Part(id) = self.sent[slot].what else { continue };
                let part = &mut self.parts[id];
                if part.group == number && part.copies.unanswered_term().is_some_and(|t| t < term) {
                    self.give_up_copy(id);
                }
            }
            let queue = std::mem::take(&mut self.links[link].queue);
            self.todo.extend(queue);
        }
    }

    /// Waits no longer for the answer of what was sent for a part, and routes it anew.
    pub(super) fn give_up_copy(&mut self, id: u32) {
        let part = &mut self.parts[id];
        part.copies.lose();
        let slot = std::mem::replace(&mut part.sent, NONE);
        self.sent[slot].what = SentFor::Nobody;
        self.todo.push(id);
    }
}
