//! What is to be stated so that the groups come to be where the records say: a function of the records and of
//! what the nodes report, and of nothing else. It is asked again and again until nothing is left; see
//! [`steps`].

use basalt_api::v1::state_replica_request::What;
use basalt_api::v1::{ClusterSpec, JoinGroup, Members, Placement, Replica};
use basalt_meta::{SettleGroup, layout};
use basalt_wire::ids::GroupId;
use std::collections::{BTreeMap, BTreeSet};

/// The replicas of each node that reported and works, by node. A node that is away is absent: that it has no
/// replica is not known.
pub(super) type Reports = BTreeMap<u32, Vec<Replica>>;

/// What is to be done for one group, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct GroupSteps {
    /// The group.
    pub group: u32,
    /// Learners that are to begin their replica, or to confirm that they remember it. Without this what follows
    /// is not done: a voter that forgot its replica at a restart would be lost.
    pub joins: Vec<(u32, JoinGroup)>,
    /// Who the members are to be, and the leader that is told.
    pub configure: Option<(u32, Members)>,
    /// The move is over: all that vote know it for good.
    pub settle: Option<SettleGroup>,
    /// Nodes whose replica is to end.
    pub retire: Vec<u32>,
}

impl GroupSteps {
    fn is_nothing(&self) -> bool {
        *self == GroupSteps { group: self.group, ..GroupSteps::default() }
    }
}

/// One statement to one node.
pub(super) type Statement = (u32, u32, What);

impl GroupSteps {
    /// What tells progress: not how far the leader has come meanwhile, which it does by itself.
    pub fn shape(&self) -> impl PartialEq + use<> {
        let joins: Vec<u32> = self.joins.iter().map(|(node, _)| *node).collect();
        (self.group, joins, self.configure.clone(), self.settle.clone(), self.retire.clone())
    }

    /// The learners' part, as statements.
    pub fn join_statements(&self) -> Vec<Statement> {
        let state = |(node, join): &(u32, JoinGroup)| (*node, self.group, What::Join(join.clone()));
        self.joins.iter().map(state).collect()
    }

    /// The leader's part and the end of replicas, as statements.
    pub fn other_statements(&self) -> Vec<Statement> {
        let leader = self.configure.iter();
        let leader = leader.map(|(node, to)| (*node, self.group, What::Configure(to.clone())));
        let retire = self.retire.iter();
        let retire = retire.map(|node| (*node, self.group, What::Retire(Default::default())));
        leader.chain(retire).collect()
    }
}

/// What is to be done now, group by group. Groups in which nothing is to be done are left out, and so are those
/// whose leader does not report or is within a change: whoever asks again later hears of them.
pub(super) fn steps(spec: &ClusterSpec, reports: &Reports) -> Vec<GroupSteps> {
    let numbers = std::iter::once(GroupId::METADATA.0).chain(0..spec.groups.len() as u32);
    let all = numbers.map(|number| GroupView::new(spec, number, reports).steps());
    all.filter(|steps| !steps.is_nothing()).collect()
}

/// Members that leave and that no placement names any more.
pub(super) fn departed(spec: &ClusterSpec) -> Vec<u32> {
    let groups = std::iter::once(GroupId::METADATA.0).chain(0..spec.groups.len() as u32);
    let placements: Vec<Placement> = groups.map(|g| layout::placement_of(spec, g)).collect();
    let is_named = |node: u32| placements.iter().any(|placement| layout::names(placement, node));
    let leaving = spec.members.iter().filter(|member| member.leaving);
    leaving.map(|member| member.node).filter(|node| !is_named(*node)).collect()
}

/// The name of a group in reports.
fn name_of(group: u32) -> String {
    match GroupId(group) {
        GroupId::METADATA => crate::status::METADATA.to_owned(),
        GroupId(number) => number.to_string(),
    }
}

fn set(nodes: &[u32]) -> BTreeSet<u32> {
    nodes.iter().copied().collect()
}

/// Voters and learners.
type Roles = (BTreeSet<u32>, BTreeSet<u32>);

/// Whether a replica knows exactly these members, and for good.
fn knows(replica: &Replica, roles: &Roles) -> bool {
    replica.members_durable && replica.outgoing.is_empty() && roles_of(replica) == *roles
}

fn roles_of(replica: &Replica) -> Roles {
    (set(&replica.voters), set(&replica.learners))
}

/// One group: where it is to be and where it is.
struct GroupView<'a> {
    group: u32,
    founders: &'a [u32],
    moving: bool,
    /// The members that it is to have.
    target: Roles,
    /// Those who reported.
    reports: &'a Reports,
    /// The replicas that there are.
    replicas: BTreeMap<u32, &'a Replica>,
}

impl<'a> GroupView<'a> {
    fn new(spec: &'a ClusterSpec, group: u32, reports: &'a Reports) -> GroupView<'a> {
        let placement = layout::placement_of(spec, group);
        let name = name_of(group);
        let find = |replicas: &'a Vec<Replica>| replicas.iter().find(|r| r.group == name);
        let replicas = reports.iter().filter_map(|(node, all)| Some((*node, find(all)?)));
        GroupView {
            group,
            founders: layout::founders_of(spec, group),
            moving: placement.moving,
            target: (set(&placement.voters), set(&placement.learners)),
            reports,
            replicas: replicas.collect(),
        }
    }

    /// The leader, unless a voter has seen a later term: then it leads no more, or not for long.
    fn leading(&self) -> Option<(u32, &'a Replica)> {
        let leaders = self.replicas.iter().filter(|(_, replica)| replica.role == "leader");
        let (node, leader) = leaders.max_by_key(|(_, replica)| replica.term)?;
        let voters = leader.voters.iter().chain(&leader.outgoing).chain(&self.target.0);
        let mut seen = voters.filter_map(|voter| self.replicas.get(voter));
        seen.all(|replica| replica.term <= leader.term).then_some((*node, *leader))
    }

    fn steps(&self) -> GroupSteps {
        let mut steps = GroupSteps { group: self.group, ..GroupSteps::default() };
        let Some((leader, seen)) = self.leading() else { return steps };
        if !seen.outgoing.is_empty() {
            return steps;
        }
        let now = roles_of(seen);
        if now != self.target {
            steps.joins = self.joins(seen, true);
            steps.configure = self.configure(&now).map(|members| (leader, members));
        } else if self.moving {
            steps.joins = self.joins(seen, true);
            steps.settle = self.all_know().then(|| self.settled());
        } else {
            steps.joins = self.joins(seen, false);
            if knows(seen, &self.target) {
                steps.retire = self.strays();
            }
        }
        steps
    }

    fn is_wanted(&self, node: u32) -> bool {
        self.target.0.contains(&node) || self.target.1.contains(&node)
    }

    /// The learners that report and are to stay: those without a replica, or all of them.
    fn joins(&self, leader: &Replica, all: bool) -> Vec<(u32, JoinGroup)> {
        let reported = leader.learners.iter().filter(|node| self.reports.contains_key(node));
        let wanted = reported.filter(|node| self.is_wanted(**node));
        let due = wanted.filter(|node| all || !self.replicas.contains_key(node));
        let join = JoinGroup {
            founders: self.founders.to_vec(),
            term: leader.term,
            index: leader.applied,
        };
        due.map(|node| (*node, join.clone())).collect()
    }

    /// The next members on the way. New voters are learners first, and so are voters that are to have no
    /// say: they leave and come back.
    fn configure(&self, (voters, learners): &Roles) -> Option<Members> {
        let (to_vote, to_learn) = &self.target;
        let fresh: BTreeSet<u32> = to_vote.difference(voters).copied().collect();
        let may_learn = |of: &BTreeSet<u32>| to_learn.difference(of).copied().collect();
        let (next, next_learners): Roles = if !fresh.is_subset(learners) {
            let kept: BTreeSet<u32> = may_learn(voters);
            (voters.clone(), &kept | &fresh)
        } else if voters != to_vote {
            // Whoever is to vote must have said that it remembers its replica.
            if !fresh.iter().all(|node| self.replicas.contains_key(node)) {
                return None;
            }
            (to_vote.clone(), may_learn(voters))
        } else {
            (to_vote.clone(), to_learn.clone())
        };
        let list = |nodes: BTreeSet<u32>| nodes.into_iter().collect();
        Some(Members { voters: list(next), learners: list(next_learners) })
    }

    /// Whether all who vote know, for good, that they are the only ones, and learners that are there have begun.
    fn all_know(&self) -> bool {
        let (voters, learners) = &self.target;
        let of = |node: &u32| self.replicas.get(node);
        voters.iter().all(|node| of(node).is_some_and(|replica| knows(replica, &self.target)))
            && learners.iter().all(|node| of(node).is_some() || !self.reports.contains_key(node))
    }

    fn settled(&self) -> SettleGroup {
        let list = |nodes: &BTreeSet<u32>| nodes.iter().copied().collect();
        let (voters, learners) = (list(&self.target.0), list(&self.target.1));
        SettleGroup { group: self.group, voters, learners }
    }

    /// Those that hold the group, which is at rest, and should not.
    fn strays(&self) -> Vec<u32> {
        self.replicas.keys().copied().filter(|node| !self.is_wanted(*node)).collect()
    }
}
