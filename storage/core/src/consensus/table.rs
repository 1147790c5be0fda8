//! The entries of one group: what the raft library asks for, and what it never sees.
//!
//! The library is given only the term and index of each entry. Data and payload stand beside: where
//! they are in the log, and, for the newest entries, in memory.

use crate::log::{DataLocation, HardState, Location, Record};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::Payload;
use basalt_wire::disk::checkpoint::{EntryPlace, MetadataEntry};
use basalt_wire::ids::{Address, GroupId, LogIndex, NodeId, SegmentId, Term};
use basalt_wire::membership::{ENTRY_KIND_MEMBERS, Membership};
use bytes::Bytes;
use raft::eraftpb::{self, ConfState, EntryType, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};

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

/// The entries of a group, from the first that is still held on.
#[derive(Debug)]
pub struct Table {
    /// The members as of what is applied when the library starts.
    members: Membership,
    hard: HardState,
    /// The first entry that is held; all before it are applied and gone.
    first: u64,
    /// The term of the entry before the first.
    before: u64,
    /// Runs of entries of one term: the first index of each run, and the term.
    terms: Vec<(u64, u64)>,
    slots: VecDeque<Slot>,
    /// The entries that change the members.
    changes: Vec<u64>,
    /// Content of the newest entries; the first of them has index `cached_from`.
    cached: VecDeque<Content>,
    cached_from: u64,
    cached_bytes: usize,
    /// Whether the content of all entries that are held is in memory.
    resident: bool,
    /// Followers that need entries from before the first, as the library noticed.
    lacking: RefCell<BTreeSet<u64>>,
}

impl Table {
    /// A table without entries.
    pub fn new(members: Membership) -> Table {
        Table {
            members,
            hard: HardState::default(),
            first: 1,
            before: 0,
            terms: Vec::new(),
            slots: VecDeque::new(),
            changes: Vec::new(),
            cached: VecDeque::new(),
            cached_from: 1,
            cached_bytes: 0,
            resident: false,
            lacking: RefCell::default(),
        }
    }

    /// A table without entries that keeps the content of all that it holds in memory: its log needs
    /// nothing of the device.
    pub fn resident(members: Membership) -> Table {
        Table { resident: true, ..Table::new(members) }
    }

    /// Whether the content of all entries that are held is in memory.
    pub fn is_resident(&self) -> bool {
        self.resident
    }

    /// A table with the entries of a checkpoint: their terms and places, from `first` on.
    pub fn restore(&mut self, first: u64, before: u64, entries: Vec<(u64, Slot)>) {
        self.start_at(first, before);
        for (term, slot) in entries {
            let index = self.last() + 1;
            self.note_term(index, term);
            if slot.kind == ENTRY_KIND_MEMBERS {
                self.changes.push(index);
            }
            self.slots.push_back(slot);
        }
        self.cached_from = self.last() + 1;
    }

    /// A resident table with the commands of a checkpoint, from `first` on.
    pub fn restore_commands(&mut self, first: u64, before: u64, commands: Vec<MetadataEntry>) {
        assert!(self.resident, "commands for a table that would forget them");
        self.start_at(first, before);
        for MetadataEntry { term, kind, data } in commands {
            let slot = Slot { placed: true, kind, ..Slot::default() };
            let content = Content { data, payload: None, kind };
            self.append(self.last() + 1, term.0, slot, content);
        }
    }

    /// Goes on behind an entry whose state came another way: nothing before `first` is held, and
    /// nothing from it on.
    pub fn start_at(&mut self, first: u64, before: u64) {
        (self.first, self.before, self.cached_from) = (first, before, first);
        self.terms.clear();
        self.slots.clear();
        self.changes.clear();
        self.cached.clear();
        self.cached_bytes = 0;
    }

    /// Forgets the entries up to `index`. They are applied, and a durable checkpoint stands for them, or a
    /// durable state of the control plane.
    pub fn truncate_front(&mut self, index: u64) {
        assert!(index <= self.last(), "entries up to {index} can not be forgotten");
        if index < self.first {
            return;
        }
        self.before = self.term_of(index);
        self.drop_content(index);
        self.slots.drain(..(index + 1 - self.first) as usize);
        self.first = index + 1;
        self.changes.retain(|change| *change > index);
        let runs = self.terms.partition_point(|(first, _)| *first <= self.first);
        self.terms.drain(..runs.saturating_sub(1));
        if self.slots.is_empty() {
            self.terms.clear();
        }
        self.cached_from = self.cached_from.max(self.first);
    }

    /// The first entry that is held, and the term of the one before it.
    pub fn first(&self) -> (u64, u64) {
        (self.first, self.before)
    }

    /// The first of the newest entries that take no more than `bytes` of the log together and stand in
    /// segments that may be `kept`.
    pub fn first_within(&self, bytes: u64, kept: impl Fn(SegmentId) -> bool) -> u64 {
        let mut left = bytes;
        let fits = |slot: &&Slot| {
            let size = (u64::from(slot.blocks) + 1) * BLOCK_BYTES as u64;
            let fits = size <= left && (!slot.placed || kept(slot.data_at.segment));
            left = left.saturating_sub(size);
            fits
        };
        self.last() + 1 - self.slots.iter().rev().take_while(fits).count() as u64
    }

    /// The first of the newest `entries` whose content takes no more than `bytes` of memory together. All of the
    /// content is in memory.
    pub fn first_of_newest(&self, entries: u64, bytes: u64) -> u64 {
        let mut left = bytes;
        let fits = |content: &&Content| {
            let size = weight(content) as u64;
            let fits = size <= left;
            left = left.saturating_sub(size);
            fits
        };
        let newest = self.cached.iter().rev().take(entries.try_into().unwrap_or(usize::MAX));
        self.last() + 1 - newest.take_while(fits).count() as u64
    }

    /// Takes the followers that need entries from before the first.
    pub fn take_lacking(&mut self) -> BTreeSet<u64> {
        std::mem::take(self.lacking.get_mut())
    }

    /// An entry as a checkpoint says it. It has its place.
    pub fn entry_place(&self, index: u64) -> EntryPlace {
        let slot = &self.slots[self.at(index)];
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
        self.first - 1 + self.slots.len() as u64
    }

    /// Term of an entry, or of the one before the first; 0 before that and after the last.
    pub fn term_of(&self, index: u64) -> u64 {
        if index < self.first {
            return if index + 1 == self.first { self.before } else { 0 };
        }
        if index > self.last() {
            return 0;
        }
        match self.terms.partition_point(|(first, _)| *first <= index) {
            0 => 0,
            run => self.terms[run - 1].1,
        }
    }

    /// Where an entry that is held stands among the slots.
    fn at(&self, index: u64) -> usize {
        (index - self.first) as usize
    }

    fn note_term(&mut self, index: u64, term: u64) {
        if self.terms.last().is_none_or(|(_, last)| *last != term) {
            self.terms.push((index, term));
        }
    }

    fn weight(&self, content: &Content) -> usize {
        if self.resident { 0 } else { weight(content) }
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
        let index = index.max(self.first);
        let keep = index - 1;
        self.slots.truncate(self.at(index));
        while self.terms.last().is_some_and(|(first, _)| *first > keep) {
            self.terms.pop();
        }
        while self.changes.last().is_some_and(|change| *change > keep) {
            self.changes.pop();
        }
        while self.cached_from + self.cached.len() as u64 > index && !self.cached.is_empty() {
            let content = self.cached.pop_back().expect("not empty");
            self.cached_bytes -= self.weight(&content);
        }
        if self.cached.is_empty() {
            self.cached_from = keep + 1;
        }
    }

    /// Appends an entry; one whose index is taken replaces that entry and all after it.
    pub fn append(&mut self, index: u64, term: u64, slot: Slot, content: Content) {
        let (first, last) = (self.first, self.last());
        assert!(first <= index && index <= last + 1, "entry {index} after {first} to {last}");
        if index <= last {
            self.truncate(index);
        }
        self.note_term(index, term);
        if slot.kind == ENTRY_KIND_MEMBERS {
            self.changes.push(index);
        }
        self.slots.push_back(slot);
        if self.cached.is_empty() {
            self.cached_from = index;
        }
        self.cached_bytes += self.weight(&content);
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
        if index < self.first || self.term_of(index) != term {
            return;
        }
        let at = self.at(index);
        let slot = &mut self.slots[at];
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
        self.slots.get(index.checked_sub(self.first)? as usize)
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
        if !self.resident {
            self.drop_content(index);
        }
        before - self.cached_bytes
    }

    fn drop_content(&mut self, index: u64) {
        while self.cached_from <= index && !self.cached.is_empty() {
            if !self.slots[self.at(self.cached_from)].placed {
                break;
            }
            let content = self.cached.pop_front().expect("not empty");
            self.cached_bytes -= self.weight(&content);
            self.cached_from += 1;
        }
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

/// The members in the library's words.
pub fn conf_state(members: &Membership) -> ConfState {
    let ids = |list: &[Address]| list.iter().map(|a| u64::from(a.node.0)).collect();
    ConfState {
        voters: ids(&members.voters),
        voters_outgoing: ids(&members.outgoing),
        learners: ids(&members.learners),
        ..Default::default()
    }
}

impl Storage for Table {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard_state = eraftpb::HardState {
            term: self.hard.term.0,
            vote: u64::from(self.hard.vote.0),
            commit: self.hard.commit.0,
            ..Default::default()
        };
        Ok(RaftState { hard_state, conf_state: conf_state(&self.members) })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low < self.first {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
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
            let blocks = self.slots[self.at(index)].blocks;
            payload += u64::from(blocks) * BLOCK_BYTES as u64;
            if payload > PAYLOAD_PER_MESSAGE && !entries.is_empty() {
                break;
            }
            entries.push(self.entry(index));
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index + 1 < self.first {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last() {
            return Err(Error::Store(StorageError::Unavailable));
        }
        Ok(self.term_of(index))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // Such a follower gets pages; see `resync`. The library goes on when it acknowledges them.
        self.lacking.borrow_mut().insert(to);
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
    fn the_front_can_be_forgotten() {
        let mut table = table(&[1, 1, 3, 3, 7]);
        table.truncate_front(3);
        let terms: Vec<_> = (0..=6).map(|i| table.term_of(i)).collect();
        assert_eq!(terms, [0, 0, 0, 3, 3, 7, 0]);
        assert_eq!((table.first(), table.last()), ((4, 3), 5));
        assert!(table.slot(3).is_none() && table.content(3).is_none());
        assert!(table.slot(4).is_some() && table.content(5).is_some());
        assert!(matches!(Storage::term(&table, 2), Err(Error::Store(StorageError::Compacted))));
        assert_eq!(Storage::term(&table, 3), Ok(3));
        table.truncate_front(5);
        assert_eq!((table.first(), table.last(), table.cached_bytes()), ((6, 7), 5, 0));
        table.append(6, 7, Slot::default(), Content::default());
        assert_eq!((table.term_of(5), table.term_of(6), table.last()), (7, 7, 6));
        table.truncate(2);
        assert_eq!((table.last(), table.term_of(5)), (5, 7));
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_and_in_the_log() {
        let mut table = Table::new(Membership::default());
        for n in 0..6 {
            let mut slot = Slot { blocks: 1, placed: n < 5, ..Slot::default() };
            slot.data_at.segment = SegmentId(n / 2);
            table.append(u64::from(n) + 1, 1, slot, Content::default());
        }
        assert_eq!(table.first_within(u64::MAX, |_| true), 1);
        assert_eq!(table.first_within(3 * 2 * BLOCK_BYTES as u64, |_| true), 4);
        assert_eq!(table.first_within(u64::MAX, |segment| segment.0 > 0), 3);
        // What has no place yet stands behind everything else.
        assert_eq!(table.first_within(u64::MAX, |_| false), 6);
    }

    #[test]
    fn a_resident_table_forgets_only_from_its_front() {
        let mut table = Table::resident(Membership::default());
        let entry = |term, kind, data| MetadataEntry { term: Term(term), kind, data };
        let commands =
            vec![entry(2, 0, Bytes::from_static(b"a")), entry(3, ENTRY_KIND_MEMBERS, Bytes::new())];
        table.restore_commands(5, 1, commands);
        table.append(7, 3, Slot { placed: true, ..Slot::default() }, Content::default());
        assert_eq!((table.evict(7), table.cached_bytes()), (0, 0));
        assert_eq!(table.content(5).unwrap().data, Bytes::from_static(b"a"));
        let terms: Vec<_> = (3..=8).map(|i| table.term_of(i)).collect();
        assert_eq!((terms, table.last()), (vec![0, 1, 2, 3, 3, 0], 7));
        table.truncate_front(5);
        assert_eq!((table.first(), table.last()), ((6, 2), 7));
        assert!(table.content(5).is_none() && table.content(6).is_some());
        table.truncate_front(7);
        assert_eq!((table.first(), table.last(), table.cached_bytes()), ((8, 3), 7, 0));
    }

    #[test]
    fn the_newest_are_counted_and_weighed() {
        let mut table = Table::resident(Membership::default());
        for n in 1..=6 {
            let content = Content { data: Bytes::from(vec![0; 100]), ..Content::default() };
            table.append(n, 1, Slot { placed: true, ..Slot::default() }, content);
        }
        let each = 100 + size_of::<Content>() as u64;
        assert_eq!(table.first_of_newest(4, u64::MAX), 3);
        assert_eq!(table.first_of_newest(u64::MAX, 2 * each + 1), 5);
        assert_eq!(table.first_of_newest(0, u64::MAX), 7);
        assert_eq!(table.first_of_newest(9, u64::MAX), 1);
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
