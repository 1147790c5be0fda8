//! Where the time of a session's requests goes: a few of them are traced from their submission to their answer.
//!
//! A traced request is in exactly one [`Stage`] at any moment, so its stages add up to what it took, to the
//! nanosecond. A request in several parts is told by the part that was answered last. What was traced lately is
//! kept request by request, so that the ordinary and the slowest ones can be told apart whole, and sums of a kind
//! of request are sums of its stages.

mod sampler;
mod stopwatch;
pub mod summary;

use crate::latency::Histogram;
use basalt_wire::ids::NodeId;
use basalt_wire::time::Time;
use basalt_wire::trace::{STAGES, Stage};
pub(crate) use sampler::Sampler;
use std::collections::VecDeque;
pub(crate) use stopwatch::Stopwatch;

/// Traced requests of a kind that are remembered.
pub const RECORDS_MAX: usize = 512;

/// One request that was traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was answered.
    pub at: Time,
    /// Bytes.
    pub bytes: u64,
    /// Requests of the user that were not answered when it was submitted, itself included.
    pub depth: u32,
    /// Requests that were sent for it: more than one, if it had to be sent again.
    pub attempts: u32,
    /// Who served it.
    pub server: NodeId,
    /// The follower that it waited for, if it waited for one.
    pub follower: Option<NodeId>,
    /// Nanoseconds in each stage.
    pub spent: [u64; STAGES],
}

impl Record {
    /// Nanoseconds from its submission to its answer.
    pub fn total(&self) -> u64 {
        self.spent.iter().sum()
    }

    /// Nanoseconds in a stage.
    pub fn of(&self, stage: Stage) -> u64 {
        self.spent[stage as usize]
    }

    /// Whose stage it is: that of the client itself is nobody's.
    pub fn node(&self, stage: Stage) -> Option<NodeId> {
        match stage {
            _ if stage.is_followers() => self.follower,
            Stage::Link => Some(self.server),
            _ if stage.is_told() => Some(self.server),
            _ => None,
        }
    }
}

/// What was traced of one kind of request.
#[derive(Clone, Debug, Default)]
pub struct KindTraces {
    /// The latest, oldest first.
    pub recent: VecDeque<Record>,
    /// All of them, by the time in each stage in which they were at all.
    pub stages: Vec<Histogram>,
}

impl KindTraces {
    fn add(&mut self, record: Record) {
        self.stages.resize(STAGES, Histogram::default());
        for (histogram, nanos) in self.stages.iter_mut().zip(record.spent) {
            if nanos > 0 {
                histogram.add(std::time::Duration::from_nanos(nanos), record.bytes, false);
            }
        }
        if self.recent.len() == RECORDS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(record);
    }

    /// The stages in which a request was at all, and how long.
    pub fn histograms(&self) -> impl Iterator<Item = (Stage, &Histogram)> {
        let all = Stage::ALL.into_iter().zip(&self.stages);
        all.filter(|(_, histogram)| histogram.count() > 0)
    }
}

/// What was traced of all kinds of requests.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    /// Reads.
    pub read: KindTraces,
    /// Writes.
    pub write: KindTraces,
    /// Discards and writes of zeroes.
    pub unmap: KindTraces,
}

impl Traces {
    /// The kinds, with the names that programs know them by.
    pub fn kinds(&self) -> [(&'static str, &KindTraces); 3] {
        [("read", &self.read), ("write", &self.write), ("discard", &self.unmap)]
    }

    pub(crate) fn add(&mut self, kind: Kind, record: Record) {
        match kind {
            Kind::Read => self.read.add(record),
            Kind::Write => self.write.add(record),
            Kind::Unmap => self.unmap.add(record),
        }
    }
}

/// A kind of request that is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Unmap,
}
