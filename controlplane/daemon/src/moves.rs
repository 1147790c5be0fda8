//! Groups that move from node to node, and members that leave.
//!
//! The records say where each group is to be. The node that leads the metadata group asks all members what they
//! hold, states to them what is missing, writes down what is done, and begins again, until the records are true.
//! It remembers nothing that counts: whoever leads next goes on from the records and the reports. As long as
//! nothing moves nobody is asked, but for a look now and then after nodes that were away and hold what they
//! should not.
//!
//! * `plan`: what is to be stated, as a function of records and reports;
//! * `replica`: the node's side of a statement.

mod plan;
mod replica;
#[cfg(test)]
mod tests;

pub(crate) use replica::take;

use self::plan::{GroupSteps, Reports, Statement};
use crate::engine::Engine;
use crate::placement;
use crate::reconcile::done;
use crate::status;
use crate::works;
use basalt_api::dial;
use basalt_api::v1::{ClusterSpec, Member, StateReplicaRequest};
use basalt_core::shard::Phase;
use basalt_meta::planner::{self, Move, Outlook};
use basalt_meta::{Op, RemoveMember, Shared, layout};
use basalt_telemetry::context::within;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// Groups that move at a time: so many fill a link, and leave the foreground its part.
pub(crate) const IN_FLIGHT: usize = 4;
/// How long a node may take to take a statement; one that takes longer hears it again.
const STATE: Duration = Duration::from_millis(1500);
/// From the start of a pass to the start of the next while there is progress.
const PASS: Duration = Duration::from_millis(100);
/// The most that it becomes while there is none.
const PASS_MAX: Duration = Duration::from_secs(1);
/// From one look after replicas that should not be there to the next.
const SWEEP: Duration = Duration::from_secs(30);

/// Runs until the engine is gone.
pub(crate) async fn run(weak: Weak<Engine>) {
    let mut driver = Driver::new(Instant::now());
    loop {
        let Some(engine) = weak.upgrade() else { return };
        let (mut changes, mut elections) = (engine.metadata.changes(), engine.metadata.elections());
        changes.mark_unchanged();
        elections.mark_unchanged();
        let due = driver.turn(&engine).await;
        drop(engine);
        tokio::select! {
            _ = changes.changed() => {}
            _ = elections.changed() => {}
            () = sleep_until(due) => {}
        }
    }
}

/// What this process did last. Nothing of it is needed but to pace itself.
struct Driver {
    /// The cluster's record at the last turn, and when to look again as long as it stays what it is.
    seen: Option<(Shared<ClusterSpec>, Instant)>,
    last: Vec<GroupSteps>,
    /// What nodes reported last; nothing before anybody was asked.
    outlook: Option<Outlook>,
    /// Groups that move, as parts of why they do.
    spans: BTreeMap<u32, Span>,
    pause: Duration,
    /// When the next pass may begin.
    next: Instant,
    swept: Instant,
}

impl Driver {
    fn new(now: Instant) -> Driver {
        let (last, spans) = (Vec::new(), BTreeMap::new());
        Driver { seen: None, last, outlook: None, spans, pause: PASS, next: now, swept: now }
    }

    /// Does what is due, and says when to look again if nothing changes.
    async fn turn(&mut self, engine: &Arc<Engine>) -> Instant {
        let now = Instant::now();
        let spec = engine.metadata.look(|state| state.cluster_record().cloned());
        let Some(spec) = spec.filter(|_| engine.metadata.leads()) else {
            self.seen = None;
            self.last.clear();
            self.spans.clear();
            self.outlook = None;
            return now + SWEEP;
        };
        // Most changes are of volumes.
        if let Some((_, due)) =
            self.seen.as_ref().filter(|(seen, due)| seen.is_same(&spec) && *due > now)
        {
            return *due;
        }
        let due = self.turn_of(engine, &spec, now).await;
        self.seen = Some((spec, due));
        due
    }

    async fn turn_of(&mut self, engine: &Arc<Engine>, spec: &ClusterSpec, now: Instant) -> Instant {
        let due = match !self.last.is_empty() || self.is_moving(spec) {
            true => self.next,
            // A cluster whose groups never moved has nothing in the wrong place, and one of so few nodes
            // nowhere else to put it.
            false if spec.placements.is_empty() && spec.members.len() <= layout::REPLICAS => {
                now + SWEEP
            }
            false => self.swept + SWEEP,
        };
        if due > now {
            return due;
        }
        self.swept = now;
        self.note_moves(engine, spec);
        let (steps, outlook) = pass(engine, spec, (&self.spans, &self.last)).await;
        self.outlook = Some(outlook);
        let same = steps.iter().map(GroupSteps::shape).eq(self.last.iter().map(GroupSteps::shape));
        self.pause = if same { (self.pause * 2).min(PASS_MAX) } else { PASS };
        self.last = steps;
        self.next = now + self.pause;
        self.next
    }

    /// Begins the spans of groups that move since the last look, and ends those of the others.
    fn note_moves(&mut self, engine: &Engine, spec: &ClusterSpec) {
        let moving = |group: u32| layout::placement_of(spec, group).moving;
        self.spans.retain(|group, _| moving(*group));
        for group in (0..spec.group_count).chain([layout::METADATA_GROUP]) {
            if moving(group) {
                self.spans.entry(group).or_insert_with(|| span_of(engine, spec, group));
            }
        }
    }

    /// Whether the records ask for something that may not be so yet, and that does not wait for a node that is
    /// away, as far as it was told when it asked last.
    fn is_moving(&self, spec: &ClusterSpec) -> bool {
        let outlook = self.outlook.clone().unwrap_or_else(|| Outlook::hopeful(spec));
        let mut placements = spec.placements.iter().chain(&spec.metadata_placement);
        placements.any(|placement| placement.moving)
            || spec.members.iter().any(|member| member.leaving)
            || !planner::next_moves(spec, &outlook, IN_FLIGHT).is_empty()
    }
}

/// Asks everybody, and does what there is to do now. Tells what there was to do, and what it was told.
async fn pass(
    engine: &Arc<Engine>,
    spec: &ClusterSpec,
    (spans, last): (&BTreeMap<u32, Span>, &[GroupSteps]),
) -> (Vec<GroupSteps>, Outlook) {
    let (reports, outlook) = reports(engine, spec).await;
    let steps = plan::steps(spec, &reports);
    let mut under_way = JoinSet::new();
    for group in steps.clone() {
        // What is stated again is no new part of it.
        let again = last.iter().any(|before| before.shape() == group.shape());
        let span = spans.get(&group.group).filter(|_| !again).cloned();
        let span = span.unwrap_or_else(Span::none);
        let carried = carry_out(engine.clone(), spec.members.clone(), group, again);
        under_way.spawn(carried.instrument(span));
    }
    while under_way.join_next().await.is_some() {}
    for node in plan::departed(spec) {
        tracing::info!(node, "holds nothing any more; it is removed");
        let op = Op::RemoveMember(RemoveMember { node });
        done(engine.metadata.change("", op).await, "removing a node");
    }
    for Move { to, why } in planner::next(spec, &outlook, IN_FLIGHT) {
        let why = placement::reason(spec, why);
        tracing::info!(group = to.group, voters = ?to.voters, learners = ?to.learners, "moves: {why}");
        done(engine.metadata.change("", Op::MoveGroup(to)).await, "having a group move");
    }
    (steps, outlook)
}

/// The span of a group's move: part of what is made of the node that it leaves because that is lost, drained or goes.
fn span_of(engine: &Engine, spec: &ClusterSpec, group: u32) -> Span {
    let placement = layout::placement_of(spec, group);
    let goes = |m: &&Member| {
        placement.former.contains(&m.node) && (m.evacuated || m.draining || m.leaving)
    };
    let left = spec.members.iter().find(goes).map(|m| m.name.clone());
    let why = left.and_then(|name| engine.metadata.work_of(&works::node(&name)));
    let span = tracing::info_span!(
        parent: None,
        "group.move",
        group,
        voters = ?placement.voters,
        former = ?placement.former,
        waits_for = "the new members to hold what the others do, and to vote",
        trace_id = Empty,
    );
    within(span, why)
}

/// What is to be planned with, as the members tell now.
pub(crate) async fn outlook(engine: &Arc<Engine>, spec: &ClusterSpec) -> Outlook {
    reports(engine, spec).await.1
}

/// What the members that work say that they hold, and what is to be planned with.
async fn reports(engine: &Arc<Engine>, spec: &ClusterSpec) -> (Reports, Outlook) {
    let mut asked = JoinSet::new();
    for member in spec.members.iter().cloned() {
        let engine = engine.clone();
        asked.spawn(async move { Some((member.node, replicas_at(&engine, &member).await?)) });
    }
    let (mut reports, mut outlook) = (Reports::new(), Outlook::default());
    while let Some(answer) = asked.join_next().await {
        if let Some((node, (replicas, capacity))) = answer.ok().flatten() {
            placement::note(&mut outlook, node, &replicas, capacity);
            reports.insert(node, replicas);
        }
    }
    (reports, outlook)
}

/// What a node holds, and how many bytes of data its device takes. A node whose shard is not open tells what it was
/// started with, which may not be what it holds.
async fn replicas_at(
    engine: &Arc<Engine>,
    member: &Member,
) -> Option<(Vec<basalt_api::v1::Replica>, u64)> {
    if member.node == engine.node.0 {
        let status = engine.status().await.ok()?;
        let shard = status.shard()?;
        let works = matches!(shard.phase, Phase::Running | Phase::Draining);
        return works.then(|| (status::replicas_of(shard), shard.space.capacity));
    }
    let report = status::ask(member).await.ok()?;
    let node = report.node.filter(status::works)?;
    Some((report.replicas, node.space.map_or(0, |space| space.capacity_bytes)))
}

/// Does what there is to do for a group; `again` if it was tried the last time, too.
async fn carry_out(engine: Arc<Engine>, members: Vec<Member>, steps: GroupSteps, again: bool) {
    if !state(&engine, &members, steps.join_statements(), again).await {
        return;
    }
    state(&engine, &members, steps.other_statements(), again).await;
    if let Some(settle) = steps.settle {
        tracing::info!(group = settle.group, voters = ?settle.voters, "has moved");
        let what = "writing down where a group is";
        done(engine.metadata.change("", Op::SettleGroup(settle)).await, what);
    }
}

/// States all at once; whether all was taken.
async fn state(
    engine: &Arc<Engine>,
    members: &[Member],
    statements: Vec<Statement>,
    again: bool,
) -> bool {
    let mut asked = JoinSet::new();
    for (node, group, what) in statements {
        let Some(member) = members.iter().find(|member| member.node == node).cloned() else {
            continue;
        };
        let cluster = engine.cluster();
        let request = StateReplicaRequest { cluster, group, what: Some(what) };
        asked.spawn(state_at(engine.clone(), member, request, again).in_current_span());
    }
    let mut all = true;
    while let Some(answer) = asked.join_next().await {
        all &= answer.unwrap_or(false);
    }
    all
}

async fn state_at(
    engine: Arc<Engine>,
    member: Member,
    request: StateReplicaRequest,
    again: bool,
) -> bool {
    let group = request.group;
    let taken = async {
        if member.node == engine.node.0 {
            return take(&engine, request).await;
        }
        dial::peer(&member.grpc_address, STATE)?.state_replica(request).await.map(drop)
    };
    let taken = timeout(STATE, taken).await;
    let taken = taken.unwrap_or_else(|_| Err(Status::deadline_exceeded("it takes too long")));
    if let Err(status) = &taken {
        let why = dial::plain(status);
        let node = &member.name;
        match again {
            false => tracing::info!(group, %node, "a statement was not taken yet: {why}"),
            // It was said when it was tried first.
            true => tracing::debug!(group, %node, "a statement was not taken yet: {why}"),
        }
    }
    taken.is_ok()
}
