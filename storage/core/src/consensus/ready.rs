//! What the library made ready: record it, send it, apply it, and go on when it is durable.

use super::group::{Group, Role};
use super::outbox;
use super::shared::{Cx, Room, Written};
use super::table::{Slot, hard_state};
use super::waits;
use crate::event::Effect;
use crate::log::{HardState, Record, RecordSeq};
use crate::mark;
use crate::planted::Bug;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::Payload;
use basalt_wire::frame::Frame;
use basalt_wire::ids::{GroupId, LogIndex, Term};
use basalt_wire::membership::ENTRY_KIND_MEMBERS;
use basalt_wire::trace::Watch;
use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

/// Messages that wait until everything recorded before them is durable.
pub struct Held {
    number: u64,
    seq: RecordSeq,
    messages: Vec<Message>,
    /// Whether the library is told of it. Not if some of its entries were replaced since: it takes a
    /// later entry of the same index and term for the one that is durable.
    told: bool,
    /// The entry of the state that the library goes over to with it; a checkpoint makes that durable.
    restores: Option<u64>,
}

impl Group {
    /// Takes everything that the library has ready.
    pub(super) fn ready(&mut self, cx: &mut Cx<'_>) {
        while self.raft.as_ref().is_some_and(|raft| raft.has_ready()) {
            let raft = self.raft.as_mut().expect("seen above");
            let mut ready = raft.ready();
            let hard = ready.hs().map(hard_state);
            let restored = ready.snapshot().get_metadata();
            let restores = (restored.index > 0).then_some(restored.index);
            if let Some(index) = restores {
                let term = restored.term;
                self.go_over(cx, index, term);
                // A checkpoint stands for a batch behind its place, and an idle log would write none.
                // The state is the one before: until the checkpoint is durable, so is the log.
                let state = self.recorded;
                self.record_hard(cx, state);
            }
            self.record(cx, hard, ready.take_entries());
            for message in ready.take_messages() {
                self.send(cx, message);
            }
            let committed = ready.take_committed_entries();
            if let (Some(last), false) = (committed.last(), cx.shared.traces.is_idle()) {
                cx.shared.traces.committed(self.id, last.index, cx.now);
            }
            let number = ready.number();
            let mut messages = ready.take_persisted_messages();
            if self.term_seq <= cx.shared.durable {
                for message in messages.extract_if(.., |message| promises_nothing(message)) {
                    self.send(cx, message);
                }
            }
            self.raft.as_mut().expect("only a panic stops it").advance_append_async(ready);
            self.apply(cx, committed);
            let seq = self.last_seq;
            self.held.push_back(Held { number, seq, messages, told: true, restores });
            self.release(cx);
        }
        self.staged.clear();
        self.staged_bytes = 0;
        self.observe(cx);
        self.heal(cx);
        self.settle_cache(cx);
    }

    /// Goes on with what has become durable. Of acknowledgements that the last of them contains only
    /// that one is sent.
    pub(super) fn release(&mut self, cx: &mut Cx<'_>) {
        let mut latest: Option<Message> = None;
        let durable = cx.shared.durable;
        let (waits, ahead) = (self.in_limbo(cx), cx.shared.planted.is(Bug::AcknowledgesAhead));
        loop {
            let is_due = |held: &Held| {
                let settled = !(waits && held.restores.is_some());
                settled && (held.seq <= durable || (ahead && latest.is_some()))
            };
            if !self.held.front().is_some_and(is_due) {
                break;
            }
            let held = self.held.pop_front().expect("seen above");
            let raft = self.raft.as_mut().expect("only a panic stops it");
            if held.told {
                // With it the library learns of those before it that it was not told of.
                raft.on_persist_ready(held.number);
            }
            if let Some(index) = held.restores {
                raft.advance_apply_to(index);
            }
            for message in held.messages {
                // An append that was waiting here when its sender stopped leading is not sent.
                if message.get_msg_type() == MessageType::MsgAppend {
                    continue;
                }
                let contained = |before: &mut Message| contains(&message, before);
                if latest.take_if(contained).is_some() {
                    mark!("acknowledgement contained in the next");
                }
                if let Some(before) = latest.replace(message) {
                    self.send(cx, before);
                }
            }
        }
        if let Some(message) = latest {
            self.send(cx, message);
        }
    }

    /// Sends a message of this replica's own as soon as the term that it speaks in is durable, and not before
    /// those that wait here.
    pub(super) fn send_in_order(&mut self, cx: &mut Cx<'_>, message: Message) {
        if self.held.is_empty() && self.term_seq <= cx.shared.durable {
            self.send(cx, message);
            return;
        }
        mark!("acknowledgement of a restored state waits");
        let (number, messages) = (0, vec![message]);
        let seq = self.term_seq;
        self.held.push_back(Held { number, seq, messages, told: false, restores: None });
    }

    /// Hands hard state and entries to the log, in this order.
    fn record(&mut self, cx: &mut Cx<'_>, hard: Option<HardState>, entries: Vec<Entry>) {
        let old = self.recorded;
        // The library may have told of the commit index before, when nothing else was to be recorded.
        let committed = self.raft.as_ref().map_or(0, |raft| raft.raft.raft_log.committed);
        let mut state = hard.unwrap_or(HardState { commit: LogIndex(committed), ..old });
        if let Some(first) = entries.first() {
            // The two may land in different batches. The state alone must not call committed
            // what stands at these indexes so far, which the entries may be about to replace.
            state.commit = state.commit.min(LogIndex(first.index - 1));
        }
        // The commit index alone is recorded when something else is: it is known again from the
        // leader, and an idle group must not write. But a start must not find much that waits for the
        // leader's word: it can not be given up, and is not what the leader knows to be there.
        let vote_changed = (state.term, state.vote) != (old.term, old.vote);
        if vote_changed || (!entries.is_empty() && state != old) {
            self.record_hard(cx, state);
        }
        if entries.is_empty() {
            return;
        }
        let leads = self.leads();
        let raft = self.raft.as_mut().expect("only a panic stops it");
        let first = entries[0].index;
        if first <= raft.store().last() {
            mark!("entries replaced");
            self.held.iter_mut().for_each(|held| held.told = false);
            let keeps = cx.shared.planted.is(Bug::ReplacedAnswered);
            while !keeps && self.pending.back().is_some_and(|pending| pending.index >= first) {
                let pending = self.pending.pop_back().expect("seen above");
                pending.unknown(cx, self.id);
            }
        }
        for entry in entries {
            let content = self.staged.remove(&(entry.index, entry.term));
            assert!(content.is_some() || leads, "the content of entry {} is gone", entry.index);
            let content = content.unwrap_or_default();
            let changes = entry.get_entry_type() == EntryType::EntryConfChangeV2;
            assert_eq!(content.kind == ENTRY_KIND_MEMBERS, changes, "entry {}'s type", entry.index);
            let bytes = content.payload.as_ref().map_or(0, Payload::len);
            let blocks = (bytes / BLOCK_BYTES) as u32;
            cx.shared.recorded_bytes += bytes as u64;
            waits::fetch(&self.replica, self.id, &mut cx.shared.loads, &content.data);
            let record = content.record(self.id, entry.term, entry.index);
            let slot = Slot { blocks, kind: content.kind, ..Slot::default() };
            raft.mut_store().append(entry.index, entry.term, slot, content);
            let written = Written { group: self.slot, entry: Some((entry.index, entry.term)) };
            self.last_seq = cx.shared.record(record, written);
            if !cx.shared.traces.is_idle() {
                let (term, index) = (Term(entry.term), LogIndex(entry.index));
                let watch = Watch { group: self.id, term, index };
                cx.shared.traces.recorded(watch, self.last_seq);
            }
            cx.shared.cache_order.push_back((self.slot, entry.index));
        }
    }

    pub(super) fn record_hard(&mut self, cx: &mut Cx<'_>, state: HardState) {
        let term_changed = self.recorded.term != state.term;
        self.recorded = state;
        if cx.shared.planted.is(Bug::VoteNotPersisted) {
            return;
        }
        let record = Record::HardState { group: self.id, state };
        self.last_seq = cx.shared.record(record, Written { group: self.slot, entry: None });
        if term_changed {
            self.term_seq = self.last_seq;
        }
    }

    /// Sends one of the library's messages.
    pub(super) fn send(&mut self, cx: &mut Cx<'_>, mut message: Message) {
        let Some(to) = self.address_of(message.to) else { return };
        let entries = message.take_entries();
        let kind = message.get_msg_type();
        let mut frame = super::convert::to_frame(&mut message, self.id);
        match kind {
            MessageType::MsgAppend => {
                if !cx.shared.traces.is_idle() {
                    self.ask_to_watch(cx, to, &entries);
                }
                let raft = self.raft.as_ref().expect("only a panic stops it");
                let outbox = self.outboxes.entry(to.node).or_default();
                outbox.told = outbox.told.max(frame.commit.0);
                outbox::Courier { group: self.slot, to, table: raft.store(), outbox }
                    .append(cx, frame, &entries);
            }
            _ => {
                if kind == MessageType::MsgAppendResponse
                    || kind == MessageType::MsgHeartbeatResponse
                {
                    // Told early: what the leader has under way meanwhile needs room here too.
                    frame.priority = match cx.shared.room_ahead() {
                        Room::Yes => 0,
                        Room::No => 1,
                        Room::Wait => 2,
                    };
                }
                cx.send(to, Frame::Raft(frame));
            }
        }
    }

    /// Applies committed entries, in order, and answers who proposed them: as far as the tables that they
    /// change are in memory.
    pub(super) fn apply(&mut self, cx: &mut Cx<'_>, entries: Vec<Entry>) {
        self.waits.entries.extend(entries.iter().map(|entry| (entry.index, entry.term)));
        let mut last = None;
        while let Some((index, term)) = self.waits.entries.front().copied() {
            if !self.has_pages_for(cx, index) {
                break;
            }
            self.waits.entries.pop_front();
            self.apply_one(cx, index, term);
            last = Some(index);
        }
        if let Some(last) = last {
            self.raft.as_mut().expect("only a panic stops it").advance_apply_to(last);
            self.stand_down_if_removed(cx);
        }
    }

    fn apply_one(&mut self, cx: &mut Cx<'_>, index: u64, term: u64) {
        if !cx.shared.traces.is_idle() {
            cx.shared.traces.applied(self.id, index, cx.now);
        }
        let table = self.raft.as_ref().expect("only a panic stops it").store();
        let slot = table.slot(index).expect("a committed entry is there");
        assert!(slot.placed, "entry {index} is applied before it has its place");
        let location = slot.location;
        let changes_members = slot.kind == ENTRY_KIND_MEMBERS;
        if changes_members {
            self.apply_members(cx, LogIndex(index));
            if self.id != GroupId::METADATA {
                self.replica.skip(LogIndex(index));
                return;
            }
        }
        let table = self.raft.as_ref().expect("only a panic stops it").store();
        let data = &table.content(index).expect("kept until it is applied").data;
        if self.id == GroupId::METADATA {
            // What changes the members is no command of the metadata state.
            let command = if changes_members { Bytes::new() } else { data.clone() };
            self.apply_metadata(cx, LogIndex(index), Term(term), command);
            return;
        }
        let (pending, gates, id) = (&mut self.pending, &mut self.gates, self.id);
        let lax = cx.shared.planted.is(Bug::ReplacedAnswered);
        let result = self.replica.apply(LogIndex(index), data, location, |command, outcome| {
            if pending.front().is_some_and(|p| p.index == index) {
                let next = pending.pop_front().expect("seen above");
                assert!(next.term == term || lax, "another entry took a proposal's index");
                gates.applied(cx, (id, LogIndex(index)), (command, outcome), next);
            }
        });
        result.unwrap_or_else(|e| panic!("entry {index} can not be applied: {e}"));
    }

    fn apply_metadata(&mut self, cx: &mut Cx<'_>, index: LogIndex, term: Term, command: Bytes) {
        self.replica.skip(index);
        let proposed = !command.is_empty();
        self.tell_command(cx, index.0, term, command);
        if proposed {
            self.answer_next(cx, index, Ok(()));
        }
    }

    fn answer_next(&mut self, cx: &mut Cx<'_>, index: LogIndex, outcome: crate::replica::Outcome) {
        if self.pending.front().is_some_and(|p| p.index == index.0) {
            let next = self.pending.pop_front().expect("seen above");
            next.done(cx, self.id, index, outcome);
        }
    }

    /// Tells the driver of a new leader, and starts or ends a term of leading.
    fn observe(&mut self, cx: &mut Cx<'_>) {
        let now = (self.leader(), self.role());
        if now == self.told {
            return;
        }
        let before = std::mem::replace(&mut self.told, now);
        if now.0 != before.0 {
            let (group, leader, term) = (self.id, now.0, self.term());
            cx.out.push(Effect::LeaderChanged { group, leader, term });
        }
        match (before.1, now.1) {
            (Role::Leader, Role::Leader) => {}
            (_, Role::Leader) => {
                self.sessions.clear();
                self.full.clear();
                self.starting_over.clear();
                self.patience = None;
                self.election.led_since(cx.now);
            }
            (Role::Leader, _) => {
                self.barriers.clear();
                self.gates.stand_down(cx, self.id);
                self.end_help(cx);
                self.outboxes.clear();
                self.moved.clear();
                self.election.transfer = None;
                let patience = 2 * u64::from(cx.shared.timing.election_ticks);
                self.patience = Some(cx.shared.tick + patience);
            }
            _ => {}
        }
    }
}

/// Whether a message acknowledges everything that an earlier one acknowledges, to the same leader.
fn contains(message: &Message, earlier: &Message) -> bool {
    let acknowledges = |message: &Message| {
        message.get_msg_type() == MessageType::MsgAppendResponse && !message.reject
    };
    acknowledges(message)
        && acknowledges(earlier)
        && (message.to, message.term) == (earlier.to, earlier.term)
        && message.index >= earlier.index
        && message.commit >= earlier.commit
}

/// Whether a message may leave before what was recorded ahead of it is durable, if only the term that
/// it speaks in is: a sign of life, and questions and answers about a vote that is not given yet. A
/// leader whose followers' devices are slow would otherwise take them for dead and stand down, which
/// helps nobody.
fn promises_nothing(message: &Message) -> bool {
    matches!(
        message.get_msg_type(),
        MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
    )
}
