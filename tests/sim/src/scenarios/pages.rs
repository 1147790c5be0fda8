//! Replicas that are brought up by pages, because the logs do not reach back to what they have.

use super::votes::prefer;
use super::{dice, do_damage, with_checkpoints};
use crate::disk::{CutPolicy, Damage};
use crate::event::Who;
use crate::options::{Families, Family};
use crate::rng::Rng;
use crate::script::{Script, Setup};
use crate::snapshots::Snapshot;
use crate::workload::{Kind, Plan, windows};
use crate::world::World;
use basalt_core::consensus::MovedCounts;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::ids::GroupId;

fn begin(set: Setup, families: Families) -> Script {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.families = families;
        o.chunks = 2;
    });
    for node in &mut s.world.nodes {
        node.config.limits.log_retain_bytes = 32 << 10;
    }
    with_checkpoints(&mut s, 32 << 10);
    s
}

pub(super) fn moved(s: &Script, n: Who) -> MovedCounts {
    let shard = s.world.nodes[n].shard.as_ref();
    shard.map_or(MovedCounts::default(), |shard| shard.status().moved)
}

/// Waits until a node has applied all that its leader has, and serves reads.
pub(super) fn caught_up(s: &mut Script, n: Who, ms: u64) {
    let g = GroupId(0);
    s.wait("the replica is brought up", ms, |w, _| {
        let state = |n: usize| {
            let status = w.nodes[n].shard.as_ref()?.status();
            status.groups.into_iter().find(|group| group.group == g)
        };
        let last = (0..3).filter_map(state).map(|group| group.last).max();
        state(n).is_some_and(|group| Some(group.applied) == last && !group.fuzzy)
    });
}

/// A follower that was away gets no more than what was written meanwhile, several times over.
pub fn away_for_long(set: Setup) -> World {
    let mut s = begin(set, Families::NONE);
    // A chunk full of blocks that do not change any more.
    for block in 0..16 {
        s.write(CHUNK_BLOCKS + block);
    }
    s.work(20, 20_000);
    let leader = s.wait_leader(None, 5_000);
    let away = s.other(leader);
    s.kill(away);
    s.work(240, 60_000);
    s.pass(1_000);
    s.start(away);
    caught_up(&mut s, away, 20_000);
    let counts = moved(&s, away);
    s.must(counts.restored > 0, || "the replica was brought up by its log".to_owned());
    // Blocks 0 to 15 of one chunk changed.
    s.must(counts.blocks_taken <= 3 * 16, || format!("16 blocks changed, moved were {counts:?}"));
    s.work(20, 20_000);
    s.end()
}

/// Crashes of the follower and of the leader in the middle.
pub fn crashes_in_the_middle(set: Setup) -> World {
    let mut s = begin(set, Families::NONE);
    let mut dice = dice(set.seed);
    for round in 0..5 {
        let leader = s.wait_leader(None, 20_000);
        let away = s.other(leader);
        s.kill(away);
        s.work(100, 60_000);
        s.start(away);
        s.pass_micros(dice.log_uniform(1e3, 1.5e6) as u64);
        if round % 2 == 0 {
            s.power_cut(away, *dice.pick(&CutPolicy::ALL));
            s.pass(dice.within(1, 300));
            s.start(away);
        } else {
            s.kill(leader);
            s.write(3);
            s.pass(dice.within(1, 3_000));
            s.start(leader);
        }
        s.work(8, 60_000);
    }
    s.end()
}

/// The follower crashes between going over and the checkpoint that makes it durable, while writes go
/// on, and the leader is gone when it comes back: the two that are left must serve.
pub fn crash_before_its_checkpoint(set: Setup) -> World {
    let mut s = begin(set, Families::NONE);
    let leader = s.wait_leader(None, 20_000);
    let away = s.other(leader);
    s.kill(away);
    s.work(100, 60_000);
    s.pass(1_000);
    s.start(away);
    for i in 0..4_000 {
        if moved(&s, away).restored > 0 {
            break;
        }
        if i % 20 == 0 {
            s.write(i / 20 % 12);
        }
        s.pass(1);
    }
    let restored = moved(&s, away).restored;
    s.must(restored > 0, || "the replica was not brought up".to_owned());
    for block in 0..6 {
        s.write(block);
    }
    s.pass_micros(2_000 + 1_500 * set.seed);
    s.power_cut(away, CutPolicy::Keep);
    s.kill(leader);
    s.start(away);
    s.wait_leader(None, 20_000);
    s.work(12, 30_000);
    s.start(leader);
    s.end()
}

/// Blocks of the leader are damaged: the follower gets them from another leader, and none of them as
/// good.
pub fn damaged_leader(set: Setup) -> World {
    with_damaged_leader(set, false)
}

/// The same where the damaged node is the one that should lead: it does not get its place back before
/// the follower has what it needs.
pub fn damaged_home(set: Setup) -> World {
    with_damaged_leader(set, true)
}

fn with_damaged_leader(set: Setup, preferred: bool) -> World {
    let mut s = begin(set, Families::NONE.with(Family::Damage));
    s.work(20, 20_000);
    let leader = s.wait_leader(None, 20_000);
    if preferred {
        prefer(&mut s, leader);
    }
    let away = s.other(leader);
    s.kill(away);
    s.work(120, 60_000);
    s.pass(500);
    s.world.options.victim = leader as u32;
    do_damage(&mut s, Damage::Rot, 60);
    s.start(away);
    caught_up(&mut s, away, 40_000);
    (0..14).for_each(|block| s.read(block));
    s.wait_answers(20_000);
    s.end()
}

/// Reads and writes go on while a replica is brought up again and again.
pub fn reads_go_on(set: Setup) -> World {
    let mut s = begin(set, Families::NONE);
    for _ in 0..4 {
        let leader = s.wait_leader(None, 20_000);
        let away = s.other(leader);
        s.isolate(away);
        s.work(100, 60_000);
        s.heal();
        for i in 0..150 {
            s.write(i % 12);
            s.read(i * 5 % 12);
            s.pass(5);
        }
        s.wait_answers(20_000);
    }
    s.end()
}

fn take_one(s: &mut Script) {
    let client = s.client;
    let at = s.world.plan_snapshot(0);
    s.world.ask_snapshot(client, at);
}

fn drop_one(s: &mut Script, dice: &mut Rng) {
    let there = s.world.snapshots_of(0, Snapshot::is_there);
    if !there.is_empty() {
        let (at, client) = (*dice.pick(&there), s.client);
        s.world.drop_snapshot(client, at);
    }
}

/// Reads everything of one snapshot, which fixes what it holds.
fn read_snapshot(s: &mut Script, at: usize) {
    let view = s.world.attach_view(at, 0);
    let chunks = s.world.snapshots[at].chunks;
    for (low, high) in windows(&s.world.options, chunks) {
        let plan = Plan { kind: Kind::Read, unit: low, count: (high - low) as u32 };
        s.world.submit_plan(view, plan);
    }
}

fn views_are_answered(s: &mut Script) {
    s.wait("snapshots are read", 60_000, |w, _| w.clients.iter().all(|c| c.pending() == 0));
}

/// Goes back to the newest snapshot, all of which was read before.
fn go_back(s: &mut Script) {
    let there = s.world.snapshots_of(0, Snapshot::is_there);
    let Some(at) = there.last().copied() else { return };
    read_snapshot(s, at);
    views_are_answered(s);
    let generation = u64::from(s.world.snapshots[at].generation);
    s.ask(Kind::Revert, generation, 1);
    s.wait_answers(60_000);
}

/// Reads all snapshots with all replicas, then with one alone: what it holds is what they hold.
fn read_with(s: &mut Script, one: Who) {
    let there = s.world.snapshots_of(0, Snapshot::is_there);
    there.iter().for_each(|at| read_snapshot(s, *at));
    views_are_answered(s);
    let others: Vec<Who> = (0..3).filter(|n| *n != one).collect();
    others.iter().for_each(|n| s.kill(*n));
    there.iter().for_each(|at| read_snapshot(s, *at));
    views_are_answered(s);
    others.iter().for_each(|n| s.start(*n));
}

/// A follower is away while snapshots are taken, dropped and gone back to and the volume grows, and the
/// log is cut behind all of it. It gets pages: every snapshot reads the same on it alone as elsewhere, and
/// once all are dropped nothing is kept.
pub fn snapshots_while_away(set: Setup) -> World {
    let mut s = begin(set, Families::NONE.with(Family::Grow));
    let mut dice = dice(set.seed);
    s.work(20, 20_000);
    for round in 0..3 {
        let leader = s.wait_leader(None, 20_000);
        let away = s.other(leader);
        take_one(&mut s);
        s.kill(away);
        for _ in 0..4 {
            s.work(30, 60_000);
            take_one(&mut s);
            s.ask(Kind::Unmap, dice.below(8), 3);
            s.wait_answers(60_000);
        }
        if round == 1 {
            go_back(&mut s);
        }
        drop_one(&mut s, &mut dice);
        s.world.grow(0, 2 + round);
        s.work(60, 60_000);
        s.pass(1_000);
        s.start(away);
        // What is done to snapshots goes on while pages are copied.
        s.pass_micros(dice.log_uniform(1e4, 1e6) as u64);
        take_one(&mut s);
        drop_one(&mut s, &mut dice);
        s.work(12, 60_000);
        caught_up(&mut s, away, 40_000);
        let counts = moved(&s, away);
        s.must(counts.restored > 0, || "the replica was brought up by its log".to_owned());
        read_with(&mut s, away);
        s.wait_leader(None, 60_000);
    }
    loop {
        let there = s.world.snapshots_of(0, |snapshot| !snapshot.is_dropped());
        let Some(at) = there.first().copied() else { break };
        let client = s.client;
        s.world.drop_snapshot(client, at);
        s.work(4, 60_000);
    }
    s.end()
}
