//! What a group gives to checkpoints, and how it starts from one.

use super::group::Group;
use super::loads::PageId;
use super::shared::{Cx, Shared};
use super::table::Table;
use crate::checkpoint::{Carried, Changes, GroupSnapshot};
use crate::log::{DataLocation, Segments};
use crate::mark;
use crate::planted::Bug;
use crate::replica::DirtyPages;
use basalt_wire::disk::batch::HardStateFields;
use basalt_wire::disk::checkpoint::{GroupManifest, RUN_ENTRIES, Record, entries_key};
use basalt_wire::ids::{GroupId, LogIndex, NodeId, SegmentId, Term};
use std::collections::BTreeSet;

/// What a run of entries is counted with, in granules.
const RUN_COST: usize = 16;
/// A follower that is at work is waited for while it is behind by so many times what is kept anyway.
pub(super) const PATIENCE: u64 = 4;
/// The part of what is not live on a device that entries kept for followers may hold back from the cleaner.
const SPAN_SHARE: u64 = 16;

/// A group at the instant that a checkpoint is of.
pub struct Frozen {
    applied: u64,
    /// The first entry that the log holds once the checkpoint is durable, and the term before it.
    first: (u64, u64),
    pages: DirtyPages,
    volumes: u64,
    /// The next run of entries.
    run: u64,
    /// Whether the state came in pages, and this checkpoint is what makes that durable.
    restored: bool,
}

/// How much of the log a checkpoint leaves to followers that come back.
#[derive(Clone, Copy, Debug)]
pub struct Retention<'a> {
    /// Bytes of entries for each group; nothing is left if room is needed.
    pub bytes: Option<u64>,
    /// Segments of the log, all groups together, if room may ever be needed.
    span: Option<u64>,
    /// Where they stand.
    segments: Option<&'a Segments>,
    /// Peers that can not be reached.
    pub down: &'a BTreeSet<NodeId>,
}

impl Retention<'_> {
    /// What a checkpoint of this instant would leave in the log of each of so many groups.
    pub fn of(shared: &Shared, groups: usize) -> Retention<'_> {
        let share = shared.limits.log_retain_bytes / groups.max(1) as u64;
        let spare = shared.spare_bytes().map(|bytes| bytes / shared.segment_bytes as u64);
        Retention {
            bytes: (!shared.pressure).then_some(share),
            span: spare
                .filter(|_| !shared.planted.is(Bug::LogKeptUnbounded))
                .map(|segments| (segments / SPAN_SHARE).max(1)),
            segments: shared.log.segments(),
            down: &shared.down,
        }
    }

    /// The first of the newest entries of a group that may be kept, if `times` as much as usual is.
    fn first(&self, table: &Table, bytes: u64, times: u64) -> u64 {
        let newest = self.segments.and_then(Segments::newest).unwrap_or(0);
        let oldest = self.span.map_or(0, |span| newest.saturating_sub(span * times));
        let used = |segment: SegmentId| self.segments.and_then(|s| s.use_of(segment.0));
        table.first_within(bytes.saturating_mul(times), |id| used(id).is_some_and(|n| n >= oldest))
    }
}

impl Group {
    /// Whether a checkpoint of it can be believed.
    pub fn is_sound(&self) -> bool {
        self.retired || (self.raft.is_some() && !self.is_mute())
    }

    /// Where the first entry that is not applied stands: replay has to begin before it. Nothing if all
    /// that has its place is applied.
    pub fn unapplied_at(&self) -> Option<DataLocation> {
        let next = self.replica.applied().0 + 1;
        let slot = self.raft.as_ref()?.store().slot(next).filter(|slot| slot.placed);
        slot.map(|slot| slot.data_at)
    }

    /// The store is emptied: all that it held is given to the next checkpoint. Gives the pages of which the store
    /// alone knows what they hold, or `forgets` them (a planted bug).
    pub fn store_is_lost(&mut self, forgets: bool) -> Vec<Carried> {
        self.stored = (0, 0);
        let (group, cold) = (self.id, self.replica.store_is_lost(forgets));
        let carried = |((volume, chunk), granules)| {
            let page = PageId { group, volume, chunk };
            Carried { page, granules }
        };
        cold.into_iter().map(carried).collect()
    }

    /// Notes the instant.
    pub fn freeze(&mut self, retention: &Retention<'_>, out: &mut Changes) -> Frozen {
        let applied = self.replica.applied().0;
        let first = self.first_to_keep(retention);
        let restored = self.limbo.is_some();
        if self.raft.as_ref().is_some_and(|raft| raft.store().is_resident()) {
            self.save_commands((first.0, applied), restored, out);
            let (pages, volumes) = (self.replica.take_dirty_pages(), self.replica.stored().0);
            return Frozen { applied, first, pages, volumes, run: u64::MAX, restored };
        }
        let first_run = (first.0 - 1) / RUN_ENTRIES as u64;
        // What came in pages replaces all entries that the store knows.
        let (from, end) = (self.stored.0, self.stored.1.div_ceil(RUN_ENTRIES as u64));
        for run in from..if restored { end } else { first_run.min(end) } {
            out.delete_prefix(&entries_key(self.id, run));
        }
        let run = if restored { 0 } else { self.stored.1 / RUN_ENTRIES as u64 };
        let (pages, volumes) = (self.replica.take_dirty_pages(), self.replica.stored().0);
        Frozen { applied, first, pages, volumes, run: run.max(first_run), restored }
    }

    /// The first entry to be kept behind a checkpoint of this instant, and the term of the one before.
    fn first_to_keep(&self, retention: &Retention<'_>) -> (u64, u64) {
        let Some(raft) = &self.raft else { return (1, 0) };
        let table = raft.store();
        if table.is_resident() {
            // See `commands`.
            return table.first();
        }
        let mut keep = self.replica.applied().0 + 1;
        if let Some(bytes) = retention.bytes {
            // Whoever is at work and behind by no more than this is waited for.
            let patience = retention.first(table, bytes, PATIENCE);
            let needed = self.needed_by_others(retention.down).filter(|index| *index >= patience);
            keep = keep.min(retention.first(table, bytes, 1)).min(needed.min().unwrap_or(keep));
        }
        let keep = keep.max(table.first().0);
        (keep, table.term_of(keep - 1))
    }

    /// The entries that followers need next, as far as this leader knows.
    pub(super) fn needed_by_others<'a>(
        &'a self,
        down: &'a BTreeSet<NodeId>,
    ) -> impl Iterator<Item = u64> + 'a {
        let raft = self.raft.as_ref().filter(|_| self.leads());
        let peers = raft.into_iter().flat_map(|raft| raft.raft.prs().iter());
        let behind = peers
            .filter(|(id, peer)| peer.recent_active && !down.contains(&NodeId(**id as u32)))
            .map(|(_, peer)| peer.matched + 1);
        behind.chain(self.helping.values().map(|help| help.start + 1))
    }

    /// Encodes what the budget allows for the checkpoint of a number; false when nothing is left.
    pub fn encode(
        &mut self,
        job: &mut Frozen,
        out: &mut Changes,
        budget: &mut usize,
        number: u64,
    ) -> bool {
        while *budget > 0 {
            let Some((volume, chunk)) = job.pages.last().copied() else {
                return self.encode_entries(job, out, budget);
            };
            match self.replica.take_granule(volume, chunk, number) {
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
        let table = raft.store();
        if table.is_resident() {
            return false;
        }
        while job.run * (RUN_ENTRIES as u64) < job.applied {
            if *budget == 0 {
                return true;
            }
            *budget = budget.saturating_sub(RUN_COST);
            let first = (job.run * RUN_ENTRIES as u64 + 1).max(job.first.0);
            let last = job.applied.min((job.run + 1) * RUN_ENTRIES as u64);
            if first <= last {
                let entries = (first..=last).map(|index| table.entry_place(index)).collect();
                out.put(&Record::Entries(self.id, job.run, entries));
            }
            job.run += 1;
        }
        self.stored = ((job.first.0 - 1) / RUN_ENTRIES as u64, job.applied);
        false
    }

    /// How far the group is, once everything is encoded.
    pub fn manifest(&self, job: &Frozen) -> GroupManifest {
        let hard = self.recorded;
        let (owed, owed_term) = self.owed();
        GroupManifest {
            group: self.id,
            applied: LogIndex(job.applied),
            end: self.replica.applied(),
            hard: HardStateFields { term: hard.term, vote: hard.vote, commit: hard.commit },
            volumes: job.volumes,
            granules: self.replica.stored().1,
            first: LogIndex(job.first.0),
            before: Term(job.first.1),
            ahead: self.replica.ahead(),
            owed,
            owed_term,
            gone: false,
        }
    }

    /// A checkpoint of the group is durable: what it stands for leaves the log.
    pub fn checkpointed(&mut self, cx: &mut Cx<'_>, job: &Frozen) {
        if let Some(raft) = &mut self.raft
            && job.first.0 > raft.store().first().0
        {
            mark!("log truncated behind a checkpoint");
            raft.mut_store().truncate_front(job.first.0 - 1);
            self.settle_cache(cx);
        }
        if job.restored {
            self.restored_durably(cx);
        }
    }

    /// The segment of the first entry that is held on the device: with it begins what the group's log
    /// needs there. Nothing if it needs none.
    pub fn pins(&self) -> Option<SegmentId> {
        self.segment_of(self.raft.as_ref()?.store().first().0)
    }

    /// The same once the checkpoint is durable.
    pub fn first_segment(&self, job: &Frozen) -> Option<SegmentId> {
        self.segment_of(job.first.0)
    }

    /// The same once a checkpoint of this instant, were it taken, is durable.
    pub fn would_pin(&self, retention: &Retention<'_>) -> Option<SegmentId> {
        self.segment_of(self.first_to_keep(retention).0)
    }

    fn segment_of(&self, index: u64) -> Option<SegmentId> {
        let table = self.raft.as_ref()?.store();
        let slot = table.slot(index).filter(|slot| slot.placed && !table.is_resident());
        slot.map(|slot| slot.data_at.segment)
    }

    /// Starts from a checkpoint.
    pub fn restore(&mut self, snapshot: GroupSnapshot) {
        mark!("group starts from a checkpoint");
        let manifest = &snapshot.manifest;
        let resident = self.id == GroupId::METADATA;
        let runs = (manifest.first.0 - 1) / RUN_ENTRIES as u64;
        self.stored = (if resident { manifest.first.0 } else { runs }, manifest.applied.0);
        self.replica = snapshot.replica;
        if let Some(members) = snapshot.members {
            self.set_members(members);
        }
    }
}
