//! What is done to a node, and how the stalls of it are judged.

use crate::random::Random;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A kind of round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Nothing is done: what the machine itself does to the longest gap.
    Calm,
    /// SIGKILL of a node that leads groups of the volume.
    Kill,
    /// SIGSTOP of such a node, and SIGCONT a while later.
    Freeze,
    /// SIGKILL of a node that leads none.
    Follower,
    /// SIGTERM of a node that leads some; it is started again.
    Planned,
}

/// The figures that a class is held against: median, 99th percentile, longest; in milliseconds.
pub type Figures = [Option<u64>; 3];

impl Class {
    /// All of them.
    pub const ALL: [Class; 5] =
        [Class::Calm, Class::Kill, Class::Freeze, Class::Planned, Class::Follower];

    /// The figures of the class.
    pub fn figures(self) -> Figures {
        match self {
            Class::Calm => [None; 3],
            Class::Kill => [Some(500), Some(1500), Some(3000)],
            Class::Freeze => [Some(1000), Some(3000), Some(5000)],
            Class::Follower => [None, Some(100), None],
            Class::Planned => [None, None, Some(100)],
        }
    }

    /// What it is, in words.
    pub fn title(self) -> &'static str {
        match self {
            Class::Calm => "no fault",
            Class::Kill => "SIGKILL of a leader's node",
            Class::Freeze => "SIGSTOP of a leader's node",
            Class::Follower => "SIGKILL of a follower's node",
            Class::Planned => "planned stop (SIGTERM)",
        }
    }

    /// How long the node stays away.
    pub fn away(self, random: &mut Random) -> Duration {
        match self {
            Class::Calm => Duration::ZERO,
            Class::Kill | Class::Follower | Class::Planned => Duration::from_secs(1),
            Class::Freeze => Duration::from_millis(500 + random.below(9_500)),
        }
    }
}

/// The classes of so many rounds, in order. Those of a follower come last: for them the leaderships
/// are gathered on one node.
pub fn plan(rounds: u32) -> Vec<Class> {
    const LEADERS: [Class; 5] =
        [Class::Kill, Class::Freeze, Class::Planned, Class::Kill, Class::Freeze];
    let followers = if rounds < 3 { 0 } else { rounds.div_ceil(6) } as usize;
    let leaders = LEADERS.into_iter().cycle().take(rounds as usize - followers);
    leaders.chain(std::iter::repeat_n(Class::Follower, followers)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_rounds() {
        for rounds in [6, 16, 25, 100] {
            let plan = plan(rounds);
            assert_eq!(plan.len(), rounds as usize);
            for class in [Class::Kill, Class::Freeze, Class::Planned, Class::Follower] {
                assert!(plan.contains(&class), "{class:?} of {rounds}");
            }
            assert!(plan.is_sorted_by_key(|class| *class == Class::Follower));
        }
    }
}
