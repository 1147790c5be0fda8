//! Runs seeds: one, many on several threads, or one twice.

use crate::options::{Limits, Options, Profile};
use crate::report::{Class, Counts, Failure, Outcome};
use crate::world::World;
use basalt_core::planted::Planted;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once};

/// What to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// The seed.
    pub seed: u64,
    /// How large.
    pub profile: Profile,
    /// What is left out.
    pub limits: Limits,
    /// A bug planted in the engine.
    pub planted: Planted,
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    static QUIET: RefCell<bool> = const { RefCell::new(false) };
}

static HOOK: Once = Once::new();

/// Panics of the engine are results of a run: they are kept, not printed.
fn install_hook() {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.with(|q| *q.borrow()) {
                LAST_PANIC.with(|p| *p.borrow_mut() = info.to_string());
            } else {
                before(info);
            }
        }));
    });
}

/// Runs a closure over a fresh world; a panic becomes a failure of the outcome.
pub fn guarded(run: impl FnOnce() -> Outcome) -> Outcome {
    install_hook();
    let _ = basalt_core::planted::take();
    QUIET.with(|q| *q.borrow_mut() = true);
    let result = catch_unwind(AssertUnwindSafe(run));
    QUIET.with(|q| *q.borrow_mut() = false);
    result.unwrap_or_else(|_| {
        let text = LAST_PANIC.with(|p| p.borrow().clone());
        Outcome {
            trace_hash: 0,
            failure: Some(Failure { class: Class::Panic, text, at: 0 }),
            counts: Counts::default(),
            marks: basalt_core::planted::take(),
        }
    })
}

/// Runs one seed.
pub fn run(job: &Job, tracing: bool) -> Outcome {
    guarded(|| {
        let options = Options::draw(job.seed, job.profile, &job.limits, job.planted);
        let mut world = World::new(options, tracing);
        world.run();
        world.finish()
    })
}

/// What a series of seeds came to.
#[derive(Debug, Default)]
pub struct Series {
    /// Runs.
    pub runs: u64,
    /// The failing seeds.
    pub failures: Vec<(u64, Failure)>,
    /// Marks reached, over all runs.
    pub marks: BTreeMap<&'static str, u64>,
    /// Sums over all runs.
    pub counts: Counts,
}

impl Series {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.runs += 1;
        let c = &mut self.counts;
        let o = outcome.counts;
        c.events += o.events;
        c.done += o.done;
        c.errors += o.errors;
        c.faults += o.faults;
        c.starts += o.starts;
        c.sessions += o.sessions;
        c.simulated += o.simulated;
        c.snapshots += o.snapshots;
        c.cuts += o.cuts;
        c.cuts_given_up += o.cuts_given_up;
        c.clones += o.clones;
        c.flattened += o.flattened;
        c.snapshot_units += o.snapshot_units;
        c.checked.units += o.checked.units;
        c.checked.searched += o.checked.searched;
        c.checked.skipped += o.checked.skipped;
        for (mark, count) in outcome.marks {
            *self.marks.entry(mark).or_default() += count;
        }
        if let Some(failure) = outcome.failure {
            self.failures.push((seed, failure));
        }
    }
}

/// Runs `seeds` seeds from `first` on `threads` threads. After each run `progress` is told the series
/// so far and says whether to go on.
pub fn series(
    template: &Job,
    first: u64,
    seeds: u64,
    threads: usize,
    progress: impl Fn(&Series) -> bool + Sync,
) -> Series {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let series = Mutex::new(Series::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= seeds {
                        return;
                    }
                    let seed = first + index;
                    let outcome = run(&Job { seed, ..template.clone() }, false);
                    let mut series = series.lock().expect("no thread panics with the lock held");
                    series.add(seed, outcome);
                    if !progress(&series) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut series = series.into_inner().expect("no thread panics with the lock held");
    series.failures.sort_by_key(|f| f.0);
    series
}
