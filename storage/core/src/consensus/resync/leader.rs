//! The leader's part: offers pages, sends blocks, at the pace that the shard allows.

use super::super::group::Group;
use super::super::shared::{Cx, LogRead};
use super::{ASKS_MAX, SESSIONS_MAX};
use crate::mark;
use crate::planted::Bug;
use crate::replica::Plan;
use crate::scrub::Target;
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::command::BlockRange;
use basalt_wire::ids::{Address, LogIndex, NodeId, Term, VolumeId};
use basalt_wire::pages::{OFFER_PAGES_MAX, Pages, Step, VOLUMES_MAX};
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};

/// Election timeouts after which a session that nothing was heard of is forgotten.
const SILENCE: u64 = 4;

/// A session with a follower, as far as the leader has to know.
#[derive(Debug)]
pub struct Help {
    session: u64,
    /// The entry at which it began: the log behind it is kept, if it does not take too long.
    pub start: u64,
    /// The tick after which it is forgotten.
    until: u64,
    /// Blocks asked for that wait for the next tick.
    waiting: VecDeque<Wanted>,
}

/// Blocks that a follower asked for.
#[derive(Clone, Debug)]
struct Wanted {
    ask: u32,
    volume: VolumeId,
    chunk: u64,
    blocks: Vec<u16>,
}

/// Blocks on their way from the log to a follower.
#[derive(Debug)]
pub struct PageRead {
    /// The group's position in the shard.
    pub group: usize,
    to: Address,
    session: u64,
    ask: u32,
    /// The page.
    page: (VolumeId, u64),
    /// No block holds a later entry.
    at: LogIndex,
    blocks: Vec<(u16, Option<u32>)>,
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
        cx.shared.helping -= before - self.helping.len();
        let stuck = self.outboxes.iter().filter_map(|(node, o)| Some((*node, o.stuck()?)));
        let damaged = stuck.filter(|(node, entry)| self.gets_pages_for(cx, *node, *entry));
        lacking.extend(damaged.map(|(node, _)| u64::from(node.0)));
        // What it would offer may be ahead of itself for as long as it is.
        if !leads || self.replica.is_fuzzy() {
            return;
        }
        if self.replica.has_generations() {
            self.refuse_pages(cx, &lacking);
            return;
        }
        self.pages_refused = false;
        for id in lacking {
            let Some(to) = self.address_of(id) else { continue };
            let room = cx.shared.helping < SESSIONS_MAX;
            if room && !self.helping.contains_key(&to.node) && !cx.shared.down.contains(&to.node) {
                mark!("follower is behind the log");
                self.send_pages(cx, to, 0, Step::Behind);
            }
        }
        for node in self.helping.keys().copied().collect::<Vec<_>>() {
            self.serve(cx, node);
        }
    }

    /// Sends no pages to those who need them: volumes have snapshots.
    fn refuse_pages(&mut self, cx: &mut Cx<'_>, lacking: &BTreeSet<u64>) {
        if lacking.is_empty() || std::mem::replace(&mut self.pages_refused, true) {
            return;
        }
        mark!("no pages for a group with snapshots");
        let text = format!(
            "group {}: a replica needs entries that are gone, and is not brought up by pages while \
             volumes of the group have snapshots or had any",
            self.id
        );
        cx.notice(true, text);
    }

    /// Forgets all sessions: it does not lead any more.
    pub fn end_help(&mut self, cx: &mut Cx<'_>) {
        cx.shared.helping -= self.helping.len();
        self.helping.clear();
        self.page_damage = false;
    }

    /// Takes a follower's question.
    pub(super) fn help(&mut self, cx: &mut Cx<'_>, from: Address, message: Pages) {
        let Pages { session, step, .. } = message;
        if let Step::Open = step {
            self.open_session(cx, from, session);
            return;
        }
        let until = cx.shared.tick + SILENCE * u64::from(cx.shared.timing.election_ticks);
        let help = self.helping.get_mut(&from.node).filter(|help| help.session == session);
        let Some(help) =
            help.filter(|_| !self.replica.is_fuzzy() && !self.replica.has_generations())
        else {
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
            Step::Want { ask, volume, chunk, blocks } => {
                let again = help.waiting.iter().any(|wanted| wanted.ask == ask);
                if !again && help.waiting.len() < 2 * ASKS_MAX {
                    help.waiting.push_back(Wanted { ask, volume, chunk, blocks });
                }
                self.serve(cx, from.node);
            }
            _ => {}
        }
    }

    fn open_session(&mut self, cx: &mut Cx<'_>, from: Address, session: u64) {
        let known = self.helping.contains_key(&from.node);
        let start = self.replica.applied().0;
        let start_term = self.raft.as_ref().map_or(0, |raft| raft.store().term_of(start));
        let room = known || cx.shared.helping < SESSIONS_MAX;
        let pages_fail = self.replica.is_fuzzy() || self.replica.has_generations();
        if !room || pages_fail || start_term == 0 {
            return;
        }
        let volumes = self.replica.volume_states();
        if volumes.len() > VOLUMES_MAX {
            let text = format!("group {} has more volumes than a session can tell of", self.id);
            cx.notice(true, text);
            return;
        }
        mark!("session of pages begun");
        cx.shared.helping += usize::from(!known);
        let until = cx.shared.tick + SILENCE * u64::from(cx.shared.timing.election_ticks);
        let help = Help { session, start, until, waiting: VecDeque::new() };
        self.helping.insert(from.node, help);
        let (start, start_term) = (LogIndex(start), Term(start_term));
        self.send_pages(cx, from, session, Step::Begin { start, start_term, volumes });
    }

    /// Starts the reads of what a follower waits for, as far as the shard's pace allows.
    fn serve(&mut self, cx: &mut Cx<'_>, node: NodeId) {
        let Some(to) = self.address_of(u64::from(node.0)) else { return };
        let Some(help) = self.helping.get_mut(&node) else { return };
        let mut ready = Vec::new();
        while cx.shared.catch_up_bytes > 0
            && let Some(wanted) = help.waiting.pop_front()
        {
            let bytes = wanted.blocks.len() * BLOCK_BYTES;
            cx.shared.catch_up_bytes = cx.shared.catch_up_bytes.saturating_sub(bytes);
            ready.push((help.session, wanted));
        }
        for (session, Wanted { ask, volume, chunk, blocks }) in ready {
            let (blocks, plan) = self.replica.plan_blocks(volume, chunk, &blocks);
            let at = self.replica.applied();
            let runs: Vec<_> = plan.reads().collect();
            let (group, outstanding, failed) = (self.slot, runs.len(), false);
            let page = (volume, chunk);
            let read =
                PageRead { group, to, session, ask, page, at, blocks, plan, outstanding, failed };
            if runs.is_empty() {
                self.send_blocks(cx, read);
                continue;
            }
            let read = cx.shared.page_reads.insert(read);
            for (run, location, blocks) in runs {
                cx.read(LogRead::Page(read, run), location, blocks);
            }
        }
    }

    /// Sends blocks that were read. Nothing damaged is handed on as good.
    pub fn send_blocks(&mut self, cx: &mut Cx<'_>, read: PageRead) {
        let PageRead { to, session, ask, page, at, blocks, plan, failed, .. } = read;
        if self.helping.get(&to.node).is_none_or(|help| help.session != session) {
            return;
        }
        let trust = cx.shared.planted.is(Bug::RebuildFromCorrupt);
        let payload = if failed { None } else { plan.finish(trust).ok() };
        let Some((_, _, payload)) = payload else {
            mark!("block for a follower is damaged");
            let ((volume, chunk), count) = (page, CHUNK_BLOCKS as u32);
            let range = BlockRange { block: chunk * CHUNK_BLOCKS, count };
            cx.shared.suspects.push(Target { slot: self.slot, volume, range });
            if !std::mem::replace(&mut self.page_damage, true) {
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
        self.send_pages(cx, to, session, Step::Blocks { ask, at, blocks, payload });
    }
}
