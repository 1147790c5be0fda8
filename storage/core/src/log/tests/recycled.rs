//! Power cuts and damage of logs whose segments are used again and again.
//!
//! A run appends, takes checkpoints that give up segments at random, releases them once the checkpoint
//! is durable, and goes around the device many times. Whenever something changed, the power is cut in many
//! ways; each image must open from the checkpoint that is durable, and, while one is being saved, from
//! that one too. Everything declared durable must be there, and every block in a segment that the
//! checkpoint needs or the log visits. Copies are written beside it, to segments of their own.

use super::damage::inspected;
use super::disk::{Checkpoint, Random, World, config, cuts, entry};
use super::hard_state;
use crate::config::ShardConfig;
use crate::log::{Log, LogEvent, SegmentState};
use crate::planted::Planted;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::checkpoint::SegmentUse;
use basalt_wire::ids::SegmentId;

/// A log with the store of its checkpoints.
struct Run {
    world: World,
    /// The durable checkpoint.
    kept: Option<Checkpoint>,
    /// One under way, and what it gives up.
    next: Option<(Checkpoint, Vec<SegmentUse>)>,
    saving: bool,
    random: Random,
    tag: u64,
    /// Checkpoints that became durable.
    taken: u64,
}

impl Run {
    fn new(config: ShardConfig, seed: u64) -> Run {
        let (world, random) = (World::format(config), Random(seed));
        Run { world, kept: None, next: None, saving: false, random, tag: 0, taken: 0 }
    }

    /// The run that goes on with an image of this one.
    fn reopened(&mut self, world: World) -> Run {
        let (kept, random) = (world.checkpoint.clone(), Random(self.random.next()));
        Run {
            world,
            kept,
            next: None,
            saving: false,
            random,
            tag: self.tag + 1000,
            taken: self.taken,
        }
    }

    fn act(&mut self) {
        self.tag += 1;
        let (world, random, tag) = (&mut self.world, &mut self.random, self.tag);
        let roomy = world.log.has_room(2);
        match random.below(14) {
            12 | 13 if self.kept.is_some() && has_place_for_copies(&world.log) => {
                let (count, closes) = (1 + random.below(9) as u32, random.below(4) == 0);
                world.copy(count, tag);
                if closes {
                    world.log.close_copies();
                }
            }
            0..=3 if roomy => {
                let (group, blocks) = (random.below(3) as u32, random.below(3) as u32);
                world.append(entry(group, tag, blocks, tag));
            }
            4 if roomy => world.append(hard_state(random.below(3) as u32, tag)),
            5 | 6 => world.flush(),
            7 if world.ops.is_empty() && random.below(2) == 0 => world.seal(),
            8 => self.checkpoint(),
            _ if !world.ops.is_empty() => {
                let at = random.below(world.ops.len());
                world.step(at);
                world.flush();
            }
            _ => self.checkpoint(),
        }
    }

    /// The next step of a checkpoint.
    fn checkpoint(&mut self) {
        let Some((checkpoint, given_up)) = &mut self.next else { return self.begin() };
        if self.saving && self.random.below(2) == 0 {
            return;
        }
        if self.saving {
            self.kept = Some(checkpoint.clone());
            self.world.log.release(given_up);
            (self.next, self.saving) = (None, false);
            self.taken += 1;
            return;
        }
        let durable = self.world.log.durable_batch();
        if durable.0 >= checkpoint.start.from.seq {
            self.world.complete_checkpoint(checkpoint, given_up);
            self.saving = true;
        }
    }

    fn begin(&mut self) {
        let Some(from) = self.world.log.durable_place() else { return };
        let table = self.world.log.segments().expect("the log is open");
        let before = table.closed().filter(|used| used.seq < from.segment_seq);
        let full = table.iter().filter(|s| s.state == SegmentState::Copies);
        let copies = full.map(|s| SegmentUse { segment: s.id, seq: s.seq });
        let random = &mut self.random;
        let given_up = before.chain(copies).filter(|_| random.below(3) > 0).collect::<Vec<_>>();
        self.next = Some((self.world.begin_checkpoint(&given_up), given_up));
    }

    /// Checks what an image holds, from a checkpoint that was durable at the time.
    fn check_image(&self, image: &[u8], from: Option<&Checkpoint>) -> Result<World, String> {
        let again = self.world.reopen_from(image.to_vec(), from);
        if let Some(reason) = again.opened.failed.as_ref().or(again.opened.refused.as_ref()) {
            return Err(format!("it does not open: {reason}"));
        }
        if !again.opened.damages.is_empty() {
            return Err(format!("damage after a power cut: {:?}", again.opened.damages));
        }
        let (found, promised) = (again.appended.len(), self.world.promised());
        if found < promised {
            return Err(format!("{found} records of {promised} durable ones"));
        }
        if self.world.appended.get(..found) != Some(&again.appended[..]) {
            return Err("a record differs from what was appended".into());
        }
        again.check_places()?;
        Ok(again)
    }

    /// Cuts the power in every way, opens what is left, and goes on with some of it.
    fn check_cuts(&mut self, depth: usize) -> Result<(), String> {
        let at_risk = self.world.disk.at_risk(&self.world.ops);
        for cut in cuts(at_risk.len(), &mut self.random) {
            let image = self.world.disk.image(&at_risk, |i| cut[i]);
            let saving = self.next.as_ref().filter(|_| self.saving).map(|(next, _)| next);
            let mut again = self.check_image(&image, self.kept.as_ref())?;
            if let Some(next) = saving {
                let other =
                    self.check_image(&image, Some(next)).map_err(|e| format!("new: {e}"))?;
                if self.random.below(2) == 0 {
                    again = other;
                }
            }
            if self.random.below(12) == 0 {
                self.check_opening(&image, &again)?;
            }
            if depth > 0 && self.random.below(20) == 0 {
                let mut run = self.reopened(again);
                run.explore(10, depth - 1).map_err(|e| format!("reopened: {e}"))?;
            }
        }
        Ok(())
    }

    /// Cuts the power while an image is being opened.
    fn check_opening(&mut self, image: &[u8], first: &World) -> Result<(), String> {
        let from = first.checkpoint.as_ref();
        let mut opening = self.world.restart(image.to_vec(), from);
        while opening.step_first() {
            let at_risk = opening.disk.at_risk(&opening.ops);
            if at_risk.is_empty() {
                continue;
            }
            for cut in cuts(at_risk.len(), &mut self.random) {
                let image = opening.disk.image(&at_risk, |i| cut[i]);
                let again = self.check_image(&image, from)?;
                if again.appended != first.appended {
                    return Err("a cut while it was being opened changed the log".into());
                }
            }
        }
        Ok(())
    }

    fn explore(&mut self, steps: usize, depth: usize) -> Result<(), String> {
        for step in 0..steps {
            self.act();
            self.check_cuts(depth).map_err(|e| format!("step {step}: {e}"))?;
        }
        Ok(())
    }

    /// Goes around the device until so many uses of segments were begun.
    fn go_around(&mut self, uses: u64) {
        for _ in 0..60 * uses {
            let from = self.world.log.end().expect("the log is open");
            if from.segment_seq >= uses && self.kept.is_some() {
                return;
            }
            self.act();
        }
        panic!("the log does not come around: {:?}", self.world.log.segments());
    }

    /// Comes to rest with a checkpoint and some records behind it, sealed.
    fn rest(&mut self) {
        self.world.settle();
        let taken = self.taken + 1;
        while self.taken < taken {
            self.checkpoint();
            self.act();
            self.world.settle();
        }
        for _ in 0..4 {
            self.tag += 1;
            self.world.append(entry(1, self.tag, 1, self.tag));
            self.world.settle();
        }
        self.world.seal();
    }
}

/// Few segments are left to copies, so that the log goes on.
fn has_place_for_copies(log: &Log) -> bool {
    let table = log.segments().expect("it is open");
    log.filling().is_some() || table.copies().len() < 2 && table.free() > 2
}

fn run(config: &ShardConfig, seed: u64, steps: usize, depth: usize) -> Result<(), String> {
    let mut run = Run::new(config.clone(), seed);
    run.go_around(8 + seed % 20);
    run.explore(steps, depth).map_err(|e| format!("seed {seed}: {e}"))
}

#[test]
fn nothing_durable_is_lost_when_segments_are_used_again() {
    for seed in 0..12 {
        assert_eq!(run(&config(5 + seed % 3, Planted::NONE), seed, 40, 1), Ok(()));
    }
}

#[test]
fn nor_without_a_cache() {
    let config = ShardConfig { volatile_cache: false, ..config(6, Planted::NONE) };
    for seed in 100..104 {
        assert_eq!(run(&config, seed, 40, 1), Ok(()));
    }
}

#[test]
fn nor_when_cuts_follow_cuts() {
    for seed in 200..206 {
        assert_eq!(run(&config(6, Planted::NONE), seed, 16, 2), Ok(()));
    }
}

#[test]
fn a_log_that_went_around_does_not_open_without_its_checkpoint() {
    for seed in 0..20 {
        let mut run = Run::new(config(6, Planted::NONE), seed);
        run.go_around(9 + seed);
        run.world.settle();
        let image = run.world.disk.durable.clone();
        let again = run.world.reopen_from(image.clone(), None);
        let reason = again.opened.failed.expect("there is no checkpoint");
        assert!(reason.contains("rebuilt from its peers"), "{reason}");
        assert_eq!(again.disk.content, image, "something was written");
    }
}

#[test]
fn an_older_checkpoint_is_refused_once_its_segments_were_used_again() {
    for seed in 0..30 {
        let mut run = Run::new(config(8, Planted::NONE), seed);
        run.go_around(9 + seed);
        let listed = |run: &Run| {
            let kept = run.kept.as_ref().expect("it has a checkpoint");
            kept.start.segments.clone()
        };
        while listed(&run).is_empty() || run.world.log.segments_free() < 2 {
            run.act();
        }
        let (old, given_up) = (run.kept.clone().expect("seen above"), listed(&run));
        run.world.settle();
        let as_old = run.world.disk.durable.clone();
        run.world.log.release(&given_up);
        let in_use = |run: &Run| {
            let table = run.world.log.segments().expect("it is open");
            given_up.iter().any(|used| table.use_of(used.segment.0).is_some())
        };
        while !in_use(&run) {
            run.tag += 1;
            run.world.append(entry(0, run.tag, 2, run.tag));
            run.world.settle();
        }
        let again = run.world.reopen_from(run.world.disk.durable.clone(), Some(&old));
        let reason = again.opened.failed.expect("what it needs was overwritten");
        assert!(reason.contains("the checkpoint was refused"), "{reason}");
        // The batch that tells that a segment was taken again is lost, with all others of the same time.
        let table = run.world.log.segments().expect("it is open");
        let mut bad = as_old.clone();
        for used in given_up.iter().filter(|used| table.use_of(used.segment.0).is_some()) {
            let at = (128 << 10) + used.segment.0 as usize * (64 << 10);
            bad[at..at + (64 << 10)].copy_from_slice(&run.world.disk.durable[at..at + (64 << 10)]);
        }
        let again = run.world.reopen_from(bad, Some(&old));
        let reason = again.opened.failed.expect("what it needs was overwritten");
        assert!(reason.contains("used that segment again"), "{reason}");
        let before = run.world.reopen_from(as_old, Some(&old));
        assert_eq!((&before.opened.failed, &before.opened.refused), (&None, &None));
    }
}

#[test]
fn a_damaged_header_behind_the_checkpoint_is_reported() {
    let mut reported = 0;
    for seed in 0..12 {
        let mut run = Run::new(config(6, Planted::NONE), seed);
        run.go_around(10 + seed);
        run.rest();
        let (kept, image) = (run.kept.clone(), run.world.disk.content.clone());
        let whole = run.check_image(&image, kept.as_ref()).expect("the image is whole");
        let heads: std::collections::BTreeSet<usize> = whole
            .opened
            .places
            .iter()
            .map(|(.., data_at)| {
                (128 << 10)
                    + data_at.segment.0 as usize * (64 << 10)
                    + data_at.block as usize * BLOCK_BYTES
            })
            .collect();
        for at in heads {
            for byte in [0, 9, 20, 30, 33, 41, 63, 90, 100] {
                let mut bad = image.clone();
                bad[at + byte] ^= 1 << (byte % 8);
                let again = run.world.reopen_from(bad, kept.as_ref());
                assert_eq!((&again.opened.failed, &again.opened.refused), (&None, &None));
                let lost = whole.opened.records.len() - again.opened.records.len();
                // Hard states stand in the next batch's summary too.
                let known = again.opened.damages.iter().any(|d| d.group.is_some() && !d.vote_lost);
                assert_eq!(known, lost > 0, "seed {seed} byte {byte}: {:?}", again.opened.damages);
                again.check_places().expect("nothing in use is given away");
                reported += usize::from(known);
            }
        }
    }
    assert!(reported > 100, "only {reported} losses");
}

#[test]
fn garbage_in_a_log_that_went_around_never_panics_nor_invents_a_record() {
    let mut run = Run::new(config(6, Planted::NONE), 77);
    run.go_around(20);
    run.rest();
    let (image, kept) = (run.world.disk.content.clone(), run.kept.clone());
    for _ in 0..1500 {
        let mut bad = image.clone();
        for _ in 0..=run.random.below(6) {
            let at = (128 << 10) + run.random.below(bad.len() - (128 << 10));
            let len = (run.random.below(9000) + 1).min(bad.len() - at);
            match run.random.below(4) {
                0 => bad[at] ^= 1 << run.random.below(8),
                1 => bad[at..at + len].fill(0),
                2 => bad[at..at + len].fill_with(|| run.random.next() as u8),
                _ => {
                    let from = run.random.below(bad.len() - len) / BLOCK_BYTES * BLOCK_BYTES;
                    bad.copy_within(from..from + len, at / BLOCK_BYTES * BLOCK_BYTES);
                }
            }
        }
        let from = kept.as_ref().filter(|_| run.random.below(4) > 0);
        let again = run.world.reopen_from(bad, from);
        for record in &again.opened.records {
            let known = run.world.appended.iter().any(|known| known.0 == record.0);
            assert!(known, "{record:?} was never appended");
        }
    }
}

#[test]
fn the_offline_checker_finds_the_chain_of_a_log_that_went_around() {
    for seed in 0..20 {
        let mut run = Run::new(config(6, Planted::NONE), seed);
        run.go_around(10 + seed);
        run.rest();
        let image = run.world.disk.content.clone();
        let found = inspected(&image);
        assert_eq!(found.findings, Vec::<String>::new(), "seed {seed}");
        let end = run.world.log.end().expect("the log is open");
        assert_eq!(found.last_seq + 1, end.seq, "seed {seed}");
        let from = &run.kept.as_ref().expect("it has a checkpoint").start.from;
        assert!(1 < found.first_use && found.first_use <= from.segment_seq, "{found:?}");
        assert_eq!(found.blocks_bad, 0, "seed {seed}");
        let sealed = found.sealed;
        let whole = run.world.reopen_from(image.clone(), run.kept.as_ref());
        let (.., last) = whole.opened.places.last().expect("records behind the checkpoint");
        let mut bad = image;
        let at = (128 << 10) + last.segment.0 as usize * (64 << 10) + last.block as usize * 4096;
        bad[at + 30] ^= 1;
        let found = inspected(&bad);
        let told = |f: &String| f.contains("had been durable: it is lost");
        // Without its head the last segment does not tell that it was begun.
        let tells = sealed && last.block > 0;
        assert!(!tells || found.findings.iter().any(told), "{:?}", found.findings);
    }
}

#[test]
fn a_full_log_goes_on_when_segments_are_released() {
    let mut world = World::format(config(4, Planted::NONE));
    let mut tag = 0;
    for lap in 0..6 {
        while !world.events.iter().any(|event| matches!(event, LogEvent::Full)) {
            tag += 1;
            world.append(entry(0, tag, 2, tag));
            world.settle();
        }
        assert_eq!(world.log.segments_free(), 0);
        assert!(world.promised() < world.appended.len() && !world.log.has_room_for_fence());
        world.events.clear();
        let table = world.log.segments().expect("it is open");
        let closed: Vec<_> = table.closed().skip(lap % 2).take(2).collect();
        world.log.release(&closed);
        assert_eq!(world.log.segments_free(), 2);
        world.settle();
        assert!(matches!(world.events.first(), Some(LogEvent::Room)), "{:?}", world.events);
        assert_eq!(world.promised(), world.appended.len(), "what waited is durable");
        world.check_places().expect("nothing in use was overwritten");
    }
}

#[test]
fn a_segment_is_not_used_again_while_it_is_read() {
    let mut world = World::format(config(4, Planted::NONE));
    for tag in 1..=8 {
        world.append(entry(0, tag, 3, tag));
        world.settle();
    }
    let at = world.stands[0].at;
    let mut out = Vec::new();
    world.log.read(1, at, 3, &mut out);
    world.log.read(2, at, 3, &mut out);
    let free = world.log.segments_free();
    world.log.release(&[SegmentUse { segment: at.segment, seq: 1 }]);
    for op in out {
        assert_eq!(world.log.segments_free(), free);
        let done = world.disk.perform(op);
        world.done(done);
    }
    assert_eq!(world.log.segments_free(), free + 1);
    let mut out = Vec::new();
    world.log.read(3, at, 3, &mut out);
    assert!(out.is_empty(), "what is free is not read");
}

#[test]
#[should_panic(expected = "can not be released")]
fn a_free_segment_is_not_released() {
    let mut world = World::format(config(4, Planted::NONE));
    world.log.release(&[SegmentUse { segment: SegmentId(2), seq: 1 }]);
}

#[cfg(feature = "planted")]
mod planted {
    use super::*;
    use crate::planted::Bug;

    fn is_noticed(bug: Bug) {
        let config = config(6, Planted::new(bug));
        let found = (300..360).find_map(|seed| run(&config, seed, 40, 1).err());
        assert!(found.is_some(), "{bug:?} was not noticed");
    }

    #[test]
    fn stale_content_taken_for_the_logs_is_noticed() {
        is_noticed(Bug::StaleSegmentAccepted);
    }

    #[test]
    fn the_bugs_of_a_log_used_once_are_noticed_too() {
        for bug in [
            Bug::AckBeforeDurable,
            Bug::NoFlush,
            Bug::DurableOutOfOrder,
            Bug::TornTailAccepted,
            Bug::ChainUnchecked,
        ] {
            is_noticed(bug);
        }
    }

    #[test]
    fn the_rare_branches_are_taken() {
        crate::planted::take();
        for seed in 0..6 {
            run(&config(6, Planted::NONE), seed, 40, 1).expect("no bug is planted");
        }
        let marks = crate::planted::take();
        for name in ["log.segment_released", "log.stale_header", "log.torn_tail", "log.sealed"] {
            assert!(marks.contains_key(name), "{name} was not reached: {marks:?}");
        }
    }
}
