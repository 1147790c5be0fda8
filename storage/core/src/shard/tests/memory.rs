//! An index of which nothing stays in memory that may leave.

use super::world::{Options, V, World};
use super::{index, ms};
use crate::planted::Planted;
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{ReplyResult, RequestOp};
use basalt_wire::ids::*;

const CHUNKS: u64 = 5;

fn world(index_bytes: u64, planted: Planted) -> World {
    let (segments, checkpoint_bytes) = (96, 32 << 10);
    let mut world = World::new(Options {
        segments,
        checkpoint_bytes,
        index_bytes,
        planted,
        ..Options::default()
    });
    world.fence(1);
    world
}

/// Writes blocks of all chunks until their tables are out of memory. Gives the last entry.
fn write_until_cold(world: &mut World, fill: u8) -> u64 {
    let mut last = 0;
    for round in 0..8 {
        for chunk in 0..CHUNKS {
            last = index(&world.write(1, chunk * 1024 + round, fill + round as u8));
        }
    }
    // What comes behind them lets a checkpoint stand for all of them.
    for block in 0..40 {
        last = index(&world.write(1, 9 * 1024 + block, 1));
    }
    world.pass(ms(500));
    for n in 1..=3 {
        let index = world.shard(n).status().index;
        assert!(index.cold >= CHUNKS, "node {n}: {index:?}");
    }
    last
}

#[test]
fn what_is_out_of_memory_is_read_and_changed() {
    let mut world = world(0, Planted::NONE);
    let at = write_until_cold(&mut world, 10);
    for n in 1..=3 {
        for chunk in 0..CHUNKS {
            assert_eq!(world.read(n, 1, chunk * 1024 + 3, at), Ok(13), "chunk {chunk} of node {n}");
            assert_eq!(world.read(n, 1, chunk * 1024 + 500, at), Ok(0));
        }
        assert!(world.shard(n).status().index.loaded >= CHUNKS);
    }
    let at = write_until_cold(&mut world, 90);
    let leader = world.elect();
    let (term, range) = (Term(world.term(leader)), BlockRange { block: 1024, count: 3 });
    index(&world.ask(leader, 1, RequestOp::Unmap { term, generation: Generation(0), range }));
    world.announce();
    for n in 1..=3 {
        world.crash(n);
        world.start(n);
    }
    world.elect();
    world.pass(ms(600));
    for n in 1..=3 {
        assert_eq!(world.read(n, 1, 1025, at), Ok(0));
        assert_eq!(world.read(n, 1, 1027, at), Ok(93));
        assert_eq!(world.read(n, 1, 2 * 1024, at), Ok(90));
    }
    world.check_converged();
}

#[test]
fn a_deleted_volume_is_given_back_page_by_page() {
    let mut world = world(0, Planted::NONE);
    write_until_cold(&mut world, 10);
    let live = world.shard(1).status().space.live;
    assert!(live > 0);
    let leader = world.elect();
    let term = Term(world.term(leader));
    index(&world.ask(leader, 1, RequestOp::Delete { term }));
    world.announce();
    world.pass(ms(200));
    for n in 1..=3 {
        let status = world.shard(n).status();
        assert_eq!((status.mapped_blocks, status.space.live), (0, 0), "node {n}");
        assert_eq!((status.index.cold, status.index.resident), (0, 0), "node {n}");
    }
    // A start in the middle goes on with it: nothing of the volume is left in the store in the end.
    world.volume = VolumeId(8);
    world.fence(1);
    for block in 0..60 {
        index(&world.write(1, block, 5));
    }
    world.pass(ms(500));
    let granules = world.nodes[&1].store.keys().filter(|key| key[0] == b'P');
    let of_it = granules.filter(|key| key[5..13] == V.0.to_be_bytes()).count();
    assert_eq!(of_it, 0);
}

/// The driver opens the shard anew then, which does not believe the checkpoint.
#[test]
#[should_panic(
    expected = "suspect: the store does not give where the blocks of chunk 2 of volume 7"
)]
fn a_table_that_is_not_the_one_that_left_stops_the_shard() {
    let mut world = world(0, Planted::NONE);
    let at = write_until_cold(&mut world, 10);
    let store = &mut world.nodes.get_mut(&2).unwrap().store;
    let granule = |key: &&Vec<u8>| key[0] == b'P' && key[13..21] == 2u64.to_be_bytes();
    let key = store.keys().find(granule).unwrap().clone();
    store.remove(&key);
    assert_eq!(world.read(2, 1, 1024 + 3, at), Ok(13), "what is whole is read");
    let read = world.read(2, 1, 2 * 1024, at);
    unreachable!("the read was answered: {read:?}");
}

#[test]
fn what_is_in_memory_does_not_wait_for_what_is_not() {
    let mut world = world(0, Planted::NONE);
    let at = write_until_cold(&mut world, 10);
    let leader = world.elect();
    world.nodes.get_mut(&leader).unwrap().pages_held = true;
    // A chunk that was never written is known without its table; the others' reads wait, and so do entries.
    assert_eq!(world.read(leader, 1, 77 * 1024, at), Ok(0));
    let ask = |world: &mut World, chunk: u64| {
        let (range, floor) = (BlockRange { block: chunk * 1024, count: 1 }, LogIndex(at));
        world.request(leader, 1, 1, RequestOp::Read { range, floor, snapshot: None })
    };
    let reads: Vec<u64> = (0..CHUNKS).map(|chunk| ask(&mut world, chunk)).collect();
    let op = world.write_op(leader, 2 * 1024, 99, 1);
    let write = world.request(leader, 1, 1, op);
    world.pass(ms(200));
    assert!(reads.iter().chain([&write]).all(|id| !world.replies.contains_key(id)));
    let status = world.status(leader);
    assert!(status.applied < status.commit, "{status:?}");
    assert_eq!(world.shard(leader).status().pending_requests, reads.len() + 1);
    world.nodes.get_mut(&leader).unwrap().pages_held = false;
    world.run();
    for id in &reads {
        assert!(matches!(world.replies[id], ReplyResult::Data { .. }), "{:?}", world.replies[id]);
    }
    index(&world.replies[&write]);
    let read = world.read(leader, 1, 2 * 1024, at);
    assert_eq!(read, Ok(99));
}
