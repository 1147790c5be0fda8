//! Who led groups when sessions of the door met them.
//!
//! A session asks every replica of a group who leads it before it sends anything there. One that does a single thing to
//! a volume, such as a snapshot, would ask for longer than it acts. So what sessions found out is kept for those
//! that come after them; who leads no more says so, and the session asks.

use basalt_client::VolumeClient;
use basalt_wire::ids::{GroupId, NodeId, Term};
use std::collections::BTreeMap;

/// The last known leader of each group.
#[derive(Default)]
pub(super) struct Leaders(BTreeMap<GroupId, (NodeId, Term)>);

impl Leaders {
    /// Takes what a session knows.
    pub fn take(&mut self, client: &VolumeClient) {
        for (group, node, term) in client.leaders() {
            let known = self.0.entry(group).or_insert((node, term));
            if term > known.1 {
                *known = (node, term);
            }
        }
    }

    /// Gives what is known to a session that begins.
    pub fn give(&self, client: &mut VolumeClient) {
        client.expect_leaders(self.0.iter().map(|(group, (node, term))| (*group, *node, *term)));
    }
}
