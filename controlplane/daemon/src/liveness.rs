//! Who lives. The node that leads the metadata group asks all members for a sign of life all the time, looks at its
//! links to them, and has written down what it makes of that when it changes; see [`basalt_meta::liveness`]. Nothing
//! that it hears is remembered beyond its term.

use crate::engine::{Engine, address_of};
use crate::metadata::now_ms;
use crate::status::failed_of;
use crate::works;
use basalt_api::dial;
use basalt_api::dial::Channel;
use basalt_api::v1::peer_client::PeerClient;
use basalt_api::v1::{BeatRequest, BeatResponse, ClusterSpec, HostSession, MemberState, Node};
use basalt_meta::hosts::Hosts;
use basalt_meta::liveness::{Liveness, Sign, Thresholds};
use basalt_meta::{ENTRY_VERSION, Entry, Op, healing};
use basalt_telemetry::context::within;
use basalt_wire::ids::{GroupId, Term};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Status;
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// How long a node may take to give a sign of life before it is asked again.
const BEAT: Duration = Duration::from_millis(1500);
/// The longest and the shortest time from one look to the next.
const TURN_MAX: Duration = Duration::from_secs(1);
const TURN_MIN: Duration = Duration::from_millis(100);

/// Runs until the engine is gone.
pub(crate) async fn run(weak: Weak<Engine>) {
    let began = Instant::now();
    let mut watch: Option<Watch> = None;
    loop {
        let Some(engine) = weak.upgrade() else { return };
        let mut elections = engine.metadata.elections();
        elections.mark_unchanged();
        let spec = engine.metadata.look(|state| state.cluster().cloned());
        let term = engine.metadata.leader(GroupId::METADATA).map(|leader| leader.term);
        let (Some(spec), Some(term), true) = (spec, term, engine.metadata.leads()) else {
            watch = None;
            drop(engine);
            let wake = Instant::now() + TURN_MAX;
            tokio::select! {
                _ = elections.changed() => {}
                () = sleep_until(wake) => {}
            }
            continue;
        };
        if watch.as_ref().is_none_or(|watch| watch.term != term) {
            watch = Some(Watch::new(&engine, term, began));
        }
        let watch = watch.as_mut().expect("just made");
        watch.turn(&engine, spec).await;
    }
}

/// What a node says to show that it lives.
///
/// # Errors
/// If its reactor does not answer: then it shows nothing.
pub(crate) async fn beat(engine: &Arc<Engine>) -> Result<BeatResponse, Status> {
    let status = engine.status().await.map_err(|e| Status::unavailable(format!("{e:#}")))?;
    let failed = failed_of(&status).unwrap_or_default();
    Ok(BeatResponse { node: engine.node.0, failed, sessions: engine.hosts.list() })
}

/// Says of a node what the record says.
pub(crate) fn show(node: &mut Node, member: &basalt_api::v1::Member) {
    node.member_state = match member.state() {
        MemberState::Unspecified => MemberState::Up.into(),
        state => state.into(),
    };
    node.member_state_since_ms = member.state_since_ms;
    node.member_state_why.clone_from(&member.state_why);
    node.evacuated = member.evacuated;
    node.location.clone_from(&member.location);
    node.stopping_since_ms = member.stopping_since_ms;
}

/// What an entry is about: there is one at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Node(u32),
    Volume(String),
}

type Answer = (u32, Option<BeatResponse>);

/// What the leader of one term hears.
struct Watch {
    term: Term,
    liveness: Liveness,
    hosts: Hosts,
    thresholds: Thresholds,
    /// When time began for [`Liveness`].
    origin: Instant,
    /// Who is asked, and how: a connection stays.
    clients: BTreeMap<u32, (String, PeerClient<Channel>)>,
    asked: JoinSet<Answer>,
    awaited: BTreeSet<u32>,
    /// Entries that were proposed and are not committed yet.
    told: JoinSet<About>,
    telling: BTreeSet<About>,
    /// Whether too few are heard to declare anybody dead.
    blind: bool,
}

impl Watch {
    fn new(engine: &Engine, term: Term, origin: Instant) -> Watch {
        let thresholds = engine.options.healing.thresholds();
        Watch {
            term,
            liveness: Liveness::new(engine.node.0, thresholds, origin.elapsed()),
            hosts: Hosts::new(thresholds.down, origin.elapsed()),
            thresholds,
            origin,
            clients: BTreeMap::new(),
            asked: JoinSet::new(),
            awaited: BTreeSet::new(),
            told: JoinSet::new(),
            telling: BTreeSet::new(),
            blind: false,
        }
    }

    /// Listens for a while, then says what it makes of that.
    async fn turn(&mut self, engine: &Arc<Engine>, spec: ClusterSpec) {
        let end = Instant::now() + (self.thresholds.suspect / 3).clamp(TURN_MIN, TURN_MAX);
        self.ask(engine, &spec);
        self.look(engine, &spec).await;
        loop {
            tokio::select! {
                Some(answer) = self.asked.join_next(), if !self.asked.is_empty() => {
                    self.heard(answer.ok());
                }
                Some(told) = self.told.join_next(), if !self.told.is_empty() => {
                    // One that broke off is proposed again in the node's next turn.
                    match told {
                        Ok(about) => drop(self.telling.remove(&about)),
                        Err(_) => self.telling.clear(),
                    }
                }
                () = sleep_until(end) => break,
            }
        }
        // What changed meanwhile counts.
        let spec = engine.metadata.look(|state| state.cluster().cloned()).unwrap_or(spec);
        let now = self.origin.elapsed();
        let verdicts = self.liveness.judge(now, &spec);
        self.warn_if_blind(now, &spec);
        for verdict in verdicts {
            self.tell(engine, About::Node(verdict.node), Op::JudgeMember(verdict));
        }
        let sees_most = !self.blind;
        let hosts = engine.metadata.look(|state| self.hosts.judge(now, state, sees_most));
        for verdict in hosts {
            self.tell(engine, About::Volume(verdict.id.clone()), Op::JudgeAttachment(verdict));
        }
        let after = engine.options.healing.rebuild_after;
        if !after.is_zero() {
            for lost in self.liveness.give_up(now, now_ms(), &spec, after) {
                self.tell(engine, About::Node(lost.node), Op::EvacuateMember(lost));
            }
        }
    }

    /// Asks everybody who has answered before.
    fn ask(&mut self, engine: &Engine, spec: &ClusterSpec) {
        self.clients.retain(|node, _| spec.members.iter().any(|m| m.node == *node));
        for member in &spec.members {
            if member.node == engine.node.0 || !self.awaited.insert(member.node) {
                continue;
            }
            let (node, address) = (member.node, &member.grpc_address);
            if self.clients.get(&node).is_none_or(|(known, _)| known != address) {
                match dial::peer(address, BEAT) {
                    Ok(client) => drop(self.clients.insert(node, (address.clone(), client))),
                    Err(_) => drop(self.clients.remove(&node)),
                }
            }
            let client = self.clients.get(&node).map(|(_, client)| client.clone());
            let cluster = spec.id;
            self.asked.spawn(async move {
                let Some(mut client) = client else { return (node, None) };
                let answer = timeout(BEAT, client.beat(BeatRequest { cluster })).await;
                let answer = answer.ok().and_then(Result::ok).map(tonic::Response::into_inner);
                (node, answer.filter(|answer| answer.node == node))
            });
        }
    }

    fn heard(&mut self, answer: Option<Answer>) {
        let Some((node, answer)) = answer else { return self.awaited.clear() };
        self.awaited.remove(&node);
        if let Some(answer) = answer {
            let failed = Some(answer.failed).filter(|why| !why.is_empty());
            self.liveness.hear(node, self.origin.elapsed(), Sign::Api(failed));
            self.hear_hosts(answer.sessions);
        }
    }

    /// A node, this one or another, tells what it has heard of hosts.
    fn hear_hosts(&mut self, sessions: Vec<HostSession>) {
        let now = self.origin.elapsed();
        for session in sessions {
            let at = now.saturating_sub(Duration::from_millis(session.age_ms));
            self.hosts.hear(&session.volume, session.epoch, at);
        }
    }

    /// Looks at this node's own links and device.
    async fn look(&mut self, engine: &Arc<Engine>, spec: &ClusterSpec) {
        let Ok(status) = engine.status().await else { return };
        let now = self.origin.elapsed();
        self.liveness.hear(engine.node.0, now, Sign::Api(failed_of(&status)));
        self.hear_hosts(engine.hosts.list());
        for member in &spec.members {
            let to = address_of(member.node);
            if status.links.iter().any(|link| link.up && link.to == to) {
                self.liveness.hear(member.node, now, Sign::Path);
            }
        }
    }

    fn warn_if_blind(&mut self, now: Duration, spec: &ClusterSpec) {
        let blind = !self.liveness.sees_most(now, spec);
        if blind && !self.blind {
            tracing::warn!(
                "this node hears less than a majority of the nodes, and declares none of them dead"
            );
        }
        self.blind = blind;
    }

    /// Has something written down, by this node alone: should it lead no more, another one judges.
    fn tell(&mut self, engine: &Arc<Engine>, about: About, op: Op) {
        if !self.telling.insert(about.clone()) {
            return;
        }
        let span = span_of(engine, &op);
        let mut entry =
            Entry { version: ENTRY_VERSION, now_ms: now_ms(), op: Some(op), ..Entry::default() };
        span.in_scope(|| works::carry(&mut entry));
        let (metadata, command) =
            (engine.metadata.clone(), Bytes::from(basalt_meta::encode(&entry)));
        let telling = async move {
            match metadata.propose_here(command).await {
                Ok(_) => log(entry.op.as_ref()),
                Err(error) => tracing::warn!("{about:?}: not written down yet: {error}"),
            }
            about
        };
        self.told.spawn(telling.instrument(span));
    }
}

/// The span of a verdict. What is said of a node that was well begins a trace; what is made of it later is part of
/// that.
fn span_of(engine: &Engine, op: &Op) -> Span {
    let (node, name, why) = match op {
        Op::JudgeMember(judge) => (judge.node, judge.state().as_str_name(), judge.why.as_str()),
        Op::EvacuateMember(lost) => (lost.node, "GIVEN_UP", "lost for long"),
        _ => return Span::none(),
    };
    let name = name.trim_start_matches("MEMBER_STATE_").to_ascii_lowercase();
    let span = tracing::info_span!(
        parent: None,
        "node.judge",
        otel.name = format!("node {name}"),
        node,
        why,
        trace_id = Empty,
    );
    let before = engine.metadata.look(|state| {
        let spec = state.cluster()?;
        let member = spec.members.iter().find(|m| m.node == node)?;
        (!healing::is_up(member)).then(|| member.name.clone())
    });
    within(span, before.and_then(|name| engine.metadata.work_of(&works::node(&name))))
}

fn log(op: Option<&Op>) {
    match op {
        Some(Op::JudgeMember(judge)) => {
            let (node, why) = (judge.node, &judge.why);
            match judge.state() {
                MemberState::Up => tracing::info!(node, "the node is up: {why}"),
                MemberState::Suspect => tracing::warn!(node, "the node is suspect: {why}"),
                MemberState::Failed => tracing::error!(node, "the node has failed: {why}"),
                _ => tracing::error!(node, "the node is down: {why}"),
            }
        }
        Some(Op::JudgeAttachment(judge)) => match judge.state() {
            MemberState::Down => {
                tracing::warn!(volume = %judge.id, "the host that has it is not heard any more");
            }
            _ => tracing::info!(volume = %judge.id, "the host that has it is heard"),
        },
        Some(Op::EvacuateMember(lost)) => {
            let node = lost.node;
            tracing::warn!(node, "given up for now: its groups are placed on other nodes");
        }
        _ => {}
    }
}
