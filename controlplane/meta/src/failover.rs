//! Which volumes go to which node when theirs is down: a pure function of the records.

use crate::healing::takes_volumes;
use crate::state::MetaState;
use basalt_api::meta::v1::{FailOverVolume, VolumeRecord};
use basalt_api::v1::{Failover, Member};
use std::collections::BTreeMap;

/// A volume whose node is down, and what is to be done about it.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// It goes to another node.
    Go(FailOverVolume),
    /// There is none; the volume's name, and that of its node.
    Waits(String, String),
}

/// The attachments that are to go to other nodes now, at most so many. Of the nodes that serve NBD and are up each
/// time the one gets it that stands in the zone of the dead one, and of these the one with the fewest attachments.
pub fn next(state: &MetaState, most: usize) -> Vec<Next> {
    let Some(spec) = state.cluster() else { return Vec::new() };
    // Most of the time nobody is down, and there may be many volumes.
    if !spec.members.iter().any(crate::healing::is_down) {
        return Vec::new();
    }
    let mut attached: BTreeMap<&str, usize> = BTreeMap::new();
    attached.extend(state.hosts());
    let mut found = Vec::new();
    let lost = state.hosts().map(|(host, _)| host).filter(|host| state.is_lost(host));
    let volumes = lost.flat_map(|host| state.attached_to(host));
    for volume in volumes.filter(|volume| is_stranded(state, volume)).take(most) {
        let Some(attachment) = &volume.attachment else { continue };
        let host = attachment.host.as_str();
        let former = spec.members.iter().find(|m| m.name == host);
        let candidates = spec.members.iter().filter(|m| takes_volumes(m) && m.name != host);
        let rank = |m: &&Member| {
            let held = attached.get(m.name.as_str()).copied().unwrap_or(0);
            (!former.is_some_and(|former| shares_zone(former, m)), held, m.node)
        };
        match candidates.min_by_key(rank) {
            Some(target) => {
                *attached.entry(&target.name).or_default() += 1;
                let (id, node, epoch) = (volume.id.clone(), target.node, attachment.epoch);
                found.push(Next::Go(FailOverVolume { id, node, epoch }));
            }
            None => found.push(Next::Waits(volume.id.clone(), host.to_owned())),
        }
    }
    found
}

/// Whether a volume is to leave its node, which is down, and may.
fn is_stranded(state: &MetaState, volume: &VolumeRecord) -> bool {
    let lost = volume.attachment.as_ref().is_some_and(|a| state.is_lost(&a.host));
    lost && volume.failover() == Failover::Node && volume.revert.is_none() && !volume.deleting
}

/// Nodes that do not say where they stand share no zone.
fn shares_zone(one: &Member, other: &Member) -> bool {
    match (&one.location, &other.location) {
        (Some(a), Some(b)) => a.region == b.region && a.zone == b.zone && !a.zone.is_empty(),
        _ => false,
    }
}
