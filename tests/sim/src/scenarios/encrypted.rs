//! Encrypted volumes: what their users see is what they wrote, and never the cipher of anything else.

use super::clones::{answers, handed_out, read_all, snapshot};
use super::{Scenario, dice};
use crate::options::Options;
use crate::script::{Script, Setup};
use crate::workload::{Kind, Plan};
use crate::world::World;

const CHUNKS: u64 = 2;

/// All of them.
pub fn all() -> [Scenario; 2] {
    let s = |name, seeds, play| Scenario { name, play, seeds };
    [
        s("encrypted-volume-with-holes-and-parts-of-blocks", 8, parts_and_holes),
        s("encrypted-clones-while-leaders-die", 8, clones),
    ]
}

fn begin(set: Setup, unit: usize) -> Script {
    Script::new(set, |o: &mut Options| {
        o.encrypted = true;
        (o.groups, o.chunks, o.unit) = (4, CHUNKS as u32, unit);
        o.volatile = set.seed.is_multiple_of(2);
    })
}

/// Sectors are written, read and unmapped in blocks that were written and in holes, by sessions one after the
/// other.
fn parts_and_holes(set: Setup) -> World {
    let mut s = begin(set, 512);
    let mut dice = dice(set.seed);
    for round in 0..6 {
        for _ in 0..24 {
            let kind = *dice.pick(&[Kind::Write, Kind::Write, Kind::Read, Kind::Unmap]);
            let unit = dice.below(CHUNKS) * 8 * 1024 + dice.below(100);
            s.ask(kind, unit, dice.within(1, 24) as u32);
        }
        s.wait_answers(60_000);
        if round % 2 == 1 {
            s.attach_elsewhere();
            s.wait("the new session begins", 60_000, |w, c| w.client(c).ready.is_some());
        }
        read_all(&mut s, &[0]);
        s.wait_answers(60_000);
    }
    s.end()
}

/// Clones read their parents' blocks with their parents' key, by the same numbers, and so they do when these were
/// copied.
fn clones(set: Setup) -> World {
    let mut s = begin(set, 4096);
    let mut dice = dice(set.seed);
    let mut volumes = vec![0];
    for _ in 0..3 {
        for _ in 0..24 {
            let who = s.world.volumes[*dice.pick(&volumes)].client;
            let kind = if dice.chance(0.2) { Kind::Unmap } else { Kind::Write };
            let unit = dice.below(CHUNKS) * 1024 + dice.below(14);
            s.world.submit_plan(who, Plan { kind, unit, count: dice.within(1, 3) as u32 });
        }
        answers(&mut s);
        let of = *dice.pick(&volumes);
        let at = snapshot(&mut s, of);
        let clone = s.world.begin_clone(at, 0);
        let leader = s.wait_leader(None, 20_000);
        s.pass_micros(dice.below(600));
        s.kill(leader);
        handed_out(&mut s, clone);
        volumes.push(clone);
        read_all(&mut s, &volumes);
        s.world.attach_view(at, 4);
        answers(&mut s);
        s.start(leader);
        s.pass(500);
    }
    s.end()
}
