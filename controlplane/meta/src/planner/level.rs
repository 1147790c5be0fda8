//! Nodes that hold more than others: by replicas first, then by bytes.

use super::{Move, Plan, Why};
use basalt_api::v1::Placement;
use std::cmp::Reverse;

/// Nodes are even enough in bytes if the fullest holds so many hundredths of the mean more than the emptiest.
const SPREAD_PERCENT: u64 = 5;
/// What nobody is moved for: less than this in bytes, and than a hundredth of what a node holds.
const WORTH: u64 = 4 << 20;

/// A group that goes to a node, and one that comes back.
struct Exchange {
    from: u32,
    to: u32,
    there: usize,
    back: Option<usize>,
}

impl Plan<'_> {
    /// A replica of a node that holds many goes to one that holds few: the one that evens their bytes most.
    pub(super) fn level(&mut self) -> Option<Move> {
        let mut pairs: Vec<(usize, usize, u32, u32)> = Vec::new();
        for (from, many) in &self.load {
            let fewer = self.load.iter().filter(|(_, few)| few.replicas + 1 < many.replicas);
            let fewer = fewer.filter(|(to, _)| self.is_up(**to));
            pairs.extend(
                fewer.map(|(to, few)| (usize::MAX - many.replicas, few.replicas, *from, *to)),
            );
        }
        pairs.sort_unstable();
        let (at, from, to) = pairs.into_iter().find_map(|(.., from, to)| {
            let mean = self.mean();
            let above = self.load[&from].bytes.saturating_sub(mean);
            let below = mean.saturating_sub(self.load[&to].bytes);
            // Others come after it: its part of what there is to move.
            let replicas = self.load[&from].replicas - self.load[&to].replicas;
            let wanted = (above + below) / replicas.max(1) as u64;
            let fits = (0..self.groups.len()).filter(|at| self.may_go(*at, from, to));
            let at = fits.min_by_key(|at| self.bytes(*at).abs_diff(wanted))?;
            Some((at, from, to))
        })?;
        Some(self.sent(at, from, to, Why::Replicas(from)))
    }

    /// Moves that even the bytes of two nodes and leave the replicas even: of one group if a node holds one
    /// replica more than the other, or else of one there and of a lighter one back. None while anything
    /// moves, or if not all bytes are known, or if it is not worth it.
    pub(super) fn exchange(&mut self) -> Vec<Move> {
        let known = |at: usize| self.outlook.bytes.contains_key(&(at as u32));
        let rest = |group: &Placement| !group.moving;
        if !self.groups.iter().all(rest) || !(0..self.groups.len()).all(known) {
            return Vec::new();
        }
        let bytes =
            || self.load.iter().filter(|(n, _)| self.is_up(**n)).map(|(_, held)| held.bytes);
        let spread = bytes().max().unwrap_or(0) - bytes().min().unwrap_or(0);
        if spread <= self.mean() * SPREAD_PERCENT / 100 {
            return Vec::new();
        }
        match self.best_exchange() {
            Some(Exchange { from, to, there, back }) => {
                let there = self.sent(there, from, to, Why::Bytes(from));
                let back = back.map(|at| self.sent(at, to, from, Why::Bytes(from)));
                std::iter::once(there).chain(back).collect()
            }
            None => Vec::new(),
        }
    }

    /// The exchange by which most is gained: by how much the sum of the squares of what nodes hold becomes less,
    /// so that exchanges come to an end. Of those that gain the same the one that copies least.
    fn best_exchange(&self) -> Option<Exchange> {
        let worth = WORTH.max(self.mean() / 100);
        let mut best: Option<(u128, Reverse<u64>, Exchange)> = None;
        for (from, to) in self.pairs_apart() {
            let (more, less) = (self.load[&from], self.load[&to]);
            let apart = more.bytes - less.bytes;
            let goes =
                |from, to| (0..self.groups.len()).filter(move |at| self.may_go(*at, from, to));
            let backs: Vec<usize> = goes(to, from).collect();
            for there in goes(from, to) {
                let alone = (more.replicas == less.replicas + 1).then_some(None);
                for back in backs.iter().copied().map(Some).chain(alone) {
                    let (given, taken) = (self.bytes(there), back.map_or(0, |at| self.bytes(at)));
                    let shift = given.saturating_sub(taken).min(apart);
                    let gain = u128::from(shift) * u128::from(apart - shift);
                    let better = best.as_ref().is_none_or(|(most, least, _)| {
                        (gain, Reverse(given + taken)) > (*most, *least)
                    });
                    if shift.min(apart - shift) >= worth && better {
                        let exchange = Exchange { from, to, there, back };
                        best = Some((gain, Reverse(given + taken), exchange));
                    }
                }
            }
        }
        best.map(|(.., exchange)| exchange)
    }

    /// Nodes of which the first holds more bytes than the second.
    fn pairs_apart(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let up = || self.load.iter().filter(|(node, _)| self.is_up(**node));
        up().flat_map(move |(from, more)| {
            let less = up().filter(|(_, less)| less.bytes < more.bytes);
            less.map(|(to, _)| (*from, *to))
        })
    }

    /// Whether a group may exchange one voter for another: it would settle, there is room, and it is spread no worse.
    pub(super) fn may_go(&self, at: usize, from: u32, to: u32) -> bool {
        let Placement { voters, moving, .. } = &self.groups[at];
        let up = |node: &u32| *node == from || self.is_up(*node);
        !moving
            && voters.contains(&from)
            && !voters.contains(&to)
            && self.is_up(to)
            && voters.iter().all(up)
            && self.has_room(to, at)
            && self.stays_apart(at, from, to)
    }

    pub(super) fn sent(&mut self, at: usize, from: u32, to: u32, why: Why) -> Move {
        let voters = self.groups[at].voters.iter();
        let voters = voters.map(|node| if *node == from { to } else { *node }).collect();
        self.moved(at, voters, why)
    }

    /// Bytes of a node that holds as much as the others.
    fn mean(&self) -> u64 {
        let all: u64 = self.load.values().map(|held| held.bytes).sum();
        all / self.load.len().max(1) as u64
    }
}
