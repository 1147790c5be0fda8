//! Exactly one writer, no late write.

use super::*;

#[test]
fn a_session_must_be_attached() {
    let mut world = World::new(Options::default());
    let not_attached = ReplyResult::Refused(Refusal::NotAttached);
    assert_eq!(world.write(1, 0, 1), not_attached);
    index(&world.fence(5));
    assert_eq!(world.write(6, 0, 1), not_attached);
    assert_eq!(world.write(4, 0, 1), ReplyResult::Refused(Refusal::Fenced));
    assert_eq!(world.fence(4), ReplyResult::Refused(Refusal::Fenced));
    index(&world.fence(5));
    let at = index(&world.write(5, 0, 1));
    let leader = world.elect();
    assert_eq!(world.read(leader, 4, 0, 0), Err(ReplyResult::Refused(Refusal::Fenced)));
    assert_eq!(world.read(leader, 5, 0, at + 1), Err(ReplyResult::Refused(Refusal::Behind)));
}

#[test]
fn a_late_duplicate_is_refused() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let late = world.write_op(leader, 0, 1, 1);
    let retry = world.write_op(leader, 0, 1, 1);
    let newer = world.write_op(leader, 0, 2, 1);
    let retry = world.request(leader, 1, 2, retry);
    world.run();
    let newer = world.request(leader, 1, 2, newer);
    world.run();
    let late = world.request(leader, 1, 1, late);
    world.run();
    index(&world.replies[&retry]);
    let at = index(&world.replies[&newer]);
    assert_eq!(world.replies[&late], ReplyResult::Refused(Refusal::LateDuplicate));
    assert_eq!(world.read(leader, 1, 0, at), Ok(2));
}

#[test]
fn a_write_acknowledged_and_sent_again_after_a_leader_change_does_no_harm() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let old = world.elect();
    let old_copy = world.write_op(old, 0, 1, 1);
    index(&world.write(1, 0, 1));
    world.crash(old);
    let new = world.elect();
    let retry = world.write_op(new, 0, 1, 1);
    let retry = world.request(new, 1, 2, retry);
    world.run();
    index(&world.replies[&retry]);
    let newer = world.write_op(new, 0, 2, 1);
    let newer = world.request(new, 1, 2, newer);
    world.run();
    let at = index(&world.replies[&newer]);
    let late = world.request(new, 1, 3, old_copy);
    world.run();
    let expected = ReplyResult::Leader { leader: Some(node(new)), term: Term(world.term(new)) };
    assert_eq!(world.replies[&late], expected, "it was meant for the leader of another term");
    assert_eq!(world.read(new, 1, 0, at), Ok(2));
}

#[test]
fn an_attachment_moves_while_writes_of_the_old_one_are_under_way() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let term = Term(world.term(leader));
    let before = world.write_op(leader, 0, 1, 1);
    let before = world.request(leader, 1, 1, before);
    let fence = world.request(leader, 2, 1, RequestOp::Fence { term, generation: Generation(0) });
    let after = world.write_op(leader, 0, 2, 1);
    let after = world.request(leader, 1, 1, after);
    world.run();
    index(&world.replies[&before]);
    let at = index(&world.replies[&fence]);
    assert_eq!(world.replies[&after], ReplyResult::Refused(Refusal::Fenced), "refused at apply");
    world.announce();
    for n in 1..=3 {
        assert_eq!(world.read(n, 2, 0, at), Ok(1));
    }
    // A new leader and a restart know it as well.
    world.crash(leader);
    world.start(leader);
    world.elect();
    assert_eq!(world.write(1, 0, 3), ReplyResult::Refused(Refusal::Fenced));
}

#[test]
fn a_deleted_volume_is_gone_for_good() {
    let mut world = World::new(Options::default());
    world.fence(3);
    index(&world.write(3, 0, 1));
    let leader = world.elect();
    let term = Term(world.term(leader));
    let fenced = ReplyResult::Refused(Refusal::Fenced);
    assert_eq!(world.ask(leader, 2, RequestOp::Delete { term }), fenced);
    index(&world.ask(leader, 4, RequestOp::Delete { term }));
    index(&world.ask(leader, 4, RequestOp::Delete { term }));
    assert_eq!(world.write(3, 0, 1), fenced);
    // A deletion that broke off is taken up again under a higher epoch; nothing else is possible.
    index(&world.fence(9));
    assert_eq!(world.write(9, 0, 1), fenced);
    index(&world.ask(leader, 9, RequestOp::Delete { term }));
    assert_eq!(world.shard(leader).status().mapped_blocks, 0);
}

#[test]
fn a_follower_tells_who_leads() {
    let mut world = World::new(Options::default());
    world.fence(1);
    let leader = world.elect();
    let (a, _) = others(leader);
    let expected =
        ReplyResult::Leader { leader: Some(node(leader)), term: Term(world.term(leader)) };
    let op = world.write_op(leader, 0, 1, 1);
    assert_eq!(world.ask(a, 1, op), expected);
    assert_eq!(world.ask(a, 1, RequestOp::Leader), expected);
}
