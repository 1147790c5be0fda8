//! What came of the damage.

use super::{Counts, Damage, While};
use serde::Serialize;
use std::fmt::{Display, Formatter, Result};
use std::time::Duration;

/// One round.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// What the nodes did while their devices were damaged.
    pub nodes: While,
    /// What was damaged.
    pub damage: Damage,
    /// Blocks that were found damaged by the time that everything was read once by clients.
    pub found: u64,
    /// What was found and repaired on each node, by reads and the scrub.
    pub repaired: Vec<Counts>,
    /// How long the damage took.
    pub damaging: Duration,
    /// How long reading everything took, with damage.
    pub reading: Duration,
    /// From the call for a scrub until all was repaired.
    pub scrubbing: Duration,
    /// The longest pass of the second scrub, which found nothing.
    pub second: Duration,
}

/// All rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// MiB of the volume.
    pub volume_mib: u64,
    /// The rounds.
    pub rounds: Vec<Round>,
}

impl Report {
    pub(super) fn new(volume_mib: u64) -> Report {
        Report { volume_mib, rounds: Vec::new() }
    }

    /// All damage of all rounds.
    pub fn damage(&self) -> Damage {
        let mut sum = Damage::default();
        self.rounds.iter().for_each(|round| sum.add(&round.damage));
        sum
    }

    /// Blocks repaired in all rounds on all nodes.
    pub fn repaired(&self) -> u64 {
        self.rounds.iter().flat_map(|round| &round.repaired).map(|counts| counts.repaired).sum()
    }
}

impl Display for Damage {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} copies damaged", self.copies())?;
        for (kind, (copies, bytes)) in &self.kinds {
            write!(f, ", {copies} {kind:?} ({bytes} bytes)")?;
        }
        write!(f, ", {} of them with another block's content", self.stale)
    }
}

impl Display for Round {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let sum = |of: fn(&Counts) -> u64| self.repaired.iter().map(of).sum::<u64>();
        write!(
            f,
            "{:?}: {} in {:.1} s; {} found by reading everything in {:.1} s; {} repaired, {} overwritten \
             first; the scrub and its repairs took {:.1} s, a second one {:.1} s",
            self.nodes,
            self.damage,
            self.damaging.as_secs_f64(),
            self.found,
            self.reading.as_secs_f64(),
            sum(|counts| counts.repaired),
            sum(|counts| counts.overwritten),
            self.scrubbing.as_secs_f64(),
            self.second.as_secs_f64(),
        )
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(
            f,
            "a volume of {} MiB, {} rounds: {}; {} repaired, no wrong byte was returned",
            self.volume_mib,
            self.rounds.len(),
            self.damage(),
            self.repaired(),
        )
    }
}
