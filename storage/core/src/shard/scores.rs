//! Telling peers how fast this shard is.

use super::Shard;
use crate::consensus::Group;
use crate::event::Effect;
use basalt_wire::frame::Frame;
use basalt_wire::ids::{Address, NodeId};
use basalt_wire::time::Time;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes under way to a follower, of all groups, beyond which it is sent no more: it would
/// have to hold them in memory until its device has written them.
const UNDER_WAY_MAX: usize = 64 << 20;

impl Shard {
    /// Notes which followers lag by so much that they must not be sent more for now.
    pub(super) fn find_choked(&mut self) {
        let most = self.shared.limits.pending_bytes.min(UNDER_WAY_MAX);
        let mut under_way: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (peer, bytes) in self.groups.iter().flat_map(Group::under_way) {
            *under_way.entry(peer).or_default() += bytes;
        }
        under_way.retain(|_, bytes| *bytes > most);
        self.shared.choked = under_way.into_keys().collect();
    }

    /// Notes by how much this turn comes late, before anything that it brings is measured.
    pub(super) fn note_lateness(&mut self, now: Time) {
        if now > self.next_tick && self.needs_clock() {
            self.shared.scores.turn_late(now.since(self.next_tick));
        }
    }

    /// If a window ended, tells everybody with whom a group is awake.
    pub(super) fn tell_scores(&mut self, now: Time, out: &mut Vec<Effect>) {
        if !self.shared.scores.tick(self.shared.tick, now) {
            return;
        }
        let awake = self.groups.iter().filter(|group| !group.asleep && !group.is_stopped());
        let all: BTreeSet<Address> = awake.flat_map(Group::peers).collect();
        let me = self.shared.me.node;
        let reachable = |to: &Address| to.node != me && !self.shared.down.contains(&to.node);
        for to in all.into_iter().filter(reachable) {
            self.shared.scores.add_peer(to.node);
            let score = self.shared.scores.tell(to.node, now);
            out.push(Effect::Send { to, frame: Frame::Score(score) });
        }
    }
}
