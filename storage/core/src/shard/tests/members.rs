//! Members that come and go.

use super::world::{G, Options, Random, World, address, node};
use super::{index, ms};
use crate::config::{GroupConfig, Limits};
use crate::event::Event;
use crate::log::HardState;
use crate::shard::GroupRole;
use basalt_wire::ids::*;
use basalt_wire::membership::Membership;

pub fn world(nodes: u32, checkpoint_bytes: u64) -> World {
    World::new(Options { nodes, founders: 3, segments: 96, checkpoint_bytes, ..Options::default() })
}

fn at(nodes: &[u32]) -> Vec<Address> {
    nodes.iter().map(|n| address(*n)).collect()
}

/// Has the leader bring about some members, and waits until it is so.
fn configure(world: &mut World, voters: &[u32], learners: &[u32]) {
    let wanted = Membership::new(at(voters), at(learners));
    for _ in 0..200 {
        let leader = world.elect();
        if world.status(leader).members == wanted {
            return;
        }
        let (voters, learners) = (at(voters), at(learners));
        world.event(leader, Event::Configure { group: G, voters, learners });
        world.pass(ms(50));
    }
    panic!("the members do not come about: {:#?}", world.tell());
}

fn join(world: &mut World, n: u32) {
    let leader = world.elect();
    let since = (world.status(leader).term, world.status(leader).applied);
    let config = GroupConfig { since, ..GroupConfig::new(G, at(&[1, 2, 3])) };
    world.nodes.get_mut(&n).unwrap().config.groups.push(config.clone());
    // A replica that was here is not forgotten before a checkpoint is durable.
    for _ in 0..100 {
        world.event(n, Event::Join(config.clone()));
        world.run();
        if world.shard(n).status().groups.iter().any(|g| g.group == G) {
            return;
        }
        world.pass(ms(10));
    }
    panic!("the replica does not begin");
}

fn retire(world: &mut World, n: u32) {
    world.nodes.get_mut(&n).unwrap().config.groups.retain(|config| config.id != G);
    for _ in 0..100 {
        world.event(n, Event::Retire(G));
        world.run();
        if world.shard(n).status().groups.iter().all(|g| g.group != G) {
            return;
        }
    }
    panic!("the replica stays");
}

/// Makes nodes voters, learners first.
pub fn move_to(world: &mut World, from: &[u32], to: &[u32]) {
    let fresh: Vec<u32> = to.iter().copied().filter(|n| !from.contains(n)).collect();
    configure(world, from, &fresh);
    fresh.iter().for_each(|n| join(world, *n));
    world.pass(ms(500));
    configure(world, to, &[]);
    from.iter().filter(|n| !to.contains(n)).for_each(|n| retire(world, *n));
}

/// Writes blocks, each with its number and one more.
fn write(world: &mut World, blocks: std::ops::Range<u64>) {
    for block in blocks {
        index(&world.write(1, block, block as u8 + 1));
    }
}

fn read_all(world: &mut World, n: u32, upto: u64) {
    let last = world.status(n).applied.0;
    for block in 0..upto {
        assert_eq!(world.read(n, 1, block, last), Ok(block as u8 + 1), "node {n} block {block}");
    }
}

#[test]
fn three_nodes_become_five_and_three_others() {
    for checkpoint_bytes in [0, 48 << 10] {
        let mut world = world(5, checkpoint_bytes);
        world.fence(1);
        write(&mut world, 0..20);
        move_to(&mut world, &[1, 2, 3], &[1, 2, 3, 4, 5]);
        write(&mut world, 20..40);
        world.pass(ms(1000));
        for n in 1..=5 {
            let mut known: Vec<u32> =
                world.shard(n).status().scores.iter().map(|score| score.node.0).collect();
            known.sort_unstable();
            assert_eq!(known, [1, 2, 3, 4, 5], "who came is judged like the others, by node {n}");
        }
        move_to(&mut world, &[1, 2, 3, 4, 5], &[3, 4, 5]);
        for n in [1, 2] {
            assert_eq!(world.shard(n).status().mapped_blocks, 0, "node {n} holds blocks");
            world.crash(n);
        }
        write(&mut world, 40..60);
        world.pass(ms(1000));
        (3..=5).for_each(|n| world.crash(n));
        (3..=5).for_each(|n| world.start(n));
        world.elect();
        world.pass(ms(1000));
        for n in 3..=5 {
            let status = world.status(n);
            assert_eq!(status.members, Membership::new(at(&[3, 4, 5]), Vec::new()), "node {n}");
            read_all(&mut world, n, 60);
        }
        world.check_converged();
    }
}

/// Groups whose logs hold only the last few entries.
fn forgetful(nodes: u32) -> World {
    let limits = Limits { segments_reserved: 1, log_retain_bytes: 0, ..Limits::default() };
    let (founders, segments, checkpoint_bytes) = (3, 96, 32 << 10);
    World::new(Options {
        nodes,
        founders,
        segments,
        checkpoint_bytes,
        limits,
        ..Options::default()
    })
}

fn restored(world: &World, n: u32) -> u64 {
    world.shard(n).status().moved.restored
}

#[test]
fn new_members_behind_the_log_get_pages() {
    let mut world = forgetful(5);
    world.fence(1);
    write(&mut world, 0..120);
    assert!(world.status(1).first > LogIndex(1), "the log holds everything");
    move_to(&mut world, &[1, 2, 3], &[3, 4, 5]);
    write(&mut world, 120..130);
    world.pass(ms(1000));
    for n in [4, 5] {
        assert!(restored(&world, n) > 0, "node {n} was brought up by its log");
        world.crash(n);
        world.start(n);
    }
    world.elect();
    world.pass(ms(1000));
    for n in 3..=5 {
        assert_eq!(world.status(n).members, Membership::new(at(&[3, 4, 5]), Vec::new()));
        read_all(&mut world, n, 130);
    }
    world.check_converged_among(&[3, 4, 5]);
}

#[test]
fn pages_that_lead_over_a_change_tell_the_members() {
    let mut world = forgetful(4);
    world.fence(1);
    write(&mut world, 0..20);
    let leader = world.elect();
    let away = leader % 3 + 1;
    let other = away % 3 + 1;
    world.crash(away);
    // The change, and its end, are forgotten before the one that is away comes back.
    configure(&mut world, &[1, 2, 3], &[4]);
    join(&mut world, 4);
    world.pass(ms(500));
    configure(&mut world, &[leader, away, 4], &[]);
    retire(&mut world, other);
    write(&mut world, 20..140);
    world.pass(ms(1000));
    world.start(away);
    for _ in 0..200 {
        world.pass(ms(50));
        if restored(&world, away) > 0 && !world.status(away).fuzzy {
            break;
        }
    }
    assert!(restored(&world, away) > 0, "it was brought up by its log: {:#?}", world.tell());
    world.pass(ms(1000));
    let members = Membership::new(at(&[leader, away, 4]), Vec::new());
    assert_eq!(world.status(away).members, members);
    assert!(world.status(away).members_durable);
    // It knows them from its checkpoint alone, and is one of the two that are needed.
    [leader, away, 4].into_iter().for_each(|n| world.crash(n));
    [away, 4].into_iter().for_each(|n| world.start(n));
    world.elect();
    assert_eq!(world.status(away).members, members);
    write(&mut world, 140..150);
    world.pass(ms(1000));
    read_all(&mut world, away, 150);
    world.start(leader);
    world.pass(ms(2000));
    world.check_converged_among(&[leader, away, 4]);
}

#[test]
fn a_removed_node_comes_back_and_remembers_its_vote() {
    let mut world = world(4, 32 << 10);
    world.fence(1);
    write(&mut world, 0..20);
    move_to(&mut world, &[1, 2, 3], &[2, 3, 4]);
    let term = world.shard(1).departed[&G].term;
    assert!(term > Term(0));
    // It stands in the log, and in checkpoints once the log has gone on.
    write(&mut world, 20..60);
    world.crash(1);
    world.start(1);
    assert_eq!(world.shard(1).departed[&G].term, term);
    move_to(&mut world, &[2, 3, 4], &[1, 3, 4]);
    assert!(world.status(1).term >= term);
    world.pass(ms(1000));
    read_all(&mut world, 1, 60);
    world.crash(1);
    world.start(1);
    world.pass(ms(1000));
    read_all(&mut world, 1, 60);
    world.check_converged_among(&[1, 3, 4]);
}

#[test]
fn a_replica_that_came_back_has_no_say_before_it_holds_what_it_held() {
    let mut world = world(4, 0);
    world.fence(1);
    write(&mut world, 0..20);
    let leader = world.elect();
    let since = (world.status(leader).term, world.status(leader).applied);
    // Node 4 begins as the founders' log says, and hears of nobody who leads.
    let config = GroupConfig { since, ..GroupConfig::new(G, at(&[1, 2, 4])) };
    world.isolate(4, true);
    world.event(4, Event::Join(config));
    world.log.clear();
    world.pass(ms(5000));
    let asked =
        world.log.iter().filter(|line| line.starts_with("4->") && line.contains("Raft")).count();
    assert_eq!(asked, 0, "it asks for votes: {:#?}", world.log);
}

#[test]
fn a_learner_that_lacks_much_is_not_made_a_voter() {
    let mut world = world(4, 0);
    world.fence(1);
    write(&mut world, 0..40);
    configure(&mut world, &[1, 2, 3], &[4]);
    let leader = world.elect();
    for _ in 0..20 {
        let (voters, learners) = (at(&[2, 3, 4]), Vec::new());
        world.event(leader, Event::Configure { group: G, voters, learners });
        world.pass(ms(50));
    }
    let members = &world.status(leader).members;
    assert_eq!((members.voters.clone(), members.is_joint()), (at(&[1, 2, 3]), false));
    // One that is no learner is not made one either.
    let (voters, learners) = (at(&[1, 2, 9]), Vec::new());
    world.event(leader, Event::Configure { group: G, voters, learners });
    world.pass(ms(100));
    assert_eq!(world.status(leader).members.voters, at(&[1, 2, 3]));
}

#[test]
fn a_change_needs_both_majorities() {
    let mut world = world(6, 0);
    world.fence(1);
    configure(&mut world, &[1, 2, 3], &[4, 5, 6]);
    (4..=6).for_each(|n| join(&mut world, n));
    world.pass(ms(500));
    let leader = world.elect();
    // The new ones are all there; of the old ones only the leader.
    for n in (1..=3).filter(|n| *n != leader) {
        world.isolate(n, true);
    }
    let (voters, learners) = (at(&[4, 5, 6]), Vec::new());
    world.event(leader, Event::Configure { group: G, voters, learners });
    world.pass(ms(300));
    for n in 4..=6 {
        let status = world.status(n);
        assert!(status.members.voters == at(&[1, 2, 3]) && status.role != GroupRole::Leader);
    }
    world.cut.clear();
    world.pass(ms(3000));
    configure(&mut world, &[4, 5, 6], &[]);
    assert!(world.elect() >= 4);
}

#[test]
fn the_end_of_a_change_tells_that_its_beginning_is_committed() {
    use crate::consensus::OpenState;
    use crate::log::{DataLocation, Location, Record};
    use basalt_wire::membership::{ENTRY_KIND_MEMBERS, MembersChange};
    let founders = Membership::new(at(&[1, 2, 3]), Vec::new());
    let enter = MembersChange::Enter(Membership::new(at(&[4, 5, 6]), Vec::new()));
    let entries = [(0, None), (ENTRY_KIND_MEMBERS, Some(enter)), (0, None)];
    let end = [(ENTRY_KIND_MEMBERS, Some(MembersChange::Leave))];
    for (with_end, commit) in [(false, 1), (true, 2)] {
        let mut state = OpenState::new(G, &founders);
        let hard = HardState { term: Term(1), vote: node(1), commit: LogIndex(1) };
        let place = (Location::default(), 0, DataLocation::default());
        let record = Record::HardState { group: G, state: hard };
        state.replay(record, place.0, place.1, place.2);
        let all = entries.iter().chain(end.iter().filter(|_| with_end));
        for (index, (kind, change)) in (1..).zip(all) {
            let data = change.as_ref().map_or_else(Default::default, MembersChange::encode);
            let (term, kind, payload) = (Term(1), *kind, Default::default());
            let index = LogIndex(index);
            let record = Record::Entry { group: G, term, index, kind, data, payload };
            state.replay(record, place.0, place.1, place.2);
        }
        assert_eq!(state.finish(false).0.hard_state().commit, LogIndex(commit));
    }
}

/// A leader that is removed hands over within the change, in whatever order its followers hear of it, and
/// nobody waits for that to fail first.
#[test]
fn a_leader_that_leaves_hands_over_at_once() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut world = world(4, 0);
        world.fence(1);
        write(&mut world, 0..4);
        configure(&mut world, &[1, 2, 3], &[4]);
        join(&mut world, 4);
        world.pass(ms(500));
        let leader = world.elect();
        let to: Vec<u32> = (1..=4).filter(|n| *n != leader).collect();
        let wanted = Membership::new(at(&to), Vec::new());
        world.log.clear();
        world.event(leader, Event::Configure { group: G, voters: at(&to), learners: Vec::new() });
        for block in 0..4 {
            world.shuffle(&mut random, 10);
            let op = world.write_op(leader, block, 9, 1);
            world.request(leader, 1, 1, op);
        }
        world.shuffle(&mut random, 60);
        world.pass(ms(100));
        let now = world.elect();
        let log = world.log.join("\n");
        assert_ne!(now, leader, "seed {seed}: {log}");
        assert_eq!(world.status(now).members, wanted, "seed {seed}: {log}");
    }
}
