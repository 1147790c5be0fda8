//! Looking for damage and repairing it: the scrub's turns, questions to other replicas, and theirs.

use super::{ScrubStatus, Shard};
use crate::cleaner;
use crate::config::ScrubPlace;
use crate::consensus::{Cx, Group, LogRead, MendedCounts, PageId, Written};
use crate::event::Effect;
use crate::index::{BlockPlace, PageContent};
use crate::log::Location;
use crate::mark;
use crate::planted::{Bug, Planted};
use crate::scrub::{Given, Known, Target, Todo};
use basalt_wire::block::{CHUNK_BLOCKS, crc32c};
use basalt_wire::buffer::Payload;
use basalt_wire::command::BlockRange;
use basalt_wire::disk::checkpoint::GRANULE_BLOCKS;
use basalt_wire::disk::moved::MovedBlock;
use basalt_wire::frame::Frame;
use basalt_wire::ids::{Address, GroupId, LogIndex, VolumeId};
use basalt_wire::repair::{Repair, RepairStep};
use basalt_wire::time::Time;
use bytes::Bytes;
use std::collections::VecDeque;

/// Blocks that are read at a time for other replicas' repairs. Who asks for more is not answered, and asks
/// again.
const GIVES_MAX: usize = 128;

/// A block that is read for another replica's repair.
#[derive(Debug)]
pub(super) struct Give {
    slot: usize,
    to: Address,
    request: u64,
    volume: VolumeId,
    block: u64,
    /// Where it stands with the content asked for: the first is being read.
    places: VecDeque<BlockPlace>,
}

/// What the index says to the scrub.
struct Index<'a> {
    groups: &'a [Group],
    planted: Planted,
    clock: u64,
}

impl Known for Index<'_> {
    fn groups(&self) -> usize {
        self.groups.len()
    }

    fn pages(&self, slot: usize, from: (VolumeId, u64), most: usize) -> Vec<(VolumeId, u64)> {
        self.groups[slot].replica.pages_from(LogIndex(0), from, most)
    }

    fn places(&self, target: &Target) -> Vec<MovedBlock> {
        let kept = !self.planted.is(Bug::ScrubSkipsKept);
        self.groups[target.slot].replica.places(target.volume, target.range, kept)
    }

    fn is_known(&self, target: &Target) -> bool {
        let page = (target.volume, target.range.block / CHUNK_BLOCKS);
        self.groups[target.slot].replica.hold_places(page, self.clock)
    }

    fn is_live(&self, slot: usize, block: &MovedBlock) -> bool {
        let Some((segment, at)) = block.from else { return false };
        let place = BlockPlace { segment, block: at, checksum: block.checksum };
        let replica = &self.groups[slot].replica;
        // Where that is not known it is found out before anybody is asked for the block.
        let page = (block.volume, block.block / CHUNK_BLOCKS);
        replica.is_cold(page) && replica.lost(page).is_none()
            || replica.is_live(block.volume, block.block, place)
    }
}

impl Shard {
    fn index(&self) -> Index<'_> {
        Index { groups: &self.groups, planted: self.shared.planted, clock: self.shared.loads.clock }
    }

    /// Goes on with the scrub.
    pub(super) fn look_for_damage(&mut self, now: Time, out: &mut Vec<Effect>) {
        for target in std::mem::take(&mut self.shared.suspects) {
            self.scrub.suspect(target);
        }
        let live = self.shared.room.live;
        let busy = self.shared.pending_requests + self.shared.client_reads.len() > 0;
        let held = self.repairs.is_backlogged();
        let index = Index {
            groups: &self.groups,
            planted: self.shared.planted,
            clock: self.shared.loads.clock,
        };
        if let Some((at, blocks)) = self.scrub.next_read(now, &index, (live, busy, held)) {
            let mut cx = Cx { shared: &mut self.shared, now, out };
            cx.read(LogRead::Scrub, at, blocks);
        }
        if let Some(asked) = self.scrub.take_begin() {
            self.begin_survey(now, asked);
            // What replicas hold is compared as well: those of groups that sleep are not otherwise.
            self.each(now, out, |group, cx| group.compare_all(cx));
        }
        if let Some(Target { slot, volume, range }) = self.scrub.unknown() {
            let (group, page) = (&self.groups[slot], (volume, range.block / CHUNK_BLOCKS));
            self.shared.loads.hold_places(&group.replica, group.id, std::iter::once(page));
        }
        if let Some(report) = self.scrub.take_end() {
            let counts = self.repairs.counts();
            let (seconds, repaired) = (report.took.as_secs_f64(), counts.repaired);
            let text = format!(
                "scrub: all blocks were looked at in {seconds:.1} s: {} are as they should be, {} were \
                 damaged; since the start {repaired} were repaired, {} are not repaired yet",
                report.verified, report.bad, counts.waiting
            );
            out.push(Effect::Notice { alarm: counts.lost > 0, text });
        }
    }

    /// Blocks were read for the scrub, or can not be read.
    pub(super) fn scrub_read(&mut self, now: Time, piece: Option<Bytes>, out: &mut Vec<Effect>) {
        if self.scrub_waits(&piece) {
            return;
        }
        let index = Index {
            groups: &self.groups,
            planted: self.shared.planted,
            clock: self.shared.loads.clock,
        };
        let bad = self.scrub.take(piece.as_ref(), &index);
        let first = bad.first().copied();
        let news = bad.into_iter().filter(|(slot, block)| self.repairs.add(now, *slot, *block));
        let (news, group) = (news.count(), first.map(|(slot, _)| self.groups[slot].id));
        if let (Some((_, block)), Some(group), 1..) = (first, group, news) {
            mark!("scrub finds damage");
            let (volume, number) = (block.volume, block.block);
            let text = format!(
                "group {group}: {news} blocks from block {number} of volume {volume} on do not match their \
                 checksums; other replicas are asked for them"
            );
            out.push(Effect::Notice { alarm: true, text });
        }
    }

    /// Goes on with the repairs.
    pub(super) fn repair(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.repairs.deadline().is_none_or(|at| at > now) || self.repairs_wait(now) {
            return;
        }
        let patience = self.shared.timing.tick * self.shared.timing.election_ticks;
        let (index, shared) = (
            Index {
                groups: &self.groups,
                planted: self.shared.planted,
                clock: self.shared.loads.clock,
            },
            &self.shared,
        );
        let peers = |slot: usize| {
            let others = self.groups[slot].peers();
            others.filter(|peer| !shared.down.contains(&peer.node)).collect()
        };
        let is_live = |slot: usize, block: &MovedBlock| index.is_live(slot, block);
        for todo in self.repairs.plan(now, patience, is_live, peers) {
            match todo {
                Todo::Ask { to, request, slot, block } => {
                    let MovedBlock { volume, block, checksum, .. } = block;
                    let step = RepairStep::Want { volume, block, checksum };
                    send(out, to, self.groups[slot].id, request, step);
                }
                Todo::Lost { slot, block } => {
                    mark!("no replica has a damaged block");
                    let (group, me) = (self.groups[slot].id, self.shared.me.node);
                    let text = format!(
                        "group {group}: block {} of volume {} is damaged on node {me}, and no replica that \
                         answers has it: it is asked for again later",
                        block.block, block.volume
                    );
                    out.push(Effect::Notice { alarm: true, text });
                }
            }
        }
    }

    /// Takes a message about a repair.
    pub(super) fn repair_message(
        &mut self,
        now: Time,
        from: Address,
        message: Repair,
        out: &mut Vec<Effect>,
    ) {
        let Repair { group, request, step } = message;
        let Some(slot) = self.by_id.get(&group).copied() else { return };
        let me = self.shared.me;
        if from.node == me.node || !self.groups[slot].is_member(from) {
            mark!("message about a repair from a stranger");
            return;
        }
        match step {
            RepairStep::Want { volume, block, .. }
                if self.question_waits(
                    from,
                    (volume, block / CHUNK_BLOCKS),
                    (group, request, &step),
                ) => {}
            RepairStep::Want { volume, block, checksum } => {
                let places = self.groups[slot].replica.copies(volume, block, checksum);
                let to = from;
                let give = Give { slot, to, request, volume, block, places: places.into() };
                self.give(now, give, out);
            }
            RepairStep::Have { content } => self.take_copy(now, (from, request), content),
            RepairStep::HaveNot => self.repairs.refused(now, from, request),
        }
    }

    /// Reads a block for another replica, or says that it is not here.
    fn give(&mut self, now: Time, give: Give, out: &mut Vec<Effect>) {
        let Some(place) = give.places.front() else {
            let group = self.groups[give.slot].id;
            send(out, give.to, group, give.request, RepairStep::HaveNot);
            return;
        };
        let at = Location { segment: place.segment, block: place.block };
        if self.gives.len() < GIVES_MAX {
            let give = self.gives.insert(give);
            Cx { shared: &mut self.shared, now, out }.read(LogRead::Repair(give), at, 1);
        }
    }

    /// A block for another replica was read, or can not be read.
    pub(super) fn copy_read(
        &mut self,
        now: Time,
        at: usize,
        content: Option<Bytes>,
        out: &mut Vec<Effect>,
    ) {
        let Some(mut give) = self.gives.take(at) else { return };
        let Some(place) = give.places.pop_front() else { return };
        let trust = self.shared.planted.is(Bug::RepairUnverified);
        match content.filter(|content| trust || crc32c(content) == place.checksum) {
            Some(content) => {
                self.given += 1;
                let step = RepairStep::Have { content: Payload::from(content) };
                send(out, give.to, self.groups[give.slot].id, give.request, step);
            }
            None => {
                mark!("block for a repair is damaged");
                let (slot, volume) = (give.slot, give.volume);
                let range = BlockRange { block: give.block, count: 1 };
                self.scrub.suspect(Target { slot, volume, range });
                self.give(now, give, out);
            }
        }
    }

    /// Writes a block that another replica gave.
    fn take_copy(&mut self, now: Time, (from, request): (Address, u64), content: Payload) {
        let trust = self.shared.planted.is(Bug::RepairUnverified);
        let Some(Given { slot, block }) = self.repairs.given(now, (from, request), &content, trust)
        else {
            return;
        };
        if !self.index().is_live(slot, &block) {
            // Found out when it would be asked for again.
            return;
        }
        let blocks = self.shared.room.levels.map_or(1, |levels| levels.move_blocks);
        if self.shared.read_only || !self.shared.log.has_room(blocks) {
            self.repairs.no_room(now, request);
            return;
        }
        let group = self.groups[slot].id;
        let record = cleaner::record(group, &[block], content);
        let seq = self.shared.record(record, Written { group: slot, entry: None });
        self.cleaner.recorded(seq, group, vec![block]);
        self.repairs.recorded(request, seq);
    }

    /// What looking for damage came to.
    pub(super) fn scrub_status(&self) -> ScrubStatus {
        let position = self.scrub.position();
        ScrubStatus {
            scrub: self.scrub.counts(),
            repairs: self.repairs.counts(),
            given: self.given,
            survey: self.survey.counts(),
            surveying: self.survey.is_running(),
            emptied: self.evacuation.begun,
            position: position.map(|at| ScrubPlace {
                group: self.groups[at.slot].id,
                // Behind all pages there are.
                page: at.page.unwrap_or((VolumeId(u64::MAX), u64::MAX)),
                left: at.left,
            }),
            last: self.scrub.last(),
            mended: self.mended(),
            differing_pages: self.groups.iter().map(|group| group.differing_pages() as u64).sum(),
        }
    }

    fn mended(&self) -> MendedCounts {
        self.groups.iter().map(Group::mended).fold(MendedCounts::default(), |sum, counts| {
            MendedCounts {
                pages: sum.pages + counts.pages,
                blocks: sum.blocks + counts.blocks,
                undecided: sum.undecided + counts.undecided,
            }
        })
    }

    /// Has a replica forget a block, as a fault of memory or program would: for tests of what is done about
    /// that. False if it was not mapped.
    #[cfg(feature = "planted")]
    pub fn forget_block(&mut self, group: GroupId, volume: VolumeId, block: u64) -> bool {
        let slot = self.by_id[&group];
        self.groups[slot].replica.forget_block(volume, block)
    }

    /// Where every live block of the device stands, those kept for snapshots included. Walks the whole
    /// index; `stored` gives what the store holds of pages whose tables are not in memory.
    pub fn places(&self, stored: impl Fn(PageId) -> PageContent) -> Vec<(GroupId, MovedBlock)> {
        let mut places = Vec::new();
        for group in &self.groups {
            let (id, replica) = (group.id, &group.replica);
            for (volume, chunk) in replica.pages_from(LogIndex(0), (VolumeId(0), 0), usize::MAX) {
                let (block, count) = (chunk * CHUNK_BLOCKS, CHUNK_BLOCKS as u32);
                // What the store still says of a page of which it lost a part stands nowhere any more.
                if replica.lost((volume, chunk)).is_some() {
                    continue;
                }
                let all = match replica.is_cold((volume, chunk)) {
                    true => blocks_of(volume, block, &stored(PageId { group: id, volume, chunk })),
                    false => replica.places(volume, BlockRange { block, count }, true),
                };
                places.extend(all.into_iter().map(|place| (id, place)));
            }
        }
        places
    }
}

/// The blocks of a page, which begins with one, as the store holds it.
fn blocks_of(volume: VolumeId, first: u64, content: &PageContent) -> Vec<MovedBlock> {
    let mut blocks = Vec::new();
    for (number, granule) in content {
        let first = first + u64::from(*number) * GRANULE_BLOCKS as u64;
        for (block, place) in (first..).zip(&granule.places) {
            let Some((segment, at, checksum)) = *place else { continue };
            blocks.push(MovedBlock { volume, block, checksum, from: Some((segment, at)) });
        }
    }
    blocks
}

fn send(out: &mut Vec<Effect>, to: Address, group: GroupId, request: u64, step: RepairStep) {
    let frame = Frame::Repair(Box::new(Repair { group, request, step }));
    out.push(Effect::Send { to, frame });
}
