//! Which nodes hold which group, decided once, at bootstrap.

use basalt_api::v1::{ClusterSpec, Member, Voters};

/// Voters of each group, if there are as many nodes.
pub const REPLICAS: usize = 3;
/// The most nodes of a cluster: every node holds the metadata group, and more voters would only
/// make it slower.
pub const NODES_MAX: usize = 5;
/// The most volume groups of a pool.
pub const GROUPS_MAX: u32 = 1024;
/// Volume groups, if the operator does not say.
pub const GROUPS_DEFAULT: u32 = 16;

/// The layout of a new cluster: every node holds the metadata group; each volume group has
/// [`REPLICAS`] voters, the next group's rotated by one node.
///
/// # Errors
/// Says what is wrong with the list of nodes or the number of groups.
pub fn plan(id: u64, members: Vec<Member>, group_count: u32) -> Result<ClusterSpec, String> {
    if members.is_empty() || members.len() > NODES_MAX {
        return Err(format!("a cluster has 1 to {NODES_MAX} nodes, not {}", members.len()));
    }
    if !group_count.is_power_of_two() || group_count > GROUPS_MAX {
        return Err(format!(
            "the number of groups must be a power of two from 1 to {GROUPS_MAX}, not {group_count}"
        ));
    }
    if let Some((one, other)) = twins(&members) {
        return Err(format!(
            "{} and {} are not different nodes: each needs a name and addresses of its own",
            one.grpc_address, other.grpc_address
        ));
    }
    let nodes: Vec<u32> = members.iter().map(|m| m.node).collect();
    let groups = (0..group_count as usize).map(|group| voters_of(&nodes, group)).collect();
    let metadata = Some(Voters { nodes });
    Ok(ClusterSpec { id, group_count, members, groups, metadata, ..ClusterSpec::default() })
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

/// Whether a spec that came from a peer or from disk can be used. Addresses may be the same: members
/// change theirs one by one, and one that has another's must not keep the others from starting.
///
/// # Errors
/// Says what is wrong with it.
pub fn validate(spec: &ClusterSpec) -> Result<(), String> {
    let apart = spec.members.iter().map(|member| Member {
        grpc_address: format!("grpc {}", member.node),
        data_address: format!("data {}", member.node),
        ..member.clone()
    });
    plan(spec.id, apart.collect(), spec.group_count)?;
    let known = |voters: &Voters| {
        !voters.nodes.is_empty()
            && voters.nodes.iter().all(|node| spec.members.iter().any(|m| m.node == *node))
    };
    let metadata = spec.metadata.as_ref().is_some_and(known);
    if spec.id == 0 || !metadata || spec.groups.len() != spec.group_count as usize {
        return Err("the cluster's layout is incomplete".to_owned());
    }
    if !spec.groups.iter().all(known) {
        return Err("the cluster's layout names voters that are not members".to_owned());
    }
    Ok(())
}

/// The voter that should lead a group: one that serves an attachment, so that its writes save a
/// round trip, else the group's own in rotation. Every node comes to the same answer from the same
/// state.
pub fn preferred_leader(group: u32, voters: &[u32], serving: &[u32]) -> Option<u32> {
    let drawn: Vec<u32> = voters.iter().copied().filter(|v| serving.contains(v)).collect();
    let from = if drawn.is_empty() { voters } else { &drawn };
    if from.is_empty() {
        return None;
    }
    // Voters are rotated from group to group already, so the first is the balanced choice.
    let at = if drawn.is_empty() { 0 } else { group as usize % drawn.len() };
    Some(from[at])
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
                nbd_address: String::new(),
            })
            .collect()
    }

    #[test]
    fn replicas_are_spread_evenly() {
        for count in 1..=NODES_MAX as u32 {
            let spec = plan(7, members(count), 16).expect("a good list");
            validate(&spec).expect("what is planned is valid");
            let mut held = vec![0usize; count as usize + 1];
            for group in &spec.groups {
                assert_eq!(group.nodes.len(), REPLICAS.min(count as usize));
                group.nodes.iter().for_each(|n| held[*n as usize] += 1);
            }
            let (least, most) = (held[1..].iter().min(), held[1..].iter().max());
            assert!(most.unwrap() - least.unwrap() <= 3, "{held:?}");
        }
    }

    #[test]
    fn leaders_are_spread_and_drawn_to_attachments() {
        let spec = plan(7, members(3), 16).expect("a good list");
        let mut leads = [0; 4];
        for (group, voters) in spec.groups.iter().enumerate() {
            let leader = preferred_leader(group as u32, &voters.nodes, &[]).expect("voters");
            leads[leader as usize] += 1;
            assert_eq!(preferred_leader(group as u32, &voters.nodes, &[2]), Some(2));
        }
        assert!(leads[1..].iter().all(|n| (5..=6).contains(n)), "{leads:?}");
    }

    #[test]
    fn bad_lists_are_refused_by_name() {
        let mut same = members(3);
        same[2].name = "node-1".to_owned();
        assert!(plan(7, same, 16).unwrap_err().contains("not different nodes"));
        assert!(plan(7, members(6), 16).unwrap_err().contains("1 to 5"));
        assert!(plan(7, members(3), 12).unwrap_err().contains("power of two"));
        let mut spec = plan(7, members(3), 16).expect("a good list");
        spec.groups[3].nodes[0] = 9;
        assert!(validate(&spec).is_err());
    }

    #[test]
    fn a_member_with_the_address_of_another_keeps_nobody_from_starting() {
        let mut spec = plan(7, members(3), 16).expect("a good list");
        spec.members[2].data_address = spec.members[1].data_address.clone();
        spec.members[2].grpc_address = spec.members[1].grpc_address.clone();
        validate(&spec).expect("the members are still three");
        spec.members[2].name = spec.members[1].name.clone();
        assert!(validate(&spec).is_err());
    }
}
