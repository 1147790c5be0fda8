//! Clones while things go wrong.

use super::pages::{caught_up, moved};
use super::{Scenario, dice, with_checkpoints};
use crate::event::Who;
use crate::rng::Rng;
use crate::script::{Script, Setup};
use crate::snapshots::Snapshot;
use crate::workload::{Kind, Plan, windows};
use crate::world::World;

const CHUNKS: u64 = 4;

/// All of them.
pub fn all() -> Vec<Scenario> {
    let s = |name, seeds, play| Scenario { name, play, seeds };
    vec![
        s("clones-go-their-own-ways-while-leaders-die", 8, leaders_die),
        s("clones-survive-power-cuts-and-checkpoints", 8, power_cuts),
        s("follower-away-while-clones-begin", 8, follower_away),
        s("clones-flattened-while-leaders-die", 8, flattened_under_fire),
        s("clones-flattened-through-power-cuts", 8, flattened_through_power_cuts),
    ]
}

fn begin(set: Setup, groups: u32) -> Script {
    Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        (o.groups, o.chunks) = (groups, CHUNKS as u32);
    })
}

/// Writes, and unmaps now and then, here and there in some volumes, each by the session that has it.
fn work(s: &mut Script, dice: &mut Rng, volumes: &[usize], count: u64) {
    for _ in 0..count {
        let who = s.world.volumes[*dice.pick(volumes)].client;
        let kind = if dice.chance(0.2) { Kind::Unmap } else { Kind::Write };
        let unit = dice.below(CHUNKS) * 1024 + dice.below(14);
        s.world.submit_plan(who, Plan { kind, unit, count: dice.within(1, 3) as u32 });
    }
}

pub(super) fn answers(s: &mut Script) {
    s.wait("everything is answered", 60_000, |w, _| w.clients.iter().all(|c| c.is_settled()));
}

/// Reads all that some volumes hold.
pub(super) fn read_all(s: &mut Script, volumes: &[usize]) {
    for volume in volumes {
        let (who, chunks) = (s.world.volumes[*volume].client, s.world.volumes[*volume].chunks);
        for (low, high) in windows(&s.world.options, chunks) {
            let plan = Plan { kind: Kind::Read, unit: low, count: (high - low) as u32 };
            s.world.submit_plan(who, plan);
        }
    }
}

pub(super) fn snapshot(s: &mut Script, volume: usize) -> usize {
    s.world.take_snapshot(volume);
    answers(s);
    s.world.snapshots.len() - 1
}

/// Waits until a clone is handed out.
pub(super) fn handed_out(s: &mut Script, volume: usize) {
    s.wait("the clone is handed out", 60_000, move |w, _| {
        let who = w.volumes[volume].client;
        w.volumes[volume].begun && w.client(who).ready.is_some()
    });
}

/// Clones, and clones of clones, go their own ways while leaders die.
fn leaders_die(set: Setup) -> World {
    let (mut s, mut dice) = (begin(set, 4), dice(set.seed));
    let mut volumes = vec![0];
    for _ in 0..4 {
        work(&mut s, &mut dice, &volumes, 24);
        answers(&mut s);
        let of = *dice.pick(&volumes);
        let at = snapshot(&mut s, of);
        let leader = s.wait_leader(None, 20_000);
        let clone = s.world.begin_clone(at, 0);
        work(&mut s, &mut dice, &volumes, 8);
        s.pass_micros(dice.below(600));
        s.kill(leader);
        handed_out(&mut s, clone);
        volumes.push(clone);
        work(&mut s, &mut dice, &volumes, 24);
        answers(&mut s);
        read_all(&mut s, &volumes);
        let by = s.world.volumes[of].client;
        s.world.drop_in_vain(by, at);
        s.start(leader);
        answers(&mut s);
        if dice.chance(0.5) {
            snapshot(&mut s, clone);
        }
    }
    read_all(&mut s, &volumes);
    s.end()
}

/// What clones are stands in checkpoints: all nodes lose power with clones in every state.
fn power_cuts(set: Setup) -> World {
    let (mut s, mut dice) = (begin(set, 2), dice(set.seed));
    with_checkpoints(&mut s, 64 << 10);
    let mut volumes = vec![0];
    for _ in 0..4 {
        work(&mut s, &mut dice, &volumes, 40);
        answers(&mut s);
        let of = *dice.pick(&volumes);
        let at = snapshot(&mut s, of);
        let clone = s.world.begin_clone(at, 0);
        let early = dice.chance(0.5);
        if early {
            handed_out(&mut s, clone);
            volumes.push(clone);
        }
        work(&mut s, &mut dice, &volumes, 30);
        s.pass_micros(dice.log_uniform(1e2, 2e5) as u64);
        for n in 0..3 {
            let policy = *dice.pick(&crate::disk::CutPolicy::ALL);
            s.power_cut(n, policy);
        }
        (0..3).for_each(|n| s.start(n));
        if !early {
            handed_out(&mut s, clone);
            volumes.push(clone);
        }
        answers(&mut s);
        read_all(&mut s, &volumes);
        answers(&mut s);
    }
    s.end()
}

fn drop_one(s: &mut Script, dice: &mut Rng, volumes: &[usize]) {
    let there = volumes.iter().flat_map(|v| s.world.snapshots_of(*v, Snapshot::is_there));
    let there: Vec<usize> = there.filter(|at| !s.world.may_hold_clones(*at)).collect();
    if !there.is_empty() {
        let at = *dice.pick(&there);
        let by: Who = s.world.volumes[s.world.snapshots[at].volume].client;
        s.world.drop_snapshot(by, at);
    }
}

/// A follower is away while clones are begun, written, unmapped and snapshotted, and gets pages.
fn follower_away(set: Setup) -> World {
    let (mut s, mut dice) = (begin(set, 1), dice(set.seed));
    for node in &mut s.world.nodes {
        node.config.limits.log_retain_bytes = 32 << 10;
    }
    with_checkpoints(&mut s, 32 << 10);
    let mut volumes = vec![0];
    work(&mut s, &mut dice, &volumes, 30);
    answers(&mut s);
    for _ in 0..3 {
        let leader = s.wait_leader(None, 20_000);
        let away = s.other(leader);
        s.kill(away);
        let of = *dice.pick(&volumes);
        let at = snapshot(&mut s, of);
        let clone = s.world.begin_clone(at, 0);
        handed_out(&mut s, clone);
        volumes.push(clone);
        for _ in 0..6 {
            work(&mut s, &mut dice, &volumes, 24);
            answers(&mut s);
            let of = *dice.pick(&volumes);
            snapshot(&mut s, of);
            drop_one(&mut s, &mut dice, &volumes);
            answers(&mut s);
        }
        s.pass(1_000);
        s.start(away);
        // Another one is begun while pages are copied.
        s.pass_micros(dice.log_uniform(1e4, 1e6) as u64);
        let late = s.world.begin_clone(at, 0);
        work(&mut s, &mut dice, &volumes, 12);
        handed_out(&mut s, late);
        volumes.push(late);
        answers(&mut s);
        caught_up(&mut s, away, 40_000);
        let counts = moved(&s, away);
        s.must(counts.restored > 0, || "the replica was brought up by its log".to_owned());
        read_all(&mut s, &volumes);
        answers(&mut s);
    }
    s.end()
}

/// Waits until a clone hangs on nothing any more.
fn flattened(s: &mut Script, volume: usize) {
    s.wait("the clone is flattened", 120_000, move |w, _| w.volumes[volume].detached);
}

/// Drops all snapshots of a volume.
fn drop_all(s: &mut Script, volume: usize) {
    let by = s.world.volumes[volume].client;
    for at in s.world.snapshots_of(volume, Snapshot::is_there) {
        s.world.drop_snapshot(by, at);
    }
}

/// A volume, a clone of it with snapshots of its own, and a clone of that, all of them written to and unmapped
/// here and there.
fn three_generations(s: &mut Script, dice: &mut Rng) -> [usize; 3] {
    let mut volumes = vec![0];
    for _ in 0..2 {
        let of = volumes.len() - 1;
        work(s, dice, &volumes, 24);
        answers(s);
        let at = snapshot(s, of);
        let clone = s.world.begin_clone(at, 0);
        handed_out(s, clone);
        volumes.push(clone);
        work(s, dice, &volumes, 16);
        answers(s);
        snapshot(s, clone);
    }
    [volumes[0], volumes[1], volumes[2]]
}

/// Clones are flattened while they are written to and leaders die; what they hung on goes, and nothing that
/// reads as it did before is lost.
fn flattened_under_fire(set: Setup) -> World {
    let (mut s, mut dice) = (begin(set, 4), dice(set.seed));
    let volumes = three_generations(&mut s, &mut dice);
    let order = if dice.chance(0.5) { [1, 2] } else { [2, 1] };
    for clone in order {
        let clone = volumes[clone];
        let leader = s.wait_leader(None, 20_000);
        s.world.begin_flatten(clone);
        work(&mut s, &mut dice, &volumes, 24);
        s.pass_micros(dice.log_uniform(1e2, 1e5) as u64);
        s.kill(leader);
        work(&mut s, &mut dice, &volumes, 12);
        flattened(&mut s, clone);
        s.start(leader);
        answers(&mut s);
        read_all(&mut s, &volumes);
    }
    answers(&mut s);
    for volume in volumes {
        drop_all(&mut s, volume);
    }
    answers(&mut s);
    let left = s.world.snapshots.iter().filter(|snapshot| !snapshot.is_dropped()).count();
    s.must(left == 0, || format!("{left} snapshots stay below no clone"));
    read_all(&mut s, &volumes);
    s.end()
}

/// All nodes lose power while clones are flattened, and one is away and gets pages.
fn flattened_through_power_cuts(set: Setup) -> World {
    let (mut s, mut dice) = (begin(set, 2), dice(set.seed));
    for node in &mut s.world.nodes {
        node.config.limits.log_retain_bytes = 32 << 10;
    }
    with_checkpoints(&mut s, 32 << 10);
    let volumes = three_generations(&mut s, &mut dice);
    let away = dice.below(3) as usize;
    for clone in [volumes[1], volumes[2]] {
        s.kill(away);
        s.world.begin_flatten(clone);
        work(&mut s, &mut dice, &volumes, 30);
        s.pass_micros(dice.log_uniform(1e3, 1e6) as u64);
        for n in (0..3).filter(|n| *n != away) {
            let policy = *dice.pick(&crate::disk::CutPolicy::ALL);
            s.power_cut(n, policy);
        }
        (0..3).filter(|n| *n != away).for_each(|n| s.start(n));
        flattened(&mut s, clone);
        let above = s.world.volumes[clone].above.expect("it was a clone");
        let by = s.world.volumes[s.world.snapshots[above].volume].client;
        s.world.drop_snapshot(by, above);
        work(&mut s, &mut dice, &volumes, 60);
        answers(&mut s);
        s.start(away);
        caught_up(&mut s, away, 40_000);
        read_all(&mut s, &volumes);
        answers(&mut s);
    }
    s.end()
}
