//! Checkpoints: crashes while one is taken, devices and stores that do not fit them.

use super::{calm, dice, harmed, votes, with_checkpoints};
use crate::disk::CutPolicy;
use crate::script::{Script, Setup};
use crate::world::World;

/// The checkpoint behind which a node was opened, if it was opened behind one.
fn opened_from(s: &Script, n: usize) -> Option<u64> {
    s.world.nodes[n].shard.as_ref()?.status().open_report?.checkpoint
}

pub fn crashes(set: Setup) -> World {
    let mut s = calm(set);
    let mut dice = dice(set.seed);
    with_checkpoints(&mut s, 32 << 10);
    let mut used = 0;
    for round in 0..10 {
        // Epochs rise, so that a fence that a checkpoint forgot would show.
        if round % 3 == 1 {
            s.attach_elsewhere();
            s.wait("the new session begins", 10_000, |w, c| w.client(c).ready.is_some());
        }
        s.work(20, 20_000);
        let n = dice.below(3) as usize;
        s.write(dice.below(12));
        s.pass_micros(dice.log_uniform(10.0, 200e3) as u64);
        match dice.chance(0.5) {
            true => s.kill(n),
            false => s.power_cut(n, *dice.pick(&CutPolicy::ALL)),
        }
        s.pass(dice.within(1, 400));
        s.start(n);
        s.pass(200);
        used += u64::from(opened_from(&s, n).is_some());
        s.wait_answers(20_000);
    }
    s.must(used >= 5, || format!("only {used} of 10 starts were from a checkpoint"));
    s.end()
}

pub fn older_device(set: Setup) -> World {
    let mut s = harmed(set);
    with_checkpoints(&mut s, 24 << 10);
    let victim = s.world.options.victim as usize;
    s.work(30, 20_000);
    s.kill(victim);
    let image = s.world.nodes[victim].disk.image();
    s.start(victim);
    let before = s.world.nodes[victim].store.saved;
    for _ in 0..20 {
        s.work(10, 20_000);
        s.pass(600);
        if s.world.nodes[victim].store.saved > before + 1 {
            break;
        }
    }
    let saved = s.world.nodes[victim].store.saved;
    s.must(saved > before + 1, || "the victim took no checkpoint".to_owned());
    s.kill(victim);
    s.wait_leader(None, 10_000);
    s.world.damaged = true;
    s.world.nodes[victim].disk.put_back(image);
    s.start(victim);
    s.pass(1_000);
    let from = opened_from(&s, victim);
    s.must(from.is_none(), || format!("checkpoint {from:?} of an older device was believed"));
    s.work(10, 20_000);
    votes::wait_whole(&mut s, victim);
    // It votes again: without another one nothing is decided but with it.
    let other = s.other(victim);
    s.kill(other);
    s.wait_leader(None, 20_000);
    s.work(10, 20_000);
    s.start(other);
    s.end()
}

pub fn disturbed_store(set: Setup) -> World {
    let mut s = harmed(set);
    with_checkpoints(&mut s, 24 << 10);
    let victim = s.world.options.victim as usize;
    for _ in 0..8 {
        s.work(30, 20_000);
        s.pass(600);
        s.kill(victim);
        s.world.disturb_store(victim, true);
        s.work(4, 20_000);
        s.start(victim);
        s.pass(500);
        (0..14).for_each(|block| s.read(block));
        s.wait_answers(20_000);
    }
    s.end()
}
