//! Whole worlds: named scenarios, a series of seeds, and that a run repeats to the last event.

use basalt_core::planted::{Bug, Planted};
use basalt_sim::options::{Limits, Profile};
use basalt_sim::report::Class;
use basalt_sim::runner::{Job, run, series};
use basalt_sim::{scenarios, shrink};

fn job(seed: u64, planted: Planted) -> Job {
    Job { seed, profile: Profile::Tiny, limits: Limits::default(), planted }
}

#[test]
fn named_scenarios_hold() {
    for scenario in scenarios::all() {
        let outcome = scenarios::run(&scenario, false, Planted::NONE);
        assert!(outcome.failure.is_none(), "{}: {}", scenario.name, outcome.failure.unwrap());
    }
}

#[test]
fn three_hundred_seeds_hold() {
    let series = series(&job(1, Planted::NONE), 1, 300, 2, |s| s.failures.is_empty());
    assert!(series.failures.is_empty(), "{:?}", series.failures);
    assert_eq!(series.runs, 300);
    assert!(series.counts.done > 10_000, "only {} operations were answered", series.counts.done);
    assert!(series.counts.checked.units > 2_000, "{:?}", series.counts.checked);
    let (snapshots, units) = (series.counts.snapshots, series.counts.snapshot_units);
    assert!(snapshots > 500 && units > 10_000, "{snapshots} snapshots, {units} units of them");
}

#[test]
fn a_run_repeats_to_the_last_event() {
    for seed in 1..=20 {
        let (a, b) = (run(&job(seed, Planted::NONE), false), run(&job(seed, Planted::NONE), false));
        assert_eq!(a.trace_hash, b.trace_hash, "seed {seed}");
        assert_eq!(a.counts.events, b.counts.events, "seed {seed}");
    }
    let other = run(&job(21, Planted::NONE), false);
    assert_ne!(run(&job(1, Planted::NONE), false).trace_hash, other.trace_hash);
}

#[test]
fn a_planted_bug_is_found_and_shrunk() {
    let template = job(1, Planted::new(Bug::AckBeforeDurable));
    let found = series(&template, 1, 50, 1, |s| s.failures.is_empty());
    let (seed, failure) =
        found.failures.first().expect("an answer before the media held the write");
    assert_eq!(failure.class, Class::Acknowledgement);
    let (small, last) = shrink::shrink(&Job { seed: *seed, ..template }, failure.class, |_| {});
    assert_eq!(last.map(|f| f.class), Some(Class::Acknowledgement));
    assert_eq!(run(&small, false).failure.map(|f| f.class), Some(Class::Acknowledgement));
    assert!(small.limits.without.iter().count() > 0 || small.limits.ops.is_some());
}
