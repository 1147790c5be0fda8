//! Proposals wait for each other while the log is being written.

use super::world::*;
use crate::config::Limits;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::frame::ReplyResult;

/// What a leader proposed while writes of the given blocks came one by one and its device stood still,
/// and after: entries, and the requests in them.
fn proposed(gather_bytes: usize, writes: &[u32]) -> [(u64, u64); 2] {
    let limits = Limits { segments_reserved: 1, gather_bytes, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    world.fence(1);
    world.announce();
    let leader = world.elect();
    let before = world.shard(leader).status().proposed;
    let count = |world: &World| {
        let now = world.shard(leader).status().proposed;
        (now.entries - before.entries, now.commands - before.commands)
    };
    world.nodes.get_mut(&leader).unwrap().writes_held = true;
    let mut asked = Vec::new();
    for (block, blocks) in (0..).step_by(64).zip(writes) {
        let op = world.write_op(leader, block, 7, *blocks);
        asked.push(world.request(leader, 1, 1, op));
        world.run();
    }
    let held = count(&world);
    assert!(asked.iter().all(|id| !world.replies.contains_key(id)), "nothing is durable yet");
    world.nodes.get_mut(&leader).unwrap().writes_held = false;
    world.run();
    let done = |id| matches!(world.replies.get(id), Some(ReplyResult::Done { .. }));
    assert!(asked.iter().all(done), "the end of the write lets everything go");
    [held, count(&world)]
}

#[test]
fn what_comes_during_a_write_of_the_log_becomes_one_entry() {
    assert_eq!(proposed(16 * BLOCK_BYTES, &[1, 1, 2, 3]), [(1, 1), (2, 4)]);
}

#[test]
fn enough_of_it_waits_no_longer() {
    assert_eq!(proposed(4 * BLOCK_BYTES, &[1, 1, 3, 1]), [(2, 3), (3, 4)]);
    assert_eq!(proposed(4 * BLOCK_BYTES, &[1, 4, 4]), [(3, 3), (3, 3)]);
}

#[test]
fn nothing_waits_where_nothing_is_gathered() {
    assert_eq!(proposed(0, &[1, 1, 1]), [(3, 3), (3, 3)]);
}
