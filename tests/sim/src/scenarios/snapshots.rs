//! Snapshots while things go wrong.

use super::{Scenario, dice};
use crate::script::{Script, Setup};
use crate::snapshots::Snapshot;
use crate::workload::{Kind, Plan, windows};
use crate::world::World;

/// The scenarios of this module.
pub fn all() -> [Scenario; 5] {
    let s = |name, seeds, play| Scenario { name, play, seeds };
    [
        s("snapshot-while-a-leader-dies", 8, leader_dies),
        s("snapshot-goes-on-in-another-session", 8, another_session),
        s("snapshots-dropped-in-any-order-give-all-back", 6, dropped_in_any_order),
        s("reverted-volume-goes-on-from-its-snapshot", 6, reverted),
        s("snapshots-survive-power-cuts-and-checkpoints", 8, power_cuts),
    ]
}

fn wide(set: Setup) -> Script {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        (o.groups, o.chunks) = (4, 4);
    });
    // A replica that needs entries which are gone is not brought up once there are snapshots.
    for n in 0..3 {
        s.world.nodes[n].config.limits.log_retain_bytes = 1 << 40;
        s.kill(n);
    }
    (0..3).for_each(|n| s.start(n));
    s.wait_leader(None, 10_000);
    s
}

/// Writes one block after the other, each in another chunk than the one before, up to `depth` at once.
fn write_in_turn(s: &mut Script, from: u64, count: u64, depth: u64) {
    for i in from..from + count {
        s.write(i % 4 * 1024 + i / 4 % 16);
        if i % depth == depth - 1 {
            s.wait_answers(60_000);
        }
    }
}

fn read_all(s: &mut Script) {
    for at in s.world.snapshots_of(0, Snapshot::is_there) {
        s.world.attach_view(at, 6);
    }
}

/// The leader dies with a snapshot and writes under way.
pub fn leader_dies(set: Setup) -> World {
    let mut s = wide(set);
    let mut dice = dice(set.seed);
    for round in 0..5 {
        write_in_turn(&mut s, round * 20, 12, 4);
        let leader = s.wait_leader(None, 20_000);
        write_in_turn(&mut s, round * 20 + 12, 4, 8);
        s.world.take_snapshot(0);
        write_in_turn(&mut s, round * 20 + 16, 4, 8);
        s.pass_micros(dice.below(600));
        s.kill(leader);
        s.wait_answers(60_000);
        read_all(&mut s);
        s.start(leader);
        s.pass(500);
    }
    s.end()
}

/// A session dies with a snapshot that not every group has heard of; another one goes on behind it.
pub fn another_session(set: Setup) -> World {
    let mut s = wide(set);
    let mut dice = dice(set.seed);
    for round in 0..4 {
        write_in_turn(&mut s, round * 40, 16, 4);
        let cut_off = dice.below(3) as usize;
        s.cut(s.client, cut_off);
        s.world.take_snapshot(0);
        write_in_turn(&mut s, round * 40 + 16, 3, 8);
        s.pass_micros(dice.below(2_000));
        s.attach_elsewhere();
        s.wait("the new session begins", 60_000, |w, c| w.client(c).ready.is_some());
        s.heal();
        write_in_turn(&mut s, round * 40 + 20, 16, 1);
        let at = s.world.snapshots.len() - 1;
        s.world.ask_snapshot(s.client, at);
        write_in_turn(&mut s, round * 40 + 36, 4, 2);
        s.wait_answers(60_000);
        read_all(&mut s);
    }
    s.end()
}

/// Snapshots are dropped in any order while the volume is written: those that are left never change,
/// and at last nothing is kept.
pub fn dropped_in_any_order(set: Setup) -> World {
    let mut s = wide(set);
    let mut dice = dice(set.seed);
    for round in 0..8u64 {
        write_in_turn(&mut s, dice.below(64), 24, 8);
        s.ask(Kind::Unmap, dice.below(12), 3);
        s.world.take_snapshot(0);
        s.wait_answers(30_000);
        if round == 4 {
            let n = dice.below(3) as usize;
            s.kill(n);
            s.start(n);
        }
    }
    loop {
        let there = s.world.snapshots_of(0, Snapshot::is_there);
        if there.is_empty() {
            break;
        }
        read_all(&mut s);
        let (at, client) = (*dice.pick(&there), s.client);
        s.world.drop_snapshot(client, at);
        write_in_turn(&mut s, dice.below(64), 8, 8);
        s.wait_answers(30_000);
    }
    s.end()
}

/// A volume is reverted while a leader dies, and goes on from there.
pub fn reverted(set: Setup) -> World {
    let mut s = wide(set);
    let mut dice = dice(set.seed);
    for round in 0..4 {
        write_in_turn(&mut s, round * 8, 24, 8);
        let at = s.world.plan_snapshot(0);
        s.world.ask_snapshot(s.client, at);
        s.wait_answers(60_000);
        write_in_turn(&mut s, round * 8 + 5, 24, 8);
        s.ask(Kind::Unmap, dice.below(12), 3);
        s.world.take_snapshot(0);
        s.wait_answers(60_000);
        write_in_turn(&mut s, round * 8 + 9, 8, 8);
        s.wait_answers(60_000);
        // All of it, so that it is known what the revert brings back.
        let view = s.world.attach_view(at, 0);
        for (low, high) in windows(&s.world.options, s.world.volumes[0].chunks) {
            let plan = Plan { kind: Kind::Read, unit: low, count: (high - low) as u32 };
            s.world.submit_plan(view, plan);
        }
        s.wait("the snapshot is read", 60_000, |w, _| w.clients.iter().all(|c| c.pending() == 0));
        let generation = u64::from(s.world.snapshots[at].generation);
        let leader = s.wait_leader(None, 20_000);
        s.ask(Kind::Revert, generation, 1);
        s.pass_micros(dice.below(600));
        s.kill(leader);
        s.wait_answers(60_000);
        for (low, high) in windows(&s.world.options, s.world.volumes[0].chunks) {
            s.ask(Kind::Read, low, (high - low) as u32);
        }
        s.wait_answers(60_000);
        s.start(leader);
        write_in_turn(&mut s, round * 8 + 3, 12, 4);
    }
    s.end()
}

/// Snapshots stand in checkpoints: all nodes lose power with many of them there.
pub fn power_cuts(set: Setup) -> World {
    let mut s = wide(set);
    let mut dice = dice(set.seed);
    for n in 0..3 {
        s.world.nodes[n].config.checkpoint_bytes = 64 << 10;
        s.kill(n);
        s.start(n);
    }
    for round in 0..4u64 {
        for _ in 0..3 {
            write_in_turn(&mut s, dice.below(64), 40, 8);
            s.world.take_snapshot(0);
            write_in_turn(&mut s, dice.below(64), 20, 8);
            s.wait_answers(30_000);
        }
        let there = s.world.snapshots_of(0, Snapshot::is_there);
        let (at, client) = (*dice.pick(&there), s.client);
        s.world.drop_snapshot(client, at);
        write_in_turn(&mut s, round * 8, 8, 8);
        for n in 0..3 {
            let policy = *dice.pick(&crate::disk::CutPolicy::ALL);
            s.power_cut(n, policy);
        }
        (0..3).for_each(|n| s.start(n));
        s.wait_answers(60_000);
        read_all(&mut s);
        s.pass(1_000);
    }
    s.end()
}
