//! The time of one part of a traced request: always in exactly one stage.

use super::Record;
use basalt_wire::ids::NodeId;
use basalt_wire::time::Time;
use basalt_wire::trace::{STAGES, Stage, Trace};

/// Runs from the submission of a request to the answer of one of its parts.
#[derive(Clone, Debug)]
pub(crate) struct Stopwatch {
    began: Time,
    since: Time,
    stage: Stage,
    spent: [u64; STAGES],
    attempts: u32,
    server: Option<NodeId>,
    told: Option<Box<Trace>>,
}

impl Stopwatch {
    /// Of a request that was submitted at `submitted`, began at `began`, and of which a part is made now.
    pub fn start(submitted: Time, began: Time, now: Time) -> Stopwatch {
        let mut watch = Stopwatch {
            began: submitted,
            since: submitted,
            stage: Stage::Limit,
            spent: [0; STAGES],
            attempts: 0,
            server: None,
            told: None,
        };
        watch.turn(began, Stage::Parts);
        watch.turn(now, Stage::Order);
        watch
    }

    fn turn(&mut self, now: Time, stage: Stage) {
        self.spent[self.stage as usize] += now.0.saturating_sub(self.since.0);
        (self.since, self.stage) = (now.max(self.since), stage);
    }

    /// It waits now. After an attempt whatever it waits for is that attempt's cost.
    pub fn waits(&mut self, now: Time, stage: Stage) {
        self.turn(now, if self.attempts > 0 { Stage::Retry } else { stage });
    }

    /// It is sent now.
    pub fn sent(&mut self, now: Time, server: NodeId) {
        self.turn(now, Stage::Link);
        // What an earlier attempt was under way was in vain.
        self.fold(&[Stage::Link], Stage::Retry);
        self.attempts += 1;
        (self.server, self.told) = (Some(server), None);
    }

    /// It was answered, and whoever served it may say how long that took there.
    pub fn answered(&mut self, told: Option<Box<Trace>>) {
        self.told = told;
    }

    /// The block was read of which it writes a part.
    pub fn read_first(&mut self, now: Time) {
        self.turn(now, Stage::Route);
        self.fold(&[Stage::Route, Stage::Credit, Stage::Retry, Stage::Link], Stage::ReadFirst);
        (self.attempts, self.told) = (0, None);
    }

    fn fold(&mut self, from: &[Stage], into: Stage) {
        let sum: u64 = from.iter().map(|s| std::mem::take(&mut self.spent[*s as usize])).sum();
        self.spent[into as usize] += sum;
    }

    /// What came of it.
    pub fn stop(mut self, now: Time, (bytes, depth): (u64, u32)) -> Record {
        self.turn(now, Stage::Link);
        let follower = self.told.as_ref().and_then(|trace| trace.follower);
        let link = std::mem::take(&mut self.spent[Stage::Link as usize]);
        let told = self.told.take().filter(|trace| trace.total() <= link);
        match told {
            Some(trace) => {
                self.spent[Stage::Link as usize] = link - trace.total();
                trace.stages.iter().for_each(|(stage, nanos)| self.spent[*stage as usize] += nanos);
            }
            // It says nothing, or more than passed here.
            None => self.spent[Stage::Other as usize] += link,
        }
        let record = Record {
            at: now,
            bytes,
            depth,
            attempts: self.attempts,
            server: self.server.unwrap_or(NodeId(0)),
            follower,
            spent: self.spent,
        };
        assert_eq!(record.total(), now.0 - self.began.0, "each moment is of one stage");
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(nanos: u64) -> Option<Box<Trace>> {
        let stages = vec![(Stage::LogWrite, nanos)];
        Some(Box::new(Trace { stages, follower: None }))
    }

    fn spent(record: &Record) -> Vec<(Stage, u64)> {
        let all = Stage::ALL.into_iter().map(|stage| (stage, record.of(stage)));
        all.filter(|(_, nanos)| *nanos > 0).collect()
    }

    #[test]
    fn a_request_that_went_well() {
        let mut watch = Stopwatch::start(Time(10), Time(15), Time(17));
        watch.waits(Time(18), Stage::Route);
        watch.waits(Time(20), Stage::Credit);
        watch.sent(Time(23), NodeId(1));
        watch.answered(told(70));
        let record = watch.stop(Time(123), (4096, 3));
        let want = [
            (Stage::Limit, 5),
            (Stage::Parts, 2),
            (Stage::Order, 1),
            (Stage::Route, 2),
            (Stage::Credit, 3),
            (Stage::Link, 30),
            (Stage::LogWrite, 70),
        ];
        assert_eq!(spent(&record), want);
        assert_eq!((record.attempts, record.server), (1, NodeId(1)));
    }

    #[test]
    fn of_several_attempts_the_last_one_is_told() {
        let mut watch = Stopwatch::start(Time(0), Time(0), Time(0));
        watch.waits(Time(0), Stage::Route);
        watch.sent(Time(10), NodeId(1));
        watch.waits(Time(50), Stage::Route);
        watch.waits(Time(55), Stage::Credit);
        watch.sent(Time(60), NodeId(2));
        watch.answered(told(30));
        let record = watch.stop(Time(100), (1, 1));
        let want =
            [(Stage::Route, 10), (Stage::Retry, 50), (Stage::Link, 10), (Stage::LogWrite, 30)];
        assert_eq!(spent(&record), want);
        assert_eq!((record.attempts, record.server), (2, NodeId(2)));
    }

    #[test]
    fn a_part_of_a_block_is_read_first() {
        let mut watch = Stopwatch::start(Time(0), Time(0), Time(0));
        watch.waits(Time(0), Stage::Route);
        watch.sent(Time(1), NodeId(1));
        watch.answered(told(5));
        watch.read_first(Time(11));
        watch.waits(Time(11), Stage::Route);
        watch.sent(Time(14), NodeId(2));
        watch.answered(told(6));
        let record = watch.stop(Time(24), (1, 1));
        let want =
            [(Stage::ReadFirst, 11), (Stage::Route, 3), (Stage::Link, 4), (Stage::LogWrite, 6)];
        assert_eq!(spent(&record), want);
    }

    #[test]
    fn who_says_more_than_passed_is_not_believed() {
        for told in [None, told(101)] {
            let mut watch = Stopwatch::start(Time(0), Time(0), Time(0));
            watch.sent(Time(0), NodeId(1));
            watch.answered(told);
            assert_eq!(spent(&watch.stop(Time(100), (1, 1))), [(Stage::Other, 100)]);
        }
    }
}
