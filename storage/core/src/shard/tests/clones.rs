//! Clones through requests: begun, read, damaged, and what a group refuses for their sake.

use super::world::V;
use super::*;
use basalt_wire::block::BLOCK_BYTES;

const CLONE: VolumeId = VolumeId(9);
const PARENT: SnapshotId = SnapshotId { volume: V, generation: Generation(0) };

fn refused(why: Refusal) -> ReplyResult {
    ReplyResult::Refused(why)
}

/// Asks the leader for something about a volume.
fn ask(
    world: &mut World,
    volume: VolumeId,
    epoch: u64,
    op: impl Fn(Term) -> RequestOp,
) -> ReplyResult {
    let leader = world.elect();
    world.volume = volume;
    let op = op(Term(world.term(leader)));
    let reply = world.ask(leader, epoch, op);
    world.volume = V;
    reply
}

fn begin(world: &mut World, parent: SnapshotId) -> ReplyResult {
    ask(world, CLONE, 0, |term| RequestOp::Clone { term, parent })
}

fn attach(world: &mut World) -> u64 {
    let fence = |term| RequestOp::Fence { term, generation: Generation(0) };
    index(&ask(world, CLONE, 1, fence))
}

/// A volume with some blocks, and a snapshot of it.
fn with_snapshot() -> World {
    let mut world = World::new(Options::default());
    world.fence(1);
    for block in 0..8 {
        index(&world.write(1, block, 0x40 + block as u8));
    }
    let freeze = |term| RequestOp::Freeze { term, generation: Generation(0) };
    index(&ask(&mut world, V, 1, freeze));
    world
}

/// The first byte of a block of the clone as one node reads it.
fn read(world: &mut World, n: u32, block: u64, floor: u64) -> Result<u8, ReplyResult> {
    world.volume = CLONE;
    let read = world.read(n, 1, block, floor);
    world.volume = V;
    read
}

#[test]
fn a_clone_is_begun_once_and_goes_its_own_way() {
    let mut world = with_snapshot();
    let missing = SnapshotId { generation: Generation(1), ..PARENT };
    assert_eq!(begin(&mut world, missing), refused(Refusal::NoSnapshot));
    index(&begin(&mut world, PARENT));
    index(&begin(&mut world, PARENT));
    assert_eq!(begin(&mut world, missing), refused(Refusal::Exists));
    let at = attach(&mut world);
    // What is written to the other one from here on does not show.
    let over = |world: &mut World| {
        let leader = world.elect();
        let mut op = world.write_op(leader, 3, 0x77, 2);
        if let RequestOp::Write { generation, .. } = &mut op {
            *generation = Generation(1);
        }
        index(&world.ask(leader, 1, op))
    };
    over(&mut world);
    let range = BlockRange { block: 5, count: 1 };
    let unmap = |term| RequestOp::Unmap { term, generation: Generation(0), range };
    let at = at.max(index(&ask(&mut world, CLONE, 1, unmap)));
    world.announce();
    for n in 1..=3 {
        assert_eq!(read(&mut world, n, 3, at), Ok(0x43), "node {n}");
        assert_eq!(read(&mut world, n, 5, at), Ok(0), "node {n}");
        assert_eq!(read(&mut world, n, 90, at), Ok(0), "node {n}");
        assert_eq!(world.read(n, 1, 5, at), Ok(0x45), "node {n}");
        // Nothing of the clone's own is mapped, and of the snapshot what was written over is kept.
        let status = world.shard(n).status();
        assert_eq!((status.mapped_blocks, status.kept_blocks), (8, 2));
    }
    world.check_converged();
}

#[test]
fn what_a_clone_hangs_on_stays_until_it_is_deleted() {
    let mut world = with_snapshot();
    index(&begin(&mut world, PARENT));
    attach(&mut world);
    let drop = |term| RequestOp::DropSnapshot { term, generation: Generation(0) };
    let delete = |term| RequestOp::Delete { term };
    assert_eq!(ask(&mut world, V, 1, drop), refused(Refusal::HasClones));
    assert_eq!(ask(&mut world, V, 1, delete), refused(Refusal::HasClones));
    index(&ask(&mut world, CLONE, 1, delete));
    index(&ask(&mut world, V, 1, drop));
    index(&ask(&mut world, V, 1, delete));
    assert_eq!(begin(&mut world, PARENT), refused(Refusal::Exists), "a late copy");
    world.announce();
    assert_eq!(world.shard(1).status().mapped_blocks, 0);
}

/// Whoever hands out a clone before all groups have begun it is told so.
#[test]
fn a_volume_that_was_fenced_first_is_no_clone() {
    let mut world = with_snapshot();
    let at = attach(&mut world);
    assert_eq!(begin(&mut world, PARENT), refused(Refusal::Exists));
    let leader = world.elect();
    assert_eq!(read(&mut world, leader, 3, at), Ok(0));
}

/// Damage that is met through a clone is repaired where it is: in the volume above.
#[test]
fn a_damaged_block_that_was_read_through_a_clone_is_repaired() {
    let mut world = with_snapshot();
    index(&begin(&mut world, PARENT));
    let at = attach(&mut world);
    world.announce();
    world.pass(ms(200));
    let disk = &mut world.nodes.get_mut(&2).unwrap().disk;
    let blocks = disk.chunks_exact(BLOCK_BYTES);
    let place = blocks.into_iter().position(|block| block.iter().all(|byte| *byte == 0x45));
    disk[place.expect("the block is on the device") * BLOCK_BYTES + 5] ^= 2;
    let damaged = Err(refused(Refusal::Damaged));
    assert_eq!(read(&mut world, 2, 5, at), damaged);
    world.pass(ms(200));
    assert_eq!(read(&mut world, 2, 5, at), Ok(0x45));
    let status = world.shard(2).status().scrub;
    assert_eq!((status.scrub.passes, status.repairs.repaired), (0, 1));
}

fn fill(world: &mut World, block: u64, count: u32) -> ReplyResult {
    let range = BlockRange { block, count };
    ask(world, CLONE, 0, |term| RequestOp::Fill { term, parent: PARENT, range })
}

fn detach(world: &mut World) -> ReplyResult {
    ask(world, CLONE, 0, |term| RequestOp::Detach { term, parent: PARENT })
}

/// The leader gives a clone what it reads of its parent, beside the clone's session; then the parent may go.
#[test]
fn a_clone_is_filled_and_detached_beside_its_session() {
    let mut world = with_snapshot();
    assert_eq!(fill(&mut world, 0, 8), refused(Refusal::Behind), "nobody knows it");
    index(&begin(&mut world, PARENT));
    attach(&mut world);
    let range = BlockRange { block: 5, count: 1 };
    let unmap = |term| RequestOp::Unmap { term, generation: Generation(0), range };
    index(&ask(&mut world, CLONE, 1, unmap));
    let other = SnapshotId { volume: VolumeId(77), ..PARENT };
    let wrong = |term| RequestOp::Fill { term, parent: other, range };
    assert_eq!(ask(&mut world, CLONE, 0, wrong), refused(Refusal::Exists));
    index(&fill(&mut world, 0, 4));
    let leader = world.elect();
    assert_eq!(world.shard(leader).status().mapped_blocks, 8 + 4);
    index(&fill(&mut world, 0, 256));
    let done = index(&fill(&mut world, 0, 256));
    assert_eq!(world.shard(leader).status().mapped_blocks, 8 + 7);
    let at = index(&detach(&mut world)).max(done);
    index(&detach(&mut world));
    assert_eq!(fill(&mut world, 0, 4), ReplyResult::Done { index: world.status(leader).applied });
    let drop = |term| RequestOp::DropSnapshot { term, generation: Generation(0) };
    let delete = |term| RequestOp::Delete { term };
    index(&ask(&mut world, V, 1, drop));
    index(&ask(&mut world, V, 1, delete));
    assert_eq!(begin(&mut world, PARENT), refused(Refusal::Exists), "a late copy");
    world.announce();
    for n in 1..=3 {
        assert_eq!(world.shard(n).status().mapped_blocks, 7, "node {n}");
        assert_eq!(read(&mut world, n, 3, at), Ok(0x43), "node {n}");
        assert_eq!(read(&mut world, n, 5, at), Ok(0), "node {n}");
    }
    world.check_converged();
}

/// What the leader can not read is repaired first: no clone gets other blocks than its parent held.
#[test]
fn a_damaged_block_is_not_filled() {
    let mut world = with_snapshot();
    index(&begin(&mut world, PARENT));
    world.announce();
    world.pass(ms(200));
    let leader = world.elect();
    let disk = &mut world.nodes.get_mut(&leader).unwrap().disk;
    let mut blocks = disk.chunks_exact(BLOCK_BYTES);
    let place = blocks.position(|block| block.iter().all(|byte| *byte == 0x45));
    disk[place.expect("the block is on the device") * BLOCK_BYTES + 5] ^= 2;
    assert_eq!(fill(&mut world, 0, 8), refused(Refusal::Damaged));
    assert_eq!(world.shard(leader).status().mapped_blocks, 8);
    world.pass(ms(200));
    index(&fill(&mut world, 0, 8));
    assert_eq!(world.shard(leader).status().mapped_blocks, 16);
}
