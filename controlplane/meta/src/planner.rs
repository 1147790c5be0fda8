//! Which groups should move where: a pure function of the cluster's record and of what nodes report.
//!
//! It looks at where groups are or are moving to, never at what was planned before, so that whoever
//! leads the metadata group comes to moves that go on from there. Each move exchanges one voter of a
//! group. Only groups at rest are moved, and such as are on their way to a node that is to be
//! empty by now: it may be lost, and then they would never arrive.

mod domains;
mod forecast;
mod level;
mod objective;

pub use domains::same_domain;
pub use forecast::{Forecast, forecast, unmet};
pub use objective::{Objective, objective};

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
    /// Bytes of data that the device of each node takes, by node. One that does not tell takes anything.
    pub capacity: BTreeMap<u32, u64>,
}

/// Hundredths of what a device takes to which groups are placed on it: the rest is for what is written to them.
const FULL_PERCENT: u64 = 85;

/// Why a group moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The metadata group is held by every node.
    Records,
    /// It has fewer replicas than it can have.
    Missing,
    /// This node is to be empty: drained, leaving, or down for long.
    Leaves(u32),
    /// Two of its replicas share a failure domain.
    Domains,
    /// The device of this node holds more than it should.
    Overfull(u32),
    /// This node holds more replicas than another one.
    Replicas(u32),
    /// This node holds more bytes than another one.
    Bytes(u32),
}

/// A move, and its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// What is to be.
    pub to: MoveGroup,
    /// Why.
    pub why: Why,
}

impl Outlook {
    /// Takes all members to work, and knows of no bytes.
    pub fn hopeful(spec: &ClusterSpec) -> Outlook {
        let up = spec.members.iter().map(|member| member.node).collect();
        Outlook { up, ..Outlook::default() }
    }

    /// Whether a group that moves waits for a node that is away: all who are to vote have to say that they
    /// know it.
    fn waits(&self, placement: &Placement) -> bool {
        placement.moving && !placement.voters.iter().all(|node| self.up.contains(node))
    }
}

/// The next moves, without their reasons; see [`next`].
pub fn next_moves(spec: &ClusterSpec, outlook: &Outlook, in_flight_max: usize) -> Vec<MoveGroup> {
    next(spec, outlook, in_flight_max).into_iter().map(|planned| planned.to).collect()
}

/// The next moves. At most `in_flight_max` volume groups move at a time, with those that do already and
/// wait for nobody; the metadata group moves besides them, and before any other begins: a node gets volume
/// groups when it has the records.
///
/// Each makes the [`Objective`] less; an exchange does so with both of its moves. There are none when no volume group
/// is on a node that is to be empty, each has as many voters as it can up to [`REPLICAS`], in as many failure
/// domains as there are, no device is overfull that need not be, nodes hold equally many replicas but for one, and
/// about equally many bytes, as far as whole groups and the failure domains allow, and every node that does
/// not leave holds the metadata group. Nothing is moved to a node that is away or has no room, nor a group that could
/// not settle because one of its voters is away.
pub fn next(spec: &ClusterSpec, outlook: &Outlook, in_flight_max: usize) -> Vec<Move> {
    let metadata = layout::placement_of(spec, METADATA_GROUP);
    let outdated = metadata.moving && is_outdated(spec, &metadata, METADATA_GROUP);
    if metadata.moving && !outdated && !outlook.waits(&metadata) {
        return Vec::new();
    }
    if !metadata.moving || outdated {
        let target = metadata_target(spec, &metadata);
        if target.voters != metadata.voters || target.learners != metadata.learners {
            let Placement { voters, learners, .. } = target;
            let to = MoveGroup { group: METADATA_GROUP, voters, learners };
            return vec![Move { to, why: Why::Records }];
        }
        if metadata.moving {
            return Vec::new();
        }
    }
    let mut plan = Plan::new(spec, outlook);
    let mut moves = plan.redirections(in_flight_max);
    while plan.in_flight() < in_flight_max {
        let next = plan.repair().or_else(|| plan.spread());
        let Some(next) = next.or_else(|| plan.relieve()).or_else(|| plan.level()) else { break };
        moves.push(next);
    }
    if plan.in_flight() + 2 <= in_flight_max {
        moves.extend(plan.exchange());
    }
    moves
}

/// Who should hold the metadata group. Voters stay as long as they are members, also those that are
/// drained: a voter can not become a learner. One that is down for long leaves, and is a learner when it is back.
/// Others become voters up to a number that is worth it: a fourth does not make the group survive more than
/// three do.
fn metadata_target(spec: &ClusterSpec, now: &Placement) -> Placement {
    let staying = spec.members.iter().filter(|m| !m.leaving && !m.evacuated);
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
    /// Bytes that each node holds until groups that leave it are gone.
    going: BTreeMap<u32, u64>,
    /// The failure domain of each member, as a number.
    domains: BTreeMap<u32, usize>,
}

impl Plan<'_> {
    fn new<'a>(spec: &'a ClusterSpec, outlook: &'a Outlook) -> Plan<'a> {
        let groups: Vec<_> =
            (0..spec.group_count).map(|group| layout::placement_of(spec, group)).collect();
        let active = spec.members.iter().filter(|m| layout::is_active(m));
        let load = active.map(|m| (m.node, Load::default())).collect();
        let (going, domains) = (BTreeMap::new(), domains::numbered(spec));
        let mut plan = Plan { spec, outlook, groups, load, going, domains };
        for at in 0..plan.groups.len() {
            plan.count(at, true);
            let bytes = plan.bytes(at);
            for node in &plan.groups[at].former {
                *plan.going.entry(*node).or_default() += bytes;
            }
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

    /// Voters that a group can have. Should nobody be left, groups stay where they are.
    fn wanted(&self) -> usize {
        REPLICAS.min(self.load.len()).max(1)
    }

    /// To how many bytes groups are placed on a node.
    fn limit(&self, node: u32) -> u64 {
        let capacity = self.outlook.capacity.get(&node);
        capacity.map_or(u64::MAX, |bytes| bytes / 100 * FULL_PERCENT)
    }

    /// Whether a group may come to a node: what is on its way, to it or away from it, is taken to be there.
    fn has_room(&self, node: u32, at: usize) -> bool {
        let held = self.load.get(&node).map_or(0, |load| load.bytes);
        let going = self.going.get(&node).copied().unwrap_or(0);
        held.saturating_add(going).saturating_add(self.bytes(at)) <= self.limit(node)
    }

    /// Groups that move and wait for nobody.
    fn in_flight(&self) -> usize {
        self.groups.iter().filter(|group| group.moving && !self.outlook.waits(group)).count()
    }

    /// Groups on their way to nodes that are to be empty go elsewhere; those that wait for a node meanwhile count as
    /// others that begin to move.
    fn redirections(&mut self, in_flight_max: usize) -> Vec<Move> {
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
    fn repair(&mut self) -> Option<Move> {
        (0..self.groups.len()).find_map(|at| match self.groups[at].moving {
            true => None,
            false => self.mend(at),
        })
    }

    fn mend(&mut self, at: usize) -> Option<Move> {
        let mut voters = self.groups[at].voters.clone();
        let wanted = self.wanted();
        let is_bad = |node: &u32| !self.load.contains_key(node);
        // With one left that is away the move would not arrive.
        let lost = voters.iter().position(|node| is_bad(node) && !self.is_up(*node));
        let bad = lost.or_else(|| voters.iter().position(is_bad));
        let best = self.best(at, bad);
        let why = bad.map_or(Why::Missing, |bad| Why::Leaves(voters[bad]));
        match (bad, best) {
            (Some(bad), _) if voters.len() > wanted => drop(voters.remove(bad)),
            (Some(bad), Some(to)) => voters[bad] = to,
            (None, Some(to)) if voters.len() < wanted => voters.push(to),
            _ => return None,
        }
        // It would not arrive before who is away comes back. One that leads to where it can not stay can
        // only gain.
        let arrives = voters.iter().all(|node| self.is_up(*node));
        (arrives || self.groups[at].moving).then(|| self.moved(at, voters, why))
    }

    /// The node for another replica of a group, of those that are there and have room: in a failure domain of its own
    /// if there is one, then the one with the fewest replicas, then the one with the fewest bytes. The voter
    /// at the place `bad` does not count.
    fn best(&self, at: usize, bad: Option<usize>) -> Option<u32> {
        let voters = &self.groups[at].voters;
        let mut keep = voters.clone();
        if let Some(bad) = bad {
            keep.remove(bad);
        }
        let free = self.load.iter().filter(|(node, _)| {
            !voters.contains(node) && self.is_up(**node) && self.has_room(**node, at)
        });
        let rank =
            |(node, held): &(&u32, &Load)| (self.shares(**node, &keep), held.replicas, held.bytes);
        free.min_by_key(rank).map(|(node, _)| *node)
    }

    fn moved(&mut self, at: usize, voters: Vec<u32>, why: Why) -> Move {
        let bytes = self.bytes(at);
        for node in self.groups[at].voters.iter().filter(|node| !voters.contains(node)) {
            *self.going.entry(*node).or_default() += bytes;
        }
        self.count(at, false);
        self.groups[at].voters.clone_from(&voters);
        self.groups[at].moving = true;
        self.count(at, true);
        Move { to: MoveGroup { group: at as u32, voters, learners: Vec::new() }, why }
    }
}
