//! Power cuts and late messages at the worst moment.

use super::*;
use basalt_wire::buffer::Payload;
use basalt_wire::command::{Command, encode_commands};
use basalt_wire::frame::{RaftEntry, RaftMessage};

/// A leader wrote what nobody else got. As a follower again it is told, in one message, what replaces
/// it and that this is committed, and its power is cut after so many writes. Whether anything was to
/// be cut.
fn replaced_and_cut(writes: usize) -> bool {
    let limits = Limits { batch_bytes: 1, segments_reserved: 1, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    index(&world.fence(1));
    let old = world.elect();
    let (a, _) = others(old);
    world.isolate(old, true);
    let lost = world.write_op(old, 0, 0xee, 1);
    world.request(old, 1, 1, lost);
    world.run();
    let (term, last) = (Term(world.term(old)), world.status(old).last);
    let fence = Command::Fence { volume: world::V, epoch: Epoch(2), generation: Generation(0) };
    let entry = RaftEntry {
        kind: 0,
        term: Term(term.0 + 1),
        index: last,
        data: encode_commands(&[fence]),
        payload: Payload::empty(),
    };
    world.nodes.get_mut(&old).unwrap().writes_left = writes;
    let head = message(a, old, MessageType::MsgAppend, term.0 + 1);
    let index = LogIndex(last.0 - 1);
    let append = RaftMessage { log_term: term, index, commit: last, entries: vec![entry], ..head };
    world.event(old, Event::Peer { from: address(a), frame: Frame::Raft(append) });
    world.run();
    let cut = world.nodes[&old].writes_left == 0;
    world.crash(old);
    world.start(old);
    let seen = world.read(old, 1, 0, 0);
    assert_ne!(seen, Ok(0xee), "after {writes} writes: an entry that was replaced is applied");
    cut
}

#[test]
fn what_was_to_be_replaced_is_never_taken_for_committed() {
    let mut writes = 0;
    while replaced_and_cut(writes) {
        writes += 1;
    }
    assert!(writes > 1, "cut at {writes} places");
}

pub fn message(from: u32, to: u32, kind: MessageType, term: u64) -> RaftMessage {
    RaftMessage {
        group: G,
        kind: kind as u8,
        from: node(from),
        to: node(to),
        term: Term(term),
        log_term: Term(0),
        index: LogIndex(0),
        commit: LogIndex(0),
        commit_term: Term(0),
        reject: false,
        reject_hint: LogIndex(0),
        priority: 0,
        request_snapshot: LogIndex(0),
        context: Bytes::new(),
        entries: Vec::new(),
    }
}

fn answer(from: u32, to: u32, kind: MessageType, term: u64) -> Event {
    Event::Peer { from: address(from), frame: Frame::Raft(message(from, to, kind, term)) }
}

#[test]
fn a_leader_of_a_moment_steps_back() {
    let mut world = World::new(Options::default());
    index(&world.fence(1));
    let leader = world.elect();
    let (a, b) = others(leader);
    for n in 1..=3 {
        world.isolate(n, true);
    }
    world.pass(ms(3000));
    assert_eq!(world.status(a).role, GroupRole::Candidate);
    let term = world.term(a) + 1;
    world.event(a, answer(b, a, MessageType::MsgRequestPreVoteResponse, term));
    world.run();
    assert_eq!((world.term(a), world.status(a).role), (term, GroupRole::Candidate));
    // Both arrive in one turn: the vote that makes it leader, and a leader of a later term.
    world.event(a, answer(b, a, MessageType::MsgRequestVoteResponse, term));
    assert_eq!(world.status(a).role, GroupRole::Leader);
    world.event(a, answer(leader, a, MessageType::MsgHeartbeat, term + 1));
    world.run();
    assert_eq!(world.status(a).role, GroupRole::Follower, "{:#?}", world.notices);
    assert_eq!(world.term(a), term + 1);
}

#[test]
fn a_delete_does_not_overtake_a_fence() {
    let mut world = World::new(Options::default());
    index(&world.fence(1));
    let leader = world.elect();
    let term = Term(world.term(leader));
    let fence = world.request(leader, 2, 1, RequestOp::Fence { term, generation: Generation(0) });
    let delete = world.request(leader, 1, 1, RequestOp::Delete { term });
    world.run();
    index(&world.replies[&fence]);
    assert_eq!(world.replies[&delete], ReplyResult::Refused(Refusal::Fenced));
    let at = index(&world.write(2, 0, 5));
    assert_eq!(world.read(leader, 2, 0, at), Ok(5));
}
