//! What would become of it: all moves up to rest, and what no move can set right.

use super::{Move, Outlook, Plan, next};
use crate::layout::{self, METADATA_GROUP};
use crate::{healing, liveness};
use basalt_api::v1::{ClusterSpec, FailureDomain, Member, Placement, PlacementScore};
use std::collections::BTreeSet;

/// A plan up to the state in which nothing is left to be moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// The moves, in order, and the members before each.
    pub moves: Vec<(Move, Placement)>,
    /// How well groups are placed before and after.
    pub scores: (PlacementScore, PlacementScore),
    /// What is left, in sentences.
    pub unmet: Vec<String>,
}

/// What the planner would do if every move arrived and nothing else happened, with so many groups moving at a time.
pub fn forecast(spec: &ClusterSpec, outlook: &Outlook, in_flight_max: usize) -> Forecast {
    let mut spec = spec.clone();
    let before = super::objective::score(&spec, outlook);
    let mut moves = Vec::new();
    // What waits for a node that is away goes on moving.
    for group in (0..spec.group_count).chain([METADATA_GROUP]) {
        settle(&mut spec, group, outlook);
    }
    // The objective becomes less with each, so this ends; the bound is there for a planner that is wrong.
    for _ in 0..spec.group_count as usize * 16 + 64 {
        let planned = next(&spec, outlook, in_flight_max);
        if planned.is_empty() {
            break;
        }
        for planned in planned {
            let group = planned.to.group;
            let now = layout::placement_of(&spec, group);
            if let Some(placement) = layout::placement_mut(&mut spec, group) {
                placement.voters.clone_from(&planned.to.voters);
                placement.learners.clone_from(&planned.to.learners);
                (placement.moving, placement.former) = (true, Vec::new());
            }
            settle(&mut spec, group, outlook);
            moves.push((planned, now));
        }
    }
    let after = super::objective::score(&spec, outlook);
    Forecast { moves, scores: (before, after), unmet: unmet(&spec, outlook) }
}

/// Has a group arrive, unless it waits for somebody.
fn settle(spec: &mut ClusterSpec, group: u32, outlook: &Outlook) {
    let now = layout::placement_of(spec, group);
    if now.moving
        && !outlook.waits(&now)
        && let Some(placement) = layout::placement_mut(spec, group)
    {
        (placement.moving, placement.former) = (false, Vec::new());
    }
}

/// What the placement lacks and no move sets right for now, in sentences that say why.
pub fn unmet(spec: &ClusterSpec, outlook: &Outlook) -> Vec<String> {
    let lost = spec.members.iter().filter(|m| liveness::is_lost(m) && !m.leaving);
    let mut sentences: Vec<String> = lost.filter_map(|m| of_lost(spec, outlook, m)).collect();
    sentences.extend(of_domains(spec, outlook));
    sentences
}

/// Groups that a lost node keeps with fewer replicas than they should have.
fn of_lost(spec: &ClusterSpec, outlook: &Outlook, lost: &Member) -> Option<String> {
    let placements = (0..spec.group_count).map(|group| layout::placement_of(spec, group));
    let held: Vec<Placement> = placements.filter(|p| p.voters.contains(&lost.node)).collect();
    let (count, works) = (held.len(), |node: &u32| outlook.up.contains(node));
    let left = held.iter().map(|p| p.voters.iter().filter(|n| works(n)).count()).min()?;
    let stay = format!("{count} groups stay with {} while '{}' is lost", replicas(left), lost.name);
    if !lost.evacuated {
        let members = spec.members.iter().filter(|m| !m.leaving).count();
        let enough = healing::may_evacuate(spec, lost.node);
        return (!enough).then(|| format!("{stay}: no {} node", ordinal(members + 1)));
    }
    let mut plan = Plan::new(spec, outlook);
    let moves = plan.groups.iter().any(|group| group.moving) || plan.repair().is_some();
    (!moves).then(|| format!("{stay}: no other node is there that has room"))
}

/// Groups that share a failure domain.
fn of_domains(spec: &ClusterSpec, outlook: &Outlook) -> Option<String> {
    let domain = match spec.failure_domain() {
        FailureDomain::Unspecified | FailureDomain::Host => return None,
        FailureDomain::Rack => "rack",
        FailureDomain::Zone => "zone",
        FailureDomain::Region => "region",
    };
    let plan = Plan::new(spec, outlook);
    let most = plan.wanted();
    let distinct = |group: &Placement| {
        let of = group.voters.iter().filter_map(|node| plan.domains.get(node));
        of.collect::<BTreeSet<_>>().len()
    };
    let sharing =
        plan.groups.iter().filter(|g| !g.moving && distinct(g) < g.voters.len().min(most));
    let count = sharing.count();
    let there: BTreeSet<_> = plan.load.keys().filter_map(|node| plan.domains.get(node)).collect();
    let blank = |m: &&Member| {
        let at = m.location.clone().unwrap_or_default();
        let part = match spec.failure_domain() {
            FailureDomain::Rack => at.rack,
            FailureDomain::Zone => at.zone,
            _ => at.region,
        };
        part.is_empty() && layout::is_active(m)
    };
    let silent: Vec<String> =
        spec.members.iter().filter(blank).map(|m| format!("'{}'", m.name)).collect();
    let why = match (there.len() < most, silent.is_empty()) {
        (_, false) => format!("{} does not say its {domain} (--location)", silent.join(", ")),
        (true, true) => format!("there is no {} {domain}", ordinal(there.len() + 1)),
        (false, true) => "no node elsewhere has room".to_owned(),
    };
    (count > 0).then(|| format!("{count} groups have two replicas in one {domain}: {why}"))
}

fn replicas(count: usize) -> String {
    match count {
        0 => "no replica".to_owned(),
        1 => "one replica".to_owned(),
        2 => "two replicas".to_owned(),
        more => format!("{more} replicas"),
    }
}

fn ordinal(number: usize) -> &'static str {
    const WORDS: [&str; 8] =
        ["", "first", "second", "third", "fourth", "fifth", "sixth", "seventh"];
    WORDS.get(number).copied().filter(|word| !word.is_empty()).unwrap_or("other")
}
