//! A start from a checkpoint gives what the replay of the whole log gives; one that is not to be
//! believed is noticed.

use super::world::{G, Options, Random, World, load};
use super::{index, ms};
use crate::event::Event;
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{ReplyResult, RequestOp};
use basalt_wire::ids::*;
use bytes::Bytes;

fn world(nodes: u32, seed: u64) -> World {
    World::new(Options {
        nodes,
        seed,
        segments: 96,
        checkpoint_bytes: 48 << 10,
        ..Options::default()
    })
}

fn number(world: &World, n: u32) -> u64 {
    world.shard(n).status().checkpoint
}

/// Writes, unmaps, fences and metadata commands, at random.
fn work(world: &mut World, random: &mut Random, epoch: &mut u64, steps: u64) {
    for step in 0..steps {
        let leader = world.elect();
        let (block, count) =
            (random.below(3) * 1024 + random.below(1000), random.below(8) as u32 + 1);
        match random.below(12) {
            0 => {
                *epoch += 1;
                world.fence(*epoch);
            }
            1 | 2 => {
                let (term, range) = (Term(world.term(leader)), BlockRange { block, count });
                let op = RequestOp::Unmap { term, generation: Generation(0), range };
                index(&world.ask(leader, *epoch, op));
            }
            3 => {
                let command = Bytes::from(format!("command {}", random.below(1 << 40)));
                for n in world.nodes.keys().copied().collect::<Vec<_>>() {
                    let (token, command) = (step, command.clone());
                    world.event(n, Event::Propose { token, command });
                }
                world.run();
            }
            _ => {
                let op = world.write_op(leader, block, random.below(250) as u8, count);
                match world.ask(leader, *epoch, op) {
                    ReplyResult::Done { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

/// What two starts of one device must agree on: a digest at an index, the term, the commands applied.
type State = (Option<(LogIndex, u64)>, u64, Vec<(u64, Bytes)>);

fn state(world: &mut World, n: u32) -> State {
    world.elect();
    world.pass(ms(600));
    let applied = world.applied.get(&n).cloned().unwrap_or_default();
    let commands = applied.into_iter().filter(|(_, command)| !command.is_empty()).collect();
    (world.shard(n).digest(G), world.status(n).term.0, commands)
}

#[test]
fn a_start_from_a_checkpoint_gives_what_the_whole_log_gives() {
    let mut from_checkpoint = 0;
    for seed in 0..24 {
        let nodes = if seed % 3 == 0 { 3 } else { 1 };
        let mut world = world(nodes, seed);
        let (mut random, mut epoch) = (Random(seed * 77 + 1), 1);
        world.fence(epoch);
        for _ in 0..3 {
            work(&mut world, &mut random, &mut epoch, 40);
            if random.below(2) == 0 {
                world.nodes.get_mut(&1).unwrap().saves_held = random.below(2) == 0;
            }
            let before = state(&mut world, 1);
            world.crash_silently(1);
            let disk = world.nodes[&1].disk.clone();
            world.start(1);
            let opened = world.shard(1).status().open_report.expect("it is open");
            let (bytes, with) = (opened.bytes, state(&mut world, 1));
            from_checkpoint += u64::from(opened.checkpoint.is_some());
            world.crash_silently(1);
            let (kept, store) = (world.nodes[&1].disk.clone(), world.nodes[&1].store.clone());
            let here = world.nodes.get_mut(&1).unwrap();
            here.store.clear();
            if nodes == 1 {
                here.disk = disk;
            }
            world.start(1);
            let whole = world.shard(1).status().open_report.expect("it is open");
            assert!(whole.checkpoint.is_none());
            assert!(opened.checkpoint.is_none() || bytes < whole.bytes);
            let without = state(&mut world, 1);
            if nodes == 1 {
                assert_eq!(before.0.map(|d| d.1), with.0.map(|d| d.1), "seed {seed}");
                assert_eq!(with.0.map(|d| d.1), without.0.map(|d| d.1), "seed {seed}");
                assert_eq!(with.2, without.2, "seed {seed}: metadata");
            } else {
                world.check_converged();
            }
            world.crash_silently(1);
            let here = world.nodes.get_mut(&1).unwrap();
            if nodes == 1 {
                (here.disk, here.store) = (kept, store);
            }
            world.start(1);
        }
        assert!(world.notices.iter().all(|n| !n.contains("is not used")), "{:#?}", world.notices);
    }
    assert!(from_checkpoint > 30, "only {from_checkpoint} starts were from a checkpoint");
}

/// A node alone with at least two checkpoints, and its disk as it was before them.
fn grown(seed: u64) -> (World, Vec<u8>) {
    let mut world = world(1, seed);
    let (mut random, mut epoch) = (Random(seed), 1);
    world.fence(epoch);
    work(&mut world, &mut random, &mut epoch, 10);
    let early = world.nodes[&1].disk.clone();
    let enough = number(&world, 1) + 2;
    while number(&world, 1) < enough {
        work(&mut world, &mut random, &mut epoch, 10);
    }
    world.pass(ms(100));
    (world, early)
}

fn refused(world: &mut World, what: &str) {
    world.start(1);
    let told = world.notices.iter().any(|n| n.contains("is not used") && n.contains(what));
    assert!(told, "{what}: {:#?}", world.notices);
    let report = world.shard(1).status().open_report.expect("it is open");
    assert_eq!(report.checkpoint, None);
}

#[test]
fn a_device_that_was_put_back_is_noticed() {
    let (mut world, early) = grown(3);
    world.crash_silently(1);
    world.nodes.get_mut(&1).unwrap().disk = early;
    refused(&mut world, "older image");
    // What it promised since is not known, so it promises nothing more.
    assert!(world.notices.iter().any(|n| n.contains("a vote may be lost")), "{:#?}", world.notices);
    world.pass(ms(5000));
    assert_eq!(world.leader(), None);
}

#[test]
fn a_checkpoint_of_another_device_is_noticed() {
    let (mut world, _) = grown(4);
    let (other, _) = grown(5);
    world.crash_silently(1);
    let store = other.nodes[&1].store.clone();
    world.nodes.get_mut(&1).unwrap().store = store;
    refused(&mut world, "of the device");
}

#[test]
fn every_lost_or_damaged_record_is_noticed() {
    let (world, _) = grown(6);
    let store = &world.nodes[&1].store;
    assert!(load(store, 0).is_ok_and(|found| found.is_some()));
    for key in store.keys() {
        let mut without = store.clone();
        without.remove(key);
        assert!(load(&without, 0).is_err(), "{key:?} is not missed");
        let mut bad = store.clone();
        let value = bad.get_mut(key).expect("it is there");
        let at = value.len() / 2;
        value[at] ^= 4;
        assert!(load(&bad, 0).is_err(), "{key:?} is damaged");
    }
}

#[test]
fn an_older_checkpoint_only_costs_time() {
    let mut world = world(1, 9);
    let (mut random, mut epoch) = (Random(9), 1);
    world.fence(epoch);
    while number(&world, 1) < 1 {
        work(&mut world, &mut random, &mut epoch, 5);
    }
    let old = world.nodes[&1].store.clone();
    while number(&world, 1) < 4 {
        work(&mut world, &mut random, &mut epoch, 5);
    }
    let before = state(&mut world, 1).0.map(|d| d.1);
    world.crash_silently(1);
    world.nodes.get_mut(&1).unwrap().store = old;
    world.start(1);
    assert_eq!(world.shard(1).status().open_report.and_then(|r| r.checkpoint), Some(1));
    assert_eq!(state(&mut world, 1).0.map(|d| d.1), before);
}
