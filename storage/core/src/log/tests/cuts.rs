//! Power cuts at every operation boundary.
//!
//! A run appends, flushes and completes writes out of order. Whenever something changed, the power
//! is cut in many ways: every subset of a few blocks at risk, else prefixes, suffixes, holes and
//! coin tosses. Each image must open by itself and hold everything that was declared durable, in
//! order, with its payload; opening it twice, or cutting the power while it is being opened, must
//! give the same. From some images the run goes on, so that new batches overwrite dropped ones.

use super::disk::{Random, World, config, cuts, entry, moved};
use super::hard_state;
use crate::config::ShardConfig;
use crate::planted::Planted;
use basalt_wire::io::{DiskDone, DiskError, DiskOpKind};

/// Checks an image against what was appended and promised.
fn check_image(world: &World, image: &[u8]) -> Result<World, String> {
    let again = world.reopen_image(image.to_vec());
    if let Some(reason) = &again.opened.failed {
        return Err(format!("the log does not open: {reason}"));
    }
    if !again.opened.damages.is_empty() {
        return Err(format!("damage after a power cut: {:?}", again.opened.damages));
    }
    let records = &again.opened.records;
    if records.len() < world.promised() {
        return Err(format!("{} of {} durable records", records.len(), world.promised()));
    }
    if world.appended.get(..records.len()) != Some(&records[..]) {
        let at = records.iter().zip(&world.appended).position(|(a, b)| a != b);
        return Err(format!("record {at:?} differs from what was appended"));
    }
    Ok(again)
}

/// Opens an image again after it was opened, and after power cuts while it was being opened.
fn check_recovery_again(
    world: &World,
    image: &[u8],
    first: &World,
    random: &mut Random,
) -> Result<(), String> {
    let same = |other: &World, when: &str| {
        if other.opened.records == first.opened.records && other.opened.damages.is_empty() {
            return Ok(());
        }
        Err(format!("opened {when}: {} records", other.opened.records.len()))
    };
    same(&first.reopen_image(first.disk.content.clone()), "a second time")?;
    let mut opening = world.restart(image.to_vec(), None);
    while opening.step_first() {
        let at_risk = opening.disk.at_risk(&opening.ops);
        if at_risk.is_empty() {
            continue;
        }
        for cut in cuts(at_risk.len(), random) {
            let image = opening.disk.image(&at_risk, |i| cut[i]);
            same(&world.reopen_image(image), "after a cut while it was being opened")?;
        }
    }
    Ok(())
}

fn act(world: &mut World, random: &mut Random, tag: &mut u64) {
    *tag += 1;
    match random.below(10) {
        0 => world.append(moved(random.below(3) as u32, random.below(2) as u32 + 1, *tag)),
        1..=3 => {
            world.append(entry(random.below(3) as u32, *tag, random.below(2) as u32 + 1, *tag))
        }
        4 => world.append(hard_state(random.below(3) as u32, *tag)),
        5 | 6 => world.flush(),
        7 if world.ops.is_empty() && random.below(2) == 0 => world.seal(),
        _ => {
            world.flush();
            if !world.ops.is_empty() {
                let at = random.below(world.ops.len());
                if random.below(60) == 0 && matches!(world.ops[at].kind, DiskOpKind::Write { .. }) {
                    let token = world.ops.remove(at).map_or(0, |op| op.token);
                    world.done(DiskDone { token, buf: None, result: Err(DiskError::Io) });
                } else {
                    world.step(at);
                }
            }
        }
    }
}

/// One run of `steps`, with `depth` runs more behind some of its cuts.
fn explore(
    world: &mut World,
    random: &mut Random,
    tag: &mut u64,
    steps: usize,
    depth: usize,
) -> Result<(), String> {
    for step in 0..steps {
        act(world, random, tag);
        if world.log.segments_free() == 0 {
            break;
        }
        let at_risk = world.disk.at_risk(&world.ops);
        for cut in cuts(at_risk.len(), random) {
            let image = world.disk.image(&at_risk, |i| cut[i]);
            let mut again = check_image(world, &image).map_err(|e| format!("step {step}: {e}"))?;
            if random.below(12) == 0 {
                check_recovery_again(world, &image, &again, random)?;
            }
            if depth > 0 && random.below(20) == 0 {
                explore(&mut again, random, tag, 8, depth - 1)
                    .map_err(|e| format!("step {step}, reopened: {e}"))?;
            }
        }
    }
    Ok(())
}

fn run(config: &ShardConfig, seed: u64, steps: usize, depth: usize) -> Result<(), String> {
    let mut world = World::format(config.clone());
    explore(&mut world, &mut Random(seed), &mut 0, steps, depth)
        .map_err(|e| format!("seed {seed}: {e}"))
}

#[test]
fn nothing_durable_is_lost_by_a_power_cut() {
    for seed in 0..12 {
        assert_eq!(run(&config(5, Planted::NONE), seed, 40, 1), Ok(()));
    }
}

#[test]
fn nothing_durable_is_lost_without_a_cache_either() {
    let config = ShardConfig { volatile_cache: false, ..config(5, Planted::NONE) };
    for seed in 100..106 {
        assert_eq!(run(&config, seed, 40, 1), Ok(()));
    }
}

#[test]
fn cuts_between_cuts_do_no_harm() {
    for seed in 200..210 {
        assert_eq!(run(&config(5, Planted::NONE), seed, 16, 2), Ok(()));
    }
}

#[cfg(feature = "planted")]
mod planted {
    use super::*;
    use crate::planted::{Bug, Planted};

    fn is_noticed(bug: Bug) {
        let config = config(5, Planted::new(bug));
        let found = (300..400).find_map(|seed| run(&config, seed, 40, 1).err());
        assert!(found.is_some(), "{bug:?} was not noticed");
    }

    #[test]
    fn ack_before_durable_is_noticed() {
        is_noticed(Bug::AckBeforeDurable);
    }

    #[test]
    fn no_flush_is_noticed() {
        is_noticed(Bug::NoFlush);
    }

    #[test]
    fn durable_out_of_order_is_noticed() {
        is_noticed(Bug::DurableOutOfOrder);
    }

    #[test]
    fn an_ignored_write_error_is_noticed() {
        is_noticed(Bug::WriteErrorIgnored);
    }

    #[test]
    fn an_accepted_torn_tail_is_noticed() {
        is_noticed(Bug::TornTailAccepted);
    }

    #[test]
    fn an_unchecked_chain_is_noticed() {
        is_noticed(Bug::ChainUnchecked);
    }

    #[test]
    fn the_rare_branches_are_taken() {
        crate::planted::take();
        for seed in 0..3 {
            run(&config(5, Planted::NONE), seed, 40, 1).expect("no bug is planted");
        }
        let marks = crate::planted::take();
        for name in [
            "log.segment_roll",
            "log.sealed",
            "log.stale_header",
            "log.suspect",
            "log.torn_payload",
            "log.torn_tail",
        ] {
            assert!(marks.contains_key(name), "{name} was not reached: {marks:?}");
        }
    }
}
