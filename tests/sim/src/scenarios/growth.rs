//! Volumes that grow: their sessions enter groups that they had not fenced.

use super::dice;
use crate::disk::CutPolicy;
use crate::options::{Families, Family};
use crate::queue::SECOND;
use crate::script::{Script, Setup};
use crate::workload::Kind;
use crate::world::World;
use basalt_wire::block::CHUNK_BLOCKS;

const CHUNKS: u32 = 8;

/// A volume of one chunk, which may get eight, over four groups.
fn growing(set: Setup) -> Script {
    Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.groups = 4;
        o.chunks = CHUNKS;
        o.families = Families::NONE.with(Family::Grow);
    })
}

fn last_blocks(chunks: u32) -> impl Iterator<Item = u64> {
    (1..u64::from(chunks)).map(|chunk| chunk * CHUNK_BLOCKS)
}

/// A session reads that its volume has grown and stands still. The volume moves, and its next session
/// writes behind the former end. What the first one does there when it goes on has no effect.
pub fn session_that_is_over(set: Setup) -> World {
    let mut s = growing(set);
    let mut dice = dice(set.seed);
    s.write(1);
    s.wait_answers(10_000);
    let old = s.client;
    s.world.client(old).paused_until = s.world.queue.now() + dice.within(1, 4) * SECOND;
    s.world.grow(0, CHUNKS);
    last_blocks(CHUNKS).for_each(|block| s.write(block));
    s.pass(dice.within(0, 900));
    s.attach_elsewhere();
    s.wait("the new session begins", 10_000, |w, c| w.client(c).ready.is_some());
    last_blocks(CHUNKS).for_each(|block| s.write(block));
    s.wait_answers(10_000);
    s.pass(6_000);
    last_blocks(CHUNKS).for_each(|block| s.read(block));
    s.wait_answers(10_000);
    let over = s.world.client(old).lost.is_some();
    s.must(over, || format!("client {old} still believes in its session"));
    s.end()
}

/// It grows while nodes lose power; what is behind its former end reads as zeros, then as what was
/// written.
pub fn power_cuts(set: Setup) -> World {
    let mut s = growing(set);
    let mut dice = dice(set.seed);
    for chunk in 1..CHUNKS {
        let cut: Vec<usize> = (0..3).filter(|_| dice.chance(0.5)).collect();
        let policy = *dice.pick(&CutPolicy::ALL);
        let first = u64::from(chunk) * CHUNK_BLOCKS;
        s.world.grow(0, 1);
        s.ask(Kind::Read, first - 2, 4);
        s.ask(Kind::Write, first - 1, 3);
        s.pass_micros(dice.within(10, 3_000));
        cut.iter().for_each(|n| s.power_cut(*n, policy));
        s.pass(dice.within(1, 500));
        cut.iter().for_each(|n| s.start(*n));
        s.wait_answers(30_000);
        s.ask(Kind::Read, first - 2, 4);
        s.wait_answers(30_000);
    }
    s.end()
}
