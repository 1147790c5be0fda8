//! A leader that is much slower than the others hands its group over.
//!
//! With the library a leader's own log write is on the way of every commit, so that a leader with a slow
//! device holds up its group for as long as it leads. As a follower it holds up nobody. It does not ask
//! for its place back before it has been sound for a while, and answers votes as ever.

use super::group::Group;
use super::shared::Cx;
use crate::mark;
use crate::planted::Bug;
use basalt_wire::ids::NodeId;
use basalt_wire::time::Time;
use std::time::Duration;

/// A replica that handed its group over because it was slow, and leads it again, keeps it for so long: at
/// first, and at most. It doubles each time, so that hand-overs are few whatever devices do.
const REST_MIN: Duration = Duration::from_secs(10);
const REST_MAX: Duration = Duration::from_secs(600);
/// Ticks for which another must have been the better leader.
const PATIENCE_TICKS: u64 = 10;
/// After so many times the rest without a hand-over, the next rest is the shortest again.
const FORGIVEN_AFTER: u32 = 3;

/// What a replica remembers of hand-overs because of slowness.
#[derive(Debug, Default)]
pub(super) struct Relief {
    /// The term that it gave away last, and when.
    given: Option<(u64, Time)>,
    rest: Duration,
    /// Since which tick another would be a better leader.
    helps_since: Option<u64>,
}

impl Relief {
    fn may(&self, term: u64, now: Time) -> bool {
        // In the same term it was tried and did not come about.
        self.given.is_none_or(|(given, at)| given == term || now >= at + self.rest)
    }

    fn note(&mut self, term: u64, now: Time) {
        match self.given {
            Some((given, _)) if given == term => return,
            Some((_, at)) if now < at + self.rest * FORGIVEN_AFTER => {
                self.rest = (self.rest * 2).min(REST_MAX);
            }
            _ => self.rest = REST_MIN,
        }
        self.given = Some((term, now));
    }
}

impl Group {
    /// Hands leadership to the best of the others if this node is slow and that helps.
    pub(super) fn relieve(&mut self, cx: &mut Cx<'_>) -> bool {
        let term = self.term().0;
        let slow = cx.shared.scores.is_slow(self.me) && !cx.shared.planted.is(Bug::SlowLeaderStays);
        let may = slow
            && cx.shared.tick >= self.election.transfer_after
            && self.election.relief.may(term, cx.now);
        if !may {
            self.election.relief.helps_since = None;
            return false;
        }
        let voters: Vec<NodeId> = self.members.voters.iter().map(|voter| voter.node).collect();
        let heirs = self.peers().filter_map(|peer| {
            self.could_lead(cx, peer.node)?;
            Some((cx.shared.scores.relieves(peer.node, &voters)?, peer.node))
        });
        let heir = heirs.min();
        let relief = &mut self.election.relief;
        let since = heir.map(|_| relief.helps_since.unwrap_or(cx.shared.tick));
        relief.helps_since = since;
        let (Some((_, heir)), Some(since)) = (heir, since) else { return false };
        if cx.shared.tick < since + PATIENCE_TICKS {
            return false;
        }
        mark!("slow leader hands over");
        self.election.relief.note(term, cx.now);
        self.wake(cx);
        self.transfer(cx, heir);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_overs_are_few_whatever_happens() {
        let mut relief = Relief::default();
        let (mut now, mut term, mut count) = (Time(0), 1, 0);
        // The group comes back at once each time, for a day.
        while now < Time(0) + Duration::from_secs(86_400) {
            if relief.may(term, now) {
                relief.note(term, now);
                assert!(relief.may(term, now), "what did not come about is tried again");
                term += 2;
                count += 1;
            }
            now = now + Duration::from_secs(1);
        }
        assert!((100..=152).contains(&count), "{count} hand-overs in a day");
        now = now + Duration::from_secs(3_600);
        relief.note(term, now);
        assert_eq!(relief.rest, REST_MIN);
    }
}
