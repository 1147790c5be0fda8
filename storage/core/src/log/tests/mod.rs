//! The log against its disk: power cuts, flipped bits, planted bugs.

mod copies;
mod cuts;
mod damage;
mod disk;
mod recycled;

use super::*;
use crate::planted::Planted;
use disk::{World, config, entry, moved};

fn hard_state(group: u32, term: u64) -> Record {
    let state = HardState { term: Term(term), vote: NodeId(2), commit: LogIndex(term * 2) };
    Record::HardState { group: GroupId(group), state }
}

#[test]
fn what_is_appended_is_replayed_and_read_back() {
    let mut world = World::format(config(8, Planted::NONE));
    assert!(world.opened.report.is_some(), "{:?}", world.opened);
    for i in 1..=30u64 {
        world.append(entry((i % 3) as u32, i, (i % 4) as u32, i * 17));
        if i % 5 == 0 {
            world.append(hard_state((i % 3) as u32, i));
            world.append(moved((i % 3) as u32, 2, i));
        }
        world.flush();
    }
    world.settle();
    assert_eq!(world.durable.0, 42);
    let again = world.reopen_image(world.disk.durable.clone());
    assert_eq!(again.opened.records, world.appended);
    assert_eq!(again.opened.damages, []);
    let report = again.opened.report.clone().expect("the log opens");
    assert!(report.batches > 3 && report.segments_free < 6, "{report:?}");
}

#[test]
fn records_wait_for_each_other_while_a_batch_is_written() {
    let mut config = config(8, Planted::NONE);
    config.limits.gather_bytes = 12 << 10;
    let mut world = World::format(config);
    world.append(entry(0, 1, 1, 1));
    world.flush();
    world.append(entry(0, 2, 1, 2));
    world.flush();
    assert_eq!(world.ops.len(), 1, "a block is not enough for a batch beside another");
    world.append(entry(0, 3, 2, 3));
    world.flush();
    assert_eq!(world.ops.len(), 2, "three are");
    world.append(entry(0, 4, 1, 4));
    world.settle();
    assert_eq!(world.promised(), 4);
    assert_eq!(world.log.counts().batches, 3);
}

#[test]
fn a_full_log_says_so_and_keeps_what_it_has() {
    let mut world = World::format(config(3, Planted::NONE));
    let mut refused = 0;
    for i in 1..=100u64 {
        if world.log.has_room(3) {
            world.append(entry(0, i, 3, i));
            world.settle();
        } else {
            refused += 1;
        }
    }
    assert!(refused > 0 && !world.suspect);
    // The reserve still takes what Raft itself needs.
    for term in 1..=10 {
        world.append(hard_state(0, term));
        world.settle();
    }
    assert_eq!(world.promised(), world.appended.len());
    let again = world.reopen_image(world.disk.durable.clone());
    assert_eq!(again.opened.records, world.appended);
}

#[test]
fn sealing_is_done_once_and_survives() {
    let mut world = World::format(config(4, Planted::NONE));
    world.append(entry(0, 1, 2, 5));
    world.settle();
    let (mut out, t) = (Vec::new(), Time(1_000_000));
    world.log.seal_if_idle(t, &mut out);
    assert!(out.is_empty());
    assert_eq!(world.log.seal_deadline(), Some(t + SEAL_DELAY));
    world.log.seal_if_idle(t + SEAL_DELAY, &mut out);
    assert_eq!(out.len(), 1);
    world.ops.extend(out);
    world.settle();
    let mut more = Vec::new();
    for n in 2..9 {
        world.log.seal_if_idle(t + SEAL_DELAY * n, &mut more);
    }
    assert!(more.is_empty() && world.log.seal_deadline().is_none());
    // Opening again and again adds nothing.
    let mut again = world.reopen_image(world.disk.durable.clone());
    assert_eq!(again.opened.records, world.appended);
    again.seal();
    assert_eq!(again.opened.report, again.reopen_image(again.disk.content.clone()).opened.report);
}
