//! What the rounds gave.

use super::fault::Class;
use crate::measure::distribution;
use serde::{Deserialize, Serialize};
use std::fmt::{Display, Formatter, Result};
use std::time::Duration;

/// One round. Times are in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Round {
    /// Its number within the run, and the run's seed.
    pub number: u32,
    /// The run's seed.
    pub seed: u64,
    /// What was done.
    pub class: Class,
    /// To which node.
    pub node: String,
    /// How many groups it led.
    pub led: usize,
    /// How long it was away.
    pub away_ms: u64,
    /// The longest time without a completion after the fault.
    pub stall_ms: u64,
    /// When that began, from the fault on.
    pub stall_began_ms: i64,
    /// The slowest request after the fault.
    pub slowest_ms: u64,
    /// The longest time without a completion before the fault.
    pub before_ms: u64,
    /// From the start of the process to the end of its recovery, if it was started.
    pub reopen_ms: Option<u64>,
    /// From SIGTERM to the end of the process, if it was stopped so.
    pub stop_ms: Option<u64>,
    /// Bytes of log that it had.
    pub log_bytes: u64,
    /// The longest that one durable page took beside the cluster.
    pub machine_write_ms: u64,
    /// The latest that a sleeping thread woke.
    pub machine_wake_ms: u64,
    /// Requests of fio, all of them verified.
    pub requests: u64,
    /// What went wrong.
    pub error: Option<String>,
    /// Whether that is data other than what was written.
    pub mismatch: bool,
}

/// All nodes killed at once and started again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reopening {
    /// From the start of the processes until the cluster is healthy.
    pub time_ms: u64,
    /// Bytes of log of the largest.
    pub log_bytes: u64,
}

/// How the rounds went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The rounds, in order.
    pub rounds: Vec<Round>,
    /// Power cuts of all nodes.
    pub reopenings: Vec<Reopening>,
}

impl Report {
    /// Adds those of another run.
    pub fn extend(&mut self, other: Report) {
        self.rounds.extend(other.rounds);
        self.reopenings.extend(other.reopenings);
    }

    /// Rounds in which something went wrong.
    pub fn failures(&self) -> impl Iterator<Item = &Round> {
        self.rounds.iter().filter(|round| round.error.is_some())
    }

    fn of(&self, class: Class) -> Vec<&Round> {
        self.rounds.iter().filter(|round| round.class == class).collect()
    }
}

impl Display for Round {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "round {}: {}", self.number, self.class.title())?;
        if self.class != Class::Calm {
            let (node, led, away) = (&self.node, self.led, self.away_ms as f64 / 1e3);
            write!(f, ", {node} leading {led} groups, away {away:.1} s")?;
        }
        if let Some(error) = &self.error {
            return write!(f, ": {error}");
        }
        let began = self.stall_began_ms as f64 / 1e3;
        write!(f, ": stall {} ms at {began:+.1} s", self.stall_ms)?;
        write!(f, ", slowest request {} ms", self.slowest_ms)?;
        if let Some(stop) = self.stop_ms {
            write!(f, ", ended in {stop} ms")?;
        }
        if let Some(reopen) = self.reopen_ms {
            write!(f, ", reopened in {reopen} ms with {} MiB of log", self.log_bytes >> 20)?;
        }
        let (write, wake) = (self.machine_write_ms, self.machine_wake_ms);
        write!(f, "; machine: write {write} ms, wake-up {wake} ms; {} verified", self.requests)
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for class in Class::ALL {
            let rounds = self.of(class);
            if rounds.is_empty() {
                continue;
            }
            let errors = rounds.iter().filter(|round| round.error.is_some()).count();
            let mismatches = rounds.iter().filter(|round| round.mismatch).count();
            let count = rounds.len();
            writeln!(
                f,
                "{}: {count} rounds, {errors} errors, {mismatches} mismatches",
                class.title()
            )?;
            let times = |time: fn(&Round) -> u64| -> Vec<Duration> {
                let sound = rounds.iter().filter(|round| round.error.is_none());
                sound.map(|round| Duration::from_millis(time(round))).collect()
            };
            row(f, "stall", &times(|round| round.stall_ms), class.figures())?;
            row(f, "slowest request", &times(|round| round.slowest_ms), [None; 3])?;
            row(f, "stall before the fault", &times(|round| round.before_ms), [None; 3])?;
            row(f, "machine: durable write", &times(|round| round.machine_write_ms), [None; 3])?;
            row(f, "machine: wake-up", &times(|round| round.machine_wake_ms), [None; 3])?;
            if class == Class::Planned {
                row(f, "end of the process", &times(|r| r.stop_ms.unwrap_or(0)), [None; 3])?;
            }
        }
        let reopened = self.rounds.iter().filter_map(|r| Some((r.reopen_ms?, r.log_bytes)));
        reopenings(f, "reopening of one node", reopened.collect())?;
        let all = self.reopenings.iter().map(|r| (r.time_ms, r.log_bytes));
        reopenings(f, "reopening of all nodes at once", all.collect())
    }
}

/// The median, the 99th percentile and the longest, held against figures in milliseconds.
fn row(
    f: &mut Formatter<'_>,
    name: &str,
    times: &[Duration],
    figures: super::fault::Figures,
) -> Result {
    write!(f, "  {name:<24}")?;
    let names = ["p50", "p99", "max"];
    for ((name, have), want) in names.iter().zip(distribution(times)).zip(figures) {
        let have = have.as_millis();
        write!(f, "  {name} {have} ms")?;
        if let Some(want) = want {
            let verdict = if have <= u128::from(want) { "within" } else { "ABOVE" };
            write!(f, " ({verdict} {want})")?;
        }
    }
    writeln!(f)
}

/// Held against 5 s and 1 s more for each GiB of log.
fn reopenings(f: &mut Formatter<'_>, name: &str, all: Vec<(u64, u64)>) -> Result {
    let allowed = |log: u64| 5000 + (log as f64 / f64::from(1 << 30) * 1e3) as u64;
    let Some((time, log)) =
        all.iter().max_by_key(|(time, log)| *time as i64 - allowed(*log) as i64)
    else {
        return Ok(());
    };
    let above = all.iter().filter(|(time, log)| *time > allowed(*log)).count();
    let times: Vec<_> = all.iter().map(|(time, _)| Duration::from_millis(*time)).collect();
    writeln!(f, "{name}: {} times, {above} above 5 s + 1 s a GiB of log", all.len())?;
    row(f, "time", &times, [None; 3])?;
    let gib = *log as f64 / f64::from(1 << 30);
    writeln!(f, "  nearest to the bound: {time} ms with {gib:.2} GiB, allowed {} ms", allowed(*log))
}
