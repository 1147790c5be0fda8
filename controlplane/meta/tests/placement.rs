//! Where groups go: apart by failure domains, within what devices take, and never without a gain.

use basalt_api::v1::{ClusterSpec, FailureDomain, Location, Member, MemberState, Placement};
use basalt_meta::layout::{self, METADATA_GROUP, REPLICAS};
use basalt_meta::planner::{self, Move, Objective, Outlook, Why};
use proptest::prelude::*;
use std::collections::BTreeSet;

const IN_FLIGHT: usize = 4;
const MIB: u64 = 1 << 20;

/// Nodes in zones, by the zone of each.
fn cluster(zones: &[&str], groups: u32) -> (ClusterSpec, Outlook) {
    let member = |(node, zone): (u32, &&str)| Member {
        node,
        name: format!("n{node}"),
        grpc_address: format!("127.0.0.1:{}", 7000 + node),
        data_address: format!("127.0.0.1:{}", 8000 + node),
        location: (!zone.is_empty()).then(|| Location {
            region: "r".to_owned(),
            zone: (*zone).to_owned(),
            rack: String::new(),
        }),
        ..Member::default()
    };
    let members = (1..).zip(zones).map(member).collect();
    let spec = layout::plan(9, members, groups).expect("a good list");
    let spec = ClusterSpec { failure_domain: FailureDomain::Zone.into(), ..spec };
    let mut outlook = Outlook::hopeful(&spec);
    outlook.bytes = (0..groups).map(|group| (group, 16 * MIB)).collect();
    (spec, outlook)
}

/// Has a move begin, and arrive. Which nodes get a replica by it.
fn carry_out(spec: &mut ClusterSpec, planned: &Move) -> Vec<u32> {
    let (group, to) = (planned.to.group, &planned.to);
    let before = layout::placement_of(spec, group);
    assert!(!before.moving);
    let new = to.voters.iter().copied().filter(|node| !before.voters.contains(node));
    let new: Vec<u32> = new.collect();
    if group != METADATA_GROUP {
        assert!(new.len() <= 1, "{planned:?}");
        let all: BTreeSet<u32> = to.voters.iter().copied().collect();
        assert_eq!(all.len(), to.voters.len(), "never two replicas on one node");
    }
    let placement = Placement {
        voters: to.voters.clone(),
        learners: to.learners.clone(),
        ..Placement::default()
    };
    if spec.placements.is_empty() {
        let all = (0..spec.group_count).map(|group| layout::placement_of(spec, group)).collect();
        spec.metadata_placement = Some(layout::placement_of(spec, METADATA_GROUP));
        spec.placements = all;
    }
    match group {
        METADATA_GROUP => spec.metadata_placement = Some(placement),
        number => spec.placements[number as usize] = placement,
    }
    new
}

/// Lets the planner work until it has nothing to do; checks that it gains with everything that it does. How many
/// replicas moved.
fn come_to_rest(spec: &mut ClusterSpec, outlook: &Outlook) -> Vec<Move> {
    let mut moved = Vec::new();
    for _ in 0..10_000 {
        let moves = planner::next(spec, outlook, IN_FLIGHT);
        if moves.is_empty() {
            assert!(planner::next(spec, outlook, usize::MAX / 2).is_empty());
            return moved;
        }
        let mut before = planner::objective(spec, outlook);
        for (at, planned) in moves.iter().enumerate() {
            let new = carry_out(spec, planned);
            if planned.to.group != METADATA_GROUP {
                for node in new {
                    let limit = outlook.capacity.get(&node).map_or(u64::MAX, |all| all / 100 * 85);
                    assert!(
                        held(spec, outlook, node) <= limit,
                        "node {node} is too full: {planned:?}"
                    );
                }
            }
            // Both moves of an exchange count together.
            let first = matches!(planned.why, Why::Bytes(_))
                && matches!(moves.get(at + 1), Some(Move { why: Why::Bytes(_), .. }));
            if planned.to.group != METADATA_GROUP && !first {
                let after = planner::objective(spec, outlook);
                assert!(better(after, before), "{planned:?}: {before:?} became {after:?}");
                before = after;
            }
        }
        moved.extend(moves.into_iter().filter(|m| m.to.group != METADATA_GROUP));
    }
    panic!("the planner does not come to an end: {spec:?}");
}

/// Whether the objective is less. Who leads follows from where groups are, and is no reason to move any.
fn better(after: Objective, before: Objective) -> bool {
    Objective { leaders: 0, ..after } < Objective { leaders: 0, ..before }
}

fn held(spec: &ClusterSpec, outlook: &Outlook, node: u32) -> u64 {
    let on = |group: &u32| layout::placement_of(spec, *group).voters.contains(&node);
    let groups = (0..spec.group_count).filter(on);
    groups.map(|group| outlook.bytes.get(&group).copied().unwrap_or(0)).sum()
}

fn zones_of(spec: &ClusterSpec, group: u32) -> usize {
    let zone = |node: &u32| {
        let member = spec.members.iter().find(|m| m.node == *node).expect("a member");
        member.location.clone().unwrap_or_default().zone
    };
    layout::placement_of(spec, group).voters.iter().map(zone).collect::<BTreeSet<_>>().len()
}

#[test]
fn replicas_come_to_be_in_zones_of_their_own() {
    let (mut spec, outlook) = cluster(&["a", "a", "b", "b", "c", "c"], 32);
    assert!((0..32).any(|group| zones_of(&spec, group) < 3), "they are not yet");
    let moved = come_to_rest(&mut spec, &outlook);
    assert!(moved.iter().any(|m| m.why == Why::Domains));
    assert!((0..32).all(|group| zones_of(&spec, group) == 3));
    let held: Vec<u64> = (1..=6).map(|node| held(&spec, &outlook, node) / (16 * MIB)).collect();
    assert_eq!(held.iter().sum::<u64>(), 96);
    assert!(held.iter().max().unwrap() - held.iter().min().unwrap() <= 1, "{held:?}");
    assert_eq!(planner::unmet(&spec, &outlook), Vec::<String>::new());
    // A domain that is larger comes later, and moves nothing back.
    spec.failure_domain = FailureDomain::Host.into();
    assert_eq!(come_to_rest(&mut spec, &outlook), vec![]);
}

#[test]
fn too_few_zones_and_silent_nodes_are_named() {
    let (mut spec, outlook) = cluster(&["a", "a", "b", "b"], 16);
    come_to_rest(&mut spec, &outlook);
    assert!((0..16).all(|group| zones_of(&spec, group) == 2), "as far apart as can be");
    let unmet = planner::unmet(&spec, &outlook);
    assert_eq!(unmet, ["16 groups have two replicas in one zone: there is no third zone"]);
    spec.members[3].location = None;
    let unmet = planner::unmet(&spec, &outlook);
    assert!(unmet[0].ends_with("'n4' does not say its zone (--location)"), "{unmet:?}");
    spec.failure_domain = FailureDomain::Rack.into();
    let unmet = planner::unmet(&spec, &outlook);
    assert!(unmet[0].contains("'n1', 'n2', 'n3', 'n4' does not say its rack"), "{unmet:?}");
}

#[test]
fn nodes_are_filled_to_a_limit_and_no_further() {
    let (mut spec, mut outlook) = cluster(&["a", "b", "c", "d"], 16);
    spec.members[1].draining = true;
    // What the three others would have to take: 16 groups each, and one has room for 13.
    outlook.capacity.insert(3, 13 * 16 * MIB * 100 / 85 + 100);
    come_to_rest(&mut spec, &outlook);
    assert_eq!(held(&spec, &outlook, 3), 13 * 16 * MIB);
    let left = (0..16).filter(|g| layout::placement_of(&spec, *g).voters.contains(&2)).count();
    assert_eq!(left, 3, "these stay, rather than to fill a device");
    // A device that holds more than it should gets rid of some.
    let (mut spec, mut outlook) = cluster(&["a", "b", "c", "d"], 16);
    outlook.capacity.insert(3, 6 * 16 * MIB * 100 / 85 + 100);
    let moved = come_to_rest(&mut spec, &outlook);
    assert_eq!(held(&spec, &outlook, 3), 6 * 16 * MIB);
    assert!(moved.iter().all(|m| m.why == Why::Overfull(3)), "{moved:?}");
    let all: Vec<u64> = [1, 2, 4].iter().map(|node| held(&spec, &outlook, *node)).collect();
    assert_eq!(all, [14 * 16 * MIB; 3]);
}

#[test]
fn a_lost_node_is_rebuilt_or_it_is_said_why_not() {
    let (mut spec, mut outlook) = cluster(&["a", "b", "c"], 8);
    let lose = |spec: &mut ClusterSpec, outlook: &mut Outlook, node: u32, evacuated: bool| {
        let member = spec.members.iter_mut().find(|m| m.node == node).expect("a member");
        (member.state, member.evacuated) = (MemberState::Down.into(), evacuated);
        outlook.up.remove(&node);
    };
    lose(&mut spec, &mut outlook, 2, false);
    assert!(come_to_rest(&mut spec, &outlook).is_empty());
    let unmet = planner::unmet(&spec, &outlook);
    assert_eq!(unmet, ["8 groups stay with two replicas while 'n2' is lost: no fourth node"]);
    // A fourth is there: it takes all.
    let (mut spec, mut outlook) = cluster(&["a", "b", "c", "d"], 8);
    lose(&mut spec, &mut outlook, 2, true);
    let before = (0..8).filter(|g| layout::placement_of(&spec, *g).voters.contains(&2)).count();
    let moved = come_to_rest(&mut spec, &outlook);
    assert_eq!(moved.len(), before);
    assert!(moved.iter().all(|m| m.why == Why::Leaves(2)));
    let metadata = layout::placement_of(&spec, METADATA_GROUP);
    assert!(!layout::names(&metadata, 2) && metadata.voters.len() == 3, "{metadata:?}");
    assert_eq!(planner::unmet(&spec, &outlook), Vec::<String>::new());
    // It comes back: it gets the records, and its share again.
    let member = spec.members.iter_mut().find(|m| m.node == 2).expect("a member");
    (member.state, member.evacuated) = (MemberState::Up.into(), false);
    outlook.up.insert(2);
    let moved = come_to_rest(&mut spec, &outlook);
    assert!(moved.iter().all(|m| matches!(m.why, Why::Replicas(_))), "{moved:?}");
    assert_eq!(moved.len(), 6);
    assert!(layout::names(&layout::placement_of(&spec, METADATA_GROUP), 2));
    // No room for what it held.
    lose(&mut spec, &mut outlook, 2, true);
    outlook.capacity = [1, 3, 4].map(|node| (node, 6 * 16 * MIB * 100 / 85 + 100)).into();
    come_to_rest(&mut spec, &outlook);
    let unmet = planner::unmet(&spec, &outlook);
    assert!(
        unmet[0].contains(
            "groups stay with two replicas while 'n2' is lost: no other node is there that has room"
        ),
        "{unmet:?}"
    );
}

#[test]
fn a_forecast_is_what_comes() {
    let (spec, outlook) = cluster(&["a", "a", "b", "b", "c", ""], 32);
    let forecast = planner::forecast(&spec, &outlook, IN_FLIGHT);
    let mut then = spec.clone();
    for (planned, before) in &forecast.moves {
        assert_eq!(layout::placement_of(&then, planned.to.group).voters, before.voters);
        carry_out(&mut then, planned);
    }
    assert!(planner::next(&then, &outlook, IN_FLIGHT).is_empty());
    let mut step_by_step = spec.clone();
    let moved = come_to_rest(&mut step_by_step, &outlook);
    let foreseen = forecast.moves.iter().map(|(planned, _)| planned.clone());
    let foreseen: Vec<Move> = foreseen.filter(|m| m.to.group != METADATA_GROUP).collect();
    assert_eq!(moved, foreseen);
    assert!(forecast.scores.0.shared_domains > 0 && forecast.scores.1.shared_domains == 0);
    assert_eq!(forecast.scores.1.misplaced, 0);
    assert!(planner::forecast(&then, &outlook, IN_FLIGHT).moves.is_empty());
}

#[derive(Clone, Debug)]
struct World {
    zones: Vec<u8>,
    domain: FailureDomain,
    groups: u32,
    bytes: Vec<u64>,
    capacity: Vec<Option<u64>>,
    draining: u8,
    lost: u8,
    away: u8,
}

fn any_world() -> impl Strategy<Value = World> {
    let domain = prop::sample::select(vec![
        FailureDomain::Host,
        FailureDomain::Zone,
        FailureDomain::Region,
        FailureDomain::Rack,
    ]);
    (1usize..9, prop::sample::select(vec![1u32, 8, 16, 32]), domain).prop_flat_map(
        |(n, g, domain)| {
            (
                prop::collection::vec(0u8..5, n),
                prop::collection::vec(0u64..64 * MIB, g as usize),
                prop::collection::vec(prop::option::weighted(0.4, 64 * MIB..4096 * MIB), n),
                (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>()),
            )
                .prop_map(move |(zones, bytes, capacity, (a, b, c, d))| {
                    let sparse = a & b;
                    let (draining, lost, away) = (sparse & c, sparse & d & !c, sparse & !c & !d);
                    World { zones, domain, groups: g, bytes, capacity, draining, lost, away }
                })
        },
    )
}

impl World {
    fn make(&self) -> (ClusterSpec, Outlook) {
        let names: Vec<&str> =
            self.zones.iter().map(|zone| ["a", "b", "c", "d", ""][*zone as usize]).collect();
        let (mut spec, mut outlook) = cluster(&names, self.groups);
        spec.failure_domain = self.domain.into();
        outlook.bytes = (0..).zip(self.bytes.iter().copied()).collect();
        for (member, at) in spec.members.iter_mut().zip(0..8) {
            let bit = |bits: u8| bits >> at & 1 == 1;
            member.draining = bit(self.draining);
            member.evacuated = bit(self.lost);
            if bit(self.lost) || bit(self.away) {
                member.state = MemberState::Down.into();
                outlook.up.remove(&member.node);
            }
            if let Some(bytes) = self.capacity[at as usize] {
                outlook.capacity.insert(member.node, bytes);
            }
        }
        (spec, outlook)
    }
}

proptest! {
    /// From any state the planner comes to rest, gains with each move, is idempotent there, keeps replicas on
    /// different
    /// nodes, and leaves no two of them in one domain that could be apart.
    #[test]
    fn the_planner_only_gains(world in any_world()) {
        let (mut spec, outlook) = world.make();
        let before = planner::objective(&spec, &outlook);
        let twin = planner::next(&spec.clone(), &outlook, IN_FLIGHT);
        prop_assert_eq!(&twin, &planner::next(&spec, &outlook, IN_FLIGHT), "deterministic");
        let moved = come_to_rest(&mut spec, &outlook);
        let after = planner::objective(&spec, &outlook);
        let gained = better(after, before) || (moved.is_empty() && after == before);
        prop_assert!(gained, "from {:?} to {:?}", before, after);
        prop_assert!(after.overfull <= before.overfull);
        let free = world.capacity.iter().all(Option::is_none);
        let there = spec.members.iter().filter(|m| layout::is_active(m)).count();
        let away = spec.members.iter().any(|m| layout::is_active(m) && !outlook.up.contains(&m.node));
        // A group that has lost its majority goes nowhere.
        let (start, _) = world.make();
        let lost = |node: &&u32| !outlook.up.contains(node);
        let whole = (0..spec.group_count).all(|group| {
            let voters = layout::placement_of(&start, group).voters;
            2 * voters.iter().filter(lost).count() < voters.len()
        });
        if free && !away && there > 0 && whole {
            prop_assert_eq!((after.misplaced, after.shared), (0, 0));
            for group in 0..spec.group_count {
                let voters = layout::placement_of(&spec, group).voters;
                prop_assert_eq!(voters.len(), REPLICAS.min(there));
            }
        }
        let forecast = planner::forecast(&spec, &outlook, IN_FLIGHT);
        prop_assert!(forecast.moves.is_empty());
    }
}
