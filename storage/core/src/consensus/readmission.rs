//! How a replica whose vote may be lost takes part again, without an operator.
//!
//! Such a replica has a device that forgot: an older image was put back, or the end of its log is gone. It
//! may have given a vote, and acknowledged entries, that it does not know of. It is *mute*: it takes and
//! answers no message of Raft. It tells the nodes of its group so ([`Frame::VoteLost`]), with a number drawn
//! for this very loss. A leader then forgets what the replica acknowledged, proposes an entry of no content,
//! the *barrier*, and once that is committed in the term in which it still leads it says so
//! ([`Frame::Readmit`]). From there on the replica is one that lost entries, like others (see
//! [`super::health`]): it takes entries or pages and acknowledges them, and neither votes nor asks for votes
//! before it holds the barrier and all before it. In effect it is a learner, though the members do not change.
//!
//! Why that is safe. Let the barrier be entry e of term t, committed by a majority S of the voters that does
//! not contain the mute replica m, for m acknowledges nothing before it is told. Assume that m had voted for
//! c in a term u, and forgot that.
//!
//! * If u ≤ t: m never votes in a term up to t again. It takes over t, and its vote of t, unless it is
//!   known, is given to itself.
//! * If u > t: c asked for that vote before m lost it, so before e was proposed, and its log did not hold e.
//!   Leading in u it would need a majority of the voters, which has a member x ≠ m in S. If x voted for c
//!   before it took e, it knew a term greater than t and would not have taken e. If it voted afterwards, it
//!   held e and refused. So c does not win term u, and what m does in it is of no consequence: m may vote
//!   there again like anybody. (If x in its turn forgot its vote for c in between, then x had a barrier of
//!   its own before it acknowledged e, and the argument holds of that barrier; of several the first is none
//!   of which that can be said.)
//! * m votes only as one who holds e and all before it, the changes of members included. So who is elected
//!   with its new vote holds e, and every leader after t does.
//! * What m acknowledged before and lost counts no more with the leader of t, and later leaders hold e. An
//!   entry that was committed with it stays committed as long as a majority holds it without m, which is
//!   what is promised of a lost device anyway.
//!
//! If fewer than a majority without m are sound, no barrier is committed and m stays mute. If m starts again
//! before a checkpoint stands for its new state, its log shows the old damage again: that is another loss
//! with another number, and an answer to the first that is late does nothing.
//!
//! To make it a learner by a change of members and a voter by another was the alternative: the majority of
//! three voters is two with it and without it, four more entries in each group would be needed, and what the
//! control plane wants to be so would not be so for a while.

use super::group::Group;
use super::shared::Cx;
use crate::mark;
use crate::planted::Bug;
use basalt_wire::frame::Frame;
use basalt_wire::ids::{Address, LogIndex, NodeId, Term};
use raft::INVALID_ID;

/// Distinguishes the draw of a loss's number from others.
const LOSS_DRAW: u64 = 0x6c6f_7373;

/// What a leader has committed on behalf of a replica whose vote may be lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Barrier {
    loss: u64,
    term: Term,
    index: u64,
}

impl Group {
    /// Draws the number of a loss that was noticed now.
    pub(super) fn draw_loss(&mut self, cx: &Cx<'_>) {
        self.loss = cx.shared.draw([LOSS_DRAW, u64::from(self.id.0), cx.now.0]);
    }

    /// A replica says that its vote may be lost.
    pub fn vote_lost(&mut self, cx: &mut Cx<'_>, from: Address, loss: u64) {
        if !self.leads() || !self.is_member(from) || from.node == self.me {
            return;
        }
        self.wake(cx);
        let asked = (loss, self.term());
        if self.barriers.get(&from.node).is_none_or(|known| (known.loss, known.term) != asked) {
            self.raise_barrier(cx, from.node, loss);
        }
        let Some(barrier) = self.barriers.get(&from.node).copied() else { return };
        let Some(raft) = &self.raft else { return };
        let hasty = cx.shared.planted.is(Bug::ReadmittedEarly);
        if raft.raft.raft_log.committed >= barrier.index || hasty {
            mark!("replica that lost its vote is readmitted");
            let (group, term, index) = (self.id, barrier.term, LogIndex(barrier.index));
            cx.send(from, Frame::Readmit { group, term, index, loss });
        }
    }

    /// Forgets what a replica acknowledged, and proposes what is to be committed without it.
    fn raise_barrier(&mut self, cx: &mut Cx<'_>, node: NodeId, loss: u64) {
        self.barriers.remove(&node);
        let raft = self.raft.as_ref().expect("it leads");
        if raft.raft.lead_transferee.is_some() || !cx.shared.log.has_room_for_fence() {
            return;
        }
        self.outboxes.remove(&node);
        self.election.active_at = cx.now;
        self.guard(cx, |group, _| {
            let raft = group.raft.as_mut().expect("seen by the guard");
            let Some(progress) = raft.raft.mut_prs().get_mut(u64::from(node.0)) else { return };
            (progress.matched, progress.committed_index) = (0, 0);
            progress.become_probe();
            // It does not listen yet.
            progress.pause();
            let (term, index) = (Term(raft.raft.term), raft.raft.raft_log.last_index() + 1);
            if raft.propose(Vec::new(), Vec::new()).is_ok() {
                assert_eq!(raft.raft.raft_log.last_index(), index, "one entry was proposed");
                group.barriers.insert(node, Barrier { loss, term, index });
            }
        });
        let text = format!(
            "group {}: node {node} has lost its vote; it votes again when it holds everything",
            self.id
        );
        cx.notice(false, text);
    }

    /// A leader says that an entry is committed without this replica.
    pub fn readmitted(
        &mut self,
        cx: &mut Cx<'_>,
        from: Address,
        (term, index): (Term, LogIndex),
        loss: u64,
    ) {
        if !self.is_mute() || loss != self.loss || !self.hears_from(from) {
            mark!("answer to another loss of a vote");
            return;
        }
        mark!("replica listens again");
        self.listen_again((term, index));
        self.guard(cx, |group, _| {
            let raft = &mut group.raft.as_mut().expect("seen by the guard").raft;
            if raft.term < term.0 {
                raft.become_follower(term.0, u64::from(from.node.0));
            }
            if raft.vote == INVALID_ID {
                // Given to nobody else in this term, in which it may have voted before.
                raft.vote = raft.id;
            }
        });
        let text = format!(
            "group {}: entry {index} is committed without this replica, whose vote may have been lost: it takes \
             part again, and votes when it holds everything",
            self.id
        );
        cx.notice(false, text);
    }
}
