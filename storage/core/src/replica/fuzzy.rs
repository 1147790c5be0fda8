//! A checkpoint's pages may be ahead of its entries, each granule as far as it happened to be: entries
//! that are applied once more over them give the state that they gave before.

use super::cloned::fill_of;
use super::*;
use basalt_wire::command::{Command, encode_commands};
use basalt_wire::disk::checkpoint::Record;
use basalt_wire::ids::{GroupId, SegmentId};
use proptest::prelude::*;
use std::collections::BTreeMap;

const V: VolumeId = VolumeId(1);
const G: GroupId = GroupId(1);

#[derive(Clone, Debug)]
enum Turn {
    /// An entry with these commands.
    Apply(Vec<Change>),
    /// Blocks of a chunk are filled, if the volume is a clone.
    Fill(u64, u32),
    /// The clone is detached, filled or not.
    Detach,
    /// A checkpoint begins: volumes are noted.
    Begin,
    /// Some granules are given to it.
    Take(usize),
    /// A block is moved to another place.
    Move(u64, u32),
}

/// What an entry does to a volume. Generations count back from the current one.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(u64, u32),
    Unmap(u64, u32),
    Freeze,
    Drop(u32),
    Revert(u32),
}

pub(super) fn changes() -> impl Strategy<Value = Change> {
    let block = || (0u64..2, 0u64..80).prop_map(|(chunk, block)| chunk * 1024 + block);
    prop_oneof![
        9 => (block(), 1u32..20).prop_map(|(block, count)| Change::Write(block, count)),
        3 => (block(), 1u32..20).prop_map(|(block, count)| Change::Unmap(block, count)),
        3 => Just(Change::Freeze),
        2 => (0u32..4).prop_map(Change::Drop),
        1 => (0u32..4).prop_map(Change::Revert),
    ]
}

fn turns() -> impl Strategy<Value = Turn> {
    prop_oneof![
        8 => prop::collection::vec(changes(), 1..4).prop_map(Turn::Apply),
        2 => (0u64..2, 0u32..90).prop_map(|(chunk, first)| Turn::Fill(chunk, first)),
        1 => Just(Turn::Detach),
        2 => Just(Turn::Begin),
        4 => (1usize..6).prop_map(Turn::Take),
        2 => (0u64..80, 0u32..1000).prop_map(|(block, at)| Turn::Move(block, at)),
    ]
}

impl Change {
    /// The commands for changes of a volume whose generation is known. Blocks get checksums behind `sum`.
    pub(super) fn commands(
        changes: &[Change],
        volume: VolumeId,
        mut current: u32,
        sum: &mut u32,
    ) -> Vec<Command> {
        let epoch = Epoch(1);
        let command = |change: &Change| {
            let generation = Generation(current);
            let range = |block: u64, count: u32| BlockRange {
                block,
                count: count.min(1024 - (block % 1024) as u32),
            };
            match *change {
                Change::Write(block, count) => {
                    let range = range(block, count);
                    *sum += range.count;
                    let checksums = (0..range.count).map(|i| *sum + i).collect();
                    Command::Write { volume, epoch, generation, range, checksums }
                }
                Change::Unmap(block, count) => {
                    Command::Unmap { volume, epoch, generation, range: range(block, count) }
                }
                Change::Freeze => {
                    current += 1;
                    Command::Freeze { volume, generation }
                }
                Change::Drop(back) => {
                    let generation = Generation(current.saturating_sub(back));
                    current = current.max(generation.0 + 1);
                    Command::DropSnapshot { volume, generation }
                }
                Change::Revert(back) => {
                    let generation = Generation(current.saturating_sub(back));
                    Command::Revert { volume, epoch, generation }
                }
            }
        };
        changes.iter().map(command).collect()
    }
}

/// A replica, its entries, and the store of its checkpoints.
struct World {
    replica: Replica,
    entries: Vec<(Bytes, Location)>,
    store: BTreeMap<Vec<u8>, Record>,
    /// The checkpoint under way: up to where it is, its records, and its pages.
    job: Option<(LogIndex, Vec<Record>, DirtyPages)>,
    applied: LogIndex,
    checksum: u32,
}

impl World {
    fn apply(&mut self, commands: &[Command]) {
        let index = LogIndex(self.replica.applied().0 + 1);
        let location = Location { segment: SegmentId(index.0 as u32 % 9), block: 0 };
        let data = encode_commands(commands);
        self.replica.apply(index, &data, location, |_, _| {}).unwrap();
        self.entries.push((data, location));
    }

    fn turn(&mut self, turn: &Turn) {
        match turn {
            Turn::Apply(changes) => {
                let current = self.replica.generations(V).map_or(0, |(current, _)| current.0);
                let commands = Change::commands(changes, V, current, &mut self.checksum);
                self.apply(&commands);
            }
            Turn::Fill(chunk, first) => {
                let range = BlockRange { block: chunk * 1024 + u64::from(*first), count: 20 };
                let fill = fill_of(&self.replica, V, range);
                self.apply(fill.as_slice());
            }
            Turn::Detach => {
                let parent = self.replica.volumes.get(&V).and_then(|volume| volume.parent);
                let detach = parent.map(|parent| Command::Detach { volume: V, parent });
                self.apply(detach.as_slice());
            }
            Turn::Begin => {
                if self.job.is_none() {
                    let applied = self.replica.applied();
                    let (records, _) = self.replica.take_dirty_volumes(G);
                    self.job = Some((applied, records, self.replica.take_dirty_pages()));
                }
            }
            Turn::Take(count) => self.take(*count),
            Turn::Move(block, at) => {
                let to = Location { segment: SegmentId(20), block: *at };
                if let Some(place) = self.replica.volumes[&V].index.place(*block) {
                    assert!(self.replica.relocate(V, *block, place, to));
                }
            }
        }
    }

    /// Gives granules to the checkpoint; its end makes it the one in the store.
    fn take(&mut self, count: usize) {
        let Some((applied, records, pages)) = &mut self.job else { return };
        for _ in 0..count {
            let Some((id, chunk)) = pages.last().copied() else {
                for record in std::mem::take(records) {
                    let mut key = Vec::new();
                    record.key(&mut key);
                    self.store.insert(key, record);
                }
                self.applied = *applied;
                self.job = None;
                return;
            };
            match self.replica.take_granule(id, chunk, 1) {
                Some((number, granule)) => {
                    records.push(Record::Granule(G, id, chunk, number, granule));
                }
                None => drop(pages.pop()),
            }
        }
    }

    /// A replica that starts from the store and applies the entries behind it.
    fn restarted(&self) -> Replica {
        let mut replica = Replica::new(Planted::NONE);
        for record in self.store.values() {
            match record {
                Record::Granule(_, id, chunk, number, granule) => {
                    replica.restore_granule(*id, (*chunk, *number), granule, self.applied);
                }
                Record::Volume(_, id, record) => replica.restore_volume(*id, record),
                other => panic!("{other:?}"),
            }
        }
        replica.restored(self.applied).unwrap();
        for (index, (data, location)) in (1..).map(LogIndex).zip(&self.entries) {
            if index > self.applied {
                replica.apply(index, data, *location, |_, _| {}).unwrap();
            }
        }
        replica
    }
}

proptest! {
    #[test]
    fn pages_ahead_of_their_entries_come_to_the_same(
        clone: bool,
        all in prop::collection::vec(turns(), 1..80),
    ) {
        let mut world = World {
            replica: Replica::new(Planted::NONE),
            entries: Vec::new(),
            store: BTreeMap::new(),
            job: None,
            applied: LogIndex(0),
            checksum: 0,
        };
        let fence = |volume| Command::Fence { volume, epoch: Epoch(1), generation: Generation(0) };
        if clone {
            let parent = SnapshotId { volume: VolumeId(7), generation: Generation(0) };
            world.apply(&[fence(parent.volume)]);
            let all = [Change::Write(0, 20), Change::Write(1030, 9), Change::Freeze];
            let commands = Change::commands(&all, parent.volume, 0, &mut world.checksum);
            world.apply(&commands);
            world.apply(&[Command::Clone { volume: V, parent }]);
        }
        world.apply(&[fence(V)]);
        for turn in &all {
            world.turn(turn);
            prop_assert_eq!(world.replica.usage(), &world.replica.recount(|_| Vec::new()));
        }
        let again = world.restarted();
        prop_assert_eq!(again.digest(), world.replica.digest());
        prop_assert_eq!(again.usage(), &again.recount(|_| Vec::new()));
        let total = |replica: &Replica| (replica.mapped_blocks(), replica.kept_blocks());
        prop_assert_eq!(total(&again), total(&world.replica));
    }
}
