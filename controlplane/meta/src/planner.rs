//! Which groups should move where: a pure function of the cluster's record and of what nodes report.
//!
//! It looks at where groups are or are moving to, never at what was planned before, so that whoever
//! leads the metadata group comes to moves that go on from there. Each move exchanges one voter of a
//! group. Only groups at rest are moved, and such as are on their way to a node that is to be
//! empty by now: it may be lost, and then they would never arrive.

mod level;

use crate::layout::{self, METADATA_GROUP, METADATA_VOTERS_MAX, REPLICAS};
use crate::members::is_outdated;
use basalt_api::meta::v1::MoveGroup;
use basalt_api::v1::{ClusterSpec, Placement};
use std::collections::{BTreeMap, BTreeSet};

/// What nodes report, as far as moves depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Nodes that work and hold the records.
    pub up: BTreeSet<u32>,
    /// Bytes that one replica of each volume group refers to, by group. What nobody tells is not known.
    pub bytes: BTreeMap<u32, u64>,
}

impl Outlook {
    /// Takes all members to work, and knows of no bytes.
    pub fn hopeful(spec: &ClusterSpec) -> Outlook {
        let up = spec.members.iter().map(|member| member.node).collect();
        Outlook { up, bytes: BTreeMap::new() }
    }

    /// Whether a group that moves waits for a node that is away: all who are to vote have to say that they
    /// know it.
    fn waits(&self, placement: &Placement) -> bool {
        placement.moving && !placement.voters.iter().all(|node| self.up.contains(node))
    }
}

/// The next moves. At most `in_flight_max` volume groups move at a time, with those that do already and
/// wait for nobody; the metadata group moves besides them, and before any other begins: a node gets volume
/// groups when it has the records.
///
/// There are none when no volume group is on a node that is to be empty, each has as many voters as it
/// can up to [`REPLICAS`], nodes hold equally many replicas but for one, and about equally many bytes as far
/// as whole groups allow, and every node that does not leave holds the metadata group. Nothing is moved to
/// a node that is away, nor a group that could not settle because one of its voters is.
pub fn next_moves(spec: &ClusterSpec, outlook: &Outlook, in_flight_max: usize) -> Vec<MoveGroup> {
    let metadata = layout::placement_of(spec, METADATA_GROUP);
    let outdated = metadata.moving && is_outdated(spec, &metadata, METADATA_GROUP);
    if metadata.moving && !outdated && !outlook.waits(&metadata) {
        return Vec::new();
    }
    if !metadata.moving || outdated {
        let target = metadata_target(spec, &metadata);
        if target.voters != metadata.voters || target.learners != metadata.learners {
            let Placement { voters, learners, .. } = target;
            return vec![MoveGroup { group: METADATA_GROUP, voters, learners }];
        }
        if metadata.moving {
            return Vec::new();
        }
    }
    let mut plan = Plan::new(spec, outlook);
    let mut moves = plan.redirections(in_flight_max);
    while plan.in_flight() < in_flight_max {
        let Some(next) = plan.repair().or_else(|| plan.level()) else { break };
        moves.push(next);
    }
    if plan.in_flight() + 2 <= in_flight_max {
        moves.extend(plan.exchange());
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

/// What a node holds, or is to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    replicas: usize,
    /// Of these as far as they are known.
    bytes: u64,
}

struct Plan<'a> {
    spec: &'a ClusterSpec,
    outlook: &'a Outlook,
    groups: Vec<Placement>,
    /// What each node holds that groups may come to, whether it is away or not.
    load: BTreeMap<u32, Load>,
}

impl Plan<'_> {
    fn new<'a>(spec: &'a ClusterSpec, outlook: &'a Outlook) -> Plan<'a> {
        let groups: Vec<_> =
            (0..spec.group_count).map(|group| layout::placement_of(spec, group)).collect();
        let active = spec.members.iter().filter(|m| layout::is_active(m));
        let load = active.map(|m| (m.node, Load::default())).collect();
        let mut plan = Plan { spec, outlook, groups, load };
        for at in 0..plan.groups.len() {
            plan.count(at, true);
        }
        plan
    }

    /// Adds a group to what its voters hold, or takes it away.
    fn count(&mut self, at: usize, add: bool) {
        let bytes = self.bytes(at);
        for node in &self.groups[at].voters {
            let Some(load) = self.load.get_mut(node) else { continue };
            if add {
                (load.replicas, load.bytes) = (load.replicas + 1, load.bytes + bytes);
            } else {
                (load.replicas, load.bytes) = (load.replicas - 1, load.bytes - bytes);
            }
        }
    }

    /// Bytes of one replica of a group; 0 if they are not known.
    fn bytes(&self, at: usize) -> u64 {
        self.outlook.bytes.get(&(at as u32)).copied().unwrap_or(0)
    }

    fn is_up(&self, node: u32) -> bool {
        self.outlook.up.contains(&node)
    }

    /// Groups that move and wait for nobody.
    fn in_flight(&self) -> usize {
        self.groups.iter().filter(|group| group.moving && !self.outlook.waits(group)).count()
    }

    /// Groups on their way to nodes that are to be empty go elsewhere; those that wait for a node meanwhile count as
    /// others that begin to move.
    fn redirections(&mut self, in_flight_max: usize) -> Vec<MoveGroup> {
        let outdated = |at: &usize| {
            let group = &self.groups[*at];
            group.moving && is_outdated(self.spec, group, *at as u32)
        };
        let outdated: Vec<usize> = (0..self.groups.len()).filter(outdated).collect();
        let mut moves = Vec::new();
        for at in outdated {
            if !self.outlook.waits(&self.groups[at]) || self.in_flight() < in_flight_max {
                moves.extend(self.mend(at));
            }
        }
        moves
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
        // It would not arrive before who is away comes back. One that leads to where it can not stay can
        // only gain.
        let arrives = voters.iter().all(|node| self.is_up(*node));
        (arrives || self.groups[at].moving).then(|| self.moved(at, voters))
    }

    /// The node with the fewest replicas that is there and not one of these, and of those the one with the
    /// fewest bytes.
    fn idlest(&self, voters: &[u32]) -> Option<u32> {
        let free =
            self.load.iter().filter(|(node, _)| !voters.contains(node) && self.is_up(**node));
        free.min_by_key(|(_, held)| (held.replicas, held.bytes)).map(|(node, _)| *node)
    }

    fn moved(&mut self, at: usize, voters: Vec<u32>) -> MoveGroup {
        self.count(at, false);
        self.groups[at].voters.clone_from(&voters);
        self.groups[at].moving = true;
        self.count(at, true);
        MoveGroup { group: at as u32, voters, learners: Vec::new() }
    }
}
