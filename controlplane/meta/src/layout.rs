//! Which nodes hold which group: planned at bootstrap, kept as placements from the first move on.

use basalt_api::v1::{ClusterSpec, Member, Placement, Voters};
use std::collections::{BTreeMap, BTreeSet};

/// Voters of each group, if there are as many nodes.
pub const REPLICAS: usize = 3;
/// The most nodes of a cluster.
pub const NODES_MAX: usize = 64;
/// The most voters of the metadata group, which every node holds: more would only make it slower, so
/// the other nodes are learners of it.
pub const METADATA_VOTERS_MAX: usize = 5;
/// The number of the metadata group, beside which the volume groups count from 0.
pub const METADATA_GROUP: u32 = u32::MAX;
/// The most volume groups of a pool.
pub const GROUPS_MAX: u32 = 1024;
/// Volume groups, if the operator does not say.
pub const GROUPS_DEFAULT: u32 = 16;

/// The layout of a new cluster: the metadata group votes on the first [`METADATA_VOTERS_MAX`] nodes;
/// each volume group has [`REPLICAS`] voters, the next group's rotated by one node.
///
/// # Errors
/// Says what is wrong with the list of nodes or the number of groups.
pub fn plan(id: u64, members: Vec<Member>, group_count: u32) -> Result<ClusterSpec, String> {
    check_counts(members.len(), group_count)?;
    if let Some((one, other)) = twins(&members) {
        return Err(format!(
            "{} and {} are not different nodes: each needs a name and addresses of its own",
            one.grpc_address, other.grpc_address
        ));
    }
    let nodes: Vec<u32> = members.iter().map(|m| m.node).collect();
    let groups = (0..group_count as usize).map(|group| voters_of(&nodes, group)).collect();
    let metadata = Voters { nodes: nodes.iter().copied().take(METADATA_VOTERS_MAX).collect() };
    let metadata = Some(metadata);
    Ok(ClusterSpec { id, group_count, members, groups, metadata, ..ClusterSpec::default() })
}

fn check_counts(members: usize, group_count: u32) -> Result<(), String> {
    if members == 0 || members > NODES_MAX {
        return Err(format!("a cluster has 1 to {NODES_MAX} nodes, not {members}"));
    }
    if !group_count.is_power_of_two() || group_count > GROUPS_MAX {
        return Err(format!(
            "the number of groups must be a power of two from 1 to {GROUPS_MAX}, not {group_count}"
        ));
    }
    Ok(())
}

fn voters_of(nodes: &[u32], group: usize) -> Voters {
    let count = nodes.len().min(REPLICAS);
    Voters { nodes: (0..count).map(|i| nodes[(group + i) % nodes.len()]).collect() }
}

fn twins(members: &[Member]) -> Option<(&Member, &Member)> {
    members.iter().enumerate().find_map(|(at, one)| {
        let same = |other: &&Member| {
            other.name == one.name
                || other.grpc_address == one.grpc_address
                || other.data_address == one.data_address
                || other.node == one.node
        };
        members[at + 1..].iter().find(same).map(|other| (one, other))
    })
}

/// Whether a spec that came from a peer or from disk can be used. Names and addresses may be the same:
/// members change their addresses one by one, and a node may come in the place of one of its name that
/// has not left yet. Neither must keep the others from starting.
///
/// # Errors
/// Says what is wrong with it.
pub fn validate(spec: &ClusterSpec) -> Result<(), String> {
    check_counts(spec.members.len(), spec.group_count)?;
    let numbers: BTreeSet<u32> = spec.members.iter().map(|m| m.node).collect();
    if numbers.len() != spec.members.len() || numbers.contains(&0) {
        return Err("the cluster's layout has two members of one number, or one of none".to_owned());
    }
    let group_count = spec.group_count as usize;
    let placed = spec.placements.len() == group_count && spec.metadata_placement.is_some();
    let unplaced = spec.placements.is_empty() && spec.metadata_placement.is_none();
    if spec.id == 0
        || spec.groups.len() != group_count
        || spec.metadata.is_none()
        || !(placed || unplaced)
    {
        return Err("the cluster's layout is incomplete".to_owned());
    }
    // Founders may be no members any more.
    if spec.groups.iter().chain(&spec.metadata).any(|founders| founders.nodes.is_empty()) {
        return Err("the cluster's layout has a group without founders".to_owned());
    }
    let known = |node: &u32| numbers.contains(node);
    let good = |group: u32| {
        let placement = placement_of(spec, group);
        let Placement { voters, learners, former, .. } = &placement;
        !voters.is_empty() && voters.iter().chain(learners).chain(former).all(known)
    };
    if !(0..spec.group_count).chain([METADATA_GROUP]).all(good) {
        return Err("the cluster's layout places a group on nodes that are not members".to_owned());
    }
    Ok(())
}

/// The voters that a group began with; none for a group that there is not.
pub fn founders_of(spec: &ClusterSpec, group: u32) -> &[u32] {
    let founders = match group {
        METADATA_GROUP => spec.metadata.as_ref(),
        number => spec.groups.get(number as usize),
    };
    founders.map_or(&[], |voters| &voters.nodes)
}

/// Where a group is, or is to be; nowhere if there is no such group.
pub fn placement_of(spec: &ClusterSpec, group: u32) -> Placement {
    let kept = match group {
        METADATA_GROUP => spec.metadata_placement.as_ref(),
        number => spec.placements.get(number as usize),
    };
    kept.cloned().unwrap_or_else(|| Placement {
        voters: founders_of(spec, group).to_vec(),
        ..Placement::default()
    })
}

/// The place where a group's placement is kept; from the first use on all of them are.
pub(crate) fn placement_mut(spec: &mut ClusterSpec, group: u32) -> Option<&mut Placement> {
    if spec.placements.is_empty() {
        spec.placements = (0..spec.group_count).map(|group| placement_of(spec, group)).collect();
        spec.metadata_placement = Some(placement_of(spec, METADATA_GROUP));
    }
    match group {
        METADATA_GROUP => spec.metadata_placement.as_mut(),
        number => spec.placements.get_mut(number as usize),
    }
}

/// Whether a placement names a node in any part.
pub fn names(placement: &Placement, node: u32) -> bool {
    let Placement { voters, learners, former, .. } = placement;
    voters.iter().chain(learners).chain(former).any(|named| *named == node)
}

/// Whether groups may come to a member.
pub fn is_active(member: &Member) -> bool {
    !member.draining && !member.leaving && !member.evacuated
}

/// The voter that should lead each volume group: one that serves an attachment, so that its writes
/// save a round trip, and otherwise so that all nodes lead equally many. A node that is drained leads
/// nothing if another voter can. Every node comes to the same answer from the same state, and a
/// placement that changes leaves most of the other groups' leaders as they are.
pub fn preferred_leaders(spec: &ClusterSpec, serving: &[u32]) -> Vec<u32> {
    let stays = |node: &u32| spec.members.iter().any(|m| m.node == *node && is_active(m));
    let candidates: Vec<Vec<u32>> = (0..spec.group_count)
        .map(|group| {
            let all = placement_of(spec, group).voters;
            let narrowed = |list: Vec<u32>, keep: &dyn Fn(&u32) -> bool| {
                let kept: Vec<u32> = list.iter().copied().filter(|node| keep(node)).collect();
                if kept.is_empty() { list } else { kept }
            };
            narrowed(narrowed(all, &stays), &|node| serving.contains(node))
        })
        .collect();
    // Voters are rotated from group to group at bootstrap, and keep their places since.
    let mut leaders: Vec<u32> = candidates.iter().map(|nodes| nodes[0]).collect();
    let mut leads: BTreeMap<u32, usize> = candidates.iter().flatten().map(|n| (*n, 0)).collect();
    leaders.iter().for_each(|leader| *leads.entry(*leader).or_default() += 1);
    // Each step makes the sum of the squares smaller, so this ends.
    while let Some((group, to)) = candidates.iter().enumerate().find_map(|(group, nodes)| {
        let from = leads[&leaders[group]];
        nodes.iter().find(|node| leads[*node] + 1 < from).map(|node| (group, *node))
    }) {
        *leads.entry(leaders[group]).or_default() -= 1;
        *leads.entry(to).or_default() += 1;
        leaders[group] = to;
    }
    leaders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: u32) -> Vec<Member> {
        (1..=count)
            .map(|node| Member {
                node,
                name: format!("node-{node}"),
                grpc_address: format!("127.0.0.1:710{node}"),
                data_address: format!("127.0.0.1:720{node}"),
                ..Member::default()
            })
            .collect()
    }

    #[test]
    fn replicas_are_spread_evenly() {
        for count in 1..=9 {
            let spec = plan(7, members(count), 16).expect("a good list");
            validate(&spec).expect("what is planned is valid");
            let mut held = vec![0usize; count as usize + 1];
            for group in &spec.groups {
                assert_eq!(group.nodes.len(), REPLICAS.min(count as usize));
                group.nodes.iter().for_each(|n| held[*n as usize] += 1);
            }
            let (least, most) = (held[1..].iter().min(), held[1..].iter().max());
            assert!(most.unwrap() - least.unwrap() <= 3, "{held:?}");
            let metadata = founders_of(&spec, METADATA_GROUP).len();
            assert_eq!(metadata, METADATA_VOTERS_MAX.min(count as usize));
        }
    }

    #[test]
    fn leaders_are_spread_and_drawn_to_attachments() {
        let mut spec = plan(7, members(3), 16).expect("a good list");
        let leads_of = |leaders: &[u32]| {
            (1..=3).map(|node| leaders.iter().filter(|l| **l == node).count()).collect::<Vec<_>>()
        };
        let even = leads_of(&preferred_leaders(&spec, &[]));
        assert!(even.iter().all(|n| (5..=6).contains(n)), "{even:?}");
        assert_eq!(leads_of(&preferred_leaders(&spec, &[2])), [0, 16, 0]);
        assert_eq!(leads_of(&preferred_leaders(&spec, &[1, 3])), [8, 0, 8]);
        spec.members[0].draining = true;
        assert_eq!(leads_of(&preferred_leaders(&spec, &[])), [0, 8, 8]);
        assert_eq!(leads_of(&preferred_leaders(&spec, &[1])), [0, 8, 8], "it leads no more");
        spec.members.iter_mut().for_each(|member| member.draining = true);
        assert_eq!(leads_of(&preferred_leaders(&spec, &[])).iter().sum::<usize>(), 16);
    }

    #[test]
    fn bad_lists_are_refused_by_name() {
        let mut same = members(3);
        same[2].name = "node-1".to_owned();
        assert!(plan(7, same, 16).unwrap_err().contains("not different nodes"));
        assert!(plan(7, members(65), 16).unwrap_err().contains("1 to 64"));
        assert!(plan(7, members(3), 12).unwrap_err().contains("power of two"));
        let mut spec = plan(7, members(3), 16).expect("a good list");
        placement_mut(&mut spec, 0).expect("a group").voters[0] = 9;
        assert!(validate(&spec).unwrap_err().contains("not members"));
        placement_mut(&mut spec, 0).expect("a group").voters[0] = 1;
        validate(&spec).expect("mended");
        spec.placements.pop();
        assert!(validate(&spec).unwrap_err().contains("incomplete"));
    }

    #[test]
    fn a_member_with_the_address_of_another_keeps_nobody_from_starting() {
        let mut spec = plan(7, members(3), 16).expect("a good list");
        spec.members[2].data_address = spec.members[1].data_address.clone();
        spec.members[2].grpc_address = spec.members[1].grpc_address.clone();
        spec.members[2].name = spec.members[1].name.clone();
        validate(&spec).expect("the members are still three");
        spec.members[2].node = spec.members[1].node;
        assert!(validate(&spec).unwrap_err().contains("one number"));
    }

    #[test]
    fn groups_are_with_their_founders_until_one_moves() {
        let mut spec = plan(7, members(4), 16).expect("a good list");
        let before: Vec<Placement> = (0..16).map(|group| placement_of(&spec, group)).collect();
        assert_eq!(before[5].voters, founders_of(&spec, 5));
        assert!(placement_mut(&mut spec, 16).is_none());
        assert_eq!(placement_of(&spec, 16), Placement::default());
        assert_eq!(spec.placements, before);
        // A founder may go once nothing is placed on it.
        spec.members.remove(0);
        assert!(validate(&spec).is_err());
        for placement in spec.placements.iter_mut().chain(&mut spec.metadata_placement) {
            placement.voters = vec![2, 3, 4];
        }
        validate(&spec).expect("founders need not be members");
    }
}
