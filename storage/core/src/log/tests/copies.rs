//! Copy segments beside a log.

use super::disk::{World, config, entry};
use crate::log::{Segment, SegmentState};
use crate::planted::Planted;
use basalt_wire::ids::SegmentId;

/// A log that is durable in its second segment of nine. Each has 16 blocks.
fn world() -> World {
    let mut world = World::format(config(9, Planted::NONE));
    for tag in 1..=6 {
        world.append(entry(0, tag, 2, tag));
        world.settle();
    }
    assert_eq!(world.log.end().expect("it is open").segment_seq, 2);
    world
}

fn copies(world: &World) -> Vec<Segment> {
    let table = world.log.segments().expect("it is open");
    table.iter().filter(|s| table.holds_copies(s.id.0)).collect()
}

#[test]
fn copies_fill_their_segments_to_the_last_block() {
    let mut world = world();
    for tag in 0..6 {
        world.copy(9, tag);
    }
    // Two batches of 9 and 5 blocks with their headers fill a segment, two of 4 and 9 leave one block.
    assert_eq!(world.log.filled(), 15, "{:?}", copies(&world));
    assert_eq!(copies(&world).len(), 4);
    assert!(copies(&world).iter().all(|s| s.state == SegmentState::Filling), "all is under way");
    world.settle();
    world.check_places().expect("the copies are there");
    let done = copies(&world).iter().filter(|s| s.state == SegmentState::Copies).count();
    assert_eq!(done, 3);
    assert_eq!(world.log.segments_free(), 3);
    world.log.close_copies();
    assert!(copies(&world).iter().all(|s| s.state == SegmentState::Copies));
    assert_eq!((world.log.filling(), world.log.filled()), (None, 0));
}

#[test]
fn copies_leave_as_many_segments_as_they_must() {
    let mut world = world();
    assert!(world.log.has_copy_room(16, 6) && !world.log.has_copy_room(17, 6));
    assert!(!world.log.has_copy_room(1, 7));
    for tag in 0..20 {
        world.copy(9, tag);
    }
    assert_eq!((world.log.segments_free(), copies(&world).len()), (1, 6));
    assert!(!world.log.has_copy_room(2, 1) && world.log.has_copy_room(16, 0));
    // The log goes on with the last one.
    for tag in 7..13 {
        world.append(entry(0, tag, 2, tag));
        world.settle();
    }
    assert_eq!(world.promised(), 12);
    world.check_places().expect("all is there");
}

#[test]
fn what_no_checkpoint_lists_is_free_again() {
    let mut world = world();
    world.copy(9, 1);
    world.settle();
    let mut checkpoint = world.begin_checkpoint(&[]);
    world.complete_checkpoint(&mut checkpoint, &[]);
    world.log.close_copies();
    world.copy(9, 2);
    world.settle();
    let listed = checkpoint.start.copies.clone();
    assert_eq!((listed.len(), copies(&world).len()), (1, 2));
    let mut again = world.reopen_from(world.disk.durable.clone(), Some(&checkpoint));
    again.check_places().expect("the copies that it needs are there");
    let kept = copies(&again);
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].id, kept[0].state), (listed[0].segment, SegmentState::Copies));
    // Until the log comes to its next segment nothing tells old copies from new ones.
    assert!(!again.log.has_copy_room(1, 0));
    let mut tag = 7;
    while again.log.end().expect("it is open").segment_seq == 2 {
        again.append(entry(0, tag, 2, tag));
        again.settle();
        tag += 1;
    }
    assert!(again.log.has_copy_room(16, 0));
    again.copy(3, 9);
    again.settle();
    assert_eq!(copies(&again).len(), 2);
    again.check_places().expect("all is there");
}

#[test]
fn without_a_checkpoint_it_does_not_open() {
    let mut world = world();
    let image = world.disk.durable.clone();
    assert!(world.reopen_image(image).opened.failed.is_none());
    world.copy(9, 1);
    world.settle();
    let image = world.disk.durable.clone();
    let again = world.reopen_image(image.clone());
    let reason = again.opened.failed.expect("nobody knows what was copied");
    assert!(reason.contains("rebuilt from its peers"), "{reason}");
    assert_eq!(again.disk.content, image, "something was written");
}

#[test]
fn a_write_that_fails_makes_the_device_suspect() {
    let mut world = world();
    world.copy(9, 1);
    let op = world.ops.pop_front().expect("the copies are under way");
    let mut done = world.disk.perform(op);
    done.result = Err(basalt_wire::io::DiskError::Io);
    world.done(done);
    assert!(world.suspect);
    assert!(!world.log.has_copy_room(1, 0));
}

#[test]
#[should_panic(expected = "can not be released")]
fn what_is_under_way_is_not_released() {
    let mut world = world();
    world.copy(9, 1);
    world.log.close_copies();
    let used = world.log.segments().expect("it is open").copies();
    assert_eq!(used[0].segment, SegmentId(2));
    world.log.release(&used);
}
