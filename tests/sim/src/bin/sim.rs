//! The simulator's command line.
//!
//! ```text
//! sim 42                       one seed of the profile tiny
//! sim 42 --trace               every event of it
//! sim 42 --shrink              the smallest run that still breaks the same rule
//! sim run --seeds 5000         many seeds
//! sim planted                  every planted bug must be found
//! sim scenarios                the named scenarios
//! sim determinism --seeds 200  each seed twice, with equal traces
//! sim marks --seeds 500        which marks of the engine were reached
//! ```

use basalt_core::planted::Planted;
use basalt_sim::options::{Families, Family, Limits, Options, Profile};
use basalt_sim::queue::MILLI;
use basalt_sim::runner::{self, Job, Series};
use basalt_sim::{bugs, scenarios, shrink};
use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;
use std::time::Instant;

#[derive(Parser)]
#[command(
    name = "sim",
    about = "The deterministic simulator of Basalt",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    one: One,
}

#[derive(Args)]
struct One {
    /// The seed to run.
    seed: Option<u64>,
    #[command(flatten)]
    world: WorldArgs,
    /// Print every event.
    #[arg(long)]
    trace: bool,
    /// Look for the smallest run that breaks the same rule.
    #[arg(long)]
    shrink: bool,
    /// Plant a bug.
    #[arg(long, value_name = "BUG")]
    planted: Option<String>,
}

#[derive(Args, Clone)]
struct WorldArgs {
    /// How large the world is: tiny, swarm or long.
    #[arg(long, default_value = "tiny")]
    profile: String,
    /// Families of faults to leave out, with commas between.
    #[arg(long, value_name = "FAMILIES")]
    without: Option<String>,
    /// At most so many volumes, each with a client.
    #[arg(long)]
    clients: Option<u32>,
    /// At most so many operations.
    #[arg(long)]
    ops: Option<u32>,
    /// Faults end after so many simulated milliseconds.
    #[arg(long, value_name = "MS")]
    horizon: Option<u64>,
}

#[derive(Subcommand)]
enum Command {
    /// Run many seeds.
    Run {
        #[command(flatten)]
        world: WorldArgs,
        #[command(flatten)]
        many: Many,
        /// Plant a bug.
        #[arg(long, value_name = "BUG")]
        planted: Option<String>,
    },
    /// Plant each bug in turn and run seeds until it is found.
    Planted {
        /// How large the worlds are.
        #[arg(long, default_value = "tiny")]
        profile: String,
        /// Seeds for each bug, at most.
        #[arg(long, default_value_t = 5000)]
        seeds: u64,
        /// Threads.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Only this bug.
        #[arg(long)]
        bug: Option<String>,
    },
    /// Run the named scenarios.
    Scenarios {
        /// Only those whose name contains this.
        name: Option<String>,
        /// Print every event.
        #[arg(long)]
        trace: bool,
        /// Plant a bug.
        #[arg(long, value_name = "BUG")]
        planted: Option<String>,
    },
    /// Run each seed twice and compare the traces.
    Determinism {
        #[command(flatten)]
        world: WorldArgs,
        #[command(flatten)]
        many: Many,
    },
    /// Run seeds and list the marks of the engine that they reached.
    Marks {
        #[command(flatten)]
        world: WorldArgs,
        #[command(flatten)]
        many: Many,
    },
}

#[derive(Args, Clone)]
struct Many {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => one(&cli.one),
        Some(Command::Run { world, many, planted }) => run_many(&world, &many, planted.as_deref()),
        Some(Command::Planted { profile, seeds, jobs, bug }) => {
            planted(&profile, seeds, jobs, bug.as_deref())
        }
        Some(Command::Scenarios { name, trace, planted }) => {
            plant(planted.as_deref()).map(|planted| run_scenarios(name.as_deref(), trace, planted))
        }
        Some(Command::Determinism { world, many }) => determinism(&world, &many),
        Some(Command::Marks { world, many }) => marks(&world, &many),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(text) => {
            eprintln!("sim: {text}");
            ExitCode::from(2)
        }
    }
}

fn job(world: &WorldArgs, seed: u64, planted: Option<&str>) -> Result<Job, String> {
    let profile = Profile::named(&world.profile)
        .ok_or_else(|| format!("there is no profile '{}': tiny, swarm, long", world.profile))?;
    let mut without = Families::NONE;
    for name in world.without.iter().flat_map(|w| w.split(',')).filter(|n| !n.is_empty()) {
        let family = Family::named(name).ok_or_else(|| {
            let all: Vec<&str> = Family::ALL.iter().map(|f| f.name()).collect();
            format!("there is no family '{name}': {}", all.join(", "))
        })?;
        without = without.with(family);
    }
    let planted = plant(planted)?;
    let limits = Limits {
        without,
        clients: world.clients,
        ops: world.ops,
        horizon: world.horizon.map(|ms| ms * MILLI),
    };
    Ok(Job { seed, profile, limits, planted })
}

fn plant(name: Option<&str>) -> Result<Planted, String> {
    let Some(name) = name else { return Ok(Planted::NONE) };
    let bug = bugs::named(name).ok_or_else(|| {
        let all: Vec<&str> = bugs::ALL.iter().map(|b| b.1).collect();
        format!("there is no bug '{name}': {}", all.join(", "))
    })?;
    Ok(Planted::new(bug))
}

/// The scenario that finds a planted bug first, and how.
fn scenario_that_finds(planted: Planted) -> Option<String> {
    scenarios::all().iter().find_map(|s| {
        let failure = scenarios::run(s, false, planted).failure?;
        scenarios::run(s, false, Planted::NONE)
            .failure
            .is_none()
            .then(|| format!("{}: {failure}", s.name))
    })
}

fn one(args: &One) -> Result<bool, String> {
    let seed = args.seed.ok_or("which seed? See sim --help")?;
    let job = job(&args.world, seed, args.planted.as_deref())?;
    println!("{}", Options::draw(job.seed, job.profile, &job.limits, job.planted));
    let outcome = runner::run(&job, args.trace);
    let c = &outcome.counts;
    println!(
        "{} events, {:.1} simulated s, {} operations answered, {} with errors, {} sessions, {} faults, \
         {} node starts, {} units judged ({} searched, {} skipped), {} snapshots with {} units read, \
         {} cuts and {} given up, {} clones, {} of them flattened, {} groups moved, trace {:016x}",
        c.events,
        c.simulated as f64 / 1e9,
        c.done,
        c.errors,
        c.sessions,
        c.faults,
        c.starts,
        c.checked.units,
        c.checked.searched,
        c.checked.skipped,
        c.snapshots,
        c.snapshot_units,
        c.cuts,
        c.cuts_given_up,
        c.clones,
        c.flattened,
        c.moves,
        outcome.trace_hash
    );
    let Some(failure) = outcome.failure else {
        println!("ok");
        return Ok(true);
    };
    println!("FAILED {failure}");
    let bug = args.planted.as_deref();
    println!("again: sim {} --trace", shrink::arguments(&job, bug));
    if args.shrink {
        let (small, last) = shrink::shrink(&job, failure.class, |line| println!("  {line}"));
        println!("{}", Options::draw(small.seed, small.profile, &small.limits, small.planted));
        if let Some(last) = last {
            println!("FAILED {last}");
        }
        println!("again: sim {} --trace", shrink::arguments(&small, bug));
    }
    Ok(false)
}

/// Seconds of processor time that this process has used.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15, counted from 1; the name in field 2 may hold spaces but ends with a bracket.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

struct Progress {
    began: Instant,
    cpu: f64,
    every: u64,
}

impl Progress {
    fn new(seeds: u64) -> Progress {
        Progress { began: Instant::now(), cpu: cpu_seconds(), every: (seeds / 10).max(1) }
    }

    fn tell(&self, series: &Series) {
        if series.runs.is_multiple_of(self.every) {
            println!("{}", self.line(series));
        }
    }

    fn line(&self, series: &Series) -> String {
        let cpu = (cpu_seconds() - self.cpu).max(0.01);
        format!(
            "{} seeds, {} failed, {:.0} s, {:.0} seeds per CPU minute, {:.1} million events, {} operations, \
             {:.1} simulated hours",
            series.runs,
            series.failures.len(),
            self.began.elapsed().as_secs_f64(),
            series.runs as f64 * 60.0 / cpu,
            series.counts.events as f64 / 1e6,
            series.counts.done,
            series.counts.simulated as f64 / 3.6e12,
        )
    }
}

fn run_many(world: &WorldArgs, many: &Many, planted: Option<&str>) -> Result<bool, String> {
    let template = job(world, many.from, planted)?;
    println!("seeds {} to {}, profile {}", many.from, many.from + many.seeds - 1, world.profile);
    let progress = Progress::new(many.seeds);
    let series = runner::series(&template, many.from, many.seeds, many.jobs, |s| {
        progress.tell(s);
        if let Some((seed, failure)) = s.failures.last()
            && s.failures.len() <= 20
            && Some(*seed) != LAST_TOLD.with(|l| l.replace(Some(*seed)))
        {
            println!("seed {seed} FAILED {failure}");
        }
        true
    });
    println!("{}", progress.line(&series));
    for (seed, failure) in &series.failures {
        println!("seed {seed}: {failure}");
        let job = Job { seed: *seed, ..template.clone() };
        println!("  again: sim {}", shrink::arguments(&job, planted));
    }
    println!(
        "{}",
        if series.failures.is_empty() { "all of them held" } else { "NOT all of them held" }
    );
    Ok(series.failures.is_empty())
}

thread_local! {
    static LAST_TOLD: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// Seeds that are tried before the scenarios are.
const SEEDS_FIRST: u64 = 300;

fn planted(profile: &str, seeds: u64, jobs: usize, only: Option<&str>) -> Result<bool, String> {
    let world = WorldArgs {
        profile: profile.to_owned(),
        without: None,
        clients: None,
        ops: None,
        horizon: None,
    };
    println!("{:<24} {:>6} {:>8}  how", "bug", "seeds", "CPU s");
    let (mut missed, mut all) = (Vec::new(), Vec::new());
    for (_, name) in bugs::ALL.iter().filter(|b| only.is_none_or(|o| o == b.1)) {
        let template = job(&world, 1, Some(name))?;
        let began = cpu_seconds();
        let first = SEEDS_FIRST.min(seeds);
        let (mut runs, mut how) = seeds_that_find(&template, 1, first, jobs);
        how = how.or_else(|| scenario_that_finds(template.planted));
        if how.is_none() {
            let (more, found) = seeds_that_find(&template, first + 1, seeds - first, jobs);
            (runs, how) = (runs + more, found);
        }
        let seconds = cpu_seconds() - began;
        all.push(seconds);
        let text: String = how.as_deref().unwrap_or("NOT FOUND").chars().take(120).collect();
        println!("{name:<24} {runs:>6} {seconds:>8.1}  {text}");
        if how.is_none() {
            missed.push(*name);
        }
    }
    all.sort_by(f64::total_cmp);
    if let (Some(median), Some(worst)) = (all.get(all.len() / 2), all.last()) {
        println!("CPU seconds to find one: median {median:.1}, worst {worst:.1}");
    }
    match missed.as_slice() {
        [] => println!("every planted bug was found"),
        missed => println!("not found: {}", missed.join(", ")),
    }
    Ok(missed.is_empty())
}

/// Runs seeds until one fails that holds without the bug: how many ran, and how it failed.
fn seeds_that_find(template: &Job, from: u64, seeds: u64, jobs: usize) -> (u64, Option<String>) {
    let proves = |seed: u64| {
        let healthy = Job { seed, planted: Planted::NONE, ..template.clone() };
        runner::run(&healthy, false).failure.is_none()
    };
    let series = runner::series(template, from, seeds, jobs, |s| {
        !s.failures.last().is_some_and(|f| proves(f.0))
    });
    let found = series.failures.iter().find(|f| proves(f.0));
    (series.runs, found.map(|(seed, failure)| format!("seed {seed}: {failure}")))
}

fn run_scenarios(name: Option<&str>, trace: bool, planted: Planted) -> bool {
    let mut good = true;
    for scenario in scenarios::all() {
        if name.is_some_and(|n| !scenario.name.contains(n)) {
            continue;
        }
        let began = Instant::now();
        let outcome = scenarios::run(&scenario, trace, planted);
        let seconds = began.elapsed().as_secs_f64();
        match outcome.failure {
            None => println!("{:<44} ok      {seconds:>6.2} s", scenario.name),
            Some(failure) => {
                good = false;
                println!("{:<44} FAILED  {seconds:>6.2} s  {failure}", scenario.name);
            }
        }
    }
    good
}

fn determinism(world: &WorldArgs, many: &Many) -> Result<bool, String> {
    let mut differing = 0;
    for seed in many.from..many.from + many.seeds {
        let job = job(world, seed, None)?;
        let (first, second) = (runner::run(&job, false), runner::run(&job, false));
        if first.trace_hash != second.trace_hash || first.failure != second.failure {
            differing += 1;
            println!(
                "seed {seed}: traces {:016x} and {:016x}",
                first.trace_hash, second.trace_hash
            );
        }
    }
    println!("{} seeds run twice, {differing} differ", many.seeds);
    Ok(differing == 0)
}

fn marks(world: &WorldArgs, many: &Many) -> Result<bool, String> {
    let template = job(world, many.from, None)?;
    let progress = Progress::new(many.seeds);
    let series = runner::series(&template, many.from, many.seeds, many.jobs, |s| {
        progress.tell(s);
        true
    });
    for (mark, count) in &series.marks {
        println!("{count:>10}  {mark}");
    }
    println!("{} marks reached in {} seeds", series.marks.len(), series.runs);
    Ok(true)
}
