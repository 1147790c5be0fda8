//! Groups that move while their volumes are written and read.

use super::dice;
use crate::disk::CutPolicy;
use crate::event::Who;
use crate::options::Options;
use crate::queue::MILLI;
use crate::script::{Script, Setup};
use crate::workload::Kind;
use crate::world::World;
use basalt_wire::block::CHUNK_BLOCKS;

fn roomy(o: &mut Options) {
    o.groups = 4;
    o.chunks = 4;
    o.spare = 2;
    o.device = (128 << 10) + (64 << 20);
}

/// Writes and reads in all groups.
fn work(s: &mut Script, ops: u64) {
    for i in 0..ops {
        let kind = if i % 3 == 2 { Kind::Read } else { Kind::Write };
        s.ask(kind, i % 4 * CHUNK_BLOCKS + i * 7 % 13, 1);
        if i % 8 == 7 {
            s.wait_answers(40_000);
        }
    }
    s.wait_answers(40_000);
}

/// Works until all groups are where they should be.
fn work_while_moving(s: &mut Script, mut disturb: impl FnMut(&mut Script, u32)) {
    for round in 0..200 {
        work(s, 8);
        disturb(s, round);
        s.pass(50);
        if s.world.has_failed() || s.world.have_moved() {
            return;
        }
    }
    let text = format!("the groups do not move: {}", s.world.describe());
    s.must(false, || text);
}

/// Three nodes become five, then three others of them.
fn three_to_five_to_three(s: &mut Script, mut disturb: impl FnMut(&mut Script, u32)) {
    let five: [[Who; 3]; 4] = [[0, 1, 3], [1, 2, 4], [2, 0, 3], [4, 3, 0]];
    work(s, 24);
    for round in 0..2 {
        for (group, nodes) in five.iter().enumerate() {
            s.world.move_group(group, nodes);
        }
        work_while_moving(s, &mut disturb);
        // Two nodes are drained: at first those that came, then two of the first three.
        let three: [Who; 3] = if round == 0 { [0, 1, 2] } else { [2, 3, 4] };
        for group in 0..4 {
            s.world.move_group(group, &three);
        }
        work_while_moving(s, &mut disturb);
        work(s, 24);
        let gone = (0..5).filter(|n| !three.contains(n));
        let held: usize = gone
            .filter_map(|n| s.world.nodes[n].shard.as_ref())
            .map(|shard| {
                let status = shard.status();
                let data = status.groups.iter().filter(|g| g.group.0 < 4).count();
                data + status.mapped_blocks as usize
            })
            .sum();
        s.must(held == 0, || format!("drained nodes hold {held} groups and blocks"));
    }
}

pub fn calm_moves(set: Setup) -> World {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        roomy(o);
    });
    three_to_five_to_three(&mut s, |_, _| {});
    s.end()
}

pub fn moves_under_fire(set: Setup) -> World {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        roomy(o);
    });
    for n in 0..5 {
        s.world.nodes[n].config.checkpoint_bytes = 48 << 10;
    }
    let mut dice = dice(set.seed);
    three_to_five_to_three(&mut s, |s, _| {
        let n = dice.below(5) as usize;
        match dice.below(4) {
            0 => s.kill(n),
            1 => s.power_cut(n, *dice.pick(&CutPolicy::ALL)),
            2 => {
                s.isolate(n);
                s.pass(dice.within(100, 1_500));
                s.heal();
            }
            _ => {}
        }
        s.pass(dice.within(1, 800));
        s.start(n);
    });
    s.end()
}

/// As before, with logs that hold only the last entries: whoever comes gets pages, and whoever was away while
/// the members changed learns of that with them.
pub fn moves_by_pages(set: Setup) -> World {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        roomy(o);
    });
    for n in 0..5 {
        let config = &mut s.world.nodes[n].config;
        config.checkpoint_bytes = 24 << 10;
        config.limits.log_retain_bytes = 0;
    }
    work(&mut s, 120);
    let mut dice = dice(set.seed);
    let mut away = 0;
    three_to_five_to_three(&mut s, |s, round| {
        s.start(away);
        if round % 3 == 0 {
            away = dice.below(5) as usize;
            s.kill(away);
            work(s, 24);
        }
        s.pass(dice.within(1, 800));
    });
    s.start(away);
    s.pass(2_000);
    let counts = s.world.nodes.iter().filter_map(|node| node.shard.as_ref());
    let restored: u64 = counts.map(|shard| shard.status().moved.restored).sum();
    s.must(restored > 0, || "nobody got pages".to_owned());
    s.end()
}

/// The leader of a group makes room for a node that comes, again and again, while somebody writes at an even
/// pace and hardly notices.
pub fn quiet_moves(set: Setup) -> World {
    const MOST: u64 = 60 * MILLI;
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.spare = 1;
        o.chunks = 4;
        o.device = (128 << 10) + (64 << 20);
        (o.delay_min, o.delay) = (60_000, 20_000);
    });
    s.work(12, 20_000);
    for _ in 0..6 {
        let leader = s.wait_leader(None, 10_000);
        let to: Vec<Who> = (0..4).filter(|n| *n != leader).collect();
        s.world.move_group(0, &to);
        let began = s.world.queue.now();
        for i in 0..1_500 {
            s.ask(Kind::Write, i * 7 % 13, 1);
            s.pass_micros(2_000);
            if i > 100 && s.world.have_moved() {
                break;
            }
        }
        s.wait_answers(20_000);
        let moved = s.world.have_moved() && s.wait_leader(None, 10_000) != leader;
        let text = s.world.describe();
        s.must(moved, || format!("the group does not move: {text}"));
        let since = s.world.latencies.iter().filter(|l| l.asked_at >= began);
        let longest = since.map(|l| l.nanos).max().unwrap_or(0);
        s.must(longest <= MOST, || format!("a write took {} us", longest / 1_000));
        if s.world.has_failed() {
            break;
        }
    }
    s.end()
}

/// A whole group moves to nodes that have nothing in common with the first ones, and the last of the old ones
/// know nothing of it: they may not decide anything any more.
pub fn left_behind(set: Setup) -> World {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.spare = 3;
        o.chunks = 4;
    });
    let leader = s.wait_leader(None, 10_000);
    s.work(12, 20_000);
    let behind = (leader + 1) % 3;
    s.isolate(behind);
    s.world.move_group(0, &[3, 4, 5]);
    work_while_moving(&mut s, |_, _| {});
    // The rest of the old ones is cut off from the new ones, and meets the one that was away.
    let old: Vec<Who> = (0..3).collect();
    s.heal();
    for a in &old {
        for b in 3..6 {
            s.cut(*a, b);
            s.cut(b, *a);
        }
    }
    s.pass(5_000);
    s.work(12, 20_000);
    s.heal();
    s.end()
}
