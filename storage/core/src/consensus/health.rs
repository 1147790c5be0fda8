//! Opening: from what the log held to a replica that may take part, or may not yet.
//!
//! A replica that lost entries it had acknowledged must not count until it holds them again: it
//! neither votes nor asks for votes, and tells the leader to forget what it acknowledged. It is
//! sound again when it holds everything that it is known to have held, and everything that a leader
//! elected without it has committed in its own term. A replica whose vote may be lost takes no part
//! at all until a leader readmits it: see [`super::readmission`].

use super::group::Group;
use super::shared::Cx;
use super::table::{Content, Slot, Table};
use crate::checkpoint::GroupSnapshot;
use crate::log::{Damage, DataLocation, HardState, Location, Record};
use crate::mark;
use basalt_wire::disk::batch::HardStateFields;
use basalt_wire::frame::Frame;
use basalt_wire::ids::{Address, GroupId, LogIndex, NodeId, Term};
use basalt_wire::membership::Membership;
use bytes::Bytes;

/// Gathers one group's records while the log is replayed.
#[derive(Debug)]
pub struct OpenState {
    table: Table,
    hard: HardState,
    /// The first index that is missing, with entries after it seen.
    gap: Option<u64>,
    highest: u64,
    damage: Option<(u64, u64, bool)>,
    base: Option<Base>,
    /// What a checkpoint says that the replica owes: an index, and its term when that was noticed.
    owed: Option<(u64, u64)>,
    /// Blocks that were moved, in order, and where they stand.
    moves: Vec<(Bytes, Location)>,
    /// Where the group began anew: what has a lower term is not of it.
    begins: (Term, LogIndex),
}

/// The checkpoint that a group starts from.
#[derive(Clone, Copy, Debug)]
struct Base {
    /// The last entry that is part of it.
    applied: u64,
    /// Replay must come so far.
    end: u64,
    /// The first entry that was replayed with another term than the checkpoint says, and was not
    /// replaced by the right one since.
    contradicts: Option<u64>,
}

/// What an impaired replica waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Impaired {
    /// The last entry that was intact when the log was opened.
    intact: u64,
    /// The highest entry that the replica is known to have held.
    last_known: u64,
    /// The term it knew when the log was opened.
    open_term: u64,
    /// Whether a leader has started over at or before `intact`.
    restarted: bool,
    /// The highest commit index that a leader has told.
    commit: u64,
    /// Whether its vote may be lost.
    mute: bool,
    /// The next tick at which the damage is reported.
    report_at: u64,
}

impl Impaired {
    fn new(intact: u64, last_known: u64) -> Impaired {
        let (open_term, restarted, commit, mute, report_at) = (0, false, 0, false, 0);
        Impaired { intact, last_known, open_term, restarted, commit, mute, report_at }
    }
}

impl OpenState {
    /// Nothing replayed yet.
    pub fn new(group: GroupId, founders: &Membership) -> OpenState {
        let (metadata, founders) = (group == GroupId::METADATA, founders.clone());
        OpenState {
            table: if metadata { Table::resident(founders) } else { Table::new(founders) },
            hard: HardState::default(),
            gap: None,
            highest: 0,
            damage: None,
            base: None,
            owed: None,
            moves: Vec::new(),
            begins: (Term(0), LogIndex(0)),
        }
    }

    /// The group began anew at an entry, see [`crate::config::GroupConfig::begins`].
    fn beginning_at(mut self, begins: (Term, LogIndex)) -> OpenState {
        if begins.1 > LogIndex(0) {
            self.begins = begins;
            self.table.start_at(begins.1.0 + 1, begins.0.0);
            self.hard = HardState { term: begins.0, vote: NodeId(0), commit: begins.1 };
        }
        self
    }

    /// What was moved, in order.
    pub fn take_moves(&mut self) -> Vec<(Bytes, Location)> {
        std::mem::take(&mut self.moves)
    }

    /// Starts with the term and the vote of a replica that was here before. Nothing else of it counts.
    pub fn remember(&mut self, state: HardState) {
        self.hard = HardState { commit: LogIndex(0), ..state };
    }

    /// Starts from a checkpoint: what follows is replayed from a place in the log before which
    /// everything is part of it.
    pub fn restore(&mut self, snapshot: &mut GroupSnapshot) {
        let manifest = &snapshot.manifest;
        if manifest.hard.term < self.begins.0 {
            mark!("checkpoint of a group before it began anew");
            return;
        }
        let Some(members) = &snapshot.members else {
            let HardStateFields { term, vote, commit } = manifest.hard;
            self.remember(HardState { term, vote, commit });
            return;
        };
        let state = manifest.hard;
        self.table.set_members(members.clone());
        self.hard = HardState { term: state.term, vote: state.vote, commit: state.commit };
        if self.table.is_resident() {
            let commands = std::mem::take(&mut snapshot.commands);
            self.table.restore_commands(manifest.first.0, manifest.before.0, commands);
        } else {
            let entries = std::mem::take(&mut snapshot.entries);
            self.table.restore(manifest.first.0, manifest.before.0, entries);
        }
        self.owed = (manifest.owed.0 > 0).then_some((manifest.owed.0, manifest.owed_term.0));
        let (applied, end) = (manifest.applied.0, manifest.end.0);
        self.base = Some(Base { applied, end, contradicts: None });
    }

    /// Whether what was replayed fits the checkpoint.
    pub fn fits(&self) -> Result<(), String> {
        let Some(base) = self.base else { return Ok(()) };
        if let Some(index) = base.contradicts {
            return Err(format!("entry {index} has another term in the log"));
        }
        // What is missing behind all that its pages have seen is missing with a checkpoint or without.
        let damaged = self.damage.map(|(first, ..)| first);
        if let Some(first) = self.gap.into_iter().chain(damaged).min().filter(|i| *i <= base.end) {
            return Err(format!(
                "entries from {first} on are missing in the log, it needs {}",
                base.end
            ));
        }
        if self.table.last() < base.end {
            let last = self.table.last();
            return Err(format!("it needs entries up to {}, the log ends at {last}", base.end));
        }
        Ok(())
    }

    /// An entry that is part of the checkpoint is replayed once more: it replaced what came after it.
    fn replay_known(&mut self, index: u64, term: u64) -> bool {
        let Some(base) = &mut self.base else { return false };
        if index == 0 || index > base.applied {
            return false;
        }
        if self.table.last() > base.applied {
            self.table.truncate(base.applied + 1);
        }
        self.gap = None;
        if index + 1 < self.table.first().0 {
            // Forgotten since: the state stands for it. It replaced all later ones that were replayed.
            base.contradicts = base.contradicts.filter(|known| *known < index);
            return true;
        }
        if self.table.term_of(index) != term {
            base.contradicts = Some(base.contradicts.map_or(index, |known| known.min(index)));
        } else if base.contradicts.is_some_and(|known| index <= known) {
            base.contradicts = None;
        }
        true
    }

    /// Takes a record of the group.
    pub fn replay(
        &mut self,
        record: Record,
        location: Location,
        blocks: u32,
        data_at: DataLocation,
    ) {
        let term = match &record {
            Record::HardState { state, .. } => state.term,
            Record::Entry { term, .. } => *term,
            Record::Moved { .. } => self.begins.0,
        };
        if term < self.begins.0 {
            mark!("record of a group before it began anew");
            return;
        }
        match record {
            Record::HardState { state, .. } => self.hard = state,
            Record::Moved { data, .. } => self.moves.push((data, location)),
            Record::Entry { term, index, kind, data, .. } => {
                let index = index.0;
                if self.replay_known(index, term.0) {
                    return;
                }
                self.highest = self.highest.max(index);
                if self.gap.is_some_and(|gap| index <= gap) {
                    // Replaces the entries that are missing: the log is whole again from here.
                    self.gap = None;
                }
                if index == 0 || index > self.table.last() + 1 {
                    mark!("gap in a group's replayed entries");
                    self.gap.get_or_insert(self.table.last() + 1);
                    return;
                }
                let slot = Slot { location, blocks, data_at, placed: true, kind };
                self.table.append(index, term.0, slot, Content { data, payload: None, kind });
            }
        }
    }

    /// Begins as one whose vote of a former stay may be lost.
    pub fn without_vote(&mut self) {
        self.damage = Some((1, 0, true));
    }

    /// Takes a report of damage that concerns the group.
    pub fn damaged(&mut self, damage: &Damage) {
        let known = damage.group.is_some() && !damage.vote_lost;
        if known && damage.last_known > LogIndex(0) && damage.last_known <= self.begins.1 {
            mark!("damage to a group before it began anew");
            return;
        }
        // What was lost of a group that is not known may have replaced any entry replayed before it:
        // then none of them may be believed.
        let unknown = if damage.group.is_some() { self.table.last() + 1 } else { 1 };
        let first = damage.first_lost.map_or(unknown, |index| index.0);
        let known = damage.last_known.0;
        let before = self.damage.unwrap_or((first, known, false));
        let mute = before.2 || damage.vote_lost;
        self.damage = Some((before.0.min(first), before.1.max(known), mute));
    }

    /// The entries to go on with, and what is wrong with them.
    pub fn finish(mut self, amnesiac: bool) -> (Table, Option<Impaired>) {
        if self.gap.is_some() {
            // Entries are missing that came in pages: those before them may be of a leader whose entries
            // were replaced. Only what a checkpoint holds as applied is believed.
            let first = self.base.map_or(0, |base| base.applied) + 1;
            let before = self.damage.unwrap_or((first, self.highest, false));
            self.damage = Some((before.0.min(first), before.1.max(self.highest), before.2));
        }
        let mut impaired = None;
        if let Some((first, last_known, mute)) = self.damage {
            let first = first.max(self.begins.1.0 + 1);
            if first <= self.table.last() {
                self.table.truncate(first);
            }
            impaired = Some(Impaired::new(self.table.last(), last_known.max(self.highest)));
            impaired.iter_mut().for_each(|impaired| impaired.mute = mute);
        }
        let fresh = impaired.is_some();
        if let Some((owed, _)) = self.owed {
            mark!("debt known from a checkpoint");
            let impaired = impaired.get_or_insert(Impaired::new(self.table.last(), owed));
            impaired.last_known = impaired.last_known.max(owed);
        }
        let last = self.table.last();
        let mut hard = self.hard;
        let end = self.base.map_or(0, |base| base.end);
        let surely = end.max(self.table.surely_committed());
        hard.commit = LogIndex(hard.commit.0.max(surely).min(last));
        if hard.term.0 < self.table.term_of(last) {
            // Hard state is recorded before the entries of its term; without it there was no vote.
            hard = HardState { term: Term(self.table.term_of(last)), vote: NodeId(0), ..hard };
        }
        self.table.set_hard_state(hard);
        if let Some(impaired) = &mut impaired {
            impaired.open_term = self.owed.filter(|_| !fresh).map_or(hard.term.0, |(_, term)| term);
        }
        (self.table, impaired.filter(|_| !amnesiac))
    }
}

impl Group {
    /// What its records are gathered in while the log is replayed.
    pub fn opening(&self) -> OpenState {
        OpenState::new(self.id, &self.founders).beginning_at(self.begins)
    }

    /// Whether a checkpoint is of before it began anew.
    pub fn is_older(&self, snapshot: &GroupSnapshot) -> bool {
        snapshot.manifest.hard.term < self.begins.0
    }

    /// Whether the replica takes no part at all.
    pub(super) fn is_mute(&self) -> bool {
        self.impaired.is_some_and(|impaired| impaired.mute)
    }

    /// Notes what a leader's message says about how far it is, and where it starts over.
    pub(super) fn heard(&mut self, term: Term, commit: u64, previous: Option<u64>) {
        if self.impaired.is_none() || term < self.term() {
            return;
        }
        if let Some(impaired) = &mut self.impaired {
            impaired.commit = impaired.commit.max(commit);
            impaired.restarted |= previous.is_some_and(|index| index <= impaired.intact);
        }
    }

    /// A leader counts on entries up to `known` here, and the log ends before: the device has gone
    /// back to an older state, which nothing on it tells.
    pub(super) fn lacks_acknowledged(&mut self, cx: &mut Cx<'_>, term: Term, known: u64) {
        let Some(raft) = &self.raft else { return };
        if self.impaired.is_some() || term < self.term() {
            return;
        }
        mark!("entries that were acknowledged are not here");
        let intact = raft.raft.raft_log.last_index();
        let open_term = raft.raft.term;
        // Of one that starts over the leader may still know what it held before it was removed. It knows how
        // it voted; an older device does not.
        let should = self.has_a_say();
        let impaired = Impaired { open_term, commit: known, ..Impaired::new(intact, known) };
        self.impaired = Some(Impaired { mute: should, ..impaired });
        self.draw_loss(cx);
        let why = if should { "the device holds an older state" } else { "it starts over" };
        let text = format!(
            "group {}: the leader counts on entries up to {known}, but the log ends at {intact}: {why}; \
             what it lacks is asked for",
            self.id
        );
        cx.notice(should, text);
    }

    /// What a checkpoint has to say about lost entries: an index, and the term when it was noticed.
    pub(super) fn owed(&self) -> (LogIndex, Term) {
        let owed = self.impaired.map(|i| (LogIndex(i.last_known.max(1)), Term(i.open_term)));
        owed.unwrap_or_default()
    }

    /// A leader has given the replica its whole state as of an entry: that starts over too.
    pub(super) fn started_over(&mut self, index: u64) {
        if let Some(impaired) = &mut self.impaired {
            impaired.restarted = true;
            impaired.commit = impaired.commit.max(index);
        }
    }

    /// Tells the peers what was lost, again and again until a leader starts over.
    pub(super) fn report_damage(&mut self, cx: &mut Cx<'_>) {
        let tick = cx.shared.tick;
        let every = report_every(cx);
        // A leader that brings it up by pages has heard of it.
        let heard = self.session.is_some() || self.limbo.is_some();
        let Some(impaired) = self.impaired.as_mut().filter(|_| !heard) else { return };
        if impaired.restarted || tick < impaired.report_at {
            return;
        }
        impaired.report_at = tick + every;
        let (group, node, intact) = (self.id, self.me, LogIndex(impaired.intact));
        let frame = match impaired.mute {
            true => Frame::VoteLost { group, node, loss: self.loss },
            false => Frame::LogDamaged { group, node, intact },
        };
        // Not the members that it knows alone: what was lost may have been a change of them, and then
        // the leader is one that only its messages told of.
        for address in self.heard_of().collect::<Vec<_>>() {
            cx.send(address, frame.clone());
        }
    }

    /// Takes entries again: one was committed by others. With it and all before it the replica holds whatever was
    /// committed of what it lost; what it held beyond that may have been replaced.
    pub(super) fn listen_again(&mut self, (term, index): (Term, LogIndex)) {
        let Some(impaired) = &mut self.impaired else { return };
        impaired.mute = false;
        impaired.open_term = term.0;
        impaired.last_known = index.0;
        impaired.commit = impaired.commit.max(index.0);
        impaired.report_at = 0;
    }

    /// Takes full part again once everything lost is held again.
    pub(super) fn heal(&mut self, cx: &mut Cx<'_>) {
        let (Some(impaired), Some(raft)) = (self.impaired, &self.raft) else { return };
        let log = &raft.raft.raft_log;
        let commit = impaired.commit;
        let own_term = log.term(commit).unwrap_or(0) == raft.raft.term && commit > 0;
        let holds = log.persisted >= commit
            && (log.persisted >= impaired.last_known || raft.raft.term > impaired.open_term);
        if impaired.restarted && !impaired.mute && own_term && holds {
            mark!("impaired replica is sound again");
            self.impaired = None;
            // Otherwise a start would find it in debt again, perhaps when another one has lost something.
            cx.shared.debt_paid = true;
            let text = format!("group {}: everything that was lost is here again", self.id);
            cx.notice(false, text);
        }
    }

    /// A follower lost entries that it had acknowledged: what it acknowledged counts no more.
    pub fn follower_damaged(&mut self, cx: &mut Cx<'_>, from: Address, intact: LogIndex) {
        if !self.leads() || !self.is_member(from) || from.node == self.me {
            return;
        }
        self.wake(cx);
        self.outboxes.remove(&from.node);
        let (tick, every) = (cx.shared.tick, report_every(cx));
        let waits = self.starting_over.get(&from.node).is_some_and(|until| tick < *until);
        if !waits {
            self.starting_over.insert(from.node, tick + every);
        }
        self.guard(cx, |group, _| {
            let raft = &mut group.raft.as_mut().expect("seen by the guard").raft;
            let id = u64::from(from.node.0);
            let Some(progress) = raft.mut_prs().get_mut(id) else { return };
            mark!("leader starts over with a damaged follower");
            progress.matched = progress.matched.min(intact.0);
            progress.committed_index = progress.committed_index.min(intact.0);
            progress.become_probe();
            if waits {
                // Two that contradict each other would go on at once and for ever. The follower is
                // sent to again when it answers a heartbeat.
                mark!("starting over waits for a heartbeat");
                progress.pause();
            }
            if raft.lead_transferee == Some(id) {
                raft.abort_leader_transfer();
            }
            raft.send_append(id);
        });
    }
}

/// Ticks between two reports of damage, and between two starts over at once.
fn report_every(cx: &Cx<'_>) -> u64 {
    u64::from(cx.shared.timing.heartbeat_ticks).max(1) * 2
}
