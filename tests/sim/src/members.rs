//! Groups that move from node to node: the part of the control plane, which states again and again what is to
//! be until it is so.

use crate::event::Who;
use crate::node::{address, node_of};
use crate::world::World;
use basalt_client::{ClientEvent, PoolMap};
use basalt_core::config::GroupConfig;
use basalt_core::event::Event;
use basalt_core::shard::{GroupRole, GroupStatus, Phase};
use basalt_wire::ids::{Address, GroupId};
use basalt_wire::membership::Membership;
use std::sync::Arc;

/// Where the groups are to be.
pub struct Moves {
    /// The voters that each group began with.
    founders: Vec<Vec<Address>>,
    /// The voters that each group is to have.
    targets: Vec<Vec<Address>>,
    /// Replicas that are no members any more and may still be there.
    leaving: Vec<(Who, GroupId)>,
}

impl Moves {
    /// All groups are where they should be.
    pub fn new(groups: &[Vec<Address>]) -> Moves {
        Moves { founders: groups.to_vec(), targets: groups.to_vec(), leaving: Vec::new() }
    }
}

impl World {
    /// Has a group move to these nodes.
    pub fn move_group(&mut self, group: usize, to: &[Who]) {
        self.trace(|| format!("group {group} is to move to {to:?}"));
        self.moves.targets[group] = to.iter().map(|n| address(*n)).collect();
    }

    /// Has some group that is at rest move to other nodes, at least one of them.
    pub fn move_some_group(&mut self) {
        let group = self.fault_rng.below(u64::from(self.options.groups)) as usize;
        let mut nodes: Vec<Who> = self.map.groups[group].iter().map(|a| node_of(*a)).collect();
        let mut others: Vec<Who> = (0..self.nodes.len()).filter(|n| !nodes.contains(n)).collect();
        if others.is_empty() || !self.has_moved(group) {
            return;
        }
        let most = others.len().min(nodes.len()) as u64;
        for _ in 0..self.fault_rng.within(1, most) {
            let (from, to) = (
                self.fault_rng.below(nodes.len() as u64),
                self.fault_rng.below(others.len() as u64),
            );
            nodes.remove(from as usize);
            let there = others.remove(to as usize);
            nodes.push(there);
        }
        self.move_group(group, &nodes);
    }

    /// Whether a group is where it should be.
    fn has_moved(&self, group: usize) -> bool {
        self.map.groups[group] == self.moves.targets[group]
    }

    /// Whether all groups are where they should be, but for those that can not go where a device does not open
    /// any more.
    pub fn have_moved(&self) -> bool {
        let is_out = |a: &Address| self.nodes[node_of(*a)].lost;
        let can = |group: &usize| {
            let (target, map) = (&self.moves.targets[*group], &self.map.groups[*group]);
            !target.iter().chain(map).any(is_out)
        };
        (0..self.moves.targets.len()).filter(can).all(|group| {
            let leaves = self.moves.leaving.iter().any(|(_, leaving)| leaving.0 as usize == group);
            self.has_moved(group) && !leaves
        })
    }

    /// Whether a node holds a group by the map that clients have.
    pub fn is_placed(&self, n: Who, group: GroupId) -> bool {
        let voters = self.map.groups.get(group.0 as usize);
        voters.is_none_or(|voters| voters.contains(&address(n)))
    }

    /// States what is to be.
    pub fn drive_moves(&mut self) {
        for (n, group) in std::mem::take(&mut self.moves.leaving) {
            if !self.all_know(group) {
                self.moves.leaving.push((n, group));
                continue;
            }
            self.nodes[n].config.groups.retain(|config| config.id != group);
            if self.status_of(n, group).is_some() || self.is_opening(n) {
                self.give(n, Event::Retire(group), 0);
                self.moves.leaving.push((n, group));
            }
        }
        for group in 0..self.moves.targets.len() {
            if !self.has_moved(group) {
                self.drive_move(group);
            }
        }
    }

    /// Whether all voters of a group know, for good, that they are the only ones.
    fn all_know(&self, group: GroupId) -> bool {
        let voters = self.map.groups[group.0 as usize].clone();
        let known = Membership::new(voters.clone(), Vec::new());
        voters.iter().all(|voter| {
            let status = self.status_of(node_of(*voter), group);
            status.is_some_and(|status| status.members_durable && status.members == known)
        })
    }

    fn is_opening(&self, n: Who) -> bool {
        self.nodes[n].shard.as_ref().is_some_and(|s| s.status().phase == Phase::Opening)
    }

    fn status_of(&self, n: Who, group: GroupId) -> Option<GroupStatus> {
        let status = self.nodes[n].shard.as_ref()?.status();
        status.groups.into_iter().find(|g| g.group == group)
    }

    fn leading(&self, group: GroupId) -> Option<(Who, GroupStatus)> {
        let all = (0..self.nodes.len()).filter_map(|n| Some((n, self.status_of(n, group)?)));
        all.filter(|(_, status)| status.role == GroupRole::Leader).max_by_key(|(_, s)| s.term)
    }

    fn drive_move(&mut self, number: usize) {
        let group = GroupId(number as u32);
        let mut target = self.moves.targets[number].clone();
        target.sort_by_key(|a| a.node);
        if self.moves.leaving.iter().any(|(_, leaving)| *leaving == group) {
            return;
        }
        let Some((leader, status)) = self.leading(group) else { return };
        let members = &status.members;
        if members.is_joint() {
            return;
        }
        if members.voters == target && members.learners.is_empty() {
            self.end_move(number);
            return;
        }
        let fresh: Vec<Address> =
            target.iter().copied().filter(|a| !members.voters.contains(a)).collect();
        for learner in &members.learners {
            self.bring_up(node_of(*learner), number, &status);
        }
        let ready = fresh.iter().all(|a| members.learners.contains(a));
        let (voters, learners) = match ready {
            true => (target, Vec::new()),
            false => (members.voters.clone(), fresh),
        };
        self.give(leader, Event::Configure { group, voters, learners }, 0);
    }

    /// A learner gets its replica, which is there again after each start.
    fn bring_up(&mut self, n: Who, number: usize, seen: &GroupStatus) {
        let group = GroupId(number as u32);
        let held = &mut self.nodes[n].config.groups;
        if !held.iter().any(|config| config.id == group) {
            let voters = self.moves.founders[number].clone();
            held.push(GroupConfig {
                since: (seen.term, seen.applied),
                ..GroupConfig::new(group, voters)
            });
        }
        let config = held.iter().find(|config| config.id == group).expect("seen or pushed").clone();
        if self.status_of(n, group).is_none() {
            // It may have been here before, and starts over.
            self.positions.remove(&(n, group));
            self.give(n, Event::Join(config), 0);
        }
    }

    /// The group is there: whoever is no member any more goes, and clients are told.
    fn end_move(&mut self, number: usize) {
        let group = GroupId(number as u32);
        let target = self.moves.targets[number].clone();
        self.trace(|| format!("group {number} has moved to {target:?}"));
        for n in 0..self.nodes.len() {
            let held = &self.nodes[n].config.groups;
            if !target.contains(&address(n)) && held.iter().any(|config| config.id == group) {
                self.moves.leaving.push((n, group));
            }
        }
        let mut groups = self.map.groups.clone();
        groups[number] = target;
        let (version, group_count) = (self.map.version + 1, self.map.group_count);
        self.map = Arc::new(PoolMap { version, group_count, groups });
        self.counts.moves += 1;
        for at in 0..self.clients.len() {
            let (who, map) = (self.clients[at].who, self.map.clone());
            self.client_event(who, ClientEvent::Map(map));
        }
    }
}

/// Members in few words.
pub fn brief(members: &Membership) -> String {
    let nodes =
        |list: &[Address]| list.iter().map(|a| a.node.to_string()).collect::<Vec<_>>().join(",");
    let (outgoing, learners) = (nodes(&members.outgoing), nodes(&members.learners));
    format!("{}/{outgoing}/{learners}", nodes(&members.voters))
}
