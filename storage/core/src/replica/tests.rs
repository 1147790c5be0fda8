use super::*;
use basalt_wire::buffer::Payload;
use basalt_wire::command::{Command, encode_commands};
use basalt_wire::disk::moved::MovedBlock;
use basalt_wire::ids::{Generation, SegmentId};

const V: VolumeId = VolumeId(1);

fn write(epoch: u64, block: u64, checksums: &[u32]) -> Command {
    Command::Write {
        volume: V,
        epoch: Epoch(epoch),
        generation: Generation(0),
        range: BlockRange { block, count: checksums.len() as u32 },
        checksums: checksums.to_vec(),
    }
}

fn unmap(epoch: u64, block: u64, count: u32) -> Command {
    let range = BlockRange { block, count };
    Command::Unmap { volume: V, epoch: Epoch(epoch), generation: Generation(0), range }
}

fn fence(epoch: u64) -> Command {
    Command::Fence { volume: V, epoch: Epoch(epoch), generation: Generation(0) }
}

fn at(segment: u32, block: u32) -> Location {
    Location { segment: SegmentId(segment), block }
}

fn apply(replica: &mut Replica, commands: &[Command], location: Location) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let index = LogIndex(replica.applied().0 + 1);
    replica.apply(index, &encode_commands(commands), location, |_, o| outcomes.push(o)).unwrap();
    outcomes
}

fn mapped(replica: &Replica, block: u64) -> Option<(Location, u32)> {
    let plan = replica.plan(V, BlockRange { block, count: 1 }, None);
    plan.reads().next().map(|(_, location, _)| (location, plan.checksums[0]))
}

#[test]
fn commands_of_an_entry_take_their_blocks_in_order() {
    let mut replica = Replica::new(Planted::NONE);
    apply(&mut replica, &[fence(1)], at(0, 0));
    let commands = [write(1, 10, &[1, 2]), unmap(1, 11, 1), write(1, 5000, &[3])];
    assert_eq!(apply(&mut replica, &commands, at(2, 40)), vec![Ok(()); 3]);
    assert_eq!(mapped(&replica, 10), Some((at(2, 40), 1)));
    assert_eq!(mapped(&replica, 11), None);
    assert_eq!(mapped(&replica, 5000), Some((at(2, 42), 3)));
}

#[test]
fn a_refused_write_still_takes_its_share_of_the_payload() {
    let mut replica = Replica::new(Planted::NONE);
    apply(&mut replica, &[fence(2)], at(0, 0));
    let outcomes = apply(&mut replica, &[write(1, 0, &[9]), write(2, 1, &[8])], at(1, 7));
    assert_eq!(outcomes, vec![Err(Refusal::Fenced), Ok(())]);
    assert_eq!(mapped(&replica, 0), None);
    assert_eq!(mapped(&replica, 1), Some((at(1, 8), 8)));
}

#[test]
fn epochs_only_rise_and_writes_need_the_newest() {
    let mut replica = Replica::new(Planted::NONE);
    assert_eq!(apply(&mut replica, &[write(1, 0, &[1])], at(0, 0)), [Err(Refusal::NotAttached)]);
    assert_eq!(apply(&mut replica, &[fence(5), fence(5)], at(0, 0)), [Ok(()), Ok(())]);
    assert_eq!(apply(&mut replica, &[fence(4)], at(0, 0)), [Err(Refusal::Fenced)]);
    assert_eq!(apply(&mut replica, &[unmap(4, 0, 1)], at(0, 0)), [Err(Refusal::Fenced)]);
    assert_eq!(apply(&mut replica, &[unmap(6, 0, 1)], at(0, 0)), [Err(Refusal::NotAttached)]);
}

#[test]
fn a_deleted_volume_refuses_the_data_of_every_epoch() {
    let mut replica = Replica::new(Planted::NONE);
    apply(&mut replica, &[fence(1), write(1, 0, &[1])], at(0, 0));
    apply(&mut replica, &[Command::Delete { volume: V }], at(0, 0));
    assert_eq!(replica.mapped_blocks(), 0);
    // A deletion that is taken up again fences first.
    assert_eq!(apply(&mut replica, &[fence(9)], at(0, 0)), [Ok(())]);
    assert_eq!(replica.check_epoch(V, Epoch(9)), Err(Refusal::Fenced));
    assert_eq!(apply(&mut replica, &[write(9, 0, &[1])], at(0, 0)), [Err(Refusal::Fenced)]);
    assert_eq!(apply(&mut replica, &[fence(8)], at(0, 0)), [Err(Refusal::Fenced)]);
}

#[test]
fn a_digest_tells_content_and_not_places() {
    let digest = |location, checksum| {
        let mut replica = Replica::new(Planted::NONE);
        apply(&mut replica, &[fence(1), write(1, 3, &[checksum])], location);
        replica.digest()
    };
    assert_eq!(digest(at(0, 1), 7), digest(at(9, 9), 7));
    assert_ne!(digest(at(0, 1), 7), digest(at(0, 1), 8));
}

#[test]
fn reads_join_runs_and_fill_holes_with_zeros() {
    let mut replica = Replica::new(Planted::NONE);
    let a = vec![1u8; 2 * BLOCK_BYTES];
    let sums = [crc32c(&a[..BLOCK_BYTES]); 2];
    apply(&mut replica, &[fence(1), write(1, 4, &sums)], at(3, 100));
    let mut plan = replica.plan(V, BlockRange { block: 3, count: 4 }, None);
    assert_eq!(plan.reads().collect::<Vec<_>>(), [(1, at(3, 100), 2)]);
    assert_eq!(plan.index, LogIndex(1));
    plan.fill(1, Bytes::from(a));
    assert!(plan.is_complete());
    let (_, checksums, payload) = plan.finish(false).unwrap();
    assert!(blocks_match(&payload, &checksums));
    assert_eq!(payload.len(), 4 * BLOCK_BYTES);
    let (_, runs) = replica.extents(V, BlockRange { block: 3, count: 4 }, None);
    assert_eq!(runs, [(1, false), (2, true), (1, false)]);
}

#[test]
fn a_wrong_block_is_never_returned() {
    let mut replica = Replica::new(Planted::NONE);
    apply(&mut replica, &[fence(1), write(1, 4, &[77])], at(3, 100));
    let mut plan = replica.plan(V, BlockRange { block: 4, count: 1 }, None);
    plan.fill(0, Bytes::from(vec![5; BLOCK_BYTES]));
    assert_eq!(plan.finish(false).unwrap_err(), ReadError::Damaged);
}

#[test]
fn reads_need_the_floor_and_the_epoch() {
    let mut replica = Replica::new(Planted::NONE);
    apply(&mut replica, &[fence(3)], at(0, 0));
    assert_eq!(replica.check_read((V, Epoch(3)), LogIndex(2), None), Err(Refusal::Behind));
    assert_eq!(replica.check_read((V, Epoch(2)), LogIndex(1), None), Err(Refusal::Fenced));
    assert_eq!(replica.check_read((V, Epoch(4)), LogIndex(1), None), Err(Refusal::NotAttached));
    assert_eq!(replica.check_read((V, Epoch(3)), LogIndex(1), None), Ok(()));
}

#[test]
fn entries_are_checked_against_their_payload() {
    let block = Bytes::from(vec![7; BLOCK_BYTES]);
    let data = encode_commands(&[write(1, 0, &[crc32c(&block); 2])]);
    let mut payload = Payload::from(block.slice(..100));
    payload.push(block.slice(100..));
    assert!(check_entry(&data, &payload, true).is_err());
    payload.push(block.clone());
    assert_eq!(check_entry(&data, &payload, true), Ok(()));
    payload.push(block);
    assert!(check_entry(&data, &payload, true).is_err());
    let wrong = Payload::from(Bytes::from(vec![8; 2 * BLOCK_BYTES]));
    assert_eq!(check_entry(&data, &wrong, true), Err("a block does not match its checksum"));
    assert_eq!(check_entry(&data, &wrong, false), Ok(()));
    assert!(check_entry(&Bytes::from_static(b"junk"), &Payload::empty(), true).is_err());
}

fn moved_block(block: u64, checksum: u32, from: (u32, u32)) -> MovedBlock {
    let from = Some((SegmentId(from.0), from.1));
    MovedBlock { volume: V, block, checksum, from }
}

#[test]
fn blocks_follow_their_copies_only_from_where_they_stand() {
    let mut replica = Replica::new(Planted::NONE);
    apply(&mut replica, &[fence(1), write(1, 10, &[1, 2, 3, 4])], at(2, 40));
    apply(&mut replica, &[write(1, 11, &[22])], at(3, 0));
    apply(&mut replica, &[unmap(1, 13, 1)], at(3, 9));
    let digest = replica.digest();
    let index = replica.plan(V, BlockRange { block: 10, count: 1 }, None).index;
    // Block 11 was overwritten meanwhile, 13 unmapped, and 12 is said to have had another content.
    let blocks = [
        moved_block(10, 1, (2, 40)),
        moved_block(11, 2, (2, 41)),
        moved_block(12, 99, (2, 42)),
        moved_block(13, 4, (2, 43)),
    ];
    assert_eq!(replica.moved(&blocks, at(7, 100)), 1);
    assert_eq!(mapped(&replica, 10), Some((at(7, 100), 1)));
    assert_eq!(mapped(&replica, 11), Some((at(3, 0), 22)));
    assert_eq!(mapped(&replica, 12), Some((at(2, 42), 3)));
    assert_eq!(mapped(&replica, 13), None);
    // Nobody who reads notices, and the account follows.
    assert_eq!(replica.digest(), digest);
    assert_eq!(replica.plan(V, BlockRange { block: 10, count: 1 }, None).index, index);
    assert_eq!(*replica.usage(), replica.recount(|_| Vec::new()));
    let live: Vec<_> = replica.usage().segments().map(|(s, live)| (s.0, live)).collect();
    assert_eq!(live, [(2, 1), (3, 1), (7, 1)]);
    // A second time there is nothing left to move.
    assert_eq!(replica.moved(&blocks, at(8, 0)), 0);
}

#[test]
fn a_deleted_volume_leaves_nothing_live() {
    let mut replica = Replica::new(Planted::NONE);
    apply(&mut replica, &[fence(1), write(1, 10, &[1, 2]), write(1, 5000, &[3])], at(2, 40));
    assert_eq!(replica.blocks_by_volume(), [(V, 3, 0)]);
    let place = BlockPlace { segment: SegmentId(2), block: 42, checksum: 3 };
    assert!(replica.is_live(V, 5000, place));
    apply(&mut replica, &[Command::Delete { volume: V }], at(3, 0));
    assert!(!replica.is_live(V, 5000, place));
    assert_eq!((replica.usage().total(), replica.blocks_by_volume().len()), (0, 0));
    assert_eq!(replica.moved(&[moved_block(10, 1, (2, 40))], at(7, 0)), 0);
}
