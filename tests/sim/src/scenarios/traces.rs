//! What takes long is what traced requests name: one thing is made slow, and the time must be told as its.
//!
//! That the stages of a request add up to what it took, to the nanosecond, is asserted by the client itself in every
//! run.

use crate::event::Who;
use crate::node::address;
use crate::script::{Script, Setup};
use crate::workload::Kind;
use crate::world::World;
use basalt_client::trace::Record;
use basalt_client::{ClientEvent, RateLimits};
use basalt_wire::ids::NodeId;
use basalt_wire::trace::Stage;

/// How many times slower.
const SLOW: f64 = 50.0;
/// Of the time of all requests this much is that of what was slowed down at least, in percent.
const MOST: u64 = 60;

fn traced(set: Setup) -> Script {
    let mut s = Script::new(set, |o| {
        o.traced = true;
        o.volatile = set.seed.is_multiple_of(2);
    });
    s.work(24, 10_000);
    s
}

/// The nodes: who leads, a follower that stays and one that is killed, so that the first is needed.
fn needed_follower(s: &mut Script) -> (Who, Who) {
    let leader = s.wait_leader(None, 5_000);
    // The client reads from its own machine, which is to live.
    let client = s.client;
    let local = s.world.client(client).local();
    let followers: Vec<Who> = (0..3).filter(|n| *n != leader).collect();
    let near = followers.iter().position(|n| Some(address(*n).node) == local).unwrap_or(0);
    let (needed, other) = (followers[near], followers[1 - near]);
    s.kill(other);
    (leader, needed)
}

/// Asks for one after another, and gives what was traced of these.
fn ask(s: &mut Script, kind: Kind, count: u64) -> Vec<Record> {
    let client = s.client;
    let known = s.records(kind).len();
    for i in 0..count {
        s.ask(kind, i % 8, 1);
        s.wait_answers(20_000);
    }
    let records = s.records(kind).split_off(known);
    let asked = s.world.client(client).pending();
    s.must(asked == 0 && records.len() as u64 == count, || {
        format!("{} of {count} requests were traced", records.len())
    });
    records
}

/// Fails unless most of the time of these requests is of a stage, on a node.
fn names(s: &mut Script, records: &[Record], stage: Stage, node: Option<NodeId>) {
    let all: u64 = records.iter().map(Record::total).sum();
    let of = |record: &&Record| record.node(stage) == node;
    let named: u64 = records.iter().filter(of).map(|record| record.of(stage)).sum();
    s.must(named * 100 >= all * MOST, || {
        let sums = Stage::ALL.map(|stage| records.iter().map(|r| r.of(stage)).sum::<u64>());
        let told = Stage::ALL.iter().zip(sums).filter(|(_, nanos)| *nanos > 0);
        format!("{named} of {all} ns are {stage:?} of {node:?}: {:?}", told.collect::<Vec<_>>())
    });
}

pub fn follower_device(set: Setup) -> World {
    let mut s = traced(set);
    let (leader, follower) = needed_follower(&mut s);
    s.world.nodes[follower].disk.faults_mut().slowness = SLOW;
    let records = ask(&mut s, Kind::Write, 24);
    names(&mut s, &records, Stage::FollowerWrite, Some(address(follower).node));
    s.world.nodes[follower].disk.faults_mut().slowness = 1.0;
    (0..3).filter(|n| *n != leader && *n != follower).for_each(|n| s.start(n));
    s.end()
}

pub fn follower_link(set: Setup) -> World {
    let mut s = traced(set);
    let (leader, follower) = needed_follower(&mut s);
    s.world.net.set_gray(follower, 4.0 * SLOW);
    let records = ask(&mut s, Kind::Write, 16);
    names(&mut s, &records, Stage::FollowerLink, Some(address(follower).node));
    s.world.net.set_gray(follower, 1.0);
    (0..3).filter(|n| *n != leader && *n != follower).for_each(|n| s.start(n));
    s.end()
}

pub fn leader_device(set: Setup) -> World {
    let mut s = traced(set);
    let (leader, follower) = needed_follower(&mut s);
    s.world.nodes[leader].disk.faults_mut().slowness = SLOW;
    let records = ask(&mut s, Kind::Write, 24);
    names(&mut s, &records, Stage::LogWrite, Some(address(leader).node));
    s.world.nodes[leader].disk.faults_mut().slowness = 1.0;
    (0..3).filter(|n| *n != leader && *n != follower).for_each(|n| s.start(n));
    s.end()
}

pub fn bound(set: Setup) -> World {
    let mut s = traced(set);
    let (client, known) = (s.client, s.records(Kind::Write).len());
    let bounds = RateLimits { iops_max: 50, iops_burst: 1, ..RateLimits::default() };
    s.world.client_event(client, ClientEvent::Limit(bounds));
    s.pass(100);
    for i in 0..24 {
        s.ask(Kind::Write, i % 8, 1);
    }
    s.wait_answers(20_000);
    let records = s.records(Kind::Write).split_off(known);
    names(&mut s, &records, Stage::Limit, None);
    s.must(records.last().is_some_and(|record| record.depth == 24), || {
        format!("the last of 24 at once saw {:?}", records.last())
    });
    s.end()
}

pub fn read_device(set: Setup) -> World {
    let mut s = traced(set);
    // Blocks that are there: what was never written is read from nowhere.
    ask(&mut s, Kind::Write, 8);
    s.pass(100);
    for n in 0..3 {
        s.world.nodes[n].disk.faults_mut().slowness = SLOW;
    }
    let records = ask(&mut s, Kind::Read, 16);
    let server = records.first().map(|record| record.server);
    let records: Vec<Record> =
        records.into_iter().filter(|record| Some(record.server) == server).collect();
    names(&mut s, &records, Stage::DeviceRead, server);
    for n in 0..3 {
        s.world.nodes[n].disk.faults_mut().slowness = 1.0;
    }
    s.end()
}

pub fn leader_lost(set: Setup) -> World {
    let mut s = traced(set);
    for round in 0..4 {
        let leader = s.wait_leader(None, 10_000);
        let known = s.records(Kind::Write).len();
        s.write(5);
        s.write(6);
        s.pass_micros(20 + 40 * round);
        s.kill(leader);
        s.wait_answers(20_000);
        let records = s.records(Kind::Write).split_off(known);
        s.must(records.len() == 2, || format!("{} of 2 writes were traced", records.len()));
        let again: Vec<Record> = records.into_iter().filter(|r| r.attempts > 1).collect();
        for record in &again {
            // What the last attempt took is its own; the rest is that of those before.
            s.must(record.of(Stage::Retry) * 2 > record.total(), || format!("{record:?}"));
            let dead = address(leader).node;
            s.must(record.server != dead && record.follower != Some(dead), || {
                format!("node {leader} is dead and has served {record:?}")
            });
        }
        s.start(leader);
        s.work(4, 20_000);
    }
    s.end()
}

impl Script {
    /// What was traced of the client's requests of a kind, the latest last.
    fn records(&mut self, kind: Kind) -> Vec<Record> {
        let client = self.client;
        let traces = self.world.client(client).traces();
        let of = if kind == Kind::Read { &traces.read } else { &traces.write };
        of.recent.iter().copied().collect()
    }
}
