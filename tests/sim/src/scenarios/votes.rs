//! Votes that a damaged device forgot.

use super::{harmed, with_checkpoints};
use crate::event::Who;
use crate::queue::SECOND;
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

/// Waits until every replica of a node takes full part.
pub fn wait_whole(s: &mut Script, n: Who) {
    s.wait("all that was lost is there again", 30_000, |w, _| {
        let status = w.nodes[n].shard.as_ref().map(|shard| shard.status());
        status.is_some_and(|s| s.groups.iter().all(|g| g.role != GroupRole::Impaired))
    });
}

/// The leader is frozen while another one is elected with the victim's vote, and writes are acknowledged by those
/// two. Then the victim's device goes back to before that, and the two that are there are it and the former
/// leader, which wakes up and still leads in its old term: it may not have the victim take part without the
/// third, who alone knows what was acknowledged.
pub fn frozen_leader(set: Setup) -> World {
    let mut s = harmed(set);
    with_checkpoints(&mut s, 24 << 10);
    let victim = s.world.options.victim as usize;
    let (frozen, elected) = (s.other(victim), (victim + 2) % 3);
    prefer(&mut s, frozen);
    s.work(12, 20_000);
    s.kill(victim);
    let before = s.world.nodes[victim].disk.image();
    s.start(victim);
    s.pass(1_500);
    s.isolate(frozen);
    s.world.nodes[frozen].paused_until = s.world.queue.now() + 3_600 * SECOND;
    let leader = s.wait_leader(Some(frozen), 20_000);
    if leader == victim {
        prefer(&mut s, elected);
    }
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
    s.world.nodes[victim].disk.put_back(before);
    s.heal();
    s.start(victim);
    s.pass(20);
    s.world.unpause_node(frozen);
    s.pass(4_000);
    let leads = s.leader();
    s.must(leads.is_none(), || format!("node {leads:?} leads without what was acknowledged"));
    s.start(elected);
    s.wait_leader(None, 20_000);
    s.work(10, 20_000);
    wait_whole(&mut s, victim);
    s.end()
}
