//! The commands of the metadata group: forgotten behind the control plane's state, and told once.

use super::ms;
use super::world::{Options, World};
use crate::config::Limits;
use crate::event::Event;
use crate::shard::GroupStatus;
use basalt_wire::ids::*;
use bytes::Bytes;

fn world(checkpoint_bytes: u64) -> World {
    let limits = Limits { segments_reserved: 1, metadata_retain_entries: 3, ..Limits::default() };
    World::new(Options { nodes: 1, segments: 96, checkpoint_bytes, limits, ..Options::default() })
}

fn status(world: &World) -> GroupStatus {
    let status = world.shard(1).status();
    status.groups.into_iter().find(|g| g.group == GroupId::METADATA).expect("it is here")
}

fn propose(world: &mut World, tokens: std::ops::Range<u64>) {
    world.elect();
    world.pass(ms(1500));
    for token in tokens {
        let command = Bytes::from(format!("command {token}"));
        world.event(1, Event::Propose { token, command });
        world.run();
        assert!(world.proposed[&token].is_ok(), "{:?}", world.proposed[&token]);
    }
}

fn saved(world: &mut World, index: u64) {
    world.event(1, Event::MetadataSaved { index: LogIndex(index) });
    world.run();
}

fn restart(world: &mut World, state: u64) {
    world.crash_silently(1);
    let node = world.nodes.get_mut(&1).expect("there is one");
    node.config.metadata_saved = LogIndex(state);
    world.applied.remove(&1);
    world.start(1);
    world.elect();
    world.pass(ms(600));
}

/// The indexes that were told since the start.
fn told(world: &World) -> Vec<u64> {
    world.applied.get(&1).map_or(Vec::new(), |all| all.iter().map(|(index, _)| *index).collect())
}

/// Writes until a checkpoint more is durable.
fn checkpoint(world: &mut World) {
    let before = world.shard(1).status().checkpoint;
    let mut block = 0;
    while world.shard(1).status().checkpoint == before {
        world.write(1, block % 1000, 7);
        world.pass(ms(20));
        block += 1;
    }
}

#[test]
fn what_is_saved_is_forgotten_but_for_the_newest() {
    let mut world = world(48 << 10);
    world.fence(1);
    propose(&mut world, 0..20);
    let last = status(&world).applied.0;
    assert_eq!(told(&world), (1..=last).collect::<Vec<_>>());
    assert_eq!(status(&world).first, LogIndex(1));
    saved(&mut world, 10);
    assert_eq!(status(&world).first, LogIndex(11), "no more than is saved");
    saved(&mut world, last);
    assert_eq!(status(&world).first, LogIndex(last - 2), "the newest stay");
    // The store's checkpoint is older and holds more.
    for with_checkpoint in [false, true] {
        if with_checkpoint {
            checkpoint(&mut world);
        }
        restart(&mut world, last);
        let now = status(&world).applied.0;
        assert_eq!(told(&world), (last + 1..=now).collect::<Vec<_>>());
        assert!(!with_checkpoint || status(&world).first >= LogIndex(last - 2));
        assert!(world.wanted.is_empty());
    }
    propose(&mut world, 20..22);
    assert_eq!(told(&world).last(), Some(&status(&world).applied.0));
}

#[test]
fn without_checkpoints_nothing_is_forgotten() {
    let mut world = world(0);
    propose(&mut world, 0..20);
    let last = status(&world).applied.0;
    saved(&mut world, last);
    assert_eq!(status(&world).first, LogIndex(1));
    restart(&mut world, 5);
    assert_eq!(told(&world).first(), Some(&6));
}

#[test]
fn a_state_that_does_not_reach_to_the_log_is_said_and_fetched() {
    let mut world = world(48 << 10);
    world.fence(1);
    propose(&mut world, 0..30);
    let last = status(&world).applied.0;
    saved(&mut world, last - 10);
    checkpoint(&mut world);
    restart(&mut world, 4);
    let first = status(&world).first.0;
    assert!(first > 5, "it begins at {first}");
    assert_eq!(told(&world), Vec::<u64>::new(), "nothing is made up");
    assert_eq!(world.wanted.get(&1), Some(&LogIndex(first - 1)));
    assert!(world.notices.iter().any(|n| n.contains("reaches to entry 4")), "{:?}", world.notices);
    propose(&mut world, 30..32);
    saved(&mut world, first - 2);
    assert_eq!(told(&world), Vec::<u64>::new(), "it still does not reach");
    saved(&mut world, first + 2);
    let now = status(&world).applied.0;
    assert_eq!(told(&world), (first + 3..=now).collect::<Vec<_>>());
    propose(&mut world, 32..33);
    assert_eq!(told(&world).last(), Some(&status(&world).applied.0));
}

#[test]
fn a_state_beyond_the_log_is_not_told_again() {
    let mut world = world(48 << 10);
    propose(&mut world, 0..5);
    let last = status(&world).applied.0;
    saved(&mut world, last + 3);
    let before = told(&world).len();
    propose(&mut world, 5..10);
    let (now, all) = (status(&world).applied.0, told(&world));
    assert_eq!(all[before..], (last + 4..=now).collect::<Vec<_>>());
}
