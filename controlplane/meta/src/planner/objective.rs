//! How well groups are placed.

use super::{Outlook, Plan};
use crate::layout;
use basalt_api::v1::{ClusterSpec, PlacementScore};
use std::collections::BTreeMap;

/// How well groups are placed: less is better, an earlier part before all later ones. No move is planned that does
/// not
/// make it less. Groups that move count as if they had arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Objective {
    /// Replicas that groups lack, or have on nodes that are to be empty.
    pub misplaced: u64,
    /// Replicas that share their failure domain with another one of their group, although there are more.
    pub shared: u64,
    /// Bytes on devices beyond what they are to be filled to.
    pub overfull: u64,
    /// The sum of the squares of the numbers of replicas of nodes.
    pub replicas: u64,
    /// The sum of the squares of the bytes of nodes.
    pub bytes: u128,
    /// The sum of the squares of the numbers of groups that nodes are to lead. Who leads follows from where groups
    /// are, see [`layout::preferred_leaders`], and nothing moves for it.
    pub leaders: u64,
}

/// How well groups are placed by the record.
pub fn objective(spec: &ClusterSpec, outlook: &Outlook) -> Objective {
    let plan = Plan::new(spec, outlook);
    let wanted = plan.wanted();
    let mut objective = Objective::default();
    for group in &plan.groups {
        let bad = group.voters.iter().filter(|node| !plan.load.contains_key(node)).count();
        objective.misplaced += (bad + wanted.saturating_sub(group.voters.len())) as u64;
        objective.shared += plan.shared(&group.voters) as u64;
    }
    for (node, load) in &plan.load {
        objective.overfull += load.bytes.saturating_sub(plan.limit(*node));
        objective.replicas += (load.replicas * load.replicas) as u64;
        objective.bytes += u128::from(load.bytes) * u128::from(load.bytes);
    }
    objective.leaders = leads(spec).values().map(|led| led * led).sum();
    objective
}

/// The same for people: by how much the nodes differ.
pub fn score(spec: &ClusterSpec, outlook: &Outlook) -> PlacementScore {
    let Objective { misplaced, shared, overfull, .. } = objective(spec, outlook);
    let plan = Plan::new(spec, outlook);
    let spread = |all: Vec<u64>| all.iter().max().unwrap_or(&0) - all.iter().min().unwrap_or(&0);
    PlacementScore {
        misplaced,
        shared_domains: shared,
        overfull_bytes: overfull,
        replica_spread: spread(plan.load.values().map(|load| load.replicas as u64).collect()),
        byte_spread: spread(plan.load.values().map(|load| load.bytes).collect()),
        leader_spread: spread(leads(spec).into_values().collect()),
    }
}

/// How many groups each node is to lead that may hold some.
fn leads(spec: &ClusterSpec) -> BTreeMap<u32, u64> {
    let active = spec.members.iter().filter(|m| layout::is_active(m));
    let mut leads: BTreeMap<u32, u64> = active.map(|m| (m.node, 0)).collect();
    for leader in layout::preferred_leaders(spec, &[]) {
        leads.entry(leader).and_modify(|led| *led += 1);
    }
    leads
}
