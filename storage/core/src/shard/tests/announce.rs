//! How followers learn what is committed, and how leaders learn what followers hold.

use super::world::*;
use super::{index, ms, others};
use crate::config::{Limits, Timing};
use basalt_wire::frame::{Refusal, ReplyResult};
use raft::eraftpb::MessageType;
use std::time::Duration;

/// Frames of a kind that were sent since the log had `since` lines, and how many have no entries.
fn sent(world: &World, since: usize, kind: MessageType) -> (usize, usize) {
    let kind = format!("kind: {},", kind as u8);
    let group = format!("group: {G:?},");
    let lines = world.log[since..].iter();
    let all: Vec<_> = lines.filter(|line| line.contains(&kind) && line.contains(&group)).collect();
    (all.len(), all.iter().filter(|line| line.contains("entries: []")).count())
}

/// A world with a session, in which everybody knows what is committed.
fn settled() -> (World, u32) {
    settled_with(Options::default())
}

fn settled_with(options: Options) -> (World, u32) {
    let mut world = World::new(options);
    world.fence(1);
    world.announce();
    let leader = world.elect();
    (world, leader)
}

#[test]
fn a_commit_index_rides_on_the_next_append() {
    let (mut world, leader) = settled();
    let from = world.log.len();
    let (a, b) = others(leader);
    let mut last = 0;
    for i in 0..5 {
        last = index(&world.write(1, i, 1));
        for n in [a, b] {
            assert_eq!(world.status(n).commit.0, last - 1, "it learns of the entry before");
        }
    }
    assert_eq!(sent(&world, from, MessageType::MsgAppend), (10, 0), "one append a follower each");
    let behind = Err(ReplyResult::Refused(Refusal::Behind));
    assert_eq!(world.read(a, 1, 4, last), behind);
}

#[test]
fn the_last_commit_index_is_told_alone_once_within_its_time() {
    let (mut world, leader) = settled();
    let (a, b) = others(leader);
    let at = index(&world.write(1, 0, 7));
    let from = world.log.len();
    let wait = Timing::default().announce_after;
    world.pass(wait - Duration::from_nanos(1));
    assert_eq!(world.log.len(), from, "an append may come yet");
    world.announce();
    assert_eq!((world.read(a, 1, 0, at), world.read(b, 1, 0, at)), (Ok(7), Ok(7)));
    assert_eq!(sent(&world, from, MessageType::MsgAppend), (2, 2));
    world.pass(ms(50));
    assert_eq!(sent(&world, from, MessageType::MsgAppend), (2, 2), "and not again");
}

#[test]
fn a_heartbeat_makes_up_for_a_lost_announcement() {
    let (mut world, leader) = settled();
    let (a, _) = others(leader);
    let at = index(&world.write(1, 0, 7));
    world.cut.insert((leader, a));
    world.announce();
    world.cut.clear();
    assert_eq!(world.read(a, 1, 0, at), Err(ReplyResult::Refused(Refusal::Behind)));
    world.pass(ms(150));
    assert_eq!(world.read(a, 1, 0, at), Ok(7));
}

#[test]
fn what_becomes_durable_together_is_acknowledged_once() {
    // Three batches are in flight at a time.
    let limits = Limits { segments_reserved: 1, gather_bytes: 0, ..Limits::default() };
    let (mut world, leader) = settled_with(Options { limits, ..Options::default() });
    let (a, _) = others(leader);
    world.nodes.get_mut(&a).unwrap().writes_held = true;
    for i in 0..3 {
        index(&world.write(1, i, 1));
    }
    let (from, last) = (world.log.len(), world.status(leader).last);
    world.nodes.get_mut(&a).unwrap().writes_held = false;
    world.run();
    assert_eq!(sent(&world, from, MessageType::MsgAppendResponse).0, 1);
    let acknowledged = format!("index: {last:?}");
    assert!(world.log[from].contains(&acknowledged), "{acknowledged}: {}", world.log[from]);
}
