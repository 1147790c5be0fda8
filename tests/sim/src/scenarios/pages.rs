//! Replicas that are brought up by pages, because the logs do not reach back to what they have.

use super::{dice, do_damage, with_checkpoints};
use crate::disk::{CutPolicy, Damage};
use crate::event::Who;
use crate::options::{Families, Family};
use crate::script::{Script, Setup};
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

fn moved(s: &Script, n: Who) -> MovedCounts {
    let shard = s.world.nodes[n].shard.as_ref();
    shard.map_or(MovedCounts::default(), |shard| shard.status().moved)
}

/// Waits until a node has applied all that its leader has, and serves reads.
fn caught_up(s: &mut Script, n: Who, ms: u64) {
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
    let mut s = begin(set, Families::NONE.with(Family::Damage));
    s.work(20, 20_000);
    let leader = s.wait_leader(None, 20_000);
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
