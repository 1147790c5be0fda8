//! Replicas that the leader's log does not reach back to are brought up by pages.

use super::world::{G, Options, Random, World};
use super::{index, ms};
use crate::config::Limits;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{Refusal, ReplyResult, RequestOp};
use basalt_wire::ids::*;

fn world(seed: u64) -> World {
    let limits = Limits { segments_reserved: 1, log_retain_bytes: 32 << 10, ..Limits::default() };
    World::new(Options {
        seed,
        segments: 96,
        checkpoint_bytes: 48 << 10,
        limits,
        ..Options::default()
    })
}

fn writes(world: &mut World, random: &mut Random, epoch: u64, count: u64) {
    for _ in 0..count {
        let leader = world.elect();
        let (block, fill) = (random.below(2) * CHUNK_BLOCKS + random.below(30), random.below(250));
        let op = match random.below(6) {
            0 => RequestOp::Unmap {
                term: Term(world.term(leader)),
                generation: Generation(0),
                range: BlockRange { block, count: 3 },
            },
            _ => world.write_op(leader, block, fill as u8, 1 + random.below(3) as u32),
        };
        index(&world.ask(leader, epoch, op));
    }
}

/// A follower, and the node that is neither it nor the leader.
fn others(world: &mut World) -> (u32, u32) {
    let leader = world.elect();
    let away = leader % 3 + 1;
    (away, away % 3 + 1)
}

fn caught_up(world: &mut World, n: u32) {
    for _ in 0..400 {
        let (leader, status) = (world.elect(), world.status(n));
        if status.applied == world.status(leader).last && !status.fuzzy {
            return;
        }
        world.pass(ms(50));
    }
    panic!("node {n} was not brought up: {:#?}", world.tell());
}

/// Starts a node that nobody hears yet.
fn start_alone(world: &mut World, n: u32) {
    world.isolate(n, true);
    world.start(n);
    world.pass(ms(400));
}

fn restored(world: &World, n: u32) -> u64 {
    world.shard(n).status().moved.restored
}

/// A follower that was away for long has gone over to the state of its leader, and the checkpoint that makes
/// this durable is not saved. Gives the follower and the node that is neither it nor the leader.
fn bring_up_without_saving(world: &mut World, random: &mut Random) -> (u32, u32) {
    world.fence(1);
    writes(world, random, 1, 20);
    let (away, third) = others(world);
    world.crash(away);
    writes(world, random, 1, 100);
    start_alone(world, away);
    // Other checkpoints are under way before the one that it goes over with; that one is not saved.
    world.nodes.get_mut(&away).unwrap().saves_left = 0;
    world.isolate(away, false);
    for _ in 0..8 {
        world.pass(ms(1_000));
        if restored(world, away) == 1 {
            break;
        }
        world.nodes.get_mut(&away).unwrap().saves_left = 1;
    }
    assert_eq!(restored(world, away), 1, "{:#?}", world.tell());
    (away, third)
}

#[test]
fn a_replica_that_was_away_for_long_gets_the_pages_that_changed() {
    for seed in 0..8 {
        let (mut world, mut random) = (world(seed), Random(seed));
        world.fence(1);
        // Many blocks in a page that nobody touches later.
        for block in 0..40 {
            index(&world.write(1, 5 * CHUNK_BLOCKS + block, 9));
        }
        writes(&mut world, &mut random, 1, 20);
        let (away, _) = others(&mut world);
        world.crash(away);
        writes(&mut world, &mut random, 1, 150);
        let leader = world.elect();
        assert!(world.status(leader).first.0 > 60, "the log was not truncated");
        world.start(away);
        caught_up(&mut world, away);
        world.check_converged();
        let moved = world.shard(away).status().moved;
        assert_eq!(moved.restored, 1, "seed {seed}");
        // Two chunks of at most 32 blocks changed; those that are equal are not moved.
        assert!((1..=64).contains(&moved.blocks_taken), "seed {seed}: {moved:?}");
        // What it got in pages is there after a restart, without a session.
        world.crash(away);
        world.start(away);
        caught_up(&mut world, away);
        world.check_converged();
        assert_eq!(restored(&world, away), 0, "seed {seed}");
    }
}

#[test]
fn a_volume_deleted_while_its_replica_was_away_is_gone_there_too() {
    let (mut world, mut random) = (world(3), Random(3));
    world.fence(1);
    writes(&mut world, &mut random, 1, 30);
    let (away, _) = others(&mut world);
    world.crash(away);
    writes(&mut world, &mut random, 1, 60);
    let leader = world.elect();
    let term = Term(world.term(leader));
    index(&world.ask(leader, 1, RequestOp::Delete { term }));
    // Fences fill the log on.
    for epoch in 2..80 {
        index(&world.fence(epoch));
    }
    world.start(away);
    caught_up(&mut world, away);
    assert_eq!(restored(&world, away), 1);
    world.check_converged();
    assert_eq!(world.shard(away).status().mapped_blocks, 0);
}

#[test]
fn crashes_in_the_middle_lose_nothing() {
    for seed in 0..40 {
        let (mut world, mut random) = (world(seed), Random(seed * 7 + 1));
        world.fence(1);
        writes(&mut world, &mut random, 1, 20);
        for _ in 0..3 {
            let (away, third) = others(&mut world);
            world.crash(away);
            writes(&mut world, &mut random, 1, 80);
            world.start(away);
            world.nodes.get_mut(&away).unwrap().saves_held = random.below(2) == 0;
            world.pass(ms(random.below(900)));
            world.shuffle(&mut random, 40);
            let victim = [away, world.leader().unwrap_or(third)][random.below(2) as usize];
            world.crash(victim);
            world.nodes.get_mut(&away).unwrap().saves_held = false;
            world.pass(ms(random.below(2_000)));
            world.start(victim);
            caught_up(&mut world, away);
            caught_up(&mut world, victim);
            world.pass(ms(500));
            world.check_converged();
        }
    }
}

#[test]
fn nothing_is_promised_before_the_checkpoint_and_nothing_served_before_it_is_applied() {
    let (mut world, mut random) = (world(5), Random(5));
    let (away, third) = bring_up_without_saving(&mut world, &mut random);
    let leader = world.elect();
    let (here, there) = (world.status(away), world.status(leader));
    assert_eq!(here.applied, there.last);
    // The leader goes on, and does not count on it.
    writes(&mut world, &mut random, 1, 3);
    assert_eq!(world.status(away).last, here.last);
    // It crashes, and is as it was before: it may vote for the one that is left.
    world.crash(away);
    world.crash(leader);
    world.start(away);
    assert_eq!(world.elect(), third);
    caught_up(&mut world, away);
    world.start(leader);
    caught_up(&mut world, leader);
    world.check_converged();
}

#[test]
fn a_restored_state_is_acknowledged_in_no_term_that_is_not_durable() {
    let (mut world, mut random) = (world(5), Random(5));
    let (away, _) = bring_up_without_saving(&mut world, &mut random);
    // Another one leads in a later term, which the replica hears of and can not write down.
    world.nodes.get_mut(&away).unwrap().writes_held = true;
    let (leader, before) = (world.elect(), world.term(away));
    world.crash(leader);
    world.start(leader);
    world.elect();
    world.pass(ms(200));
    let term = world.term(away);
    assert!(term > before, "{:#?}", world.tell());
    world.log.clear();
    world.nodes.get_mut(&away).unwrap().saves_left = 1;
    world.pass(ms(500));
    let spoken = format!(", term: {:?},", Term(term));
    let from = format!("{away}->");
    let speaks = |world: &World| {
        world.log.iter().any(|line| {
            line.starts_with(&from) && line.contains("group: g0,") && line.contains(&spoken)
        })
    };
    assert!(!speaks(&world), "{:#?}", world.log);
    let node = world.nodes.get_mut(&away).unwrap();
    (node.writes_held, node.saves_left) = (false, usize::MAX);
    world.pass(ms(500));
    assert!(speaks(&world), "it does when it may: {:#?}", world.log);
    caught_up(&mut world, away);
    world.check_converged();
}

#[test]
fn pages_that_are_ahead_are_not_read() {
    let (mut world, mut random) = (world(6), Random(6));
    world.fence(1);
    writes(&mut world, &mut random, 1, 20);
    let (away, _) = others(&mut world);
    world.crash(away);
    writes(&mut world, &mut random, 1, 100);
    // It never gets further than into the middle of a session.
    start_alone(&mut world, away);
    world.nodes.get_mut(&away).unwrap().writes_held = true;
    world.isolate(away, false);
    world.pass(ms(1_000));
    let status = world.status(away);
    assert!(status.fuzzy && restored(&world, away) == 0, "{:#?}", world.tell());
    let floor = LogIndex(0);
    let range = BlockRange { block: 0, count: 1 };
    let behind = ReplyResult::Refused(Refusal::Behind);
    assert_eq!(world.ask(away, 1, RequestOp::Read { range, floor, snapshot: None }), behind);
    assert_eq!(world.ask(away, 1, RequestOp::Extents { range, floor, snapshot: None }), behind);
    assert!(world.shard(away).digest(G).is_none());
}
