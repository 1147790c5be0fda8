//! What keeps guaranteed minimums: who begins at once, who waits, and for how long.

use super::world::*;
use super::{index, ms};
use crate::config::Limits;
use crate::event::{Event, LinkId};
use basalt_wire::frame::{Priority, Refusal, ReplyResult};
use basalt_wire::ids::VolumeId;
use std::time::Duration;

const OTHER: VolumeId = VolumeId(77);

/// A leader whose device stands still, with so many writes of everybody under way, and one of a volume that is
/// behind.
struct Crowd {
    world: World,
    leader: u32,
    behind: u64,
}

fn crowd(under_way: u64) -> Crowd {
    crowd_of(under_way, Options::default())
}

fn crowd_of(under_way: u64, options: Options) -> Crowd {
    let mut world = World::new(options);
    world.fence(1);
    let mine = std::mem::replace(&mut world.volume, OTHER);
    world.fence(1);
    world.volume = mine;
    world.announce();
    let leader = world.elect();
    world.nodes.get_mut(&leader).unwrap().writes_held = true;
    let mut crowd = Crowd { world, leader, behind: 0 };
    (0..under_way).for_each(|block| {
        crowd.write(Priority::BestEffort, block);
    });
    crowd.behind = crowd.write(Priority::Behind, 1000);
    crowd
}

impl Crowd {
    fn write(&mut self, priority: Priority, block: u64) -> u64 {
        self.write_on(LinkId(1), priority, block)
    }

    fn write_on(&mut self, link: LinkId, priority: Priority, block: u64) -> u64 {
        let op = self.world.write_op(self.leader, block, 7, 1);
        let id = self.world.request_as(self.leader, (link, priority), (1, 1), op);
        self.world.run();
        id
    }

    fn waiting(&self) -> usize {
        self.world.shard(self.leader).status().requests_waiting
    }

    fn under_way(&self) -> usize {
        self.world.shard(self.leader).status().pending_requests
    }

    fn release(&mut self) {
        self.world.nodes.get_mut(&self.leader).unwrap().writes_held = false;
        self.world.run();
    }
}

#[test]
fn while_minimums_are_kept_nobody_waits() {
    let mut crowd = crowd(0);
    crowd.release();
    index(&crowd.world.replies[&crowd.behind]);
    // The window that it opened grows until it bounds nothing.
    crowd.world.pass(Duration::from_secs(60));
    crowd.world.nodes.get_mut(&crowd.leader).unwrap().writes_held = true;
    for block in 0..40 {
        let priority = if block % 2 == 0 { Priority::BestEffort } else { Priority::Guaranteed };
        crowd.write(priority, block);
    }
    assert_eq!((crowd.under_way(), crowd.waiting()), (40, 0));
}

#[test]
fn who_is_behind_begins_at_once_and_the_others_wait() {
    let mut crowd = crowd(20);
    assert_eq!((crowd.under_way(), crowd.waiting()), (21, 0), "what is under way stays so");
    let late: Vec<u64> = (100..110).map(|block| crowd.write(Priority::BestEffort, block)).collect();
    assert_eq!((crowd.under_way(), crowd.waiting()), (21, 10));
    let guaranteed = crowd.write(Priority::Guaranteed, 1001);
    assert_eq!((crowd.under_way(), crowd.waiting()), (22, 10));
    crowd.release();
    for id in late.iter().chain([&guaranteed, &crowd.behind]) {
        index(&crowd.world.replies[id]);
    }
    assert_eq!(crowd.world.shard(crowd.leader).status().requests_held, 10);
    crowd.world.announce();
    crowd.world.check_converged();
}

#[test]
fn the_longer_it_is_behind_the_fewer_begin_and_some_always_do() {
    let mut crowd = crowd(20);
    for block in 100..200 {
        crowd.write(Priority::BestEffort, block);
    }
    for _ in 0..4 {
        crowd.write(Priority::Behind, 1000);
        crowd.world.pass(ms(100));
    }
    let waiting = crowd.waiting();
    // One in ten milliseconds.
    assert!((55..=65).contains(&waiting), "{waiting}");
}

#[test]
fn volumes_that_wait_take_turns() {
    let mut crowd = crowd(20);
    let mut ids = Vec::new();
    for block in 100..106 {
        ids.push(crowd.write(Priority::BestEffort, block));
    }
    let mine = std::mem::replace(&mut crowd.world.volume, OTHER);
    let other = crowd.write(Priority::BestEffort, 100);
    crowd.world.volume = mine;
    assert_eq!(crowd.waiting(), 7);
    // After two of those that may begin in any case, one of each has begun.
    crowd.world.pass(ms(21));
    assert_eq!(crowd.waiting(), 5);
    let link_gone = Event::LinkClosed { link: LinkId(1) };
    crowd.world.event(crowd.leader, link_gone);
    assert_eq!(crowd.waiting(), 0);
    crowd.release();
    crowd.world.pass(ms(50));
    index(&crowd.world.replies[&ids[0]]);
    index(&crowd.world.replies[&other]);
    assert!(ids[1..].iter().all(|id| !crowd.world.replies.contains_key(id)));
}

#[test]
fn what_waits_of_a_link_that_is_gone_is_forgotten() {
    let mut crowd = crowd(20);
    let gone = crowd.write_on(LinkId(2), Priority::BestEffort, 100);
    let stays = crowd.write(Priority::BestEffort, 101);
    crowd.world.event(crowd.leader, Event::LinkClosed { link: LinkId(2) });
    assert_eq!(crowd.waiting(), 1);
    crowd.release();
    index(&crowd.world.replies[&stays]);
    assert!(!crowd.world.replies.contains_key(&gone));
}

#[test]
fn too_much_that_waits_is_refused_and_what_is_guaranteed_is_not() {
    let limits = Limits { pending_requests: 32, segments_reserved: 1, ..Limits::default() };
    let mut crowd = crowd_of(20, Options { limits, ..Options::default() });
    let ids: Vec<u64> = (100..117).map(|b| crowd.write(Priority::BestEffort, b)).collect();
    assert_eq!(crowd.waiting(), 16, "half of what may be under way");
    assert_eq!(crowd.world.replies[&ids[16]], ReplyResult::Refused(Refusal::Busy));
    let guaranteed = crowd.write(Priority::Guaranteed, 1001);
    assert_eq!(crowd.under_way(), 22);
    crowd.release();
    index(&crowd.world.replies[&guaranteed]);
    for id in &ids[..16] {
        index(&crowd.world.replies[id]);
    }
}
