//! Snapshots through requests: cuts, reads, drops and reverts, with leaders and powers that change.

use super::world::{Options, World};
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{Refusal, ReplyResult, RequestOp};
use basalt_wire::ids::{Generation, LogIndex, Term};
use std::time::Duration;

type Control = fn(Term, Generation) -> RequestOp;

const FREEZE: Control = |term, generation| RequestOp::Freeze { term, generation };
const DROP: Control = |term, generation| RequestOp::DropSnapshot { term, generation };
const REVERT: Control = |term, generation| RequestOp::Revert { term, generation };

fn world(checkpoint_bytes: u64) -> World {
    let mut world = World::new(Options { checkpoint_bytes, ..Options::default() });
    assert!(matches!(world.fence(1), ReplyResult::Done { .. }));
    world
}

fn control(world: &mut World, what: Control, generation: u32) -> ReplyResult {
    let leader = world.elect();
    let term = Term(world.term(leader));
    world.ask(leader, 1, what(term, Generation(generation)))
}

fn write(world: &mut World, generation: u32, block: u64, fill: u8) -> ReplyResult {
    let leader = world.elect();
    let mut op = world.write_op(leader, block, fill, 1);
    if let RequestOp::Write { generation: of, .. } = &mut op {
        *of = Generation(generation);
    }
    world.ask(leader, 1, op)
}

/// What every replica says that a block was in a snapshot.
fn was(world: &mut World, generation: u32, block: u64) -> Result<u8, ReplyResult> {
    world.pass(Duration::from_secs(1));
    let mut all = Vec::new();
    for n in 1..=3 {
        let range = BlockRange { block, count: 1 };
        let snapshot = Some(Generation(generation));
        let op = RequestOp::Read { range, floor: LogIndex(0), snapshot };
        // Nobody has to be attached for it.
        all.push(match world.ask(n, 0, op) {
            ReplyResult::Data { payload, .. } => Ok(payload.contiguous()[0]),
            other => Err(other),
        });
    }
    assert!(all.windows(2).all(|w| w[0] == w[1]), "replicas differ: {all:?}");
    all.remove(0)
}

fn done(result: ReplyResult) {
    assert!(matches!(result, ReplyResult::Done { .. }), "{result:?}");
}

fn refused(why: Refusal) -> ReplyResult {
    ReplyResult::Refused(why)
}

#[test]
fn a_snapshot_keeps_what_was_and_the_volume_goes_on() {
    let mut world = world(0);
    done(write(&mut world, 0, 3, 1));
    done(control(&mut world, FREEZE, 0));
    assert_eq!(write(&mut world, 0, 3, 9), refused(Refusal::Frozen), "its generation is frozen");
    done(write(&mut world, 1, 3, 2));
    done(write(&mut world, 1, 4, 2));
    // The first write of the next generation freezes what is before it.
    done(write(&mut world, 2, 3, 3));
    done(control(&mut world, FREEZE, 1));
    for (generation, block, byte) in [(0, 3, 1), (0, 4, 0), (1, 3, 2), (1, 4, 2)] {
        assert_eq!(was(&mut world, generation, block), Ok(byte), "{generation} {block}");
    }
    assert_eq!(was(&mut world, 2, 3), Err(refused(Refusal::Behind)), "it is not frozen yet");
    assert_eq!(world.read(1, 1, 3, 0), Ok(3));
    done(control(&mut world, DROP, 0));
    assert_eq!(was(&mut world, 0, 3), Err(refused(Refusal::NoSnapshot)));
    assert_eq!(was(&mut world, 1, 3), Ok(2));
    done(control(&mut world, DROP, 1));
    world.announce();
    assert_eq!(world.shard(1).status().kept_blocks, 0);
    world.check_converged();
}

#[test]
fn changed_blocks_fall_out_of_two_snapshots() {
    let mut world = world(0);
    done(write(&mut world, 0, 1, 1));
    done(control(&mut world, FREEZE, 0));
    done(write(&mut world, 1, 3, 2));
    done(control(&mut world, FREEZE, 1));
    done(write(&mut world, 2, 5, 3));
    done(control(&mut world, FREEZE, 2));
    let mut ask = |since: u32, snapshot: Option<u32>| {
        let (range, floor) = (BlockRange { block: 0, count: 8 }, LogIndex(0));
        let (since, snapshot) = (Generation(since), snapshot.map(Generation));
        let leader = world.elect();
        match world.ask(leader, 1, RequestOp::Changes { range, floor, since, snapshot }) {
            ReplyResult::Extents { runs, .. } => {
                let blocks = runs.iter().flat_map(|(n, is)| vec![*is; *n as usize]);
                Ok((0..).zip(blocks).filter(|(_, is)| *is).map(|(block, _)| block).collect())
            }
            other => Err(other),
        }
    };
    assert_eq!(ask(0, Some(0)), Ok(vec![]));
    assert_eq!(ask(0, Some(1)), Ok(vec![3]));
    assert_eq!(ask(0, Some(2)), Ok(vec![3, 5]));
    assert_eq!(ask(1, Some(2)), Ok(vec![5]));
    assert_eq!(ask(1, None), Ok(vec![5]));
    assert_eq!(ask(2, None), Ok(vec![]));
    assert_eq!(ask(2, Some(1)), Err(refused(Refusal::Invalid)));
    assert_eq!(ask(3, None), Err(refused(Refusal::Behind)));
    done(control(&mut world, DROP, 1));
    let range = BlockRange { block: 0, count: 8 };
    let op = |since| RequestOp::Changes {
        range,
        floor: LogIndex(0),
        since: Generation(since),
        snapshot: Some(Generation(2)),
    };
    let leader = world.elect();
    assert_eq!(world.ask(leader, 1, op(1)), refused(Refusal::NoSnapshot));
    let ReplyResult::Extents { runs, .. } = world.ask(leader, 1, op(0)) else { panic!("no runs") };
    assert_eq!(runs, [(3, false), (1, true), (1, false), (1, true), (2, false)]);
}

#[test]
fn a_generation_dropped_before_it_is_frozen_has_no_snapshot() {
    let mut world = world(0);
    done(write(&mut world, 0, 3, 1));
    done(control(&mut world, DROP, 0));
    done(control(&mut world, FREEZE, 0));
    assert_eq!(was(&mut world, 0, 3), Err(refused(Refusal::NoSnapshot)));
    done(write(&mut world, 1, 3, 2));
    world.announce();
    assert_eq!(world.shard(1).status().kept_blocks, 0);
}

#[test]
fn a_revert_brings_the_content_back_and_drops_what_came_later() {
    let mut world = world(0);
    done(write(&mut world, 0, 3, 1));
    done(control(&mut world, FREEZE, 0));
    done(write(&mut world, 1, 3, 2));
    done(write(&mut world, 1, 5, 2));
    done(control(&mut world, FREEZE, 1));
    done(write(&mut world, 2, 3, 3));
    done(control(&mut world, REVERT, 0));
    world.announce();
    assert_eq!(world.read(2, 1, 3, 0), Ok(1));
    assert_eq!(world.read(2, 1, 5, 0), Ok(0));
    assert_eq!(was(&mut world, 0, 3), Ok(1));
    assert_eq!(was(&mut world, 1, 3), Err(refused(Refusal::NoSnapshot)));
    assert_eq!(control(&mut world, REVERT, 1), refused(Refusal::NoSnapshot));
    assert_eq!(
        (world.shard(1).status().kept_blocks, world.shard(1).status().mapped_blocks),
        (0, 1)
    );
    done(write(&mut world, 2, 3, 4));
    assert_eq!(was(&mut world, 0, 3), Ok(1));
    world.check_converged();
}

#[test]
fn a_group_that_hears_of_a_volume_late_is_empty_in_its_older_snapshots() {
    let mut world = World::new(Options::default());
    let leader = world.elect();
    let (term, generation) = (Term(world.term(leader)), Generation(3));
    done(world.ask(leader, 1, RequestOp::Fence { term, generation }));
    done(write(&mut world, 3, 7, 1));
    assert_eq!(was(&mut world, 2, 7), Ok(0));
    done(control(&mut world, FREEZE, 3));
    done(write(&mut world, 4, 7, 2));
    done(control(&mut world, REVERT, 2));
    world.announce();
    assert_eq!(world.read(1, 1, 7, 0), Ok(0));
    assert_eq!(
        (world.shard(1).status().kept_blocks, world.shard(1).status().mapped_blocks),
        (0, 0)
    );
}

#[test]
fn too_many_snapshots_are_refused_and_change_nothing() {
    let mut world = world(0);
    done(control(&mut world, FREEZE, 1023));
    done(write(&mut world, 1024, 3, 1));
    assert_eq!(control(&mut world, FREEZE, 1024), refused(Refusal::TooManySnapshots));
    assert_eq!(write(&mut world, 1025, 3, 2), refused(Refusal::TooManySnapshots));
    assert_eq!(control(&mut world, FREEZE, u32::MAX), refused(Refusal::Invalid));
    done(control(&mut world, DROP, 17));
    done(control(&mut world, FREEZE, 1024));
    assert_eq!(was(&mut world, 1024, 3), Ok(1));
}

#[test]
fn snapshots_survive_leaders_and_power_cuts() {
    for checkpoint_bytes in [0, 64 << 10] {
        let mut world = world(checkpoint_bytes);
        for generation in 0..12u32 {
            for block in 0..6 {
                done(write(
                    &mut world,
                    generation,
                    block * 2 + u64::from(generation % 2),
                    generation as u8 + 1,
                ));
            }
            done(control(&mut world, FREEZE, generation));
            if generation % 4 == 3 {
                done(control(&mut world, DROP, generation - 2));
            }
            let leader = world.leader().unwrap();
            world.crash(leader);
            world.pass(Duration::from_secs(2));
            world.start(leader);
        }
        for n in 1..=3 {
            world.crash(n);
        }
        (1..=3).for_each(|n| world.start(n));
        world.elect();
        for generation in 0..12u32 {
            let expected = match generation {
                1 | 5 | 9 => Err(refused(Refusal::NoSnapshot)),
                // Even blocks are of even generations.
                even if even % 2 == 0 => Ok(even as u8 + 1),
                odd => Ok(odd as u8),
            };
            assert_eq!(was(&mut world, generation, 4), expected, "generation {generation}");
        }
        world.check_converged();
    }
}
