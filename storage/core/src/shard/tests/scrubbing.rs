//! Damage that the shard finds by itself, and what its peers have against it.

use super::world::V;
use super::*;
use crate::shard::ScrubStatus;
use basalt_wire::block::BLOCK_BYTES;

/// Where a block filled with `fill` stands on a node's device.
fn find(world: &World, n: u32, fill: u8) -> usize {
    let disk = &world.nodes[&n].disk;
    let blocks = disk.chunks_exact(BLOCK_BYTES).enumerate();
    let mut found = blocks.filter(|(_, block)| block.iter().all(|byte| *byte == fill));
    found.next().expect("the block is on the device").0 * BLOCK_BYTES
}

fn status(world: &World, n: u32) -> ScrubStatus {
    world.nodes[&n].shard.as_ref().unwrap().status().scrub
}

fn filled() -> (World, u64) {
    let mut world = World::new(Options::default());
    world.fence(1);
    let mut at = 0;
    for i in 0..40 {
        at = index(&world.write(1, i, 0x40 + i as u8));
    }
    world.announce();
    world.pass(ms(200));
    (world, at)
}

/// One copy of each block damaged, each on another node than the one before.
#[test]
fn one_pass_repairs_one_damaged_copy_of_everything() {
    let (mut world, at) = filled();
    for i in 0..40u32 {
        let (n, place) = (1 + i % 3, 0x40 + i as u8);
        let place = find(&world, n, place);
        let disk = &mut world.nodes.get_mut(&n).unwrap().disk;
        match i % 4 {
            0 => disk[place + 77] ^= 1,
            1 => disk[place..place + BLOCK_BYTES].fill(0),
            2 => disk[place..place + BLOCK_BYTES].fill(0xee),
            _ => disk[place + 4095] ^= 0x80,
        }
    }
    for n in 1..=3 {
        world.event(n, Event::Scrub);
    }
    world.pass(ms(500));
    for n in 1..=3 {
        let status = status(&world, n);
        assert_eq!((status.scrub.passes, status.position), (1, None));
        assert!((13..=14).contains(&status.scrub.bad), "{status:?}");
        let repairs = status.repairs;
        assert_eq!((repairs.repaired, repairs.waiting), (status.scrub.bad, 0), "{status:?}");
        for i in 0..40 {
            assert_eq!(world.read(n, 1, i, at), Ok(0x40 + i as u8), "block {i} on node {n}");
        }
    }
    // A restart replays repairs behind what is known to be committed by then. The others are done again.
    for n in 1..=3 {
        world.crash(n);
        world.start(n);
    }
    world.elect();
    world.pass(ms(200));
    for n in 1..=3 {
        world.event(n, Event::Scrub);
    }
    world.pass(ms(500));
    for n in 1..=3 {
        assert_eq!(status(&world, n).repairs.waiting, 0);
        for i in 0..40 {
            assert_eq!(world.read(n, 1, i, at), Ok(0x40 + i as u8), "block {i} on node {n}");
        }
    }
}

#[test]
fn a_damaged_block_that_was_read_is_repaired_without_a_pass() {
    let (mut world, at) = filled();
    let place = find(&world, 2, 0x55);
    world.nodes.get_mut(&2).unwrap().disk[place + 5] ^= 2;
    let damaged = Err(ReplyResult::Refused(Refusal::Damaged));
    assert_eq!(world.read(2, 1, 0x15, at), damaged);
    world.pass(ms(200));
    assert_eq!(world.read(2, 1, 0x15, at), Ok(0x55));
    let status = status(&world, 2);
    assert_eq!((status.scrub.passes, status.repairs.repaired), (0, 1));
}

/// A replica that lost a change of one block is found within seconds, says so, and answers no reads.
#[test]
fn a_replica_that_differs_is_found_in_seconds() {
    let (mut world, at) = filled();
    let leader = world.elect();
    let (a, b) = others(leader);
    let shard = world.nodes.get_mut(&a).unwrap().shard.as_mut().unwrap();
    let replica = &mut shard.groups.iter_mut().find(|group| group.id == G).unwrap().replica;
    replica.forget_block(V, 7, LogIndex(at));
    world.write(1, 50, 0x11);
    for i in 0..30 {
        world.pass(ms(100));
        let at = index(&world.write(1, 1000 + i % 8, i as u8));
        world.announce();
        assert_eq!(world.read(b, 1, 7, at), Ok(0x47));
    }
    let told = |n: u32| format!("chunk 0 of volume 7 on node {n} is not what the leader has");
    let count = |world: &World, n| world.notices.iter().filter(|t| t.contains(&told(n))).count();
    assert_eq!((count(&world, a), count(&world, b)), (1, 0), "{:#?}", world.notices);
    let behind = Err(ReplyResult::Refused(Refusal::Behind));
    assert_eq!(world.read(a, 1, 7, at), behind);
    assert_eq!(status(&world, a).differing_pages, 1);
    // Written anew it is the same again.
    let at = index(&world.write(1, 7, 0x77));
    world.announce();
    world.pass(ms(4000));
    assert_eq!(world.read(a, 1, 7, at), Ok(0x77));
    assert_eq!(status(&world, a).differing_pages, 0);
}

#[test]
fn what_nobody_has_is_told_once_and_healed_by_a_write() {
    let (mut world, at) = filled();
    for n in 1..=3 {
        let place = find(&world, n, 0x44);
        world.nodes.get_mut(&n).unwrap().disk[place + 5] ^= 2;
    }
    world.event(1, Event::Scrub);
    world.pass(ms(90_000));
    let lost = "block 4 of volume 7 is damaged on node 1, and no replica that answers has it";
    assert_eq!(world.notices.iter().filter(|text| text.contains(lost)).count(), 1);
    let repairs = status(&world, 1).repairs;
    assert_eq!((repairs.repaired, repairs.waiting, repairs.lost), (0, 1, 1));
    assert_eq!(world.read(1, 1, 4, at), Err(ReplyResult::Refused(Refusal::Damaged)));
    let at = index(&world.write(1, 4, 0x99));
    world.announce();
    world.pass(ms(60_000));
    assert_eq!(world.read(1, 1, 4, at), Ok(0x99));
    let repairs = status(&world, 1).repairs;
    assert_eq!((repairs.overwritten, repairs.waiting, repairs.lost), (1, 0, 0));
}
