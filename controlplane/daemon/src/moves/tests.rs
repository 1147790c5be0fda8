//! The plan, fed with records and reports as they come in a move: each step, and what goes wrong on the way.

use super::plan::{GroupSteps, Reports, departed, steps};
use basalt_api::v1::{ClusterSpec, JoinGroup, Member, Members, Placement, Replica, Voters};
use basalt_meta::SettleGroup;
use basalt_meta::layout::METADATA_GROUP;

/// A cluster of nodes with one volume group; it and the metadata group were founded by nodes 1 to 3.
fn cluster(nodes: u32) -> ClusterSpec {
    let founders = Voters { nodes: vec![1, 2, 3] };
    let placement = || Placement { voters: vec![1, 2, 3], ..Placement::default() };
    ClusterSpec {
        id: 7,
        group_count: 1,
        members: (1..=nodes).map(|node| Member { node, ..Member::default() }).collect(),
        groups: vec![founders.clone()],
        metadata: Some(founders),
        placements: vec![placement()],
        metadata_placement: Some(placement()),
        last_node: nodes,
        ..ClusterSpec::default()
    }
}

fn moving(voters: &[u32], learners: &[u32]) -> Placement {
    let (voters, learners) = (voters.to_vec(), learners.to_vec());
    Placement { voters, learners, former: Vec::new(), moving: true }
}

/// One group's replicas as they report, in a small world.
struct Reported {
    name: &'static str,
    reports: Reports,
}

impl Reported {
    /// These nodes report and have no replica yet.
    fn of(name: &'static str, nodes: &[u32]) -> Reported {
        let reports = nodes.iter().map(|node| (*node, Vec::new())).collect();
        Reported { name, reports }
    }

    /// Replicas that know these members for good; the first one leads.
    fn know(&mut self, nodes: &[u32], voters: &[u32], outgoing: &[u32], learners: &[u32]) {
        for (at, node) in nodes.iter().enumerate() {
            let replica = Replica {
                group: self.name.to_owned(),
                leader: nodes[0],
                term: 5,
                applied: 40,
                role: if at == 0 { "leader" } else { "follower" }.to_owned(),
                voters: voters.to_vec(),
                outgoing: outgoing.to_vec(),
                learners: learners.to_vec(),
                members_durable: true,
                ..Replica::default()
            };
            let held = self.reports.get_mut(node).expect("a node that reports");
            held.retain(|held| held.group != self.name);
            held.push(replica);
        }
    }

    fn replica(&mut self, node: u32) -> &mut Replica {
        let held = self.reports.get_mut(&node).expect("a node that reports");
        held.iter_mut().find(|replica| replica.group == self.name).expect("a replica")
    }

    /// What is to be done for the group.
    fn steps(&self, spec: &ClusterSpec) -> GroupSteps {
        let group = if self.name == "0" { 0 } else { METADATA_GROUP };
        let all = steps(spec, &self.reports);
        assert!(all.iter().all(|steps| steps.group == group), "{all:?}");
        all.into_iter().next().unwrap_or(GroupSteps { group, ..GroupSteps::default() })
    }
}

fn configure(leader: u32, voters: &[u32], learners: &[u32]) -> Option<(u32, Members)> {
    Some((leader, Members { voters: voters.to_vec(), learners: learners.to_vec() }))
}

fn join(node: u32) -> (u32, JoinGroup) {
    (node, JoinGroup { founders: vec![1, 2, 3], term: 5, index: 40 })
}

fn nothing(steps: &GroupSteps) -> bool {
    *steps == GroupSteps { group: steps.group, ..GroupSteps::default() }
}

/// Node 4 takes the place of node 1.
fn exchange() -> (ClusterSpec, Reported) {
    let mut spec = cluster(4);
    spec.placements[0] = moving(&[2, 3, 4], &[]);
    spec.placements[0].former = vec![1];
    let mut world = Reported::of("0", &[1, 2, 3, 4]);
    world.know(&[2, 1, 3], &[1, 2, 3], &[], &[]);
    (spec, world)
}

#[test]
fn a_move_takes_its_steps_one_after_the_other() {
    let (mut spec, mut world) = exchange();
    assert_eq!(world.steps(&spec).configure, configure(2, &[1, 2, 3], &[4]));
    assert!(world.steps(&spec).joins.is_empty(), "it is no learner yet");

    // It is a learner: it begins, with what the leader had reached by then, and does not vote before.
    world.know(&[2, 1, 3], &[1, 2, 3], &[], &[4]);
    assert_eq!(world.steps(&spec).joins, [join(4)]);
    assert_eq!(world.steps(&spec).configure, None);

    // It has a replica: it votes once it said again that it remembers it.
    world.know(&[2, 1, 3, 4], &[1, 2, 3], &[], &[4]);
    assert_eq!(world.steps(&spec).joins, [join(4)]);
    assert_eq!(world.steps(&spec).configure, configure(2, &[2, 3, 4], &[]));
    assert!(world.steps(&spec).retire.is_empty());

    // Within the change nothing is said.
    world.know(&[2, 1, 3, 4], &[2, 3, 4], &[1, 2, 3], &[]);
    assert!(nothing(&world.steps(&spec)));

    // One of the new voters does not know the end yet, or might forget it.
    world.know(&[2, 4], &[2, 3, 4], &[], &[]);
    assert!(nothing(&world.steps(&spec)), "node 3 is within the change still");
    world.know(&[2, 3, 4], &[2, 3, 4], &[], &[]);
    world.replica(3).members_durable = false;
    assert!(nothing(&world.steps(&spec)));
    world.replica(3).members_durable = true;
    let settle = SettleGroup { group: 0, voters: vec![2, 3, 4], learners: vec![] };
    assert_eq!(world.steps(&spec).settle, Some(settle));
    assert!(world.steps(&spec).retire.is_empty(), "not before it is written down");

    // It is at rest: what node 1 has goes.
    spec.placements[0] = Placement { voters: vec![2, 3, 4], ..Placement::default() };
    assert_eq!(world.steps(&spec).retire, [1]);
    world.reports.insert(1, Vec::new());
    assert!(nothing(&world.steps(&spec)));
}

#[test]
fn the_leader_of_the_latest_term_is_told() {
    let (spec, mut world) = exchange();
    world.know(&[2, 1, 3], &[1, 2, 3], &[], &[4]);
    // Node 3 was elected in between and knows less of the change; node 2 has not heard of it.
    world.know(&[3], &[1, 2, 3], &[], &[]);
    world.replica(3).term = 6;
    assert_eq!(world.steps(&spec).configure, configure(3, &[1, 2, 3], &[4]));
    // A leader is being elected: nobody is told, above all not the one of before.
    world.replica(3).role = "candidate".to_owned();
    assert!(nothing(&world.steps(&spec)));
    // One that is no member has nothing to say in this.
    world.replica(3).term = 5;
    world.know(&[4], &[1, 2, 3], &[], &[4]);
    world.replica(4).role = "candidate".to_owned();
    let mut at_rest = cluster(4);
    world.replica(4).term = 9;
    world.know(&[2, 1, 3], &[1, 2, 3], &[], &[]);
    assert_eq!(world.steps(&at_rest).retire, [4]);
    // Not while the members are others than the records say.
    world.know(&[2, 1, 3], &[1, 2, 3], &[], &[4]);
    world.replica(4).term = 5;
    assert!(world.steps(&at_rest).retire.is_empty());
    assert_eq!(world.steps(&at_rest).configure, configure(2, &[1, 2, 3], &[]));
    at_rest.placements[0].moving = true;
    assert!(world.steps(&at_rest).retire.is_empty());
}

#[test]
fn an_old_node_that_is_dead_holds_nothing_up() {
    let (mut spec, mut world) = exchange();
    world.reports.remove(&1);
    world.know(&[2, 3, 4], &[1, 2, 3], &[], &[4]);
    assert_eq!(world.steps(&spec).configure, configure(2, &[2, 3, 4], &[]));
    world.know(&[2, 3, 4], &[2, 3, 4], &[], &[]);
    assert!(world.steps(&spec).settle.is_some());
    spec.placements[0] = Placement { voters: vec![2, 3, 4], ..Placement::default() };
    assert!(nothing(&world.steps(&spec)));
    // It comes back, with what it had, and without a leader of its own: its replica goes.
    world.reports.insert(1, Vec::new());
    world.know(&[1], &[1, 2, 3], &[], &[]);
    world.replica(1).role = "follower".to_owned();
    assert_eq!(world.steps(&spec).retire, [1]);
}

#[test]
fn a_new_node_that_is_dead_gets_no_vote() {
    let (spec, mut world) = exchange();
    world.reports.remove(&4);
    assert_eq!(world.steps(&spec).configure, configure(2, &[1, 2, 3], &[4]));
    world.know(&[2, 1, 3], &[1, 2, 3], &[], &[4]);
    assert!(nothing(&world.steps(&spec)));
    // It is lost, and node 5 comes in its place.
    let mut spec = ClusterSpec { members: cluster(5).members, ..spec };
    spec.placements[0] = moving(&[2, 3, 5], &[]);
    spec.placements[0].former = vec![1, 4];
    world.reports.insert(5, Vec::new());
    assert_eq!(world.steps(&spec).configure, configure(2, &[1, 2, 3], &[5]));
    // It was lost after it had got its vote: the others are still enough.
    world.know(&[2, 3], &[2, 3, 4], &[], &[5]);
    world.know(&[5], &[2, 3, 4], &[], &[5]);
    world.replica(5).role = "follower".to_owned();
    assert_eq!(world.steps(&spec).configure, configure(2, &[2, 3, 5], &[]));
}

#[test]
fn every_node_learns_the_records() {
    let mut spec = cluster(6);
    spec.metadata_placement = Some(moving(&[1, 2, 3, 4, 5], &[6]));
    let mut world = Reported::of("metadata", &[1, 2, 3, 4, 5, 6]);
    // The volume group is at rest and nobody leads it: that says nothing.
    world.know(&[1, 2, 3], &[1, 2, 3], &[], &[]);
    assert_eq!(world.steps(&spec).configure, configure(1, &[1, 2, 3], &[4, 5, 6]));
    world.know(&[1, 2, 3], &[1, 2, 3], &[], &[4, 5, 6]);
    assert_eq!(world.steps(&spec).joins, [join(4), join(5), join(6)]);
    world.know(&[1, 2, 3, 4, 5], &[1, 2, 3], &[], &[4, 5, 6]);
    assert_eq!(world.steps(&spec).configure, configure(1, &[1, 2, 3, 4, 5], &[6]));
    // All voters know; a learner that is there and has not begun is waited for, one that is away is not.
    world.know(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5], &[], &[6]);
    assert_eq!(world.steps(&spec).joins, [join(6)]);
    assert_eq!(world.steps(&spec).settle, None);
    world.reports.remove(&6);
    assert!(world.steps(&spec).settle.is_some());
    // It comes when all is at rest, and begins then.
    spec.metadata_placement = Some(Placement { moving: false, ..moving(&[1, 2, 3, 4, 5], &[6]) });
    assert!(nothing(&world.steps(&spec)));
    world.reports.insert(6, Vec::new());
    assert_eq!(world.steps(&spec).joins, [join(6)]);
}

#[test]
fn a_voter_that_is_to_have_no_say_leaves_and_comes_back() {
    let mut spec = cluster(3);
    spec.metadata_placement = Some(moving(&[1, 2], &[3]));
    let mut world = Reported::of("metadata", &[1, 2, 3]);
    world.know(&[1, 2, 3], &[1, 2, 3], &[], &[]);
    assert_eq!(world.steps(&spec).configure, configure(1, &[1, 2], &[]));
    world.know(&[1, 2], &[1, 2], &[], &[]);
    assert_eq!(world.steps(&spec).configure, configure(1, &[1, 2], &[3]));
    assert!(world.steps(&spec).retire.is_empty(), "it holds it all the while");
    world.know(&[1, 2, 3], &[1, 2], &[], &[3]);
    assert!(world.steps(&spec).settle.is_some());
}

#[test]
fn a_member_that_leaves_is_gone_when_no_placement_names_it() {
    let (mut spec, _) = exchange();
    assert!(departed(&spec).is_empty());
    spec.members[0].leaving = true;
    assert!(departed(&spec).is_empty(), "a former voter, and one of the records");
    spec.metadata_placement = Some(Placement { voters: vec![2, 3], ..Placement::default() });
    assert!(departed(&spec).is_empty());
    spec.placements[0].former.clear();
    assert_eq!(departed(&spec), [1]);
}
