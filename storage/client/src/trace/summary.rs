//! What the requests that were traced lately say together.
//!
//! Figures of single stages do not add up: the 99th of a hundred waits is not that of the 99th of a hundred requests.
//! So whole requests are chosen, those in the middle and the slowest, and the mean of each of their stages is told:
//! these add up to what these requests took.

use super::{KindTraces, Record};
use basalt_wire::ids::NodeId;
use basalt_wire::time::Time;
use basalt_wire::trace::Stage;
use std::collections::BTreeMap;
use std::time::Duration;

/// Requests that are older are not told of.
const LATELY: Duration = Duration::from_secs(60);
/// The part of all requests that stands in the middle, and that which is slowest.
const MIDDLE: usize = 5;
const SLOWEST: usize = 100;

/// Mean times of some requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Band {
    /// How many.
    pub requests: u64,
    /// Nanoseconds from submission to answer.
    pub total: u64,
    /// Bytes.
    pub bytes: u64,
    /// Requests under way at the submission, in thousandths.
    pub depth_milli: u64,
    /// Requests that had to be sent again.
    pub resent: u64,
    /// Nanoseconds by stage and node, in the order of the stages: their sum is within one nanosecond each of the total.
    pub parts: Vec<Part>,
}

/// A stage's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The stage.
    pub stage: Stage,
    /// Whose; nobody's if it is the client's own.
    pub node: Option<NodeId>,
    /// Mean nanoseconds over all requests of the band.
    pub nanos: u64,
    /// Requests that were in it at all.
    pub requests: u64,
}

/// A stage on one node, over all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The stage.
    pub stage: Stage,
    /// Whose.
    pub node: Option<NodeId>,
    /// Requests that were in it.
    pub requests: u64,
    /// Nanoseconds: the middle one, the one that one in a hundred exceeds, and the shortest.
    pub median: u64,
    /// See `median`.
    pub p99: u64,
    /// See `median`.
    pub best: u64,
}

/// What is known of one kind of request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Requests that were traced lately.
    pub requests: u64,
    /// Since the oldest of them was answered.
    pub window: Duration,
    /// Nanoseconds: the middle one, and the one that one in a hundred exceeds.
    pub median: u64,
    /// See `median`.
    pub p99: u64,
    /// All of them, those in the middle and the slowest.
    pub all: Band,
    /// See `all`.
    pub middle: Band,
    /// See `all`.
    pub slowest: Band,
    /// Every stage on every node.
    pub seen: Vec<Seen>,
}

impl Summary {
    /// Of what was traced up to now.
    pub fn of(kind: &KindTraces, now: Time) -> Summary {
        let lately = kind.recent.iter().filter(|record| now.since(record.at) <= LATELY);
        let mut records: Vec<&Record> = lately.collect();
        let Some(first) = records.first() else { return Summary::default() };
        let window = now.since(first.at);
        records.sort_by_key(|record| record.total());
        let count = records.len();
        let middle = count.div_ceil(MIDDLE);
        let from = (count - middle) / 2;
        let slowest = count.div_ceil(SLOWEST);
        Summary {
            requests: count as u64,
            window,
            median: records[count / 2].total(),
            p99: records[count - slowest].total(),
            all: Band::of(&records),
            middle: Band::of(&records[from..from + middle]),
            slowest: Band::of(&records[count - slowest..]),
            seen: seen(&records),
        }
    }
}

fn stages_of(record: &Record) -> impl Iterator<Item = (Stage, Option<NodeId>, u64)> + '_ {
    let all = Stage::ALL.into_iter();
    all.map(|stage| (stage, record.node(stage), record.of(stage))).filter(|(.., n)| *n > 0)
}

impl Band {
    fn of(records: &[&Record]) -> Band {
        let count = records.len() as u64;
        let mean = |value: fn(&Record) -> u64| {
            records.iter().map(|record| u128::from(value(record))).sum::<u128>() as u64 / count
        };
        let mut sums: BTreeMap<(Stage, Option<NodeId>), (u64, u64)> = BTreeMap::new();
        for (stage, node, nanos) in records.iter().flat_map(|record| stages_of(record)) {
            let sum = sums.entry((stage, node)).or_default();
            *sum = (sum.0.saturating_add(nanos), sum.1 + 1);
        }
        let part = |((stage, node), (sum, requests)): ((Stage, Option<NodeId>), (u64, u64))| Part {
            stage,
            node,
            nanos: sum / count,
            requests,
        };
        Band {
            requests: count,
            total: mean(Record::total),
            bytes: mean(|record| record.bytes),
            depth_milli: mean(|record| u64::from(record.depth) * 1_000),
            resent: records.iter().filter(|record| record.attempts > 1).count() as u64,
            parts: sums.into_iter().map(part).collect(),
        }
    }
}

fn seen(records: &[&Record]) -> Vec<Seen> {
    let mut all: BTreeMap<(Stage, Option<NodeId>), Vec<u64>> = BTreeMap::new();
    for (stage, node, nanos) in records.iter().flat_map(|record| stages_of(record)) {
        all.entry((stage, node)).or_default().push(nanos);
    }
    let seen = |((stage, node), mut times): ((Stage, Option<NodeId>), Vec<u64>)| {
        times.sort_unstable();
        let count = times.len();
        let (median, p99) = (times[count / 2], times[count - count.div_ceil(SLOWEST)]);
        Seen { stage, node, requests: count as u64, median, p99, best: times[0] }
    };
    all.into_iter().map(seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_wire::trace::STAGES;

    fn record(at: u64, write: u64, follower: u64) -> Record {
        let mut spent = [0; STAGES];
        spent[Stage::LogWrite as usize] = write;
        spent[Stage::FollowerWrite as usize] = follower;
        let (server, follower) = (NodeId(1), (follower > 0).then_some(NodeId(3)));
        Record { at: Time(at), bytes: 4096, depth: 2, attempts: 1, server, follower, spent }
    }

    #[test]
    fn stages_of_a_band_add_up() {
        let mut kind = KindTraces::default();
        for i in 0..200u64 {
            kind.add(record(1_000, 100 + i, if i >= 198 { 5_000 } else { 0 }));
        }
        let summary = Summary::of(&kind, Time(2_000));
        assert_eq!((summary.requests, summary.window), (200, Duration::from_nanos(1_000)));
        assert_eq!((summary.median, summary.p99), (200, 5_298));
        for band in [&summary.all, &summary.middle, &summary.slowest] {
            let sum: u64 = band.parts.iter().map(|part| part.nanos).sum();
            assert!(band.total.abs_diff(sum) <= band.parts.len() as u64, "{band:?}");
        }
        assert_eq!(summary.middle.parts.len(), 1, "the ordinary ones waited for nobody");
        let slow = &summary.slowest;
        assert_eq!(slow.requests, 2);
        let part = slow.parts.iter().find(|part| part.stage == Stage::FollowerWrite);
        let want =
            Part { stage: Stage::FollowerWrite, node: Some(NodeId(3)), nanos: 5_000, requests: 2 };
        assert_eq!(part, Some(&want));
        let own = summary.seen.iter().find(|seen| seen.stage == Stage::LogWrite);
        assert_eq!(own.map(|seen| (seen.requests, seen.best)), Some((200, 100)));
    }

    #[test]
    fn what_is_old_is_not_told() {
        let mut kind = KindTraces::default();
        kind.add(record(0, 7, 0));
        let late = Time::ZERO + LATELY + Duration::from_nanos(1);
        assert_eq!(Summary::of(&kind, late), Summary::default());
        (0..2 * super::super::RECORDS_MAX).for_each(|_| kind.add(record(late.0, 5, 0)));
        let summary = Summary::of(&kind, late);
        assert_eq!((summary.requests, summary.p99), (super::super::RECORDS_MAX as u64, 5));
    }
}
