//! Proposals: who may change a volume, and who waits for what.

use super::group::{Group, Role};
use super::shared::{Cx, Room};
use super::table::{Content, weight};
use super::traces::{Arrival, Span};
use crate::event::{Effect, LinkId, ProposeError};
use crate::mark;
use crate::planted::Bug;
use crate::replica::{Outcome, blocks_match};
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::buffer::Payload;
use basalt_wire::command::{Command, CommandPacker};
use basalt_wire::frame::{Refusal, Reply, ReplyResult};
use basalt_wire::ids::{Epoch, GroupId, Incarnation, LogIndex, NodeId, RequestId, Term, VolumeId};
use basalt_wire::time::Time;
use basalt_wire::trace::{Trace, Watch};
use bytes::Bytes;
use raft::eraftpb::{self, MessageType};

/// Commands after which a packed entry is closed.
const COMMANDS_MAX: usize = 4096;
/// Entries that a group proposes in one turn.
const ENTRIES_MAX: usize = 4;

/// Who waits for a proposal.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    /// A client.
    Client(LinkId, RequestId),
    /// A client that freezes a generation once more to open the gate behind it.
    Opener(LinkId, RequestId),
    /// The control plane.
    Control(u64),
}

/// What is to be proposed.
#[derive(Debug)]
pub enum Change {
    /// A change of a volume.
    Volume {
        /// The session's epoch.
        epoch: Epoch,
        /// The link's number within the session.
        incarnation: Incarnation,
        /// The term of the leader that the request was meant for.
        term: Term,
        /// The command.
        command: Command,
        /// Its blocks.
        payload: Payload,
    },
    /// A command of the metadata group.
    Metadata(Bytes),
}

/// Something accepted and not proposed yet.
#[derive(Debug)]
pub struct Proposal {
    /// Who asked.
    pub asker: Asker,
    /// For what.
    pub change: Change,
    /// When it was accepted.
    since: Time,
    /// When it came, if its answer is to say where its time went.
    traced: Option<Arrival>,
    /// Since when it waits for room, if it does, and nanoseconds for which it did.
    held_since: Option<Time>,
    held: u64,
}

/// Something proposed and not applied yet.
#[derive(Debug)]
pub struct Pending {
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) asker: Asker,
    bytes: usize,
    /// When it was accepted.
    since: Time,
    /// When it came, and nanoseconds for which it waited for room, if its answer is to say where its time went.
    traced: Option<(Arrival, u64)>,
}

impl Proposal {
    /// A change of a volume that a client asked for.
    pub fn volume(
        (link, id): (LinkId, RequestId),
        (epoch, incarnation, term): (Epoch, Incarnation, Term),
        command: Command,
        payload: Payload,
    ) -> Proposal {
        let change = Change::Volume { epoch, incarnation, term, command, payload };
        Proposal::new(Asker::Client(link, id), change)
    }

    fn new(asker: Asker, change: Change) -> Proposal {
        let (since, traced, held_since, held) = (Time::ZERO, None, None, 0);
        Proposal { asker, change, since, traced, held_since, held }
    }

    /// The same change, whose answer says where its time went if it is told when it came.
    pub fn traced(self, traced: Option<Arrival>) -> Proposal {
        Proposal { traced, ..self }
    }

    /// The same change, for a client that opens a gate by it.
    pub fn opening_gate(self) -> Proposal {
        match self.asker {
            Asker::Client(link, id) => Proposal { asker: Asker::Opener(link, id), ..self },
            _ => self,
        }
    }

    /// A command of the metadata group.
    pub fn metadata(token: u64, command: Bytes) -> Proposal {
        let change = Change::Metadata(command);
        Proposal::new(Asker::Control(token), change)
    }

    /// Bytes of its payload.
    pub fn bytes(&self) -> usize {
        match &self.change {
            Change::Volume { payload, .. } => payload.len(),
            Change::Metadata(command) => command.len(),
        }
    }

    /// Whether the blocks of a write match its checksums.
    pub fn is_intact(&self) -> bool {
        match &self.change {
            Change::Volume { command: Command::Write { checksums, .. }, payload, .. } => {
                blocks_match(payload, checksums)
            }
            _ => true,
        }
    }

    fn settle(&self, cx: &mut Cx<'_>) {
        cx.shared.pending_requests -= 1;
        cx.shared.pending_bytes -= self.bytes();
    }

    fn refuse(self, cx: &mut Cx<'_>, group: GroupId, why: Refusal) {
        self.settle(cx);
        match self.asker {
            Asker::Client(link, id) | Asker::Opener(link, id) => {
                cx.reply(link, id, group, ReplyResult::Refused(why));
            }
            Asker::Control(token) => {
                let result = Err(ProposeError::Unavailable);
                cx.out.push(Effect::Proposed { token, result });
            }
        }
    }

    /// Answers that this replica does not lead. Nothing took effect.
    pub fn refuse_leader(
        self,
        cx: &mut Cx<'_>,
        group: GroupId,
        leader: Option<NodeId>,
        term: Term,
    ) {
        self.settle(cx);
        match self.asker {
            Asker::Client(link, id) | Asker::Opener(link, id) => {
                cx.reply(link, id, group, ReplyResult::Leader { leader, term })
            }
            Asker::Control(token) => {
                let result = Err(ProposeError::NotLeader(leader));
                cx.out.push(Effect::Proposed { token, result });
            }
        }
    }
}

impl Pending {
    /// Whether it is to open a gate.
    pub(super) fn opens_gate(&self) -> bool {
        matches!(self.asker, Asker::Opener(..))
    }

    fn settle(&self, cx: &mut Cx<'_>) {
        cx.shared.pending_requests -= 1;
        cx.shared.pending_bytes -= self.bytes;
    }

    /// Answers that it was applied, or refused when it was.
    pub(super) fn done(self, cx: &mut Cx<'_>, group: GroupId, index: LogIndex, outcome: Outcome) {
        self.settle(cx);
        match self.asker {
            Asker::Client(link, id) | Asker::Opener(link, id) => {
                cx.shared.pace.note_write(cx.now.since(self.since));
                let trace = self.traced.and_then(|traced| self.take_trace(cx, group, traced));
                let result = match outcome {
                    Ok(()) => ReplyResult::Done { index },
                    Err(refusal) => ReplyResult::Refused(refusal),
                };
                let reply = Reply { id, group, result, trace };
                cx.out.push(Effect::Reply { link, reply });
            }
            Asker::Control(token) => cx.out.push(Effect::Proposed { token, result: Ok(index) }),
        }
    }

    fn take_trace(
        &self,
        cx: &mut Cx<'_>,
        group: GroupId,
        (arrival, room): (Arrival, u64),
    ) -> Option<Box<Trace>> {
        let span = Span { arrival, room, until: cx.now };
        let planted = cx.shared.planted;
        cx.shared.traces.finish(group, (self.index, self.term), span, planted)
    }

    /// Answers that it may or may not take effect.
    pub(super) fn unknown(self, cx: &mut Cx<'_>, group: GroupId) {
        mark!("proposal with unknown outcome");
        self.settle(cx);
        if self.traced.is_some() {
            cx.shared.traces.forget(group, (self.index, self.term));
        }
        match self.asker {
            Asker::Client(link, id) | Asker::Opener(link, id) => {
                cx.reply(link, id, group, ReplyResult::Unknown);
            }
            Asker::Control(token) => {
                let result = Err(ProposeError::Unknown);
                cx.out.push(Effect::Proposed { token, result });
            }
        }
    }
}

/// Who waits for a command of an entry in the making: see [`Pending`].
struct Waiter {
    asker: Asker,
    bytes: usize,
    since: Time,
    traced: Option<(Arrival, u64)>,
}

/// An entry in the making.
#[derive(Default)]
struct Entry {
    packer: Option<CommandPacker>,
    metadata: Option<Bytes>,
    payload: Payload,
    askers: Vec<Waiter>,
}

impl Group {
    /// Accepts a proposal, to be proposed when the turn ends.
    pub fn accept(&mut self, cx: &mut Cx<'_>, mut proposal: Proposal) {
        proposal.since = cx.now;
        cx.shared.pending_requests += 1;
        cx.shared.pending_bytes += proposal.bytes();
        self.inbox_bytes += proposal.bytes();
        self.inbox.push_back(proposal);
        self.wake(cx);
        self.dirty = true;
    }

    /// Proposes what was accepted, packed into as few entries as possible.
    pub(super) fn propose(&mut self, cx: &mut Cx<'_>) {
        if !self.leads() {
            self.recall();
        }
        if self.inbox.is_empty() {
            return;
        }
        let raft = self.raft.as_ref().expect("only a panic stops it");
        if !self.leads() {
            // Handed over a moment ago: the new leader makes itself known at once.
            let (leader, term) = (self.leader(), self.term());
            let just_now = self.told.1 == Role::Leader;
            if leader.is_some() || (self.patience.is_none() && !just_now) {
                self.inbox_bytes = 0;
                for proposal in std::mem::take(&mut self.inbox) {
                    proposal.refuse_leader(cx, self.id, leader, term);
                }
            }
            return;
        }
        // Sessions are checked against what is applied, which in a new term lacks something until
        // the leader's own first entry is applied. While leadership moves, nothing is taken.
        if raft.raft.lead_transferee.is_some() || !raft.raft.apply_to_current_term() {
            return;
        }
        if cx.shared.gathering {
            return;
        }
        let entries = self.pack(cx);
        if !entries.is_empty() {
            self.election.active_at = cx.now;
            self.step_proposal(cx, entries);
        }
    }

    fn pack(&mut self, cx: &mut Cx<'_>) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut blocks = 0;
        let limits = cx.shared.entry_limits();
        while let Some(proposal) = self.inbox.front() {
            let bytes = proposal.bytes();
            let fresh = entries.last().is_none_or(|e| e.is_closed(bytes, limits));
            if fresh && entries.len() == ENTRIES_MAX {
                break;
            }
            let proposal = self.inbox.pop_front().expect("seen above");
            self.inbox_bytes -= bytes;
            let proposal = match self.admit(cx, proposal, &mut blocks) {
                Some(proposal) => proposal,
                None => continue,
            };
            if fresh {
                entries.push(Entry::default());
            }
            entries.last_mut().expect("pushed above").push(proposal);
        }
        entries
    }

    /// Checks a proposal against the term, the sessions and the room there is. Gives it back if it
    /// may be proposed, and answers it otherwise.
    fn admit(&mut self, cx: &mut Cx<'_>, proposal: Proposal, blocks: &mut u32) -> Option<Proposal> {
        let Change::Volume { epoch, incarnation, term, command, .. } = &proposal.change else {
            return self.admit_metadata(cx, proposal);
        };
        let now = self.term();
        if *term != now && !cx.shared.planted.is(Bug::TermUnchecked) {
            mark!("request for another term");
            proposal.refuse_leader(cx, self.id, Some(self.me), now);
            return None;
        }
        let (volume, epoch, incarnation) = (command.volume(), *epoch, *incarnation);
        // Generations and volumes are never used twice, so that a late copy does nothing.
        let any = matches!(
            command,
            Command::Freeze { .. }
                | Command::DropSnapshot { .. }
                | Command::Clone { .. }
                | Command::Fill { .. }
                | Command::Detach { .. }
        );
        let session = match command {
            _ if any => Ok(()),
            Command::Fence { .. } => self.replica.check_not_fenced(volume, epoch, false),
            // Applying a delete checks no epoch, so it may not be proposed behind a higher one's fence.
            Command::Delete { .. } if self.is_being_fenced(volume, epoch) => Err(Refusal::Fenced),
            Command::Delete { .. } => self.replica.check_not_fenced(volume, epoch, true),
            Command::Write { generation, .. } | Command::Unmap { generation, .. } => {
                let attached = self.replica.check_epoch(volume, epoch);
                attached.and_then(|()| self.replica.check_generation(volume, *generation))
            }
            _ => self.replica.check_epoch(volume, epoch),
        };
        let session = session.and_then(|()| match any {
            true => Ok(()),
            false => self.admit_session(cx, volume, (epoch, incarnation)),
        });
        let wanted = *blocks + command.payload_blocks();
        let room = self.room_for(cx, command, wanted);
        match (session, room) {
            (Err(refusal), _) => proposal.refuse(cx, self.id, refusal),
            (Ok(()), Room::No) => {
                mark!("no room for a write");
                proposal.refuse(cx, self.id, Refusal::NoSpace);
            }
            (Ok(()), Room::Wait) => {
                mark!("write waits for the cleaner");
                let held_since = proposal.held_since.or(Some(cx.now));
                self.waiting.push_back(Proposal { held_since, ..proposal });
            }
            (Ok(()), Room::Yes) => {
                *blocks = wanted;
                let held = proposal.held_since.map_or(0, |since| cx.now.0 - since.0);
                return Some(Proposal { held, ..proposal });
            }
        }
        None
    }

    /// Whether there is room for a command, here and on the followers, with so many blocks in all.
    fn room_for(&self, cx: &mut Cx<'_>, command: &Command, blocks: u32) -> Room {
        let room = self.room_as_known(cx, command, blocks);
        if let (Room::No, Command::Write { volume, range, .. }) = (room, command)
            && !self.needs(cx, std::iter::once((*volume, range.block / CHUNK_BLOCKS)))
        {
            mark!("write waits to know what it replaces");
            return Room::Wait;
        }
        room
    }

    fn room_as_known(&self, cx: &Cx<'_>, command: &Command, blocks: u32) -> Room {
        match command {
            // A fence lets a full volume be read, and a delete makes room: both may use the reserve.
            Command::Fence { .. } | Command::Delete { .. } | Command::DropSnapshot { .. }
                if cx.shared.log.has_room_for_fence() =>
            {
                Room::Yes
            }
            // What is unmapped is room for others: it does not wait with those who need it.
            Command::Unmap { .. } if cx.shared.has_room(blocks) => Room::Yes,
            Command::Write { volume, range, .. } => {
                let replica = &self.replica;
                let fresh = || replica.unmapped_blocks(*volume, *range);
                let here = cx.shared.room(blocks, fresh);
                let there = self.full.values().max().copied().unwrap_or(Room::Yes);
                match (here, there) {
                    // What replaces something makes nobody fuller.
                    (_, Room::No) if cx.shared.room.levels.is_some() && fresh() == 0 => {
                        here.max(Room::Yes)
                    }
                    _ => here.max(there),
                }
            }
            Command::Fill { blocks: filled, .. } => {
                let there = self.full.values().max().copied().unwrap_or(Room::Yes);
                cx.shared.room(blocks, || filled.len()).max(there)
            }
            _ => cx.shared.room(blocks, || 0),
        }
    }

    /// What waited for room is looked at again.
    pub fn room_changed(&mut self) {
        if self.recall() {
            self.dirty = true;
        }
    }

    /// Puts what waits for room before what has not been looked at; says whether anything waited.
    pub(super) fn recall(&mut self) -> bool {
        let any = !self.waiting.is_empty();
        while let Some(proposal) = self.waiting.pop_back() {
            self.inbox_bytes += proposal.bytes();
            self.inbox.push_front(proposal);
        }
        any
    }

    fn admit_metadata(&mut self, cx: &mut Cx<'_>, proposal: Proposal) -> Option<Proposal> {
        if cx.shared.has_room(0) {
            return Some(proposal);
        }
        proposal.refuse(cx, self.id, Refusal::NoSpace);
        None
    }

    /// Refuses a late duplicate: a request of a link that its session has replaced.
    fn admit_session(
        &mut self,
        cx: &Cx<'_>,
        volume: VolumeId,
        session: (Epoch, Incarnation),
    ) -> Outcome {
        let (epoch, incarnation) = session;
        let applied = self.replica.epoch(volume);
        let known = self.sessions.entry(volume).or_default();
        known.retain(|(epoch, _)| *epoch >= applied);
        let Some((_, newest)) = known.iter_mut().find(|(known, _)| *known == epoch) else {
            known.push(session);
            return Ok(());
        };
        if *newest > incarnation && !cx.shared.planted.is(Bug::IncarnationUnchecked) {
            mark!("late duplicate refused");
            return Err(Refusal::LateDuplicate);
        }
        *newest = incarnation.max(*newest);
        Ok(())
    }

    /// Whether a session of a higher epoch has begun here, and its fence is not applied yet.
    fn is_being_fenced(&self, volume: VolumeId, epoch: Epoch) -> bool {
        let beyond = epoch.max(self.replica.epoch(volume));
        self.sessions.get(&volume).is_some_and(|all| all.iter().any(|(e, _)| *e > beyond))
    }

    fn step_proposal(&mut self, cx: &mut Cx<'_>, entries: Vec<Entry>) {
        let raft = self.raft.as_mut().expect("only a panic stops it");
        let (term, first) = (raft.raft.term, raft.raft.raft_log.last_index() + 1);
        let mut message = eraftpb::Message { from: u64::from(self.me.0), ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![eraftpb::Entry::default(); entries.len()].into());
        let early = cx.shared.planted.is(Bug::ReplyBeforeCommit);
        for (index, entry) in (first..).zip(entries) {
            cx.shared.proposed.entries += 1;
            cx.shared.proposed.commands += entry.askers.len() as u64;
            let data = match (entry.packer, entry.metadata) {
                (Some(packer), _) => packer.finish(),
                (None, metadata) => metadata.unwrap_or_default(),
            };
            let content = Content { data, payload: Some(entry.payload), kind: 0 };
            self.staged_bytes += weight(&content);
            self.staged.insert((index, term), content);
            let traced = entry.askers.iter().filter(|waiter| waiter.traced.is_some()).count();
            if traced > 0 && !early {
                let watch = Watch { group: self.id, term: Term(term), index: LogIndex(index) };
                let majority = self.members.voters.len() / 2 + 1;
                cx.shared.traces.propose(watch, traced, majority, cx.now);
            }
            for Waiter { asker, bytes, since, traced } in entry.askers {
                let pending = Pending { index, term, asker, bytes, since, traced };
                if early {
                    pending.done(cx, self.id, LogIndex(index), Ok(()));
                } else {
                    self.pending.push_back(pending);
                }
            }
        }
        // The library takes every proposal of a leader that is not handing over, which was seen.
        raft.raft.step(message).expect("a leader takes proposals");
    }
}

impl Entry {
    fn is_closed(&self, bytes: usize, (payload_max, data_max): (usize, usize)) -> bool {
        let packed = self.packer.as_ref();
        self.metadata.is_some()
            || self.payload.len() + bytes > payload_max
            || packed.is_some_and(|p| p.len() > data_max || p.count() >= COMMANDS_MAX)
    }

    fn push(&mut self, proposal: Proposal) {
        self.askers.push(Waiter {
            asker: proposal.asker,
            bytes: proposal.bytes(),
            since: proposal.since,
            traced: proposal.traced.map(|arrival| (arrival, proposal.held)),
        });
        match proposal.change {
            Change::Volume { command, payload, .. } => {
                self.packer.get_or_insert_with(CommandPacker::new).push(&command);
                self.payload.append(payload);
            }
            Change::Metadata(command) => self.metadata = Some(command),
        }
    }
}
