//! Random runs with faults: against an array of bytes, and against the rules of registers.

use super::model::{GroupModel, World};
use crate::{BlockError, BlockOp, BlockResult};
use basalt_wire::buffer::Payload;
use basalt_wire::ids::{GroupId, NodeId, Term};
use basalt_wire::time::Time;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;

const SECTOR: u64 = 512;
/// Sectors that random requests are about: 64 KiB on either side of a border between chunks.
const SECTORS: u64 = 256;
const BASE: u64 = (4 << 20) - SECTORS / 2 * SECTOR;
const SIZE: u64 = 8 << 20;

#[derive(Clone, Debug)]
enum Action {
    Read,
    Write,
    Unmap,
    Extents,
}

#[derive(Clone, Debug)]
struct Step {
    action: Action,
    sector: u64,
    count: u64,
    /// Steps of the world before the next request.
    pause: u32,
}

fn steps(unmaps: u32) -> impl Strategy<Value = Vec<Step>> {
    let action = prop_oneof![
        4 => Just(Action::Read),
        5 => Just(Action::Write),
        unmaps => Just(Action::Unmap),
        unmaps => Just(Action::Extents),
    ];
    let sectors = prop_oneof![
        (0..SECTORS / 8, 1..5u64).prop_map(|(block, count)| (block * 8, count * 8)),
        (0..SECTORS, 1..20u64),
        (100..160u64, 1..60u64),
        // One hot block, so that late duplicates find something newer to destroy.
        (Just(64u64), Just(8u64)),
        (Just(64u64), Just(8u64)),
    ];
    let step = (action, sectors, 0..20u32).prop_map(|(action, (sector, count), pause)| Step {
        action,
        sector,
        count: count.min(SECTORS - sector),
        pause,
    });
    prop::collection::vec(step, 1..60)
}

fn begin(seed: u64, faults: u32) -> World {
    let mut world = World::new(seed, 2, SIZE, seed.is_multiple_of(2).then_some(NodeId(1)));
    world.faults = faults;
    tell_leaders(&mut world, seed / 2);
    world
}

/// Half of the sessions are told who leads; what half of them are told is not so any more.
fn tell_leaders(world: &mut World, seed: u64) {
    let told = |(number, group): (usize, &GroupModel)| {
        let leader = NodeId(group.leader? as u32 + 1);
        Some((GroupId(number as u32), leader, Term(group.term)))
    };
    let told: Vec<_> = world.groups.iter().enumerate().filter_map(told).collect();
    if seed % 4 == 1 {
        (0..world.groups.len()).for_each(|group| world.elect(group, (seed / 4 % 3) as usize, 2));
    }
    if seed % 4 < 2 {
        world.client.expect_leaders(told);
    }
}

/// Data that names its writer in every sector.
fn named(writer: u64, count: u64) -> Payload {
    let sector = |i| {
        let mut bytes = vec![i as u8; SECTOR as usize];
        bytes[..8].copy_from_slice(&writer.to_le_bytes());
        bytes
    };
    Payload::from(Bytes::from((0..count).flat_map(sector).collect::<Vec<u8>>()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// One request at a time, whatever goes wrong below: the volume is an array of bytes.
    #[test]
    fn a_volume_is_an_array_of_bytes(seed: u64, faults in 0..30u32, steps in steps(2)) {
        let mut world = begin(seed, faults);
        let mut bytes = vec![0u8; (SECTORS * SECTOR) as usize];
        let mut mapped = vec![false; (SECTORS / 8) as usize];
        for (tag, step) in steps.iter().enumerate() {
            let (offset, len) = (BASE + step.sector * SECTOR, step.count * SECTOR);
            let place = (step.sector * SECTOR) as usize..((step.sector + step.count) * SECTOR) as usize;
            let tag = tag as u64;
            let data = named(tag + 1, step.count);
            world.submit(tag, match step.action {
                Action::Read => BlockOp::Read { offset, len: len as u32 },
                Action::Write => BlockOp::Write { offset, data: data.clone(), fua: true },
                Action::Unmap => BlockOp::Unmap { offset, len },
                Action::Extents => BlockOp::Extents { offset, len },
            });
            let want = world.done.len();
            world.run_until(|world| world.done.len() > want || world.done.last().is_some_and(|d| d.0 == tag));
            let result = world.done.last().expect("just seen").2.clone();
            match (&step.action, result) {
                (Action::Read, Ok(BlockResult::Data(data))) => {
                    prop_assert_eq!(&data.contiguous()[..], &bytes[place]);
                }
                // Every replica may have been told to call its copy damaged.
                (Action::Read | Action::Write | Action::Unmap, Err(BlockError::Io(_))) => return Ok(()),
                (Action::Write, Ok(BlockResult::Done)) => {
                    data.copy_to(&mut bytes[place.clone()]);
                    mapped[place.start / 4096..place.end.div_ceil(4096)].fill(true);
                }
                (Action::Unmap, Ok(BlockResult::Done)) => {
                    bytes[place.clone()].fill(0);
                    for (block, mapped) in mapped.iter_mut().enumerate() {
                        let (begin, end) = (block * 4096, (block + 1) * 4096);
                        if begin < place.end && place.start < end {
                            *mapped = begin < place.start || place.end < end;
                        }
                    }
                }
                (Action::Extents, Ok(BlockResult::Extents(runs))) => {
                    let mut at = place.start;
                    for (len, is_mapped) in runs {
                        let blocks = &mapped[at / 4096..(at + len as usize).div_ceil(4096)];
                        prop_assert!(blocks.iter().all(|mapped| *mapped == is_mapped));
                        at += len as usize;
                    }
                    prop_assert_eq!(at, place.end);
                }
                (action, result) => panic!("{action:?} ended with {result:?}"),
            }
            (0..step.pause).for_each(|_| world.step());
        }
    }

    /// Many at a time, overlapping: every sector is a register that is read and written at once.
    #[test]
    fn every_sector_is_a_register(seed: u64, faults in 0..40u32, steps in steps(0)) {
        let mut world = begin(seed, faults);
        let mut submitted = BTreeMap::new();
        for (tag, step) in steps.iter().enumerate() {
            let (offset, len) = (BASE + step.sector * SECTOR, step.count * SECTOR);
            let tag = tag as u64;
            submitted.insert(tag, world.now);
            world.submit(tag, match step.action {
                Action::Write => {
                    BlockOp::Write { offset, data: named(tag + 1, step.count), fua: false }
                }
                _ => BlockOp::Read { offset, len: len as u32 },
            });
            (0..step.pause).for_each(|_| world.step());
        }
        world.finish();
        let mut registers = BTreeMap::<u64, History>::new();
        for (tag, end, result) in &world.done {
            let step = &steps[*tag as usize];
            let (begin, end) = (submitted[tag], *end);
            let data = match result {
                Ok(BlockResult::Data(data)) => Some(data.contiguous()),
                Ok(_) => None,
                // A write of part of a block can not be done when the block can not be read.
                Err(BlockError::Io(_)) => return Ok(()),
                Err(error) => panic!("{step:?} ended with {error}"),
            };
            for sector in 0..step.count {
                let history = registers.entry(step.sector + sector).or_default();
                match &data {
                    None => history.writes.push((tag + 1, begin, end)),
                    Some(data) => {
                        let at = (sector * SECTOR) as usize;
                        let mut writer = [0; 8];
                        writer.copy_from_slice(&data[at..at + 8]);
                        history.reads.push((u64::from_le_bytes(writer), begin, end));
                    }
                }
            }
        }
        for (sector, history) in &registers {
            if let Err(text) = history.check() {
                panic!("sector {sector}: {text}: {history:?}");
            }
        }
        prop_assert_eq!(world.done.len(), steps.len());
    }
}

/// Reads and writes of one register: the value, when it began, when it ended. No value is written
/// twice.
#[derive(Debug, Default)]
struct History {
    writes: Vec<(u64, Time, Time)>,
    reads: Vec<(u64, Time, Time)>,
}

impl History {
    /// Whether some order of the operations, each at one instant between its begin and end, explains
    /// all reads. With unique values it is enough to look at each value's zone, which lies between
    /// the earliest end and the latest begin of its operations (Gibbons and Korach, "Testing Shared
    /// Memories", 1997): two zones that must be passed through may not overlap, and a zone that
    /// stands for one instant may not lie within one that must be passed through.
    fn check(&self) -> Result<(), String> {
        let mut zones: BTreeMap<u64, (Time, Time)> = BTreeMap::new();
        zones.insert(0, (Time::ZERO, Time::ZERO));
        for (value, begin, end) in &self.writes {
            zones.insert(*value, (*end, *begin));
        }
        for (value, begin, end) in &self.reads {
            let Some(zone) = zones.get_mut(value) else {
                return Err(format!("the value {value} was never written"));
            };
            *zone = (zone.0.min(*end), zone.1.max(*begin));
            if let Some((_, written, _)) = self.writes.iter().find(|write| write.0 == *value)
                && end < written
            {
                return Err(format!("the value {value} was read before it was written"));
            }
        }
        for (a, (a_end, a_begin)) in &zones {
            for (b, (b_end, b_begin)) in zones.range(a + 1..) {
                let forward = |end: &Time, begin: &Time| end < begin;
                let clash = match (forward(a_end, a_begin), forward(b_end, b_begin)) {
                    (true, true) => a_end < b_begin && b_end < a_begin,
                    (true, false) => a_end < b_begin && b_end < a_begin,
                    (false, true) => b_end < a_begin && a_end < b_begin,
                    (false, false) => false,
                };
                if clash {
                    return Err(format!("the values {a} and {b} contradict each other"));
                }
            }
        }
        Ok(())
    }
}

#[test]
fn the_check_of_registers_finds_what_it_should() {
    let time = |t: u64| Time(t * 10);
    let history = |writes: &[(u64, u64, u64)], reads: &[(u64, u64, u64)]| {
        let times = |list: &[(u64, u64, u64)]| {
            list.iter().map(|(v, b, e)| (*v, time(*b), time(*e))).collect()
        };
        History { writes: times(writes), reads: times(reads) }.check().is_ok()
    };
    assert!(history(&[(1, 1, 2)], &[(0, 1, 2), (1, 3, 4)]));
    assert!(!history(&[(1, 1, 2)], &[(0, 3, 4)]), "a stale read");
    assert!(!history(&[(1, 1, 2)], &[(7, 3, 4)]), "a value from nowhere");
    assert!(!history(&[(1, 5, 6)], &[(1, 3, 4)]), "a value from the future");
    assert!(history(&[(1, 1, 9), (2, 1, 9)], &[(1, 2, 3), (2, 4, 5)]));
    assert!(
        !history(&[(1, 1, 9), (2, 1, 9)], &[(1, 2, 3), (2, 4, 5), (1, 6, 7)]),
        "back and forth"
    );
    assert!(!history(&[(1, 1, 9)], &[(1, 2, 3), (0, 4, 5)]), "back to the beginning");
}
