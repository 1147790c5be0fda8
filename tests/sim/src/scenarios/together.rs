//! Several volumes, attached by different clients, are cut together.

use super::{Scenario, dice};
use crate::script::{Script, Setup};
use crate::workload::{Kind, Plan, windows};
use crate::world::{Volume, World};

const VOLUMES: usize = 3;

/// The scenarios of this module.
pub fn all() -> [Scenario; 3] {
    let s = |name, seeds, play| Scenario { name, play, seeds };
    [
        s("volumes-cut-together-one-after-the-other", 8, cut_in_turn),
        s("volumes-cut-together-while-a-leader-dies", 12, leader_dies),
        s("cut-that-nobody-goes-on-with", 6, nobody_goes_on),
    ]
}

/// Three volumes in four groups.
fn three(set: Setup) -> Script {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        (o.groups, o.chunks) = (4, 4);
    });
    for volume in 1..VOLUMES {
        s.world.volumes.push(Volume::new(volume as u64 + 1, &s.world.options));
        s.world.attach(volume, 0);
    }
    s.wait("all are attached", 10_000, |w, _| w.clients.iter().all(|c| c.ready.is_some()));
    s
}

/// Writes one block after the other, each on another volume than the one before and when that one is
/// acknowledged: what no single point in time shows otherwise.
#[derive(Default)]
struct Chain {
    length: u64,
}

impl Chain {
    fn client(&self, s: &Script) -> usize {
        s.world.volumes[self.length as usize % VOLUMES].client
    }

    /// Goes on with it for so many microseconds.
    fn pass(&mut self, s: &mut Script, micros: u64) {
        for _ in 0..micros.div_ceil(20) {
            let last = self.client(s);
            if s.world.client(last).pending() == 0 {
                self.length += 1;
                let next = self.client(s);
                let unit = self.length % 4 * 1024 + self.length / 4 % 16;
                s.world.submit_plan(next, Plan { kind: Kind::Write, unit, count: 1 });
            }
            s.pass_micros(20);
        }
    }

    /// Waits until its last write is answered.
    fn settle(&mut self, s: &mut Script, ms: u64) {
        let last = self.client(s);
        s.wait("the chain goes on", ms, |w, _| w.client(last).pending() == 0);
    }
}

/// Begins a cut of all volumes, the steps of which are taken by hand, and lets all gates be closed.
fn close_gates(s: &mut Script) -> usize {
    let at = s.world.begin_cut(&[0, 1, 2]);
    s.world.together[at].by_hand = true;
    s.wait("all gates are closed", 5_000, |w, _| w.together[at].is_due());
    at
}

/// Takes the next step of a cut with one volume after the other, in any order, while the chain goes on.
fn step_in_turn(s: &mut Script, chain: &mut Chain, at: usize, dice: &mut crate::rng::Rng) {
    let first = dice.below(VOLUMES as u64) as usize;
    for i in 0..VOLUMES {
        s.world.ask_for_cut_of(at, (first + i) % VOLUMES);
        chain.pass(s, 200 + dice.below(3_000));
    }
}

/// All of every snapshot that was taken together and is there.
fn read_all(s: &mut Script) {
    let all: Vec<usize> = (0..s.world.snapshots.len()).collect();
    for at in all.into_iter().filter(|at| s.world.snapshots[*at].is_there()).collect::<Vec<_>>() {
        let view = s.world.attach_view(at, 0);
        for (low, high) in windows(&s.world.options, s.world.snapshots[at].chunks) {
            let plan = Plan { kind: Kind::Read, unit: low, count: (high - low) as u32 };
            s.world.submit_plan(view, plan);
        }
    }
    s.wait("the snapshots are read", 60_000, |w, _| w.clients.iter().all(|c| c.pending() == 0));
}

/// Whoever leads a cut reaches one volume late, and another one first: writes that go from one to the other
/// meanwhile are all in it, or wait.
pub fn cut_in_turn(set: Setup) -> World {
    let mut s = three(set);
    let (mut dice, mut chain) = (dice(set.seed), Chain::default());
    for _ in 0..5 {
        chain.pass(&mut s, 2_000);
        let at = close_gates(&mut s);
        step_in_turn(&mut s, &mut chain, at, &mut dice);
        s.wait("all are frozen", 5_000, |w, _| w.together[at].is_due());
        step_in_turn(&mut s, &mut chain, at, &mut dice);
        s.wait("all are kept", 5_000, |w, _| w.together[at].done.is_some());
        chain.pass(&mut s, 500);
    }
    chain.settle(&mut s, 5_000);
    read_all(&mut s);
    s.end()
}

/// The same, and a node dies in the middle: the cut is complete, or it is given up and nothing is kept.
pub fn leader_dies(set: Setup) -> World {
    let mut s = three(set);
    let (mut dice, mut chain) = (dice(set.seed), Chain::default());
    for _ in 0..5 {
        chain.pass(&mut s, 2_000);
        let at = close_gates(&mut s);
        let (lost, when) = (dice.below(3) as usize, dice.below(4));
        for step in 0..2 {
            if when == step {
                s.kill(lost);
            }
            step_in_turn(&mut s, &mut chain, at, &mut dice);
            if when == step + 2 {
                s.kill(lost);
            }
            let came = |w: &mut World, _| w.together[at].is_due() || w.together[at].is_over();
            s.wait("the step comes to an end", 60_000, came);
            if s.world.together[at].is_over() {
                break;
            }
        }
        s.wait("the cut comes to an end", 60_000, |w, _| w.together[at].is_over());
        chain.settle(&mut s, 20_000);
        read_all(&mut s);
        s.start(lost);
        s.pass(1_500);
    }
    s.end()
}

/// Nobody goes on with a cut that was begun: no write waits for long, and what was kept is dropped.
pub fn nobody_goes_on(set: Setup) -> World {
    let mut s = three(set);
    let (mut dice, mut chain) = (dice(set.seed), Chain::default());
    for round in 0..4 {
        chain.pass(&mut s, 2_000);
        let at = close_gates(&mut s);
        for place in 0..round {
            s.world.ask_for_cut_of(at, place);
        }
        chain.pass(&mut s, 500 + dice.below(3_000));
        // A gate is closed for a second at most.
        chain.settle(&mut s, 1_200);
        s.world.give_up_cut(at);
        let gone = |w: &mut World, _| w.snapshots.iter().all(|s| s.is_dropped());
        s.wait("it is dropped", 5_000, gone);
    }
    s.end()
}
