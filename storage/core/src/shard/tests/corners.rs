//! Corners of the Raft library, and of what replicas that contradict each other do.

use super::cuts::message;
use super::*;
use basalt_wire::buffer::Payload;
use basalt_wire::command::{Command, encode_commands};
use basalt_wire::frame::{RaftEntry, RaftMessage};

fn fence_entry(term: u64, index: u64, epoch: u64) -> RaftEntry {
    let fence = Command::Fence { volume: world::V, epoch: Epoch(epoch), generation: Generation(0) };
    RaftEntry {
        kind: 0,
        term: Term(term),
        index: LogIndex(index),
        data: encode_commands(&[fence]),
        payload: Payload::empty(),
    }
}

/// A follower takes entries, others in their place, and the first ones again; of its three writes only
/// the first is done. Nothing of the third may count yet.
#[test]
fn entries_that_come_back_are_not_durable_by_their_first_write() {
    let limits = Limits { batch_bytes: 1, segments_reserved: 1, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    index(&world.fence(1));
    let leader = world.elect();
    world.pass(ms(500));
    let (f, other) = others(leader);
    world.isolate(f, true);
    let (term, last) = (world.term(f), world.status(f).last.0);
    world.nodes.get_mut(&f).unwrap().writes_left = 0;
    let rounds = [
        (leader, term, vec![fence_entry(term, last + 1, 2)], last),
        (other, term + 1, vec![fence_entry(term + 1, last + 1, 3)], last),
        (
            leader,
            term + 2,
            vec![fence_entry(term, last + 1, 2), fence_entry(term + 2, last + 2, 4)],
            last + 1,
        ),
    ];
    for (from, now, entries, commit) in rounds {
        let head = message(from, f, MessageType::MsgAppend, now);
        let (log_term, index, commit) = (Term(term), LogIndex(last), LogIndex(commit));
        let append = RaftMessage { log_term, index, commit, entries, ..head };
        world.event(f, Event::Peer { from: address(from), frame: Frame::Raft(append) });
        world.run();
    }
    for writes in 1..=2 {
        world.nodes.get_mut(&f).unwrap().writes_left = 1;
        world.run();
        let applied = world.status(f).applied.0;
        assert_eq!(applied, last, "after {writes} writes the entry of the last one is applied");
    }
    world.nodes.get_mut(&f).unwrap().writes_left = usize::MAX;
    world.run();
    assert_eq!(world.status(f).applied.0, last + 1);
}

/// Whatever a follower claims to lack, its leader does not break, and brings it back.
#[test]
fn no_rejection_breaks_the_leader() {
    let mut world = World::new(Options::default());
    world.fence(1);
    for i in 0..6 {
        index(&world.write(1, i, 1));
    }
    let leader = world.elect();
    world.pass(ms(500));
    let (f, _) = others(leader);
    let last = world.status(leader).last.0;
    for down in [false, true] {
        for rejected in 0..=last {
            for hint in 0..=rejected {
                if down {
                    // The leader takes the follower's link for broken, and probes.
                    for up in [false, true] {
                        let peer = node(f);
                        world.event(leader, Event::PeerLink { peer, up });
                    }
                }
                let head = message(f, leader, MessageType::MsgAppendResponse, world.term(leader));
                let (index, reject_hint) = (LogIndex(rejected), LogIndex(hint));
                let log_term = Term(if hint == 0 { 0 } else { world.term(leader) });
                let frame =
                    Frame::Raft(RaftMessage { reject: true, index, reject_hint, log_term, ..head });
                world.event(leader, Event::Peer { from: address(f), frame });
                world.run();
                let role = world.status(leader).role;
                assert_eq!(role, GroupRole::Leader, "{rejected} {hint}: {:#?}", world.notices);
            }
        }
    }
    index(&world.write(1, 1, 2));
    world.pass(ms(1000));
    world.check_converged();
}

/// Two of three devices forgot what a majority had acknowledged, and other entries were committed in
/// its place. The third contradicts its leader for good; that may cost little and may not spin.
#[test]
fn replicas_that_contradict_each_other_do_not_spin() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let (a, c) = others(leader);
    world.pass(ms(500));
    let old: Vec<_> = [leader, a].iter().map(|n| (*n, world.nodes[n].disk.clone())).collect();
    for i in 0..8 {
        index(&world.write(1, i, 1));
    }
    // An election records the commit index with the vote.
    world.crash(leader);
    world.elect();
    world.start(leader);
    world.pass(ms(500));
    (1..=3).for_each(|n| world.crash_silently(n));
    for (n, disk) in old {
        world.nodes.get_mut(&n).unwrap().disk = disk;
    }
    for _ in 0..4 {
        [leader, a].iter().for_each(|n| world.crash_silently(*n));
        [leader, a].iter().for_each(|n| world.start(*n));
        world.elect();
    }
    for i in 0..20 {
        index(&world.write(1, i, 2));
    }
    // It starts with its entries committed, which no leader can replace. `run` asserts that each
    // instant ends.
    world.start(c);
    world.log.clear();
    world.pass(ms(10_000));
    index(&world.write(1, 1, 3));
    let frames = world.log.len();
    assert!(frames < 3_000, "{frames} frames in ten seconds");
}
