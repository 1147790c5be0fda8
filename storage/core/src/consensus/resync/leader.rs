//! The leader's part: offers pages, sends blocks, at the pace that the shard allows.

use super::super::group::Group;
use super::super::shared::{Cx, LogRead};
use super::{ASKS_MAX, SESSIONS_MAX};
use crate::mark;
use crate::planted::Bug;
use crate::replica::{Plan, Told};
use crate::scrub::Target;
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::command::BlockRange;
use basalt_wire::disk::checkpoint::VolumeRecord;
use basalt_wire::ids::{Address, LogIndex, NodeId, Term, VolumeId};
use basalt_wire::membership::Membership;
use basalt_wire::pages::{GranuleSums, HeldBlocks, OFFER_PAGES_MAX, Pages, Step, volumes_that_fit};
use bytes::Bytes;
use std::collections::VecDeque;

/// Election timeouts after which a session that nothing was heard of is forgotten.
const SILENCE: u64 = 4;

/// A session with a follower, as far as the leader has to know.
#[derive(Debug)]
pub struct Help {
    session: u64,
    /// The entry at which it began: the log behind it is kept, if it does not take too long.
    pub start: u64,
    /// The term of that entry.
    start_term: u64,
    /// The members as of that entry.
    members: Membership,
    /// The volumes as of that entry.
    volumes: Vec<(VolumeId, VolumeRecord)>,
    /// The tick after which it is forgotten.
    until: u64,
    /// Blocks asked for that wait for the next tick.
    waiting: VecDeque<Wanted>,
}

/// Granules of a page that a follower asked for.
#[derive(Clone, Debug)]
struct Wanted {
    ask: u32,
    page: (VolumeId, u64),
    most: usize,
    granules: Vec<HeldBlocks>,
}

/// Blocks on their way from the log to a follower.
#[derive(Debug)]
pub struct PageRead {
    /// The group's position in the shard.
    pub group: usize,
    to: Address,
    session: u64,
    /// Whether it is for a session of this leader's.
    helped: bool,
    ask: u32,
    /// The page.
    page: (VolumeId, u64),
    /// The granules are as of this entry.
    at: LogIndex,
    changed_at: LogIndex,
    granules: Vec<GranuleSums>,
    blocks: Vec<(u16, u32)>,
    plan: Plan,
    outstanding: usize,
    failed: bool,
}

impl PageRead {
    /// Takes what a read brought; says whether it was the last.
    pub fn fill(&mut self, run: usize, data: Option<Bytes>) -> bool {
        self.outstanding -= 1;
        match data {
            Some(data) => self.plan.fill(run, data),
            None => self.failed = true,
        }
        self.outstanding == 0
    }
}

impl Group {
    /// Says to the followers that need entries that are gone that they get pages, and goes on with
    /// what waited for the tick.
    pub fn help_others(&mut self, cx: &mut Cx<'_>) {
        let leads = self.leads();
        let Some(raft) = &mut self.raft else { return };
        let mut lacking = raft.mut_store().take_lacking();
        let tick = cx.shared.tick;
        let before = self.helping.len();
        let matched = |node: &NodeId| {
            raft.raft.prs().get(u64::from(node.0)).map_or(0, |progress| progress.matched)
        };
        self.helping.retain(|node, help| leads && help.until > tick && matched(node) < help.start);
        let ended = self.counted(before - self.helping.len());
        cx.shared.helping -= ended;
        let stuck = self.outboxes.iter().filter_map(|(node, o)| Some((*node, o.stuck()?)));
        let damaged = stuck.filter(|(node, entry)| self.gets_pages_for(cx, *node, *entry));
        lacking.extend(damaged.map(|(node, _)| u64::from(node.0)));
        let heard = |id: &u64| !cx.shared.down.contains(&NodeId(*id as u32));
        if leads && (!self.helping.is_empty() || lacking.iter().any(heard)) {
            self.needed_until = tick + SILENCE * u64::from(cx.shared.timing.election_ticks);
        }
        // What it would offer may be ahead of itself for as long as it is.
        if !leads || self.replica.is_fuzzy() {
            return;
        }
        for id in lacking {
            let Some(to) = self.address_of(id) else { continue };
            let room = cx.shared.helping + self.counted(1) <= SESSIONS_MAX;
            if room && !self.helping.contains_key(&to.node) && !cx.shared.down.contains(&to.node) {
                mark!("follower is behind the log");
                self.send_pages(cx, to, 0, Step::Behind);
            }
        }
    }

    /// Forgets all sessions: it does not lead any more.
    pub fn end_help(&mut self, cx: &mut Cx<'_>) {
        cx.shared.helping -= self.counted(self.helping.len());
        self.helping.clear();
        self.page_damage = false;
        self.needed_until = 0;
    }

    /// Whether a follower that answers is brought up by pages, or waits for that. With another leader it
    /// would begin anew, and that one may have left because its pages are damaged.
    pub fn is_needed_for_pages(&self, cx: &Cx<'_>) -> bool {
        cx.shared.tick < self.needed_until
    }

    /// Takes a follower's question.
    pub(super) fn help(&mut self, cx: &mut Cx<'_>, from: Address, message: Pages) {
        let Pages { session, step, .. } = message;
        if let Step::Open { from: volume } = step {
            self.open_session(cx, from, session, volume);
            return;
        }
        let until = cx.shared.tick + SILENCE * u64::from(cx.shared.timing.election_ticks);
        let help = self.helping.get_mut(&from.node).filter(|help| help.session == session);
        let Some(help) = help.filter(|_| !self.replica.is_fuzzy()) else {
            mark!("question of a session that is not known");
            self.send_pages(cx, from, session, Step::Stop);
            return;
        };
        help.until = until;
        match step {
            Step::Next { ask, since, volume, chunk } => {
                let most = OFFER_PAGES_MAX;
                let (pages, more) = self.replica.changed_pages(since, (volume, chunk), most);
                cx.shared.moved.pages_offered += pages.len() as u64;
                let at = self.replica.applied();
                self.send_pages(cx, from, session, Step::Offer { ask, at, more, pages });
            }
            Step::Want { ask, volume, chunk, most, granules } => {
                let again = help.waiting.iter().any(|wanted| wanted.ask == ask);
                if !again && help.waiting.len() < 2 * ASKS_MAX {
                    let (page, most) = ((volume, chunk), usize::from(most));
                    help.waiting.push_back(Wanted { ask, page, most, granules });
                }
                // Behind those who wait for the pace already.
                if !cx.shared.pace.has_waiting() {
                    self.serve(cx, from.node);
                }
            }
            _ => {}
        }
    }

    fn open_session(&mut self, cx: &mut Cx<'_>, to: Address, session: u64, from: VolumeId) {
        let until = cx.shared.tick + SILENCE * u64::from(cx.shared.timing.election_ticks);
        let known = self.helping.get_mut(&to.node);
        let new = match known.filter(|help| help.session == session) {
            Some(help) => {
                help.until = until;
                false
            }
            None => true,
        };
        if new && !self.begin_help(cx, to, session, until) {
            return;
        }
        let Some(help) = self.helping.get(&to.node) else { return };
        let first = help.volumes.partition_point(|(id, _)| *id < from);
        let rest = &help.volumes[first..];
        let volumes = rest[..volumes_that_fit(rest)].to_vec();
        let more = rest.len() > volumes.len();
        let (start, start_term) = (LogIndex(help.start), Term(help.start_term));
        let members = help.members.clone();
        let step = Step::Begin { start, start_term, members, from, more, volumes };
        self.send_pages(cx, to, session, step);
    }

    /// Begins a session with a follower, unless that can not be now.
    fn begin_help(&mut self, cx: &mut Cx<'_>, to: Address, session: u64, until: u64) -> bool {
        let known = self.helping.contains_key(&to.node);
        let start = self.replica.applied().0;
        let start_term = self.raft.as_ref().map_or(0, |raft| raft.store().term_of(start));
        let room = known || cx.shared.helping + self.counted(1) <= SESSIONS_MAX;
        if !room || self.replica.is_fuzzy() || start_term == 0 {
            return false;
        }
        mark!("session of pages begun");
        cx.shared.helping += self.counted(usize::from(!known));
        let (volumes, waiting) = (self.replica.volume_states(), VecDeque::new());
        let members = self.members.clone();
        let help = Help { session, start, start_term, members, volumes, until, waiting };
        self.helping.insert(to.node, help);
        true
    }

    /// Starts the reads of what a follower waits for first, if the shard's pace allows and the page's table is in
    /// memory. Whether it did.
    fn serve(&mut self, cx: &mut Cx<'_>, node: NodeId) -> bool {
        let Some(to) = self.address_of(u64::from(node.0)) else { return false };
        let helps = self.leads() && !self.replica.is_fuzzy();
        let first = self.helping.get(&node).and_then(|help| help.waiting.front());
        let Some(page) = first.filter(|_| helps).map(|wanted| wanted.page) else { return false };
        if !cx.shared.pace.may() || !self.has_pages(cx, std::iter::once(page)) {
            return false;
        }
        let Some(help) = self.helping.get_mut(&node) else { return false };
        let Some(wanted) = help.waiting.pop_front() else { return false };
        let (session, Wanted { ask, page, most, granules }) = (help.session, wanted);
        self.read_granules(cx, (to, session, true), (ask, page, most, &granules));
        true
    }

    /// Gives granules to a replica that differs from the majority, if the shard's pace allows.
    pub(in super::super) fn give_granules(
        &mut self,
        cx: &mut Cx<'_>,
        to: Address,
        session: u64,
        (ask, page, most, granules): (u32, (VolumeId, u64), usize, Vec<HeldBlocks>),
    ) {
        if cx.shared.pace.may() {
            self.read_granules(cx, (to, session, false), (ask, page, most, &granules));
        }
    }

    /// Starts the reads of what a replica asked for.
    fn read_granules(
        &mut self,
        cx: &mut Cx<'_>,
        (to, session, helped): (Address, u64, bool),
        (ask, page, most, granules): (u32, (VolumeId, u64), usize, &[HeldBlocks]),
    ) {
        let Told { changed_at, granules, blocks, plan } = self.replica.tell(page, granules, most);
        cx.shared.pace.take(blocks.len() * BLOCK_BYTES);
        let (at, group) = (self.replica.applied(), self.slot);
        let runs: Vec<_> = plan.reads().collect();
        let (outstanding, failed) = (runs.len(), false);
        let read = PageRead {
            group,
            to,
            session,
            helped,
            ask,
            page,
            at,
            changed_at,
            granules,
            blocks,
            plan,
            outstanding,
            failed,
        };
        if runs.is_empty() {
            self.send_blocks(cx, read);
            return;
        }
        let read = cx.shared.page_reads.insert(read);
        for (run, location, blocks) in runs {
            cx.read(LogRead::Page(read, run), location, blocks);
        }
    }

    /// Starts the reads of one piece for a follower that waits. Whether there was one, and it may move.
    pub(super) fn serve_next(&mut self, cx: &mut Cx<'_>) -> bool {
        let nodes: Vec<NodeId> = self.helping.keys().copied().collect();
        nodes.into_iter().any(|node| self.serve(cx, node))
    }

    /// Sends blocks that were read. Nothing damaged is handed on as good.
    pub fn send_blocks(&mut self, cx: &mut Cx<'_>, read: PageRead) {
        let PageRead {
            to,
            session,
            helped,
            ask,
            page,
            at,
            changed_at,
            granules,
            blocks,
            plan,
            failed,
            ..
        } = read;
        let ended = |help: &Help| help.session != session;
        if helped && self.helping.get(&to.node).is_none_or(ended) {
            return;
        }
        let trust = cx.shared.planted.is(Bug::RebuildFromCorrupt);
        let payload = if failed { None } else { plan.finish(trust).ok() };
        let Some((_, _, payload)) = payload else {
            mark!("block for a follower is damaged");
            let ((volume, chunk), count) = (page, CHUNK_BLOCKS as u32);
            let range = BlockRange { block: chunk * CHUNK_BLOCKS, count };
            cx.shared.suspects.push(Target { slot: self.slot, volume, range });
            if helped && !std::mem::replace(&mut self.page_damage, true) {
                let text = format!(
                    "group {}: a block that node {} needs is damaged here; another leader is tried",
                    self.id, to.node
                );
                cx.notice(true, text);
            }
            self.send_pages(cx, to, session, Step::Stop);
            return;
        };
        cx.shared.moved.blocks_sent += (payload.len() / BLOCK_BYTES) as u64;
        let step = Step::Blocks { ask, at, changed_at, granules, blocks, payload };
        self.send_pages(cx, to, session, step);
    }
}
