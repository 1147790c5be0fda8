//! The entries of one group: what the raft library asks for, and what it never sees.
//!
//! The library is given only the term and index of each entry. Data and payload stand beside: where
//! they are in the log, and, for the newest entries, in memory.

use crate::log::{DataLocation, HardState, Location, Record};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::Payload;
use basalt_wire::disk::checkpoint::EntryPlace;
use basalt_wire::ids::{Address, GroupId, LogIndex, NodeId, Term};
use basalt_wire::membership::{ENTRY_KIND_MEMBERS, Membership};
use bytes::Bytes;
use raft::eraftpb::{self, ConfState, EntryType, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::VecDeque;

/// Bytes that the library counts for an entry without data. Its limits are given as multiples of it.
pub const ENTRY_SIZE: u64 = 12;
/// Payload after which an append message to a follower takes no further stored entry.
const PAYLOAD_PER_MESSAGE: u64 = 1 << 20;

/// Where an entry stands in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Its block data.
    pub location: Location,
    /// Blocks of it.
    pub blocks: u32,
    /// Its data.
    pub data_at: DataLocation,
    /// Whether the two places above are known: its batch was started.
    pub placed: bool,
    /// The type of the Raft entry.
    pub kind: u8,
}

/// An entry's content.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Packed commands, or a metadata command.
    pub data: Bytes,
    /// The commands' blocks. Nothing for entries that were replayed at start.
    pub payload: Option<Payload>,
    /// The type of the Raft entry.
    pub kind: u8,
}

impl Content {
    /// What the log is to write for an entry with this content.
    pub fn record(&self, group: GroupId, term: u64, index: u64) -> Record {
        Record::Entry {
            group,
            term: Term(term),
            index: LogIndex(index),
            kind: self.kind,
            data: self.data.clone(),
            payload: self.payload.clone().unwrap_or_default(),
        }
    }
}

/// All entries of a group, from index 1 on.
#[derive(Debug)]
pub struct Table {
    /// The members as of what is applied when the library starts.
    members: Membership,
    hard: HardState,
    /// Runs of entries of one term: the first index of each run, and the term.
    terms: Vec<(u64, u64)>,
    slots: Vec<Slot>,
    /// The entries that change the members.
    changes: Vec<u64>,
    /// Content of the newest entries; the first of them has index `cached_from`.
    cached: VecDeque<Content>,
    cached_from: u64,
    cached_bytes: usize,
}

impl Table {
    /// A table without entries.
    pub fn new(members: Membership) -> Table {
        Table {
            members,
            hard: HardState::default(),
            terms: Vec::new(),
            slots: Vec::new(),
            changes: Vec::new(),
            cached: VecDeque::new(),
            cached_from: 1,
            cached_bytes: 0,
        }
    }

    /// A table with the entries of a checkpoint: their terms and places, from index 1 on.
    pub fn restore(&mut self, entries: Vec<(u64, Slot)>) {
        self.terms.clear();
        self.changes.clear();
        self.cached.clear();
        self.cached_bytes = 0;
        self.slots = Vec::with_capacity(entries.len());
        for (index, (term, slot)) in (1..).zip(entries) {
            if self.terms.last().is_none_or(|(_, last)| *last != term) {
                self.terms.push((index, term));
            }
            if slot.kind == ENTRY_KIND_MEMBERS {
                self.changes.push(index);
            }
            self.slots.push(slot);
        }
        self.cached_from = self.slots.len() as u64 + 1;
    }

    /// An entry as a checkpoint says it. It has its place.
    pub fn entry_place(&self, index: u64) -> EntryPlace {
        let slot = &self.slots[index as usize - 1];
        EntryPlace {
            term: Term(self.term_of(index)),
            segment: slot.data_at.segment,
            batch_block: slot.data_at.block,
            record: slot.data_at.record,
            block: slot.location.block,
            blocks: slot.blocks,
            kind: slot.kind,
        }
    }

    /// The members as of what is applied when the library starts.
    pub fn set_members(&mut self, members: Membership) {
        self.members = members;
    }

    /// The last entry that changes the members and has another such entry behind it: a leader begins a
    /// change only when it has applied the one before, so everything up to here is committed.
    pub fn surely_committed(&self) -> u64 {
        self.changes.iter().rev().nth(1).copied().unwrap_or(0)
    }

    /// The type of an entry.
    pub fn kind_of(&self, index: u64) -> u8 {
        self.slot(index).map_or(0, |slot| slot.kind)
    }

    /// Index of the last entry.
    pub fn last(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Term of an entry; 0 before the first and after the last.
    pub fn term_of(&self, index: u64) -> u64 {
        if index == 0 || index > self.last() {
            return 0;
        }
        match self.terms.partition_point(|(first, _)| *first <= index) {
            0 => 0,
            run => self.terms[run - 1].1,
        }
    }

    /// The state with which the library starts.
    pub fn set_hard_state(&mut self, state: HardState) {
        self.hard = state;
    }

    /// The state with which the library starts.
    pub fn hard_state(&self) -> HardState {
        self.hard
    }

    /// Drops all entries from `index` on.
    pub fn truncate(&mut self, index: u64) {
        let keep = index - 1;
        self.slots.truncate(keep as usize);
        while self.terms.last().is_some_and(|(first, _)| *first > keep) {
            self.terms.pop();
        }
        while self.changes.last().is_some_and(|change| *change > keep) {
            self.changes.pop();
        }
        while self.cached_from + self.cached.len() as u64 > index && !self.cached.is_empty() {
            let content = self.cached.pop_back().expect("not empty");
            self.cached_bytes -= weight(&content);
        }
        if self.cached.is_empty() {
            self.cached_from = keep + 1;
        }
    }

    /// Appends an entry; one whose index is taken replaces that entry and all after it.
    pub fn append(&mut self, index: u64, term: u64, slot: Slot, content: Content) {
        assert!(0 < index && index <= self.last() + 1, "entry {index} after {}", self.last());
        if index <= self.last() {
            self.truncate(index);
        }
        if self.terms.last().is_none_or(|(_, last)| *last != term) {
            self.terms.push((index, term));
        }
        if slot.kind == ENTRY_KIND_MEMBERS {
            self.changes.push(index);
        }
        self.slots.push(slot);
        if self.cached.is_empty() {
            self.cached_from = index;
        }
        self.cached_bytes += weight(&content);
        self.cached.push_back(content);
    }

    /// Notes where an entry stands, unless it was replaced meanwhile. Its payload is kept in the
    /// memory from which it is written, so that what it was received in can be received into again
    /// while it is warm.
    pub fn place(
        &mut self,
        (index, term): (u64, u64),
        (location, data_at): (Location, DataLocation),
        payload: Bytes,
    ) {
        if self.term_of(index) != term {
            return;
        }
        let slot = &mut self.slots[index as usize - 1];
        (slot.location, slot.data_at, slot.placed) = (location, data_at, true);
        let content = index.checked_sub(self.cached_from);
        if let Some(content) = content.and_then(|at| self.cached.get_mut(at as usize))
            && content.payload.is_some()
        {
            content.payload = Some(Payload::from(payload));
        }
    }

    /// Where an entry stands.
    pub fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get((index as usize).checked_sub(1)?)
    }

    /// An entry's content, if it is in memory.
    pub fn content(&self, index: u64) -> Option<&Content> {
        self.cached.get(index.checked_sub(self.cached_from)? as usize)
    }

    /// Bytes of content in memory.
    pub fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    /// Forgets the content of entries up to `index`, as far as they have their place in the log.
    /// Gives the bytes that became free.
    pub fn evict(&mut self, index: u64) -> usize {
        let before = self.cached_bytes;
        while self.cached_from <= index && !self.cached.is_empty() {
            if !self.slots[self.cached_from as usize - 1].placed {
                break;
            }
            let content = self.cached.pop_front().expect("not empty");
            self.cached_bytes -= weight(&content);
            self.cached_from += 1;
        }
        before - self.cached_bytes
    }

    fn entry(&self, index: u64) -> eraftpb::Entry {
        let mut entry = eraftpb::Entry { term: self.term_of(index), index, ..Default::default() };
        if self.kind_of(index) == ENTRY_KIND_MEMBERS {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
        }
        entry
    }
}

/// Memory that an entry's content is counted with.
pub fn weight(content: &Content) -> usize {
    size_of::<Content>() + content.data.len() + content.payload.as_ref().map_or(0, Payload::len)
}

impl Storage for Table {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard_state = eraftpb::HardState {
            term: self.hard.term.0,
            vote: u64::from(self.hard.vote.0),
            commit: self.hard.commit.0,
            ..Default::default()
        };
        let ids = |list: &[Address]| list.iter().map(|a| u64::from(a.node.0)).collect();
        let conf_state = ConfState {
            voters: ids(&self.members.voters),
            voters_outgoing: ids(&self.members.outgoing),
            learners: ids(&self.members.learners),
            ..Default::default()
        };
        Ok(RaftState { hard_state, conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low == 0 || high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let most = max_size.into().map_or(usize::MAX, |size| (size / ENTRY_SIZE).max(1) as usize);
        if !context.can_async() {
            return Ok((low..high).take(most).map(|index| self.entry(index)).collect());
        }
        // An append to a follower: bounded by what the entries carry beside them.
        let mut payload = 0;
        let mut entries = Vec::with_capacity((high - low).min(8) as usize);
        for index in (low..high).take(most) {
            let blocks = self.slots[index as usize - 1].blocks;
            payload += u64::from(blocks) * BLOCK_BYTES as u64;
            if payload > PAYLOAD_PER_MESSAGE && !entries.is_empty() {
                break;
            }
            entries.push(self.entry(index));
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index > self.last() {
            return Err(Error::Store(StorageError::Unavailable));
        }
        Ok(self.term_of(index))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // The whole log stays on the device, so that no follower ever needs one.
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

/// A raft library's hard state as recorded in the log.
pub fn hard_state(state: &eraftpb::HardState) -> HardState {
    HardState {
        term: Term(state.term),
        vote: NodeId(state.vote as u32),
        commit: LogIndex(state.commit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(terms: &[u64]) -> Table {
        let mut table = Table::new(Membership::default());
        for (i, term) in terms.iter().enumerate() {
            let content = Content { data: Bytes::from(vec![0; 100]), ..Content::default() };
            table.append(i as u64 + 1, *term, Slot { placed: true, ..Slot::default() }, content);
        }
        table
    }

    #[test]
    fn terms_are_kept_in_runs() {
        let table = table(&[1, 1, 3, 3, 7]);
        let terms: Vec<_> = (0..=6).map(|i| table.term_of(i)).collect();
        assert_eq!(terms, [0, 1, 1, 3, 3, 7, 0]);
        assert_eq!(table.terms.len(), 3);
    }

    #[test]
    fn an_append_replaces_the_tail() {
        let mut table = table(&[1, 1, 2, 2]);
        table.append(3, 5, Slot::default(), Content::default());
        assert_eq!((table.last(), table.term_of(2), table.term_of(3)), (3, 1, 5));
        assert!(table.content(4).is_none());
        table.place((3, 2), Default::default(), Bytes::new());
        assert!(!table.slot(3).unwrap().placed, "the place of a replaced entry is not taken");
    }

    #[test]
    fn eviction_stops_at_what_has_no_place_yet() {
        let mut table = table(&[1, 1]);
        table.append(3, 1, Slot::default(), Content::default());
        let freed = table.evict(3);
        assert_eq!(freed, 2 * (100 + size_of::<Content>()));
        assert!(table.content(2).is_none() && table.content(3).is_some());
        table.truncate(1);
        assert_eq!((table.cached_bytes(), table.last()), (0, 0));
        table.append(1, 2, Slot::default(), Content::default());
        assert!(table.content(1).is_some());
    }
}
