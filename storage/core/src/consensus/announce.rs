//! Telling followers what is committed.
//!
//! The next append takes a new commit index along. An index of its own would cost each follower, and
//! the leader for the answer, as much as an append without payload does, and under load that next
//! append is a moment away. Only when none comes for [`crate::config::Timing::announce_after`] the
//! index is sent alone: a follower that does not know it refuses reads that ask for what was
//! acknowledged since. The metadata group's index is told at once: its entries are few, and who calls the
//! control plane at another node waits for them. An announcement that is lost is made up for by the next heartbeat.

use super::group::Group;
use super::shared::Cx;
use crate::mark;
use basalt_wire::ids::{GroupId, NodeId};
use std::time::Duration;

impl Group {
    /// Sees whether followers lack the commit index, and sets the time when they are told at the
    /// latest.
    pub(super) fn plan_announcement(&mut self, cx: &Cx<'_>) {
        let committed = self.raft.as_ref().map_or(0, |raft| raft.raft.raft_log.committed);
        let lacking = self.leads() && self.outboxes.values().any(|outbox| outbox.told < committed);
        if !lacking {
            self.announce_at = None;
        } else if self.announce_at.is_none() {
            // Whoever asked the control plane at another node than the leader's waits for it.
            let after = match self.id {
                GroupId::METADATA => Duration::ZERO,
                _ => cx.shared.timing.announce_after,
            };
            self.announce_at = Some(cx.now + after);
        }
    }

    /// Tells the followers that lack it the commit index, if its time has come.
    pub fn announce_if_due(&mut self, cx: &mut Cx<'_>) {
        if self.announce_at.is_none_or(|at| cx.now < at) {
            return;
        }
        self.announce_at = None;
        if !self.leads() {
            return;
        }
        mark!("commit index told alone");
        self.guard(cx, |group, _| {
            let raft = &mut group.raft.as_mut().expect("seen by the guard").raft;
            let committed = raft.raft_log.committed;
            for (NodeId(peer), outbox) in &mut group.outboxes {
                if outbox.told < committed {
                    // Not again if it can not be sent now: such a follower has to catch up first.
                    outbox.told = committed;
                    raft.send_append(u64::from(*peer));
                }
            }
        });
    }
}
