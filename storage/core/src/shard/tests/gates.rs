//! Gates: what keeps acknowledgements back while several volumes are cut together.

use super::world::{Options, World};
use crate::consensus::CLOSED_MAX;
use basalt_wire::frame::{Refusal, ReplyResult, RequestOp};
use basalt_wire::ids::{Generation, Term};
use std::time::Duration;

const LOST: ReplyResult = ReplyResult::Refused(Refusal::GateLost);

type Control = fn(Term, Generation) -> RequestOp;

const CLOSE: Control = |term, generation| RequestOp::CloseGate { term, generation };
const FREEZE: Control = |term, generation| RequestOp::Freeze { term, generation };
const OPEN: Control = |term, generation| RequestOp::OpenGate { term, generation };
const DROP: Control = |term, generation| RequestOp::DropSnapshot { term, generation };

fn world() -> World {
    let mut world = World::new(Options::default());
    assert!(matches!(world.fence(1), ReplyResult::Done { .. }));
    world
}

fn control(world: &mut World, what: Control, generation: u32) -> ReplyResult {
    let leader = world.elect();
    let term = Term(world.term(leader));
    world.ask(leader, 1, what(term, Generation(generation)))
}

fn done(result: ReplyResult) {
    assert!(matches!(result, ReplyResult::Done { .. }), "{result:?}");
}

/// Sends a write of a generation. Gives its number: it may not be answered.
fn write(world: &mut World, generation: u32, block: u64) -> u64 {
    let leader = world.elect();
    let mut op = world.write_op(leader, block, 7, 1);
    if let RequestOp::Write { generation: of, .. } = &mut op {
        *of = Generation(generation);
    }
    let id = world.request(leader, 1, 1, op);
    world.run();
    id
}

fn is_done(world: &World, id: u64) -> bool {
    matches!(world.replies.get(&id), Some(ReplyResult::Done { .. }))
}

#[test]
fn what_is_behind_a_closed_gate_is_acknowledged_when_it_opens() {
    let mut world = world();
    done(control(&mut world, CLOSE, 0));
    let before = write(&mut world, 0, 1);
    assert!(is_done(&world, before), "what is in the snapshot waits for nothing");
    done(control(&mut world, FREEZE, 0));
    let behind = write(&mut world, 1, 2);
    assert!(!world.replies.contains_key(&behind), "it is not acknowledged");
    assert_eq!(world.read(world.leader().unwrap(), 1, 2, 0), Ok(7), "but carried out");
    done(control(&mut world, OPEN, 0));
    assert!(is_done(&world, behind));
    done(control(&mut world, OPEN, 0));
    let later = write(&mut world, 1, 3);
    assert!(is_done(&world, later));
}

#[test]
fn a_write_that_freezes_its_group_itself_waits_too() {
    let mut world = world();
    done(control(&mut world, CLOSE, 0));
    let behind = write(&mut world, 1, 2);
    assert!(!world.replies.contains_key(&behind));
    done(control(&mut world, FREEZE, 0));
    done(control(&mut world, OPEN, 0));
    assert!(is_done(&world, behind));
}

#[test]
fn a_gate_opens_by_itself_and_is_lost_then() {
    let mut world = world();
    done(control(&mut world, CLOSE, 0));
    done(control(&mut world, FREEZE, 0));
    let behind = write(&mut world, 1, 2);
    world.pass(CLOSED_MAX - Duration::from_millis(1));
    assert!(!world.replies.contains_key(&behind));
    world.pass(Duration::from_millis(1));
    assert!(is_done(&world, behind), "nobody waits for ever");
    assert_eq!(control(&mut world, OPEN, 0), LOST);
    assert_eq!(control(&mut world, CLOSE, 0), LOST, "it is too late for another one");
}

#[test]
fn a_gate_is_its_leaders_own() {
    let mut world = world();
    done(control(&mut world, CLOSE, 0));
    done(control(&mut world, FREEZE, 0));
    let behind = write(&mut world, 1, 2);
    let first = world.elect();
    world.crash(first);
    assert_eq!(
        control(&mut world, OPEN, 0),
        LOST,
        "the next leader may have acknowledged anything"
    );
    assert_eq!(control(&mut world, CLOSE, 0), LOST);
    assert!(!world.replies.contains_key(&behind));
    world.start(first);
    world.elect();
    world.pass(Duration::from_secs(1));
    world.check_converged();
}

#[test]
fn a_gate_that_was_never_closed_can_not_be_opened() {
    let mut world = world();
    assert_eq!(control(&mut world, OPEN, 0), LOST);
    // It froze all the same: the snapshot is to be dropped by whoever asked.
    assert_eq!(control(&mut world, CLOSE, 0), LOST);
    done(control(&mut world, CLOSE, 1));
    assert_eq!(control(&mut world, OPEN, 0), LOST, "another generation's gate is another gate");
}

#[test]
fn dropping_the_snapshot_opens_its_gate_and_no_other() {
    let mut world = world();
    done(control(&mut world, FREEZE, 0));
    done(control(&mut world, CLOSE, 1));
    done(control(&mut world, FREEZE, 1));
    let behind = write(&mut world, 2, 2);
    done(control(&mut world, DROP, 0));
    assert!(!world.replies.contains_key(&behind));
    done(control(&mut world, DROP, 1));
    assert!(is_done(&world, behind));
    assert_eq!(control(&mut world, OPEN, 1), LOST);
}
