//! Named scenarios: situations that every replicated block store must own, written by hand.
//!
//! Each is played with a few seeds, for the seed still decides latencies and the order of events of
//! one instant. What must hold is mostly what the checkers watch in every run.

mod checkpoints;
mod clones;
mod encrypted;
mod gray;
mod growth;
mod links;
mod members;
mod memory;
mod metadata;
mod minimum;
mod pages;
mod room;
mod scrub;
mod snapshots;
mod space;
mod together;
mod traces;
mod votes;

use crate::disk::{CutPolicy, Damage};
use crate::options::{Families, Family};
use crate::report::Outcome;
use crate::rng::Rng;
use crate::runner::guarded;
use crate::script::{Script, Setup};
use crate::workload::Kind;
use crate::world::World;
use basalt_core::planted::Planted;

/// One situation.
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// Builds and plays it.
    pub play: fn(set: Setup) -> World,
    /// With how many seeds it is played.
    pub seeds: u64,
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let s = |name, seeds, play| Scenario { name, play, seeds };
    let mut all = vec![
        s("leader-waits-for-its-own-disk-or-two-others", 4, slow_leader_disk),
        s("vote-is-durable-before-it-is-given", 6, vote_then_crash),
        s("deposed-leader-under-pause-serves-no-stale-read", 6, deposed_leader_paused),
        s("isolated-node-does-not-raise-the-term", 3, isolated_node),
        s("one-way-partition-does-not-raise-the-term", 3, one_way_partition),
        s("retry-after-leader-change", 8, retry_after_leader_change),
        s("late-duplicate-of-a-retried-write", 8, late_duplicate),
        s("attach-moves-while-writes-are-in-flight", 8, attach_moves),
        s("epoch-survives-the-restart-of-all", 4, epoch_survives_restart),
        s("diverged-tail-of-an-old-leader-is-replaced", 6, diverged_tail),
        s("only-entries-of-the-current-term-commit", 6, figure_eight),
        s("power-cut-of-all-nodes-under-load", 14, power_cut_of_all),
        s("power-cut-of-all-nodes-at-rest", 7, power_cut_at_rest),
        s("crash-during-recovery-thrice", 6, crash_during_recovery),
        s("two-candidates-in-lockstep", 4, lockstep),
        s("full-device-refuses-writes-and-goes-on-reading", 3, room::full_device),
        s("damaged-copy-of-one-node-is-never-returned", 8, damaged_copy),
        s("damaged-log-of-one-node-is-not-cut", 8, damaged_log),
        s("group-sleeps-and-wakes", 3, sleeps_and_wakes),
        s("one-node-lost-for-good", 3, lost_for_good),
        s("failed-write-makes-the-device-suspect", 6, failed_write),
        s("slow-but-alive-leader", 2, slow_leader),
        s("slow-followers-keep-their-leader", 3, slow_followers),
        s("long-absent-follower-catches-up", 3, long_absent),
        s("read-right-after-an-election", 6, read_after_election),
        s("unmapped-blocks-read-as-zeros", 4, unmapped_blocks),
        s("old-tail-behind-a-hole-stays-dropped", 40, old_tail_behind_a_hole),
        s("leader-that-hears-nobody", 4, links::leader_deaf),
        s("leader-that-nobody-hears", 4, links::leader_mute),
        s("follower-that-hears-nobody", 4, links::follower_deaf),
        s("follower-that-nobody-hears", 4, links::follower_mute),
        s("one-way-between-leader-and-follower", 4, links::between_leader_and_follower),
        s("one-way-between-followers", 4, links::between_followers),
        s("one-way-ring", 4, links::ring),
        s("every-pattern-of-one-way-links", 3, links::every_pattern),
        s("flapping-links", 10, links::flapping),
        s("returns-with-a-higher-term", 4, links::returns_with_a_higher_term),
        s("grown-volume-under-a-session-that-is-over", 8, growth::session_that_is_over),
        s("grown-volume-after-power-cuts", 6, growth::power_cuts),
        s("slow-leader-hands-over", 6, gray::slow_leader),
        s("leader-with-slow-links-hands-over", 4, gray::slow_links),
        s("slow-follower-holds-up-nobody", 6, gray::slow_follower),
        s("everything-slow-and-nobody-hands-over", 4, gray::all_slow),
        s("device-that-flaps-between-slow-and-fast", 4, gray::flapping),
        s("full-device-elects-attaches-and-restarts", 6, room::full_device_elects),
        s("reserve-of-a-full-device-is-used-up", 4, room::reserve_is_used_up),
        s("start-from-a-checkpoint-after-crashes-while-one-is-taken", 8, checkpoints::crashes),
        s("device-older-than-its-checkpoint-is-noticed", 6, checkpoints::older_device),
        s("store-lost-damaged-or-put-back", 8, checkpoints::disturbed_store),
        s("index-beyond-memory", 8, memory::beyond),
        s("lost-pages-come-from-other-nodes", 8, memory::lost_pages),
        s("index-beyond-memory-on-a-full-device", 4, memory::beyond_while_cleaning),
        s("follower-away-for-long-gets-pages", 6, pages::away_for_long),
        s("crashes-while-pages-are-copied", 10, pages::crashes_in_the_middle),
        s("crash-before-the-checkpoint-of-copied-pages", 12, pages::crash_before_its_checkpoint),
        s("damaged-leader-gives-no-pages", 6, pages::damaged_leader),
        s("damaged-leader-that-should-lead-gives-no-pages", 6, pages::damaged_home),
        s("reads-go-on-while-pages-are-copied", 6, pages::reads_go_on),
        s("follower-away-while-snapshots-come-and-go", 10, pages::snapshots_while_away),
        s("device-overwritten-many-times-its-size", 6, space::overwritten_many_times),
        s("hot-blocks-beside-cold-ones", 6, space::hot_beside_cold),
        s("damaged-headers-of-copies-are-found-before-they-are-needed", 8, space::rotten_copies),
        s("log-for-followers-leaves-room", 6, space::log_leaves_room),
        s("device-filled-to-the-last-block-and-emptied", 4, space::filled_and_emptied),
        s("device-full-again-and-again", 6, space::full_again_and_again),
        s("power-cuts-while-the-cleaner-works", 8, space::cuts_while_cleaning),
        s("damaged-block-in-a-segment-that-is-cleaned", 8, space::damaged_while_cleaning),
        s("blocks-overwritten-while-they-are-moved", 8, space::overwritten_while_moved),
        s("three-to-five-to-three", 4, members::calm_moves),
        s("three-to-five-to-three-under-fire", 6, members::moves_under_fire),
        s("three-to-five-to-three-by-pages", 8, members::moves_by_pages),
        s("planned-moves-hold-up-nobody", 4, members::quiet_moves),
        s("old-members-left-behind", 6, members::left_behind),
        s("vote-that-only-a-checkpoint-remembers", 9, votes::behind_a_checkpoint),
        s("lost-vote-and-a-leader-that-was-frozen", 6, votes::frozen_leader),
        s("traced-writes-name-the-slow-device-of-a-follower", 6, traces::follower_device),
        s("traced-writes-name-the-slow-link-of-a-follower", 6, traces::follower_link),
        s("traced-writes-name-the-slow-device-of-the-leader", 6, traces::leader_device),
        s("traced-requests-name-the-bound-of-their-session", 4, traces::bound),
        s("traced-reads-name-the-slow-device", 6, traces::read_device),
        s("traced-requests-survive-their-leader", 6, traces::leader_lost),
    ];
    all.extend(snapshots::all().into_iter().chain(together::all()));
    all.extend(minimum::all());
    all.extend(clones::all().into_iter().chain(scrub::all()).chain(metadata::all()));
    all.extend(encrypted::all());
    all
}

/// Plays one with all its seeds; the first failure ends it.
pub fn run(scenario: &Scenario, trace: bool, planted: Planted) -> Outcome {
    let mut last = None;
    for seed in 1..=scenario.seeds {
        let outcome = guarded(|| (scenario.play)(Setup { seed, trace, planted }).finish());
        if outcome.failure.is_some() {
            return outcome;
        }
        last = Some(outcome);
    }
    last.expect("a scenario has at least one seed")
}

fn calm(set: Setup) -> Script {
    Script::new(set, |o| o.volatile = set.seed.is_multiple_of(2))
}

fn dice(seed: u64) -> Rng {
    Rng::stream(seed, "scenario", 0)
}

fn slow_leader_disk(set: Setup) -> World {
    let mut s = calm(set);
    let leader = s.wait_leader(None, 5_000);
    s.world.nodes[leader].disk.faults_mut().slowness = 200.0;
    // Each acknowledgement is compared with the media of all three disks as it leaves.
    s.work(60, 20_000);
    s.world.nodes[leader].disk.faults_mut().slowness = 1.0;
    let follower = s.other(leader);
    s.world.nodes[follower].disk.faults_mut().slowness = 200.0;
    s.work(60, 20_000);
    s.end()
}

fn vote_then_crash(set: Setup) -> World {
    let mut s = calm(set);
    let mut dice = dice(set.seed);
    for _ in 0..12 {
        let leader = s.wait_leader(None, 20_000);
        s.kill(leader);
        // Somewhere in the election that follows, a voter loses power and comes back at once: the
        // monitors would see it vote twice in one term.
        let voter = s.other(leader);
        s.pass_micros(dice.within(450_000, 1_300_000));
        s.power_cut(voter, *dice.pick(&CutPolicy::ALL));
        s.pass_micros(dice.within(10, 5_000));
        s.start(voter);
        s.pass(dice.within(1, 400));
        s.start(leader);
        s.write(3);
        s.wait_answers(30_000);
    }
    s.end()
}

fn deposed_leader_paused(set: Setup) -> World {
    let mut s = calm(set);
    for round in 0..6 {
        let old = s.wait_leader(None, 10_000);
        s.write(1);
        s.wait_answers(10_000);
        s.write(2);
        s.read(1);
        s.pass_micros(30 + 40 * round);
        // It has decided and not yet done; or it stands still before it decides.
        s.world.nodes[old].paused_until = s.world.queue.now() + 4_000_000_000;
        s.wait_leader(Some(old), 10_000);
        s.write(1);
        s.read(1);
        s.wait_answers(20_000);
        s.world.unpause_node(old);
        s.read(1);
        s.read(2);
        s.wait_answers(20_000);
    }
    s.end()
}

fn isolated_node(set: Setup) -> World {
    let mut s = calm(set);
    let leader = s.wait_leader(None, 5_000);
    let (term, away) = (s.term(leader), s.other(leader));
    s.isolate(away);
    for _ in 0..10 {
        s.work(4, 10_000);
        s.pass(2_000);
    }
    s.heal();
    s.pass(5_000);
    s.work(4, 10_000);
    let (now_leads, now_term) = (s.leader(), s.term(leader));
    s.must(now_leads == Some(leader) && now_term == term, || {
        format!("the return of node {away} moved the leader from {leader}@{term} to {now_leads:?}@{now_term}")
    });
    s.end()
}

fn one_way_partition(set: Setup) -> World {
    let mut s = calm(set);
    let leader = s.wait_leader(None, 5_000);
    let (term, deaf) = (s.term(leader), s.other(leader));
    for n in (0..3).filter(|n| *n != deaf) {
        s.cut(n, deaf);
    }
    for _ in 0..10 {
        s.work(4, 10_000);
        s.pass(1_000);
    }
    let now_term = s.term(leader);
    s.must(now_term == term, || format!("a deaf node raised the term from {term} to {now_term}"));
    s.heal();
    s.work(4, 10_000);
    s.end()
}

fn retry_after_leader_change(set: Setup) -> World {
    let mut s = calm(set);
    let mut dice = dice(set.seed);
    for round in 0..10 {
        let leader = s.wait_leader(None, 10_000);
        s.write(5);
        s.write(6);
        s.pass_micros(dice.within(20, 600));
        match round % 3 {
            0 => s.kill(leader),
            1 => s.power_cut(leader, CutPolicy::Keep),
            _ => s.isolate(leader),
        }
        s.wait_answers(20_000);
        s.write(5);
        s.read(6);
        s.wait_answers(20_000);
        s.heal();
        s.start(leader);
        s.read(5);
        s.wait_answers(20_000);
    }
    s.end()
}

fn late_duplicate(set: Setup) -> World {
    let mut s = calm(set);
    for _ in 0..6 {
        let leader = s.wait_leader(None, 10_000);
        s.write(4);
        s.wait_answers(20_000);
        // The write is stuck on its way; the client gives the link up and asks again over another.
        // What was stuck arrives when the block holds a newer write already.
        s.stall_requests(leader, 4_000);
        s.write(4);
        s.pass(2_000);
        s.wait_answers(20_000);
        s.write(4);
        s.wait_answers(20_000);
        s.pass(3_000);
        s.read(4);
        s.wait_answers(20_000);
    }
    s.end()
}

fn attach_moves(set: Setup) -> World {
    let mut s = calm(set);
    let mut dice = dice(set.seed);
    for _ in 0..5 {
        let leader = s.wait_leader(None, 10_000);
        s.write(1);
        s.wait_answers(10_000);
        let old = s.client;
        s.cut(old, leader);
        s.write(1);
        s.write(2);
        s.pass_micros(dice.within(50, 3_000));
        s.world.client(old).paused_until = s.world.queue.now() + 3_000_000_000;
        s.attach_elsewhere();
        s.wait("the new session begins", 10_000, |w, c| w.client(c).ready.is_some());
        s.write(1);
        s.write(2);
        s.wait_answers(10_000);
        s.heal();
        s.pass(5_000);
        s.read(1);
        s.read(2);
        s.wait_answers(10_000);
        s.must(s.world.clients[old - 3].lost.is_some(), || {
            format!("client {old} still believes in its session")
        });
    }
    s.end()
}

fn epoch_survives_restart(set: Setup) -> World {
    let mut s = calm(set);
    let leader = s.wait_leader(None, 10_000);
    let old = s.client;
    for n in 0..3 {
        s.cut(old, n);
    }
    s.write(1);
    s.write(2);
    s.pass(1);
    s.world.client(old).paused_until = s.world.queue.now() + 20_000_000_000;
    s.attach_elsewhere();
    s.wait("the new session begins", 10_000, |w, c| w.client(c).ready.is_some());
    s.write(1);
    s.wait_answers(10_000);
    for n in 0..3 {
        s.power_cut(n, CutPolicy::Drop);
    }
    for n in 0..3 {
        s.start(n);
    }
    s.heal();
    s.world.client(old).paused_until = 0;
    s.pass(8_000);
    s.read(1);
    s.read(2);
    s.wait_answers(10_000);
    s.must(leader < 3, || "there was a leader".to_owned());
    s.end()
}

fn diverged_tail(set: Setup) -> World {
    let mut s = calm(set);
    for _ in 0..3 {
        let old = s.wait_leader(None, 10_000);
        s.work(6, 10_000);
        // Its peers do not hear it, the client does: writes stay on its log alone.
        for n in (0..3).filter(|n| *n != old) {
            s.cut(old, n);
        }
        for block in 0..8 {
            s.write(block);
        }
        s.pass(200);
        s.wait_leader(Some(old), 10_000);
        s.isolate(old);
        s.wait_answers(20_000);
        s.work(30, 20_000);
        s.heal();
        s.pass(2_000);
        s.work(6, 10_000);
    }
    s.end()
}

fn figure_eight(set: Setup) -> World {
    let mut s = calm(set);
    let mut dice = dice(set.seed);
    // Leaders change while entries of earlier terms stand on a minority; nothing acknowledged may be
    // replaced.
    for _ in 0..15 {
        let leader = s.wait_leader(None, 20_000);
        let follower = if dice.chance(0.5) { s.other(leader) } else { (leader + 2) % 3 };
        s.cut(leader, follower);
        s.write(7);
        s.write(8);
        s.pass_micros(dice.within(100, 2_000));
        s.kill(leader);
        s.heal();
        s.pass(dice.within(1, 1_500));
        s.start(leader);
        s.pass(dice.within(1, 300));
    }
    s.wait_answers(30_000);
    s.read(7);
    s.read(8);
    s.wait_answers(30_000);
    s.end()
}

fn power_cut_of_all(set: Setup) -> World {
    let mut s = calm(set);
    let mut dice = dice(set.seed);
    let policy = CutPolicy::ALL[set.seed as usize % CutPolicy::ALL.len()];
    for _ in 0..8 {
        for i in 0..16 {
            s.ask(Kind::Write, i % 12, 1 + (i % 3) as u32);
        }
        s.pass_micros(dice.within(0, 3_000));
        for n in 0..3 {
            s.power_cut(n, policy);
        }
        s.pass(dice.within(1, 100));
        for n in 0..3 {
            s.start(n);
        }
        s.wait_answers(30_000);
        (0..14).for_each(|block| s.read(block));
        s.wait_answers(30_000);
    }
    s.end()
}

fn power_cut_at_rest(set: Setup) -> World {
    let mut s = calm(set);
    let policy = CutPolicy::ALL[set.seed as usize % CutPolicy::ALL.len()];
    for _ in 0..4 {
        s.work(20, 20_000);
        s.pass(6_000);
        for n in 0..3 {
            s.power_cut(n, policy);
        }
        for n in 0..3 {
            s.start(n);
        }
        (0..14).for_each(|block| s.read(block));
        s.wait_answers(30_000);
    }
    s.end()
}

fn crash_during_recovery(set: Setup) -> World {
    let mut s = calm(set);
    let mut dice = dice(set.seed);
    for _ in 0..6 {
        s.work(20, 30_000);
        let n = dice.below(3) as usize;
        s.power_cut(n, *dice.pick(&CutPolicy::ALL));
        for _ in 0..3 {
            s.start(n);
            s.pass_micros(dice.within(1, 3_000));
            s.power_cut(n, *dice.pick(&CutPolicy::ALL));
        }
        s.start(n);
    }
    s.work(20, 30_000);
    s.end()
}

fn lockstep(set: Setup) -> World {
    let mut s = calm(set);
    for _ in 0..5 {
        (0..3).for_each(|n| s.kill(n));
        (0..3).for_each(|n| {
            // The same draws for all: candidates would split the vote for ever if only their seeds
            // told them apart.
            s.world.nodes[n].config.seed = 7;
            s.start(n);
        });
        s.write(1);
        s.wait_answers(20_000);
    }
    s.end()
}

fn harmed(set: Setup) -> Script {
    Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.families = Families::NONE.with(Family::Damage);
        o.victim = (set.seed % 3) as u32;
    })
}

fn do_damage(s: &mut Script, kind: Damage, times: u32) {
    let victim = s.world.options.victim as usize;
    for _ in 0..times {
        s.world.damaged |= s.world.nodes[victim].disk.damage(kind).is_some();
    }
}

fn damaged_copy(set: Setup) -> World {
    let mut s = harmed(set);
    s.work(60, 20_000);
    let kind = [Damage::Rot, Damage::BadSector, Damage::LostWrite, Damage::Misdirected]
        [set.seed as usize % 4];
    for _ in 0..5 {
        do_damage(&mut s, kind, 10);
        (0..14).for_each(|block| s.read(block));
        s.wait_answers(20_000);
        s.work(10, 20_000);
    }
    s.end()
}

fn damaged_log(set: Setup) -> World {
    let mut s = harmed(set);
    let victim = s.world.options.victim as usize;
    let kind = Damage::ALL[set.seed as usize % 5];
    for _ in 0..4 {
        s.work(30, 30_000);
        do_damage(&mut s, kind, 2);
        s.kill(victim);
        s.work(6, 30_000);
        s.start(victim);
        s.pass(3_000);
        // The others may now elect nobody but one who holds everything.
        let other = s.other(victim);
        s.kill(other);
        s.pass(2_000);
        s.start(other);
        (0..14).for_each(|block| s.read(block));
        s.wait_answers(30_000);
    }
    s.end()
}

fn sleeps_and_wakes(set: Setup) -> World {
    let mut s = calm(set);
    for round in 0..4 {
        s.work(6, 10_000);
        let before = s.world.counts.events;
        s.pass(60_000);
        let events = s.world.counts.events - before;
        s.must(events < 12_000, || format!("an idle minute took {events} events"));
        if round == 2 {
            let leader = s.leader().unwrap_or(0);
            s.kill(leader);
            s.pass(20_000);
            s.write(1);
            s.wait_answers(10_000);
            s.start(leader);
        }
    }
    s.end()
}

fn lost_for_good(set: Setup) -> World {
    let mut s = calm(set);
    let leader = s.wait_leader(None, 5_000);
    s.work(10, 10_000);
    s.kill(leader);
    s.work(60, 20_000);
    s.end()
}

fn failed_write(set: Setup) -> World {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.families = Families::NONE.with(Family::WriteFault);
    });
    for round in 0..6 {
        let n = round % 3;
        s.world.nodes[n].disk.faults_mut().write_error = 1.0;
        for block in 0..4 {
            s.write(block);
        }
        s.pass(2);
        s.world.nodes[n].disk.faults_mut().write_error = 0.0;
        s.wait_answers(30_000);
        (0..6).for_each(|block| s.read(block));
        s.wait_answers(30_000);
    }
    s.end()
}

fn slow_leader(set: Setup) -> World {
    let mut s = calm(set);
    let leader = s.wait_leader(None, 5_000);
    s.world.nodes[leader].disk.faults_mut().slowness = 2_000.0;
    s.work(24, 30_000);
    s.world.nodes[leader].disk.faults_mut().slowness = 1.0;
    s.end()
}

fn slow_followers(set: Setup) -> World {
    let mut s = calm(set);
    let leader = s.wait_leader(None, 5_000);
    let term = s.term(leader);
    for n in (0..3).filter(|n| *n != leader) {
        s.world.nodes[n].disk.faults_mut().slowness = 5_000.0;
    }
    s.work(12, 60_000);
    let (now_leads, now_term) = (s.leader(), s.term(leader));
    s.must(now_leads == Some(leader) && now_term == term, || {
        format!("slow disks moved the leader from {leader}@{term} to {now_leads:?}@{now_term}")
    });
    for n in 0..3 {
        s.world.nodes[n].disk.faults_mut().slowness = 1.0;
    }
    s.end()
}

fn long_absent(set: Setup) -> World {
    let mut s = calm(set);
    let leader = s.wait_leader(None, 5_000);
    let away = s.other(leader);
    s.work(10, 10_000);
    s.kill(away);
    s.work(400, 30_000);
    s.start(away);
    s.pass(3_000);
    let third = (0..3).find(|n| *n != leader && *n != away).unwrap_or(0);
    s.kill(third);
    s.work(10, 20_000);
    s.end()
}

fn read_after_election(set: Setup) -> World {
    let mut s = calm(set);
    for round in 0..8 {
        s.write(round % 4);
        s.wait_answers(20_000);
        let leader = s.wait_leader(None, 10_000);
        s.kill(leader);
        s.read(round % 4);
        s.wait_leader(Some(leader), 10_000);
        s.read(round % 4);
        s.wait_answers(20_000);
        s.start(leader);
        s.read(round % 4);
        s.wait_answers(20_000);
    }
    s.end()
}

fn unmapped_blocks(set: Setup) -> World {
    let mut s = calm(set);
    let mut dice = dice(set.seed);
    for _ in 0..20 {
        let (block, count) = (dice.below(10), 1 + dice.below(4) as u32);
        s.ask(Kind::Write, block, count);
        if dice.chance(0.5) {
            s.wait_answers(10_000);
        }
        s.ask(Kind::Unmap, block, count);
        s.wait_answers(10_000);
        s.ask(Kind::Read, block, count);
    }
    s.wait_answers(10_000);
    s.end()
}

fn old_tail_behind_a_hole(set: Setup) -> World {
    let mut s = Script::new(set, |o| {
        o.volatile = set.seed.is_multiple_of(2);
        o.atom = 4096;
    });
    for node in &mut s.world.nodes {
        node.config.limits.batches_in_flight = 4;
        node.config.limits.appends_in_flight = 64;
        node.config.limits.pending_requests = 64;
    }
    (0..3).for_each(|n| s.kill(n));
    (0..3).for_each(|n| s.start(n));
    let mut dice = dice(set.seed);
    for _ in 0..40 {
        let leader = s.wait_leader(None, 20_000);
        let follower = s.other(leader);
        s.wait_answers(30_000);
        // Many small batches are in flight on a slow disk when the power goes: a later one may be
        // there without an earlier one.
        s.world.nodes[follower].disk.faults_mut().slowness = 20.0;
        for i in 0..12 {
            s.ask(Kind::Unmap, i % 12, 1);
            s.pass_micros(dice.within(50, 300));
        }
        s.power_cut(follower, *dice.pick(&[CutPolicy::Hole, CutPolicy::Reverse, CutPolicy::Coin]));
        s.world.nodes[follower].disk.faults_mut().slowness = 1.0;
        // It comes back in a new term, writes a little in the place of what was dropped, and crashes.
        s.kill(leader);
        s.start(follower);
        s.pass_micros(dice.log_uniform(5e3, 1.4e6) as u64);
        s.power_cut(follower, CutPolicy::Keep);
        s.start(follower);
        s.pass(dice.within(1, 50));
        s.start(leader);
    }
    s.wait_answers(30_000);
    s.end()
}

/// Restarts all nodes with checkpoints at every so many bytes of log.
fn with_checkpoints(s: &mut Script, bytes: u64) {
    for n in 0..3 {
        s.world.nodes[n].config.checkpoint_bytes = bytes;
        s.kill(n);
    }
    (0..3).for_each(|n| s.start(n));
    s.wait_leader(None, 10_000);
}

/// Restarts all nodes without checkpoints: nothing is cleaned, and what is written stays.
fn without_checkpoints(s: &mut Script) {
    with_checkpoints(s, 0);
}
