//! A replica that holds something else than the majority is made to hold what the majority does, page by page.
//!
//! 1. *Suspicion*: a replica learns that a page of it differs from another one's, by its leader's round of
//!    digests or by somebody's question.
//! 2. *Inquiry*: it asks all others what digest the page has as of what it has applied. If a majority of
//!    the voters agrees on another one than its own, it is this replica that is wrong. If they agree
//!    with it, others are, and see to that themselves. If no majority agrees, nothing is overwritten.
//! 3. *Copy*: it asks one of the majority for the page's granules, saying which blocks it holds, as a replica
//!    does that is brought up by pages. What comes is as of an entry A, not before what was applied when
//!    it asked. Once A is applied here too, each granule to which no command was applied since the
//!    question is replaced: what it was as of A it is now. The others are asked for again.
//!
//! Nothing of this is in the Raft log. A copied page is durable with the next checkpoint; if a crash comes
//! first, the difference is found again.

use super::comparing::Page;
use super::group::Group;
use super::resync::{Fill, ToldPage, blocks_with_room, fits};
use super::shared::Cx;
use crate::log::{Location, RecordSeq};
use crate::mark;
use crate::planted::Bug;
use crate::replica::blocks_match;
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::buffer::Payload;
use basalt_wire::digests::{Digests, DigestsKind, PageDigest};
use basalt_wire::disk::checkpoint::GRANULE_BLOCKS;
use basalt_wire::frame::Frame;
use basalt_wire::ids::{Address, LogIndex, NodeId};
use basalt_wire::pages::{Pages, Step, WANT_GRANULES_MAX, granules_that_fit};
use std::collections::{BTreeMap, BTreeSet};

/// Pages that are known to differ from some other replica's.
const SUSPECTS_MAX: usize = 1024;
/// Ticks between two inquiries about pages that the last one did not settle: two seconds.
const REST_TICKS: u64 = 40;
/// Times that a question is asked before a copy is given up.
const TRIES_MAX: u32 = 6;
/// Granules of a page.
const GRANULES: u8 = (CHUNK_BLOCKS as usize / GRANULE_BLOCKS) as u8;

/// What came of it since the shard was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MendedCounts {
    /// Pages of this shard's replicas that were made what the majority holds.
    pub pages: u64,
    /// Blocks that were copied for that.
    pub blocks: u64,
    /// Pages of which no majority holds the same, as far as is known now.
    pub undecided: u64,
}

/// What a replica keeps of pages in which it differs from others.
#[derive(Debug, Default)]
pub struct Mending {
    suspects: BTreeSet<Page>,
    /// Those of which it was told that no majority agrees.
    undecided: BTreeSet<Page>,
    /// The page that was inquired about last.
    last: Option<Page>,
    /// No inquiry before this tick.
    after: u64,
    inquiry: Option<Inquiry>,
    copy: Option<Copy>,
    /// Who could not give a page: another one is asked, if there is one.
    avoid: Option<NodeId>,
    /// Counts the questions.
    asks: u32,
    /// Questions that wait until as much is applied here, by who asked: the last one of each.
    waiting: BTreeMap<NodeId, (Address, Pages)>,
    counts: MendedCounts,
}

/// A question to all others about a page.
#[derive(Debug)]
struct Inquiry {
    page: Page,
    /// The page is meant as of this entry.
    at: LogIndex,
    /// What was told, by this replica first.
    told: BTreeMap<NodeId, u64>,
    until: u64,
}

/// Granules, and the blocks that came with them: number in the chunk, CRC-32C, content.
type Came = (ToldPage, Vec<(u16, u32)>, Payload);

/// A page that is being copied.
#[derive(Debug)]
struct Copy {
    page: Page,
    from: Address,
    session: u64,
    /// Granules to be asked for, and the question about them.
    left: Vec<u8>,
    ask: u32,
    most: u16,
    /// What was applied when it was asked.
    asked_at: LogIndex,
    again_at: u64,
    tries: u32,
    /// Whether the question waits until the page's table is in memory.
    waits: bool,
    /// What came, until as much is applied here.
    told: Option<Came>,
    /// What came and is written, until it is durable.
    fill: Option<Fill>,
    blocks: u64,
}

impl Copy {
    /// Whether an answer came that is not put to use yet.
    fn has_come(&self) -> bool {
        self.told.is_some() || self.fill.is_some()
    }
}

impl Mending {
    /// Whether something is to be done about a page that can be settled.
    pub(super) fn is_busy(&self) -> bool {
        let open = |page| !self.undecided.contains(page);
        self.inquiry.is_some() || self.copy.is_some() || self.suspects.iter().any(open)
    }

    /// Whether this replica is known to be wrong.
    pub(super) fn is_wrong(&self) -> bool {
        self.copy.is_some()
    }

    /// Pages that are known to differ from another replica's, and the one that is being copied.
    pub(super) fn suspects(&self) -> BTreeSet<Page> {
        self.suspects.iter().copied().chain(self.copy.as_ref().map(|copy| copy.page)).collect()
    }

    /// A page differs from another replica's.
    pub(super) fn suspect(&mut self, page: Page) {
        if self.suspects.len() < SUSPECTS_MAX {
            self.suspects.insert(page);
        }
    }

    /// A page is what the leader has.
    pub(super) fn agrees(&mut self, page: Page) {
        self.suspects.remove(&page);
        self.undecided.remove(&page);
    }

    /// What came of it so far.
    pub(super) fn counts(&self) -> MendedCounts {
        MendedCounts { undecided: self.undecided.len() as u64, ..self.counts }
    }

    /// The next page to inquire about: all have their turn.
    fn next(&self) -> Option<Page> {
        let behind =
            self.last.map_or((Default::default(), 0), |(volume, chunk)| (volume, chunk + 1));
        self.suspects.range(behind..).next().or(self.suspects.first()).copied()
    }
}

impl Group {
    /// Whether this replica's pages are as of what it has applied, so that they can be compared and told.
    pub(super) fn has_settled_pages(&self) -> bool {
        let brought_up = self.session.is_some() || self.limbo.is_some() || self.impaired.is_some();
        self.raft.is_some() && !brought_up && !self.replica.is_fuzzy()
    }

    /// Inquires, asks again, gives up: as time passes.
    pub(super) fn tick_mending(&mut self, cx: &mut Cx<'_>) {
        if !self.has_settled_pages() {
            self.stop_mending();
            return;
        }
        let tick = cx.shared.tick;
        if self.mending.inquiry.as_ref().is_some_and(|inquiry| tick >= inquiry.until) {
            mark!("inquiry is not answered by a majority");
            self.mending.inquiry = None;
            self.mending.after = tick + REST_TICKS;
        }
        if self.mending.copy.is_some() {
            self.ask_for_copy_again(cx);
        } else if self.mending.inquiry.is_none() && tick >= self.mending.after {
            self.inquire(cx);
        }
    }

    /// Forgets what is under way: the pages are not what they were.
    pub(super) fn stop_mending(&mut self) {
        self.mending.inquiry = None;
        self.mending.waiting.clear();
        if self.mending.copy.take().is_some() {
            mark!("mending given up");
            self.replica.unstage();
            self.replica.unwatch();
        }
    }

    fn inquire(&mut self, cx: &mut Cx<'_>) {
        let Some(page) = self.mending.next() else { return };
        self.mending.last = Some(page);
        let at = self.replica.applied();
        let own = self.replica.page_digest_at(page.0, page.1, at);
        let Some(own) = own.filter(|_| self.replica.knows(page.0)) else {
            mark!("page that differs is gone");
            self.mending.agrees(page);
            return;
        };
        mark!("inquiry about a page that differs");
        let until = cx.shared.tick + u64::from(cx.shared.timing.election_ticks);
        let told = BTreeMap::from([(self.me, own)]);
        self.mending.inquiry = Some(Inquiry { page, at, told, until });
        let digest = PageDigest { volume: page.0, chunk: page.1, digest: own };
        let (group, kind) = (self.id, DigestsKind::Ask);
        let digests = Digests { group, kind, at, pages: vec![digest] };
        let peers: Vec<Address> =
            self.peers().filter(|peer| !cx.shared.down.contains(&peer.node)).collect();
        for peer in peers {
            cx.send(peer, Frame::Digests(Box::new(digests.clone())));
        }
    }

    /// Takes what another replica says of a page that was inquired about.
    pub(super) fn take_answer(&mut self, cx: &mut Cx<'_>, from: Address, digests: &Digests) {
        let Some(inquiry) = &mut self.mending.inquiry else { return };
        let (at, page) = (inquiry.at, inquiry.page);
        let about = digests.pages.iter().find(|told| (told.volume, told.chunk) == page);
        let Some(told) = about.filter(|_| digests.at == at) else { return };
        inquiry.told.insert(from.node, told.digest);
        let own = inquiry.told.get(&self.me).copied();
        if !self.has_settled_pages() || self.replica.page_digest_at(page.0, page.1, at) != own {
            mark!("page changed while it was inquired about");
            self.mending.inquiry = None;
            return;
        }
        self.judge_inquiry(cx);
    }

    fn judge_inquiry(&mut self, cx: &mut Cx<'_>) {
        let Some(Inquiry { page, told, .. }) = &self.mending.inquiry else { return };
        let (page, own) = (*page, told.get(&self.me).copied());
        let who = |digest: u64| told.iter().filter(move |t| *t.1 == digest).map(|t| *t.0);
        let hasty = cx.shared.planted.is(Bug::MendsWithoutMajority);
        let agreed = |digest: &u64| self.is_quorum(who(*digest)) || hasty && Some(*digest) != own;
        let digests: BTreeSet<u64> = told.values().copied().collect();
        let right = digests.into_iter().find(agreed);
        let Some(right) = right else {
            let all = self.other_voters().all(|voter| told.contains_key(&voter.node));
            if all {
                self.mending.inquiry = None;
                self.mending.after = cx.shared.tick + REST_TICKS;
                self.tell_undecided(cx, page);
            }
            return;
        };
        let holders: Vec<NodeId> = who(right).collect();
        self.mending.inquiry = None;
        self.mending.undecided.remove(&page);
        if Some(right) == own {
            mark!("replica that differs from others is right");
            self.mending.agrees(page);
            self.comparing.is_right(page);
            return;
        }
        // A leader tells what it has soonest.
        let avoid = self.mending.avoid.take();
        let others = || holders.iter().copied().filter(|node| *node != self.me);
        let leader = others().find(|node| Some(*node) == self.leader());
        let willing = leader.into_iter().chain(others()).find(|node| Some(*node) != avoid);
        let from = willing.or(leader).or(others().next());
        if let Some(from) = from.and_then(|node| self.address_of(u64::from(node.0))) {
            self.begin_copy(cx, page, from);
        }
    }

    fn tell_undecided(&mut self, cx: &mut Cx<'_>, (volume, chunk): Page) {
        if !self.mending.undecided.insert((volume, chunk)) {
            return;
        }
        mark!("no majority agrees on a page");
        let (group, me) = (self.id, self.me);
        let text = format!(
            "group {group}: no majority of replicas holds the same in chunk {chunk} of volume {volume}: \
             nothing is overwritten on node {me}"
        );
        cx.notice(true, text);
    }

    fn begin_copy(&mut self, cx: &mut Cx<'_>, page: Page, from: Address) {
        mark!("page is copied from the majority");
        cx.shared.messages += 1;
        let session = cx.shared.draw([u64::from(self.id.0), cx.shared.messages, cx.now.0]);
        self.mending.copy = Some(Copy {
            page,
            from,
            session,
            left: (0..GRANULES).collect(),
            ask: 0,
            most: 0,
            asked_at: LogIndex(0),
            again_at: cx.shared.tick,
            tries: 0,
            waits: false,
            told: None,
            fill: None,
            blocks: 0,
        });
        self.ask_for_copy(cx);
    }

    fn ask_for_copy_again(&mut self, cx: &mut Cx<'_>) {
        let Some(copy) = &mut self.mending.copy else { return };
        if cx.shared.tick < copy.again_at || copy.waits || copy.has_come() {
            return;
        }
        copy.tries += 1;
        if copy.tries >= TRIES_MAX {
            self.mending.avoid = Some(copy.from.node);
            self.stop_mending();
            self.mending.after = cx.shared.tick + REST_TICKS;
            return;
        }
        self.ask_for_copy(cx);
    }

    /// Asks for the granules that are left, as of now or later.
    fn ask_for_copy(&mut self, cx: &mut Cx<'_>) {
        let room = blocks_with_room(cx).filter(|_| !cx.shared.read_only);
        let again_at = cx.shared.tick + u64::from(cx.shared.timing.election_ticks);
        let Some(page) = self.mending.copy.as_ref().map(|copy| copy.page) else { return };
        // Without its table it would seem to hold nothing. It is asked when that has come.
        let waits = !self.has_pages(cx, std::iter::once(page));
        let Some(copy) = &mut self.mending.copy else { return };
        (copy.again_at, copy.waits) = (again_at, waits);
        let Some(most) = room.filter(|_| !waits) else { return };
        let numbers = &copy.left[..copy.left.len().min(WANT_GRANULES_MAX)];
        let mut granules = self.replica.held(copy.page, numbers);
        granules.truncate(granules_that_fit(&granules));
        self.mending.asks += 1;
        (copy.ask, copy.most, copy.asked_at) = (self.mending.asks, most, self.replica.applied());
        self.replica.watch(copy.page);
        let (ask, at, (volume, chunk)) = (copy.ask, copy.asked_at, copy.page);
        let step = Step::Mend { ask, at, volume, chunk, most, granules };
        let (to, session) = (copy.from, copy.session);
        self.send_pages(cx, to, session, step);
    }

    /// Takes a message about mending, if it is one.
    pub(super) fn take_mending(&mut self, cx: &mut Cx<'_>, from: Address, message: &Pages) -> bool {
        match &message.step {
            Step::Mend { .. } if !self.is_member(from) => {
                mark!("page message of no member");
                true
            }
            Step::Mend { .. } => {
                self.mending.waiting.insert(from.node, (from, message.clone()));
                self.wake(cx);
                self.give_copies(cx);
                true
            }
            _ => {
                let copy = self.mending.copy.as_ref();
                let is_its = copy.is_some_and(|c| c.session == message.session && c.from == from);
                if is_its {
                    self.take_copy(message);
                    self.dirty = true;
                }
                is_its
            }
        }
    }

    /// Tells others the granules that they asked for, once as much is applied here.
    pub(super) fn give_copies(&mut self, cx: &mut Cx<'_>) {
        if self.mending.waiting.is_empty() || !self.has_settled_pages() {
            return;
        }
        let applied = self.replica.applied();
        let ready =
            |message: &Pages| matches!(message.step, Step::Mend { at, .. } if at <= applied);
        let due = self.mending.waiting.extract_if(.., |_, (_, message)| ready(message));
        for (node, (to, message)) in due.collect::<Vec<_>>() {
            let Step::Mend { volume, chunk, .. } = message.step else { continue };
            if !self.has_pages(cx, std::iter::once((volume, chunk))) {
                self.mending.waiting.insert(node, (to, message));
                continue;
            }
            let Step::Mend { ask, volume, chunk, most, granules, .. } = message.step else {
                continue;
            };
            let wanted = (ask, (volume, chunk), usize::from(most), granules);
            self.give_granules(cx, to, message.session, wanted);
        }
    }

    fn take_copy(&mut self, message: &Pages) {
        let Some(copy) = &mut self.mending.copy else { return };
        let Step::Blocks { ask, at, changed_at, granules, blocks, payload } = &message.step else {
            // It can not be given: another one is asked, after an inquiry.
            mark!("page that is mended is damaged elsewhere");
            self.mending.avoid = Some(copy.from.node);
            self.stop_mending();
            return;
        };
        let free = copy.told.is_none() && copy.fill.is_none();
        let numbers = &copy.left[..copy.left.len().min(WANT_GRANULES_MAX)];
        let fitting = fits((numbers, copy.most), granules, blocks);
        if *ask != copy.ask || !free || !fitting || *at < copy.asked_at {
            return;
        }
        let sums: Vec<u32> = blocks.iter().map(|(_, sum)| *sum).collect();
        if payload.len() != sums.len() * BLOCK_BYTES || !blocks_match(payload, &sums) {
            mark!("damaged block for a page that is mended");
            return;
        }
        let (page, granules, left) = (copy.page, granules.clone(), Vec::new());
        let told = ToldPage { page, at: *at, changed_at: *changed_at, granules, left };
        copy.told = Some((told, blocks.clone(), payload.clone()));
    }

    /// Goes on with what came, once as much is applied here, and once it is durable.
    pub(super) fn go_on_mending(&mut self, cx: &mut Cx<'_>) {
        if self.mending.copy.is_none() {
            return;
        }
        if !self.has_settled_pages() {
            self.stop_mending();
            return;
        }
        let (applied, durable) = (self.replica.applied(), cx.shared.durable);
        if self.mending.copy.as_ref().is_some_and(|copy| copy.waits) {
            self.ask_for_copy(cx);
        }
        let came = self.mending.copy.as_ref().filter(|copy| copy.has_come());
        if let Some(page) = came.map(|copy| copy.page)
            && !self.has_pages(cx, std::iter::once(page))
        {
            return;
        }
        let Some(copy) = &mut self.mending.copy else { return };
        if let Some((told, blocks, payload)) = copy.told.take_if(|(told, ..)| told.at <= applied) {
            if blocks.is_empty() {
                self.install_copy(cx, &told);
            } else {
                self.write_copy(cx, told, blocks, payload);
            }
        } else if let Some(fill) = copy.fill.take_if(|fill| fill.seq <= durable) {
            let location = fill.location.expect("a durable record has its place");
            self.replica.stage(fill.told.page, &fill.blocks, location);
            self.install_copy(cx, &fill.told);
        }
    }

    fn write_copy(
        &mut self,
        cx: &mut Cx<'_>,
        told: ToldPage,
        blocks: Vec<(u16, u32)>,
        payload: Payload,
    ) {
        cx.shared.recorded_bytes += payload.len() as u64;
        let seq = self.record_blocks(cx, told.page, &blocks, payload);
        let Some(copy) = &mut self.mending.copy else { return };
        copy.blocks += blocks.len() as u64;
        copy.fill = Some(Fill { seq, location: None, told, blocks });
    }

    /// Notes where blocks of a page that is mended stand.
    pub(super) fn copy_placed(&mut self, seq: RecordSeq, location: Location) {
        let fill = self.mending.copy.as_mut().and_then(|copy| copy.fill.as_mut());
        if let Some(fill) = fill.filter(|fill| fill.seq == seq) {
            fill.location = Some(location);
        }
    }

    /// Puts granules in their places to which no command was applied since they were asked for.
    fn install_copy(&mut self, cx: &mut Cx<'_>, told: &ToldPage) {
        let touched = self.replica.touched();
        for granule in &told.granules {
            let is_current = touched >> granule.number & 1 == 0;
            if !is_current {
                mark!("granule changed while it was mended");
            }
            if is_current && self.replica.install(told.page, granule, told.changed_at, told.at) {
                let Some(copy) = &mut self.mending.copy else { return };
                copy.left.retain(|number| *number != granule.number);
                copy.tries = 0;
            }
        }
        let Some(copy) = &self.mending.copy else { return };
        if copy.left.is_empty() {
            self.end_copy(cx);
        } else {
            self.ask_for_copy(cx);
        }
    }

    fn end_copy(&mut self, cx: &mut Cx<'_>) {
        let Some(copy) = self.mending.copy.take() else { return };
        mark!("page mended");
        self.replica.unstage();
        self.replica.unwatch();
        let (volume, chunk) = copy.page;
        self.mending.agrees(copy.page);
        self.comparing.is_right(copy.page);
        self.mending.counts.pages += 1;
        self.mending.counts.blocks += copy.blocks;
        let (group, me, from, blocks) = (self.id, self.me, copy.from.node, copy.blocks);
        let text = format!(
            "group {group}: chunk {chunk} of volume {volume} on node {me} was not what the majority holds: \
             it is now, by {blocks} blocks from node {from}"
        );
        cx.notice(true, text);
    }

    /// What came of pages in which this replica differed from others.
    pub fn mended(&self) -> MendedCounts {
        self.mending.counts()
    }
}
