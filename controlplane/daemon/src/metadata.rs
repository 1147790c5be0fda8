//! The node's mirror of the metadata group, and how changes get into it.
//!
//! Every node holds a replica of the metadata group. What it applies comes here as notices of the
//! reactor, in order, and makes the mirror. A change is an entry proposed to the leader: by this
//! node's own shard, or over gRPC if another node leads. An entry whose fate is not known is proposed
//! again under the same request id, which takes effect once. A linearizable read proposes a barrier
//! and reads the mirror when that is applied.

use crate::along::Along;
use crate::works::{self, Works};
use basalt_api::dial::Channel;
use basalt_api::error;
use basalt_api::v1::peer_client::PeerClient;
use basalt_api::v1::propose_response::Result as ProposeResult;
use basalt_api::v1::{ErrorReason, ProposeRequest, ProposeResponse};
use basalt_core::event::{Effect, Event, ProposeError};
use basalt_meta::feed::{Compacted, Feed, Key};
use basalt_meta::{Barrier, ENTRY_VERSION, Entry, MetaState, Op, Outcome, encode};
use basalt_node::Mailbox;
use basalt_telemetry::TraceContext;
use basalt_wire::ids::{GroupId, LogIndex, NodeId, Term};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tracing::{Instrument, Span};

/// How long a change may take before the caller hears that it did not come through.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long one proposal at one node may take.
const ATTEMPT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);
/// How long it is left to an election to bring a leader, before other nodes are asked for theirs.
const ELECTION: Duration = Duration::from_secs(2);
/// How long an entry that may wait does so, if nothing else is proposed.
const WAITS: Duration = Duration::from_millis(5);
/// Outcomes kept for those who wait for them.
const OUTCOMES_KEPT: usize = 4096;
/// Proposals that this node's shard may hold unanswered.
const PENDING_MAX: usize = 1024;

/// The leader of a group as this node's replica sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The leader, if there is one.
    pub node: Option<NodeId>,
    /// The replica's term.
    pub term: Term,
}

#[derive(Default)]
struct Mirror {
    state: MetaState,
    feed: Feed,
    outcomes: BTreeMap<u64, Outcome>,
    /// What changed the records, for those who go on with it.
    works: Works,
    /// Up to which entry the state is in the store, and what was applied behind that: commands, and their bytes.
    saved: u64,
    unsaved: (u64, usize),
    /// Commands that were told before a leader was known: those behind what the store held.
    replayed: u64,
}

/// A later state that the shard wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who should have it.
    pub from: Option<NodeId>,
    /// The first entry that would do.
    pub at_least: u64,
}

type Proposed = Result<LogIndex, ProposeError>;
type Waiter = oneshot::Sender<Proposed>;

/// When an entry is proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Now,
    /// If this node leads, with the next entry that is proposed here, ahead of that; after [`WAITS`] without it.
    Along,
}

/// The mirror of the metadata group.
pub struct Metadata {
    node: NodeId,
    cluster: u64,
    mirror: Mutex<Mirror>,
    applied: watch::Sender<u64>,
    leaders: Mutex<BTreeMap<GroupId, Leader>>,
    /// Counts changes of leaders.
    elections: watch::Sender<u64>,
    pending: Mutex<HashMap<u64, Waiter>>,
    /// Proposals on their way to the shard, by their tokens.
    along: Along<(u64, Bytes)>,
    next_token: AtomicU64,
    mailbox: OnceLock<Mailbox>,
    /// All nodes by their gRPC addresses.
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    /// A state that is to come from another node.
    wanted: watch::Sender<Option<Wanted>>,
}

/// How a node is called. Its connection stays: making one takes longer than a proposal.
#[derive(Clone)]
struct Peer {
    address: String,
    client: Result<PeerClient<Channel>, Status>,
}

impl Peer {
    fn at(address: String) -> Peer {
        let client = basalt_api::dial::peer(&address, ATTEMPT + PAUSE);
        Peer { address, client }
    }
}

impl Metadata {
    /// A mirror on `node` that begins with what the store holds.
    pub fn new(
        node: NodeId,
        cluster: u64,
        peers: BTreeMap<NodeId, String>,
        state: MetaState,
    ) -> Metadata {
        let saved = state.applied();
        Metadata {
            node,
            cluster,
            mirror: Mutex::new(Mirror {
                state,
                saved,
                feed: Feed::from(saved),
                ..Mirror::default()
            }),
            applied: watch::Sender::new(saved),
            leaders: Mutex::default(),
            elections: watch::Sender::new(0),
            pending: Mutex::default(),
            along: Along::default(),
            next_token: AtomicU64::new(1),
            mailbox: OnceLock::new(),
            peers: Mutex::new(peers.into_iter().map(|(node, at)| (node, Peer::at(at))).collect()),
            wanted: watch::Sender::new(None),
        }
    }

    /// Says where the node's shard is; once, when the reactor has started.
    pub fn connect(&self, mailbox: Mailbox) {
        assert!(self.mailbox.set(mailbox).is_ok(), "a mirror belongs to one reactor");
    }

    /// Replaces the addresses of the other nodes.
    pub fn set_peers(&self, peers: BTreeMap<NodeId, String>) {
        let mut known = lock(&self.peers);
        known.retain(|node, peer| peers.get(node) == Some(&peer.address));
        for (node, address) in peers {
            known.entry(node).or_insert_with(|| Peer::at(address));
        }
    }

    /// Takes a notice of the reactor.
    ///
    /// # Errors
    /// If a command is missing: then the mirror is none any more, and the process must end.
    pub fn notice(&self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Applied { index, command, .. } => self.apply(index.0, &command)?,
            Effect::FetchMetadata { from, at_least } => {
                let at_least = at_least.0;
                self.wanted.send_replace(Some(Wanted { from, at_least }));
            }
            Effect::Proposed { token, result } => {
                if let Some(waiter) = lock(&self.pending).remove(&token) {
                    // Whoever asked may have given up.
                    let _ = waiter.send(result);
                }
            }
            Effect::LeaderChanged { group, leader, term } => {
                lock(&self.leaders).insert(group, Leader { node: leader, term });
                self.elections.send_modify(|count| *count += 1);
            }
            _ => {}
        }
        Ok(())
    }

    fn apply(&self, index: u64, command: &Bytes) -> Result<(), String> {
        let old = self.leader(GroupId::METADATA).is_none();
        let mut mirror = lock(&self.mirror);
        let applied = mirror.state.applied();
        // A device that was opened again tells again what is not saved, and the state may have come from elsewhere.
        if index <= applied {
            return Ok(());
        }
        if index != applied + 1 {
            return Err(format!("entry {index} of the metadata group was told behind {applied}"));
        }
        mirror.replayed += u64::from(old);
        mirror.unsaved = (mirror.unsaved.0 + 1, mirror.unsaved.1 + command.len());
        let outcome = mirror.state.apply(index, command);
        let changed = mirror.state.take_changes();
        if let Some(context) = works::carried(command) {
            mirror.works.note(context, &works::subjects(&changed, &outcome));
        }
        mirror.feed.take(index, changed);
        mirror.outcomes.insert(index, outcome);
        while mirror.outcomes.len() > OUTCOMES_KEPT {
            mirror.outcomes.pop_first();
        }
        drop(mirror);
        self.applied.send_replace(index);
        Ok(())
    }

    /// The state as it is now.
    pub fn state(&self) -> MetaState {
        lock(&self.mirror).state.clone()
    }

    /// Commands that were applied behind the state in the store, and their bytes.
    pub fn unsaved(&self) -> (u64, usize) {
        lock(&self.mirror).unsaved
    }

    /// Up to which entry the state is in the store, and how many commands behind it were told at the start.
    pub fn kept(&self) -> (u64, u64) {
        let mirror = lock(&self.mirror);
        (mirror.saved, mirror.replayed)
    }

    /// A state is in the store, for good: the mirror's own, as it was a moment ago, or a later one, which it goes
    /// over to. The shard is told.
    pub fn saved(&self, state: MetaState) {
        let index = state.applied();
        let mut mirror = lock(&self.mirror);
        mirror.saved = mirror.saved.max(index);
        let behind = mirror.state.applied().saturating_sub(index);
        let bytes = if behind == 0 { 0 } else { mirror.unsaved.1 };
        mirror.unsaved = (behind, bytes);
        let later = index > mirror.state.applied();
        if later {
            mirror.state = state;
            // What changed on the way to it is not known: who watches looks at everything anew.
            mirror.feed = Feed::from(index);
        }
        drop(mirror);
        if later {
            self.applied.send_replace(index);
        }
        self.wanted
            .send_if_modified(|wanted| wanted.take_if(|wanted| wanted.at_least <= index).is_some());
        if let Some(mailbox) = self.mailbox.get() {
            mailbox.event(Event::MetadataSaved { index: LogIndex(index) });
        }
    }

    /// A state that is to come from another node, as far as the shard has said.
    pub fn wanted(&self) -> watch::Receiver<Option<Wanted>> {
        self.wanted.subscribe()
    }

    /// How the other nodes are called, a given one first.
    pub fn others(&self, first: Option<NodeId>) -> Vec<(NodeId, PeerClient<Channel>)> {
        let peers = lock(&self.peers);
        let others = peers.iter().filter(|(node, _)| **node != self.node);
        let clients = others.filter_map(|(node, peer)| Some((*node, peer.client.clone().ok()?)));
        let mut clients: Vec<_> = clients.collect();
        clients.sort_by_key(|(node, _)| Some(*node) != first);
        clients
    }

    /// Looks at the mirror as it is.
    pub fn look<T>(&self, look: impl FnOnce(&MetaState) -> T) -> T {
        look(&lock(&self.mirror).state)
    }

    /// The revision of the mirror, and the resources that changed in it after another one.
    ///
    /// # Errors
    /// If that is not known any more.
    pub fn changed_since(&self, revision: u64) -> Result<(u64, Vec<(u64, Key)>), Compacted> {
        let mirror = lock(&self.mirror);
        Ok((mirror.feed.latest(), mirror.feed.since(revision)?))
    }

    /// Waits until the mirror is as wanted, for so many milliseconds and not longer than a change may take.
    /// Says whether it is.
    pub async fn wait_for(&self, wait_ms: u32, mut wanted: impl FnMut(&MetaState) -> bool) -> bool {
        let mut changes = self.changes();
        let already = self.look(&mut wanted);
        if already || wait_ms == 0 {
            return already;
        }
        let reached = async { while changes.changed().await.is_ok() && !self.look(&mut wanted) {} };
        let patience = PATIENCE.min(Duration::from_millis(wait_ms.into()));
        timeout(patience, reached).await.is_ok()
    }

    /// What changed a record last, if that was part of a trace and this node applied it.
    pub(crate) fn work_of(&self, key: &Key) -> Option<TraceContext> {
        lock(&self.mirror).works.of(key)
    }

    /// Tells when the mirror changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Tells when a leader changes.
    pub fn elections(&self) -> watch::Receiver<u64> {
        self.elections.subscribe()
    }

    /// The leader of a group, as this node sees it.
    pub fn leader(&self, group: GroupId) -> Option<Leader> {
        lock(&self.leaders).get(&group).copied()
    }

    /// Whether this node leads the metadata group.
    pub fn leads(&self) -> bool {
        self.leader(GroupId::METADATA).is_some_and(|leader| leader.node == Some(self.node))
    }

    /// Waits until everything that was committed before the call is in the mirror, and returns the
    /// index up to which it is.
    ///
    /// # Errors
    /// If no leader could be reached in time.
    pub async fn barrier(&self) -> Result<u64, Status> {
        let entry = entry(String::new(), Op::Barrier(Barrier {}));
        self.commit(entry, When::Now).await.map(|(index, _)| index)
    }

    /// Makes a change and returns its outcome. Without a request id one is drawn.
    ///
    /// # Errors
    /// If it did not come through in time; it may still take effect.
    pub async fn change(&self, request_id: &str, op: Op) -> Result<Outcome, Status> {
        self.change_when(request_id, op, When::Now).await
    }

    /// Makes a change for which nobody waits, under a request id of its own: it may go along with the next one.
    /// Whatever is proposed or read after this was called, at any node, comes behind it.
    ///
    /// # Errors
    /// As those of [`Metadata::change`].
    pub(crate) async fn change_along(&self, op: Op) -> Result<Outcome, Status> {
        self.change_when("", op, When::Along).await
    }

    async fn change_when(&self, request_id: &str, op: Op, when: When) -> Result<Outcome, Status> {
        let request_id = match request_id {
            "" => basalt_api::random::request_id("drawn"),
            given => given.to_owned(),
        };
        let volume_key = self.look(|state| crate::keys::drawn(state, &op));
        let entry = Entry { volume_key, ..entry(request_id, op) };
        self.commit(entry, when).await.map(|(_, outcome)| outcome)
    }

    async fn commit(&self, mut entry: Entry, when: When) -> Result<(u64, Outcome), Status> {
        works::carry(&mut entry);
        let span = works::change_span(&entry);
        self.commit_within(entry, when).instrument(span).await
    }

    async fn commit_within(&self, entry: Entry, mut when: When) -> Result<(u64, Outcome), Status> {
        let bytes = Bytes::from(encode(&entry));
        let deadline = Instant::now() + PATIENCE;
        let mut unknown = false;
        let mut last = "no leader is known".to_owned();
        while Instant::now() < deadline {
            let patient = deadline.saturating_duration_since(Instant::now()) > PATIENCE - ELECTION;
            let proposed = works::propose_span(self.leader(GroupId::METADATA));
            match self.attempt(&bytes, when, patient).instrument(proposed).await {
                Attempt::Committed(index) => {
                    Span::current().record("entry", index);
                    let applied = works::apply_span(index);
                    if let Some(outcome) = self.outcome(index, deadline).instrument(applied).await {
                        return Ok((index, outcome));
                    }
                    unknown = true;
                    last = format!("this node has not caught up with entry {index}");
                    break;
                }
                Attempt::Unknown(why) => (unknown, last) = (true, why),
                Attempt::Nothing(why) => last = why,
            }
            when = When::Now;
            sleep(PAUSE).await;
        }
        Err(no_quorum(&last, unknown, &entry.request_id))
    }

    async fn attempt(&self, bytes: &Bytes, when: When, patient: bool) -> Attempt {
        match self.propose(bytes.clone(), when).await {
            Ok(index) => Attempt::Committed(index.0),
            Err(ProposeError::NotLeader(Some(leader))) if leader != self.node => {
                self.propose_at(leader, bytes).await
            }
            Err(ProposeError::NotLeader(_)) if patient => no_leader(),
            Err(ProposeError::NotLeader(_)) => self.propose_anywhere(bytes).await,
            Err(error @ ProposeError::Unknown) => Attempt::Unknown(error.to_string()),
            Err(error @ ProposeError::Unavailable) if patient => {
                Attempt::Nothing(error.to_string())
            }
            // A node that came late has no replica before the others know where it is.
            Err(ProposeError::Unavailable) => self.propose_anywhere(bytes).await,
        }
    }

    /// Proposes an encoded entry to this node's shard.
    ///
    /// # Errors
    /// As the shard says; a proposal without an answer counts as unknown.
    pub async fn propose_here(&self, command: Bytes) -> Result<LogIndex, ProposeError> {
        self.propose(command, When::Now).await
    }

    async fn propose(&self, command: Bytes, when: When) -> Result<LogIndex, ProposeError> {
        let Some(mailbox) = self.mailbox.get() else { return Err(ProposeError::Unavailable) };
        let send = |(token, command)| mailbox.event(Event::Propose { token, command });
        let (token, mut answer) = self.new_proposal()?;
        if when == When::Along && self.leads() {
            self.along.leave((token, command));
            if let Ok(answer) = timeout(WAITS, &mut answer).await {
                return answer.unwrap_or(Err(ProposeError::Unknown));
            }
            self.along.send(None, send);
        } else {
            self.along.send(Some((token, command)), send);
        }
        match timeout(ATTEMPT, answer).await {
            Ok(Ok(result)) => result,
            _ => {
                lock(&self.pending).remove(&token);
                Err(ProposeError::Unknown)
            }
        }
    }

    /// A token for a proposal, and where its answer comes.
    fn new_proposal(&self) -> Result<(u64, oneshot::Receiver<Proposed>), ProposeError> {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let (waiter, answer) = oneshot::channel();
        let mut pending = lock(&self.pending);
        if pending.len() >= PENDING_MAX {
            return Err(ProposeError::Unavailable);
        }
        pending.insert(token, waiter);
        Ok((token, answer))
    }

    async fn propose_at(&self, node: NodeId, bytes: &Bytes) -> Attempt {
        let Some(peer) = lock(&self.peers).get(&node).cloned() else {
            return Attempt::Nothing(format!("the leader, node {node}, has no address"));
        };
        propose_to(node, peer, self.cluster, bytes).await
    }

    /// Proposes at all other nodes: one of them may lead and not reach this one, such as after this
    /// one's data path got another address. More than one commit does no harm, as for a repetition.
    async fn propose_anywhere(&self, bytes: &Bytes) -> Attempt {
        let mut asked = JoinSet::new();
        for (node, peer) in lock(&self.peers).clone() {
            if node != self.node {
                let (cluster, bytes) = (self.cluster, bytes.clone());
                let asking = async move { propose_to(node, peer, cluster, &bytes).await };
                asked.spawn(asking.in_current_span());
            }
        }
        let mut result = no_leader();
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Attempt::Committed(index)) => return Attempt::Committed(index),
                Ok(unknown @ Attempt::Unknown(_)) => result = unknown,
                Ok(Attempt::Nothing(_)) | Err(_) => {}
            }
        }
        result
    }

    async fn outcome(&self, index: u64, deadline: Instant) -> Option<Outcome> {
        let mut applied = self.applied.subscribe();
        let left = deadline.saturating_duration_since(Instant::now());
        let reached = timeout(left, applied.wait_for(|at| *at >= index)).await;
        reached.ok()?.ok()?;
        lock(&self.mirror).outcomes.get(&index).cloned()
    }
}

/// What a change would come to in a state, which is left as it would be then.
pub fn rehearse(state: &mut MetaState, op: Op) -> Outcome {
    let volume_key = crate::keys::drawn(state, &op);
    let entry = Entry { volume_key, ..entry(String::new(), op) };
    state.apply(state.applied() + 1, &encode(&entry))
}

enum Attempt {
    Committed(u64),
    Unknown(String),
    Nothing(String),
}

fn no_leader() -> Attempt {
    Attempt::Nothing("no leader is known".to_owned())
}

async fn propose_to(node: NodeId, peer: Peer, cluster: u64, bytes: &Bytes) -> Attempt {
    let request = ProposeRequest { cluster, entry: bytes.to_vec() };
    let Peer { address, client } = peer;
    let answer = match client {
        Ok(mut client) => client.propose(request).await,
        Err(status) => return Attempt::Nothing(status.message().to_owned()),
    };
    match answer.map(tonic::Response::into_inner) {
        Ok(answer) => read_answer(&answer, node),
        Err(status) => Attempt::Unknown(format!(
            "node {node} at {address} does not answer: {}",
            basalt_api::dial::plain(&status)
        )),
    }
}

fn read_answer(answer: &ProposeResponse, leader: NodeId) -> Attempt {
    match answer.result() {
        ProposeResult::Committed => Attempt::Committed(answer.index),
        ProposeResult::NotLeader => {
            Attempt::Nothing(format!("node {leader} does not lead any more"))
        }
        ProposeResult::Unavailable => Attempt::Nothing(format!("node {leader} is not ready")),
        ProposeResult::Unknown | ProposeResult::Unspecified => {
            Attempt::Unknown(format!("node {leader} lost its place with the change under way"))
        }
    }
}

fn no_quorum(last: &str, unknown: bool, request_id: &str) -> Status {
    let fate = match (unknown, request_id) {
        (_, "") => "nothing was changed".to_owned(),
        (false, _) => "nothing was changed; ask again".to_owned(),
        (true, id) => format!(
            "whether the change takes effect is not known; ask again with the request id '{id}', \
             under which it takes effect once"
        ),
    };
    let message = format!(
        "the metadata group did not answer within {} s ({last}); {fate}. 'basalt cluster status' \
         tells which nodes are missing",
        PATIENCE.as_secs()
    );
    error::status(ErrorReason::NoQuorum, message, &[("request_id", request_id.to_owned())])
}

fn entry(request_id: String, op: Op) -> Entry {
    let (version, now_ms) = (ENTRY_VERSION, now_ms());
    Entry { version, request_id, now_ms, op: Some(op), ..Entry::default() }
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic ends the process, so a poisoned lock is only seen on the way out.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
