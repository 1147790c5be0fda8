//! What a session knows of one group: its replicas, its leader, and what waits for it.

use crate::Tuning;
use basalt_wire::ids::{LogIndex, NodeId, Term};
use basalt_wire::time::Time;
use std::collections::VecDeque;
use std::time::Duration;

/// The most voters of a group that a set of them ([`VoterSet`]) holds.
pub(crate) const VOTERS_MAX: usize = 32;

/// Voters of a group, by their place in its list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VoterSet(u32);

impl VoterSet {
    pub fn contains(self, voter: usize) -> bool {
        self.0 & (1 << voter) != 0
    }

    pub fn insert(&mut self, voter: usize) {
        self.0 |= 1 << voter;
    }

    pub fn remove(&mut self, voter: usize) {
        self.0 &= !(1 << voter);
    }

    pub fn clear(&mut self) {
        self.0 = 0;
    }

    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }
}

#[derive(Debug, Default)]
pub(crate) struct Group {
    /// The links to its voters.
    pub voters: Vec<u16>,
    /// The voter on this client's node.
    pub local: Option<usize>,
    /// The voter that leads in `term`, as far as is known.
    pub leader: Option<usize>,
    /// The highest term with a known leader.
    pub term: Term,
    /// A leader of this or a higher term that the map does not place here.
    pub unplaced: Option<(NodeId, Term)>,
    pub fence: FenceState,
    /// The index of the session's fence: no replica that has applied less may serve a read.
    pub fence_index: LogIndex,
    /// Parts that wait: for the leader, for a link, for the fence, or for a while to pass.
    pub waiting: VecDeque<u32>,
    /// Whether the group is in the client's list of those to look after.
    pub listed: bool,
    /// When to ask who leads and to try again what waits; counts only if listed.
    pub next_at: Time,
    /// A request to the leader is overdue: others are asked once whether it still leads.
    pub doubted: bool,
    /// Who was asked for the leader and has not answered.
    pub asked: VoterSet,
    /// Who said that its device is full to the last block, so that it can not take part in an election.
    pub full: VoterSet,
    asked_at: Option<Time>,
    /// Nothing that changes blocks is sent before.
    pub busy_until: Time,
    retry_after: Duration,
    busy_after: Duration,
}

/// Whether the session's epoch is committed in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FenceState {
    /// Nothing of the volume is in the group.
    #[default]
    NotNeeded,
    /// Under way.
    Pending,
    /// Committed.
    Done,
}

impl Group {
    /// When the next round of asking may start.
    pub fn next_round(&self, now: Time) -> Time {
        match self.asked_at {
            Some(at) => now.max(at + self.retry_after),
            None => now,
        }
    }

    /// Notes a round of asking: if it bears no fruit, there may be another after a while that
    /// doubles each time, up to `ask_max`: an election is over sooner than a dead node is back.
    pub fn round_done(&mut self, tuning: &Tuning, now: Time) {
        let fresh = self.asked_at.is_none_or(|at| now.since(at) > tuning.retry_max * 4);
        let longer = if fresh { Duration::ZERO } else { self.retry_after * 2 };
        self.retry_after = longer.clamp(tuning.retry_min, tuning.ask_max.max(tuning.retry_min));
        self.asked_at = Some(now);
    }

    /// The leader is busy: holds back what changes blocks, longer each time.
    pub fn busy(&mut self, tuning: &Tuning, now: Time) {
        if self.busy_until <= now {
            self.busy_after = (self.busy_after * 2).clamp(tuning.busy_min, tuning.retry_max);
            self.busy_until = now + self.busy_after;
        }
    }

    /// The leader did what was asked: the next trouble is a new one.
    pub fn went_well(&mut self) {
        self.retry_after = Duration::ZERO;
        self.busy_after = Duration::ZERO;
        self.doubted = false;
    }
}
