//! Who is in the group: changes by joint consensus, replicas that come and go.
//!
//! The members are those of the last change that was applied. A change comes in two entries: with the first the
//! library asks for a majority of the new voters and one of the former voters, with the second the former ones
//! have no say any more. A leader begins a change only when it has applied the one before. So whoever holds
//! the second entry of a change knows that the first is committed, and takes it into account before it asks for
//! a vote; see [`super::table::Table::surely_committed`].
//!
//! A new replica starts with an empty log and the members that the group began with, and becomes what
//! the log says.

use super::group::Group;
use super::shared::Cx;
use super::table::{Content, weight};
use crate::log::HardState;
use crate::mark;
use crate::planted::Bug;
use crate::replica::{Replica, check_entry};
use basalt_wire::buffer::Payload;
use basalt_wire::ids::{Address, LogIndex, NodeId, Term};
use basalt_wire::membership::{ENTRY_KIND_MEMBERS, MembersChange, Membership};
use bytes::Bytes;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use std::collections::BTreeMap;

/// Nodes whose addresses are remembered.
const ADDRESSES_MAX: usize = 1024;

/// Checks what an entry carries, whatever its type.
pub fn check_content(
    kind: u8,
    data: &Bytes,
    payload: &Payload,
    verify: bool,
) -> Result<(), &'static str> {
    if kind != ENTRY_KIND_MEMBERS {
        return check_entry(data, payload, verify);
    }
    if !payload.is_empty() {
        return Err("a change of members with payload");
    }
    MembersChange::decode(data).map(drop).map_err(|_| "a change of members that can not be read")
}

fn single(change: ConfChangeType, node: NodeId) -> ConfChangeSingle {
    let mut single = ConfChangeSingle { node_id: u64::from(node.0), ..Default::default() };
    single.set_change_type(change);
    single
}

/// What leads from some members to others, in the library's words.
fn steps(from: &Membership, to: &Membership) -> ConfChangeV2 {
    let missing = |list: &[Address], known: &[Address]| {
        let new: Vec<_> = list.iter().filter(|a| !known.contains(a)).map(|a| a.node).collect();
        new
    };
    let voters = missing(&to.voters, &from.voters);
    let learners = missing(&to.learners, &from.learners);
    let gone = missing(&from.all(), &to.all());
    let changes = (voters.into_iter().map(|n| single(ConfChangeType::AddNode, n)))
        .chain(learners.into_iter().map(|n| single(ConfChangeType::AddLearnerNode, n)))
        .chain(gone.into_iter().map(|n| single(ConfChangeType::RemoveNode, n)));
    let mut change = ConfChangeV2::default();
    change.set_transition(ConfChangeTransition::Explicit);
    change.set_changes(changes.collect::<Vec<_>>().into());
    change
}

impl Group {
    /// Its members.
    pub fn members(&self) -> &Membership {
        &self.members
    }

    /// The members that it began with.
    pub fn founders(&self) -> &Membership {
        &self.founders
    }

    /// Starts over from other members: those of a checkpoint.
    pub(super) fn set_members(&mut self, members: Membership) {
        let all = members.all();
        self.addresses.extend(all.into_iter().map(|address| (address.node, address)));
        self.members = members;
    }

    /// Whether its log goes as far as its leader's went when it had become a member: then it holds all that
    /// was committed before, whatever it has forgotten of an earlier stay.
    pub(super) fn has_a_say(&self) -> bool {
        let Some(raft) = &self.raft else { return false };
        let log = &raft.raft.raft_log;
        (Term(log.term(log.persisted).unwrap_or(0)), LogIndex(log.persisted)) >= self.since
    }

    /// Whether it is known to be one, with or without a vote.
    pub fn is_member(&self, address: Address) -> bool {
        self.members.all().contains(&address)
    }

    /// The address of a node that was heard of.
    pub(super) fn address_of(&self, node: u64) -> Option<Address> {
        self.addresses.get(&NodeId(u32::try_from(node).ok()?)).copied()
    }

    /// The other members.
    pub fn peers(&self) -> impl Iterator<Item = Address> + '_ {
        self.members.all().into_iter().filter(|a| a.node != self.me)
    }

    /// The other nodes that are members, were, or sent a message of the group.
    pub(super) fn heard_of(&self) -> impl Iterator<Item = Address> + '_ {
        self.addresses.values().copied().filter(|a| a.node != self.me)
    }

    /// The other voters, those of a change under way included.
    pub(super) fn other_voters(&self) -> impl Iterator<Item = Address> + '_ {
        self.peers().filter(|a| self.members.is_voter(a.node))
    }

    /// Remembers where a message came from: members may be unknown here yet. Says whether that can be.
    pub(super) fn hears_from(&mut self, from: Address) -> bool {
        let room = self.addresses.len() < ADDRESSES_MAX;
        match self.addresses.get(&from.node) {
            Some(known) => *known == from,
            None if room => self.addresses.insert(from.node, from).is_none(),
            None => false,
        }
    }

    /// Whether some nodes are enough to decide.
    pub(super) fn is_quorum(&self, nodes: impl Iterator<Item = NodeId>) -> bool {
        let Some(raft) = &self.raft else { return false };
        raft.raft.prs().has_quorum(&nodes.map(|node| u64::from(node.0)).collect())
    }

    /// States who the members should be. A leader brings one change about at a time, if it may now: new
    /// voters are learners first, and hold what is committed. To be stated until they are the members.
    pub fn configure(&mut self, cx: &mut Cx<'_>, voters: Vec<Address>, learners: Vec<Address>) {
        let target = Membership::new(voters, learners);
        if !self.leads() || target == self.members {
            return;
        }
        if let Err(why) = self.judge_members(&target) {
            cx.notice(false, format!("group {}: its members stay: {why}", self.id));
            return;
        }
        self.wake(cx);
        let may = !self.members.is_joint() && self.may_change_members(cx);
        if may && self.are_fit_to_vote(cx, &target.voters) {
            mark!("change of members begins");
            let steps = steps(&self.members, &target);
            self.propose_members(cx, &MembersChange::Enter(target), steps);
        }
    }

    /// Why the members can not become these.
    fn judge_members(&self, target: &Membership) -> Result<(), String> {
        target.validate().map_err(|e| e.to_string())?;
        if let Some(voter) = target.learners.iter().find(|a| self.members.is_voter(a.node)) {
            return Err(format!("node {} votes, it can only be removed", voter.node));
        }
        Ok(())
    }

    /// Whether these vote now, or are learners that hold everything that is committed.
    fn are_fit_to_vote(&self, cx: &Cx<'_>, voters: &[Address]) -> bool {
        let Some(raft) = &self.raft else { return false };
        let committed = raft.raft.raft_log.committed;
        let fit = |address: &&Address| {
            let progress = raft.raft.prs().get(u64::from(address.node.0));
            // It must have a say at once: should this leader be lost, it is needed to elect another.
            let hasty = cx.shared.planted.is(Bug::PromotesEarly);
            let holds = hasty || progress.is_some_and(|p| p.matched >= committed);
            let up = !cx.shared.down.contains(&address.node);
            self.members.voters.contains(address)
                || (self.members.learners.contains(address) && holds && up)
        };
        let all = voters.iter().all(|address| fit(&address));
        if !all {
            mark!("learner that is not fit to vote");
        }
        all
    }

    fn may_change_members(&self, cx: &Cx<'_>) -> bool {
        let Some(raft) = &self.raft else { return false };
        self.leads()
            && !raft.raft.has_pending_conf()
            && raft.raft.lead_transferee.is_none()
            && raft.raft.apply_to_current_term()
            && cx.shared.log.has_room_for_fence()
    }

    /// Ends a change that is applied here. A leader that will be no voter any more hands over before.
    pub(super) fn end_change(&mut self, cx: &mut Cx<'_>) {
        if !self.members.is_joint() || !self.may_change_members(cx) {
            return;
        }
        if !self.members.voters.iter().any(|a| a.node == self.me) {
            self.hand_over_to_voter(cx);
            return;
        }
        mark!("change of members ends");
        self.propose_members(cx, &MembersChange::Leave, ConfChangeV2::default());
    }

    fn propose_members(&mut self, cx: &mut Cx<'_>, change: &MembersChange, steps: ConfChangeV2) {
        let data = change.encode();
        self.election.active_at = cx.now;
        self.guard(cx, |group, _| {
            let raft = group.raft.as_mut().expect("seen by the guard");
            let (index, term) = (raft.raft.raft_log.last_index() + 1, raft.raft.term);
            raft.propose_conf_change(Vec::new(), steps).expect("seen to be possible");
            assert_eq!(raft.raft.raft_log.last_index(), index, "one entry was proposed");
            let kind = ENTRY_KIND_MEMBERS;
            let content = Content { data, payload: Some(Payload::empty()), kind };
            group.staged_bytes += weight(&content);
            group.staged.insert((index, term), content);
        });
    }

    /// Applies an entry that changes the members. What the leader saw to is possible is so everywhere; if
    /// not, it changes nothing, everywhere.
    pub(super) fn apply_members(&mut self, cx: &mut Cx<'_>, index: LogIndex) {
        let raft = self.raft.as_mut().expect("only a panic stops it");
        let data = &raft.store().content(index.0).expect("kept until it is applied").data;
        let change = MembersChange::decode(data).expect("checked when it was taken");
        let (steps, target) = match change {
            MembersChange::Leave => (ConfChangeV2::default(), None),
            MembersChange::Enter(target) => (steps(&self.members, &target), Some(target)),
        };
        if let Err(error) = raft.apply_conf_change(&steps) {
            mark!("change of members that is none");
            cx.notice(true, format!("group {}: entry {index} changes no member: {error}", self.id));
            return;
        }
        let members = match target {
            None => Membership { outgoing: Vec::new(), ..self.members.clone() },
            Some(target) => Membership { outgoing: self.members.voters.clone(), ..target },
        };
        mark!("members changed");
        self.set_members(members);
        if self.members.is_joint() && cx.shared.planted.is(Bug::JointSkipped) {
            let raft = self.raft.as_mut().expect("only a panic stops it");
            raft.apply_conf_change(&ConfChangeV2::default()).expect("a change is under way");
            self.members.outgoing.clear();
        }
        self.forget_former_members(cx);
        if self.recorded.commit < index {
            // Otherwise a start could lead back to the members before, who may be gone by then.
            self.record_hard(cx, HardState { commit: index, ..self.recorded });
            self.members_seq = self.last_seq;
            self.members_durable = false;
        }
        let lists = [&self.members.voters, &self.members.outgoing, &self.members.learners];
        let [voters, outgoing, learners] = lists.map(|list| {
            let nodes: Vec<_> = list.iter().map(|a| a.node.to_string()).collect();
            nodes.join(",")
        });
        let text = format!(
            "group {}: voters {voters}, former voters [{outgoing}], learners [{learners}]",
            self.id
        );
        cx.notice(false, text);
    }

    pub(super) fn forget_former_members(&mut self, cx: &mut Cx<'_>) {
        let all = self.members.all();
        let is_there = |node: &NodeId| all.iter().any(|a| a.node == *node);
        self.outboxes.retain(|node, _| is_there(node));
        self.starting_over.retain(|node, _| is_there(node));
        self.moved.retain(|node, _| is_there(node));
        self.full.retain(|node, _| is_there(node));
        self.left_for.retain(|node, _| is_there(node));
        self.barriers.retain(|node, _| is_there(node));
        let before = self.helping.len();
        self.helping.retain(|node, _| is_there(node));
        cx.shared.helping -= self.counted(before - self.helping.len());
        self.room_changed();
    }

    /// A leader that was removed leads no more. What it knows to be committed the others come to know from the
    /// next leader.
    pub(super) fn stand_down_if_removed(&mut self, cx: &mut Cx<'_>) {
        if !self.leads() || self.members.is_voter(self.me) {
            return;
        }
        mark!("leader that was removed stands down");
        let raft = &mut self.raft.as_mut().expect("it leads").raft;
        for address in self.members.all() {
            raft.send_append(u64::from(address.node.0));
        }
        let term = raft.term;
        raft.become_follower(term, ::raft::INVALID_ID);
        self.give_up(cx);
    }

    /// The replica was removed: it stops, and what it held is given back.
    pub fn retire(&mut self, cx: &mut Cx<'_>) {
        mark!("replica retired");
        self.end_session(cx);
        self.stop_mending();
        self.end_help(cx);
        self.limbo = None;
        self.incoming = Default::default();
        self.raft = None;
        self.retired = true;
        self.outboxes.clear();
        self.staged.clear();
        self.staged_bytes = 0;
        self.held.clear();
        self.give_up(cx);
        self.replica = Replica::new(cx.shared.planted);
        self.waits = Default::default();
        cx.shared.loads.forget(self.id);
        self.stored = (0, 0);
        self.settle_cache(cx);
        cx.notice(false, format!("group {}: the replica here is removed", self.id));
    }

    /// Notes that it was removed before and starts over.
    pub fn returns(&mut self) {
        self.returned = true;
    }

    /// Whether it was removed.
    pub fn is_retired(&self) -> bool {
        self.retired
    }
}

/// Addresses by node.
pub(super) fn addresses_of(members: &Membership) -> BTreeMap<NodeId, Address> {
    members.all().into_iter().map(|address| (address.node, address)).collect()
}
