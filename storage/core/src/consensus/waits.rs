//! What of a group waits for tables of pages that are out of memory.
//!
//! * Committed entries wait in order. Their tables are asked for when they are appended, so that they are
//!   mostly there when they commit.
//! * Blocks that were moved before the shard was opened are looked at behind the entries known to be
//!   committed then, as their tables come.
//! * Questions and answers about pages that are copied wait and are taken up as if they had just come.

use super::group::Group;
use super::loads::Loads;
use super::shared::Cx;
use crate::log::Location;
use crate::mark;
use crate::replica::{PageKey, Replica};
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::disk::moved::MovedBlock;
use basalt_wire::ids::{Address, GroupId};
use basalt_wire::pages::Pages;
use bytes::Bytes;
use std::collections::VecDeque;

/// Messages about pages that wait. Who asked is not answered beyond that, and asks again.
const MESSAGES_MAX: usize = 64;

/// What of a group waits.
#[derive(Debug, Default)]
pub struct Waits {
    /// Committed entries that are not applied: index and term, in order.
    pub(super) entries: VecDeque<(u64, u64)>,
    /// Blocks moved before the start that were not looked at, and the entry behind which they are.
    moves: VecDeque<(Vec<MovedBlock>, Location)>,
    behind: u64,
    /// Messages about pages that are copied.
    messages: VecDeque<(Address, Pages)>,
    /// Since when entries or moves wait, and since when what copies pages does.
    entries_since: Option<u64>,
    pages_since: Option<u64>,
}

impl Waits {
    /// Blocks that were moved before the start, behind an entry.
    pub(super) fn replay(&mut self, moves: VecDeque<(Vec<MovedBlock>, Location)>, behind: u64) {
        (self.moves, self.behind) = (moves, behind);
    }

    /// Nothing is applied any more.
    pub(super) fn stop(&mut self) {
        self.entries.clear();
        self.messages.clear();
        (self.entries_since, self.pages_since) = (None, None);
    }

    /// Since when the oldest waits.
    fn since(&self) -> Option<u64> {
        self.entries_since.into_iter().chain(self.pages_since).min()
    }
}

/// Asks for the tables that an entry will need.
pub(super) fn fetch(replica: &Replica, group: GroupId, loads: &mut Loads, data: &Bytes) {
    if replica.cold_pages() == 0 || group == GroupId::METADATA {
        return;
    }
    if !loads.hold(replica, group, Replica::pages_of_entry(data).into_iter()) {
        mark!("table asked for when an entry is appended");
    }
}

impl Group {
    /// Whether the tables of these pages are in memory; asks for those that are not.
    pub fn needs(&self, cx: &mut Cx<'_>, pages: impl Iterator<Item = PageKey>) -> bool {
        self.replica.cold_pages() == 0 || cx.shared.loads.hold(&self.replica, self.id, pages)
    }

    /// Whether an entry can be applied now.
    pub(super) fn has_pages_for(&mut self, cx: &mut Cx<'_>, index: u64) -> bool {
        if self.replica.cold_pages() == 0 || self.id == GroupId::METADATA {
            self.waits.entries_since = None;
            return true;
        }
        let Some(raft) = &self.raft else { return false };
        let content = raft.store().content(index).expect("kept until it is applied");
        let pages = Replica::pages_of_entry(&content.data);
        let ready = self.needs(cx, pages.into_iter());
        self.note_entries_wait(cx, ready);
        ready
    }

    fn note_entries_wait(&mut self, cx: &Cx<'_>, ready: bool) {
        let since = &mut self.waits.entries_since;
        if ready {
            *since = None;
        } else if since.is_none() {
            mark!("entries wait for tables");
            *since = Some(cx.shared.loads.clock);
        }
    }

    /// Whether what copies pages has these in memory; else it is taken up again when they came.
    pub(super) fn has_pages(
        &mut self,
        cx: &mut Cx<'_>,
        pages: impl Iterator<Item = PageKey>,
    ) -> bool {
        let ready = self.needs(cx, pages);
        if !ready && self.waits.pages_since.is_none() {
            mark!("copying of pages waits for tables");
            self.waits.pages_since = Some(cx.shared.loads.clock);
        }
        ready
    }

    /// Takes a message up again when tables came.
    pub(super) fn keep_message(&mut self, from: Address, message: Pages) {
        if self.waits.messages.len() < MESSAGES_MAX {
            self.waits.messages.push_back((from, message));
        }
    }

    /// Since when it waits for tables.
    pub fn waits_since(&self) -> Option<u64> {
        self.waits.since()
    }

    /// Whether blocks that were moved before the start wait to be looked at.
    pub fn is_replaying(&self) -> bool {
        !self.waits.moves.is_empty()
    }

    /// Tables came for it.
    pub fn tables_came(&mut self) {
        self.dirty = true;
        self.room_changed();
    }

    /// Goes on with what waited for tables.
    pub(super) fn go_on_waiting(&mut self, cx: &mut Cx<'_>) {
        if self.waits.entries_since.is_some() {
            self.apply(cx, Vec::new());
            self.settle_cache(cx);
        }
        self.go_on_replaying(cx);
        if self.waits.pages_since.take().is_none() {
            return;
        }
        for (from, message) in std::mem::take(&mut self.waits.messages) {
            self.pages(cx, from, message);
        }
        while self.go_on_with_pages(cx) {}
    }

    /// Looks at blocks that were moved before the start: behind what was known to be committed then, since a
    /// block that was moved, and then written, stands where it was written.
    pub(super) fn go_on_replaying(&mut self, cx: &mut Cx<'_>) {
        let stopped = self.raft.is_none();
        while let Some((blocks, at)) = self.waits.moves.front() {
            if self.replica.applied().0 < self.waits.behind && !stopped {
                return;
            }
            let pages = blocks.iter().map(|block| (block.volume, block.block / CHUNK_BLOCKS));
            if !cx.shared.loads.hold_places(&self.replica, self.id, pages) {
                self.note_entries_wait(cx, false);
                return;
            }
            self.replica.moved(blocks, *at);
            self.waits.moves.pop_front();
        }
        self.replica.replayed();
    }
}
