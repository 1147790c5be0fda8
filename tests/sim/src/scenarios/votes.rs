//! Votes that a damaged device forgot.

use super::{harmed, with_checkpoints};
use crate::event::Who;
use crate::script::{Script, Setup};
use crate::world::World;
use basalt_core::event::Event;
use basalt_core::shard::GroupRole;
use basalt_wire::ids::GroupId;

/// Has a node made leader.
pub fn prefer(s: &mut Script, to: Who) {
    let node = crate::node::address(to).node;
    for n in 0..3 {
        s.world.give(n, Event::Prefer { group: GroupId(0), node }, 0);
    }
    s.wait("leadership is handed over", 30_000, |w, _| {
        let shard = w.nodes[to].shard.as_ref();
        shard.is_some_and(|s| {
            s.status().groups.iter().any(|g| g.group == GroupId(0) && g.role == GroupRole::Leader)
        })
    });
}

/// A node gives its vote and acknowledges entries, of which a checkpoint is taken; then its log loses
/// them, all or in part. A node that heard of nothing asks for votes in the same term.
pub fn behind_a_checkpoint(set: Setup) -> World {
    let mut s = harmed(set);
    with_checkpoints(&mut s, 24 << 10);
    let victim = s.world.options.victim as usize;
    let (elected, unaware) = (s.other(victim), (victim + 2) % 3);
    prefer(&mut s, victim);
    s.work(12, 20_000);
    s.isolate(unaware);
    let before = s.world.nodes[victim].disk.image();
    prefer(&mut s, elected);
    let after = s.world.nodes[victim].disk.image();
    let saved = s.world.nodes[victim].store.saved;
    for _ in 0..20 {
        s.work(10, 20_000);
        s.pass(600);
        if s.world.nodes[victim].store.saved > saved + 1 {
            break;
        }
    }
    let enough = s.world.nodes[victim].store.saved > saved + 1;
    s.must(enough, || "the victim took no checkpoint".to_owned());
    s.kill(victim);
    s.kill(elected);
    s.world.damaged = true;
    let disk = &mut s.world.nodes[victim].disk;
    match set.seed / 3 % 3 {
        0 => disk.put_back(before),
        1 => {
            let now = disk.image();
            disk.spoil(&before, &now);
        }
        _ => disk.spoil(&before, &after),
    }
    s.heal();
    s.start(victim);
    s.pass(6_000);
    // The victim itself may lead if all that was damaged stands in what followed.
    let leader = s.leader();
    s.must(leader != Some(unaware), || "a node leads without what was acknowledged".to_owned());
    s.start(elected);
    s.wait_leader(None, 20_000);
    s.work(10, 20_000);
    s.end()
}
