//! Replicas that are kept apart: by failure domains, and by what devices hold.

use super::{Move, Plan, Why};
use basalt_api::v1::{ClusterSpec, FailureDomain, Location, Member};
use std::collections::{BTreeMap, BTreeSet};

/// What the nodes of one domain have in common. Nodes that do not say where they stand are in one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Domain(Option<u32>, String, String, String);

fn domain_of(member: &Member, domain: FailureDomain) -> Domain {
    let Location { region, zone, rack } = member.location.clone().unwrap_or_default();
    let none = String::new;
    match domain {
        FailureDomain::Unspecified | FailureDomain::Host => {
            Domain(Some(member.node), none(), none(), none())
        }
        FailureDomain::Rack => Domain(None, region, zone, rack),
        FailureDomain::Zone => Domain(None, region, zone, none()),
        FailureDomain::Region => Domain(None, region, none(), none()),
    }
}

/// Whether two nodes may fail together, as far as the cluster cares.
pub fn same_domain(one: &Member, other: &Member, domain: FailureDomain) -> bool {
    domain_of(one, domain) == domain_of(other, domain)
}

/// The failure domain of each member, as a number.
pub(super) fn numbered(spec: &ClusterSpec) -> BTreeMap<u32, usize> {
    let of = |member: &Member| domain_of(member, spec.failure_domain());
    let all: BTreeSet<Domain> = spec.members.iter().map(of).collect();
    let number = |member: &Member| all.iter().position(|domain| *domain == of(member));
    spec.members.iter().filter_map(|m| Some((m.node, number(m)?))).collect()
}

impl Plan<'_> {
    /// Whether a node is in the failure domain of one of these.
    pub(super) fn shares(&self, node: u32, others: &[u32]) -> bool {
        let domain = self.domains.get(&node);
        others.iter().any(|other| *other != node && self.domains.get(other) == domain)
    }

    fn distinct(&self, voters: &[u32]) -> usize {
        voters.iter().filter_map(|node| self.domains.get(node)).collect::<BTreeSet<_>>().len()
    }

    /// How many replicas share a domain with another one of their group that could have one of their own.
    pub(super) fn shared(&self, voters: &[u32]) -> usize {
        let active = self.load.keys().filter_map(|node| self.domains.get(node));
        let most = active.collect::<BTreeSet<_>>().len();
        voters.len().min(most).saturating_sub(self.distinct(voters))
    }

    /// Whether a group would be spread no worse with one voter in the place of another.
    pub(super) fn stays_apart(&self, at: usize, from: u32, to: u32) -> bool {
        let now = &self.groups[at].voters;
        let then: Vec<u32> = now.iter().map(|n| if *n == from { to } else { *n }).collect();
        self.distinct(&then) >= self.distinct(now)
    }

    /// The next replica that shares its failure domain and need not: it goes to a domain that its group is not in.
    pub(super) fn spread(&mut self) -> Option<Move> {
        let (at, from, to) = (0..self.groups.len()).find_map(|at| {
            let voters = self.groups[at].voters.clone();
            if self.groups[at].moving || self.shared(&voters) == 0 {
                return None;
            }
            let fits = |to: &u32| self.is_up(*to) && self.has_room(*to, at);
            let free = self.load.keys().copied().filter(fits);
            let to = free
                .filter(|to| !voters.contains(to) && !self.shares(*to, &voters))
                .min_by_key(|to| (self.load[to].replicas, self.load[to].bytes))?;
            let held = |node: &u32| self.load.get(node).map_or((0, 0), |l| (l.replicas, l.bytes));
            let sharing = voters.iter().copied().filter(|node| self.shares(*node, &voters));
            let from = sharing.filter(|from| self.may_go(at, *from, to)).max_by_key(held)?;
            Some((at, from, to))
        })?;
        Some(self.sent(at, from, to, Why::Domains))
    }

    /// The next group that leaves a device which holds more than it should.
    pub(super) fn relieve(&mut self) -> Option<Move> {
        let excess = |node: &u32| self.load[node].bytes.saturating_sub(self.limit(*node));
        let mut overfull: Vec<u32> = self.load.keys().copied().filter(|n| excess(n) > 0).collect();
        overfull.sort_by_key(|node| (std::cmp::Reverse(excess(node)), *node));
        let (at, from, to) = overfull.into_iter().find_map(|from| {
            let goes = |at: &usize| self.groups[*at].voters.contains(&from) && self.bytes(*at) > 0;
            let mut held: Vec<usize> = (0..self.groups.len()).filter(goes).collect();
            held.sort_by_key(|at| (self.bytes(*at).abs_diff(excess(&from)), *at));
            held.into_iter().find_map(|at| {
                let fits = |to: &u32| *to != from && self.may_go(at, from, *to);
                let to = self.load.keys().copied().filter(fits);
                let to = to.min_by_key(|to| (self.load[to].bytes, *to))?;
                Some((at, from, to))
            })
        })?;
        Some(self.sent(at, from, to, Why::Overfull(from)))
    }
}
