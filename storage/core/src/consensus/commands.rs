//! The metadata group's commands: which of them the control plane is told, and which are forgotten.
//!
//! The state that they make is the control plane's, and so is where it is kept. This replica knows of it only up
//! to which entry it is in the control plane's store, for good ([`crate::event::Event::MetadataSaved`], and
//! [`crate::config::ShardConfig::metadata_saved`] at a start). What is committed never changes, so that such a state
//! counts for ever, whatever becomes of the log here.
//!
//! * Told is each command behind that state, once it is applied.
//! * Forgotten is what that state stands for, but for the newest ones, and those that followers need that are at
//!   work and not far behind. In memory at once, in the store with the next checkpoint: one that is older holds
//!   more than is needed, which does no harm.
//! * A follower that needs what the leader has forgotten is brought up as others are by pages, see
//!   [`super::resync`], but that there is no page: it opens a session, is told the entry S at which that begins,
//!   its term and the members, and has the control plane fetch the state as of S or later. Only when that is kept
//!   for good it goes over to S with the next checkpoint. So a crash finds the log before, and whatever state, or
//!   both as they are to be. The entries from S on are applied, and those that the state stands for are not told.
//! * If what is left of the log begins behind the state that the control plane has, because its store was lost or
//!   is an older one, nothing is told before it has fetched one that reaches to the log: nothing is made up.

use super::checkpoint::PATIENCE;
use super::group::Group;
use super::resync::Session;
use super::shared::Cx;
use crate::checkpoint::Changes;
use crate::event::Effect;
use crate::mark;
use crate::planted::Bug;
use basalt_wire::disk::checkpoint::{COMMANDS_PREFIX, MetadataEntry, Record, command_prefixes};
use basalt_wire::ids::{GroupId, LogIndex, NodeId, Term};
use basalt_wire::membership::ENTRY_KIND_MEMBERS;
use bytes::Bytes;

/// What the control plane knows of the metadata group.
#[derive(Debug, Default)]
pub(super) struct Commands {
    /// The last entry that it was told, or that its state stands for.
    told: u64,
    /// The entry before the first that is held, if the control plane's state does not reach so far.
    lacks: Option<u64>,
}

impl Group {
    /// Tells the control plane what is applied and behind its state, or that it lacks a part.
    pub(super) fn begin_telling(&mut self, cx: &mut Cx<'_>) {
        let Some(raft) = self.raft.as_ref().filter(|_| self.id == GroupId::METADATA) else {
            return;
        };
        let (saved, before) = (cx.shared.metadata_saved, raft.store().first().0 - 1);
        self.commands = Commands { told: saved, lacks: (saved < before).then_some(before) };
        if self.commands.lacks.is_none() {
            self.tell_commands(cx);
            return;
        }
        mark!("state of the metadata group does not reach to its log");
        let text = format!(
            "the control plane's state of the metadata group reaches to entry {saved}, and what is left of the \
             log here begins behind entry {before}: the store lost what it held or is an older one. Nothing of \
             the metadata is known here before the state has come from another node"
        );
        cx.notice(true, text);
        cx.out.push(Effect::FetchMetadata { from: self.leader(), at_least: LogIndex(before) });
    }

    /// Tells what is held, applied, and not told yet.
    fn tell_commands(&mut self, cx: &mut Cx<'_>) {
        let Some(raft) = &self.raft else { return };
        let table = raft.store();
        let applied = self.replica.applied().0;
        for index in self.commands.told + 1..=applied {
            let command = match table.kind_of(index) {
                // What changes the members is no command of the metadata state.
                ENTRY_KIND_MEMBERS => Bytes::new(),
                _ => table.content(index).expect("what is not saved is held").data.clone(),
            };
            let (term, index) = (Term(table.term_of(index)), LogIndex(index));
            cx.out.push(Effect::Applied { index, term, command });
        }
        self.commands.told = self.commands.told.max(applied);
    }

    /// Tells a command that is applied just now, unless the control plane's state stands for it.
    pub(super) fn tell_command(&mut self, cx: &mut Cx<'_>, index: u64, term: Term, data: Bytes) {
        if self.commands.lacks.is_some() || index <= self.commands.told {
            mark!("metadata command that need not be told");
            return;
        }
        self.commands.told = index;
        cx.out.push(Effect::Applied { index: LogIndex(index), term, command: data });
    }

    /// The control plane has a state in its store, up to [`super::shared::Shared::metadata_saved`].
    pub fn metadata_saved(&mut self, cx: &mut Cx<'_>) {
        let saved = cx.shared.metadata_saved;
        self.commands.told = self.commands.told.max(saved);
        if self.commands.lacks.is_some_and(|before| before <= saved) {
            mark!("state of the metadata group reaches to its log again");
            self.commands.lacks = None;
            self.tell_commands(cx);
            cx.notice(
                false,
                format!("the state of the metadata group is here, up to entry {saved}"),
            );
        }
        self.forget_commands(cx);
        self.guard(cx, |group, cx| group.ask_more(cx));
    }

    /// Forgets commands that the control plane's state stands for.
    pub(super) fn forget_commands(&mut self, cx: &mut Cx<'_>) {
        // Without checkpoints nobody who needs them could be brought up another way.
        let may = self.id == GroupId::METADATA && cx.shared.checkpoints;
        let Some(raft) = self.raft.as_ref().filter(|_| may) else { return };
        let (table, applied) = (raft.store(), self.replica.applied().0);
        let limits = cx.shared.limits;
        let (entries, bytes) = (limits.metadata_retain_entries, limits.metadata_retain_bytes);
        let newest = table.first_of_newest(entries, bytes);
        let patience =
            table.first_of_newest(entries.saturating_mul(PATIENCE), bytes.saturating_mul(PATIENCE));
        // Whoever is at work and behind by no more than this is waited for.
        let needed =
            self.needed_by_others(&cx.shared.down).filter(|index| *index >= patience).min();
        let hasty = cx.shared.planted.is(Bug::CommandsForgottenEarly);
        let saved = if hasty { applied } else { cx.shared.metadata_saved.min(applied) };
        let first = newest.min(needed.unwrap_or(newest)).min(saved + 1);
        if first > table.first().0 {
            mark!("metadata commands forgotten");
            let raft = self.raft.as_mut().expect("seen above");
            raft.mut_store().truncate_front(first - 1);
        }
    }

    /// Puts the commands that a checkpoint of this instant holds, and deletes those that it does not.
    pub(super) fn save_commands(
        &mut self,
        (first, applied): (u64, u64),
        restored: bool,
        out: &mut Changes,
    ) {
        let Some(raft) = &self.raft else { return };
        let (table, (held, last)) = (raft.store(), self.stored);
        let mut from = first.max(last + 1);
        if restored {
            // Of what the store holds nothing counts any more.
            out.delete_prefix(COMMANDS_PREFIX);
            from = first;
        } else {
            let gone = command_prefixes(held.max(1), first.min(last + 1));
            gone.for_each(|prefix| out.delete_prefix(&prefix));
        }
        for index in from..=applied {
            let data = table.content(index).expect("a resident entry").data.clone();
            let (term, kind) = (Term(table.term_of(index)), table.kind_of(index));
            out.put(&Record::Command(LogIndex(index), MetadataEntry { term, kind, data }));
        }
        self.stored = (first, applied);
    }

    /// Asks the control plane for a state that a session leads to, if it has none.
    pub(super) fn ask_for_state(&self, cx: &mut Cx<'_>, from: NodeId, start: LogIndex) {
        if cx.shared.metadata_saved < start.0 {
            mark!("state of the metadata group asked for");
            cx.out.push(Effect::FetchMetadata { from: Some(from), at_least: start });
        }
    }

    /// Whether what a session leads to is complete but for its pages: of the metadata group, whether the control
    /// plane has the state.
    pub(super) fn has_state_for(&self, cx: &Cx<'_>, session: &Session) -> bool {
        self.id != GroupId::METADATA
            || cx.shared.planted.is(Bug::MetadataNotAwaited)
            || session.leads_to().is_some_and(|start| start.0 <= cx.shared.metadata_saved)
    }
}
