//! The index in memory: which tables of pages leave it, which come back, and who waits for them.

use super::Shard;
use crate::checkpoint::StoreOp;
use crate::consensus::{Arrival, Cx, Group, PageId};
use crate::event::{Effect, LinkId};
use crate::index::{CoolingRule, Page, PageContent};
use crate::log::{Location, RecordSeq};
use crate::mark;
use crate::planted::Bug;
use crate::replica::PageKey;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::command::BlockRange;
use basalt_wire::disk::moved::MovedBlock;
use basalt_wire::frame::{Request, RequestOp};
use basalt_wire::ids::{Address, GroupId, LogIndex, VolumeId};
use basalt_wire::repair::{Repair, RepairStep};
use basalt_wire::time::Time;
use bytes::Bytes;
use std::collections::VecDeque;

/// Tables that one turn looks at to see whether they may leave.
const LOOKS_MAX: usize = 512;
/// Tables on their way at a time of pages that are only to be emptied.
const DOOMED_MAX: usize = 64;
/// Questions of other replicas' repairs that wait. Who is not answered asks again.
const REPAIRS_MAX: usize = 64;

/// What of a shard waits for tables.
#[derive(Default)]
pub(super) struct Waiting {
    /// Reads of clients.
    pub reads: VecDeque<WaitingRead>,
    /// A piece of the cleaner's victim that was read, and since when it waits.
    pub piece: Option<(Bytes, u64)>,
    /// Blocks that were read for the scrub, or can not be read.
    pub scrubbed: Option<Option<Bytes>>,
    /// Copies that are durable and that the index does not point at yet, and since when.
    pub copies: VecDeque<(Copies, u64)>,
    /// Since when damaged blocks wait that repairs are due of.
    pub repairs: Option<u64>,
    /// Questions for other replicas' repairs.
    pub questions: VecDeque<(Address, Repair)>,
}

/// Copies of blocks that are durable and that the index does not point at yet.
pub(super) struct Copies {
    pub group: GroupId,
    pub blocks: Vec<MovedBlock>,
    /// Where the first of them stands.
    pub at: Location,
    /// The record, if they stand in the log.
    pub record: Option<RecordSeq>,
}

/// A client's read that waits.
pub(super) struct WaitingRead {
    pub link: LinkId,
    pub remote: bool,
    pub request: Request,
    pub arrival: Arrival,
    pub since: u64,
}

/// The range of which a request asks where it stands.
fn looked_at(request: &Request) -> Option<BlockRange> {
    match request.op {
        RequestOp::Read { range, .. }
        | RequestOp::Extents { range, .. }
        | RequestOp::Changes { range, .. }
        | RequestOp::Fill { range, .. } => Some(range),
        _ => None,
    }
}

impl Waiting {
    /// Since when the oldest waits.
    fn since(&self) -> Option<u64> {
        let reads = self.reads.iter().map(|read| read.since).min();
        let piece = self.piece.as_ref().map(|(_, since)| *since);
        let copies = self.copies.front().map(|(_, since)| *since);
        [reads, piece, copies, self.repairs].into_iter().flatten().min()
    }
}

/// How much of the index is in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStatus {
    /// Pages whose tables are in memory, but for those that hold something for snapshots, and pages whose
    /// tables are not.
    pub resident: u64,
    /// See `resident`.
    pub cold: u64,
    /// Bytes of memory that tables may take.
    pub limit: u64,
    /// Tables that came into memory since the shard was opened.
    pub loaded: u64,
    /// Tables that left it.
    pub left: u64,
    /// Pages that the store has lost and that have not come from other replicas yet, and those that have.
    pub lost: u64,
    /// See `lost`.
    pub recovered: u64,
}

impl Shard {
    /// How much of the index is in memory.
    pub(super) fn index_status(&self) -> IndexStatus {
        let usages = || self.groups.iter().map(|group| group.replica.usage());
        IndexStatus {
            resident: usages().map(|usage| usage.tables()).sum(),
            cold: usages().map(|usage| usage.cold()).sum(),
            limit: self.index_bytes,
            loaded: self.shared.loads.counts.loaded,
            left: self.shared.loads.counts.left,
            lost: self.shared.loads.lost() as u64,
            recovered: self.shared.loads.counts.recovered,
        }
    }

    /// The pages whose tables are out of memory, in order. Walks the whole index.
    pub fn cold_pages(&self) -> Vec<PageId> {
        let of = |group: &Group| {
            let pages = group.replica.pages_from(LogIndex(0), (VolumeId(0), 0), usize::MAX);
            let cold = pages.into_iter().filter(|page| group.replica.is_cold(*page));
            let id = group.id;
            cold.map(move |(volume, chunk)| PageId { group: id, volume, chunk }).collect::<Vec<_>>()
        };
        self.groups.iter().flat_map(of).collect()
    }

    /// Whether a read has to wait for tables.
    pub(super) fn read_waits(&mut self, request: &Request) -> bool {
        let Some(range) = looked_at(request) else { return false };
        let Some(slot) = self.by_id.get(&request.group) else { return false };
        let (loads, group) = (&mut self.shared.loads, &self.groups[*slot]);
        if group.replica.cold_pages() == 0 || self.shared.planted.is(Bug::ColdPageReadAtOnce) {
            return false;
        }
        !loads.hold(&group.replica, group.id, group.replica.pages_of_read(request.volume, range))
    }

    /// Keeps a read until tables came.
    pub(super) fn keep_read(
        &mut self,
        (arrival, link, remote): (Arrival, LinkId, bool),
        request: Request,
    ) {
        mark!("read waits for tables");
        let since = self.shared.loads.clock;
        self.waiting.reads.push_back(WaitingRead { link, remote, request, arrival, since });
    }

    /// Whether the cleaner has to wait for tables before it can judge a piece; then it is kept.
    pub(super) fn piece_waits(&mut self, piece: &Option<Bytes>) -> bool {
        let Some(piece) = piece.as_ref().filter(|_| self.has_cold_pages()) else { return false };
        let missing = self.pages_of_piece(piece);
        if missing.is_empty() {
            return false;
        }
        mark!("cleaner waits for tables");
        missing.into_iter().for_each(|page| self.shared.loads.want(page));
        self.waiting.piece = Some((piece.clone(), self.shared.loads.clock));
        true
    }

    /// Whether the scrub has to wait before it can say which of the blocks that were read still stand there;
    /// then they are kept.
    pub(super) fn scrub_waits(&mut self, piece: &Option<Bytes>) -> bool {
        let Some((slot, block)) = self.scrub.reads() else { return false };
        let (group, loads) = (&self.groups[slot], &mut self.shared.loads);
        let page = (block.volume, block.block / CHUNK_BLOCKS);
        if loads.hold_places(&group.replica, group.id, std::iter::once(page)) {
            return false;
        }
        mark!("scrub waits for a table");
        self.waiting.scrubbed = Some(piece.clone());
        true
    }

    fn has_cold_pages(&self) -> bool {
        self.groups.iter().any(|group| group.replica.cold_pages() > 0)
    }

    /// Points the index at copies that are durable, as far as the tables are in memory.
    pub(super) fn settle_copies(&mut self) {
        while let Some((done, _)) = self.waiting.copies.front() {
            if let Some(slot) = self.by_id.get(&done.group) {
                let (group, loads) = (&self.groups[*slot], &mut self.shared.loads);
                let pages = done.blocks.iter().map(|b| (b.volume, b.block / CHUNK_BLOCKS));
                if group.replica.cold_pages() > 0
                    && !loads.hold_places(&group.replica, group.id, pages)
                {
                    mark!("copies wait for tables");
                    break;
                }
            }
            let Some((done, _)) = self.waiting.copies.pop_front() else { break };
            self.settle(&done);
        }
        let segments = self.waiting.copies.iter().map(|(done, _)| done.at.segment);
        self.shared.loads.set_settling(segments.collect());
    }

    /// Whether repairs that are due have to wait until it is known what the damaged blocks are.
    pub(super) fn repairs_wait(&mut self, now: Time) -> bool {
        self.waiting.repairs = None;
        if !self.has_cold_pages() {
            return false;
        }
        let (loads, mut ready) = (&mut self.shared.loads, true);
        for (slot, block) in self.repairs.due(now) {
            let page = std::iter::once((block.volume, block.block / CHUNK_BLOCKS));
            let group = &self.groups[slot];
            ready &= loads.hold_places(&group.replica, group.id, page);
        }
        if !ready {
            mark!("repairs wait for tables");
            self.waiting.repairs = Some(loads.clock);
        }
        !ready
    }

    /// Whether it can be told where a block stands; else the question is kept until it can.
    pub(super) fn question_waits(
        &mut self,
        from: Address,
        page: PageKey,
        (id, request, step): (GroupId, u64, &RepairStep),
    ) -> bool {
        let Some(slot) = self.by_id.get(&id) else { return false };
        let group = &self.groups[*slot];
        let loads = &mut self.shared.loads;
        if loads.hold_places(&group.replica, group.id, std::iter::once(page)) {
            return false;
        }
        if self.waiting.questions.len() < REPAIRS_MAX {
            let message = Repair { group: id, request, step: step.clone() };
            self.waiting.questions.push_back((from, message));
        }
        true
    }

    /// The store gave what it holds of pages.
    pub(super) fn pages_loaded(
        &mut self,
        now: Time,
        pages: Vec<(PageId, Result<PageContent, String>)>,
        out: &mut Vec<Effect>,
    ) {
        if !self.serves() {
            return;
        }
        for (page, content) in pages {
            if !self.shared.loads.is_under_way(&page) {
                continue;
            }
            let Some(slot) = self.by_id.get(&page.group).copied() else { continue };
            let (group, clock) = (&mut self.groups[slot], self.shared.loads.clock);
            let warmed = content.and_then(|content| {
                let warmed = group.replica.warm(page.key(), &content, clock);
                warmed.map_err(str::to_owned)
            });
            match warmed {
                Ok(()) => {
                    self.shared.loads.came(&page);
                    group.tables_came();
                }
                Err(reason) => self.page_not_given(now, page, &reason, out),
            }
        }
        self.go_on_waiting(now, out);
    }

    /// The store does not give what it should hold of a page. It is asked again; when that does not help
    /// either, other replicas are.
    fn page_not_given(&mut self, now: Time, page: PageId, reason: &str, out: &mut Vec<Effect>) {
        mark!("table can not be loaded");
        if !self.shared.loads.failed(page) {
            self.page_lost(now, page, reason, out);
        }
    }

    fn page_lost(&mut self, now: Time, page: PageId, reason: &str, out: &mut Vec<Effect>) {
        self.shared.loads.lose(page);
        let mut cx = Cx { shared: &mut self.shared, now, out };
        match self.by_id.get(&page.group) {
            Some(slot) => self.groups[*slot].page_lost(&mut cx, page.key(), reason),
            None => cx.shared.loads.find(page),
        }
    }

    /// The store has met damage in pages that a checkpoint was to take over.
    pub(super) fn pages_not_carried(
        &mut self,
        now: Time,
        pages: Vec<PageId>,
        out: &mut Vec<Effect>,
    ) {
        for page in pages {
            let slot = self.by_id.get(&page.group);
            let replica = slot.map(|slot| &self.groups[*slot].replica);
            if replica.is_some_and(|replica| replica.is_cold(page.key())) {
                self.page_lost(now, page, "it is damaged", out);
            }
        }
    }

    /// Whether a read is of a page that was lost, in a group that can not get it from anywhere.
    pub(super) fn is_out_of_reach(&self, request: &Request) -> bool {
        let slot = self.by_id.get(&request.group).filter(|_| self.shared.loads.lost() > 0);
        let group = slot.map(|slot| &self.groups[*slot]).filter(|group| group.is_stopped());
        let (Some(group), Some(range)) = (group, looked_at(request)) else { return false };
        let mut pages = group.replica.pages_of_read(request.volume, range);
        pages.any(|page| group.replica.lost(page).is_some())
    }

    /// Tables came, or are not needed any more: what waited for them is looked at again.
    pub(super) fn go_on_waiting(&mut self, now: Time, out: &mut Vec<Effect>) {
        for read in std::mem::take(&mut self.waiting.reads) {
            let WaitingRead { link, remote, request, arrival, since } = read;
            let before = self.waiting.reads.len();
            self.request(now, (arrival, link, remote), request, out);
            // Who goes on waiting is as old as before.
            self.waiting.reads.iter_mut().skip(before).for_each(|read| read.since = since);
        }
        self.settle_copies();
        if let Some((piece, since)) = self.waiting.piece.take() {
            self.cleaner_read(now, Some(piece), out);
            self.waiting.piece.iter_mut().for_each(|(_, again)| *again = since);
        }
        if let Some(piece) = self.waiting.scrubbed.take() {
            self.scrub_read(now, piece, out);
        }
        for (from, message) in std::mem::take(&mut self.waiting.questions) {
            self.repair_message(now, from, message, out);
        }
        self.waiting.repairs = None;
    }

    /// Has tables leave memory beyond what they may take, and asks the store for those that are needed.
    pub(super) fn mind_memory(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.shared.loads.clock += 1;
        if self.shared.loads.take_found() {
            self.go_on_waiting(now, out);
        }
        self.fetch_doomed();
        self.cool_pages();
        let pages = self.shared.loads.take_queue();
        if !pages.is_empty() {
            out.push(Effect::Store(StoreOp::Pages(pages)));
        }
    }

    /// Asks for the tables of some pages that are to be emptied.
    fn fetch_doomed(&mut self) {
        for group in &self.groups {
            let room = DOOMED_MAX.saturating_sub(self.shared.loads.under_way());
            for (volume, chunk) in group.replica.doomed_pages(room) {
                self.shared.loads.want(PageId { group: group.id, volume, chunk });
            }
        }
    }

    fn cool_pages(&mut self) {
        let tables =
            |groups: &[Group]| groups.iter().map(|g| g.replica.usage().tables()).sum::<u64>();
        let most = self.index_bytes / Page::TABLE_BYTES;
        let mut beyond = tables(&self.groups).saturating_sub(most);
        self.shared.index_pressure = false;
        if beyond == 0 || !self.taker.is_on() {
            return;
        }
        let groups = self.groups.iter().filter_map(Group::waits_since);
        let others = self.waiting.since().into_iter().chain(self.evacuation.since);
        let rule = CoolingRule {
            durable: self.taker.durable(),
            held_since: groups.chain(others).min().unwrap_or(u64::MAX),
            careless: self.shared.planted.is(Bug::PageLeavesEarly),
        };
        let (count, mut looks, mut gone) = (self.groups.len(), LOOKS_MAX, 0);
        for i in 0..count {
            let replica = &mut self.groups[(self.next_cooled + i) % count].replica;
            let some = looks.min(LOOKS_MAX.div_ceil(count)).min(replica.idle_pages());
            looks -= some;
            gone += replica.cool(some, beyond - gone, &rule);
        }
        self.next_cooled = (self.next_cooled + 1) % count.max(1);
        beyond -= gone;
        self.shared.loads.counts.left += gone;
        self.shared.index_pressure = beyond > 0 && gone == 0;
    }
}
