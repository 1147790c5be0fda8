//! What many snapshots gave.

use crate::measure::distribution;
use std::fmt::{Display, Formatter, Result};
use std::time::Duration;

/// Requests a second of the volume with snapshots and of the one without, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Random reads of 4 KiB, 32 at a time.
    pub reads: (f64, f64),
    /// Random writes of the same kind.
    pub writes: (f64, f64),
}

/// What the run measured.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// From the call until the snapshot is complete.
    pub creations: Vec<Duration>,
    /// From the call until the snapshot is gone.
    pub deletions: Vec<Duration>,
    /// Latencies of the counter's writes before the first snapshot.
    pub writes_calm: Vec<Duration>,
    /// Latencies of the counter's writes while snapshots were taken.
    pub writes_during: Vec<Duration>,
    /// What snapshots cost.
    pub pairs: Vec<Pair>,
    /// Bytes of a device that were kept for snapshots alone, when there were most of them.
    pub kept_bytes: u64,
}

impl Report {
    /// How long creations took so far.
    pub(super) fn creation(&self) -> String {
        line("created in", &self.creations)
    }
}

impl Display for Pair {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let ratio = |(with, without): (f64, f64)| with * 100.0 / without.max(1.0);
        write!(
            f,
            "reads {:.0} with snapshots, {:.0} without ({:.1} %); writes {:.0}, {:.0} ({:.1} %)",
            self.reads.0,
            self.reads.1,
            ratio(self.reads),
            self.writes.0,
            self.writes.1,
            ratio(self.writes),
        )
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "{} snapshots, each one point in time", self.creations.len())?;
        writeln!(f, "{}", self.creation())?;
        writeln!(f, "{}", line("deleted in", &self.deletions))?;
        writeln!(f, "{}", line("writes before the first", &self.writes_calm))?;
        writeln!(f, "{}", line("writes while they were taken", &self.writes_during))?;
        for pair in &self.pairs {
            writeln!(f, "{pair}")?;
        }
        writeln!(f, "{} bytes were kept for them, and all of it was given back", self.kept_bytes)
    }
}

/// A line of a report.
pub(crate) fn line(what: &str, times: &[Duration]) -> String {
    let [p50, p99, max] = distribution(times).map(|time| time.as_secs_f64() * 1e3);
    format!("{what}: p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms ({})", times.len())
}
