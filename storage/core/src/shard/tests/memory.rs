//! An index of which nothing stays in memory that may leave.

use super::world::{Options, V, World};
use super::{index, ms};
use crate::planted::Planted;
use crate::shard::GroupRole;
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{Refusal, ReplyResult, RequestOp};
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
    write_until_cold_on(world, 3, fill)
}

fn write_until_cold_on(world: &mut World, nodes: u32, fill: u8) -> u64 {
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
    for n in 1..=nodes {
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

/// Takes a record of a chunk out of a node's store.
fn lose_record(world: &mut World, n: u32, chunk: u64) {
    let store = &mut world.nodes.get_mut(&n).unwrap().store;
    let granule = |key: &&Vec<u8>| key[0] == b'P' && key[13..21] == chunk.to_be_bytes();
    let key = store.keys().find(granule).unwrap().clone();
    store.remove(&key);
}

#[test]
fn what_the_store_lost_comes_from_another_replica() {
    let mut world = world(0, Planted::NONE);
    let at = write_until_cold(&mut world, 10);
    let leader = world.elect();
    for n in 1..=3 {
        world.announce();
        lose_record(&mut world, n, u64::from(n));
        assert_eq!(world.read(n, 1, 4 * 1024 + 3, at), Ok(13), "what is whole is read");
        let (range, floor) =
            (BlockRange { block: u64::from(n) * 1024 + 2, count: 1 }, LogIndex(at));
        let read = world.request(n, 1, 1, RequestOp::Read { range, floor, snapshot: None });
        let write = (n == leader).then(|| {
            let op = world.write_op(n, u64::from(n) * 1024 + 900, 77, 1);
            world.request(n, 1, 1, op)
        });
        world.run();
        assert!(!world.replies.contains_key(&read), "it waits for the page");
        assert_eq!(world.shard(n).status().index.lost, 1);
        // Who tells may have applied more than who asks.
        world.announce();
        world.pass(ms(600));
        // A page of later entries than were applied here is not read yet: the client is to ask again.
        let read = &world.replies[&read];
        let again = matches!(read, ReplyResult::Refused(Refusal::Behind));
        assert!(again || matches!(read, ReplyResult::Data { .. }), "node {n}: {read:?}");
        let index_status = world.shard(n).status().index;
        assert_eq!((index_status.lost, index_status.recovered), (0, 1), "{index_status:?}");
        let at = write.map_or(at, |write| index(&world.replies[&write]));
        assert_eq!(world.read(n, 1, u64::from(n) * 1024 + 2, at), Ok(12));
        if n == leader {
            assert_eq!(world.read(n, 1, u64::from(n) * 1024 + 900, at), Ok(77));
        }
    }
    // The next checkpoint holds it, and a start uses that.
    let at = write_until_cold(&mut world, 30);
    for n in 1..=3 {
        world.crash(n);
        world.start(n);
    }
    world.elect();
    world.pass(ms(600));
    for n in 1..=3 {
        for chunk in 0..CHUNKS {
            assert_eq!(world.read(n, 1, chunk * 1024 + 3, at), Ok(33), "chunk {chunk} of node {n}");
        }
    }
    world.check_converged();
}

#[test]
fn a_lost_page_that_is_to_be_emptied_is_not_asked_for() {
    let mut world = world(0, Planted::NONE);
    write_until_cold(&mut world, 10);
    for n in 1..=3 {
        (1..4).for_each(|chunk| lose_record(&mut world, n, chunk));
    }
    let leader = world.elect();
    let term = Term(world.term(leader));
    index(&world.ask(leader, 1, RequestOp::Delete { term }));
    world.announce();
    world.pass(ms(400));
    for n in 1..=3 {
        let status = world.shard(n).status();
        assert_eq!((status.mapped_blocks, status.index.cold), (0, 0), "node {n}");
        assert_eq!((status.index.lost, status.index.recovered), (0, 0), "node {n}");
    }
}

#[test]
fn a_group_alone_that_loses_a_page_is_stopped_alone() {
    let (segments, checkpoint_bytes, nodes, groups) = (96, 32 << 10, 1, 2);
    let options =
        Options { segments, checkpoint_bytes, nodes, groups, index_bytes: 0, ..Options::default() };
    let mut world = World::new(options);
    world.fence(1);
    let at = write_until_cold_on(&mut world, 1, 10);
    lose_record(&mut world, 1, 2);
    assert_eq!(world.read(1, 1, 3 * 1024 + 3, at), Ok(13), "what is whole is read");
    let (range, floor) = (BlockRange { block: 2 * 1024 + 3, count: 1 }, LogIndex(at));
    let read = world.request(1, 1, 1, RequestOp::Read { range, floor, snapshot: None });
    world.pass(ms(100));
    let refused = &world.replies[&read];
    assert!(matches!(refused, ReplyResult::Refused(Refusal::Unavailable)), "{refused:?}");
    assert_eq!(world.read(1, 1, 3 * 1024 + 3, at), Ok(13), "the rest is read");
    let roles: Vec<GroupRole> = world.shard(1).status().groups.iter().map(|g| g.role).collect();
    assert_eq!(
        roles.iter().filter(|role| **role == GroupRole::Quarantined).count(),
        1,
        "{roles:?}"
    );
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
