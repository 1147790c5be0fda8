//! Clones of clones, changed, snapshotted, dropped and reverted in any order, against a mind that keeps
//! whole copies of everything.

use super::fuzzy::{Change, changes};
use super::*;
use basalt_wire::command::{Command, encode_commands};
use basalt_wire::disk::checkpoint::Record;
use basalt_wire::ids::{GroupId, SegmentId};
use clones::CLONE_DEPTH_MAX;
use proptest::prelude::*;
use std::collections::BTreeMap;

const G: GroupId = GroupId(1);
/// The blocks that are looked at, in each of two chunks.
const LOOKED_AT: u32 = 100;

/// CRC-32C by block; nothing for one that reads as zeros.
type Content = BTreeMap<u64, u32>;

#[derive(Clone, Default)]
struct Copy {
    parent: Option<SnapshotId>,
    deleted: bool,
    current: u32,
    first: u32,
    now: Content,
    snapshots: BTreeMap<u32, Content>,
}

impl Copy {
    fn in_snapshot(&self, generation: u32) -> Option<Content> {
        match generation < self.first {
            _ if self.deleted || generation >= self.current => None,
            true => Some(Content::new()),
            false => self.snapshots.get(&generation).cloned(),
        }
    }
}

#[derive(Default)]
struct Copies(BTreeMap<VolumeId, Copy>);

impl Copies {
    fn current(&self, id: VolumeId) -> u32 {
        self.0.get(&id).map_or(0, |copy| copy.current)
    }

    fn newest_clone(&self, id: VolumeId) -> Option<u32> {
        let parents = self.0.values().filter_map(|copy| copy.parent);
        parents.filter(|parent| parent.volume == id).map(|parent| parent.generation.0).max()
    }

    fn has_clone(&self, id: VolumeId, generation: Generation) -> bool {
        let parent = Some(SnapshotId { volume: id, generation });
        self.0.values().any(|copy| copy.parent == parent)
    }

    fn take(&mut self, command: &Command) -> Outcome {
        let id = command.volume();
        if let Command::Clone { parent, .. } = command {
            return self.clone_of(id, *parent);
        }
        let (newest, has) = (self.newest_clone(id), |copies: &Copies, g| copies.has_clone(id, g));
        let hangs = match command {
            Command::DropSnapshot { generation, .. } => has(self, *generation),
            _ => false,
        };
        let copy = self.0.entry(id).or_default();
        let blocks = |range: &BlockRange| range.block..range.block + u64::from(range.count);
        match command {
            Command::Delete { .. } if newest.is_some() => return Err(Refusal::HasClones),
            Command::Delete { .. } => *copy = Copy { deleted: true, ..Copy::default() },
            Command::Fill { .. } | Command::Detach { .. } if copy.deleted => {
                return Err(Refusal::NoSnapshot);
            }
            Command::Fill { .. } => {}
            Command::Detach { .. } => copy.parent = None,
            Command::Fence { .. } | Command::DropSnapshot { .. } if copy.deleted => {}
            Command::Freeze { .. } if copy.deleted => return Err(Refusal::NoSnapshot),
            _ if copy.deleted => return Err(Refusal::Fenced),
            Command::Write { range, checksums, .. } => {
                copy.now.extend(blocks(range).zip(checksums.iter().copied()));
            }
            Command::Unmap { range, .. } => {
                copy.now.retain(|block, _| !blocks(range).contains(block))
            }
            Command::Freeze { generation, .. } => {
                assert_eq!(generation.0, copy.current, "only the current one is frozen here");
                copy.snapshots.insert(copy.current, copy.now.clone());
                copy.current += 1;
            }
            Command::DropSnapshot { .. } if hangs => return Err(Refusal::HasClones),
            Command::DropSnapshot { generation, .. } => {
                copy.snapshots.remove(&generation.0);
                copy.current = copy.current.max(generation.0 + 1);
            }
            Command::Revert { generation, .. } => {
                let was = copy.in_snapshot(generation.0).ok_or(Refusal::NoSnapshot)?;
                if newest > Some(generation.0) {
                    return Err(Refusal::HasClones);
                }
                copy.now = was;
                copy.snapshots.retain(|snapshot, _| *snapshot <= generation.0);
            }
            Command::Fence { .. } | Command::Clone { .. } => {}
        }
        Ok(())
    }

    fn clone_of(&mut self, id: VolumeId, parent: SnapshotId) -> Outcome {
        if let Some(copy) = self.0.get(&id) {
            return if copy.parent == Some(parent) { Ok(()) } else { Err(Refusal::Exists) };
        }
        if parent.volume == id {
            return Err(Refusal::Invalid);
        }
        let next = parent.generation.0 + 1;
        let fresh = Copy { current: next, first: next, ..Copy::default() };
        let above = self.0.entry(parent.volume).or_insert(fresh);
        let now = above.in_snapshot(parent.generation.0).ok_or(Refusal::NoSnapshot)?;
        self.0.insert(id, Copy { parent: Some(parent), now, ..Copy::default() });
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Turn {
    /// A volume is changed.
    Apply(u64, Change),
    /// A volume becomes a clone of a snapshot of another, counted back from the current generation.
    Clone(u64, u64, u32),
    /// Blocks of a chunk of a clone are filled.
    Fill(u64, u64, u32),
    /// A clone is filled and detached.
    Flatten(u64),
    /// A volume is deleted.
    Delete(u64),
    /// A block is moved to another place.
    Move(u64, u64, u32),
    /// The replica starts from a checkpoint.
    Restart,
}

fn turns() -> impl Strategy<Value = Turn> {
    let volume = || 1u64..7;
    prop_oneof![
        16 => (volume(), changes()).prop_map(|(id, change)| Turn::Apply(id, change)),
        5 => (volume(), volume(), 0u32..4).prop_map(|(id, of, back)| Turn::Clone(id, of, back)),
        2 => (volume(), 0u64..2, 0u32..90).prop_map(|(id, chunk, n)| Turn::Fill(id, chunk, n)),
        1 => volume().prop_map(Turn::Flatten),
        1 => volume().prop_map(Turn::Delete),
        2 => (volume(), 0u64..80, 0u32..1000).prop_map(|(id, block, at)| Turn::Move(id, block, at)),
        1 => Just(Turn::Restart),
    ]
}

struct World {
    replica: Replica,
    copies: Copies,
    store: BTreeMap<Vec<u8>, Record>,
    checksum: u32,
}

impl World {
    fn new() -> World {
        let (replica, store) = (Replica::new(Planted::NONE), BTreeMap::new());
        World { replica, copies: Copies::default(), store, checksum: 0 }
    }

    fn apply(&mut self, command: &Command) -> Result<(), TestCaseError> {
        let expected = self.copies.take(command);
        let index = LogIndex(self.replica.applied().0 + 1);
        let location = Location { segment: SegmentId(index.0 as u32 % 9), block: 0 };
        let data = encode_commands(std::slice::from_ref(command));
        let mut outcome = None;
        self.replica.apply(index, &data, location, |_, o| outcome = Some(o)).unwrap();
        prop_assert_eq!(outcome, Some(expected), "{:?}", command);
        Ok(())
    }

    fn turn(&mut self, turn: &Turn) -> Result<(), TestCaseError> {
        match turn {
            Turn::Apply(id, change) => {
                let volume = VolumeId(*id);
                let generation = Generation(self.copies.current(volume));
                if self.replica.epoch(volume) == Epoch(0) {
                    self.apply(&Command::Fence { volume, epoch: Epoch(1), generation })?;
                }
                let change = std::slice::from_ref(change);
                let commands = Change::commands(change, volume, generation.0, &mut self.checksum);
                self.apply(&commands[0])?;
            }
            Turn::Clone(id, of, back) => {
                let of = VolumeId(*of);
                let generation = Generation(self.copies.current(of).saturating_sub(*back));
                let parent = SnapshotId { volume: of, generation };
                self.apply(&Command::Clone { volume: VolumeId(*id), parent })?;
            }
            Turn::Fill(id, chunk, first) => {
                let range = BlockRange { block: chunk * 1024 + u64::from(*first), count: 20 };
                if let Some(fill) = fill_of(&self.replica, VolumeId(*id), range) {
                    self.apply(&fill)?;
                }
            }
            Turn::Flatten(id) => self.flatten(VolumeId(*id))?,
            Turn::Delete(id) => self.apply(&Command::Delete { volume: VolumeId(*id) })?,
            Turn::Move(id, block, at) => {
                let (id, to) = (VolumeId(*id), Location { segment: SegmentId(20), block: *at });
                let place = self.replica.volumes.get(&id).and_then(|v| v.index.place(*block));
                if let Some(place) = place {
                    prop_assert!(self.replica.relocate(id, *block, place, to));
                }
            }
            Turn::Restart => self.restart()?,
        }
        Ok(())
    }

    fn flatten(&mut self, id: VolumeId) -> Result<(), TestCaseError> {
        let Some(parent) = self.copies.0.get(&id).and_then(|copy| copy.parent) else {
            return Ok(());
        };
        for part in 0..8 {
            let range = BlockRange { block: part * 256, count: 256 };
            if let Some(fill) = fill_of(&self.replica, id, range) {
                self.apply(&fill)?;
                // A late copy finds nothing to be filled.
                let mapped = self.replica.mapped_blocks() + self.replica.kept_blocks();
                self.apply(&fill)?;
                let again = self.replica.mapped_blocks() + self.replica.kept_blocks();
                prop_assert_eq!(mapped, again);
            }
            prop_assert_eq!(fill_of(&self.replica, id, range), None);
        }
        self.apply(&Command::Detach { volume: id, parent })
    }

    fn restart(&mut self) -> Result<(), TestCaseError> {
        let (records, deleted) = self.replica.take_dirty_volumes(G);
        self.store.retain(
            |_, record| !matches!(record, Record::Granule(_, id, ..) if deleted.contains(id)),
        );
        let mut fresh = records;
        for (id, chunk) in self.replica.take_dirty_pages() {
            while let Some((number, granule)) = self.replica.take_granule(id, chunk, 1) {
                fresh.push(Record::Granule(G, id, chunk, number, granule));
            }
        }
        for record in fresh {
            let (mut key, mut value) = (Vec::new(), Vec::new());
            record.key(&mut key);
            record.value(&key, &mut value);
            self.store.insert(key.clone(), Record::decode(&key, &value).unwrap());
        }
        let mut again = Replica::new(Planted::NONE);
        let applied = self.replica.applied();
        for record in self.store.values() {
            match record {
                Record::Granule(_, id, chunk, number, granule) => {
                    again.restore_granule(*id, (*chunk, *number), granule, applied);
                }
                Record::Volume(_, id, record) => again.restore_volume(*id, record),
                other => panic!("{other:?}"),
            }
        }
        again.restored(applied).unwrap();
        prop_assert_eq!(again.digest(), self.replica.digest());
        self.replica = again;
        Ok(())
    }

    /// Everything reads as the copies do.
    fn check(&self) -> Result<(), TestCaseError> {
        for (id, copy) in self.copies.0.iter().filter(|(_, copy)| !copy.deleted) {
            let snapshots =
                copy.snapshots.iter().map(|(g, content)| (Some(Generation(*g)), content));
            let views: Vec<_> = snapshots.chain([(None, &copy.now)]).collect();
            for chunk in 0..2 {
                let range = BlockRange { block: chunk * 1024, count: LOOKED_AT };
                let blocks = range.block..range.block + u64::from(range.count);
                for (at, (view, content)) in views.iter().enumerate() {
                    let (_, runs) = self.replica.extents(*id, range, *view);
                    let sums = self.replica.plan(*id, range, *view).checksums;
                    let runs = runs.into_iter().flat_map(|(n, is)| (0..n).map(move |_| is));
                    for ((block, mapped), sum) in blocks.clone().zip(runs).zip(sums) {
                        let holds = mapped.then_some(sum);
                        let expected = content.get(&block).copied();
                        prop_assert_eq!(holds, expected, "block {} of {}, {:?}", block, id, view);
                    }
                    let Some(since) = view else { continue };
                    for (until, then) in &views[at..] {
                        let (_, runs) = self.replica.changes(*id, range, *since, *until);
                        let runs = runs.into_iter().flat_map(|(n, is)| (0..n).map(move |_| is));
                        for (block, changed) in blocks.clone().zip(runs) {
                            let differs = content.get(&block) != then.get(&block);
                            prop_assert!(changed || !differs, "block {} of {}", block, id);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// The fill that a leader with this replica would propose; nothing if all of the range is filled.
pub(super) fn fill_of(replica: &Replica, volume: VolumeId, range: BlockRange) -> Option<Command> {
    let parent = replica.volumes.get(&volume)?.parent?;
    let (blocks, plan) = replica.plan_fill(volume, range);
    let checksums = plan.checksums;
    (!blocks.is_empty()).then_some(Command::Fill { volume, parent, range, blocks, checksums })
}

proptest! {
    #[test]
    fn clones_equal_copies(all in prop::collection::vec(turns(), 1..100)) {
        let mut world = World::new();
        for turn in &all {
            world.turn(turn)?;
            let replica = &world.replica;
            prop_assert_eq!(replica.usage(), &replica.recount(|_| Vec::new()), "after {:?}", turn);
            let total = replica.mapped_blocks() + replica.kept_blocks();
            prop_assert_eq!(replica.usage().total(), total);
            world.check()?;
        }
        world.restart()?;
        world.check()?;
    }
}

#[test]
fn a_chain_of_clones_ends_somewhere() {
    let mut world = World::new();
    let volume = |n: usize| VolumeId(n as u64 + 1);
    world.turn(&Turn::Apply(1, Change::Write(3, 2))).unwrap();
    for n in 1..=CLONE_DEPTH_MAX {
        world.turn(&Turn::Apply(volume(n - 1).0, Change::Freeze)).unwrap();
        world.turn(&Turn::Clone(volume(n).0, volume(n - 1).0, 1)).unwrap();
    }
    world.check().unwrap();
    world.restart().unwrap();
    let last = volume(CLONE_DEPTH_MAX);
    world.turn(&Turn::Apply(last.0, Change::Freeze)).unwrap();
    let parent = SnapshotId { volume: last, generation: Generation(0) };
    let data = encode_commands(&[Command::Clone { volume: VolumeId(99), parent }]);
    let (index, mut outcome) = (LogIndex(world.replica.applied().0 + 1), None);
    let location = Location { segment: SegmentId(0), block: 0 };
    world.replica.apply(index, &data, location, |_, o| outcome = Some(o)).unwrap();
    assert_eq!(outcome, Some(Err(Refusal::TooDeep)));
}

/// A clone that was detached before anybody attached it is a volume that is known: a late copy of the command
/// that began it does not begin it again.
#[test]
fn a_detached_clone_stays_what_it_is() {
    let mut world = World::new();
    world.turn(&Turn::Apply(1, Change::Write(3, 2))).unwrap();
    world.turn(&Turn::Apply(1, Change::Freeze)).unwrap();
    world.turn(&Turn::Clone(2, 1, 1)).unwrap();
    world.turn(&Turn::Flatten(2)).unwrap();
    world.restart().unwrap();
    world.turn(&Turn::Clone(2, 1, 1)).unwrap();
    assert_eq!(world.replica.lineage(VolumeId(2)).count(), 1);
    let parent = SnapshotId { volume: VolumeId(1), generation: Generation(0) };
    world
        .apply(&Command::DropSnapshot { volume: parent.volume, generation: parent.generation })
        .unwrap();
    world.turn(&Turn::Delete(1)).unwrap();
    world.check().unwrap();
    assert_eq!(world.replica.mapped_blocks(), 2);
    assert_eq!(world.replica.check_fill(VolumeId(9), parent), Err(Refusal::Behind));
}

/// Whatever a peer says of parents, reading comes to an end, and a store that says it is refused.
#[test]
fn a_ring_of_parents_is_no_trap() {
    let mut replica = Replica::new(Planted::NONE);
    let record = |of| VolumeRecord {
        epoch: Epoch(1),
        generation: Generation(1),
        snapshots: vec![Generation(0)],
        parent: Some(SnapshotId { volume: VolumeId(of), generation: Generation(0) }),
        ..VolumeRecord::default()
    };
    replica.restore_volume(VolumeId(1), &record(2));
    replica.restore_volume(VolumeId(2), &record(1));
    let (_, runs) = replica.extents(VolumeId(1), BlockRange { block: 0, count: 9 }, None);
    assert_eq!(runs, [(9, false)]);
    assert!(replica.restored(LogIndex(1)).is_err());
}
