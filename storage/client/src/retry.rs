//! When a write may be sent again.
//!
//! A request that changes blocks may be lost, or its answer may be; then it has to be sent again, and
//! two or more *copies* of it exist. Invariant I3 forbids that a copy takes effect after the write was
//! acknowledged and its blocks were written anew. The rule that prevents it:
//!
//! > A copy may be sent if, of every earlier copy that may still be alive, either the term is lower,
//! > or the term is equal and the link's incarnation is lower.
//!
//! Why it suffices, as a story. `W` is a write, its copies are `W1`, `W2`; `X` is a later write of the
//! same block, sent after `W` was acknowledged.
//!
//! 1. `W1` goes to the leader `A` of term 5 over the link of incarnation 1. The link breaks. `W1` may
//!    be in A's log, in one of A's queues, in the network, or nowhere.
//! 2. *The same leader goes on.* The client dials again and gets incarnation 2; `W2` goes to `A` with
//!    term 5 and incarnation 2. Either `W1` was proposed before `W2` arrived, so it stands before `W2`
//!    in the log; or it is still under way, and is refused when it arrives, because `A` has seen
//!    incarnation 2. When `W2` is acknowledged every copy that will ever take effect is in the log, not
//!    behind `W2`, and `X` comes after all of them.
//! 3. *Without the new incarnation* `W1` and `W2` would travel on two links with equal numbers (or on
//!    one link through two queues): `W2` is acknowledged, `X` is written, and then `W1` arrives and is
//!    proposed. The block has gone back. So nothing is sent twice with the same term and incarnation.
//! 4. *Another leader.* `B` leads in term 6, and `W2` goes there with term 6. `W1`, if it still reaches
//!    `A`, is proposed at best in term 5. An entry that `A` appends in term 5 after a majority has voted
//!    in term 6 is on no majority and in the log of no later leader that also has `W2` committed: B's log
//!    ends in a later term, and whoever holds it wins elections against A. If `A` knows of term 6, or
//!    leads again in term 7, it refuses `W1` for its term.
//! 5. *The leader lost its place* (`Unknown`): `W1` is in A's log of term 5 and may be committed by a
//!    later leader. A later leader has it in its log before anything that it proposes itself, so before
//!    `W2`. The same rule holds: the next copy needs a higher term.
//! 6. *A refusal is final*: a copy that was refused, or that met a replica which does not lead, never
//!    takes effect. It counts as if it had not been sent, so that a busy leader costs no new link.
//! 7. *A copy given up without an answer* (its leader does not answer while another one was elected)
//!    counts as alive for ever. Its answer, if it comes, is ignored.
//! 8. *Both orders of two writes.* Had `V`, another write of the same block, been sent while `W` was
//!    unanswered, the log could hold `W1 V W2`, and readers would see W's data, V's, and W's again: no
//!    order of the two explains that. So writes of the same block go one after another (`chunks`), and
//!    between two copies of a write there is nothing but reads of that block.
//!
//! The same holds for unmaps and deletes. A fence is harmless when repeated and follows the rule too.
//! Reads may be sent anywhere at any time.

use basalt_wire::ids::{Incarnation, Term};

/// Names a copy: the term it was meant for and the incarnation of the link it went over.
pub(crate) type Copy = (Term, Incarnation);

/// The copies of one request that were sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Copies {
    /// The newest of the copies that were lost sight of.
    lost: Option<Copy>,
    /// The copy that waits for its answer.
    unanswered: Option<Copy>,
}

/// Whether a copy may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may.
    Send,
    /// Only over a newer link.
    NeedsNewLink,
    /// Only to the leader of a newer term.
    NeedsNewTerm,
}

impl Copies {
    pub fn verdict(&self, term: Term, incarnation: Incarnation) -> Verdict {
        assert!(self.unanswered.is_none(), "a copy is sent while another waits for its answer");
        match self.lost {
            None => Verdict::Send,
            Some((lost, _)) if lost < term => Verdict::Send,
            Some((lost, _)) if lost > term => Verdict::NeedsNewTerm,
            Some((_, lost)) if lost < incarnation => Verdict::Send,
            Some(_) => Verdict::NeedsNewLink,
        }
    }

    pub fn sent(&mut self, term: Term, incarnation: Incarnation) {
        assert_eq!(self.verdict(term, incarnation), Verdict::Send, "an unsafe copy");
        self.unanswered = Some((term, incarnation));
    }

    /// The unanswered copy was refused.
    pub fn refused(&mut self) {
        self.unanswered = None;
    }

    /// The unanswered copy was lost sight of.
    pub fn lose(&mut self) {
        if let Some(copy) = self.unanswered.take() {
            self.lost = Some(copy);
        }
    }

    /// The term of the unanswered copy.
    pub fn unanswered_term(&self) -> Option<Term> {
        self.unanswered.map(|(term, _)| term)
    }

    /// Whether this would not be the first copy that may take effect.
    pub fn is_repeat(&self) -> bool {
        self.lost.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lost copies, the copy asked for, and the verdict.
    #[test]
    fn verdicts() {
        type Row = (&'static [(u64, u64)], (u64, u64), Verdict);
        let table: [Row; 8] = [
            (&[], (5, 1), Verdict::Send),
            (&[(5, 1)], (5, 1), Verdict::NeedsNewLink),
            (&[(5, 1)], (5, 2), Verdict::Send),
            (&[(5, 1)], (6, 1), Verdict::Send),
            (&[(5, 2)], (5, 1), Verdict::NeedsNewLink),
            (&[(6, 1)], (5, 9), Verdict::NeedsNewTerm),
            (&[(5, 1), (5, 2)], (5, 2), Verdict::NeedsNewLink),
            (&[(5, 3), (6, 1)], (6, 2), Verdict::Send),
        ];
        for (lost, ask, verdict) in table {
            let mut copies = Copies::default();
            for (term, incarnation) in lost {
                copies.sent(Term(*term), Incarnation(*incarnation));
                copies.lose();
            }
            let found = copies.verdict(Term(ask.0), Incarnation(ask.1));
            assert_eq!(found, verdict, "lost {lost:?}, asked {ask:?}");
        }
    }

    #[test]
    fn a_refused_copy_counts_as_not_sent() {
        let mut copies = Copies::default();
        copies.sent(Term(5), Incarnation(1));
        copies.refused();
        assert_eq!(copies.verdict(Term(5), Incarnation(1)), Verdict::Send);
        copies.sent(Term(5), Incarnation(1));
        copies.lose();
        copies.sent(Term(6), Incarnation(1));
        copies.refused();
        assert_eq!(copies.verdict(Term(5), Incarnation(1)), Verdict::NeedsNewLink);
        assert!(copies.is_repeat());
    }
}
