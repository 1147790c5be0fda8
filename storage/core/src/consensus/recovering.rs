//! Pages that are out of memory and that the store has lost are taken from another replica.
//!
//! Whatever needs such a page waits: reads, entries, the copying of pages. So no entry changes it meanwhile but
//! one that empties all of it, or a part, at once. The replica asks another member, the leader first, for all
//! granules as of what is applied here or later, as it does for a page that differs from the majority's (see
//! [`super::mending`]); where its own blocks stand is not known any more, so they all come. When they are
//! durable the page is put in place, and each granule has seen the entries up to the one as of which it was
//! told, as with a replica that is brought up by pages (see `replica::pages`). The next checkpoint holds it.
//!
//! What the store holds of the page stays as it is until then: a start that comes first finds the damage.
//! A replica that has no other one to ask can not go on: the group is stopped here, the others go on.

use super::comparing::Page;
use super::group::Group;
use super::loads::PageId;
use super::resync::{Fill, ToldPage, blocks_with_room, fits};
use super::shared::Cx;
use crate::index::Loss;
use crate::log::{Location, RecordSeq};
use crate::mark;
use crate::replica::{ToldGranule, blocks_match};
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::buffer::Payload;
use basalt_wire::disk::checkpoint::GRANULE_BLOCKS;
use basalt_wire::ids::{Address, LogIndex};
use basalt_wire::pages::{Pages, Step, WANT_GRANULES_MAX, granules_that_fit};
use std::collections::BTreeSet;

/// Times that a replica is asked before another one is.
const TRIES_MAX: u32 = 3;
/// Granules of a page.
const GRANULES: u8 = (CHUNK_BLOCKS as usize / GRANULE_BLOCKS) as u8;

/// What a replica keeps of pages that its store has lost.
#[derive(Debug, Default)]
pub struct Recovering {
    lost: BTreeSet<Page>,
    fetch: Option<Fetch>,
    /// Counts those who were asked and could not help.
    turn: usize,
    /// Counts the questions.
    asks: u32,
}

/// A page that is being fetched.
#[derive(Debug)]
struct Fetch {
    page: Page,
    /// The last entry that had emptied a part of the page when it began.
    emptied: LogIndex,
    from: Address,
    session: u64,
    /// Granules that are not here, and the question about them.
    left: Vec<u8>,
    ask: u32,
    most: u16,
    /// What was applied when it was asked.
    asked_at: LogIndex,
    again_at: u64,
    tries: u32,
    /// What came and is written, until it is durable.
    fill: Option<Fill>,
    told: Vec<ToldGranule>,
    blocks: u64,
}

impl Recovering {
    /// Whether something is to be done.
    pub(super) fn is_busy(&self) -> bool {
        !self.lost.is_empty()
    }
}

impl Group {
    /// The store does not give a page that is not in memory.
    pub fn page_lost(&mut self, cx: &mut Cx<'_>, page: Page, reason: &str) {
        let (group, me, (volume, chunk)) = (self.id, self.me, page);
        if self.replica.lost(page).is_some() {
            return;
        }
        if self.replica.lose(page) != Loss::Needed {
            self.page_found(cx, page);
            return;
        }
        mark!("store has lost a page");
        self.recovering.lost.insert(page);
        let alone = self.peers().next().is_none();
        let text = format!(
            "group {group}: the store of node {me} has lost where the blocks of chunk {chunk} of volume {volume} \
             stand: {reason}"
        );
        if alone && self.raft.is_some() {
            self.quarantine(cx, &text);
            return;
        }
        cx.notice(true, format!("{text}; the page is taken from another replica"));
        self.wake(cx);
    }

    /// A page that was lost is here again, or is not needed any more.
    fn page_found(&mut self, cx: &mut Cx<'_>, page: Page) {
        self.recovering.lost.remove(&page);
        let (group, (volume, chunk)) = (self.id, page);
        cx.shared.loads.find(PageId { group, volume, chunk });
        self.tables_came();
    }

    /// Asks, asks again, asks others: as time passes.
    pub(super) fn tick_recovering(&mut self, cx: &mut Cx<'_>) {
        let emptied = |page: &Page| self.replica.lost(*page).is_none();
        let gone: Vec<Page> = self.recovering.lost.iter().copied().filter(emptied).collect();
        for page in gone {
            mark!("lost page emptied");
            self.page_found(cx, page);
        }
        let current = |fetch: &Fetch| self.replica.lost(fetch.page) == Some(fetch.emptied);
        if self.recovering.fetch.as_ref().is_some_and(|fetch| !current(fetch)) {
            self.stop_fetch();
        }
        match &mut self.recovering.fetch {
            None => self.begin_fetch(cx),
            Some(fetch) if cx.shared.tick >= fetch.again_at && fetch.fill.is_none() => {
                fetch.tries += 1;
                if fetch.tries >= TRIES_MAX {
                    self.give_up_fetch();
                } else {
                    self.ask_for_page(cx);
                }
            }
            Some(_) => {}
        }
    }

    /// Another one is asked at the next tick.
    fn give_up_fetch(&mut self) {
        mark!("lost page is asked of another replica");
        self.recovering.turn += 1;
        self.stop_fetch();
    }

    /// Forgets what came of a page.
    pub(super) fn stop_fetch(&mut self) {
        if let Some(fetch) = self.recovering.fetch.take() {
            self.replica.unstage_page(fetch.page);
        }
    }

    fn begin_fetch(&mut self, cx: &mut Cx<'_>) {
        let Some(page) = self.recovering.lost.first().copied() else { return };
        let Some(emptied) = self.replica.lost(page) else { return };
        let mut peers: Vec<Address> =
            self.peers().filter(|peer| !cx.shared.down.contains(&peer.node)).collect();
        // A leader tells what it has soonest.
        let leader = self.leader();
        peers.sort_by_key(|peer| (Some(peer.node) != leader, peer.node));
        let Some(from) = peers.get(self.recovering.turn % peers.len().max(1)).copied() else {
            return;
        };
        mark!("lost page is asked for");
        cx.shared.messages += 1;
        let session = cx.shared.draw([u64::from(self.id.0), cx.shared.messages, cx.now.0]);
        self.recovering.fetch = Some(Fetch {
            page,
            emptied,
            from,
            session,
            left: (0..GRANULES).collect(),
            ask: 0,
            most: 0,
            asked_at: LogIndex(0),
            again_at: 0,
            tries: 0,
            fill: None,
            told: Vec::new(),
            blocks: 0,
        });
        self.ask_for_page(cx);
    }

    /// Asks for the granules that are left, as of now or later.
    fn ask_for_page(&mut self, cx: &mut Cx<'_>) {
        let room = blocks_with_room(cx).filter(|_| !cx.shared.read_only);
        let again_at = cx.shared.tick + u64::from(cx.shared.timing.election_ticks);
        let Some(fetch) = &mut self.recovering.fetch else { return };
        fetch.again_at = again_at;
        let Some(most) = room else { return };
        let numbers = &fetch.left[..fetch.left.len().min(WANT_GRANULES_MAX)];
        let mut granules = self.replica.staged(fetch.page, numbers);
        granules.truncate(granules_that_fit(&granules));
        self.recovering.asks += 1;
        let at = self.replica.applied();
        (fetch.ask, fetch.most, fetch.asked_at) = (self.recovering.asks, most, at);
        let (ask, (volume, chunk)) = (fetch.ask, fetch.page);
        let step = Step::Mend { ask, at, volume, chunk, most, granules };
        let (to, session) = (fetch.from, fetch.session);
        self.send_pages(cx, to, session, step);
    }

    /// Takes an answer about a lost page, if it is one.
    pub(super) fn take_recovered(
        &mut self,
        cx: &mut Cx<'_>,
        from: Address,
        message: &Pages,
    ) -> bool {
        let fetch = self.recovering.fetch.as_ref();
        if fetch.is_none_or(|f| f.session != message.session || f.from != from) {
            return false;
        }
        match &message.step {
            Step::Blocks { ask, at, changed_at, granules, blocks, payload } => {
                let (page, left) = ((Default::default(), 0), Vec::new());
                let (at, changed_at, granules) = (*at, *changed_at, granules.clone());
                let told = ToldPage { page, at, changed_at, granules, left };
                self.take_page(cx, *ask, told, (blocks.clone(), payload.clone()));
            }
            Step::Stop => self.give_up_fetch(),
            _ => {}
        }
        true
    }

    fn take_page(
        &mut self,
        cx: &mut Cx<'_>,
        ask: u32,
        mut told: ToldPage,
        (blocks, payload): (Vec<(u16, u32)>, Payload),
    ) {
        let Some(fetch) = &self.recovering.fetch else { return };
        let numbers = &fetch.left[..fetch.left.len().min(WANT_GRANULES_MAX)];
        let fitting = fits((numbers, fetch.most), &told.granules, &blocks);
        if ask != fetch.ask || fetch.fill.is_some() || !fitting || told.at < fetch.asked_at {
            return;
        }
        let sums: Vec<u32> = blocks.iter().map(|(_, sum)| *sum).collect();
        if payload.len() != sums.len() * BLOCK_BYTES || !blocks_match(&payload, &sums) {
            mark!("damaged block for a page that was lost");
            return;
        }
        told.page = fetch.page;
        if blocks.is_empty() {
            self.take_granules(cx, told);
        } else {
            self.write_page(cx, told, blocks, payload);
        }
    }

    fn write_page(
        &mut self,
        cx: &mut Cx<'_>,
        told: ToldPage,
        blocks: Vec<(u16, u32)>,
        payload: Payload,
    ) {
        cx.shared.recorded_bytes += payload.len() as u64;
        let seq = self.record_blocks(cx, told.page, &blocks, payload);
        let Some(fetch) = &mut self.recovering.fetch else { return };
        fetch.blocks += blocks.len() as u64;
        fetch.fill = Some(Fill { seq, location: None, told, blocks });
    }

    /// Notes where blocks of a lost page stand.
    pub(super) fn recovered_placed(&mut self, seq: RecordSeq, location: Location) {
        let fill = self.recovering.fetch.as_mut().and_then(|fetch| fetch.fill.as_mut());
        if let Some(fill) = fill.filter(|fill| fill.seq == seq) {
            fill.location = Some(location);
        }
    }

    /// Goes on with blocks that have become durable.
    pub(super) fn go_on_recovering(&mut self, cx: &mut Cx<'_>) {
        let durable = cx.shared.durable;
        let Some(fetch) = &mut self.recovering.fetch else { return };
        let Some(fill) = fetch.fill.take_if(|fill| fill.seq <= durable) else { return };
        let location = fill.location.expect("a durable record has its place");
        self.replica.stage(fill.told.page, &fill.blocks, location);
        self.take_granules(cx, fill.told);
    }

    /// Notes the granules of which all blocks are here. When they all are, the page is.
    fn take_granules(&mut self, cx: &mut Cx<'_>, told: ToldPage) {
        let Some(fetch) = &mut self.recovering.fetch else { return };
        let (at, changed_at) = (told.at, told.changed_at);
        for sums in told.granules {
            if self.replica.is_staged(fetch.page, &sums) {
                fetch.left.retain(|number| *number != sums.number);
                fetch.told.push(ToldGranule { sums, changed_at, at });
                fetch.tries = 0;
            }
        }
        if fetch.left.is_empty() {
            self.put_in_place(cx);
        } else {
            self.ask_for_page(cx);
        }
    }

    fn put_in_place(&mut self, cx: &mut Cx<'_>) {
        let Some(fetch) = &self.recovering.fetch else { return };
        let (page, from, blocks) = (fetch.page, fetch.from.node, fetch.blocks);
        // An entry that emptied a part of the page is not among what came before it.
        let current = self.replica.lost(page) == Some(fetch.emptied);
        if !current || !self.replica.recover(page, &fetch.told) {
            mark!("lost page changed while it was fetched");
            self.stop_fetch();
            return;
        }
        mark!("lost page recovered");
        self.recovering.fetch = None;
        cx.shared.loads.counts.recovered += 1;
        self.page_found(cx, page);
        let (group, me, (volume, chunk)) = (self.id, self.me, page);
        let text = format!(
            "group {group}: chunk {chunk} of volume {volume} on node {me}, which the store had lost, is here \
             again by {blocks} blocks from node {from}"
        );
        cx.notice(false, text);
    }
}
