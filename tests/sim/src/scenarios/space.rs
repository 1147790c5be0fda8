//! Space comes back: what is overwritten or unmapped makes room for what is written.

use super::{dice, with_checkpoints};
use crate::disk::{CutPolicy, Damage};
use crate::options::{Families, Family};
use crate::rng::Rng;
use crate::script::{Script, Setup};
use crate::workload::Kind;
use crate::world::World;
use basalt_core::cleaner::CleanerCounts;
use basalt_core::shard::ShardStatus;

const SEGMENT: u64 = 256 << 10;

/// Three devices of so many segments, with checkpoints and a short log.
fn device(set: Setup, segments: u64, families: Families) -> Script {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.segment = SEGMENT;
        o.device = (128 << 10) + segments * SEGMENT;
        o.window = 512;
        o.blocks_max = 4;
        o.families = families;
        o.victim = (set.seed % 3) as u32;
    });
    for node in &mut s.world.nodes {
        node.config.limits.log_retain_bytes = 256 << 10;
        node.config.limits.pending_requests = 64;
        node.config.limits.pending_bytes = 1 << 20;
    }
    with_checkpoints(&mut s, 512 << 10);
    s
}

fn status(s: &Script, n: usize) -> Option<ShardStatus> {
    Some(s.world.nodes[n].shard.as_ref()?.status())
}

fn counts(s: &Script, n: usize) -> CleanerCounts {
    status(s, n).map_or(CleanerCounts::default(), |status| status.cleaner)
}

/// Writes four blocks at a time, with eight writes in flight; says whether one was refused.
fn overwrite(s: &mut Script, dice: &mut Rng, writes: u32, blocks: u64) -> bool {
    let before = s.world.counts.errors;
    for i in 0..writes {
        s.ask(Kind::Write, dice.below(blocks - 3), 4);
        if i % 8 == 7 {
            s.wait_answers(60_000);
        }
    }
    s.wait_answers(60_000);
    s.world.counts.errors > before
}

/// Fills three quarters of what a device takes, and overwrites it at random six times.
pub fn overwritten_many_times(set: Setup) -> World {
    let mut s = device(set, 24, Families::NONE);
    let mut dice = dice(set.seed);
    let capacity = status(&s, 0).map_or(0, |status| status.space.capacity);
    let blocks = (capacity / 4096 * 3 / 4).min(1020) / 4 * 4;
    for block in (0..blocks).step_by(4) {
        s.ask(Kind::Write, block, 4);
        if block % 32 == 28 {
            s.wait_answers(30_000);
        }
    }
    s.wait_answers(30_000);
    let refused = overwrite(&mut s, &mut dice, (blocks / 4 * 6) as u32, blocks);
    s.must(!refused, || "a write was refused although there is room".to_owned());
    for n in 0..3 {
        let done = counts(&s, n);
        s.must(done.released > 24 && done.moved > 0, || format!("node {n} cleaned {done:?}"));
    }
    (0..16).for_each(|n| s.ask(Kind::Read, n * 32, 4));
    s.wait_answers(20_000);
    s.end()
}

/// A few blocks are overwritten again and again beside many that hardly ever are, and nodes lose power meanwhile:
/// what is copied stands in segments of its own, and stays.
pub fn hot_beside_cold(set: Setup) -> World {
    let mut s = device(set, 32, Families::NONE);
    for node in &mut s.world.nodes {
        node.config.limits.copy_segments = true;
    }
    with_checkpoints(&mut s, 256 << 10);
    let mut dice = dice(set.seed);
    let capacity = status(&s, 0).map_or(0, |status| status.space.capacity);
    let blocks = (capacity / 4096 * 3 / 4).min(1020) / 4 * 4;
    let refused = overwrite(&mut s, &mut dice, blocks as u32, blocks);
    s.must(!refused, || "a write was refused although there is room".to_owned());
    let (mut apart, mut moved) = ([0; 3], [0; 3]);
    for round in 0..6 {
        let errors = s.world.counts.errors;
        for i in 0..300 {
            let hot = dice.chance(0.9);
            let block = dice.below(if hot { blocks / 10 } else { blocks - 3 });
            s.ask(Kind::Write, block, 4);
            if i % 8 == 7 {
                s.wait_answers(60_000);
            }
        }
        s.wait_answers(60_000);
        let refused = s.world.counts.errors > errors;
        s.must(!refused, || "a write was refused although there is room".to_owned());
        if round % 2 == 0 {
            continue;
        }
        for n in 0..3 {
            let done = counts(&s, n);
            (apart[n], moved[n]) = (apart[n] + done.apart, moved[n] + done.moved);
            s.power_cut(n, *dice.pick(&CutPolicy::ALL));
        }
        (0..3).for_each(|n| s.start(n));
        s.wait_leader(None, 20_000);
        (0..blocks / 16).for_each(|n| s.ask(Kind::Read, n * 16, 4));
        s.wait_answers(60_000);
    }
    for n in 0..3 {
        let mostly = apart[n] > 0 && apart[n] * 4 > moved[n] * 3;
        s.must(mostly, || format!("node {n} moved {} blocks, {} apart", moved[n], apart[n]));
    }
    s.end()
}

/// Headers of copies rot on one node. A scrub finds them and what stands behind them is moved, so that after a start
/// nothing keeps the cleaner from making room.
pub fn rotten_copies(set: Setup) -> World {
    let mut s = device(set, 32, Families::NONE.with(Family::Damage));
    for node in &mut s.world.nodes {
        node.config.limits.copy_segments = true;
    }
    with_checkpoints(&mut s, 256 << 10);
    let mut dice = dice(set.seed);
    let n = (set.seed % 3) as usize;
    let capacity = status(&s, n).map_or(0, |status| status.space.capacity);
    let blocks = (capacity / 4096 * 3 / 4).min(1020) / 4 * 4;
    let refused = overwrite(&mut s, &mut dice, blocks as u32, blocks);
    s.must(!refused, || "a write was refused although there is room".to_owned());
    // What is being filled is not looked at: behind a start there is no such segment, but one that is not full.
    s.power_cut(n, *dice.pick(&CutPolicy::ALL));
    s.start(n);
    s.wait("the replicas agree", 30_000, |w, _| w.is_converged());
    let mut headers = s.world.headers_of_copies(n);
    // Nor is what was begun behind the start.
    let latest = headers.iter().map(|(header, _)| header.fields.segment_seq).max();
    headers.retain(|(header, _)| Some(header.fields.segment_seq) < latest);
    s.must(headers.len() > 3, || format!("only {} headers", headers.len()));
    s.world.all_damaged = true;
    let mut rotten = Vec::new();
    for _ in 0..3 {
        let (header, offset) = dice.pick(&headers);
        if !rotten.contains(&header.fields.segment) {
            s.world.nodes[n].disk.rot_at(*offset);
            rotten.push(header.fields.segment);
        }
    }
    s.world.ask_scrubs();
    s.wait("all is looked at", 30_000, |w, _| w.scrubs_are_over());
    let live = |w: &World| {
        let places = w.live_places(n).into_iter().filter_map(|(block, _)| block.from);
        places.filter(|(segment, _)| rotten.contains(&segment.0)).count()
    };
    // A segment that was emptied early may be written to again by now.
    let emptied = |w: &World| w.scrub_status(n).map_or(0, |status| status.emptied);
    s.wait("these segments were emptied", 30_000, |w, _| {
        live(w) == 0 || emptied(w) >= rotten.len() as u64
    });
    let survey = s.world.scrub_status(n).expect("it runs").survey;
    let found = survey.headers_bad;
    s.must(found >= rotten.len() as u64, || format!("headers rotted in {rotten:?}: {survey:?}"));
    s.power_cut(n, *dice.pick(&CutPolicy::ALL));
    s.start(n);
    let refused = overwrite(&mut s, &mut dice, blocks as u32, blocks);
    s.must(!refused, || "a write was refused although there is room".to_owned());
    (0..blocks / 16).for_each(|n| s.ask(Kind::Read, n * 16, 4));
    s.wait_answers(60_000);
    s.end()
}

/// All of the log may be kept for followers, and checkpoints are far apart: both give way to the room there is
/// beside what is live, long before it is short. A quarter of a device is overwritten at random.
pub fn log_leaves_room(set: Setup) -> World {
    let mut s = device(set, 64, Families::NONE);
    for node in &mut s.world.nodes {
        node.config.limits.log_retain_bytes = 1 << 40;
    }
    with_checkpoints(&mut s, 1 << 40);
    let mut dice = dice(set.seed);
    for _ in 0..6 {
        let refused = overwrite(&mut s, &mut dice, 600, 1020);
        s.must(!refused, || "a write was refused although there is room".to_owned());
        // A checkpoint that was begun meanwhile comes to its end, and one behind it.
        s.pass(2_000);
        for n in 0..3 {
            let Some(space) = status(&s, n).map(|status| status.space) else { continue };
            // Written since the last checkpoint, and kept behind it.
            let most = (space.device - space.live) / 2;
            s.must(space.log <= most, || format!("node {n} keeps its log: {space:?}"));
        }
    }
    s.end()
}

/// Fills a device until it takes no more. Reads, unmaps and writes to what is mapped go on; what is
/// unmapped makes room without anybody's help.
pub fn filled_and_emptied(set: Setup) -> World {
    let mut s = device(set, 18, Families::NONE.with(Family::Full));
    for round in 0..2 {
        fill(&mut s, round);
        let errors = s.world.counts.errors;
        (0..8).for_each(|n| s.ask(Kind::Read, n * 16, 4));
        s.wait_answers(30_000);
        // What replaces something needs room only for a while.
        for n in 0..40 {
            s.ask(Kind::Write, n % 10 * 8, 4);
            s.wait_answers(60_000);
        }
        s.must(s.world.counts.errors == errors, || "an overwrite of a full device failed".into());
        s.attach_elsewhere();
        s.wait("the new session begins", 20_000, |w, c| w.client(c).ready.is_some());
        let errors = s.world.counts.errors;
        for block in (0..1020).step_by(60) {
            s.ask(Kind::Unmap, block, 60.min(1024 - block as u32));
        }
        s.wait_answers(60_000);
        let failed = s.world.counts.errors > errors;
        s.must(!failed, || "an unmap of a full device failed".to_owned());
        s.pass(2_000);
        s.ask(Kind::Write, 5, 4);
        s.wait_answers(60_000);
        let failed = s.world.counts.errors > errors;
        s.must(!failed, || "there is no room although all was unmapped".to_owned());
    }
    s.end()
}

/// A device is full again and again. Elections, restarts and attachments work, reads and discards go on,
/// and writes go on by themselves once something was discarded.
pub fn full_again_and_again(set: Setup) -> World {
    let mut s = device(set, 20, Families::NONE.with(Family::Full));
    let mut dice = dice(set.seed);
    for round in 0..3 {
        fill(&mut s, round);
        match round {
            0 => {
                let leader = s.wait_leader(None, 20_000);
                s.power_cut(leader, *dice.pick(&CutPolicy::ALL));
                s.wait_leader(Some(leader), 20_000);
                s.pass(dice.within(100, 2_000));
                s.start(leader);
            }
            1 => {
                (0..3).for_each(|n| s.kill(n));
                (0..3).for_each(|n| s.start(n));
            }
            _ => {
                s.attach_elsewhere();
            }
        }
        s.wait("the session goes on", 30_000, |w, c| w.client(c).ready.is_some());
        let errors = s.world.counts.errors;
        (0..8).for_each(|n| s.ask(Kind::Read, n * 16, 4));
        s.wait_answers(60_000);
        // A little room is enough for a little data.
        let at = dice.below(4) * 32;
        s.ask(Kind::Unmap, at, 32);
        s.wait_answers(60_000);
        s.pass(2_000);
        s.ask(Kind::Write, at, 4);
        s.wait_answers(60_000);
        let failed = s.world.counts.errors > errors;
        s.must(!failed, || format!("a full device does not go on in round {round}"));
        for block in (0..1020).step_by(60) {
            s.ask(Kind::Unmap, block, 60);
        }
        s.wait_answers(60_000);
        s.pass(2_000);
    }
    s.ask(Kind::Write, 5, 4);
    s.wait_answers(60_000);
    s.end()
}

/// Writes until a write is refused.
fn fill(s: &mut Script, round: u32) {
    let (before, mut block) = (s.world.counts.errors, 0);
    while s.world.counts.errors == before && block < 1020 {
        s.ask(Kind::Write, block, 4);
        s.wait_answers(60_000);
        block += 4;
    }
    let full = s.world.counts.errors > before;
    s.must(full, || format!("the device never was full in round {round}"));
}

/// One node after the other loses power at a moment of its own, again and again.
pub fn cuts_while_cleaning(set: Setup) -> World {
    let mut s = device(set, 20, Families::NONE);
    let mut dice = dice(set.seed);
    for _ in 0..12 {
        overwrite(&mut s, &mut dice, 40, 400);
        let n = dice.below(3) as usize;
        for _ in 0..8 {
            s.ask(Kind::Write, dice.below(396), 4);
        }
        s.pass_micros(dice.log_uniform(10.0, 300e3) as u64);
        match dice.chance(0.3) {
            true => s.kill(n),
            false => s.power_cut(n, *dice.pick(&CutPolicy::ALL)),
        }
        s.pass(dice.within(1, 300));
        s.start(n);
        (0..10).for_each(|n| s.ask(Kind::Read, n * 40, 4));
        s.wait_answers(60_000);
    }
    s.end()
}

/// Blocks rot in segments that are then cleaned: they are counted and never copied.
pub fn damaged_while_cleaning(set: Setup) -> World {
    let mut s = device(set, 24, Families::NONE.with(Family::Damage));
    let mut dice = dice(set.seed);
    let victim = s.world.options.victim as usize;
    for block in (0..400).step_by(4) {
        s.ask(Kind::Write, block, 4);
        s.wait_answers(30_000);
    }
    for _ in 0..6 {
        for _ in 0..6 {
            let kind = *dice.pick(&[Damage::Rot, Damage::Rot, Damage::BadSector]);
            s.world.damaged |= s.world.nodes[victim].disk.damage(kind).is_some();
        }
        overwrite(&mut s, &mut dice, 100, 200);
        (0..50).for_each(|n| s.ask(Kind::Read, n * 8, 4));
        s.wait_answers(60_000);
    }
    s.end()
}

/// Few blocks, overwritten at once, on slow disks: copies come too late for what was written meanwhile.
pub fn overwritten_while_moved(set: Setup) -> World {
    let mut s = device(set, 13, Families::NONE);
    let mut dice = dice(set.seed);
    for node in &mut s.world.nodes {
        node.disk.faults_mut().slowness = 10.0;
    }
    for round in 0..8 {
        // Cold blocks among hot ones, so that segments hold something to be moved.
        for n in 0..12 {
            s.ask(Kind::Write, 100 + (round * 12 + n) % 96 * 2, 1);
        }
        overwrite(&mut s, &mut dice, 60, 60);
        (0..12).for_each(|n| s.ask(Kind::Read, n * 24, 4));
        s.wait_answers(60_000);
    }
    s.end()
}
