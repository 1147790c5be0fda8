//! A device or a peer that works, and is a hundred times slower than the others: slow is worse than dead.
//!
//! While a client writes and reads at an even pace, the slowest hundredth of its operations may take three
//! times what it takes in health, from five seconds after something became slow. With one replica less to choose
//! from it meets more of the turns that are late for no fault of anybody: these count as health.

use crate::event::Who;
use crate::node::{LATE_TURN, address, node_of};
use crate::queue::Instant;
use crate::script::{Script, Setup};
use crate::workload::Kind;
use crate::world::World;
use basalt_core::event::Event;
use basalt_wire::ids::{Address, GroupId, ShardId};

/// How many times slower.
const GRAY: f64 = 100.0;
/// Milliseconds until it must be over.
const NOTICED_WITHIN: u64 = 5_000;
/// Milliseconds for which latencies are looked at.
const MEASURED: u64 = 8_000;
/// Microseconds between two operations.
const EVERY: u64 = 10_000;

/// A calm world on devices that take a long load.
fn steady(set: Setup) -> Script {
    Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.device = (128 << 10) + (160 << 20);
        (o.delay_min, o.delay) = (60_000, 20_000);
    })
}

/// Operations at an even pace for so many milliseconds, whatever becomes of those before.
fn load(s: &mut Script, ms: u64, every: u64) -> Instant {
    let began = s.world.queue.now();
    for i in 0..ms * 1_000 / every {
        let kind = if i % 3 == 2 { Kind::Read } else { Kind::Write };
        s.ask(kind, i * 7 % 13, 1);
        s.pass_micros(every);
    }
    began
}

/// The latency that one in a hundred operations exceeds, of those asked for since `began`.
fn p99(s: &Script, began: Instant) -> u64 {
    let since = s.world.latencies.iter().filter(|l| l.asked_at >= began);
    let mut all: Vec<u64> = since.map(|l| l.nanos).collect();
    all.sort_unstable();
    all[all.len() * 99 / 100]
}

/// Loads a healthy cluster, harms it, and holds latencies against each other. Gives the leader before.
fn holds_within_three_times(s: &mut Script, harm: impl FnOnce(&mut Script, Who)) -> Who {
    let began = load(s, MEASURED, EVERY);
    s.wait_answers(5_000);
    let healthy = p99(s, began);
    let leader = s.wait_leader(None, 5_000);
    harm(s, leader);
    load(s, NOTICED_WITHIN, EVERY);
    let began = load(s, MEASURED, EVERY);
    s.wait_answers(20_000);
    let gray = p99(s, began);
    s.must(gray <= 3 * healthy.max(LATE_TURN), || {
        format!(
            "p99 was {} us in health, and {} us with {leader} slow",
            healthy / 1_000,
            gray / 1_000
        )
    });
    leader
}

fn lag(s: &Script, n: Who) -> u64 {
    let status = |n: Who| s.world.nodes[n].shard.as_ref().map(|shard| shard.status());
    let applied = |n: Who| {
        let groups = status(n)?.groups;
        groups.iter().find(|g| g.group == GroupId(0)).map(|g| g.applied.0)
    };
    let most = (0..3).filter_map(applied).max().unwrap_or(0);
    most - applied(n).unwrap_or(0)
}

/// Whom the cluster holds for slow, where a node of `at` is asked.
fn found_slow(s: &Script, at: Who) -> Vec<Who> {
    let Some(shard) = &s.world.nodes[at].shard else { return Vec::new() };
    let scores = shard.status().scores;
    let slow = scores.iter().filter(|score| score.slow_for.is_some());
    slow.map(|score| node_of(Address { node: score.node, shard: ShardId(0) })).collect()
}

fn prefer(s: &mut Script, node: Who) {
    for n in 0..3 {
        let prefer = Event::Prefer { group: GroupId(0), node: address(node).node };
        s.world.give(n, prefer, 0);
    }
}

pub fn slow_leader(set: Setup) -> World {
    let mut s = steady(set);
    // The placement policy wants it back all the time.
    let first = s.wait_leader(None, 5_000);
    prefer(&mut s, first);
    let slow = holds_within_three_times(&mut s, |s, leader| {
        s.world.nodes[leader].disk.faults_mut().slowness = GRAY;
    });
    let now_leads = s.leader();
    s.must(now_leads != Some(slow), || format!("slow node {slow} leads"));
    let found = found_slow(&s, s.other(slow));
    s.must(found == [slow], || format!("{found:?} are held for slow, not node {slow}"));
    // It leads again, some time after it is as fast as the others.
    s.world.nodes[slow].disk.faults_mut().slowness = 1.0;
    load(&mut s, 16_000, 2 * EVERY);
    s.wait_answers(5_000);
    let (now_leads, home) = (s.leader(), first);
    s.must(now_leads == Some(home), || format!("node {now_leads:?} leads, node {home} should"));
    s.end()
}

pub fn slow_links(set: Setup) -> World {
    let mut s = steady(set);
    // The client's own way to the others must be sound: it runs elsewhere.
    let client = s.client;
    let local = s.world.client(client).local();
    let away = (0..3).find(|n| Some(address(*n).node) != local).unwrap_or(0);
    prefer(&mut s, away);
    s.pass(3_000);
    let slow = holds_within_three_times(&mut s, |s, leader| s.world.net.set_gray(leader, GRAY));
    let now_leads = s.leader();
    s.must(now_leads != Some(slow), || format!("node {slow}, whose links are slow, leads"));
    s.end()
}

pub fn slow_follower(set: Setup) -> World {
    let mut s = steady(set);
    let client = s.client;
    let local = s.world.client(client).local();
    let mut slow = 0;
    let leader = holds_within_three_times(&mut s, |s, leader| {
        // Best the one from which the client reads.
        let followers = || (0..3).filter(|n| *n != leader);
        let near = followers().find(|n| Some(address(*n).node) == local);
        slow = near.or_else(|| followers().next()).unwrap_or(0);
        s.world.nodes[slow].disk.faults_mut().slowness = GRAY;
    });
    let now_leads = s.leader();
    s.must(now_leads == Some(leader), || format!("{now_leads:?} leads instead of {leader}"));
    // A stretch in which it can not keep up at all, and then it must.
    for i in 0..600 {
        s.ask(Kind::Write, i % 13, 4);
        s.pass_micros(500);
    }
    let (entries, cached) = (lag(&s, slow), s.world.nodes[leader].config.limits.entry_cache_bytes);
    s.world.trace(|| format!("node {slow} lags by {entries} entries, the cache holds {cached}"));
    s.wait_answers(20_000);
    s.wait("the slow follower catches up", 60_000, |w, _| {
        let applied = |n: Who| {
            let groups = w.nodes[n].shard.as_ref().map(|shard| shard.status().groups);
            groups.and_then(|g| g.iter().find(|g| g.group == GroupId(0)).map(|g| g.applied))
        };
        applied(slow) == applied(leader)
    });
    s.end()
}

pub fn all_slow(set: Setup) -> World {
    let mut s = steady(set);
    load(&mut s, 2_000, EVERY);
    let (leader, before) = (s.wait_leader(None, 5_000), s.highest_term());
    for n in 0..3 {
        s.world.nodes[n].disk.faults_mut().slowness = GRAY;
    }
    load(&mut s, 20_000, 4 * EVERY);
    s.wait_answers(20_000);
    let (now_leads, after) = (s.leader(), s.highest_term());
    s.must(now_leads == Some(leader) && before == after, || {
        format!("all are slow, and {leader}@{before} gave way to {now_leads:?}@{after}")
    });
    // Two of three: under the third nothing would be faster.
    let third = s.other(leader);
    s.world.nodes[third].disk.faults_mut().slowness = 1.0;
    load(&mut s, 10_000, 4 * EVERY);
    s.wait_answers(20_000);
    let (now_leads, after) = (s.leader(), s.highest_term());
    s.must(now_leads == Some(leader) && before == after, || {
        format!("most are slow, and {leader}@{before} gave way to {now_leads:?}@{after}")
    });
    s.end()
}

/// Slow for two seconds, fast for twelve, and wanted as leader all the time.
pub fn flapping(set: Setup) -> World {
    const TERMS_MAX: u64 = 4;
    let mut s = steady(set);
    let home = s.wait_leader(None, 5_000);
    prefer(&mut s, home);
    let before = s.highest_term();
    let mut left = 0;
    for _ in 0..8 {
        s.world.nodes[home].disk.faults_mut().slowness = GRAY;
        load(&mut s, 2_000, 2 * EVERY);
        let leads = s.leader() == Some(home);
        left += u64::from(!leads);
        s.world.nodes[home].disk.faults_mut().slowness = 1.0;
        load(&mut s, 12_000, 4 * EVERY);
    }
    s.wait_answers(5_000);
    let after = s.highest_term();
    s.must(left > 0, || "it never handed over".to_owned());
    s.must(after <= before + TERMS_MAX, || format!("the term went from {before} to {after}"));
    s.end()
}
