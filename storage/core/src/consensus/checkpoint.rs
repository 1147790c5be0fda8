//! What a group gives to checkpoints, and how it starts from one.

use super::group::Group;
use crate::checkpoint::{Changes, GroupSnapshot};
use crate::log::Segments;
use crate::mark;
use crate::replica::DirtyPages;
use basalt_wire::disk::batch::HardStateFields;
use basalt_wire::disk::checkpoint::{ChainPlace, GroupManifest, RUN_ENTRIES, Record};
use basalt_wire::ids::{LogIndex, Term};
use bytes::Bytes;

/// What a run of entries is counted with, in granules.
const RUN_COST: usize = 16;

/// A group at the instant that a checkpoint is of.
pub struct Frozen {
    applied: u64,
    pages: DirtyPages,
    volumes: u64,
    /// The next run of entries.
    run: u64,
}

/// Commands of the metadata group that no checkpoint holds yet, and those that one gave back.
#[derive(Default)]
pub struct Commands {
    kept: Vec<(LogIndex, Term, Bytes)>,
    restored: Vec<(Term, Bytes)>,
}

impl Commands {
    /// Keeps a command until a checkpoint holds it.
    pub fn keep(&mut self, index: LogIndex, term: Term, command: Bytes) {
        self.kept.push((index, term, command));
    }

    /// Takes what a checkpoint gave back.
    pub fn take_restored(&mut self) -> Vec<(Term, Bytes)> {
        std::mem::take(&mut self.restored)
    }
}

impl Group {
    /// Whether a checkpoint of it can be believed: it holds everything that it promised.
    pub fn is_sound(&self) -> bool {
        self.retired || (self.raft.is_some() && self.impaired.is_none())
    }

    /// Whether everything that stands before a place is applied. Entries that are not are replayed.
    pub fn applied_before(&self, place: &ChainPlace, segments: &Segments) -> bool {
        let Some(raft) = &self.raft else { return self.retired };
        let next = self.replica.applied().0 + 1;
        raft.store().slot(next).is_none_or(|slot| {
            let at = (segments.use_of(slot.data_at.segment.0), slot.data_at.block);
            !slot.placed || at >= (Some(place.segment_seq), place.block)
        })
    }

    /// Notes the instant.
    pub fn freeze(&mut self) -> Frozen {
        let applied = self.replica.applied().0;
        let run = self.stored_entries / RUN_ENTRIES as u64;
        let volumes = self.replica.stored().0;
        Frozen { applied, pages: self.replica.take_dirty_pages(), volumes, run }
    }

    /// Encodes what the budget allows; false when nothing is left.
    pub fn encode(&mut self, job: &mut Frozen, out: &mut Changes, budget: &mut usize) -> bool {
        while *budget > 0 {
            let Some((volume, chunk)) = job.pages.last().copied() else {
                return self.encode_entries(job, out, budget);
            };
            match self.replica.take_granule(volume, chunk) {
                Some((number, granule)) => {
                    *budget -= 1;
                    out.put(&Record::Granule(self.id, volume, chunk, number, granule));
                }
                None => {
                    job.pages.pop();
                }
            }
        }
        true
    }

    fn encode_entries(&mut self, job: &mut Frozen, out: &mut Changes, budget: &mut usize) -> bool {
        let Some(raft) = &self.raft else { return false };
        while job.run * (RUN_ENTRIES as u64) < job.applied {
            if *budget == 0 {
                return true;
            }
            *budget = budget.saturating_sub(RUN_COST);
            let first = job.run * RUN_ENTRIES as u64 + 1;
            let last = job.applied.min(first + RUN_ENTRIES as u64 - 1);
            let entries = (first..=last).map(|index| raft.store().entry_place(index)).collect();
            out.put(&Record::Entries(self.id, job.run, entries));
            job.run += 1;
        }
        self.stored_entries = job.applied;
        let upto = self.commands.kept.partition_point(|(index, ..)| index.0 <= job.applied);
        for (index, term, command) in self.commands.kept.drain(..upto) {
            out.put(&Record::Command(index, term, command));
        }
        false
    }

    /// How far the group is, once everything is encoded.
    pub fn manifest(&self, job: &Frozen) -> GroupManifest {
        let hard = self.recorded;
        GroupManifest {
            group: self.id,
            applied: LogIndex(job.applied),
            end: self.replica.applied(),
            hard: HardStateFields { term: hard.term, vote: hard.vote, commit: hard.commit },
            volumes: job.volumes,
            granules: self.replica.stored().1,
            gone: false,
        }
    }

    /// Starts from a checkpoint.
    pub fn restore(&mut self, snapshot: GroupSnapshot) {
        mark!("group starts from a checkpoint");
        self.stored_entries = snapshot.manifest.applied.0;
        self.replica = snapshot.replica;
        if let Some(members) = snapshot.members {
            self.set_members(members);
        }
        self.commands.restored = snapshot.commands;
    }
}
