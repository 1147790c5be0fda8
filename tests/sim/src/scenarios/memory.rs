//! An index that does not fit its memory: whatever is done finds the pages that it needs.

use super::{dice, with_checkpoints};
use crate::disk::CutPolicy;
use crate::options::Families;
use crate::rng::Rng;
use crate::script::{Script, Setup};
use crate::workload::Kind;
use crate::world::World;
use basalt_core::index::Page;
use basalt_core::shard::IndexStatus;

const CHUNKS: u64 = 6;

/// Three nodes whose index may keep the tables of so many pages in memory.
fn nodes(set: Setup, tables: u64, segments: u64) -> Script {
    let mut s = Script::new(set, |o| {
        o.chunks = CHUNKS as u32;
        o.window = 32;
        o.volatile = set.seed.is_multiple_of(2);
        o.families = Families::NONE;
        if segments > 0 {
            o.segment = 256 << 10;
            o.device = (128 << 10) + segments * o.segment;
        }
    });
    for node in &mut s.world.nodes {
        node.config.index_bytes = tables * Page::TABLE_BYTES;
        node.config.limits.log_retain_bytes = 128 << 10;
    }
    s
}

fn status(s: &Script, n: usize) -> IndexStatus {
    index(&s.world, n)
}

fn index(w: &World, n: usize) -> IndexStatus {
    w.nodes[n].shard.as_ref().map(|shard| shard.status().index).unwrap_or_default()
}

/// Writes, unmaps and reads blocks of all chunks.
fn work(s: &mut Script, dice: &mut Rng, ops: u32) {
    for i in 0..ops {
        let block = dice.below(CHUNKS) * 1024 + dice.below(24);
        let kind = *dice.pick(&[Kind::Write, Kind::Write, Kind::Read, Kind::Unmap]);
        s.ask(kind, block, 1 + i % 4);
        if i % 6 == 5 {
            s.wait_answers(30_000);
        }
    }
    s.wait_answers(30_000);
}

/// Pages leave memory and come back, all the time, while nodes crash and start again.
pub fn beyond(set: Setup) -> World {
    let mut s = nodes(set, set.seed % 3, 0);
    let mut dice = dice(set.seed);
    with_checkpoints(&mut s, 32 << 10);
    let (mut left, mut loaded) = (0, 0);
    for _ in 0..8 {
        work(&mut s, &mut dice, 40);
        let n = dice.below(3) as usize;
        let index = status(&s, n);
        (left, loaded) = (left + index.left, loaded + index.loaded);
        match dice.chance(0.5) {
            true => s.kill(n),
            false => s.power_cut(n, *dice.pick(&CutPolicy::ALL)),
        }
        work(&mut s, &mut dice, 10);
        s.start(n);
        s.pass(dice.within(1, 600));
    }
    s.must(left > 20 && loaded > 20, || format!("{left} tables left memory, {loaded} came back"));
    s.end()
}

/// Records of pages that are out of memory are damaged or lost on one node after the other, while clients read and
/// write. What is asked for comes from the other nodes, a scrub finds the rest, and the next start of the node uses
/// its checkpoint.
pub fn lost_pages(set: Setup) -> World {
    let mut s = nodes(set, set.seed % 2, 0);
    let mut dice = dice(set.seed);
    with_checkpoints(&mut s, 32 << 10);
    let mut recovered = 0;
    for round in 0..4 {
        work(&mut s, &mut dice, 40);
        // Behind these a checkpoint holds all other chunks.
        let scrubbed_first = (set.seed + round).is_multiple_of(2);
        let n = match s.leader().filter(|_| !scrubbed_first) {
            // Whoever leads is asked.
            Some(leader) => leader,
            None => dice.below(3) as usize,
        };
        for block in 0..200 {
            if index(&s.world, n).cold > 2 {
                break;
            }
            s.write((CHUNKS - 1) * 1024 + block % 24);
            s.wait_answers(30_000);
            s.pass(20);
        }
        s.wait("the replicas agree", 30_000, |w, _| w.is_converged());
        s.world.all_damaged = true;
        let harmed = s.world.harm_cold_pages(n, 2);
        for block in 0..24 * CHUNKS {
            if !scrubbed_first {
                s.ask(Kind::Read, block / 24 * 1024 + block % 24, 1);
            }
        }
        if !scrubbed_first {
            work(&mut s, &mut dice, 10);
        }
        s.wait_answers(60_000);
        s.wait("the replicas agree", 30_000, |w, _| w.is_converged());
        s.world.ask_scrubs();
        s.wait("all is looked at", 60_000, |w, _| w.scrubs_are_over());
        s.wait("nothing is lost", 60_000, move |w, _| {
            w.nodes[n].store.is_sound() && index(w, n).lost == 0
        });
        recovered += index(&s.world, n).recovered;
        s.must(harmed > 0, || "nothing was out of memory".to_owned());
        s.power_cut(n, *dice.pick(&CutPolicy::ALL));
        s.start(n);
        s.wait("the replicas agree", 30_000, |w, _| w.is_converged());
        let report = s.world.nodes[n].shard.as_ref().and_then(|shard| shard.status().open_report);
        let used = report.as_ref().is_some_and(|report| report.checkpoint.is_some());
        s.must(used, || format!("the checkpoint was not used: {report:?}"));
    }
    s.must(recovered > 0, || "no page came from another node".to_owned());
    s.end()
}

/// The same while the cleaner moves blocks of pages that are out of memory, and a follower comes back for
/// which the log does not reach back.
pub fn beyond_while_cleaning(set: Setup) -> World {
    let mut s = nodes(set, 1, 24);
    let mut dice = dice(set.seed);
    with_checkpoints(&mut s, 256 << 10);
    let away = dice.below(3) as usize;
    for round in 0..6 {
        if round == 2 {
            s.kill(away);
        }
        for i in 0..240 {
            let block = dice.below(CHUNKS) * 1024 + dice.below(28);
            s.ask(Kind::Write, block, 4);
            if i % 8 == 7 {
                s.wait_answers(60_000);
            }
        }
        s.wait_answers(60_000);
        if round == 4 {
            s.start(away);
        }
    }
    for n in 0..3 {
        let Some(all) = s.world.nodes[n].shard.as_ref().map(|shard| shard.status()) else {
            continue;
        };
        let index = all.index;
        s.must(n == away || all.cleaner.moved > 0 && index.loaded > 0, || {
            format!("node {n} cleaned {:?} with {index:?}", all.cleaner)
        });
    }
    s.end()
}
