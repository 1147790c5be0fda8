//! Devices without room: writes are refused, everything else goes on.

use super::{dice, without_checkpoints};
use crate::disk::CutPolicy;
use crate::options::{Families, Family};
use crate::script::{Script, Setup};
use crate::workload::Kind;
use crate::world::World;

fn small(set: Setup, segments: u64) -> Script {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.segment = 128 << 10;
        o.device = (128 << 10) + segments * o.segment;
        o.families = Families::NONE.with(Family::Full);
    });
    without_checkpoints(&mut s);
    s
}

fn fill(s: &mut Script) {
    let before = s.world.counts.errors;
    for i in 0..1_000 {
        s.ask(Kind::Write, i % 12, 4);
        s.wait_answers(30_000);
        if s.world.counts.errors > before {
            return;
        }
    }
    s.must(false, || "the device never was full".to_owned());
}

fn reads_go_on(s: &mut Script) {
    let before = s.world.counts.errors;
    (0..14).for_each(|block| s.read(block));
    s.wait_answers(20_000);
    let after = s.world.counts.errors;
    s.must(before == after, || "a read of a full device failed".to_owned());
}

/// Writes to a full device are refused, and reads go on.
pub fn full_device(set: Setup) -> World {
    let mut s = Script::new(set, |o| {
        o.device = (128 << 10) + 10 * o.segment;
        o.families = Families::NONE.with(Family::Full);
    });
    without_checkpoints(&mut s);
    s.work(400, 30_000);
    let errors = s.world.counts.errors;
    s.must(errors > 0, || "the device never was full".to_owned());
    (0..14).for_each(|block| s.read(block));
    s.wait_answers(20_000);
    s.end()
}

/// Elections, attachments and restarts of a full device work out of its reserve.
pub fn full_device_elects(set: Setup) -> World {
    let mut s = small(set, 24);
    let mut dice = dice(set.seed);
    fill(&mut s);
    for round in 0..4 {
        let leader = s.wait_leader(None, 20_000);
        match round % 3 {
            0 => s.kill(leader),
            1 => s.power_cut(leader, *dice.pick(&CutPolicy::ALL)),
            _ => (0..3).for_each(|n| s.kill(n)),
        }
        if round % 3 == 2 {
            (0..3).for_each(|n| s.start(n));
        } else {
            s.wait_leader(Some(leader), 20_000);
        }
        reads_go_on(&mut s);
        s.attach_elsewhere();
        s.wait("the new session begins", 10_000, |w, c| w.client(c).ready.is_some());
        reads_go_on(&mut s);
        s.ask(Kind::Write, 1, 4);
        s.wait_answers(20_000);
        s.start(leader);
        s.pass(2_000);
    }
    s.end()
}

/// Elections without end use the reserve up. From then on the shard only serves reads, and says so;
/// it does so after a restart too.
pub fn reserve_is_used_up(set: Setup) -> World {
    let mut s = small(set, 12);
    fill(&mut s);
    // Each election records a few blocks at most.
    for _ in 0..400 {
        if s.leader().is_none() {
            // An election may still be under way.
            s.pass(10_000);
        }
        let Some(leader) = s.leader() else { break };
        s.kill(leader);
        s.pass(1_500);
        s.start(leader);
        s.pass(200);
    }
    s.pass(10_000);
    let none = s.leader().is_none();
    s.must(none, || "the reserve never ended".to_owned());
    reads_go_on(&mut s);
    let errors = s.world.counts.errors;
    s.write(3);
    s.wait_answers(20_000);
    let refused = s.world.counts.errors;
    s.must(refused == errors + 1, || "a write to a read-only device was not refused".to_owned());
    s.kill(0);
    s.start(0);
    s.pass(5_000);
    reads_go_on(&mut s);
    s.end()
}
