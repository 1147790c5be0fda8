//! One replica's part in its group: its state, and the messages that reach it.

use super::commands::Commands;
use super::comparing::Comparing;
use super::convert::{self, Receiver};
use super::election::Election;
use super::gates::Gates;
use super::health::{Impaired, OpenState};
use super::members::{addresses_of, check_content};
use super::mending::Mending;
use super::outbox::Outbox;
use super::propose::{Asker, Pending, Proposal};
use super::readmission::Barrier;
use super::ready::Held;
use super::recovering::Recovering;
use super::resync::{Help, Incoming, Session};
use super::shared::{Cx, Room};
use super::table::{Content, ENTRY_SIZE, Table, weight};
use super::waits::Waits;
use crate::config::GroupConfig;
use crate::log::{HardState, RecordSeq};
use crate::mark;
use crate::planted::Bug;
use crate::replica::Replica;
use crate::shard::{GroupRole, GroupStatus};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::moved::decode_moved;
use basalt_wire::frame::RaftMessage;
use basalt_wire::ids::{Address, Epoch, GroupId, Incarnation, LogIndex, NodeId, Term, VolumeId};
use basalt_wire::membership::{ENTRY_KIND_MEMBERS, Membership};
use basalt_wire::time::Time;
use bytes::Bytes;
use raft::eraftpb::{self, MessageType};
use raft::{ProgressState, RawNode, StateRole};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Entries that one append message carries at most.
const ENTRIES_PER_MESSAGE: u64 = 64;
/// Data of an entry that fits a batch's header in any case; no entry of ours has more.
const ENTRY_DATA_USUAL: usize = 1 << 20;
/// Data of an entry that is copied out of the memory that it was received in.
const COPIED_DATA_MAX: usize = 4 << 10;
/// Entries that are applied in one go.
const ENTRIES_PER_APPLY: u64 = 4096;

/// A replica's part in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// One replica of one group.
pub struct Group {
    /// The group.
    pub id: GroupId,
    /// Its position in the shard.
    pub slot: usize,
    /// Its volumes.
    pub replica: Replica,
    /// Whether it must be looked at when the turn ends.
    pub dirty: bool,
    /// Whether it sleeps: no ticks, no heartbeats.
    pub asleep: bool,
    /// Its members at its first entry.
    pub(super) founders: Membership,
    /// Its members as of what is applied.
    pub(super) members: Membership,
    /// The record by which the log knows of them, and whether it was durable when the last turn ended.
    pub(super) members_seq: RecordSeq,
    pub(super) members_durable: bool,
    /// Where the nodes are that were heard of.
    pub(super) addresses: BTreeMap<NodeId, Address>,
    /// It has no say in elections before its log goes so far.
    pub(super) since: (Term, LogIndex),
    /// See [`GroupConfig::begins`].
    pub(super) begins: (Term, LogIndex),
    /// Whether the replica was removed.
    pub(super) retired: bool,
    /// Whether it was removed before, and came back since the shard was opened.
    pub(super) returned: bool,
    /// Nothing while it opens, and after it broke or was removed.
    pub(super) raft: Option<RawNode<Table>>,
    pub(super) me: NodeId,
    /// Content of entries on their way through the library, by index and term.
    pub(super) staged: FxHashMap<(u64, u64), Content>,
    pub(super) staged_bytes: usize,
    pub(super) held: VecDeque<Held>,
    pub(super) last_seq: RecordSeq,
    /// The record that made the present term known.
    pub(super) term_seq: RecordSeq,
    pub(super) recorded: HardState,
    pub(super) inbox: VecDeque<Proposal>,
    /// Writes that were looked at and wait for room.
    pub(super) waiting: VecDeque<Proposal>,
    /// Bytes of payload in the inbox.
    pub(super) inbox_bytes: usize,
    pub(super) pending: VecDeque<Pending>,
    pub(super) gates: Gates,
    /// The tick at which what waits for a leader is given up.
    pub(super) patience: Option<u64>,
    pub(super) sessions: FxHashMap<VolumeId, Vec<(Epoch, Incarnation)>>,
    pub(super) outboxes: BTreeMap<NodeId, Outbox>,
    /// Followers whose devices do not take the clients' data now, or no more.
    pub(super) full: BTreeMap<NodeId, Room>,
    /// Until which tick a follower that was started over with is not sent to at once again.
    pub(super) starting_over: BTreeMap<NodeId, u64>,
    /// What a follower that lacks something has acknowledged, and at which tick that was news, or it
    /// was sent again what it lacks.
    pub(super) moved: BTreeMap<NodeId, (u64, u64)>,
    pub(super) election: Election,
    /// When followers are told of the commit index if no append has told them by then.
    pub(super) announce_at: Option<Time>,
    pub(super) impaired: Option<Impaired>,
    /// The number of the loss for which this replica is mute.
    pub(super) loss: u64,
    /// What this leader has committed without replicas whose votes may be lost.
    pub(super) barriers: BTreeMap<NodeId, Barrier>,
    pub(super) told: (Option<NodeId>, Role),
    pub(super) cached_seen: usize,
    /// The first run of entries that the store may hold, and the last entry that it knows.
    pub(super) stored: (u64, u64),
    /// The session by which this replica is brought up by pages.
    pub(super) session: Option<Session>,
    /// No new session before this tick.
    pub(super) session_after: u64,
    /// The volumes of the state that the library is about to go over to.
    pub(super) incoming: Incoming,
    /// The entry of the state that came in pages, until a checkpoint makes it durable.
    pub(super) limbo: Option<u64>,
    /// The sessions by which this leader brings others up.
    pub(super) helping: BTreeMap<NodeId, Help>,
    /// Whether a block that a follower needs is damaged here.
    pub(super) page_damage: bool,
    /// The entry for which leadership was left to others, because it is damaged here and a follower needs it.
    pub(super) left_for: BTreeMap<NodeId, u64>,
    pub(super) comparing: Comparing,
    pub(super) mending: Mending,
    pub(super) recovering: Recovering,
    /// The tick until which this leader holds that somebody needs pages.
    pub(super) needed_until: u64,
    /// Committed entries that are not applied, and what else waits for tables of pages.
    pub(super) waits: Waits,
    pub(super) commands: Commands,
}

impl Group {
    /// A replica before its log was replayed.
    pub fn new(config: &GroupConfig, slot: usize, cx: &Cx<'_>) -> Group {
        let founders = Membership::new(config.voters.clone(), Vec::new());
        let mut replica = Replica::new(cx.shared.planted);
        let ignored = cx.shared.planted.is(Bug::BeginningIgnored);
        let begins = if ignored { (Term(0), LogIndex(0)) } else { config.begins };
        if begins.1 > LogIndex(0) {
            replica.start_at(begins.1, &[]);
        }
        Group {
            id: config.id,
            slot,
            replica,
            dirty: false,
            asleep: false,
            members: founders.clone(),
            members_seq: RecordSeq(0),
            members_durable: true,
            addresses: addresses_of(&founders),
            founders,
            since: config.since,
            begins,
            retired: false,
            returned: false,
            raft: None,
            me: cx.shared.me.node,
            staged: FxHashMap::default(),
            staged_bytes: 0,
            held: VecDeque::new(),
            last_seq: RecordSeq(0),
            term_seq: RecordSeq(0),
            recorded: HardState::default(),
            inbox: VecDeque::new(),
            waiting: VecDeque::new(),
            inbox_bytes: 0,
            pending: VecDeque::new(),
            gates: Gates::default(),
            patience: None,
            sessions: FxHashMap::default(),
            outboxes: BTreeMap::new(),
            full: BTreeMap::new(),
            starting_over: BTreeMap::new(),
            moved: BTreeMap::new(),
            election: Election::default(),
            announce_at: None,
            impaired: None,
            loss: 0,
            barriers: BTreeMap::new(),
            told: (None, Role::Follower),
            cached_seen: 0,
            stored: (0, 0),
            session: None,
            session_after: 0,
            incoming: Incoming::default(),
            limbo: None,
            helping: BTreeMap::new(),
            page_damage: false,
            left_for: BTreeMap::new(),
            comparing: Comparing::default(),
            mending: Mending::default(),
            recovering: Recovering::default(),
            needed_until: 0,
            waits: Waits::default(),
            commands: Commands::default(),
        }
    }

    /// Starts Raft on what the log held, and applies what is known to be committed.
    pub fn open(&mut self, cx: &mut Cx<'_>, mut state: OpenState) {
        let timing = cx.shared.timing;
        let election_tick =
            (timing.election_ticks as usize).max(timing.heartbeat_ticks as usize + 1);
        let config = raft::Config {
            id: u64::from(self.me.0),
            election_tick,
            heartbeat_tick: timing.heartbeat_ticks.max(1) as usize,
            max_size_per_msg: ENTRIES_PER_MESSAGE * ENTRY_SIZE,
            max_committed_size_per_ready: ENTRIES_PER_APPLY * ENTRY_SIZE,
            max_inflight_msgs: cx.shared.limits.appends_in_flight.max(1),
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            // See `announce`.
            skip_bcast_commit: true,
            applied: self.replica.applied().0,
            ..Default::default()
        };
        let moves = state.take_moves();
        let (table, impaired) = state.finish(cx.shared.planted.is(Bug::AmnesiacVotes));
        self.recorded = table.hard_state();
        self.impaired = impaired;
        self.draw_loss(cx);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let made = catch_unwind(AssertUnwindSafe(|| RawNode::new(&config, table, &logger)));
        match made {
            Ok(Ok(raft)) => self.raft = Some(raft),
            Ok(Err(error)) => self.quarantine(cx, &error.to_string()),
            Err(_) => self.quarantine(cx, "the log's content contradicts itself"),
        }
        self.election.active_at = cx.now;
        self.begin_telling(cx);
        self.guard(cx, |group, cx| group.ready(cx));
        let moves =
            moves.into_iter().filter_map(|(data, at)| Some((decode_moved(&data).ok()?, at)));
        let committed = self.raft.as_ref().map_or(0, |raft| raft.raft.raft_log.committed);
        self.waits.replay(moves.collect(), committed);
        self.go_on_replaying(cx);
        if let Some(raft) = &mut self.raft {
            // Nothing of what was replayed is kept in memory but the part not applied yet.
            raft.mut_store().evict(self.replica.applied().0);
            let tail = self.replica.applied().0 + 1..=raft.store().last();
            cx.shared.cache_order.extend(tail.map(|index| (self.slot, index)));
        }
        self.forget_commands(cx);
        self.settle_cache(cx);
        self.report_damage(cx);
    }

    /// Runs a step of the library, or of ours that depends on it, and stops the group if it breaks.
    pub fn guard(&mut self, cx: &mut Cx<'_>, step: impl FnOnce(&mut Group, &mut Cx<'_>)) {
        if self.raft.is_none() {
            return;
        }
        let result = catch_unwind(AssertUnwindSafe(|| step(self, cx)));
        if let Err(panic) = result {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            self.quarantine(cx, text.unwrap_or("an invariant broke"));
        }
        self.dirty = true;
    }

    /// Stops the group for good; the others go on. What it applied can still be read.
    pub(super) fn quarantine(&mut self, cx: &mut Cx<'_>, why: &str) {
        self.raft = None;
        self.end_help(cx);
        self.end_session(cx);
        self.stop_mending();
        self.stop_fetch();
        self.outboxes.clear();
        self.staged.clear();
        self.held.clear();
        self.waits.stop();
        self.give_up(cx);
        cx.notice(true, format!("group {} was stopped: {why}", self.id));
    }

    /// Takes a message from a peer.
    pub fn message(&mut self, cx: &mut Cx<'_>, from: Address, message: RaftMessage) {
        if let Err(why) = self.take_message(cx, from, message) {
            mark!("message refused");
            cx.notice(false, format!("group {}: from node {}: {why}", self.id, from.node));
        }
    }

    fn take_message(
        &mut self,
        cx: &mut Cx<'_>,
        from: Address,
        message: RaftMessage,
    ) -> Result<(), &'static str> {
        if from.node == self.me || from.node != message.from || !self.hears_from(from) {
            return Err("the sender is not who it says");
        }
        let Some(raft) = &self.raft else { return Ok(()) };
        let receiver = Receiver {
            group: self.id,
            node: self.me,
            last: LogIndex(raft.raft.raft_log.last_index()),
        };
        let kind = convert::check(&message, receiver)?;
        let leads = matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat);
        let other = self.leader().is_some_and(|leader| leader != from.node);
        if leads && other && message.term == self.term() {
            return Err("another one leads in this term");
        }
        if self.is_mute() {
            return Ok(());
        }
        if let (Some(last), false) = (message.entries.last(), cx.shared.traces.is_idle()) {
            cx.shared.traces.arrived(self.id, last.index.0, cx.now);
        }
        let answer =
            matches!(kind, MessageType::MsgHeartbeatResponse | MessageType::MsgAppendResponse);
        if !answer {
            self.wake(cx);
        }
        if !self.may_take(cx, kind, &message) {
            return Ok(());
        }
        if cx.shared.read_only && self.would_record(kind, &message) {
            mark!("message that a full log can not take");
            self.learn_commit(cx, kind, &message);
            return Ok(());
        }
        if kind == MessageType::MsgAppend && self.awaits_restore(cx) {
            mark!("append to a replica that goes over to another state");
            return Ok(());
        }
        let mut library = convert::to_library(&message, kind);
        match kind {
            MessageType::MsgAppend => {
                let told = (message.term, message.index, message.log_term, message.commit);
                let taken = match self.stage(cx, message) {
                    Ok(taken) => taken,
                    Err(why) => {
                        self.learn(cx, told);
                        return Err(why);
                    }
                };
                let mut entries = library.take_entries().to_vec();
                entries.truncate(taken);
                library.set_entries(entries.into());
            }
            MessageType::MsgHeartbeat => {
                self.heard(message.term, message.commit.0, None);
                if library.commit > receiver.last.0 {
                    // A leader tells nobody of more than it was acknowledged.
                    self.lacks_acknowledged(cx, message.term, message.commit.0);
                    library.commit = receiver.last.0;
                }
            }
            MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse => {
                // What was under way when its link broke would stand for ever if it does not come back.
                if !cx.shared.down.contains(&from.node) {
                    self.note_room(from.node, message.priority);
                }
                if library.reject && !self.fit_rejection(cx, &mut library) {
                    return Ok(());
                }
                let beat = kind == MessageType::MsgHeartbeatResponse;
                if beat && self.only_alive(cx, &library) {
                    return Ok(());
                }
            }
            // The library asks for no votes before a change that is committed is applied, and does not come
            // back to it: the group would be without a leader until the hand-over is given up.
            MessageType::MsgTimeoutNow if !cx.shared.planted.is(Bug::HandOverIgnored) => {
                self.guard(cx, |group, cx| {
                    group.release(cx);
                    group.ready(cx);
                });
            }
            _ => {}
        }
        self.guard(cx, |group, _| {
            let raft = group.raft.as_mut().expect("checked by the guard");
            // An error means that the message does not fit the state any more, which is no harm.
            let _ = raft.step(library);
        });
        if !cx.shared.traces.is_idle() {
            self.trace_acknowledged(cx, from.node);
        }
        self.acknowledged(cx, from.node);
        // The first entry of a new leader is recorded while it leads: the next message may end that.
        let elected = self.leads() && self.told.1 != Role::Leader;
        if elected || self.staged_bytes > cx.shared.limits.batch_bytes {
            self.guard(cx, |group, cx| group.ready(cx));
        }
        Ok(())
    }

    /// What an append says of the commit index counts although its entries find no room: until what is held
    /// here is applied, no checkpoint can make room.
    fn learn_commit(&mut self, cx: &mut Cx<'_>, kind: MessageType, message: &RaftMessage) {
        if kind == MessageType::MsgAppend {
            self.learn(cx, (message.term, message.index, message.log_term, message.commit));
        }
    }

    fn learn(
        &mut self,
        cx: &mut Cx<'_>,
        (term, index, log_term, commit): (Term, LogIndex, Term, LogIndex),
    ) {
        self.guard(cx, |group, _| {
            let raft = &mut group.raft.as_mut().expect("seen by the guard").raft;
            let agrees = raft.raft_log.term(index.0).is_ok_and(|known| known == log_term.0);
            if raft.term == term.0 && raft.state == StateRole::Follower && agrees {
                mark!("commit index learnt without the entries");
                raft.raft_log.commit_to(commit.0.min(index.0));
            }
        });
    }

    /// Whether taking a message would change something that has to be recorded.
    fn would_record(&self, kind: MessageType, message: &RaftMessage) -> bool {
        let Some(raft) = &self.raft else { return true };
        let log = &raft.raft.raft_log;
        let vote = matches!(
            kind,
            MessageType::MsgRequestVote
                | MessageType::MsgRequestPreVote
                | MessageType::MsgTimeoutNow
                | MessageType::MsgRequestVoteResponse
                | MessageType::MsgRequestPreVoteResponse
        );
        let known = |index: LogIndex| log.term(index.0).unwrap_or(0);
        let fresh = message.entries.iter().any(|e| known(e.index) != e.term.0);
        vote || fresh || message.term.0 > raft.raft.term
    }

    /// Keeps the content of an append's entries beside, verified, until the library took them.
    /// Gives their number: those at the end that find no room are left to be sent again.
    fn stage(&mut self, cx: &mut Cx<'_>, message: RaftMessage) -> Result<usize, &'static str> {
        self.heard(message.term, message.commit.0, Some(message.index.0));
        let raft = self.raft.as_ref().expect("checked by the caller");
        let all = message.entries.len();
        if message.term.0 < raft.raft.term {
            return Ok(all);
        }
        let metadata = self.id == GroupId::METADATA;
        let verify = !cx.shared.planted.is(Bug::AppendUnverified);
        for (taken, entry) in message.entries.into_iter().enumerate() {
            let known = raft.raft.raft_log.term(entry.index.0).unwrap_or(0) == entry.term.0;
            if known {
                continue;
            }
            let blocks = (self.staged_bytes + entry.payload.len()).div_ceil(BLOCK_BYTES) as u32;
            let alone = self.staged_bytes == 0;
            if !entry.payload.is_empty() && !cx.shared.log.has_room_in_reserve(blocks, alone) {
                mark!("append without room");
                let why = "there is no room left for block data";
                return if taken == 0 { Err(why) } else { Ok(taken) };
            }
            if metadata && !entry.payload.is_empty() {
                return Err("a metadata entry with payload");
            }
            if !metadata || entry.kind == ENTRY_KIND_MEMBERS {
                check_content(entry.kind, &entry.data, &entry.payload, verify)?;
            }
            let data = own_copy(entry.data);
            let content = Content { data, payload: Some(entry.payload), kind: entry.kind };
            let long = content.data.len() > ENTRY_DATA_USUAL;
            if long || !cx.shared.fits_surely(weight(&content)) {
                let record = content.record(self.id, entry.term.0, entry.index.0);
                if !cx.shared.log.fits(&record) {
                    return Err("an entry that does not fit a segment of this device");
                }
            }
            self.staged_bytes += weight(&content);
            self.staged.insert((entry.index.0, entry.term.0), content);
        }
        Ok(all)
    }

    /// Makes a rejection fit what is known of the follower. The library (0.7.0) can set the next
    /// index to send at or below what the follower has acknowledged, and it takes no notice of a
    /// follower that has lost what it acknowledged.
    fn fit_rejection(&mut self, cx: &mut Cx<'_>, message: &mut eraftpb::Message) -> bool {
        let raft = self.raft.as_mut().expect("checked by the caller");
        if raft.raft.state != StateRole::Leader || message.term != raft.raft.term {
            return true;
        }
        let mut hint = message.reject_hint;
        if message.log_term > 0 {
            hint = raft.raft.raft_log.find_conflict_by_term(hint, message.log_term).0;
        }
        let Some(progress) = raft.raft.prs().get(message.from) else { return false };
        if message.index <= progress.matched {
            mark!("follower rejects what it acknowledged");
            let intact = LogIndex(hint.min(message.index.saturating_sub(1)));
            if let Some(from) = self.address_of(message.from) {
                self.follower_damaged(cx, from, intact);
            }
            return false;
        }
        if progress.state == ProgressState::Probe {
            message.reject_hint = hint.max(progress.matched);
            message.log_term = 0;
        }
        true
    }

    /// Takes an answer to a heartbeat for no more than a sign of life, if what was sent to the peer may
    /// still be on its way: the library would send it again, although the peer's device may only be
    /// slow.
    fn only_alive(&mut self, cx: &Cx<'_>, message: &eraftpb::Message) -> bool {
        let raft = &mut self.raft.as_mut().expect("checked by the caller").raft;
        if raft.state != StateRole::Leader || message.term != raft.term {
            return false;
        }
        let (last, tick) = (raft.raft_log.last_index(), cx.shared.tick);
        let Some(progress) = raft.mut_prs().get_mut(message.from) else { return false };
        let peer = NodeId(message.from as u32);
        if progress.matched >= last {
            self.moved.remove(&peer);
            return false;
        }
        let patience = u64::from(cx.shared.timing.election_ticks);
        let seen = self.moved.get(&peer).copied();
        match seen {
            Some((matched, since)) if matched == progress.matched && tick < since + patience => {}
            Some((matched, _)) if matched != progress.matched => {
                self.moved.insert(peer, (progress.matched, tick));
            }
            _ => {
                self.moved.insert(peer, (progress.matched, tick));
                return false;
            }
        }
        progress.recent_active = true;
        progress.update_committed(message.commit);
        true
    }

    /// A peer's answers tell whether its device takes more of the clients' data.
    fn note_room(&mut self, peer: NodeId, told: i64) {
        let room = match told {
            0 => Room::Yes,
            // A learner without room holds nobody up.
            _ if !self.members.is_voter(peer) => Room::Yes,
            2 => Room::Wait,
            _ => Room::No,
        };
        if room == Room::Yes && self.full.is_empty() {
            return;
        }
        let before = match room {
            Room::Yes => self.full.remove(&peer),
            room => self.full.insert(peer, room),
        };
        if before.is_some_and(|before| before != room) {
            self.room_changed();
        }
    }

    /// The replica's part.
    pub fn role(&self) -> Role {
        match self.raft.as_ref().map(|raft| raft.raft.state) {
            Some(StateRole::Leader) => Role::Leader,
            Some(StateRole::Candidate | StateRole::PreCandidate) => Role::Candidate,
            _ => Role::Follower,
        }
    }

    /// Whether this replica leads.
    pub fn leads(&self) -> bool {
        self.role() == Role::Leader
    }

    /// Whether it has applied all that it knows to be committed, with an entry of its own term among it: as a
    /// leader it lacks nothing then that was committed before.
    pub fn has_applied_its_term(&self) -> bool {
        let Some(raft) = &self.raft else { return false };
        let log = &raft.raft.raft_log;
        let own_term = log.term(log.committed).is_ok_and(|term| term == raft.raft.term);
        own_term && self.replica.applied().0 >= log.committed
    }

    /// Whether it led a moment ago and does not know yet who leads now.
    pub fn awaits_leader(&self) -> bool {
        self.raft.is_some() && self.patience.is_some() && self.leader().is_none()
    }

    /// The leader that the replica knows.
    pub fn leader(&self) -> Option<NodeId> {
        let leader = self.raft.as_ref()?.raft.leader_id;
        (leader != 0).then_some(NodeId(leader as u32))
    }

    /// The replica's term.
    pub fn term(&self) -> Term {
        self.raft.as_ref().map_or(self.recorded.term, |raft| Term(raft.raft.term))
    }

    /// The hard state that is recorded.
    pub fn recorded(&self) -> HardState {
        self.recorded
    }

    /// Whether the group broke and was stopped, or has not started.
    pub fn is_stopped(&self) -> bool {
        self.raft.is_none()
    }

    /// Notes where an entry stands, on the device and in memory.
    pub fn placed(
        &mut self,
        entry: (u64, u64),
        place: (crate::log::Location, crate::log::DataLocation),
        payload: Bytes,
    ) {
        if let Some(raft) = &mut self.raft {
            raft.mut_store().place(entry, place, payload);
        }
    }

    /// Brings the shard's account of cached content up to date.
    pub(super) fn settle_cache(&mut self, cx: &mut Cx<'_>) {
        let bytes = self.raft.as_ref().map_or(0, |raft| raft.store().cached_bytes());
        cx.shared.cached_bytes = cx.shared.cached_bytes + bytes - self.cached_seen;
        self.cached_seen = bytes;
    }

    /// Whether a voter may ask for the content of an entry soon, as far as is known here.
    pub fn is_wanted(&self, index: u64) -> bool {
        let Some(raft) = &self.raft else { return false };
        index > self.replica.applied().0
            || (self.leads() && raft.raft.prs().iter().any(|(_, peer)| peer.matched < index))
    }

    /// Forgets content up to `index`. Says whether it could.
    pub fn evict(&mut self, cx: &mut Cx<'_>, index: u64) -> bool {
        if index > self.replica.applied().0 && self.raft.is_some() {
            return false;
        }
        if let Some(raft) = &mut self.raft {
            raft.mut_store().evict(index);
        }
        self.settle_cache(cx);
        true
    }

    /// What the replica says about itself.
    pub fn status(&self) -> GroupStatus {
        let log = self.raft.as_ref().map(|raft| &raft.raft.raft_log);
        let applied = self.replica.applied();
        GroupStatus {
            group: self.id,
            role: match self.role() {
                _ if self.raft.is_none() => GroupRole::Quarantined,
                _ if self.impaired.is_some() => GroupRole::Impaired,
                Role::Follower => GroupRole::Follower,
                Role::Candidate => GroupRole::Candidate,
                Role::Leader => GroupRole::Leader,
            },
            leader: self.leader(),
            term: self.term(),
            commit: log.map_or(applied, |log| LogIndex(log.committed)),
            applied,
            first: self.raft.as_ref().map_or(LogIndex(1), |raft| LogIndex(raft.store().first().0)),
            fuzzy: self.replica.is_fuzzy(),
            last: log.map_or(applied, |log| LogIndex(log.last_index())),
            asleep: self.asleep,
            members: self.members.clone(),
            members_durable: self.members_durable,
            live_blocks: self.replica.mapped_blocks() + self.replica.kept_blocks(),
        }
    }

    /// Answers whoever waits that nothing is known, or that nothing took effect.
    pub(super) fn give_up(&mut self, cx: &mut Cx<'_>) {
        self.patience = None;
        while let Some(pending) = self.pending.pop_front() {
            pending.unknown(cx, self.id);
        }
        self.gates.give_up(cx, self.id);
        let (leader, term) = (self.leader(), self.term());
        self.recall();
        self.inbox_bytes = 0;
        while let Some(proposal) = self.inbox.pop_front() {
            proposal.refuse_leader(cx, self.id, leader, term);
        }
    }

    /// Whoever asked last, for tests of the bounds.
    pub fn waiting(&self) -> impl Iterator<Item = &Asker> {
        self.pending
            .iter()
            .chain(self.gates.waiting())
            .map(|p| &p.asker)
            .chain(self.inbox.iter().chain(&self.waiting).map(|p| &p.asker))
    }
}

/// Short data in memory of its own: kept as received it would keep a whole receive buffer.
fn own_copy(data: Bytes) -> Bytes {
    if data.len() <= COPIED_DATA_MAX { Bytes::copy_from_slice(&data) } else { data }
}

impl Group {
    /// Ends the group's turn: proposes, and takes what is ready.
    pub fn end_turn(&mut self, cx: &mut Cx<'_>) {
        self.dirty = false;
        self.guard(cx, |group, cx| {
            // First, so that what is appended takes along what is committed by it.
            group.release(cx);
            group.go_on_waiting(cx);
            group.install_fills(cx);
            group.end_change(cx);
            group.propose(cx);
            group.ready(cx);
            group.compare(cx);
            group.give_copies(cx);
            group.go_on_mending(cx);
            group.go_on_recovering(cx);
            group.plan_announcement(cx);
            group.doze(cx);
            // Members that came with pages are those of a checkpoint that is on its way.
            group.members_durable = group.members_seq <= cx.shared.durable && group.limbo.is_none();
        });
        let more = self.leads() && !self.inbox.is_empty() && !cx.shared.gathering;
        let ready = self.raft.as_ref().is_some_and(|raft| raft.has_ready());
        self.dirty = ready || (more && self.takes_proposals());
    }

    /// Bytes of payload accepted and not proposed yet.
    pub fn waiting_bytes(&self) -> usize {
        self.inbox_bytes
    }

    /// Looks again at proposals that wait.
    pub fn look_at_inbox(&mut self) {
        self.dirty |= !self.inbox.is_empty();
    }

    /// Whether proposals that wait could be proposed now.
    pub(super) fn takes_proposals(&self) -> bool {
        self.raft.as_ref().is_some_and(|raft| {
            raft.raft.lead_transferee.is_none() && raft.raft.apply_to_current_term()
        })
    }
}
