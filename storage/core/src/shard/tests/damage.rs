//! What a damaged device may cost: time, never an acknowledged write.

use super::world::address;
use super::*;
use basalt_wire::block::BLOCK_BYTES;

/// Where a block filled with `fill` stands on a node's device.
fn find(world: &World, n: u32, fill: u8) -> usize {
    let disk = &world.nodes[&n].disk;
    let blocks = disk.chunks_exact(BLOCK_BYTES).enumerate();
    let mut found = blocks.filter(|(_, block)| block.iter().all(|byte| *byte == fill));
    found.next().expect("the block is on the device").0 * BLOCK_BYTES
}

fn flip(world: &mut World, n: u32, at: usize) {
    world.nodes.get_mut(&n).unwrap().disk[at] ^= 0x10;
}

#[test]
fn a_damaged_block_is_never_returned() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let at = index(&world.write(1, 0, 0xab));
    world.announce();
    let leader = world.elect();
    let place = find(&world, leader, 0xab);
    flip(&mut world, leader, place + 100);
    let damaged = Err(ReplyResult::Refused(Refusal::Damaged));
    assert_eq!(world.read(leader, 1, 0, at), damaged);
    let (a, b) = others(leader);
    assert_eq!((world.read(a, 1, 0, at), world.read(b, 1, 0, at)), (Ok(0xab), Ok(0xab)));
}

#[test]
fn a_damaged_entry_of_the_log_is_fetched_from_the_peers() {
    let mut world = World::new(Options::default());
    world.fence(1);
    for i in 0..20 {
        index(&world.write(1, i, 0x40 + i as u8));
    }
    world.pass(ms(1000));
    let leader = world.elect();
    let (a, b) = others(leader);
    world.crash(a);
    // The header of a batch in the middle stands right before the batch's data.
    let place = find(&world, a, 0x48) - BLOCK_BYTES;
    flip(&mut world, a, place + 40);
    world.cut.extend([(leader, a), (b, a)]);
    world.start(a);
    assert_eq!(world.status(a).role, GroupRole::Impaired, "{:#?}", world.notices);
    let intact = world.status(a).last;
    assert!(intact < world.status(leader).last);

    // Without the third node there is no leader: what was lost may not be voted away.
    world.crash(leader);
    world.cut.clear();
    world.pass(ms(5000));
    assert_ne!(world.status(b).role, GroupRole::Leader, "an impaired replica votes");
    assert_eq!(world.status(a).role, GroupRole::Impaired);

    world.start(leader);
    world.elect();
    world.pass(ms(2000));
    assert_eq!(world.status(a).role, GroupRole::Follower, "{:#?}", world.notices);
    let last = world.status(a).applied.0;
    for i in 0..20 {
        assert_eq!(world.read(a, 1, i, last), Ok(0x40 + i as u8));
    }
    world.check_converged();
}

#[test]
fn a_replica_that_holds_again_what_it_lost_is_sound_after_the_next_start_too() {
    let mut world = World::new(Options { checkpoint_bytes: 1 << 30, ..Options::default() });
    world.fence(1);
    index(&world.write(1, 0, 0x40));
    let leader = world.elect();
    let (a, b) = others(leader);
    world.pass(ms(1000));
    let older = (world.nodes[&a].disk.clone(), world.nodes[&a].store.clone());
    for i in 1..20 {
        index(&world.write(1, i, 0x40 + i as u8));
    }
    world.pass(ms(1000));
    world.crash(a);
    let node = world.nodes.get_mut(&a).unwrap();
    (node.disk, node.store) = older;
    world.isolate(a, true);
    world.start(a);
    world.nodes.get_mut(&a).unwrap().writes_held = true;
    world.isolate(a, false);
    // It is readmitted, and lacks what it lost: nothing becomes durable here.
    let in_debt = |world: &World| {
        let readmitted = world.shard(a).groups.iter().all(|group| group.is_sound());
        readmitted && world.status(a).role == GroupRole::Impaired
    };
    for _ in 0..500 {
        if in_debt(&world) {
            break;
        }
        world.pass(ms(10));
    }
    assert!(in_debt(&world), "{:#?}", world.notices);
    // A checkpoint says so.
    world.isolate(a, true);
    let number = world.shard(a).status().checkpoint;
    world.nodes.get_mut(&a).unwrap().writes_held = false;
    world.nodes.get_mut(&a).unwrap().shard.as_mut().unwrap().taker.ask();
    world.pass(ms(1000));
    assert!(world.shard(a).status().checkpoint > number);
    assert_eq!(world.status(a).role, GroupRole::Impaired, "{:#?}", world.notices);
    world.isolate(a, false);
    world.pass(ms(2000));
    assert_eq!(world.status(a).role, GroupRole::Follower, "{:#?}", world.notices);
    // Now another one is gone for good.
    world.crash(a);
    world.crash(leader);
    world.start(a);
    assert_ne!(world.status(a).role, GroupRole::Impaired, "{:#?}", world.notices);
    world.pass(ms(5000));
    assert!([a, b].contains(&world.elect()));
}

#[test]
fn a_leader_that_came_with_a_lost_change_of_members_hears_of_the_loss() {
    let mut world = members::world(6, 0);
    world.fence(1);
    for i in 0..8 {
        index(&world.write(1, i, 0x40 + i as u8));
    }
    members::move_to(&mut world, &[1, 2, 3], &[4, 5, 6]);
    world.pass(ms(8000));
    let leader = world.elect();
    let victim = if leader == 5 { 4 } else { 5 };
    world.crash(victim);
    let place = find(&world, victim, 0x40) - BLOCK_BYTES;
    flip(&mut world, victim, place + 40);
    world.start(victim);
    // What is left of its log names none of the present members.
    assert_eq!(world.status(victim).role, GroupRole::Impaired, "{:#?}", world.notices);
    assert!(!world.status(victim).members.all().contains(&address(leader)));
    world.pass(ms(8000));
    assert_eq!(world.status(victim).role, GroupRole::Follower, "{:#?}", world.notices);
    world.check_converged_among(&[4, 5, 6]);
}

#[test]
fn a_leader_does_not_hand_on_a_damaged_block() {
    let limits = Limits { entry_cache_bytes: 4096, segments_reserved: 1, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    world.fence(1);
    let leader = world.elect();
    let (a, _) = others(leader);
    world.crash(a);
    index(&world.write(1, 0, 0xcd));
    for i in 1..10 {
        index(&world.write(1, i, 1));
    }
    let place = find(&world, leader, 0xcd);
    flip(&mut world, leader, place);
    world.start(a);
    world.pass(ms(3000));
    let range = BlockRange { block: 0, count: 1 };
    let op = RequestOp::Read { range, floor: LogIndex(1), snapshot: None };
    match world.ask(a, 1, op) {
        ReplyResult::Data { payload, .. } => {
            assert!([0, 0xcd].contains(&payload.contiguous()[0]));
        }
        ReplyResult::Refused(_) => {}
        other => panic!("{other:?}"),
    }
    // The other sound replica takes over, so that the node behind gets its entries.
    world.pass(ms(5000));
    let last = world.status(a).applied.0;
    assert_eq!(world.read(a, 1, 0, last), Ok(0xcd), "{:#?}", world.notices);
}
