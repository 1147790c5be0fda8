//! Which groups should move where: a pure function of the cluster's record.
//!
//! It looks at where groups are or are moving to, never at what was planned before, so that whoever
//! leads the metadata group comes to moves that go on from there. Each move exchanges one voter of a
//! group. Only groups at rest are moved, and such as are on their way to a node that is to be
//! empty by now: it may be lost, and then they would never arrive.

use crate::layout::{self, METADATA_GROUP, METADATA_VOTERS_MAX, REPLICAS};
use crate::members::is_outdated;
use basalt_api::meta::v1::MoveGroup;
use basalt_api::v1::{ClusterSpec, Placement};
use std::collections::BTreeMap;

/// The next moves. At most `in_flight_max` volume groups move at a time, with those that do already;
/// the metadata group moves besides them, and before any other begins: a node gets volume groups when
/// it has the records.
///
/// There are none when no volume group is on a node that is to be empty, each has as many voters as it
/// can up to [`REPLICAS`], nodes hold equally many replicas but for one, and every node that does not
/// leave holds the metadata group.
pub fn next_moves(spec: &ClusterSpec, in_flight_max: usize) -> Vec<MoveGroup> {
    let metadata = layout::placement_of(spec, METADATA_GROUP);
    if metadata.moving && !is_outdated(spec, &metadata, METADATA_GROUP) {
        return Vec::new();
    }
    let target = metadata_target(spec, &metadata);
    if target.voters != metadata.voters || target.learners != metadata.learners {
        let Placement { voters, learners, .. } = target;
        return vec![MoveGroup { group: METADATA_GROUP, voters, learners }];
    }
    if metadata.moving {
        return Vec::new();
    }
    let mut plan = Plan::new(spec);
    let mut moves = plan.redirections();
    while plan.in_flight() < in_flight_max {
        let Some(next) = plan.repair().or_else(|| plan.level()) else { break };
        moves.push(next);
    }
    moves
}

/// Who should hold the metadata group. Voters stay as long as they are members, also those that are
/// drained: a voter can not become a learner. Others become voters up to a number that is worth it: a
/// fourth does not make the group survive more than three do.
fn metadata_target(spec: &ClusterSpec, now: &Placement) -> Placement {
    let staying = spec.members.iter().filter(|m| !m.leaving);
    let (active, drained): (Vec<_>, Vec<_>) = staying.partition(|m| !m.draining);
    let mut candidates: Vec<u32> = active.iter().chain(&drained).map(|m| m.node).collect();
    let worth = match candidates.len() {
        few @ 0..3 => few,
        3..5 => 3,
        _ => METADATA_VOTERS_MAX,
    };
    let mut voters: Vec<u32> = now.voters.clone();
    voters.retain(|node| candidates.contains(node));
    candidates.retain(|node| !voters.contains(node));
    let more = worth.saturating_sub(voters.len()).min(candidates.len());
    voters.extend(candidates.drain(..more));
    let mut learners: Vec<u32> = now.learners.clone();
    learners.retain(|node| candidates.contains(node));
    candidates.retain(|node| !learners.contains(node));
    learners.extend(candidates);
    if voters.is_empty() {
        // Everybody leaves: then nothing can.
        return now.clone();
    }
    Placement { voters, learners, ..Placement::default() }
}

struct Plan<'a> {
    spec: &'a ClusterSpec,
    groups: Vec<Placement>,
    /// Replicas of each node that groups may come to.
    load: BTreeMap<u32, usize>,
}

impl Plan<'_> {
    fn new(spec: &ClusterSpec) -> Plan<'_> {
        let groups: Vec<_> =
            (0..spec.group_count).map(|group| layout::placement_of(spec, group)).collect();
        let active = spec.members.iter().filter(|m| layout::is_active(m));
        let mut load: BTreeMap<u32, usize> = active.map(|m| (m.node, 0)).collect();
        for node in groups.iter().flat_map(|group| &group.voters) {
            if let Some(held) = load.get_mut(node) {
                *held += 1;
            }
        }
        Plan { spec, groups, load }
    }

    fn in_flight(&self) -> usize {
        self.groups.iter().filter(|group| group.moving).count()
    }

    /// Groups on their way to nodes that are to be empty go elsewhere.
    fn redirections(&mut self) -> Vec<MoveGroup> {
        let outdated = |at: &usize| {
            let group = &self.groups[*at];
            group.moving && is_outdated(self.spec, group, *at as u32)
        };
        let outdated: Vec<usize> = (0..self.groups.len()).filter(outdated).collect();
        outdated.into_iter().filter_map(|at| self.mend(at)).collect()
    }

    /// The next group that is not where it may be, or has too few voters.
    fn repair(&mut self) -> Option<MoveGroup> {
        (0..self.groups.len()).find_map(|at| match self.groups[at].moving {
            true => None,
            false => self.mend(at),
        })
    }

    fn mend(&mut self, at: usize) -> Option<MoveGroup> {
        let mut voters = self.groups[at].voters.clone();
        // Should nobody be left, groups stay where they are.
        let wanted = REPLICAS.min(self.load.len()).max(1);
        let bad = voters.iter().position(|node| !self.load.contains_key(node));
        match (bad, self.idlest(&voters)) {
            (Some(bad), _) if voters.len() > wanted => drop(voters.remove(bad)),
            (Some(bad), Some(to)) => voters[bad] = to,
            (None, Some(to)) if voters.len() < wanted => voters.push(to),
            _ => return None,
        }
        Some(self.moved(at, voters))
    }

    /// The node with the fewest replicas that is not one of these.
    fn idlest(&self, voters: &[u32]) -> Option<u32> {
        let free = self.load.iter().filter(|(node, _)| !voters.contains(node));
        free.min_by_key(|(_, held)| **held).map(|(node, _)| *node)
    }

    /// A replica of a node that holds many goes to one that holds few.
    fn level(&mut self) -> Option<MoveGroup> {
        let mut pairs: Vec<(usize, usize, u32, u32)> = Vec::new();
        for (from, many) in &self.load {
            let fewer = self.load.iter().filter(|(_, few)| **few + 1 < *many);
            pairs.extend(fewer.map(|(to, few)| (usize::MAX - many, *few, *from, *to)));
        }
        pairs.sort_unstable();
        pairs.into_iter().find_map(|(_, _, from, to)| {
            let fits = |group: &Placement| {
                !group.moving && group.voters.contains(&from) && !group.voters.contains(&to)
            };
            let at = self.groups.iter().position(fits)?;
            let voters = self.groups[at].voters.iter();
            let voters = voters.map(|node| if *node == from { to } else { *node }).collect();
            Some(self.moved(at, voters))
        })
    }

    fn moved(&mut self, at: usize, voters: Vec<u32>) -> MoveGroup {
        for node in &self.groups[at].voters {
            if let Some(held) = self.load.get_mut(node) {
                *held -= 1;
            }
        }
        for node in &voters {
            *self.load.get_mut(node).unwrap_or(&mut 0) += 1;
        }
        self.groups[at].voters.clone_from(&voters);
        self.groups[at].moving = true;
        MoveGroup { group: at as u32, voters, learners: Vec::new() }
    }
}
