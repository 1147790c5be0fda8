//! Members that come and go, and where groups are.
//!
//! A member that is drained keeps its replica of the metadata group, and with it what volumes are
//! attached to it, until it is to be removed: then it is `leaving`, and gone when no placement names it.

use crate::layout::{self, METADATA_GROUP, METADATA_VOTERS_MAX, NODES_MAX, REPLICAS};
use crate::rules;
use crate::state::{MetaState, Outcome, Refused, refusal};
use basalt_api::meta::v1::{AddMember, DrainMember, MoveGroup, RemoveMember, SettleGroup};
use basalt_api::v1::{ClusterSpec, ErrorReason, Member, Placement};
use std::collections::BTreeSet;

/// The longest address of a node, in bytes.
const ADDRESS_MAX: usize = 255;

impl MetaState {
    /// Where a group is, or is to be; nowhere if there is no such group.
    pub fn placement(&self, group: u32) -> Placement {
        self.cluster().map(|spec| layout::placement_of(spec, group)).unwrap_or_default()
    }

    pub(crate) fn spec(&mut self) -> Result<&mut ClusterSpec, Refused> {
        self.cluster.as_deref_mut().ok_or_else(|| {
            let message = "the cluster's record is not written yet; ask again".to_owned();
            refusal(ErrorReason::NotBootstrapped, message, vec![])
        })
    }

    /// A node comes. The same again is done already.
    pub(crate) fn add_member(&mut self, add: AddMember) -> Result<Outcome, Refused> {
        let asked = add.member.unwrap_or_default();
        check_member(&asked)?;
        let spec = self.spec()?;
        let stays = |m: &&Member| !m.leaving && m.node != add.replaces;
        if let Some(known) = spec.members.iter().filter(stays).find(|m| is_same(m, &asked)) {
            let known = known.clone();
            if let Some(old) = find(spec, add.replaces).filter(|old| !old.leaving) {
                return Err(is_member(&known, old));
            }
            if has_voted(spec, known.node) {
                return Err(lost(&known));
            }
            return Ok(Outcome::Member(known));
        }
        if let Some(other) = spec.members.iter().filter(stays).find(|m| shares(m, &asked)) {
            return Err(exists(&asked, other));
        }
        if add.replaces != 0 && find(spec, add.replaces).is_none() {
            return Err(not_found(add.replaces));
        }
        if spec.members.len() >= NODES_MAX {
            let message = format!("the cluster has {NODES_MAX} nodes, the most it can have");
            return Err(refusal(ErrorReason::Limit, message, vec![]));
        }
        if let Some(old) = find(spec, add.replaces) {
            (old.draining, old.leaving) = (true, true);
        }
        let highest = spec.members.iter().map(|m| m.node).fold(spec.last_node, u32::max);
        let Some(node) = highest.checked_add(1).filter(|node| *node < u32::MAX) else {
            let message = "there are no node numbers left".to_owned();
            return Err(refusal(ErrorReason::Limit, message, vec![]));
        };
        spec.last_node = node;
        let member = Member { node, draining: false, leaving: false, ..asked };
        spec.members.push(member.clone());
        self.map_version += 1;
        Ok(Outcome::Member(member))
    }

    /// A node's groups are to go to others, or not any more.
    pub(crate) fn drain_member(&mut self, drain: &DrainMember) -> Result<Outcome, Refused> {
        let spec = self.spec()?;
        let active = spec.members.iter().filter(|m| layout::is_active(m)).count();
        let member = find(spec, drain.node).ok_or_else(|| not_found(drain.node))?;
        if member.draining != drain.cancel {
            return Ok(Outcome::Member(member.clone()));
        }
        if drain.cancel && member.leaving {
            let message = format!(
                "the node '{}' leaves the cluster, which can not be called off; when it is gone, add \
                 it anew with a new data directory and a blank device",
                member.name
            );
            return Err(refusal(ErrorReason::InvalidField, message, node_fact(member)));
        }
        if !drain.cancel && active <= REPLICAS.min(active) {
            return Err(too_few(member, active));
        }
        member.draining = !drain.cancel;
        let member = member.clone();
        self.map_version += 1;
        Ok(Outcome::Member(member))
    }

    /// A node goes. If no volume group is placed on it, it leaves the metadata group; once nothing is
    /// placed on it, it is gone, which needs this to be said again.
    pub(crate) fn remove_member(&mut self, remove: &RemoveMember) -> Result<Outcome, Refused> {
        let spec = self.spec()?;
        let member = find(spec, remove.node).ok_or_else(|| not_found(remove.node))?.clone();
        let placed = |group: u32| layout::names(&layout::placement_of(spec, group), member.node);
        let held = (0..spec.group_count).filter(|group| placed(*group)).count();
        let in_metadata = placed(METADATA_GROUP);
        if held > 0 {
            return Err(in_use(&member, held, spec.group_count));
        }
        let others = spec.members.iter().filter(|m| layout::is_active(m) && m.node != member.node);
        let others = others.count();
        if layout::is_active(&member) && others < replicas(spec) {
            return Err(too_few(&member, others + 1));
        }
        if !member.leaving
            && let Some(volume) = self.attached_to(&member.name).next()
        {
            return Err(serves(&member, &volume.id));
        }
        let spec = self.spec()?;
        let known = find(spec, remove.node).expect("found above");
        if in_metadata && known.leaving {
            return Ok(Outcome::Member(member));
        }
        let outcome = if in_metadata {
            (known.draining, known.leaving) = (true, true);
            Outcome::Member(known.clone())
        } else {
            spec.last_node = spec.members.iter().map(|m| m.node).fold(spec.last_node, u32::max);
            spec.members.retain(|m| m.node != remove.node);
            Outcome::Nothing
        };
        self.map_version += 1;
        Ok(outcome)
    }

    /// A group is to have other members. The same again is done already.
    pub(crate) fn move_group(&mut self, to: MoveGroup) -> Result<Outcome, Refused> {
        let spec = self.spec()?;
        let now = layout::placement_of(spec, to.group);
        if are_members(&now, &to.voters, &to.learners) {
            return Ok(Outcome::Nothing);
        }
        judge_move(spec, &now, &to).map_err(|why| {
            let message = format!("group {} is not moved: {why}", to.group);
            refusal(ErrorReason::InvalidField, message, vec![("group", to.group.to_string())])
        })?;
        let stays = |node: &u32| to.voters.contains(node) || to.learners.contains(node);
        let before = now.former.iter().chain(&now.voters).chain(&now.learners).copied();
        let former: BTreeSet<u32> = before.filter(|node| !stays(node)).collect();
        let placement = layout::placement_mut(spec, to.group).expect("judged");
        *placement = Placement {
            former: former.into_iter().collect(),
            voters: to.voters,
            learners: to.learners,
            moving: true,
        };
        self.map_version += 1;
        Ok(Outcome::Nothing)
    }

    /// A group has the members that it was to have.
    pub(crate) fn settle_group(&mut self, settle: &SettleGroup) -> Result<Outcome, Refused> {
        let spec = self.spec()?;
        let now = layout::placement_of(spec, settle.group);
        if !are_members(&now, &settle.voters, &settle.learners) {
            let message = format!("group {} is to have other members by now", settle.group);
            let facts = vec![("group", settle.group.to_string())];
            return Err(refusal(ErrorReason::InvalidField, message, facts));
        }
        if let Some(placement) = layout::placement_mut(spec, settle.group).filter(|p| p.moving) {
            placement.moving = false;
            placement.former.clear();
            self.map_version += 1;
        }
        Ok(Outcome::Nothing)
    }
}

/// Whether a member votes, or did: then it may not begin anew under its number. It would have forgotten what it
/// acknowledged, and could give a vote twice. One that never came up is no founder, and no move to it is settled.
fn has_voted(spec: &ClusterSpec, node: u32) -> bool {
    (0..spec.group_count).chain([METADATA_GROUP]).any(|group| {
        let placement = layout::placement_of(spec, group);
        let settled = !placement.moving && placement.voters.contains(&node);
        settled || layout::founders_of(spec, group).contains(&node)
    })
}

/// The most voters of a volume group.
pub(crate) fn replicas(spec: &ClusterSpec) -> usize {
    let voters = |group| layout::placement_of(spec, group).voters.len();
    (0..spec.group_count).map(voters).max().unwrap_or(0)
}

fn find(spec: &mut ClusterSpec, node: u32) -> Option<&mut Member> {
    spec.members.iter_mut().find(|m| m.node == node)
}

/// Whether a member is what is to be added.
fn is_same(known: &Member, asked: &Member) -> bool {
    let of = |m: &Member| (m.name.clone(), m.grpc_address.clone(), m.data_address.clone());
    of(known) == of(asked)
}

fn shares(known: &Member, asked: &Member) -> bool {
    known.name == asked.name
        || known.grpc_address == asked.grpc_address
        || known.data_address == asked.data_address
}

fn check_member(member: &Member) -> Result<(), Refused> {
    let invalid = |field: &str, message: String| {
        refusal(ErrorReason::InvalidField, message, vec![("field", field.to_owned())])
    };
    rules::check_host(&member.name).map_err(|e| invalid("name", e))?;
    let location = member.location.clone().unwrap_or_default();
    crate::healing::check_location(&location).map_err(|e| invalid("location", e))?;
    let addresses =
        [("grpc_address", &member.grpc_address), ("data_address", &member.data_address)];
    for (field, address) in addresses {
        if address.is_empty() || address.len() > ADDRESS_MAX {
            let message = format!("the node '{}' has no usable {field}", member.name);
            return Err(invalid(field, message));
        }
    }
    Ok(())
}

fn are_members(placement: &Placement, voters: &[u32], learners: &[u32]) -> bool {
    let set = |list: &[u32]| list.iter().copied().collect::<BTreeSet<u32>>();
    let same = |one: &[u32], other: &[u32]| one.len() == other.len() && set(one) == set(other);
    same(&placement.voters, voters) && same(&placement.learners, learners)
}

/// Whether a placement that is being moved to can not stay: a node of it is to be empty by now. Only
/// then a group goes elsewhere before it has arrived, as it might never arrive.
pub(crate) fn is_outdated(spec: &ClusterSpec, placement: &Placement, group: u32) -> bool {
    let away = |m: &Member| match group {
        METADATA_GROUP => m.leaving || m.evacuated,
        _ => !layout::is_active(m),
    };
    let mut named = placement.voters.iter().chain(&placement.learners);
    named.any(|node| !spec.members.iter().any(|m| m.node == *node && !away(m)))
}

fn judge_move(spec: &ClusterSpec, now: &Placement, to: &MoveGroup) -> Result<(), String> {
    let metadata = to.group == METADATA_GROUP;
    if now.voters.is_empty() {
        return Err("there is no such group".to_owned());
    }
    if now.moving && !is_outdated(spec, now, to.group) {
        return Err(format!("it is moving to {:?}", now.voters));
    }
    let all: BTreeSet<u32> = to.voters.iter().chain(&to.learners).copied().collect();
    if to.voters.is_empty() || all.len() != to.voters.len() + to.learners.len() {
        return Err("it needs voters, each node once".to_owned());
    }
    let most = if metadata { METADATA_VOTERS_MAX } else { REPLICAS };
    if to.voters.len() > most || (!metadata && !to.learners.is_empty()) {
        return Err(format!("it has at most {most} voters, and learners only as metadata group"));
    }
    if let Some(node) = to.learners.iter().find(|node| now.voters.contains(node)) {
        return Err(format!("node {node} votes, it can only be removed"));
    }
    for node in all {
        let Some(member) = spec.members.iter().find(|m| m.node == node) else {
            return Err(format!("node {node} is not a member of the cluster"));
        };
        let stays = now.voters.contains(&node) || now.learners.contains(&node);
        if !stays && (member.leaving || member.evacuated || (member.draining && !metadata)) {
            return Err(format!("the node '{}' is to be empty", member.name));
        }
    }
    Ok(())
}

fn node_fact(member: &Member) -> Vec<(&'static str, String)> {
    vec![("node", member.name.clone())]
}

pub(crate) fn not_found(node: u32) -> Refused {
    let message = format!("there is no node {node}; 'basalt node list' shows those that there are");
    refusal(ErrorReason::NodeNotFound, message, vec![("node", node.to_string())])
}

fn exists(asked: &Member, other: &Member) -> Refused {
    let what = match asked.name == other.name {
        true => "name".to_owned(),
        false => format!("address ({}, {})", other.grpc_address, other.data_address),
    };
    let message = format!(
        "the node '{}' has the {what} of '{}', which is a member already; give it another one, or if \
         it comes in the place of '{}', say so (--replaces {})",
        asked.name, other.name, other.name, other.name
    );
    refusal(ErrorReason::NodeExists, message, node_fact(other))
}

fn lost(known: &Member) -> Refused {
    let message = format!(
        "the node '{}' is a member already, and a node that begins anew can not go on for it; if it has \
         lost its device, add this one in its place (--replaces {})",
        known.name, known.name
    );
    refusal(ErrorReason::NodeExists, message, node_fact(known))
}

fn is_member(known: &Member, old: &Member) -> Refused {
    let message = format!(
        "the node '{}' is a member already, and does not come in the place of '{}' any more; drain \
         and remove that one instead",
        known.name, old.name
    );
    refusal(ErrorReason::NodeExists, message, node_fact(known))
}

pub(crate) fn too_few(member: &Member, active: usize) -> Refused {
    let message = format!(
        "the node '{}' can not be drained or removed: {} nodes would be left for the {} replicas of \
         each group; add a node first, or one in its place (basalt node add ADDRESS --replaces {})",
        member.name,
        active.saturating_sub(1),
        REPLICAS.min(active),
        member.name
    );
    refusal(ErrorReason::TooFewNodes, message, node_fact(member))
}

fn in_use(member: &Member, held: usize, groups: u32) -> Refused {
    let what = match member.draining {
        true => "wait until it is drained ('basalt node list' shows how far it is)".to_owned(),
        false => format!("drain it first (basalt node drain {})", member.name),
    };
    let message = format!("the node '{}' still has {held} of {groups} groups; {what}", member.name);
    refusal(ErrorReason::NodeInUse, message, node_fact(member))
}

fn serves(member: &Member, volume: &str) -> Refused {
    let message = format!(
        "the volume '{volume}' is attached to the node '{}'; detach it, or move it to another host \
         (basalt volume attach {volume} --host ... --move), then remove the node",
        member.name
    );
    let mut facts = node_fact(member);
    facts.push(("volume", volume.to_owned()));
    refusal(ErrorReason::NodeInUse, message, facts)
}
