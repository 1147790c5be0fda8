//! The client against a model of a cluster: stories told step by step, and random runs.

mod model;
mod random;

use crate::{
    BlockError, BlockOp, BlockResult, ClientEffect, ClientEvent, PoolMap, RateLimits, Tuning,
    VolumeClient,
};
use basalt_wire::buffer::Payload;
use basalt_wire::frame::{Refusal, RequestOp};
use basalt_wire::ids::{Generation, GroupId, NodeId, SnapshotId, Term, VolumeId};
use basalt_wire::time::Time;
use bytes::Bytes;
use model::{World, address, group_of};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// One group, a volume of 8 MiB, replicas on nodes 0 to 2, the client on node 0.
fn world() -> World {
    let mut world = World::new(1, 1, 8 * MIB, Some(NodeId(1)));
    world.groups[0].leader = Some(1);
    world.run_until(|world| world.ready);
    world
}

fn bytes(len: usize, seed: u8) -> Payload {
    Payload::from(Bytes::from((0..len).map(|i| (i % 251) as u8 ^ seed).collect::<Vec<_>>()))
}

fn write(offset: u64, len: usize, seed: u8) -> BlockOp {
    BlockOp::Write { offset, data: bytes(len, seed), fua: false }
}

/// Submits and runs until it is answered.
fn ask(world: &mut World, op: BlockOp) -> Result<BlockResult, BlockError> {
    world.submit(99, op);
    world.run_until(|world| world.done.iter().any(|(tag, ..)| *tag == 99));
    let at = world.done.iter().position(|(tag, ..)| *tag == 99).expect("just seen");
    world.done.remove(at).2
}

fn data(world: &mut World, offset: u64, len: u32) -> Bytes {
    match ask(world, BlockOp::Read { offset, len }) {
        Ok(BlockResult::Data(data)) => data.contiguous(),
        other => panic!("a read ended with {other:?}"),
    }
}

fn writes_served(world: &World) -> Vec<(usize, Term)> {
    let write = |(node, op): &(usize, RequestOp)| match op {
        RequestOp::Write { term, .. } => Some((*node, *term)),
        _ => None,
    };
    world.served.iter().filter_map(write).collect()
}

#[test]
fn a_session_fences_before_anything_is_sent() {
    let mut world = World::new(3, 4, 64 * MIB, None);
    world.submit(1, write(0, 4096, 1));
    world.submit(2, BlockOp::Flush);
    world.run_until(|world| world.ready);
    assert!(world.groups.iter().all(|group| group.epoch == model::EPOCH.0));
    assert!(writes_served(&world).is_empty());
    world.finish();
    let tags: Vec<u64> = world.done.iter().map(|(tag, ..)| *tag).collect();
    assert_eq!(tags, [2, 1], "a flush waits for nothing that is not acknowledged");
}

fn grown(size_bytes: u64) -> ClientEvent {
    ClientEvent::Resize { size_bytes, generation: Generation(0) }
}

fn bounded(iops_max: u64) -> ClientEvent {
    ClientEvent::Limit(RateLimits { iops_max, iops_burst: 1, ..RateLimits::default() })
}

#[test]
fn requests_wait_for_the_bounds_of_their_session_in_order() {
    let mut world = World::new(3, 4, 64 * MIB, None);
    world.run_until(|world| world.ready);
    world.event(bounded(100));
    let begun = world.now;
    (0..20).for_each(|tag| world.submit(tag, write(tag * 4096, 4096, 1)));
    world.finish();
    let took = world.now.since(begun);
    assert!(took >= Duration::from_millis(180) && took < Duration::from_millis(400), "{took:?}");
    let tags: Vec<u64> = world.done.iter().map(|(tag, ..)| *tag).collect();
    assert_eq!(tags, (0..20).collect::<Vec<_>>());
    assert_eq!((world.client.stats().limited, world.client.stats().write_bytes), (19, 0));
}

#[test]
fn the_times_of_requests_are_those_that_their_user_sees() {
    let mut world = World::new(3, 4, 64 * MIB, None);
    world.run_until(|world| world.ready);
    world.event(bounded(10));
    (0..3).for_each(|tag| world.submit(tag, write(tag * 4096, 4096, 1)));
    world.finish();
    world.event(ClientEvent::Limit(RateLimits::default()));
    data(&mut world, 0, 8192);
    let (read, write) = (world.client.latencies().read, world.client.latencies().write);
    assert_eq!((write.count(), write.bytes, write.failed), (3, 3 * 4096, 0));
    // They waited for the bounds: a tenth and two tenths of a second.
    assert!(write.sum_ns >= 300_000_000, "{}", write.sum_ns);
    assert_eq!((read.count(), read.bytes), (1, 8192));
    assert_eq!(world.client.latencies().unmap.count(), 0);
}

#[test]
fn what_waits_begins_when_the_bounds_go_and_ends_with_its_session() {
    let mut world = World::new(3, 4, 64 * MIB, None);
    world.run_until(|world| world.ready);
    world.event(bounded(1));
    (0..10).for_each(|tag| world.submit(tag, write(tag * 4096, 4096, 1)));
    world.event(ClientEvent::Limit(RateLimits::default()));
    let begun = world.now;
    world.finish();
    assert!(world.now.since(begun) < Duration::from_millis(500));
    assert_eq!(world.done.len(), 10);
    world.event(bounded(1));
    (10..20).for_each(|tag| world.submit(tag, write(tag * 4096, 4096, 1)));
    let mut out = Vec::new();
    world.client.close(&mut out);
    let closed = |effect: &&ClientEffect| {
        matches!(effect, ClientEffect::Complete { result: Err(BlockError::Closed), .. })
    };
    let closed = out.iter().filter(closed).count();
    assert_eq!((world.done.len() + closed, world.client.in_flight()), (20, 0));
    assert!(closed >= 9, "{closed}");
}

#[test]
fn only_groups_with_chunks_are_fenced() {
    let mut world = World::new(3, 8, 4 * MIB, None);
    world.run_until(|world| world.ready);
    assert_eq!(world.groups.iter().filter(|group| group.epoch != 0).count(), 1);
    world.event(grown(1024 * MIB));
    assert_eq!(ask(&mut world, write(900 * MIB, 4096, 1)), Ok(BlockResult::Done));
    world.run_until(|world| world.groups.iter().all(|group| group.epoch != 0));
}

#[test]
fn a_session_leaves_the_generation_of_a_snapshot_when_its_volume_grows() {
    let mut world = World::new(3, 8, 4 * MIB, None);
    world.run_until(|world| world.ready);
    world.event(ClientEvent::Resize { size_bytes: 12 * MIB, generation: Generation(3) });
    assert_eq!(world.client.generation(), Generation(3));
    // A record of the past changes nothing.
    world.event(ClientEvent::Resize { size_bytes: 12 * MIB, generation: Generation(2) });
    assert_eq!(world.client.generation(), Generation(3));
}

#[test]
fn a_volume_grows_under_way_and_never_shrinks() {
    let mut world = World::new(3, 8, 4 * MIB, None);
    // It grows before the session has begun: that begins with what it needs now.
    world.event(grown(12 * MIB));
    world.submit(1, write(12 * MIB - 4096, 4096, 1));
    world.run_until(|world| world.ready);
    let fenced = |world: &World| world.groups.iter().filter(|group| group.epoch != 0).count();
    assert!((2..8).contains(&fenced(&world)), "some groups hold nothing of it yet");
    world.finish();
    assert_eq!(world.done.pop().expect("answered").2, Ok(BlockResult::Done));
    world.event(grown(4 * MIB));
    assert_eq!(data(&mut world, 12 * MIB - 4096, 4096), bytes(4096, 1).contiguous());
    assert_eq!(ask(&mut world, write(12 * MIB, 512, 1)), Err(BlockError::OutOfRange));
    // A session that was shut out notices it in the groups that it enters.
    world.groups.iter_mut().for_each(|group| group.epoch = model::EPOCH.0 + 1);
    world.event(grown(1024 * MIB));
    world.run_until(|world| world.lost.is_some());
    assert_eq!(world.lost, Some(BlockError::Fenced));
}

#[test]
fn what_is_written_is_read() {
    let mut world = world();
    assert_eq!(ask(&mut world, write(4096, 8192, 1)), Ok(BlockResult::Done));
    assert_eq!(data(&mut world, 4096, 8192), bytes(8192, 1).contiguous());
    assert_eq!(ask(&mut world, write(4096 + 512, 1024, 2)), Ok(BlockResult::Done));
    assert_eq!(data(&mut world, 4096 + 512, 1024), bytes(1024, 2).contiguous());
    assert_eq!(data(&mut world, 4096, 512), bytes(8192, 1).contiguous().slice(..512));
    assert_eq!(
        ask(&mut world, BlockOp::Unmap { offset: 8192 - 512, len: 1024 }),
        Ok(BlockResult::Done)
    );
    assert_eq!(data(&mut world, 8192 - 512, 1024), Bytes::from(vec![0; 1024]));
    assert_eq!(data(&mut world, 8192 + 512, 512), bytes(8192, 1).contiguous().slice(4608..5120));
}

#[test]
fn large_requests_are_cut_and_put_together() {
    let mut world = World::new(9, 4, 64 * MIB, Some(NodeId(1)));
    world.run_until(|world| world.ready);
    let len = 9 * MIB as usize + 1024;
    assert_eq!(ask(&mut world, write(3 * MIB + 512, len, 5)), Ok(BlockResult::Done));
    assert_eq!(data(&mut world, 3 * MIB + 512, len as u32), bytes(len, 5).contiguous());
    let extents = ask(&mut world, BlockOp::Extents { offset: MIB, len: 20 * MIB });
    let (hole, mapped) = (2 * MIB, 9 * MIB + 4096);
    let runs = vec![(hole, false), (mapped, true), (20 * MIB - hole - mapped, false)];
    assert_eq!(extents, Ok(BlockResult::Extents(runs)));
    assert_eq!(ask(&mut world, BlockOp::Unmap { offset: 0, len: 64 * MIB }), Ok(BlockResult::Done));
    let extents = ask(&mut world, BlockOp::Extents { offset: 512, len: 20 * MIB });
    assert_eq!(extents, Ok(BlockResult::Extents(vec![(20 * MIB, false)])));
}

#[test]
fn bad_ranges_are_refused() {
    let mut world = world();
    let beyond = BlockOp::Read { offset: 8 * MIB - 512, len: 1024 };
    assert_eq!(ask(&mut world, beyond), Err(BlockError::OutOfRange));
    assert_eq!(
        ask(&mut world, BlockOp::Unmap { offset: u64::MAX, len: 2 }),
        Err(BlockError::OutOfRange)
    );
    assert_eq!(ask(&mut world, write(0, 0, 0)), Err(BlockError::Invalid));
}

#[test]
fn reads_go_to_the_local_replica_and_past_it_when_it_is_behind() {
    let mut world = world();
    ask(&mut world, write(0, 4096, 1)).unwrap();
    world.groups[0].applied[0] = 0;
    world.served.clear();
    let before = world.client.stats().behind;
    assert_eq!(data(&mut world, 0, 4096), bytes(4096, 1).contiguous());
    assert!(world.client.stats().behind > before || world.groups[0].applied[0] > 0);
    world.groups[0].applied[0] = world.groups[0].last;
    world.served.clear();
    data(&mut world, 0, 4096);
    let readers: Vec<usize> = world.served.iter().map(|(node, _)| *node).collect();
    assert_eq!(readers, [0]);
}

#[test]
fn damaged_copies_are_read_elsewhere_until_none_is_left() {
    let mut world = world();
    ask(&mut world, write(0, 4096, 1)).unwrap();
    world.groups[0].applied = [world.groups[0].last; 3];
    world.scripted.push_back((0, Refusal::Damaged));
    world.scripted.push_back((1, Refusal::Damaged));
    assert_eq!(data(&mut world, 0, 4096), bytes(4096, 1).contiguous());
    // What each of them lacks may be another block: they repair it, and are asked again.
    world.scripted.extend((0..3).map(|node| (node, Refusal::Damaged)));
    assert_eq!(data(&mut world, 0, 4096), bytes(4096, 1).contiguous());
    world.scripted.extend((0..7).flat_map(|_| (0..3).map(|node| (node, Refusal::Damaged))));
    let error = BlockError::Io("every copy of the blocks is damaged");
    assert_eq!(ask(&mut world, BlockOp::Read { offset: 0, len: 4096 }), Err(error));
}

#[test]
fn data_damaged_on_its_way_is_not_returned() {
    let mut world = World::new(1, 1, 8 * MIB, None);
    world.groups[0].leader = Some(1);
    world.run_until(|world| world.ready);
    ask(&mut world, write(0, 4096, 1)).unwrap();
    world.damage = Some(1);
    assert_eq!(data(&mut world, 0, 4096), bytes(4096, 1).contiguous());
    assert_eq!((world.damage, world.client.stats().damaged), (None, 1));
}

#[test]
fn a_higher_epoch_ends_the_session() {
    let mut world = world();
    world.groups[0].epoch = model::EPOCH.0 + 1;
    world.submit(1, write(0, 4096, 1));
    world.submit(2, write(4096, 4096, 1));
    world.finish();
    assert_eq!(world.lost, Some(BlockError::Fenced));
    let results: Vec<_> = world.done.iter().map(|(_, _, result)| result.clone()).collect();
    assert_eq!(results, [Err(BlockError::Fenced), Err(BlockError::Fenced)]);
    assert_eq!(ask(&mut world, BlockOp::Flush), Err(BlockError::Fenced));
    assert_eq!(world.client.next_deadline(), None);
}

#[test]
fn a_session_that_is_fenced_out_from_the_start_is_lost() {
    let mut world = World::new(1, 1, 8 * MIB, None);
    world.groups[0].epoch = model::EPOCH.0 + 1;
    world.submit(1, BlockOp::Flush);
    world.finish();
    assert_eq!((world.ready, world.lost), (false, Some(BlockError::Fenced)));
    assert_eq!(world.done[0].2, Err(BlockError::Fenced));
}

#[test]
fn a_lost_reply_costs_a_new_link_and_one_more_copy() {
    let mut world = world();
    world.submit(1, write(0, 4096, 1));
    // The write is accepted and committed, its reply lost.
    world.run_until(|world| world.wires[1].replies.iter().any(|r| r.id.0 != 0));
    world.wires[1].replies.clear();
    world.finish();
    assert_eq!(world.done[0].2, Ok(BlockResult::Done));
    assert_eq!(writes_served(&world).len(), 2);
    let stats = world.client.stats();
    assert_eq!((stats.resets, stats.resent), (1, 1));
    assert!(world.now.since(Time::ZERO) > Duration::from_secs(2));
}

#[test]
fn a_new_leader_is_found_while_the_old_one_hangs() {
    let mut world = world();
    let begin = world.now;
    world.submit(1, write(0, 4096, 1));
    world.wires[1].silent = true;
    world.elect(0, 2, 2);
    world.run_until(|world| !world.done.is_empty());
    assert_eq!(writes_served(&world), [(2, Term(2))]);
    assert!(world.now.since(begin) < Duration::from_millis(700), "{:?}", world.now);
}

#[test]
fn a_write_is_sent_again_at_once_to_the_leader_that_a_refusal_names() {
    let mut world = world();
    world.elect(0, 2, 5);
    assert_eq!(ask(&mut world, write(0, 4096, 1)), Ok(BlockResult::Done));
    assert_eq!(writes_served(&world), [(1, Term(1)), (2, Term(5))]);
    assert_eq!(world.client.stats().resets, 0);
}

#[test]
fn busy_and_full_groups() {
    let mut world = world();
    world.scripted.push_back((1, Refusal::Busy));
    world.scripted.push_back((1, Refusal::Busy));
    let begin = world.now;
    assert_eq!(ask(&mut world, write(0, 4096, 1)), Ok(BlockResult::Done));
    assert!(world.now.since(begin) >= Duration::from_millis(6));
    assert_eq!((world.client.stats().busy, world.client.stats().resets), (2, 0));
    world.scripted.push_back((1, Refusal::NoSpace));
    assert_eq!(ask(&mut world, write(0, 4096, 2)), Err(BlockError::NoSpace));
    assert_eq!(data(&mut world, 0, 4096), bytes(4096, 1).contiguous());
}

#[test]
fn what_a_ticket_does_not_allow_fails_and_the_session_goes_on() {
    let mut world = world();
    world.scripted.push_back((1, Refusal::NotPermitted));
    let Err(BlockError::Io(why)) = ask(&mut world, write(0, 4096, 1)) else {
        panic!("it was not allowed")
    };
    assert!(why.contains("ticket"), "{why}");
    assert_eq!(ask(&mut world, write(0, 4096, 1)), Ok(BlockResult::Done));
}

#[test]
fn a_fence_finds_the_new_leader_past_an_old_one_without_room() {
    let mut world = world();
    world.scripted.push_back((1, Refusal::NotAttached));
    world.scripted.extend((0..1000).map(|_| (1, Refusal::NoSpace)));
    world.elect(0, 2, 2);
    assert_eq!(ask(&mut world, write(0, 4096, 1)), Ok(BlockResult::Done));
    assert_eq!(writes_served(&world).last(), Some(&(2, Term(2))));
}

#[test]
fn an_unknown_outcome_is_asked_again_only_over_a_new_link_or_term() {
    let mut world = world();
    world.groups[0].deposed = Some((1, 1));
    world.groups[0].leader = None;
    world.submit(1, write(0, 4096, 1));
    world.run_until(|world| !writes_served(world).is_empty());
    world.finish();
    let writes = writes_served(&world);
    assert!(writes.len() >= 2 && writes[0] == (1, Term(1)));
    assert_eq!(writes.last().map(|(_, term)| *term), Some(Term(world.groups[0].term)));
}

#[test]
fn a_replica_that_forgot_the_session_is_fenced_again() {
    let mut world = world();
    world.groups[0].epoch = 0;
    assert_eq!(ask(&mut world, write(0, 4096, 1)), Ok(BlockResult::Done));
    assert_eq!(world.groups[0].epoch, model::EPOCH.0);
}

#[test]
fn parts_of_one_block_written_at_once_are_all_kept() {
    let mut world = world();
    for sector in 0..8 {
        world.submit(sector, write(sector * 512, 512, sector as u8));
    }
    world.finish();
    for sector in 0..8 {
        assert_eq!(data(&mut world, sector * 512, 512), bytes(512, sector as u8).contiguous());
    }
    assert_eq!(world.client.stats().conflicts, 7);
}

#[test]
fn credit_is_kept_to() {
    let mut world = World::new(1, 1, 8 * MIB, None);
    world.credits = (16 << 10, 3);
    world.run_until(|world| world.ready);
    for i in 0..64 {
        world.submit(i, write(i * 8192, if i % 5 == 0 { 128 << 10 } else { 4096 }, 1));
        for wire in &world.wires {
            assert!(wire.requests.len() <= 3);
            let bytes = |r: &basalt_wire::frame::Request| match &r.op {
                RequestOp::Write { payload, .. } => payload.len(),
                _ => 0,
            };
            let total: usize = wire.requests.iter().map(bytes).sum();
            assert!(
                total <= 16 << 10
                    || wire.requests.len()
                        == 1 + wire.requests.iter().filter(|r| bytes(r) == 0).count()
            );
        }
    }
    world.finish();
    assert_eq!(world.done.len(), 64);
}

#[test]
fn a_deleted_volume_is_empty_in_every_group_and_closed() {
    let mut world = World::new(5, 4, 16 * MIB, None);
    world.run_until(|world| world.ready);
    ask(&mut world, write(0, 4 * MIB as usize, 1)).unwrap();
    assert_eq!(ask(&mut world, BlockOp::Delete), Ok(BlockResult::Done));
    assert_eq!(world.lost, Some(BlockError::Closed));
    let deletes = world.served.iter().filter(|(_, op)| matches!(op, RequestOp::Delete { .. }));
    assert!(deletes.count() >= 4);
    assert_eq!(ask(&mut world, BlockOp::Flush), Err(BlockError::Closed));
}

/// Writes one block after the other, each in another group than the one before.
fn write_in_turn(world: &mut World, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let offset = number % 4 * 4 * MIB + number / 4 * 4096;
        assert_eq!(ask(world, write(offset, 4096, number as u8 + 1)), Ok(BlockResult::Done));
    }
}

#[test]
fn a_snapshot_under_writes_is_a_prefix_of_them() {
    for seed in 0..200 {
        let mut world = World::new(seed, 4, 16 * MIB, None);
        world.run_until(|world| world.ready);
        let before = world.rng.below(24);
        write_in_turn(&mut world, 0..before);
        world.faults = 6;
        assert_eq!(world.client.generation(), Generation(0));
        world.submit(1000, BlockOp::Snapshot { generation: Generation(0) });
        assert_eq!(world.client.generation(), Generation(1), "it moves at once");
        write_in_turn(&mut world, before..before + 40);
        world.run_until(|world| world.done.iter().any(|(tag, ..)| *tag == 1000));
        let held: Vec<bool> = (0..before + 40)
            .map(|number| {
                let group = group_of(&world, number % 4 * 4 * MIB);
                let block = number % 4 * 1024 + number / 4;
                world.groups[group].frozen(0, block).is_some()
            })
            .collect();
        let cut = held.iter().position(|held| !held).unwrap_or(held.len());
        assert!(held[cut..].iter().all(|held| !held), "seed {seed}: {held:?} is no prefix");
        assert!(cut as u64 >= before, "seed {seed}: an acknowledged write is missing");
    }
}

#[test]
fn a_write_of_a_frozen_generation_goes_to_the_next() {
    let mut world = world();
    world.groups[0].freeze();
    let offset = 4 * MIB;
    assert_eq!(group_of(&world, offset), 0);
    assert_eq!(ask(&mut world, write(offset, 4096, 3)), Ok(BlockResult::Done));
    assert_eq!(world.client.generation(), Generation(1));
    assert_eq!(world.groups[0].frozen(0, 1024), None);
    assert_eq!(data(&mut world, offset, 4096), bytes(4096, 3).contiguous());
}

/// To whom a view sends a snapshot, and in which terms, when it is told who leads and all its links stand; and whether
/// it asks anybody.
fn kept_with(leaders: &[(GroupId, NodeId, Term)]) -> (Vec<(NodeId, Term)>, bool) {
    let (mut out, config) = (Vec::new(), model::config(2, 16 * MIB, None));
    let mut view = VolumeClient::view(config, Tuning::default(), Time::ZERO, &mut out);
    view.expect_leaders(leaders.iter().copied());
    for to in (0..3).map(address) {
        let up = ClientEvent::LinkUp { to, credit_bytes: 1 << 20, credit_requests: 8 };
        view.handle(Time::ZERO, up, &mut out);
    }
    let op = BlockOp::Snapshot { generation: Generation(0) };
    view.handle(Time::ZERO, ClientEvent::Submit { tag: 1, op }, &mut out);
    view.end_turn(Time::ZERO, &mut out);
    let sent = |effect: &ClientEffect| match effect {
        ClientEffect::Send { to, request } => Some((to.node, request.op.clone())),
        _ => None,
    };
    let sent: Vec<_> = out.iter().filter_map(sent).collect();
    let freezes = sent.iter().filter_map(|(node, op)| match op {
        RequestOp::Freeze { term, .. } => Some((*node, *term)),
        _ => None,
    });
    (freezes.collect(), sent.iter().any(|(_, op)| matches!(op, RequestOp::Leader)))
}

#[test]
fn a_session_that_is_told_who_leads_asks_nobody() {
    let [one, two] = [(GroupId(0), NodeId(1), Term(7)), (GroupId(1), NodeId(2), Term(4))];
    let both = vec![(NodeId(1), Term(7)), (NodeId(2), Term(4))];
    assert_eq!(kept_with(&[]), (vec![], true));
    assert_eq!(kept_with(&[one, two]), (both.clone(), false));
    let older = (GroupId(0), NodeId(3), Term(6));
    assert_eq!(kept_with(&[one, older, two]), (both, false));
    let strange = [(GroupId(0), NodeId(9), Term(7)), (GroupId(5), NodeId(1), Term(7)), two];
    assert_eq!(kept_with(&strange), (vec![(NodeId(2), Term(4))], true), "it can not be so");
}

#[test]
fn a_leader_that_is_dead_by_now_is_asked_after() {
    let mut world = World::new(1, 1, 8 * MIB, None);
    world.elect(0, 1, 7);
    world.client.expect_leaders([(GroupId(0), NodeId(1), Term(6))]);
    world.wires[0].silent = true;
    world.run_until(|world| world.ready);
    assert_eq!(world.client.leaders().collect::<Vec<_>>(), [(GroupId(0), NodeId(2), Term(7))]);
}

#[test]
fn a_view_fences_nothing_and_changes_nothing() {
    let (mut out, config) = (Vec::new(), model::config(2, 16 * MIB, None));
    let mut view = VolumeClient::view(config, Tuning::default(), Time::ZERO, &mut out);
    assert!(view.is_ready());
    for (tag, op) in [write(0, 4096, 1), BlockOp::Delete].into_iter().enumerate() {
        out.clear();
        view.handle(Time::ZERO, ClientEvent::Submit { tag: tag as u64, op }, &mut out);
        let refused = |e: &ClientEffect| {
            matches!(e, ClientEffect::Complete { result: Err(BlockError::ReadOnly), .. })
        };
        assert!(out.iter().any(refused), "{out:?}");
    }
    out.clear();
    let read = BlockOp::Read { offset: 0, len: 4096 };
    view.handle(Time::ZERO, ClientEvent::Submit { tag: 9, op: read }, &mut out);
    let up = ClientEvent::LinkUp { to: address(0), credit_bytes: 1 << 20, credit_requests: 8 };
    view.handle(Time::ZERO, up, &mut out);
    let at = view.next_deadline().unwrap();
    view.end_turn(at, &mut out);
    let snapshot = Some(Generation(0));
    let asked = out.iter().any(|e| {
        matches!(e, ClientEffect::Send { request, .. }
            if matches!(request.op, RequestOp::Read { snapshot: s, .. } if s == snapshot))
    });
    let fenced = out.iter().any(|e| {
        matches!(e, ClientEffect::Send { request, .. }
            if matches!(request.op, RequestOp::Fence { .. }))
    });
    assert!(asked && !fenced, "{out:?}");
}

#[test]
fn closing_answers_everything() {
    let mut world = world();
    world.submit(1, write(0, 4096, 1));
    let mut out = Vec::new();
    world.client.close(&mut out);
    assert!(matches!(
        out[..],
        [
            ClientEffect::Complete { tag: 1, result: Err(BlockError::Closed) },
            ClientEffect::Lost(BlockError::Closed)
        ]
    ));
    assert_eq!(world.client.in_flight(), 0);
}

#[test]
fn a_malformed_map_ends_the_session() {
    let mut config = model::config(1, MIB, None);
    config.map = Default::default();
    let mut out = Vec::new();
    let client = VolumeClient::new(config, Time::ZERO, &mut out);
    assert!(matches!(out[..], [ClientEffect::Lost(BlockError::Io(_))]));
    assert_eq!(client.next_deadline(), None);
}

#[test]
fn links_are_dialled_again_until_they_stand() {
    let mut out = Vec::new();
    let mut client = VolumeClient::new(model::config(1, MIB, None), Time::ZERO, &mut out);
    assert_eq!(out.len(), 3);
    let to = address(0);
    let mut waits = Vec::new();
    for _ in 0..6 {
        let down = client.next_deadline().unwrap();
        client.handle(down, ClientEvent::LinkDown { to }, &mut out);
        out.clear();
        let dialled = |e: &ClientEffect| matches!(e, ClientEffect::Dial { to: a } if *a == to);
        let mut at = down;
        while !out.iter().any(dialled) {
            at = at.max(client.next_deadline().unwrap());
            client.end_turn(at, &mut out);
        }
        waits.push(at.since(down).as_millis());
    }
    assert_eq!(waits, [20, 40, 80, 160, 200, 200]);
}

#[test]
fn a_moved_replica_is_followed() {
    let mut world = world();
    let offset = 4 * MIB;
    assert_eq!(group_of(&world, offset), 0);
    let mut map = (*world.client.config().map).clone();
    map.version = 2;
    map.groups[0].rotate_left(1);
    world.event(ClientEvent::Map(map.into()));
    assert_eq!(ask(&mut world, write(offset, 4096, 3)), Ok(BlockResult::Done));
    assert_eq!(data(&mut world, offset, 4096), bytes(4096, 3).contiguous());
}

/// A clone is begun before anybody is attached to it.
#[test]
fn a_volume_in_use_does_not_become_a_clone() {
    let parent = SnapshotId { volume: VolumeId(7), generation: Generation(0) };
    let asked = ask(&mut world(), BlockOp::Clone { parent });
    assert!(matches!(asked, Err(BlockError::Io(_))), "{asked:?}");
}

#[test]
fn a_leader_that_the_map_does_not_name_has_a_newer_one_asked_for() {
    let mut world = world();
    let whole = (*world.client.config().map).clone();
    let led = world.groups[0].leader.expect("somebody leads");
    let mut without = whole.clone();
    without.version = 2;
    without.groups[0].remove(led);
    world.event(ClientEvent::Map(without.into()));
    assert_eq!(world.maps_asked, 0);
    world.submit(1, write(0, 4096, 3));
    world.run_until(|world| world.maps_asked > 0);
    assert!(world.done.is_empty(), "nobody else takes it");
    let since = world.now;
    world.event(ClientEvent::Map(PoolMap { version: 3, ..whole }.into()));
    world.run_until(|world| world.done.iter().any(|(tag, ..)| *tag == 1));
    assert!(world.now.since(since) < Duration::from_millis(20), "it goes on at once");
    let asked = world.maps_asked;
    assert_eq!(data(&mut world, 0, 4096), bytes(4096, 3).contiguous());
    assert_eq!(world.maps_asked, asked);
}

#[test]
fn nothing_of_an_encrypted_volume_is_sent_in_the_clear() {
    let mut world = World::new(5, 4, 64 * MIB, None);
    assert!(model::is_encrypted(5) && world.client.config().cipher.is_some());
    let write = |offset, len, letter| BlockOp::Write {
        offset,
        data: Payload::from(Bytes::from(vec![letter; len])),
        fua: false,
    };
    assert_eq!(ask(&mut world, write(4096, 8192, b'x')), Ok(BlockResult::Done));
    // A part of a block in what was written, and one in a hole.
    assert_eq!(ask(&mut world, write(4096 + 512, 512, b'y')), Ok(BlockResult::Done));
    assert_eq!(ask(&mut world, write(MIB, 1024, b'z')), Ok(BlockResult::Done));
    let sent: Vec<Payload> = world
        .served
        .iter()
        .filter_map(|(_, op)| match op {
            RequestOp::Write { payload, .. } => Some(payload.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(sent.len(), 3);
    for payload in sent {
        let bytes = payload.contiguous();
        for clear in [b"xxxx", b"yyyy", b"zzzz"] {
            assert!(!bytes.windows(4).any(|part| part == clear));
        }
    }
    let read = data(&mut world, 4096, 8192);
    let mut wanted = vec![b'x'; 8192];
    wanted[512..1024].fill(b'y');
    assert_eq!(read[..], wanted);
    let read = data(&mut world, MIB, 4096);
    assert!(read[..1024].iter().all(|byte| *byte == b'z') && read[1024..].iter().all(|b| *b == 0));
}
