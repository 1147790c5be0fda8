//! Damage that nobody reads is found, and repaired from who has it intact.

use super::{Scenario, dice, with_checkpoints};
use crate::disk::Image;
use crate::event::Who;
use crate::options::{Families, Family};
use crate::rng::Rng;
use crate::script::{Script, Setup};
use crate::snapshots::Snapshot;
use crate::workload::Kind;
use crate::world::World;
use basalt_core::event::Event;
use basalt_wire::disk::moved::MovedBlock;

/// All of them.
pub fn all() -> Vec<Scenario> {
    let s = |name, seeds, play| Scenario { name, play, seeds };
    vec![
        s("one-damaged-copy-of-everything-is-repaired-by-a-scrub", 10, one_copy_of_all),
        s("damaged-block-that-is-read-is-repaired", 6, repaired_when_read),
        s("repair-takes-only-what-has-its-checksum", 6, two_copies),
        s("power-cuts-and-writes-while-damage-is-repaired", 8, cuts_and_writes),
        s("replica-that-differs-is-made-to-agree", 9, made_to_agree),
        s("damaged-headers-are-found-before-a-start-needs-them", 9, rotten_headers),
        s("damaged-record-of-a-checkpoint-is-written-anew", 6, rotten_record),
    ]
}

/// Blocks that are written.
const BLOCKS: u64 = 96;

/// Blocks of a volume, overwritten here and there, behind two `snapshots` or none.
fn written(set: Setup, snapshots: bool) -> Script {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.families = Families::NONE.with(Family::Damage);
        (o.groups, o.chunks, o.window) = (2, 2, 64);
    });
    with_checkpoints(&mut s, 64 << 10);
    let mut dice = dice(set.seed);
    for round in 0..3 {
        let count = if round == 0 { BLOCKS } else { BLOCKS / 3 };
        for i in 0..count {
            let block = if round == 0 { i } else { dice.below(BLOCKS) };
            s.write(block % 2 * 1024 + block / 2);
            if i % 8 == 7 {
                s.wait_answers(30_000);
            }
        }
        s.wait_answers(30_000);
        if round < 2 && snapshots {
            s.world.take_snapshot(0);
            s.wait_answers(30_000);
        }
    }
    // Followers apply what was acknowledged last, and a later write makes the mark of it durable.
    s.pass(500);
    s
}

/// Does something to each of some blocks of a node. `kind` says what: 0 rot, 1 zeros, 2 two in each other's
/// place, 3 what stood there in an older image, 4 a page that can not be read.
fn harm(s: &mut Script, n: Who, kind: u64, blocks: &[(MovedBlock, u64)], old: &Image) {
    s.world.all_damaged = true;
    for pair in blocks.chunks(2) {
        let disk = &mut s.world.nodes[n].disk;
        if let (2, [(_, a), (_, b)]) = (kind, pair) {
            disk.swap_at(*a, *b);
            continue;
        }
        for (_, offset) in pair {
            match kind {
                0 | 2 => disk.rot_at(*offset),
                1 => disk.zero_at(*offset),
                3 => disk.put_back_at(*offset, old),
                _ => disk.fail_at(*offset),
            }
        }
    }
}

/// The live blocks of a node of which something holds.
fn some(s: &Script, n: Who, holds: impl Fn(&MovedBlock) -> bool) -> Vec<(MovedBlock, u64)> {
    s.world.live_places(n).into_iter().filter(|(block, _)| holds(block)).collect()
}

/// All nodes look at everything, once, and repair what they find.
fn scrub(s: &mut Script, ms: u64) {
    // What is applied only later would be looked at by the next pass.
    s.wait("the replicas agree", ms, |w, _| w.is_converged());
    s.world.ask_scrubs();
    s.wait("all is looked at and repaired", ms, |w, _| w.scrubs_are_over());
    s.world.judge_places();
}

fn read_all(s: &mut Script) {
    for block in 0..BLOCKS {
        s.read(block % 2 * 1024 + block / 2);
        if block % 8 == 7 {
            s.wait_answers(30_000);
        }
    }
    for at in s.world.snapshots_of(0, Snapshot::is_there) {
        s.world.attach_view(at, 6);
    }
    s.wait_answers(30_000);
}

/// One copy of everything is damaged, each block on another node than its neighbours, in one way per seed.
/// Reads go on. One pass repairs it all.
fn one_copy_of_all(set: Setup) -> World {
    let mut s = written(set, true);
    let old: Vec<Image> = (0..3).map(|n| s.world.nodes[n].disk.image()).collect();
    let kind = set.seed % 5;
    if kind == 3 {
        // What is put back is older than what is live: everything was written again since.
        for block in 0..BLOCKS {
            s.write(block % 2 * 1024 + block / 2);
            if block % 8 == 7 {
                s.wait_answers(30_000);
            }
        }
        s.pass(500);
    }
    let mut harmed = 0;
    for (n, old) in old.iter().enumerate() {
        let blocks = some(&s, n, |block| block.block % 3 == n as u64);
        harm(&mut s, n, kind, &blocks, old);
        // What was kept for a snapshot then stands where it stood in the image.
        harmed += s.world.damaged_places(n).len() as u64;
    }
    s.must(harmed >= BLOCKS, || format!("only {harmed} blocks were damaged"));
    read_all(&mut s);
    scrub(&mut s, 20_000);
    let statuses = (0..3).filter_map(|n| s.world.scrub_status(n));
    let repaired: u64 = statuses.map(|status| status.repairs.repaired).sum();
    s.must(repaired >= harmed, || format!("{repaired} of {harmed} blocks were repaired"));
    read_all(&mut s);
    s.end()
}

/// What is damaged is read by a client: it gets it from another replica, and the copy is repaired although
/// no pass is under way.
fn repaired_when_read(set: Setup) -> World {
    let mut s = written(set, true);
    let image = s.world.nodes[0].disk.image();
    for n in 0..3 {
        let blocks = some(&s, n, |block| block.block % 3 == n as u64);
        harm(&mut s, n, set.seed % 3, &blocks, &image);
    }
    for _ in 0..6 {
        read_all(&mut s);
    }
    s.pass(1_000);
    let statuses: Vec<_> = (0..3).filter_map(|n| s.world.scrub_status(n)).collect();
    let repaired: u64 = statuses.iter().map(|status| status.repairs.repaired).sum();
    s.must(repaired > 0, || format!("nothing was repaired: {statuses:?}"));
    s.end()
}

/// Some blocks are damaged on two nodes, and intact on the third: they must come from there.
fn two_copies(set: Setup) -> World {
    let mut s = written(set, true);
    let image = s.world.nodes[0].disk.image();
    let intact = (set.seed % 3) as Who;
    for n in (0..3).filter(|n| *n != intact) {
        let blocks = some(&s, n, |block| block.block % 4 == 1);
        harm(&mut s, n, set.seed % 2, &blocks, &image);
    }
    scrub(&mut s, 20_000);
    read_all(&mut s);
    s.end()
}

/// Power fails on one node after the other while damage is repaired and the blocks are overwritten.
fn cuts_and_writes(set: Setup) -> World {
    let mut s = written(set, false);
    let mut dice = dice(set.seed);
    let image = s.world.nodes[0].disk.image();
    for round in 0..6u64 {
        let n = dice.below(3) as usize;
        // A block that was damaged before and not repaired yet is not damaged on another node too.
        scrub(&mut s, 40_000);
        let blocks = some(&s, n, |block| block.block % 3 == round % 3);
        harm(&mut s, n, round % 3, &blocks, &image);
        (0..3).for_each(|n| s.world.give(n, Event::Scrub, 0));
        overwrite(&mut s, &mut dice);
        s.pass_micros(dice.log_uniform(10.0, 100e3) as u64);
        let m = dice.below(3) as usize;
        s.power_cut(m, *dice.pick(&crate::disk::CutPolicy::ALL));
        s.pass(dice.within(1, 400));
        s.start(m);
        s.wait_answers(60_000);
    }
    scrub(&mut s, 40_000);
    s.end()
}

fn overwrite(s: &mut Script, dice: &mut Rng) {
    for _ in 0..6 {
        let block = dice.below(BLOCKS);
        s.ask(Kind::Write, block % 2 * 1024 + block / 2, 1);
    }
}

/// One replica of each group forgets blocks, those of a leader included. While others are written it comes to
/// hold what the majority does, snapshots included, and nobody else is touched.
fn made_to_agree(set: Setup) -> World {
    let mut s = written(set, true);
    let mut dice = dice(set.seed);
    s.wait("the replicas agree", 20_000, |w, _| w.is_converged());
    let n = (set.seed % 3) as Who;
    let forgotten = s.world.forget_blocks(n, |_, block| block.block % 3 == set.seed % 2);
    s.must(forgotten > 0, || "nothing was forgotten".to_owned());
    let agrees = |w: &World| {
        let status = w.scrub_status(n).expect("it runs");
        status.mended.pages >= 2 && status.differing_pages == 0
    };
    for _ in 0..100 {
        if agrees(&s.world) {
            break;
        }
        overwrite(&mut s, &mut dice);
        s.pass(dice.within(1, 200));
        s.wait_answers(60_000);
    }
    s.wait("the replica agrees", 30_000, move |w, _| agrees(w));
    s.world.judge_mended();
    read_all(&mut s);
    s.end()
}

/// The number of a node's last checkpoint.
fn checkpoint(w: &World, n: Who) -> u64 {
    w.nodes[n].shard.as_ref().map_or(0, |shard| shard.status().checkpoint)
}

/// A power cut, and a start that must use a checkpoint.
fn start_from_checkpoint(s: &mut Script, n: Who) {
    s.power_cut(n, crate::disk::CutPolicy::ALL[0]);
    s.start(n);
    s.wait("the replicas agree", 30_000, |w, _| w.is_converged());
    let report = s.world.nodes[n].shard.as_ref().and_then(|shard| shard.status().open_report);
    let used = report.as_ref().is_some_and(|report| report.checkpoint.is_some());
    s.must(used, || format!("the checkpoint was not used: {report:?}"));
}

/// Headers rot on one node, in segments that are closed. A scrub finds them; what stands behind them is moved, and
/// a start comes by none of them.
fn rotten_headers(set: Setup) -> World {
    let mut s = written(set, set.seed.is_multiple_of(2));
    let mut dice = dice(set.seed);
    s.wait("the replicas agree", 20_000, |w, _| w.is_converged());
    let n = (set.seed % 3) as Who;
    let headers = s.world.closed_headers(n);
    s.must(headers.len() > 3, || format!("only {} headers", headers.len()));
    s.world.all_damaged = true;
    let mut rotten = Vec::new();
    for _ in 0..3 {
        let (header, offset) = dice.pick(&headers);
        let segment = header.fields.segment;
        if !rotten.contains(&segment) {
            s.world.nodes[n].disk.rot_at(*offset);
            rotten.push(segment);
        }
    }
    let before = checkpoint(&s.world, n);
    s.world.ask_scrubs();
    let live = |w: &World| {
        let stands = |block: &MovedBlock| block.from.map(|(segment, _)| segment.0);
        let live = w.live_places(n).into_iter().filter_map(|(block, _)| stands(&block));
        live.filter(|segment| rotten.contains(segment)).count()
    };
    s.wait("all is looked at", 30_000, |w, _| w.scrubs_are_over());
    let survey = s.world.scrub_status(n).expect("it runs").survey;
    let found = rotten.len() as u64;
    s.must(survey.headers_bad >= found, || format!("{found} headers rotted, {survey:?}"));
    s.wait("nothing stands in these segments", 30_000, |w, _| live(w) == 0);
    s.wait("a checkpoint is taken", 30_000, |w, _| checkpoint(w, n) > before);
    start_from_checkpoint(&mut s, n);
    read_all(&mut s);
    s.end()
}

/// A record of a node's checkpoint rots. A scrub finds it, all of it is written anew, and the next start uses it.
fn rotten_record(set: Setup) -> World {
    let mut s = written(set, true);
    // For want of memory checkpoints would be taken all the time, and the record written again.
    s.world.nodes.iter_mut().for_each(|node| node.config.index_bytes = u64::MAX);
    with_checkpoints(&mut s, 64 << 10);
    s.wait("the replicas agree", 20_000, |w, _| w.is_converged());
    let n = (set.seed % 3) as Who;
    s.world.all_damaged = true;
    let rotted = s.world.nodes[n].store.rot();
    s.must(rotted, || "there is no checkpoint".to_owned());
    let before = checkpoint(&s.world, n);
    s.world.ask_scrubs();
    s.wait("all is looked at", 30_000, |w, _| w.scrubs_are_over());
    let survey = s.world.scrub_status(n).expect("it runs").survey;
    s.must(survey.records_bad > 0, || format!("nothing was found: {survey:?}"));
    s.wait("a checkpoint is taken", 30_000, |w, _| checkpoint(w, n) > before);
    s.pass(2_000);
    start_from_checkpoint(&mut s, n);
    read_all(&mut s);
    s.end()
}
