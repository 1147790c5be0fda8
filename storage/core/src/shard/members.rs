//! Replicas that come and go while the shard runs.

use super::Shard;
use crate::config::GroupConfig;
use crate::consensus::{Cx, Group};
use crate::event::Effect;
use crate::mark;
use crate::shard::GroupStatus;
use basalt_wire::ids::GroupId;
use basalt_wire::time::Time;

impl Shard {
    /// Starts an empty replica of a group. It is filled by the group's leader.
    pub(super) fn join(&mut self, now: Time, config: &GroupConfig, out: &mut Vec<Effect>) {
        if self.by_id.contains_key(&config.id) {
            return;
        }
        if self.taker.still_holds(config.id) {
            // Started over, it would not fit what the checkpoint says of its former stay.
            mark!("replica comes back too early");
            if !self.taker.is_under_way() {
                self.taker.ask();
            }
            return;
        }
        mark!("replica joins");
        let slot = self.groups.len();
        let mut cx = Cx { shared: &mut self.shared, now, out };
        let mut group = Group::new(config, slot, &cx);
        let mut state = group.opening();
        if let Some(hard) = self.departed.remove(&config.id) {
            mark!("replica comes back");
            state.remember(hard);
            group.returns();
        }
        if self.votes_lost {
            mark!("replica joins without its vote");
            state.without_vote();
        }
        group.open(&mut cx, state);
        self.by_id.insert(config.id, slot);
        self.groups.push(group);
    }

    /// Ends a replica, unless a checkpoint is just being made of it. Its position stays taken.
    pub(super) fn retire(&mut self, now: Time, id: GroupId, out: &mut Vec<Effect>) {
        if self.taker.is_encoding() {
            return;
        }
        let Some(slot) = self.by_id.remove(&id) else { return };
        self.departed.insert(id, self.groups[slot].recorded());
        self.groups[slot].retire(&mut Cx { shared: &mut self.shared, now, out });
        self.taker.retire(id);
        // Whoever waited for its pages has nothing more to wait for.
        self.go_on_waiting(now, out);
    }

    /// The replicas, by group.
    pub(super) fn group_statuses(&self) -> Vec<GroupStatus> {
        let held = self.groups.iter().filter(|group| !group.is_retired());
        let mut statuses: Vec<_> = held.map(Group::status).collect();
        statuses.sort_by_key(|status| status.group);
        statuses
    }
}
