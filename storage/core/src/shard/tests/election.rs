//! Who leads: votes, failover, hand-over, sleep.

use super::*;

const VOTE_RESPONSE: u8 = MessageType::MsgRequestVoteResponse as u8;

fn votes_sent(world: &World, from: u32) -> usize {
    let sent = format!("{from}->");
    let kind = format!("kind: {VOTE_RESPONSE},");
    world.log.iter().filter(|l| l.starts_with(&sent) && l.contains(&kind)).count()
}

#[test]
fn a_vote_is_durable_before_it_is_given() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let (a, b) = others(leader);
    for n in [a, b] {
        world.nodes.get_mut(&n).unwrap().writes_held = true;
    }
    let before = votes_sent(&world, a) + votes_sent(&world, b);
    world.crash(leader);
    world.pass(ms(3000));
    assert_eq!(votes_sent(&world, a) + votes_sent(&world, b), before, "no vote left");
    assert!((1..=3).filter(|n| *n != leader).all(|n| world.status(n).role != GroupRole::Leader));
    // The vote is lost with the power; what comes back may vote anew.
    world.crash(a);
    world.start(a);
    world.nodes.get_mut(&b).unwrap().writes_held = false;
    world.pass(ms(3000));
    world.elect();
    index(&world.write(1, 1, 1));
}

#[test]
fn a_leaders_death_is_noticed_by_its_links() {
    for seed in 0..20 {
        let mut world = World::new(Options { seed, ..Options::default() });
        world.fence(1);
        let leader = world.elect();
        let died = world.now;
        world.crash(leader);
        while world.leader().is_none() {
            world.pass(ms(10));
            assert!(world.now.since(died) < ms(700), "seed {seed}: no leader");
        }
        index(&world.write(1, 2, 2));
    }
}

/// Two that ask for votes at the same time get none, and lose a timeout.
#[test]
fn voters_of_a_lost_leader_take_turns() {
    for (seed, silent) in (0..40).map(|seed| (seed / 2, seed % 2 == 1)) {
        let mut world = World::new(Options { seed, groups: 8, ..Options::default() });
        world.fence(1);
        world.pass(ms(2000));
        let terms = |world: &World, n: u32| -> Vec<(GroupRole, u64)> {
            world.shard(n).status().groups.iter().map(|g| (g.role, g.term.0)).collect()
        };
        let (leader, died) = (world.elect(), world.now);
        let before = terms(&world, leader);
        if silent {
            world.crash_silently(leader);
        } else {
            world.crash(leader);
        }
        let (a, b) = others(leader);
        let bound = if silent { ms(750) } else { ms(100) };
        world.pass(bound);
        let both = terms(&world, a).into_iter().zip(terms(&world, b));
        for ((role, term), (one, other)) in before.into_iter().zip(both) {
            let led = [one, other].map(|(role, _)| role == GroupRole::Leader);
            assert!(
                led[0] != led[1],
                "seed {seed} since {:?}: {one:?} {other:?}",
                world.now.since(died)
            );
            let rounds = u64::from(role == GroupRole::Leader);
            assert_eq!((one.1, other.1), (term + rounds, term + rounds), "seed {seed}");
        }
    }
}

/// A device that is slow says nothing about who should lead.
#[test]
fn followers_with_slow_devices_keep_their_leader() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let (a, b) = others(leader);
    let term = world.term(leader);
    for n in [a, b] {
        world.nodes.get_mut(&n).unwrap().writes_held = true;
    }
    let op = world.write_op(leader, 1, 1, 1);
    let first = world.request(leader, 1, 1, op);
    world.pass(ms(5000));
    assert_eq!((world.leader(), world.term(leader)), (Some(leader), term));
    assert_eq!(world.replies.get(&first), None, "nothing is durable yet");
    let appends = world.log.iter().filter(|l| l.contains("RaftEntry")).count();
    assert!(appends < 40, "what waits for a device is sent {appends} times");
    for n in [a, b] {
        world.nodes.get_mut(&n).unwrap().writes_held = false;
    }
    world.pass(ms(10));
    index(&world.replies[&first]);
}

#[test]
fn a_candidate_that_lacks_entries_does_not_hold_up_the_other() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    // The first in turn after the leader lacks an entry.
    let first = (1..=3).find(|n| *n != leader).unwrap();
    let second = 6 - leader - first;
    world.cut.insert((leader, first));
    index(&world.write(1, 1, 1));
    let died = world.now;
    world.crash(leader);
    world.cut.clear();
    world.pass(ms(100));
    assert_eq!(world.leader(), Some(second), "since {:?}", world.now.since(died));
}

#[test]
fn a_returned_node_leads_again_when_it_keeps_pace() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let (home, _) = others(leader);
    for n in 1..=3 {
        world.event(n, Event::Prefer { group: G, node: node(home) });
    }
    world.pass(ms(1000));
    assert_eq!(world.elect(), home);
    world.crash(home);
    world.pass(ms(1000));
    let stand_in = world.elect();
    index(&world.write(1, 1, 1));
    world.start(home);
    world.event(home, Event::Prefer { group: G, node: node(home) });
    world.nodes.get_mut(&home).unwrap().writes_held = true;
    for i in 0..100 {
        index(&world.write(1, i, 2));
        world.pass(ms(50));
        assert_eq!(world.leader(), Some(stand_in), "its device does not keep pace");
    }
    world.nodes.get_mut(&home).unwrap().writes_held = false;
    // Its device was so slow that it has to prove itself for a while.
    for i in 0..260 {
        world.pass(ms(50));
        index(&world.write(1, i, 3));
    }
    assert_eq!(world.leader(), Some(home));
}

#[test]
fn a_leader_that_falls_silent_is_replaced() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let at = index(&world.write(1, 1, 1));
    world.isolate(leader, true);
    let op = world.write_op(leader, 1, 2, 1);
    let lost = world.request(leader, 1, 1, op);
    world.pass(ms(3000));
    let next = world.elect();
    assert_ne!(next, leader);
    assert_eq!(world.replies.get(&lost), Some(&ReplyResult::Unknown));
    let now = index(&world.write(1, 1, 3));
    assert!(now > at);
    world.isolate(leader, false);
    world.pass(ms(1500));
    for n in 1..=3 {
        assert_eq!(world.read(n, 1, 1, now), Ok(3), "the overwritten entry is gone from {n}");
    }
    world.check_converged();
}

#[test]
fn an_entry_of_an_older_term_is_committed_only_with_one_of_the_new_term() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let (a, b) = others(leader);
    let term = world.term(leader);
    // The entry reaches one follower, and no answer comes back.
    world.cut.extend([(leader, b), (a, leader), (b, leader)]);
    let op = world.write_op(leader, 1, 0x77, 1);
    world.request(leader, 1, 1, op);
    world.run();
    let entry = world.status(a).last;
    assert!(entry > world.status(a).commit);
    world.crash(leader);
    world.cut.clear();
    world.pass(ms(3000));
    assert_eq!(world.elect(), a, "only the one with the entry can lead");
    assert!(world.term(a) > term);
    let status = world.status(a);
    assert!(status.commit > entry, "it was committed by the entry that started the term");
    assert_eq!(world.read(b, 1, 1, entry.0), Ok(0x77));
}

#[test]
fn a_replica_cut_off_one_way_does_not_disturb() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let (a, _) = others(leader);
    let term = world.term(leader);
    world.cut.insert((leader, a));
    world.pass(ms(10_000));
    assert_eq!((world.leader(), world.term(leader)), (Some(leader), term));
    world.cut.clear();
    world.pass(ms(2000));
    index(&world.write(1, 1, 1));
    assert_eq!(world.term(leader), term);
}

#[test]
fn leadership_moves_to_where_it_is_preferred() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let (a, b) = others(leader);
    world.event(leader, Event::Prefer { group: G, node: node(a) });
    world.pass(ms(1000));
    assert_eq!(world.elect(), a);
    // The one that should lead asks for it, awake or asleep.
    world.pass(ms(20_000));
    assert!(world.status(a).asleep);
    world.event(b, Event::Prefer { group: G, node: node(b) });
    world.pass(ms(100));
    assert_eq!(world.elect(), b);
    index(&world.write(1, 1, 1));
}

#[test]
fn a_draining_node_hands_everything_over_and_no_write_is_lost() {
    let mut world = World::new(Options { groups: 4, ..Options::default() });
    world.fence(1);
    world.pass(ms(2000));
    let leader = world.elect();
    let op = world.write_op(leader, 1, 1, 1);
    let first = world.request(leader, 1, 1, op);
    world.event(leader, Event::Drain);
    let op = world.write_op(leader, 2, 2, 1);
    let second = world.request(leader, 1, 1, op);
    world.pass(ms(100));
    assert!(world.drained.contains(&leader));
    let status = world.shard(leader).status();
    assert!(status.groups.iter().all(|g| g.role != GroupRole::Leader), "{status:?}");
    let next = world.elect();
    assert_ne!(next, leader);
    for id in [first, second] {
        match &world.replies[&id] {
            ReplyResult::Done { .. } => {}
            ReplyResult::Leader { leader, .. } => assert_eq!(*leader, Some(node(next))),
            other => panic!("{other:?}"),
        }
    }
    index(&world.write(1, 1, 1));
}

#[test]
fn the_last_node_drains_at_once() {
    let mut world = World::new(Options { nodes: 1, ..Options::default() });
    world.elect();
    world.event(1, Event::Drain);
    world.run();
    assert!(world.drained.contains(&1));
}

#[test]
fn idle_groups_sleep_and_wake() {
    let mut world = World::new(Options { groups: 3, ..Options::default() });
    world.fence(1);
    world.pass(ms(20_000));
    for n in 1..=3 {
        let status = world.shard(n).status();
        assert!(status.groups.iter().all(|g| g.asleep), "{status:?}");
        assert_eq!(world.shard(n).next_deadline(), None);
    }
    let sent = world.log.len();
    world.pass(ms(60_000));
    assert_eq!(world.log.len(), sent, "sleeping groups say nothing");
    let at = index(&world.write(1, 1, 1));
    world.announce();
    for n in 1..=3 {
        assert_eq!(world.read(n, 1, 1, at), Ok(1));
    }
}

#[test]
fn a_sleeping_group_elects_when_its_leaders_node_dies() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    world.pass(ms(20_000));
    assert!(world.status(leader).asleep);
    let died = world.now;
    world.crash(leader);
    while world.leader().is_none() {
        world.pass(ms(10));
        assert!(world.now.since(died) < ms(2000), "no leader");
    }
    index(&world.write(1, 1, 1));
    world.start(leader);
    world.pass(ms(500));
    world.check_converged();
}

/// What a follower was sent and has not written yet is in its memory.
#[test]
fn a_follower_that_does_not_keep_up_is_sent_no_more_than_it_can_hold() {
    let pending_bytes = 1 << 20;
    let entry_cache_bytes = 256 << 10;
    let limits = Limits { pending_bytes, entry_cache_bytes, ..Options::default().limits };
    let mut world = World::new(Options { limits, segments: 128, ..Options::default() });
    world.fence(1);
    let leader = world.elect();
    let (a, _) = others(leader);
    world.nodes.get_mut(&a).unwrap().writes_held = true;
    let before = world.sent_bytes(a);
    let mut last = 0;
    for i in 0..160 {
        let op = world.write_op(leader, i * 16, i as u8, 16);
        let id = world.request(leader, 1, 1, op);
        world.pass(ms(10));
        last = index(&world.replies[&id]);
        // In a tick five are written before it is noticed.
        let held = world.sent_bytes(a) - before;
        assert!(held <= pending_bytes + ((7 * 64) << 10), "{held} bytes were sent to it");
    }
    assert!(world.sent_bytes(a) - before >= pending_bytes / 2, "it is not cut off either");
    world.nodes.get_mut(&a).unwrap().writes_held = false;
    world.pass(ms(2_000));
    assert_eq!(world.read(a, 1, 159 * 16, last), Ok(159), "it catches up");
    world.check_converged();
}

#[test]
fn a_follower_far_behind_is_served_from_the_log() {
    let limits = Limits { entry_cache_bytes: 40_000, segments_reserved: 1, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    world.fence(1);
    let leader = world.elect();
    let (a, _) = others(leader);
    world.crash(a);
    let mut last = 0;
    for i in 0..300 {
        last = index(&world.write(1, i, i as u8));
    }
    world.start(a);
    world.pass(ms(1500));
    assert_eq!(world.read(a, 1, 250, last), Ok(250));
    world.check_converged();
    // And once more with the leader itself restarted, so that nothing is in memory.
    world.crash(a);
    for i in 0..50 {
        last = index(&world.write(1, i, 0xee));
    }
    let leader = world.elect();
    world.crash(leader);
    world.start(leader);
    world.elect();
    world.start(a);
    world.pass(ms(1500));
    assert_eq!(world.read(a, 1, 49, last), Ok(0xee));
    world.check_converged();
}

#[test]
fn what_is_no_sound_message_of_a_voter_is_refused() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let (a, b) = others(leader);
    world.nodes.get_mut(&leader).unwrap().writes_held = true;
    let op = world.write_op(leader, 1, 1, 1);
    world.request(leader, 1, 1, op);
    let now = world.now;
    let sender = world.nodes.get_mut(&leader).unwrap();
    sender.shard.as_mut().unwrap().end_turn(now, &mut sender.effects);
    let append = sender.effects.iter().find_map(|e| match e {
        crate::event::Effect::Send { to, frame: Frame::Raft(m) } if to.node == node(a) => {
            Some(m.clone())
        }
        _ => None,
    });
    let append = append.expect("an append");
    let last = world.status(a).last;
    let try_one =
        |world: &mut World, from: u32, spoil: fn(&mut basalt_wire::frame::RaftMessage)| {
            let mut message = append.clone();
            spoil(&mut message);
            let refused = world.notices.len();
            world.event(a, Event::Peer { from: address(from), frame: Frame::Raft(message) });
            let node = world.nodes.get_mut(&a).unwrap();
            node.shard.as_mut().unwrap().end_turn(now, &mut node.effects);
            assert_eq!(world.status(a).last, last);
            let _ = refused;
        };
    try_one(&mut world, b, |_| {});
    try_one(&mut world, 9, |m| m.from = NodeId(9));
    try_one(&mut world, leader, |m| m.entries[0].data = Bytes::from_static(b"garbage"));
    try_one(&mut world, leader, |m| m.entries[0].payload = m.entries[0].payload.slice(0, 0));
    try_one(&mut world, leader, |m| {
        let len = m.entries[0].payload.len();
        m.entries[0].payload = Bytes::from(vec![9; len]).into();
    });
    world.nodes.get_mut(&leader).unwrap().writes_held = false;
    world.run();
    assert!(world.status(a).last > last, "the sound message is taken");
    assert!(world.notices.iter().filter(|n| n.contains("group 0: from node")).count() >= 5);
}
