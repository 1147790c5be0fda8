//! What cuts gave.

use crate::snapshots::line;
use std::fmt::{Display, Formatter, Result};
use std::time::Duration;

/// What the run measured.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// From the call until all snapshots are complete.
    pub creations: Vec<Duration>,
    /// Cuts that were given up although no node died.
    pub given_up: usize,
    /// Cuts that were kept, and such as were given up, while a node died.
    pub kept_at_deaths: usize,
    /// See above.
    pub given_up_at_deaths: usize,
    /// Latencies of the chain's writes before the first cut.
    pub writes_calm: Vec<Duration>,
    /// Latencies of the chain's writes while cuts were taken.
    pub writes_during: Vec<Duration>,
}

impl Report {
    /// How long creations took so far.
    pub(super) fn creation(&self) -> String {
        line("created in", &self.creations)
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let cuts = self.creations.len();
        writeln!(f, "{cuts} cuts, each one point in time; {} were given up", self.given_up)?;
        writeln!(f, "{}", self.creation())?;
        let (kept, up) = (self.kept_at_deaths, self.given_up_at_deaths);
        writeln!(f, "while a node died: {kept} kept, {up} given up")?;
        writeln!(f, "{}", line("writes before the first", &self.writes_calm))?;
        writeln!(f, "{}", line("writes while they were taken", &self.writes_during))
    }
}
