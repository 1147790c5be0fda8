//! A node alone whose segments are used again and again: it keeps few entries of the past, so
//! that a segment is given up once nothing in it is live.

use super::world::{G, Options, Random, World};
use super::{index, ms};
use crate::config::Limits;
use crate::planted::Planted;
use crate::shard::Phase;
use std::collections::BTreeMap;

const SEGMENTS: u64 = 16;
/// Blocks that are written, over and over.
const BLOCKS: u64 = 60;

fn world(seed: u64, planted: Planted) -> World {
    World::new(Options {
        nodes: 1,
        seed,
        planted,
        segments: SEGMENTS,
        checkpoint_bytes: 300 << 10,
        index_bytes: u64::MAX,
        limits: Limits { segments_reserved: 1, log_retain_bytes: 32 << 10, ..Limits::default() },
        ..Options::default()
    })
}

/// Writes at random, and says what was acknowledged; nothing if the device is full.
fn write(world: &mut World, random: &mut Random, model: &mut BTreeMap<u64, u8>) -> Option<()> {
    let leader = world.elect();
    let (block, count) = (random.below(BLOCKS), 1 + random.below(12) as u32);
    let fill = random.below(250) as u8;
    let op = world.write_op(leader, block, fill, count);
    let id = world.request(leader, 1, 1, op);
    world.run();
    // A save that is held is let go, and time passes: what waits for room gets it then.
    for _ in 0..100 {
        if world.replies.contains_key(&id) {
            break;
        }
        world.nodes.get_mut(&leader).expect("it is there").saves_held = false;
        world.pass(ms(50));
    }
    match world.replies.get(&id).cloned().expect("it is answered") {
        basalt_wire::frame::ReplyResult::Done { .. } => {
            model.extend((block..block + u64::from(count)).map(|block| (block, fill)));
            Some(())
        }
        _ => None,
    }
}

/// Kills the node and starts it again; nothing that was acknowledged may be missing.
fn restart(world: &mut World, model: &BTreeMap<u64, u8>) -> Result<(), String> {
    world.crash_silently(1);
    world.nodes.get_mut(&1).expect("it is there").saves_held = false;
    world.start(1);
    if let Phase::Failed(reason) = world.shard(1).status().phase {
        return Err(reason);
    }
    world.elect();
    world.pass(ms(100));
    let at = world.shard(1).digest(G).expect("the group is there").0;
    for (block, fill) in model {
        match world.read(1, 1, *block, at.0) {
            Ok(found) if found == *fill => {}
            other => return Err(format!("block {block}: {other:?}, not {fill}")),
        }
    }
    Ok(())
}

/// Goes around the device some times, with restarts at random. Gives the uses of segments.
fn run(seed: u64, planted: Planted) -> Result<u64, String> {
    let (mut world, mut random) = (world(seed, planted), Random(seed * 31 + 7));
    let mut model = BTreeMap::new();
    index(&world.fence(1));
    let mut refused = 0;
    for _ in 0..900 {
        refused =
            if write(&mut world, &mut random, &mut model).is_some() { 0 } else { refused + 1 };
        if refused > 20 {
            return Err(format!("the device stays full: {:#?}", world.notices));
        }
        if refused > 0 {
            world.nodes.get_mut(&1).expect("it is there").saves_held = false;
            world.pass(ms(50));
            continue;
        }
        match random.below(40) {
            0 => world.nodes.get_mut(&1).expect("it is there").saves_held = true,
            1 => world.nodes.get_mut(&1).expect("it is there").saves_held = false,
            2 => restart(&mut world, &model)?,
            _ => {}
        }
    }
    restart(&mut world, &model)?;
    let end = world.shard(1).shared.log.end().expect("the log is open");
    Ok(end.segment_seq)
}

#[test]
fn a_device_takes_many_times_what_it_holds() {
    for seed in 0..12 {
        let uses = run(seed, Planted::NONE).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(uses > 4 * SEGMENTS, "seed {seed}: only {uses} uses");
    }
}

#[test]
fn without_its_store_it_says_what_to_do() {
    let (mut world, mut random) = (world(3, Planted::NONE), Random(3));
    let mut model = BTreeMap::new();
    index(&world.fence(1));
    for _ in 0..400 {
        write(&mut world, &mut random, &mut model);
    }
    world.crash_silently(1);
    world.nodes.get_mut(&1).expect("it is there").store.clear();
    world.start(1);
    let Phase::Failed(reason) = world.shard(1).status().phase else { panic!("it opened") };
    assert!(reason.contains("must be rebuilt from its peers"), "{reason}");
    assert!(world.notices.iter().any(|n| n.contains("can not be opened")), "{:?}", world.notices);
}

#[cfg(feature = "planted")]
#[test]
fn segments_released_early_are_noticed() {
    let planted = Planted::new(crate::planted::Bug::SegmentReleasedEarly);
    let noticed = (0..40).any(|seed| run(seed, planted).is_err());
    assert!(noticed);
}
