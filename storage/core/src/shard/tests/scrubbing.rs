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

/// Has a node's replica forget a block, as by a bug.
fn forget(world: &mut World, n: u32, block: u64) {
    let shard = world.nodes.get_mut(&n).unwrap().shard.as_mut().unwrap();
    let replica = &mut shard.groups.iter_mut().find(|group| group.id == G).unwrap().replica;
    assert!(replica.forget_block(V, block));
}

fn count(world: &World, text: &str) -> usize {
    world.notices.iter().filter(|notice| notice.contains(text)).count()
}

/// A replica that lost a change of one block is found within seconds, says so, and holds it again, while other
/// blocks of the page are written all the time.
#[test]
fn a_replica_that_differs_is_found_and_mended_in_seconds() {
    let (mut world, _) = filled();
    let leader = world.elect();
    let (a, b) = others(leader);
    forget(&mut world, a, 7);
    let mut at = index(&world.write(1, 50, 0x11));
    for i in 0..60 {
        world.pass(ms(100));
        at = index(&world.write(1, 40 + i % 8, i as u8));
        world.announce();
        assert_eq!(world.read(b, 1, 7, at), Ok(0x47));
    }
    assert_eq!(
        count(&world, &format!("chunk 0 of volume 7 on node {a} is not what the leader")),
        1
    );
    assert_eq!(count(&world, &format!("on node {a} was not what the majority holds")), 1);
    assert_eq!(count(&world, &format!("on node {b}")), 0, "{:#?}", world.notices);
    let status = status(&world, a);
    assert_eq!((status.differing_pages, status.mended.pages, status.mended.undecided), (0, 1, 0));
    assert!((1..=64).contains(&status.mended.blocks), "{status:?}");
    for block in 0..40 {
        assert_eq!(world.read(a, 1, block, at), Ok(0x40 + block as u8));
    }
}

/// Of two that differ from the third it is the third that is wrong, be it the leader.
#[test]
fn a_leader_that_differs_is_mended_and_its_followers_are_left_alone() {
    let (mut world, at) = filled();
    let leader = world.elect();
    let (a, b) = others(leader);
    forget(&mut world, leader, 7);
    forget(&mut world, leader, 30);
    world.pass(ms(6000));
    for n in [a, b, leader] {
        assert_eq!(status(&world, n).mended.pages, u64::from(n == leader), "node {n}");
        assert_eq!(status(&world, n).differing_pages, 0);
        for block in [7, 8, 30] {
            assert_eq!(world.read(n, 1, block, at), Ok(0x40 + block as u8));
        }
    }
    let digest = |n| world.nodes[&n].shard.as_ref().unwrap().digest(G);
    assert_eq!(digest(a), digest(leader));
}

/// Three replicas, three opinions: nothing is overwritten, and it is said once.
#[test]
fn without_a_majority_nothing_is_overwritten() {
    let (mut world, at) = filled();
    let leader = world.elect();
    let (a, b) = others(leader);
    forget(&mut world, a, 7);
    forget(&mut world, b, 8);
    world.write(1, 50, 0x11);
    world.pass(ms(20_000));
    let behind = Err(ReplyResult::Refused(Refusal::Behind));
    for n in [a, b] {
        assert_eq!((status(&world, n).mended.pages, status(&world, n).mended.undecided), (0, 1));
        assert_eq!(count(&world, &format!("nothing is overwritten on node {n}")), 1);
        assert_eq!(world.read(n, 1, 7, at), behind);
    }
    assert_eq!(world.read(leader, 1, 7, at), Ok(0x47));
    assert_eq!(status(&world, leader).mended.pages, 0);
    // Written anew they are the same again.
    world.write(1, 7, 0x77);
    let at = index(&world.write(1, 8, 0x78));
    world.announce();
    world.pass(ms(5000));
    for n in [a, b] {
        assert_eq!((world.read(n, 1, 7, at), world.read(n, 1, 8, at)), (Ok(0x77), Ok(0x78)));
        assert_eq!((status(&world, n).differing_pages, status(&world, n).mended.undecided), (0, 0));
    }
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
