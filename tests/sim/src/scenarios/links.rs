//! Links that work one way only, or now and then: every group must have a leader that serves, soon.
//!
//! In each, everything is first at rest under one leader; then something is cut; from then on a write
//! and a proposal to the metadata group must be answered within [`SERVES_WITHIN`], again and again,
//! and terms may not grow without bound.

use super::{calm, dice};
use crate::event::Who;
use crate::script::{Script, Setup};
use crate::world::World;

/// Simulated milliseconds within which every group serves, whatever one node's links do.
pub const SERVES_WITHIN: u64 = 5_000;
/// Elections that may be won while a link stays as it is, and when it is whole again.
const TERMS_MAX: u64 = 4;

/// What is cut, of links between two nodes or a node and a client.
type Pairs = Vec<(Who, Who)>;

/// Cuts, watches, and heals, for the leader and then for a follower, alone and with the clients.
fn one_way(set: Setup, pairs: impl Fn(&Script, Who) -> Pairs, of_leader: bool) -> World {
    let mut s = calm(set);
    for round in 0..3 {
        s.serves(SERVES_WITHIN);
        let leader = s.wait_leader(None, SERVES_WITHIN);
        let node = if of_leader { leader } else { (leader + 1 + round % 2) % 3 };
        let before = s.highest_term();
        for (from, to) in pairs(&s, node) {
            s.cut(from, to);
        }
        for _ in 0..6 {
            s.serves(SERVES_WITHIN);
            s.pass(1_500);
        }
        s.heal();
        s.serves(SERVES_WITHIN);
        s.pass(2_000);
        let after = s.highest_term();
        s.must(after <= before + TERMS_MAX, || format!("the term went from {before} to {after}"));
    }
    s.end()
}

fn others(s: &Script, n: Who, clients: bool) -> Vec<Who> {
    let all = if clients { s.world.nodes.len() + s.world.clients.len() } else { 3 };
    (0..all).filter(|w| *w != n).collect()
}

/// With even seeds the clients' links share the fate of those between nodes.
fn with_clients(set: Setup) -> bool {
    set.seed.is_multiple_of(2)
}

pub fn leader_deaf(set: Setup) -> World {
    let all = with_clients(set);
    one_way(set, |s, n| others(s, n, all).into_iter().map(|w| (w, n)).collect(), true)
}

pub fn leader_mute(set: Setup) -> World {
    let all = with_clients(set);
    one_way(set, |s, n| others(s, n, all).into_iter().map(|w| (n, w)).collect(), true)
}

pub fn follower_deaf(set: Setup) -> World {
    let all = with_clients(set);
    one_way(set, |s, n| others(s, n, all).into_iter().map(|w| (w, n)).collect(), false)
}

pub fn follower_mute(set: Setup) -> World {
    let all = with_clients(set);
    one_way(set, |s, n| others(s, n, all).into_iter().map(|w| (n, w)).collect(), false)
}

/// One direction between the leader and one follower.
pub fn between_leader_and_follower(set: Setup) -> World {
    let back = with_clients(set);
    let pair = move |n: Who| if back { ((n + 1) % 3, n) } else { (n, (n + 1) % 3) };
    one_way(set, |_, n| vec![pair(n)], true)
}

/// One direction between the two followers.
pub fn between_followers(set: Setup) -> World {
    one_way(set, |_, n| vec![((n + 1) % 3, (n + 2) % 3)], true)
}

/// Each node hears only one of the other two.
pub fn ring(set: Setup) -> World {
    let back = with_clients(set);
    let cut = move |n: Who| if back { (n, (n + 1) % 3) } else { ((n + 1) % 3, n) };
    // No node hears a majority answer, so that nothing can be served until it ends.
    let mut s = calm(set);
    s.serves(SERVES_WITHIN);
    let before = s.highest_term();
    for _ in 0..3 {
        (0..3).for_each(|n| {
            let (from, to) = cut(n);
            s.cut(from, to);
        });
        s.pass(15_000);
        s.heal();
        s.serves(SERVES_WITHIN);
    }
    let after = s.highest_term();
    s.must(after <= before + 3 * TERMS_MAX, || format!("the term went from {before} to {after}"));
    s.end()
}

/// A node whose links fail and come back faster than an election, one way or both.
pub fn flapping(set: Setup) -> World {
    let mut s = calm(set);
    let mut dice = dice(set.seed);
    let leader = s.wait_leader(None, SERVES_WITHIN);
    let node = if dice.chance(0.5) { leader } else { s.other(leader) };
    let before = s.highest_term();
    let (up, down) = (dice.within(20, 900), dice.within(100, 1_500));
    for round in 0..12 {
        for w in others(&s, node, with_clients(set)) {
            if round % 3 != 1 {
                s.cut(w, node);
            }
            if round % 3 != 2 {
                s.cut(node, w);
            }
        }
        s.ask_all();
        s.pass(down);
        s.heal();
        s.pass(up);
    }
    s.serves(SERVES_WITHIN);
    let after = s.highest_term();
    s.must(after <= before + 12, || format!("the term went from {before} to {after}"));
    s.end()
}

/// A node that was away, with a higher term than the others know, is no reason for them to stop.
pub fn returns_with_a_higher_term(set: Setup) -> World {
    let mut s = calm(set);
    for _ in 0..3 {
        let leader = s.wait_leader(None, SERVES_WITHIN);
        // It wins an election that only it and a node that then restarts know of.
        let away = s.other(leader);
        s.isolate(leader);
        s.serves(SERVES_WITHIN);
        s.heal();
        s.pass(100);
        s.isolate(away);
        for _ in 0..5 {
            s.pass(2_000);
            s.kill(away);
            s.start(away);
        }
        let before = s.highest_term();
        s.heal();
        s.serves(SERVES_WITHIN);
        let after = s.highest_term();
        s.must(after <= before + 1, || format!("the term went from {before} to {after}"));
    }
    s.end()
}

/// Every set of directed links that still lets two nodes talk to each other: those two and whoever
/// else can must serve.
pub fn every_pattern(set: Setup) -> World {
    const LINKS: [(Who, Who); 6] = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)];
    let mut s = calm(set);
    for pattern in 1..64u32 {
        let whole = |at: usize| pattern >> (2 * at) & 3 == 0;
        if !(0..3).any(whole) {
            continue;
        }
        let before = s.highest_term();
        let cut: Pairs = (0..6).filter(|at| pattern >> at & 1 == 1).map(|at| LINKS[at]).collect();
        cut.iter().for_each(|(from, to)| s.cut(*from, *to));
        for _ in 0..2 {
            s.serves(SERVES_WITHIN);
            s.pass(1_500);
        }
        let after = s.highest_term();
        s.must(after <= before + TERMS_MAX, || {
            format!("without {cut:?} the term went from {before} to {after}")
        });
        s.heal();
        s.pass(300);
    }
    s.end()
}
