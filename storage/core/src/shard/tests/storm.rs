//! Random crashes, cuts and delays under one client that remembers what it was promised.

use super::world::Random;
use super::*;
#[cfg(feature = "planted")]
use crate::planted::Bug;
use crate::planted::Planted;
use std::collections::BTreeMap;

/// What a block may hold: the value acknowledged last, and those of unknown outcome since.
#[derive(Default, Clone)]
struct Block {
    acknowledged: u8,
    unknown: Vec<u8>,
}

struct Storm {
    world: World,
    random: Random,
    blocks: BTreeMap<u64, Block>,
    open: BTreeMap<u64, (u64, u8)>,
    floor: u64,
    epoch: u64,
    incarnation: u64,
    down: Option<u32>,
    /// The one node whose device is damaged while it is down.
    frail: Option<u32>,
}

const BLOCKS: u64 = 24;

impl Storm {
    fn new(seed: u64, planted: Planted) -> Storm {
        // Small batches side by side, and batches in which everything comes together.
        let gather_bytes = if seed.is_multiple_of(2) { 0 } else { Limits::default().gather_bytes };
        let limits = Limits {
            entry_cache_bytes: 64 << 10,
            segments_reserved: 1,
            gather_bytes,
            ..Limits::default()
        };
        let mut world = World::new(Options { seed, planted, limits, ..Options::default() });
        world.fence(1);
        Storm {
            world,
            random: Random(seed),
            blocks: BTreeMap::new(),
            open: BTreeMap::new(),
            floor: 0,
            epoch: 1,
            incarnation: 1,
            down: None,
            frail: None,
        }
    }

    fn settle_replies(&mut self) {
        let done: Vec<_> =
            self.open.keys().filter(|id| self.world.replies.contains_key(id)).copied().collect();
        for id in done {
            let (block, value) = self.open.remove(&id).unwrap();
            let block = self.blocks.entry(block).or_default();
            match &self.world.replies[&id] {
                ReplyResult::Done { index } => {
                    *block = Block { acknowledged: value, unknown: Vec::new() };
                    self.floor = self.floor.max(index.0);
                }
                ReplyResult::Unknown => block.unknown.push(value),
                _ => {}
            }
        }
    }

    /// One write to a block that no other write is open for.
    fn write(&mut self) {
        let block = self.random.below(BLOCKS);
        let busy = self.open.values().any(|(b, _)| *b == block);
        let Some(leader) = self.world.leader() else { return };
        if busy {
            return;
        }
        let value = self.random.below(255) as u8 + 1;
        let op = self.world.write_op(leader, block, value, 1);
        let id = self.world.request(leader, self.epoch, self.incarnation, op);
        self.open.insert(id, (block, value));
    }

    fn fault(&mut self) {
        let n = self.random.below(3) as u32 + 1;
        match (self.random.below(7), self.down) {
            (0, None) => {
                self.lose_open(n);
                if self.random.below(2) == 0 {
                    self.world.crash(n);
                } else {
                    self.world.crash_silently(n);
                }
                self.down = Some(n);
            }
            (1, Some(n)) => {
                self.damage(n);
                self.world.start(n);
                self.down = None;
            }
            (6, None) => {
                self.lose_open(n);
                (1..=3).for_each(|n| self.world.crash_silently(n));
                (1..=3).for_each(|n| self.world.start(n));
            }
            (2, _) => {
                let to = self.random.below(3) as u32 + 1;
                self.world.cut.insert((n, to));
            }
            (3, _) => self.world.isolate(n, true),
            (4, _) => self.world.cut.clear(),
            (_, _) => {
                let held = &mut self.world.nodes.get_mut(&n).unwrap().writes_held;
                *held = !*held;
            }
        }
    }

    /// The answers of a node that dies are lost.
    fn lose_open(&mut self, _node: u32) {
        for (_, (block, value)) in std::mem::take(&mut self.open) {
            self.blocks.entry(block).or_default().unknown.push(value);
        }
        // What may still be under way must not surface later: the session's next link.
        self.incarnation += 1;
    }

    fn heal(&mut self) {
        self.world.cut.clear();
        self.world.nodes.values_mut().for_each(|node| node.writes_held = false);
        if let Some(n) = self.down.take() {
            self.damage(n);
            self.world.start(n);
        }
        self.world.pass(ms(4000));
        self.settle_replies();
        let leader = self.world.elect();
        let to = node(self.random.below(3) as u32 + 1);
        self.world.event(leader, Event::Prefer { group: G, node: to });
        self.world.pass(ms(1000));
        self.settle_replies();
        assert!(self.open.is_empty(), "requests without an answer: {:?}", self.open);
    }

    /// Flips a few bits of what the frail node has written.
    fn damage(&mut self, n: u32) {
        if self.frail != Some(n) || self.random.below(2) == 0 {
            return;
        }
        let disk = &mut self.world.nodes.get_mut(&n).unwrap().disk;
        let end = disk.iter().rposition(|byte| *byte != 0).unwrap() as u64;
        let start = 128 << 10;
        for _ in 0..self.random.below(3) {
            disk[(start + self.random.below(end - start)) as usize] ^= 4;
        }
    }

    /// Nodes that must hold everything by now.
    fn sound(&self) -> Vec<u32> {
        (1..=3)
            .filter(|n| {
                let role = self.world.status(*n).role;
                assert!(self.frail == Some(*n) || role != GroupRole::Impaired);
                role != GroupRole::Impaired
            })
            .collect()
    }

    /// The session moves, and the old one is shut out.
    fn move_session(&mut self) {
        let old = self.epoch;
        self.epoch += 1;
        self.floor = self.floor.max(index(&self.world.fence(self.epoch)));
        let late = self.world.write(old, 0, 0xff);
        assert_eq!(late, ReplyResult::Refused(Refusal::Fenced));
        self.world.pass(ms(300));
    }

    fn check(&mut self) {
        let sound = self.sound();
        let digests: Vec<_> =
            sound.iter().map(|n| self.world.shard(*n).digest(G).unwrap()).collect();
        assert!(
            digests.windows(2).all(|w| w[0] == w[1]),
            "{sound:?} differ: {digests:?}, {:#?}",
            self.world.tell()
        );
        let alarm = self.world.notices.iter().find(|n| n.contains("stopped"));
        assert_eq!(alarm, None);
        for (block, state) in self.blocks.clone() {
            let n = sound[self.random.below(sound.len() as u64) as usize];
            let value = match self.world.read(n, self.epoch, block, self.floor) {
                Ok(value) => value,
                Err(ReplyResult::Refused(Refusal::Damaged)) if self.frail == Some(n) => continue,
                Err(other) => panic!("block {block} of node {n}: {other:?}"),
            };
            let possible = value == state.acknowledged || state.unknown.contains(&value);
            assert!(possible, "block {block} holds {value}, not {:?}", state.acknowledged);
            // What was read once is what it is.
            self.blocks.insert(block, Block { acknowledged: value, unknown: Vec::new() });
        }
    }

    fn run(&mut self, rounds: u32) {
        for _ in 0..rounds {
            for _ in 0..40 {
                match self.random.below(10) {
                    0 => self.fault(),
                    1..=5 => self.write(),
                    6..=8 => self.world.shuffle(&mut self.random, 30),
                    _ => {
                        let time = ms(self.random.below(300));
                        self.world.pass(time);
                    }
                }
                self.settle_replies();
            }
            self.heal();
            if self.random.below(3) == 0 {
                self.move_session();
            }
            self.check();
        }
    }
}

/// The seeds of a storm: 40, or as many as `BASALT_STORM_SEEDS` says.
fn seeds() -> std::ops::RangeInclusive<u64> {
    let count = std::env::var("BASALT_STORM_SEEDS").ok().and_then(|count| count.parse().ok());
    1..=count.unwrap_or(40)
}

#[test]
fn nothing_acknowledged_is_lost_in_a_storm() {
    for seed in seeds() {
        Storm::new(seed, Planted::NONE).run(5);
    }
}

#[test]
fn one_damaged_device_costs_nothing_acknowledged() {
    for seed in seeds() {
        let mut storm = Storm::new(seed, Planted::NONE);
        storm.frail = Some(seed as u32 % 3 + 1);
        storm.run(5);
    }
}

#[test]
#[cfg(feature = "planted")]
fn a_storm_finds_answers_that_come_too_early() {
    for bug in [Bug::ReplyBeforeCommit, Bug::AckBeforeDurable] {
        let found = (1..=40).any(|seed| {
            std::panic::catch_unwind(|| Storm::new(seed, Planted::new(bug)).run(5)).is_err()
        });
        assert!(found, "{bug:?} goes unnoticed");
    }
}
