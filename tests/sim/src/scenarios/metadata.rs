//! The metadata group, whose commands are forgotten once the control plane has their state.

use super::{Scenario, dice, with_checkpoints};
use crate::disk::CutPolicy;
use crate::event::Who;
use crate::metadata::State;
use crate::node::address;
use crate::script::{Script, Setup};
use crate::world::World;
use basalt_core::config::GroupConfig;
use basalt_core::event::Event;
use basalt_core::shard::{GroupRole, GroupStatus};
use basalt_wire::ids::{GroupId, LogIndex, Term};

/// Commands that are kept beside the state.
const RETAINED: u64 = 4;

pub(super) fn all() -> Vec<Scenario> {
    let s = |name, seeds, play| Scenario { name, play, seeds };
    vec![
        s("away-while-metadata-commands-are-forgotten", 8, away),
        s("crashes-while-metadata-state-is-fetched", 12, crashes),
        s("new-node-behind-the-metadata-log", 6, new_node),
        s("metadata-state-lost-at-one-node", 8, lost_state),
        s("metadata-group-begins-anew", 12, begins_anew),
    ]
}

fn begin(set: Setup, spare: u32) -> Script {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.spare = spare;
    });
    for node in &mut s.world.nodes {
        node.config.limits.metadata_retain_entries = RETAINED;
        node.config.limits.metadata_retain_bytes = 1 << 20;
        node.control.saves = 1.0;
    }
    with_checkpoints(&mut s, 32 << 10);
    s
}

fn status(s: &Script, n: Who) -> Option<GroupStatus> {
    let status = s.world.nodes[n].shard.as_ref()?.status();
    status.groups.into_iter().find(|g| g.group == GroupId::METADATA)
}

fn leader(s: &mut Script) -> Who {
    for _ in 0..20_000 {
        let leads = |n: &Who| status(s, *n).is_some_and(|g| g.role == GroupRole::Leader);
        if let Some(n) = (0..s.world.nodes.len()).find(leads) {
            return n;
        }
        if s.world.has_failed() {
            break;
        }
        s.pass(1);
    }
    s.must(false, || "the metadata group has no leader".to_owned());
    0
}

/// Has so many commands proposed, wherever the leader is.
fn propose(s: &mut Script, times: u32) {
    for _ in 0..times {
        (0..s.world.nodes.len()).for_each(|n| s.world.propose(n));
        s.pass(2);
    }
}

/// Proposes until the leader's log begins behind an entry.
fn forget(s: &mut Script, index: LogIndex) {
    for _ in 0..200 {
        propose(s, 10);
        let leader = leader(s);
        if s.world.has_failed() || status(s, leader).is_some_and(|g| g.first > index) {
            return;
        }
        s.pass(50);
    }
    let text = s.world.describe();
    s.must(false, || format!("nothing is forgotten: {text}"));
}

/// Waits until a node's control plane has all that is committed.
fn whole(s: &mut Script, n: Who, ms: u64) {
    for _ in 0..ms {
        let last = (0..s.world.nodes.len()).filter_map(|n| status(s, n)).map(|g| g.commit).max();
        let here = status(s, n).filter(|g| Some(g.applied) == last);
        if s.world.has_failed() || here.is_some_and(|g| s.world.metadata_is_whole(n, &g)) {
            return;
        }
        s.pass(1);
    }
    let (state, text) = (s.world.nodes[n].control.state, s.world.describe());
    s.must(false, || format!("node {n} does not come to the state, it has {state:?}: {text}"));
}

fn restart_all(s: &mut Script) {
    (0..s.world.nodes.len()).for_each(|n| s.kill(n));
    (0..s.world.nodes.len()).for_each(|n| s.start(n));
    leader(s);
    propose(s, 5);
}

/// A node is away while all that it does not know is forgotten, and gets the state.
fn away(set: Setup) -> World {
    let mut s = begin(set, 0);
    propose(&mut s, 10);
    for round in 0..3 {
        let away = (leader(&mut s) + 1 + round % 2) % 3;
        whole(&mut s, away, 10_000);
        let applied = status(&s, away).map_or(LogIndex(0), |g| g.applied);
        s.kill(away);
        forget(&mut s, LogIndex(applied.0 + 1));
        s.start(away);
        whole(&mut s, away, 30_000);
        let fetches = s.world.nodes[away].control.fetches;
        s.must(fetches > 0, || format!("node {away} was brought up by its log"));
        restart_all(&mut s);
        if s.world.has_failed() {
            break;
        }
    }
    s.end()
}

/// The same, and it crashes again and again while it gets the state.
fn crashes(set: Setup) -> World {
    let mut s = begin(set, 0);
    let mut dice = dice(set.seed);
    propose(&mut s, 10);
    let away = (leader(&mut s) + 1) % 3;
    whole(&mut s, away, 10_000);
    for _ in 0..3 {
        let applied = status(&s, away).map_or(LogIndex(0), |g| g.applied);
        s.kill(away);
        forget(&mut s, LogIndex(applied.0 + 1));
        for _ in 0..8 {
            s.start(away);
            s.pass_micros(dice.log_uniform(1e3, 2e6) as u64);
            if dice.chance(0.3) {
                propose(&mut s, 6);
            }
            match dice.chance(0.5) {
                true => s.kill(away),
                false => s.power_cut(away, *dice.pick(&CutPolicy::ALL)),
            }
            s.pass(dice.within(1, 300));
        }
        s.start(away);
        whole(&mut s, away, 60_000);
        if s.world.has_failed() {
            break;
        }
    }
    restart_all(&mut s);
    s.end()
}

/// A node that comes when the log does not begin at its start any more gets the state, and then has a vote.
fn new_node(set: Setup) -> World {
    let mut s = begin(set, 1);
    forget(&mut s, LogIndex(8));
    let (group, new) = (GroupId::METADATA, 3);
    let founders: Vec<_> = (0..3).map(address).collect();
    let mut all = founders.clone();
    for _ in 0..2_000 {
        let at = leader(&mut s);
        let Some(seen) = status(&s, at) else { continue };
        if seen.members.voters.len() == 4 && !seen.members.is_joint() {
            break;
        }
        let (voters, learners) = match seen.members.learners.is_empty() {
            true => (founders.clone(), vec![address(new)]),
            false => (all.clone(), Vec::new()),
        };
        if !seen.members.learners.is_empty() && status(&s, new).is_none() {
            let since: (Term, LogIndex) = (seen.term, seen.applied);
            let config = GroupConfig { since, ..GroupConfig::new(group, founders.clone()) };
            s.world.nodes[new].config.groups.push(config.clone());
            s.world.give(new, Event::Join(config), 0);
            all.push(address(new));
        }
        if seen.members.voters.len() == 3 {
            s.world.give(at, Event::Configure { group, voters, learners }, 0);
        }
        propose(&mut s, 1);
        s.pass(20);
        if s.world.has_failed() {
            return s.end();
        }
    }
    whole(&mut s, new, 30_000);
    let fetches = s.world.nodes[new].control.fetches;
    s.must(fetches > 0, || "the new node was brought up by the log".to_owned());
    let votes = status(&s, new).is_some_and(|g| g.members.voters.len() == 4);
    let text = s.world.describe();
    s.must(votes, || format!("the new node has no vote: {text}"));
    restart_all(&mut s);
    whole(&mut s, new, 30_000);
    s.end()
}

/// The state at one node is lost, or an older one, while the rest of its store is as it was.
fn lost_state(set: Setup) -> World {
    let mut s = super::harmed(set);
    for node in &mut s.world.nodes {
        node.config.limits.metadata_retain_entries = RETAINED;
        node.control.saves = 1.0;
    }
    with_checkpoints(&mut s, 32 << 10);
    let victim = s.world.options.victim as usize;
    propose(&mut s, 10);
    whole(&mut s, victim, 10_000);
    let older = s.world.nodes[victim].store.metadata;
    forget(&mut s, LogIndex(older.index + 20));
    whole(&mut s, victim, 10_000);
    s.kill(victim);
    s.world.damaged = true;
    s.world.nodes[victim].store.metadata =
        if set.seed.is_multiple_of(2) { older } else { Default::default() };
    s.start(victim);
    propose(&mut s, 20);
    whole(&mut s, victim, 30_000);
    restart_all(&mut s);
    s.end()
}

/// All nodes stop and go on from a state that came another way, with what they had of the group still on their devices
/// and in their checkpoints; twice, the second time from a later one. In between they crash.
fn begins_anew(set: Setup) -> World {
    let mut s = begin(set, 0);
    let mut dice = dice(set.seed);
    propose(&mut s, 30);
    if dice.chance(0.5) {
        forget(&mut s, LogIndex(8));
    }
    for round in 1..=2 {
        let all = 0..s.world.nodes.len();
        for n in all.clone() {
            match dice.chance(0.5) {
                true => s.kill(n),
                false => s.power_cut(n, *dice.pick(&CutPolicy::ALL)),
            }
        }
        let begins = (Term(round << 40), LogIndex(round << 40));
        for n in all.clone() {
            let node = &mut s.world.nodes[n];
            let held = node.config.groups.iter_mut().find(|group| group.id == GroupId::METADATA);
            held.expect("every node of the scenario holds it").begins = begins;
            node.store.metadata = State::restored(begins.1.0, round);
        }
        for _ in 0..3 {
            all.clone().for_each(|n| s.start(n));
            leader(&mut s);
            propose(&mut s, dice.within(1, 40) as u32);
            s.pass(dice.within(1, 2_000));
            let victim = dice.within(0, 2) as Who;
            s.kill(victim);
            s.pass(dice.within(1, 500));
            s.start(victim);
            all.clone().for_each(|n| whole(&mut s, n, 30_000));
            all.clone().for_each(|n| s.kill(n));
            if s.world.has_failed() {
                return s.end();
            }
        }
        all.for_each(|n| s.start(n));
        leader(&mut s);
        propose(&mut s, 10);
    }
    restart_all(&mut s);
    s.end()
}
