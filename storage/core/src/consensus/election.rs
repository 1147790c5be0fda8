//! Who leads, and when: ticks, elections at our own random times, hand-overs, sleep.

use super::group::{Group, Role};
use super::relief::Relief;
use super::shared::Cx;
use crate::mark;
use crate::planted::Bug;
use basalt_wire::frame::{Frame, RaftMessage};
use basalt_wire::ids::{Address, LogIndex, NodeId, Term};
use basalt_wire::time::Time;
use raft::eraftpb::MessageType;
use raft::{ProgressState, StateRole};
use std::collections::BTreeSet;

/// Entries that a follower may lack and still be asked to lead: it gets them within a round trip.
const LAG_MAX: u64 = 256;
/// Ticks between the turns in which voters ask for votes when their leader is gone. An election takes
/// less, if the devices do; two that ask at the same time take each other's votes, and lose a whole
/// timeout.
const TURN_TICKS: u64 = 4;

/// What a replica remembers about elections.
#[derive(Debug, Default)]
pub struct Election {
    /// When to ask for votes because the leader's link went down, and the term it was leader in.
    campaign_at: Option<(Time, u64)>,
    /// Elections started so far; makes each draw of a timeout a new one.
    attempts: u64,
    /// The node that should lead.
    prefer: Option<NodeId>,
    /// The hand-over under way: to whom, and when it was started.
    pub(super) transfer: Option<NodeId>,
    /// No new hand-over before this tick.
    pub(super) transfer_after: u64,
    /// It does not ask for votes before this tick.
    abstains_until: u64,
    /// The last index at each of the two latest ticks, while this replica leads.
    lasts: [u64; 2],
    /// Since which tick the node that should lead has kept pace with this leader.
    in_pace: Option<u64>,
    /// What is remembered of hand-overs because of slowness.
    pub(super) relief: Relief,
    /// When the group was last busy.
    pub(super) active_at: Time,
    /// Whether the clock has moved since it was last seen whether the group can sleep.
    may_doze: bool,
}

impl Election {
    /// The replica became leader.
    pub(super) fn led_since(&mut self, now: Time) {
        self.active_at = now;
        self.transfer = None;
        self.campaign_at = None;
        self.in_pace = None;
        self.lasts = [u64::MAX; 2];
    }
}

impl Group {
    /// Advances Raft's clock by one.
    pub fn tick(&mut self, cx: &mut Cx<'_>) {
        if self.patience.is_some_and(|tick| cx.shared.tick >= tick) {
            self.give_up(cx);
        }
        if self.asleep || self.raft.is_none() {
            return;
        }
        // A replica that may not lead must not disturb those who may.
        let may_campaign = self.has_a_say()
            && self.impaired.is_none()
            && self.limbo.is_none()
            && !cx.shared.draining
            && !cx.shared.read_only
            && cx.shared.tick >= self.election.abstains_until;
        if self.leads() || may_campaign {
            self.guard(cx, |group, cx| group.tick_library(cx));
        } else if cx.shared.read_only {
            self.guard(cx, |group, _| group.forget_silent_leader());
        }
        self.report_damage(cx);
        self.help_others(cx);
        self.tick_session(cx);
        self.tell_digests(cx);
        self.tick_mending(cx);
        self.tick_recovering(cx);
        self.watch_pace(cx);
        self.place_leader(cx);
        self.catch_up(cx);
        self.election.may_doze = true;
    }

    /// Without elections of its own the replica would believe for ever in the leader it heard last.
    fn forget_silent_leader(&mut self) {
        let raft = &mut self.raft.as_mut().expect("seen by the guard").raft;
        raft.election_elapsed += 1;
        if raft.election_elapsed > 2 * raft.election_timeout()
            && raft.leader_id != ::raft::INVALID_ID
        {
            let term = raft.term;
            raft.become_follower(term, ::raft::INVALID_ID);
        }
    }

    fn tick_library(&mut self, cx: &mut Cx<'_>) {
        let timeout = self.draw_timeout(cx);
        let raft = self.raft.as_mut().expect("seen by the guard");
        // Drawn anew by the library from its own randomness whenever it resets; ours counts.
        raft.raft.set_randomized_election_timeout(timeout);
        if raft.tick() && raft.raft.state != StateRole::Leader {
            self.election.attempts += 1;
        }
    }

    fn draw_timeout(&self, cx: &Cx<'_>) -> usize {
        let raft = &self.raft.as_ref().expect("seen by the caller").raft;
        let shortest = raft.election_timeout();
        let what = [u64::from(self.id.0), raft.term, self.election.attempts];
        let draw = cx.shared.draw(what);
        let more = match self.leader() {
            // The others must have missed the leader for as long as they stand by it: one more tick.
            Some(leader) if leader != self.me => {
                1 + self.turn_after(leader) * TURN_TICKS + draw % 2
            }
            _ => draw % shortest as u64,
        };
        // The library draws up to twice the shortest; with many voters the last turns fall together.
        shortest + (more as usize).min(shortest - 1)
    }

    /// This voter's turn to ask for votes when `leader` is gone: 0 is the first.
    fn turn_after(&self, leader: NodeId) -> u64 {
        let voters = &self.members.voters;
        let others = voters.iter().map(|voter| voter.node).filter(|node| *node != leader);
        others.take_while(|node| *node != self.me).count() as u64
    }

    /// When the group must be looked at before the next tick.
    pub fn deadline(&self) -> Option<Time> {
        let campaign = self.election.campaign_at.map(|(at, _)| at);
        campaign.into_iter().chain(self.announce_at).chain(self.gates.deadline()).min()
    }

    /// Asks for votes if the leader's link went down a little while ago.
    pub fn campaign_if_due(&mut self, cx: &mut Cx<'_>) {
        let Some((at, term)) = self.election.campaign_at else { return };
        if cx.now < at {
            return;
        }
        self.election.campaign_at = None;
        let promotable = self.raft.as_ref().is_some_and(|raft| raft.raft.promotable());
        let votes = promotable && self.has_a_say() && self.limbo.is_none();
        let may = votes && self.impaired.is_none() && !cx.shared.read_only;
        if self.term() != Term(term) || self.role() == Role::Leader || !may {
            return;
        }
        mark!("campaign after the leader's link went down");
        self.election.attempts += 1;
        self.guard(cx, |group, _| {
            let _ = group.raft.as_mut().expect("seen by the guard").campaign();
        });
    }

    /// A peer's link went down or came up.
    pub fn peer_link(&mut self, cx: &mut Cx<'_>, peer: NodeId, up: bool) {
        if self.raft.is_none() || !self.peers().any(|address| address.node == peer) {
            return;
        }
        self.outboxes.remove(&peer);
        self.full.remove(&peer);
        self.room_changed();
        self.moved.remove(&peer);
        self.wake(cx);
        if up {
            return;
        }
        let led = self.leader() == Some(peer);
        let raft = &mut self.raft.as_mut().expect("seen above").raft;
        if raft.state == StateRole::Leader {
            self.guard(cx, |group, _| {
                let raft = group.raft.as_mut().expect("seen by the guard");
                raft.report_unreachable(u64::from(peer.0));
            });
        } else if led && self.impaired.is_none() && !cx.shared.draining {
            // What the library holds back in the leader's favour while it was heard from of late
            // ends here; a pre-vote still needs a majority that misses the leader too.
            raft.election_elapsed = raft.election_elapsed.max(raft.election_timeout());
            let term = raft.term;
            let tick = cx.shared.timing.tick.as_nanos() as u64;
            let what = [u64::from(self.id.0) << 8, term, self.election.attempts];
            // The first turn comes when the others have noticed it too.
            let notice = tick / 4 + cx.shared.draw(what) % (tick / 2).max(1);
            let delay = self.turn_after(peer) * TURN_TICKS * tick + notice;
            self.election.campaign_at = Some((Time(cx.now.0 + delay), term));
        }
    }

    /// Whether a message may reach the library.
    pub(super) fn may_take(
        &mut self,
        cx: &Cx<'_>,
        kind: MessageType,
        message: &RaftMessage,
    ) -> bool {
        let from = message.from;
        match kind {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                if self.impaired.is_some() || !self.has_a_say() {
                    mark!("vote withheld by an impaired replica");
                    return false;
                }
                let lacks = self.holds_more_than((message.log_term.0, message.index.0));
                if let Some((at, _)) = &mut self.election.campaign_at {
                    if lacks {
                        // It can not win, so there is nothing to wait for.
                        mark!("voter that holds more than the candidate asks at once");
                        *at = (*at).min(cx.now);
                    } else {
                        // Somebody else was faster.
                        *at = (*at).max(cx.now + cx.shared.timing.tick * 5);
                    }
                }
                true
            }
            MessageType::MsgTimeoutNow => {
                let whole = self.has_a_say() && self.impaired.is_none() && self.limbo.is_none();
                whole && !cx.shared.draining && self.leader() == Some(from)
            }
            _ => true,
        }
    }

    /// Whether this replica's log is ahead of one that ends with this term and index.
    fn holds_more_than(&self, (term, index): (u64, u64)) -> bool {
        let Some(raft) = &self.raft else { return false };
        let log = &raft.raft.raft_log;
        (log.last_term(), log.last_index()) > (term, index)
    }

    /// Notes where the group's leader should be.
    pub fn prefer(&mut self, cx: &mut Cx<'_>, node: NodeId) {
        self.election.prefer = Some(node);
        let misplaced = self.raft.is_some() && self.leader() != Some(node);
        if misplaced && (self.leads() || node == self.me) {
            self.wake(cx);
            self.place_leader(cx);
        }
    }

    /// A peer asks to be made leader.
    pub fn asked_for_leadership(&mut self, cx: &mut Cx<'_>, from: Address, candidate: NodeId) {
        if candidate == from.node && self.leads() && self.members.is_voter(from.node) {
            // Being woken counts as being busy.
            let may = self.may_place(cx, candidate);
            self.wake(cx);
            if may {
                self.transfer(cx, candidate);
            }
        }
    }

    /// Hands leadership to where it should be, or asks for it.
    fn place_leader(&mut self, cx: &mut Cx<'_>) {
        if cx.shared.draining {
            if self.leads() {
                self.hand_over(cx);
            }
            return;
        }
        if self.leads() && std::mem::take(&mut self.page_damage) {
            self.leave_pages_to_others(cx);
        }
        if self.leads() && self.must_leave(cx) {
            self.leave_to_others(cx);
            return;
        }
        if self.leads() && self.relieve(cx) {
            return;
        }
        let Some(prefer) = self.election.prefer else { return };
        if cx.shared.tick < self.election.transfer_after || self.impaired.is_some() {
            return;
        }
        if self.leads() {
            if prefer != self.me && self.may_place(cx, prefer) {
                self.transfer(cx, prefer);
            }
        } else if prefer == self.me
            && self.members.is_voter(self.me)
            && cx.shared.scores.is_trusted(self.me)
        {
            let Some(leader) = self.leader().and_then(|l| self.address_of(u64::from(l.0))) else {
                return;
            };
            self.pause_transfers(cx);
            let frame = Frame::AskLeadership { group: self.id, candidate: self.me };
            cx.send(leader, frame);
        }
    }

    /// Notes whether the node that should lead keeps pace: it holds what there was two ticks ago.
    fn watch_pace(&mut self, cx: &Cx<'_>) {
        let Some(prefer) = self.election.prefer.filter(|node| self.leads() && *node != self.me)
        else {
            return;
        };
        let Some(raft) = &self.raft else { return };
        let matched = raft.raft.prs().get(u64::from(prefer.0)).map_or(0, |p| p.matched);
        let [before, latest] = self.election.lasts;
        if matched < before {
            self.election.in_pace = None;
        } else {
            self.election.in_pace.get_or_insert(cx.shared.tick);
        }
        self.election.lasts = [latest, raft.raft.raft_log.last_index()];
    }

    /// Whether the node that should lead can be given a group that works: one that just came back
    /// would hold up everybody who writes, so it must have kept pace for a while, or nobody writes.
    fn may_place(&self, cx: &Cx<'_>, node: NodeId) -> bool {
        let patience = u64::from(cx.shared.timing.election_ticks);
        let kept = self.election.prefer == Some(node)
            && self.election.in_pace.is_some_and(|since| cx.shared.tick >= since + patience);
        let idle = cx.now.since(self.election.active_at) >= cx.shared.timing.tick * 10;
        if !cx.shared.scores.is_trusted(node) {
            mark!("slow node is not given its group");
            return false;
        }
        if self.is_needed_for_pages(cx) {
            mark!("leader that brings up a follower stays");
            return false;
        }
        let Some(raft) = &self.raft else { return false };
        let last = raft.raft.raft_log.last_index();
        let whole = raft.raft.prs().get(u64::from(node.0)).is_some_and(|p| p.matched >= last);
        kept || (idle && whole)
    }

    fn pause_transfers(&mut self, cx: &Cx<'_>) {
        self.election.transfer_after =
            cx.shared.tick + 2 * u64::from(cx.shared.timing.election_ticks);
    }

    /// Whether a voter could lead within a moment.
    pub(super) fn could_lead(&self, cx: &Cx<'_>, node: NodeId) -> Option<u64> {
        let raft = &self.raft.as_ref()?.raft;
        let progress = raft.prs().get(u64::from(node.0))?;
        // While a change is under way only those lead that do so after it too.
        let lasts = self.members.voters.iter().any(|a| a.node == node);
        let last = raft.raft_log.last_index();
        let near = progress.matched + LAG_MAX >= last;
        // One that holds everything stays in the state of a probe after its link came back: nothing
        // is left to send it.
        let flows = progress.state == ProgressState::Replicate || progress.matched >= last;
        let well = flows && !cx.shared.down.contains(&node);
        (lasts && near && well && node != self.me).then_some(progress.matched)
    }

    pub(super) fn transfer(&mut self, cx: &mut Cx<'_>, to: NodeId) {
        let busy = self.raft.as_ref().is_none_or(|raft| raft.raft.lead_transferee.is_some());
        if busy || self.could_lead(cx, to).is_none() {
            return;
        }
        mark!("leadership handed over");
        self.pause_transfers(cx);
        self.election.transfer = Some(to);
        self.guard(cx, |group, _| {
            let raft = group.raft.as_mut().expect("seen by the guard");
            raft.transfer_leader(u64::from(to.0));
        });
    }

    /// Hands leadership to the best of the others.
    pub fn hand_over(&mut self, cx: &mut Cx<'_>) {
        self.wake(cx);
        let prefer = self.election.prefer;
        let best = self
            .peers()
            .filter_map(|peer| {
                let matched = self.could_lead(cx, peer.node)?;
                let sound = !cx.shared.scores.is_slow(peer.node);
                // Within a change one that voted before it: clients know it, and it knows to be a voter.
                let voted = !self.members.is_joint()
                    || self.members.outgoing.iter().any(|a| a.node == peer.node);
                let preferred = Some(peer.node) == prefer;
                Some((sound, voted, preferred, matched, std::cmp::Reverse(peer.node)))
            })
            .max();
        if let Some((.., std::cmp::Reverse(node))) = best {
            self.transfer(cx, node);
        }
    }

    /// Whether a follower needs what is damaged here, and the others may have it intact. Who left for
    /// that once, and leads again, has found that they do not: the follower gets pages.
    fn must_leave(&mut self, cx: &Cx<'_>) -> bool {
        let stuck = self.outboxes.iter().filter_map(|(node, o)| Some((*node, o.stuck()?)));
        let mut leave = false;
        for (node, entry) in stuck.collect::<Vec<_>>() {
            if self.gets_pages_for(cx, node, entry) {
                continue;
            }
            leave = true;
            if cx.shared.tick >= self.election.transfer_after {
                self.left_for.insert(node, entry);
            }
        }
        leave
    }

    /// Whether a follower gets pages because an entry is damaged here, and was when this replica led
    /// before.
    pub(super) fn gets_pages_for(&self, cx: &Cx<'_>, node: NodeId, entry: u64) -> bool {
        cx.shared.checkpoints
            && self.left_for.get(&node) == Some(&entry)
            && entry <= self.replica.applied().0
    }

    /// Hands leadership to a voter that stays one, if a hand-over is not under way or has just failed.
    pub(super) fn hand_over_to_voter(&mut self, cx: &mut Cx<'_>) {
        if cx.shared.tick < self.election.transfer_after {
            return;
        }
        mark!("leader that will be removed hands over");
        self.hand_over(cx);
    }

    /// Hands leadership to a voter that is not among those that this leader can not serve.
    fn leave_to_others(&mut self, cx: &mut Cx<'_>) {
        if cx.shared.tick < self.election.transfer_after {
            return;
        }
        let stuck = |node| self.outboxes.get(&node).is_some_and(|o| o.stuck().is_some());
        let heir =
            self.peers().find(|peer| !stuck(peer.node) && self.could_lead(cx, peer.node).is_some());
        match heir {
            Some(heir) => {
                mark!("leader that can not serve a follower leaves");
                self.transfer(cx, heir.node);
            }
            None => self.stand_down(cx),
        }
    }

    /// Hands leadership to a voter that may have intact what is damaged here and a follower needs.
    fn leave_pages_to_others(&mut self, cx: &mut Cx<'_>) {
        let helped = |node| self.helping.contains_key(&node);
        let heir = self
            .peers()
            .find(|peer| !helped(peer.node) && self.could_lead(cx, peer.node).is_some());
        if let Some(heir) = heir.filter(|_| cx.shared.tick >= self.election.transfer_after) {
            mark!("leader whose pages are damaged leaves");
            self.transfer(cx, heir.node);
        }
    }

    /// Gives up leadership without an heir. If a majority of others lacks what is damaged here, then
    /// it was never committed, and one of them can lead without it.
    fn stand_down(&mut self, cx: &mut Cx<'_>) {
        let others = self.peers().filter(|peer| !cx.shared.down.contains(&peer.node));
        if !self.is_quorum(others.map(|peer| peer.node)) {
            return;
        }
        mark!("leader that can serve no follower stands down");
        self.pause_transfers(cx);
        let rest = 4 * u64::from(cx.shared.timing.election_ticks);
        self.election.abstains_until = cx.shared.tick + rest;
        self.guard(cx, |group, _| {
            let raft = &mut group.raft.as_mut().expect("seen by the guard").raft;
            let term = raft.term;
            raft.become_follower(term, ::raft::INVALID_ID);
        });
    }

    /// The log takes no more records: the replica neither leads nor votes any more.
    pub fn log_full(&mut self, cx: &mut Cx<'_>) {
        self.election.campaign_at = None;
        self.wake(cx);
        self.guard(cx, |group, _| {
            let raft = &mut group.raft.as_mut().expect("seen by the guard").raft;
            if raft.state != StateRole::Follower {
                let term = raft.term;
                raft.become_follower(term, ::raft::INVALID_ID);
            }
        });
        self.give_up(cx);
    }

    /// The log takes records again: the replica votes and may lead.
    pub fn log_has_room(&mut self, cx: &mut Cx<'_>) {
        self.wake(cx);
    }

    /// Whether somebody could take over leadership.
    pub fn has_heir(&self, down: &BTreeSet<NodeId>) -> bool {
        self.other_voters().any(|peer| !down.contains(&peer.node))
    }

    /// Ends sleep.
    pub(super) fn wake(&mut self, cx: &mut Cx<'_>) {
        if !self.asleep {
            return;
        }
        mark!("group woken");
        self.asleep = false;
        self.election.active_at = cx.now;
        self.guard(cx, |group, _| {
            let raft = group.raft.as_mut().expect("seen by the guard");
            raft.raft.election_elapsed = 0;
            raft.ping();
        });
    }

    /// Puts an idle group to sleep: every voter holds and knows all there is.
    pub(super) fn doze(&mut self, cx: &mut Cx<'_>) {
        if !std::mem::take(&mut self.election.may_doze) {
            return;
        }
        let idle = cx.now.since(self.election.active_at) >= cx.shared.timing.sleep_after;
        if self.members.is_joint() {
            return;
        }
        let compared = self.comparing.is_busy() || self.mending.is_busy();
        let busy = compared || self.recovering.is_busy() || cx.shared.draining;
        if !idle || self.asleep || !self.leads() || !self.is_settled() || busy {
            return;
        }
        let raft = &self.raft.as_ref().expect("it leads").raft;
        let last = raft.raft_log.last_index();
        let hasty = cx.shared.planted.is(Bug::SleepsEarly);
        let same = raft.prs().iter().all(|(id, progress)| {
            hasty
                || *id == raft.id
                || (progress.matched == last && progress.committed_index == last)
        });
        let all_up = !self.peers().any(|peer| cx.shared.down.contains(&peer.node));
        if !same || !all_up || raft.lead_transferee.is_some() {
            return;
        }
        mark!("group put to sleep");
        let (group, term, commit) = (self.id, Term(raft.term), LogIndex(last));
        for peer in self.peers().collect::<Vec<_>>() {
            cx.send(peer, Frame::Sleep { group, term, commit });
        }
        self.asleep = true;
    }

    /// Whether nothing is under way here.
    fn is_settled(&self) -> bool {
        let Some(raft) = &self.raft else { return false };
        let log = &raft.raft.raft_log;
        let last = log.last_index();
        let done = log.committed == last && log.persisted == last && log.applied == last;
        let idle = self.inbox.is_empty() && self.waiting.is_empty();
        let answered = self.pending.is_empty() && self.gates.are_idle();
        done && idle && answered && self.held.is_empty()
    }

    /// The leader puts the group to sleep.
    pub fn sleep(&mut self, from: Address, term: Term, commit: LogIndex) {
        let agrees = self.leader() == Some(from.node)
            && self.role() == Role::Follower
            && self.term() == term
            && self.impaired.is_none()
            && self.is_settled()
            && !self.mending.is_busy()
            && !self.recovering.is_busy()
            && self.replica.applied() == commit;
        if agrees {
            self.asleep = true;
            self.election.campaign_at = None;
        }
    }

    /// Frees the follower's outbox of what it acknowledged.
    pub(super) fn acknowledged(&mut self, cx: &mut Cx<'_>, peer: NodeId) {
        let Some(raft) = &self.raft else { return };
        let Some(outbox) = self.outboxes.get_mut(&peer) else { return };
        if outbox.is_idle() {
            return;
        }
        let matched = raft.raft.prs().get(u64::from(peer.0)).map_or(0, |p| p.matched);
        outbox.acknowledged(matched, cx.shared.tick);
        let Some(to) = self.addresses.get(&peer).copied() else { return };
        let table = raft.store();
        super::outbox::Courier { group: self.slot, to, table, outbox }.advance(cx);
    }

    /// Bytes sent to each follower and not acknowledged, as far as there are any.
    pub fn under_way(&self) -> impl Iterator<Item = (NodeId, usize)> + '_ {
        let all = self.outboxes.iter().map(|(peer, outbox)| (*peer, outbox.under_way_bytes()));
        all.filter(|(_, bytes)| *bytes > 0)
    }

    /// Goes on with what waits for followers, as far as the shard's pace allows.
    fn catch_up(&mut self, cx: &mut Cx<'_>) {
        let Some(raft) = &self.raft else { return };
        for (peer, outbox) in &mut self.outboxes {
            let Some(to) = self.addresses.get(peer).copied() else { continue };
            if !outbox.is_idle() {
                let table = raft.store();
                super::outbox::Courier { group: self.slot, to, table, outbox }.advance(cx);
            }
        }
    }

    /// A read for a follower ended.
    pub fn fetched(
        &mut self,
        cx: &mut Cx<'_>,
        peer: NodeId,
        which: (u64, usize),
        data: Option<bytes::Bytes>,
        payload: Option<bytes::Bytes>,
    ) {
        let Some(raft) = &self.raft else { return };
        let Some(outbox) = self.outboxes.get_mut(&peer) else { return };
        let Some(to) = self.addresses.get(&peer).copied() else { return };
        let table = raft.store();
        super::outbox::Courier { group: self.slot, to, table, outbox }
            .fill(cx, which, data, payload);
    }
}
