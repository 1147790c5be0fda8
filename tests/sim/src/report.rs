//! What a run comes to.

use crate::check::register::Checked;
use std::collections::BTreeMap;
use std::fmt;

/// What kind of rule was broken; shrinking keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A unit was not a linearizable register.
    Register,
    /// A read returned what nobody wrote, or another place's data.
    Content,
    /// An answer left before a majority's media held the write.
    Acknowledgement,
    /// A rule of Raft was broken.
    Raft,
    /// Something of a fenced session took effect.
    Fencing,
    /// Replicas that applied the same index differ.
    Divergence,
    /// Something that had to end did not.
    Liveness,
    /// A snapshot was not one point in time, or changed.
    Snapshot,
    /// A client got an error that the faults do not explain.
    ClientError,
    /// A node raised an alarm, or could not open its device, without damage.
    Alarm,
    /// Something grows or spins without bound, or is left over at the end.
    Resources,
    /// The engine panicked.
    Panic,
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which kind.
    pub class: Class,
    /// In words.
    pub text: String,
    /// When, in simulated nanoseconds.
    pub at: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:.6} s: {}", self.class, self.at as f64 / 1e9, self.text)
    }
}

/// Counts of one run.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Events of the heap.
    pub events: u64,
    /// Operations answered well.
    pub done: u64,
    /// Operations answered with an error.
    pub errors: u64,
    /// Faults done.
    pub faults: u64,
    /// Times a node was started.
    pub starts: u64,
    /// Sessions.
    pub sessions: u64,
    /// Snapshots that were complete, and units read of them.
    pub snapshots: u64,
    /// Volumes cut together, how often.
    pub cuts: u64,
    /// How often that was given up.
    pub cuts_given_up: u64,
    /// Clones that were handed out.
    pub clones: u64,
    /// Clones that were flattened.
    pub flattened: u64,
    /// See [`Counts::snapshots`].
    pub snapshot_units: u64,
    /// Groups that moved to other nodes.
    pub moves: u64,
    /// Simulated nanoseconds.
    pub simulated: u64,
    /// What the register checker judged.
    pub checked: Checked,
}

/// The end of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Hash over every event: equal for equal runs.
    pub trace_hash: u64,
    /// The first broken rule, if one was.
    pub failure: Option<Failure>,
    /// What took place.
    pub counts: Counts,
    /// Marks of the engine that were reached.
    pub marks: BTreeMap<&'static str, u64>,
}
