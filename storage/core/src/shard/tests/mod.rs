mod admission;
mod announce;
mod checkpoints;
mod clones;
mod corners;
mod cuts;
mod damage;
mod election;
mod evidence;
mod gates;
mod gather;
mod members;
mod memory;
mod metadata;
mod pages;
mod recycled;
mod scrubbing;
mod sessions;
mod snapshots;
mod storm;
mod world;

use crate::config::Limits;
use crate::event::{Event, ProposeError};
use crate::shard::GroupRole;
use basalt_wire::command::BlockRange;
use basalt_wire::frame::{Frame, Refusal, ReplyResult, RequestOp};
use basalt_wire::ids::*;
use bytes::Bytes;
use raft::eraftpb::MessageType;
use std::time::Duration;
use world::{G, Options, World, address, node};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn index(result: &ReplyResult) -> u64 {
    match result {
        ReplyResult::Done { index } => index.0,
        other => panic!("not done: {other:?}"),
    }
}

fn others(n: u32) -> (u32, u32) {
    match n {
        1 => (2, 3),
        2 => (1, 3),
        _ => (1, 2),
    }
}

#[test]
fn a_write_is_replicated_applied_and_read_everywhere() {
    let mut world = World::new(Options::default());
    index(&world.fence(1));
    let at = index(&world.write(1, 3, 0xaa));
    world.announce();
    for n in 1..=3 {
        assert_eq!(world.read(n, 1, 3, at), Ok(0xaa), "node {n}");
        assert_eq!(world.read(n, 1, 4, at), Ok(0), "node {n}");
    }
    world.check_converged();
}

#[test]
fn a_restart_of_all_nodes_keeps_everything() {
    let mut world = World::new(Options::default());
    world.fence(4);
    let at = index(&world.write(4, 900, 7));
    (1..=3).for_each(|n| world.crash_silently(n));
    (1..=3).for_each(|n| world.start(n));
    world.elect();
    world.pass(ms(300));
    for n in 1..=3 {
        assert_eq!(world.read(n, 4, 900, at), Ok(7), "node {n}");
        assert_eq!(world.read(n, 3, 900, at), Err(ReplyResult::Refused(Refusal::Fenced)));
    }
    world.check_converged();
}

#[test]
fn one_node_alone_serves_a_group_of_one() {
    let mut world = World::new(Options { nodes: 1, ..Options::default() });
    world.fence(1);
    let at = index(&world.write(1, 0, 9));
    assert_eq!(world.read(1, 1, 0, at), Ok(9));
    world.crash(1);
    world.start(1);
    world.elect();
    assert_eq!(world.read(1, 1, 0, at), Ok(9));
}

#[test]
fn the_leader_counts_itself_only_when_its_own_write_is_durable() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let (a, b) = others(leader);
    for n in [leader, a] {
        world.nodes.get_mut(&n).unwrap().writes_held = true;
    }
    let op = world.write_op(leader, 1, 5, 1);
    let id = world.request(leader, 1, 1, op);
    world.run();
    assert!(world.status(b).last > world.status(b).commit, "one follower has it");
    assert!(!world.replies.contains_key(&id), "one copy is no majority");
    world.nodes.get_mut(&leader).unwrap().writes_held = false;
    world.run();
    index(&world.replies[&id]);
    world.nodes.get_mut(&a).unwrap().writes_held = false;
    world.announce();
    world.check_converged();
}

#[test]
fn unmapped_blocks_read_as_zeros_and_extents_tell_them() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let op = world.write_op(leader, 10, 3, 8);
    index(&world.ask(leader, 1, op));
    let (term, range) = (Term(world.term(leader)), BlockRange { block: 12, count: 2 });
    let op = RequestOp::Unmap { term, generation: Generation(0), range };
    let at = index(&world.ask(leader, 1, op));
    assert_eq!(world.read(leader, 1, 12, at), Ok(0));
    assert_eq!(world.read(leader, 1, 14, at), Ok(3));
    let range = BlockRange { block: 8, count: 10 };
    let op = RequestOp::Extents { range, floor: LogIndex(at), snapshot: None };
    let runs = vec![(2, false), (2, true), (2, false), (4, true)];
    let expected = ReplyResult::Extents { index: LogIndex(at), runs };
    assert_eq!(world.ask(leader, 1, op), expected);
}

#[test]
fn malformed_requests_are_refused() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let good = world.write_op(leader, 1020, 1, 4);
    let RequestOp::Write { term, generation, checksums, payload, .. } = good else { panic!() };
    let write = |block, count, checksums: &[u32]| RequestOp::Write {
        term,
        generation,
        range: BlockRange { block, count },
        checksums: checksums.to_vec(),
        payload: payload.clone(),
    };
    let invalid = ReplyResult::Refused(Refusal::Invalid);
    assert_eq!(world.ask(leader, 1, write(1021, 4, &checksums)), invalid);
    assert_eq!(world.ask(leader, 1, write(1, 4, &checksums[1..])), invalid);
    assert_eq!(world.ask(leader, 1, write(1, 3, &checksums[1..])), invalid);
    assert_eq!(world.ask(leader, 1, write(u64::MAX - 2, 4, &checksums)), invalid);
    let bad = ReplyResult::Refused(Refusal::BadChecksum);
    assert_eq!(world.ask(leader, 1, write(1, 4, &[1, 2, 3, 4])), bad);
    let range = BlockRange { block: 0, count: 0 };
    let op = RequestOp::Read { range, floor: LogIndex(0), snapshot: None };
    assert_eq!(world.ask(leader, 1, op), invalid);
    index(&world.ask(leader, 1, write(1020, 4, &checksums)));
    let too_long = world.write_op(leader, 0, 1, 60);
    assert_eq!(world.ask(leader, 1, too_long), invalid, "it would not fit a segment");
    let long = world.write_op(leader, 0, 1, 40);
    index(&world.ask(leader, 1, long));
    let status = world.shard(leader).status();
    assert!(status.groups.iter().all(|group| group.role != GroupRole::Quarantined));
}

#[test]
fn bounds_are_answered_as_busy_and_free_themselves() {
    let limits = Limits { pending_bytes: 8192, segments_reserved: 1, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    world.fence(1);
    let leader = world.elect();
    let ids: Vec<_> = (0..3)
        .map(|i| {
            let op = world.write_op(leader, i, 1, 1);
            world.request(leader, 1, 1, op)
        })
        .collect();
    world.run();
    let busy = ReplyResult::Refused(Refusal::Busy);
    assert_eq!(world.replies[&ids[2]], busy);
    index(&world.replies[&ids[1]]);
    index(&world.write(1, 9, 9));
    let status = world.shard(leader).status();
    assert_eq!((status.pending_bytes, status.pending_requests), (0, 0));
}

#[test]
fn writes_of_one_turn_become_one_entry() {
    let mut world = World::new(Options::default());
    let before = index(&world.fence(1));
    let leader = world.elect();
    let ids: Vec<_> = (0..20)
        .map(|i| {
            let op = world.write_op(leader, i, i as u8, 1);
            world.request(leader, 1, 1, op)
        })
        .collect();
    world.run();
    assert!(ids.iter().all(|id| index(&world.replies[id]) == before + 1));
    for i in 0..20 {
        assert_eq!(world.read(leader, 1, i, before + 1), Ok(i as u8));
    }
}

#[test]
fn a_full_device_refuses_writes_and_nothing_else() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let mut last = 0;
    let refused = (0..).find_map(|i| {
        let leader = world.elect();
        let op = world.write_op(leader, (i * 16) % 1024, i as u8, 16);
        match world.ask(leader, 1, op) {
            ReplyResult::Done { index } => {
                last = index.0;
                None
            }
            other => Some(other),
        }
    });
    assert_eq!(refused, Some(ReplyResult::Refused(Refusal::NoSpace)));
    world.pass(ms(500));
    world.check_converged();
    let leader = world.elect();
    assert!(world.read(leader, 1, 0, last).is_ok());
    index(&world.fence(2));
    assert!(world.read(leader, 2, 0, last).is_ok());
    let op = world.write_op(leader, 0, 1, 16);
    assert_eq!(world.ask(leader, 2, op), ReplyResult::Refused(Refusal::NoSpace));
}

#[test]
fn metadata_commands_are_applied_in_order_on_every_node() {
    let mut world = World::new(Options::default());
    world.elect();
    world.pass(ms(1500));
    let of_metadata = |world: &World, n| {
        let status = world.shard(n).status();
        status.groups.into_iter().find(|g| g.group == GroupId::METADATA).unwrap()
    };
    let leader =
        (1..=3).find(|n| of_metadata(&world, *n).role == GroupRole::Leader).expect("a leader");
    for token in 0..5 {
        let command = Bytes::from(format!("command {token}"));
        world.event(leader, Event::Propose { token, command });
    }
    let (other, _) = others(leader);
    world.event(other, Event::Propose { token: 9, command: Bytes::from_static(b"x") });
    world.run();
    assert!((0..5).all(|token| world.proposed[&token].is_ok()));
    assert_eq!(world.proposed[&9], Err(ProposeError::NotLeader(Some(node(leader)))));
    world.pass(ms(200));
    let commands = |world: &World, n| {
        let all = world.applied[&n].iter().filter(|(_, c)| !c.is_empty());
        all.map(|(_, c)| String::from_utf8(c.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    let expected: Vec<_> = (0..5).map(|i| format!("command {i}")).collect();
    for n in 1..=3 {
        assert_eq!(commands(&world, n), expected);
    }
    world.crash(other);
    world.start(other);
    world.pass(ms(300));
    assert_eq!(commands(&world, other), expected);
}

#[test]
fn runs_with_the_same_seed_are_the_same() {
    let run = |seed| {
        let mut world = World::new(Options { seed, groups: 4, ..Options::default() });
        world.fence(1);
        world.write(1, 5, 5);
        let leader = world.elect();
        world.crash(leader);
        world.elect();
        world.write(1, 6, 6);
        world.log
    };
    assert!(run(3) == run(3));
    assert!(run(3) != run(4));
}
