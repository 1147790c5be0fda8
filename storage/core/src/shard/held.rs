//! What the groups of a shard hold of volumes.

use super::{Phase, Shard};
use crate::consensus::Group;
use crate::replica::HeldVolume;
use basalt_wire::ids::GroupId;

/// What a replica holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldGroup {
    /// Its group.
    pub group: GroupId,
    /// Whether it leads and has applied all that it knows to be committed: then no other one holds more.
    pub whole: bool,
    /// The volumes, in order.
    pub volumes: Vec<HeldVolume>,
}

impl Shard {
    /// What the replicas of volume groups here hold; nothing before the log is open.
    pub fn held_groups(&self) -> Vec<HeldGroup> {
        if !matches!(self.phase, Phase::Running | Phase::Draining) {
            return Vec::new();
        }
        let volumes = |group: &&Group| group.id != GroupId::METADATA && !group.is_retired();
        let held = self.groups.iter().filter(volumes).map(|group| HeldGroup {
            group: group.id,
            whole: group.leads() && group.has_applied_its_term(),
            volumes: group.replica.held_volumes(),
        });
        held.collect()
    }
}
