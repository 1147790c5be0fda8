//! Where the time of traced writes goes, from their arrival to their answer.
//!
//! A write waits for a majority, so its time is that of whoever made the majority: the leader's own log or a
//! follower, whichever was the last that was needed. What the others took beside that cost it nothing and is not
//! told. The leader asks followers ahead of an append to say how long their log's write took, so that a slow
//! device and a slow link can be told apart; the time of one who says nothing is told as nobody's.
//!
//! While nothing is traced each place where this is asked costs one comparison.

use super::group::Group;
use super::shared::Cx;
use crate::event::Effect;
use crate::log::RecordSeq;
use crate::mark;
use crate::planted::{Bug, Planted};
use basalt_wire::frame::Frame;
use basalt_wire::ids::{Address, GroupId, NodeId};
use basalt_wire::time::Time;
use basalt_wire::trace::{Stage, Trace, Watch, Watched};
use std::time::Duration;

/// Entries that are traced at a time, and such that are watched for leaders: the oldest gives way.
const TRACED_MAX: usize = 64;
/// What is older than that is not waited for any more.
const KEPT: Duration = Duration::from_secs(60);

/// An entry with a traced request in it, at the leader that proposed it.
#[derive(Debug)]
struct Entry {
    watch: Watch,
    /// Traced requests in it that are not answered.
    askers: usize,
    /// Voters that make a majority.
    majority: usize,
    proposed: Time,
    record: Option<RecordSeq>,
    submitted: Option<Time>,
    /// What followers said of their logs.
    told: Vec<(NodeId, Watched)>,
    /// Who had it for good and since when, in order: nobody stands for this node.
    held: Vec<(Option<NodeId>, Time)>,
    committed: Option<Time>,
    applied: Option<Time>,
}

/// An entry that a leader wants to know of, at a follower.
#[derive(Debug)]
struct Asked {
    watch: Watch,
    from: Address,
    arrived: Time,
    /// Whether the entry itself has arrived: on a slow link it comes long after the question.
    here: bool,
    record: Option<RecordSeq>,
    submitted: Option<Time>,
}

/// What is traced in a shard.
#[derive(Debug, Default)]
pub struct Traces {
    entries: Vec<Entry>,
    asked: Vec<Asked>,
}

/// When a request came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When it arrived.
    pub at: Time,
    /// When it was admitted: later, if others were to get their guaranteed minimum first.
    pub admitted: Time,
}

impl Arrival {
    /// Of one that is admitted at once.
    pub fn new(now: Time) -> Arrival {
        Arrival { at: now, admitted: now }
    }
}

/// A traced request at the leader, from its arrival to its answer.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// When it came.
    pub arrival: Arrival,
    /// Nanoseconds for which it waited for room.
    pub room: u64,
    /// When it is answered.
    pub until: Time,
}

impl Traces {
    /// Whether nothing is traced.
    #[inline(always)]
    pub fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.asked.is_empty()
    }

    /// An entry with so many traced requests in it is proposed.
    pub fn propose(&mut self, watch: Watch, askers: usize, majority: usize, now: Time) {
        self.entries.retain(|entry| now.since(entry.proposed) < KEPT);
        if self.entries.len() == TRACED_MAX {
            mark!("traced entry gave way");
            self.entries.remove(0);
        }
        self.entries.push(Entry {
            watch,
            askers,
            majority,
            proposed: now,
            record: None,
            submitted: None,
            told: Vec::new(),
            held: Vec::new(),
            committed: None,
            applied: None,
        });
    }

    /// A leader wants to know of an entry that is about to come.
    pub fn watch(&mut self, from: Address, watch: Watch, now: Time) {
        self.asked.retain(|asked| now.since(asked.arrived) < KEPT && asked.watch != watch);
        if self.asked.len() == TRACED_MAX {
            self.asked.remove(0);
        }
        self.asked.push(Asked {
            watch,
            from,
            arrived: now,
            here: false,
            record: None,
            submitted: None,
        });
    }

    /// Entries up to one arrived from a leader: until then they were on the link.
    pub fn arrived(&mut self, group: GroupId, last: u64, now: Time) {
        let this = |asked: &&mut Asked| {
            !asked.here && asked.watch.group == group && asked.watch.index.0 <= last
        };
        for asked in self.asked.iter_mut().filter(this) {
            (asked.arrived, asked.here) = (now, true);
        }
    }

    /// An entry was handed to the log.
    pub fn recorded(&mut self, watch: Watch, seq: RecordSeq) {
        for entry in self.entries.iter_mut().filter(|entry| entry.watch == watch) {
            entry.record = Some(seq);
        }
        for asked in self.asked.iter_mut().filter(|asked| asked.watch == watch) {
            asked.record = Some(seq);
        }
    }

    /// The log's write of a record begins.
    pub fn submitted(&mut self, seq: RecordSeq, now: Time) {
        for entry in self.entries.iter_mut().filter(|entry| entry.record == Some(seq)) {
            entry.submitted = Some(now);
        }
        for asked in self.asked.iter_mut().filter(|asked| asked.record == Some(seq)) {
            asked.submitted = Some(now);
        }
    }

    /// All records up to this are durable: leaders that asked are told, ahead of the acknowledgement.
    pub fn durable(&mut self, seq: RecordSeq, now: Time, out: &mut Vec<Effect>) {
        let is = |record: Option<RecordSeq>| record.is_some_and(|record| record <= seq);
        for entry in self.entries.iter_mut().filter(|entry| is(entry.record)) {
            entry.hold(None, now);
        }
        for asked in self.asked.extract_if(.., |asked| is(asked.record)) {
            let Some(submitted) = asked.submitted else { continue };
            let watched = Watched {
                watch: asked.watch,
                queue_nanos: nanos(asked.arrived, submitted),
                write_nanos: nanos(submitted, now),
            };
            out.push(Effect::Send { to: asked.from, frame: Frame::Watched(watched) });
        }
    }

    /// The traced ones among entries that are about to be sent.
    pub fn among(
        &self,
        group: GroupId,
        entries: &[raft::eraftpb::Entry],
    ) -> impl Iterator<Item = Watch> {
        let all = self.entries.iter().map(|entry| entry.watch);
        all.filter(move |watch| {
            let same =
                |e: &raft::eraftpb::Entry| (e.index, e.term) == (watch.index.0, watch.term.0);
            watch.group == group && entries.iter().any(same)
        })
    }

    /// A follower says how long its log's write of an entry took.
    pub fn told(&mut self, node: NodeId, watched: Watched) {
        let asked = |entry: &&mut Entry| entry.watch == watched.watch;
        if let Some(entry) = self.entries.iter_mut().find(asked)
            && entry.told.iter().all(|(known, _)| *known != node)
        {
            entry.told.push((node, watched));
        }
    }

    /// A voter holds everything up to an entry for good.
    pub fn acknowledged(&mut self, group: GroupId, node: NodeId, matched: u64, now: Time) {
        let done =
            |entry: &&mut Entry| entry.watch.group == group && entry.watch.index.0 <= matched;
        self.entries.iter_mut().filter(done).for_each(|entry| entry.hold(Some(node), now));
    }

    /// The leader knows that everything up to an entry is committed.
    pub fn committed(&mut self, group: GroupId, index: u64, now: Time) {
        let done = |entry: &&mut Entry| entry.watch.group == group && entry.watch.index.0 <= index;
        for entry in self.entries.iter_mut().filter(done) {
            entry.committed.get_or_insert(now);
        }
    }

    /// An entry is applied now.
    pub fn applied(&mut self, group: GroupId, index: u64, now: Time) {
        let this = |entry: &&mut Entry| entry.watch.group == group && entry.watch.index.0 == index;
        for entry in self.entries.iter_mut().filter(this) {
            entry.applied.get_or_insert(now);
        }
    }

    /// Where the time of a request went that is answered now.
    pub fn finish(
        &mut self,
        group: GroupId,
        (index, term): (u64, u64),
        span: Span,
        planted: Planted,
    ) -> Option<Box<Trace>> {
        let at = self.find(group, (index, term))?;
        let trace = self.entries[at].trace(span, planted);
        self.forget_at(at);
        Some(Box::new(trace))
    }

    /// A request is answered, and not because it was carried out.
    pub fn forget(&mut self, group: GroupId, entry: (u64, u64)) {
        if let Some(at) = self.find(group, entry) {
            self.forget_at(at);
        }
    }

    fn find(&self, group: GroupId, (index, term): (u64, u64)) -> Option<usize> {
        self.entries.iter().position(|entry| {
            let Watch { group: of, term: in_term, index: at } = entry.watch;
            (of, in_term.0, at.0) == (group, term, index)
        })
    }

    fn forget_at(&mut self, at: usize) {
        self.entries[at].askers -= 1;
        if self.entries[at].askers == 0 {
            self.entries.swap_remove(at);
        }
    }
}

impl Entry {
    /// Somebody has it for good. What comes after it was known to be committed was not waited for.
    fn hold(&mut self, node: Option<NodeId>, now: Time) {
        if self.committed.is_none() && self.held.iter().all(|(known, _)| *known != node) {
            self.held.push((node, now));
        }
    }

    fn trace(&self, span: Span, planted: Planted) -> Trace {
        let mut trace = Trace::default();
        let mut note = |stage, nanos: u64| {
            if nanos > 0 {
                trace.stages.push((stage, nanos));
            }
        };
        note(Stage::Admission, nanos(span.arrival.at, span.arrival.admitted));
        let before = nanos(span.arrival.admitted, self.proposed);
        let room = span.room.min(before);
        note(Stage::Batch, before - room);
        note(Stage::Room, room);
        let committed = self.committed.unwrap_or(span.until);
        let applied = self.applied.unwrap_or(span.until);
        let (follower, majority, held) = match self.held.get(self.majority - 1).copied() {
            Some((None, at)) => {
                let submitted = self.submitted.unwrap_or(self.proposed);
                note(Stage::LogQueue, nanos(self.proposed, submitted));
                note(Stage::LogWrite, nanos(submitted, at));
                (None, at, 0)
            }
            Some((Some(node), at)) => {
                let unsaid = self.note_follower(node, at, planted, &mut note);
                (Some(node), at, unsaid)
            }
            // Members changed meanwhile, or it was committed by what is not seen here.
            None => (None, committed, nanos(self.proposed, committed)),
        };
        note(Stage::Commit, nanos(majority, committed));
        note(Stage::Pages, nanos(committed, applied));
        note(Stage::Gate, nanos(applied, span.until));
        note(Stage::Other, held);
        trace.follower = follower;
        trace
    }

    /// The time until a follower's acknowledgement. Gives what cannot be told apart.
    fn note_follower(
        &self,
        node: NodeId,
        at: Time,
        planted: Planted,
        note: &mut impl FnMut(Stage, u64),
    ) -> u64 {
        let all = nanos(self.proposed, at);
        let Some((_, told)) = self.told.iter().find(|(teller, _)| *teller == node) else {
            mark!("follower that does not say how long its log took");
            return all;
        };
        let (mut queue, mut write) = (told.queue_nanos, told.write_nanos);
        if planted.is(Bug::FollowerTimeAsLink) {
            (queue, write) = (0, 0);
        }
        // What another machine says is not believed beyond what passed here.
        let queue = queue.min(all);
        let write = write.min(all - queue);
        note(Stage::FollowerLink, all - queue - write);
        note(Stage::FollowerQueue, queue);
        note(Stage::FollowerWrite, write);
        0
    }
}

fn nanos(from: Time, to: Time) -> u64 {
    to.0.saturating_sub(from.0)
}

impl Group {
    /// Asks a follower to say how long its log takes for the traced ones of these entries.
    pub(super) fn ask_to_watch(
        &self,
        cx: &mut Cx<'_>,
        to: Address,
        entries: &[raft::eraftpb::Entry],
    ) {
        let watches: Vec<Watch> = cx.shared.traces.among(self.id, entries).collect();
        watches.into_iter().for_each(|watch| cx.send(to, Frame::Watch(watch)));
    }

    /// A peer's answer was taken: notes what it holds, if it votes.
    pub(super) fn trace_acknowledged(&self, cx: &mut Cx<'_>, node: NodeId) {
        let progress = self.raft.as_ref().and_then(|raft| raft.raft.prs().get(u64::from(node.0)));
        if let Some(progress) = progress.filter(|_| self.leads() && self.members.is_voter(node)) {
            cx.shared.traces.acknowledged(self.id, node, progress.matched, cx.now);
        }
    }
}

/// The trace of a read that is answered: what it waited for tables, and for the device.
pub fn read_trace((arrival, began): (Arrival, Time), now: Time) -> Box<Trace> {
    let stages = [
        (Stage::Admission, nanos(arrival.at, arrival.admitted)),
        (Stage::Pages, nanos(arrival.admitted, began)),
        (Stage::DeviceRead, nanos(began, now)),
    ];
    let stages = stages.into_iter().filter(|(_, nanos)| *nanos > 0).collect();
    Box::new(Trace { stages, follower: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_wire::ids::{LogIndex, ShardId, Term};

    const GROUP: GroupId = GroupId(3);
    const ARRIVAL: Arrival = Arrival { at: Time(10), admitted: Time(13) };
    const SPAN: Span = Span { arrival: ARRIVAL, room: 5, until: Time(1_000) };

    fn watch(index: u64) -> Watch {
        Watch { group: GROUP, term: Term(2), index: LogIndex(index) }
    }

    /// An entry that arrived at 10, was proposed at 30, submitted at 40.
    fn proposed() -> Traces {
        let mut traces = Traces::default();
        assert!(traces.is_idle());
        traces.propose(watch(7), 1, 2, Time(30));
        traces.recorded(watch(7), RecordSeq(5));
        traces.submitted(RecordSeq(5), Time(40));
        traces
    }

    fn finish(mut traces: Traces, planted: Planted) -> Trace {
        let trace = traces.finish(GROUP, (7, 2), SPAN, planted).expect("it is traced");
        assert!(traces.is_idle());
        assert_eq!(trace.total(), 990, "{trace:?}");
        assert!(trace.stages.is_sorted_by_key(|(stage, _)| *stage), "{trace:?}");
        *trace
    }

    fn told(queue_nanos: u64, write_nanos: u64) -> Watched {
        Watched { watch: watch(7), queue_nanos, write_nanos }
    }

    #[test]
    fn the_last_of_the_majority_has_the_time() {
        let mut traces = proposed();
        traces.acknowledged(GROUP, NodeId(2), 6, Time(50));
        traces.acknowledged(GROUP, NodeId(2), 7, Time(60));
        traces.durable(RecordSeq(4), Time(70), &mut Vec::new());
        traces.durable(RecordSeq(5), Time(100), &mut Vec::new());
        traces.committed(GROUP, 9, Time(110));
        traces.acknowledged(GROUP, NodeId(3), 7, Time(900));
        traces.applied(GROUP, 7, Time(400));
        let trace = finish(traces, Planted::NONE);
        let want = [
            (Stage::Admission, 3),
            (Stage::Batch, 12),
            (Stage::Room, 5),
            (Stage::LogQueue, 10),
            (Stage::LogWrite, 60),
            (Stage::Commit, 10),
            (Stage::Pages, 290),
            (Stage::Gate, 600),
        ];
        assert_eq!((trace.stages.as_slice(), trace.follower), (&want[..], None));
    }

    #[test]
    fn a_follower_is_split_as_far_as_it_says_and_is_believed() {
        let by_follower = |said: Option<Watched>| {
            let mut traces = proposed();
            traces.durable(RecordSeq(5), Time(50), &mut Vec::new());
            said.into_iter().for_each(|said| traces.told(NodeId(2), said));
            traces.acknowledged(GROUP, NodeId(2), 7, Time(530));
            traces.committed(GROUP, 7, Time(530));
            traces.applied(GROUP, 7, Time(1_000));
            finish(traces, Planted::NONE)
        };
        let of = |trace: &Trace, stage| {
            trace.stages.iter().find(|(s, _)| *s == stage).map_or(0, |(_, nanos)| *nanos)
        };
        let trace = by_follower(Some(told(100, 300)));
        assert_eq!(trace.follower, Some(NodeId(2)));
        let parts = [Stage::FollowerLink, Stage::FollowerQueue, Stage::FollowerWrite];
        assert_eq!(parts.map(|stage| of(&trace, stage)), [100, 100, 300]);
        let trace = by_follower(Some(told(u64::MAX, u64::MAX)));
        assert_eq!(parts.map(|stage| of(&trace, stage)), [0, 500, 0]);
        let trace = by_follower(None);
        assert_eq!(of(&trace, Stage::Other), 500);
    }

    #[test]
    fn a_follower_tells_its_leader_when_it_is_durable() {
        let mut traces = Traces::default();
        let from = Address { node: NodeId(1), shard: ShardId(0) };
        traces.watch(from, watch(7), Time(10));
        traces.watch(from, watch(7), Time(12));
        traces.arrived(GROUP, 6, Time(15));
        traces.arrived(GROUP, 8, Time(20));
        traces.arrived(GROUP, 9, Time(30));
        traces.recorded(watch(7), RecordSeq(5));
        traces.submitted(RecordSeq(5), Time(45));
        let mut out = Vec::new();
        traces.durable(RecordSeq(5), Time(145), &mut out);
        let [Effect::Send { to, frame: Frame::Watched(watched) }] = &out[..] else {
            panic!("{out:?}")
        };
        assert_eq!((*to, *watched), (from, told(25, 100)));
        assert!(traces.is_idle());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut traces = Traces::default();
        let from = Address { node: NodeId(1), shard: ShardId(0) };
        for index in 0..1_000 {
            traces.propose(watch(index), 1, 2, Time(index));
            traces.watch(from, watch(index), Time(index));
        }
        assert_eq!((traces.entries.len(), traces.asked.len()), (TRACED_MAX, TRACED_MAX));
        assert!(traces.finish(GROUP, (3, 2), SPAN, Planted::NONE).is_none());
        traces.propose(watch(1), 1, 2, Time::ZERO + KEPT * 2);
        assert_eq!(traces.entries.len(), 1);
    }
}
