//! The follower's part: walks through the leader's pages, asks for what it lacks, and goes over to the
//! state that this gives.

use super::super::group::Group;
use super::super::shared::{Cx, Written};
use super::super::table::conf_state;
use super::{ASKS_MAX, SESSIONS_MAX};
use crate::log::{Location, Record, RecordSeq};
use crate::mark;
use crate::planted::Bug;
use crate::replica::blocks_match;
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::buffer::Payload;
use basalt_wire::disk::checkpoint::{GRANULE_BLOCKS, VolumeRecord};
use basalt_wire::disk::moved::{MovedBlock, encode_moved};
use basalt_wire::ids::{Address, GroupId, LogIndex, Term, VolumeId};
use basalt_wire::membership::Membership;
use basalt_wire::pages::{
    GranuleSums, PageDigests, Pages, Step, WANT_BLOCKS_MAX, WANT_GRANULES_MAX, granules_that_fit,
};
use raft::StateRole;
use raft::eraftpb::{self, MessageType, Snapshot};
use std::collections::{BTreeMap, VecDeque};

/// Times that a question is asked before a session is given up.
const TRIES_MAX: u32 = 6;
/// Election timeouts that pass after a session that came to nothing.
const REST: u64 = 2;

/// What a replica goes over to, but for its pages.
#[derive(Debug, Default)]
pub struct Incoming {
    volumes: Vec<(VolumeId, VolumeRecord)>,
    members: Membership,
}

/// A session, as the follower keeps it.
#[derive(Debug)]
pub struct Session {
    id: u64,
    leader: Address,
    term: Term,
    /// What was applied when it began: pages that have not changed since are not looked at.
    base: LogIndex,
    /// Where it leads, its term, and the volumes as of it; once the leader has told.
    start: Option<(LogIndex, Term)>,
    /// The members as of it.
    members: Membership,
    volumes: Vec<(VolumeId, VolumeRecord)>,
    /// The first volume that was not told yet; nothing once all were.
    untold: Option<VolumeId>,
    /// The first page that was not offered yet; nothing once all were.
    cursor: Option<(VolumeId, u64)>,
    /// Granules to be asked for.
    todo: VecDeque<Wanted>,
    asked: BTreeMap<u32, Asked>,
    asks: u32,
    /// Blocks that are written and not durable yet.
    fills: VecDeque<Fill>,
    /// Whether nothing is left but to go over to the new state.
    finished: bool,
    /// Whether a checkpoint waits to begin with that.
    promised: bool,
}

/// Granules of a page that are needed.
#[derive(Clone, Debug)]
struct Wanted {
    page: (VolumeId, u64),
    granules: Vec<u8>,
    /// Blocks that there is room for.
    most: u16,
}

/// A question without an answer.
#[derive(Debug)]
struct Asked {
    /// For granules; else for the next pages, or for where to begin.
    wanted: Option<Wanted>,
    again_at: u64,
    tries: u32,
}

/// Granules that the leader told, whose blocks are on their way to the device.
#[derive(Debug)]
pub(in super::super) struct Fill {
    pub seq: RecordSeq,
    pub location: Option<Location>,
    pub told: ToldPage,
    pub blocks: Vec<(u16, u32)>,
}

/// Granules of a page as the leader told them.
#[derive(Debug)]
pub(in super::super) struct ToldPage {
    pub page: (VolumeId, u64),
    pub at: LogIndex,
    pub changed_at: LogIndex,
    pub granules: Vec<GranuleSums>,
    /// The granules that were asked for and not told.
    pub left: Vec<u8>,
}

impl Session {
    /// Whether the leader told where to begin, and with which volumes.
    fn is_told(&self) -> bool {
        self.start.is_some() && self.untold.is_none()
    }

    /// The entry that it leads to, once the leader has told.
    pub(in crate::consensus) fn leads_to(&self) -> Option<LogIndex> {
        self.start.map(|(start, _)| start)
    }

    /// Questions so far.
    pub(super) fn asks(&self) -> u32 {
        self.asks
    }

    /// Whether there is nothing left to ask or to write.
    fn is_done(&self) -> bool {
        let quiet = self.todo.is_empty() && self.asked.is_empty() && self.fills.is_empty();
        self.is_told() && self.cursor.is_none() && quiet
    }
}

impl Group {
    /// Whether a session is still of use: nothing has happened that it did not know of.
    fn session_holds(&self) -> bool {
        self.session.as_ref().is_some_and(|session| {
            session.term == self.term()
                && self.leader() == Some(session.leader.node)
                && session.base == self.replica.applied()
        })
    }

    /// Whether appends have to wait: the replica is about to go over to another state.
    pub fn awaits_restore(&self, cx: &Cx<'_>) -> bool {
        self.in_limbo(cx) || self.session.as_ref().is_some_and(|session| session.finished)
    }

    /// Whether the state that it went over to is not durable yet: until then it promises nothing.
    pub fn in_limbo(&self, cx: &Cx<'_>) -> bool {
        self.limbo.is_some() && !cx.shared.planted.is(Bug::RestoredTooEarly)
    }

    /// Takes what the leader says.
    pub(super) fn follow_pages(&mut self, cx: &mut Cx<'_>, message: Pages) {
        if self.session.is_some() && !self.session_holds() {
            self.end_session(cx);
        }
        let Pages { session: id, step, .. } = message;
        if let Step::Behind = step {
            self.begin_session(cx);
            return;
        }
        if self.session.as_ref().is_none_or(|session| session.id != id || session.finished) {
            return;
        }
        match step {
            Step::Begin { start, start_term, members, from, more, volumes } => {
                self.session_begun(cx, (start, start_term), members, from, more, volumes);
            }
            Step::Offer { ask, at, more, pages } => self.offered(cx, ask, at, more, pages),
            Step::Blocks { ask, at, changed_at, granules, blocks, payload } => {
                let (page, left) = ((VolumeId(0), 0), Vec::new());
                let told = ToldPage { page, at, changed_at, granules, left };
                self.take_blocks(cx, ask, told, blocks, payload);
            }
            Step::Stop => {
                mark!("session stopped by the leader");
                self.end_session(cx);
            }
            _ => {}
        }
    }

    fn begin_session(&mut self, cx: &mut Cx<'_>) {
        let Some(leader) = self.leader().and_then(|node| self.address_of(u64::from(node.0))) else {
            return;
        };
        let settled = self.waits.entries.is_empty() && !self.is_replaying();
        let free = self.session.is_none() && self.limbo.is_none() && settled;
        let may = !cx.shared.read_only && cx.shared.tick >= self.session_after;
        if !free || !may || cx.shared.sessions + self.counted(1) > SESSIONS_MAX {
            return;
        }
        if !cx.shared.checkpoints {
            // Said once: only a restart with checkpoints helps.
            self.session_after = u64::MAX;
            let text = format!(
                "group {}: the leader's log does not reach back to entry {}, and without checkpoints it \
                 can not be brought up by pages",
                self.id,
                self.replica.applied()
            );
            cx.notice(true, text);
            return;
        }
        mark!("session of pages opened");
        self.stop_mending();
        cx.shared.sessions += self.counted(1);
        cx.shared.messages += 1;
        let id = cx.shared.draw([u64::from(self.id.0), cx.shared.messages, cx.now.0]);
        self.session = Some(Session {
            id,
            leader,
            term: self.term(),
            base: self.replica.applied(),
            start: None,
            members: Membership::default(),
            volumes: Vec::new(),
            untold: Some(VolumeId(0)),
            cursor: (self.id != GroupId::METADATA).then_some((VolumeId(0), 0)),
            todo: VecDeque::new(),
            asked: BTreeMap::new(),
            asks: 0,
            fills: VecDeque::new(),
            finished: false,
            promised: false,
        });
        self.ask(cx, None);
    }

    /// Gives up what there is of a session. What was written of it is found again by its checksums.
    pub fn end_session(&mut self, cx: &mut Cx<'_>) {
        if let Some(session) = self.session.take() {
            mark!("session of pages ended early");
            self.replica.unstage();
            cx.shared.sessions -= self.counted(usize::from(!session.finished));
            let rest = REST * u64::from(cx.shared.timing.election_ticks);
            self.session_after = cx.shared.tick + rest;
        }
    }

    /// Asks for granules, for the next pages, or for where to begin.
    fn ask(&mut self, cx: &mut Cx<'_>, wanted: Option<Wanted>) {
        let again_at = cx.shared.tick + u64::from(cx.shared.timing.election_ticks);
        let Some(session) = &mut self.session else { return };
        session.asks += 1;
        let ask = session.asks;
        session.asked.insert(ask, Asked { wanted, again_at, tries: 0 });
        self.send_ask(cx, ask);
    }

    /// The page that an unanswered question is about.
    pub(super) fn page_asked_for(&self, ask: u32) -> Option<(VolumeId, u64)> {
        let asked = self.session.as_ref()?.asked.get(&ask)?;
        asked.wanted.as_ref().map(|wanted| wanted.page)
    }

    fn send_ask(&mut self, cx: &mut Cx<'_>, ask: u32) {
        // Without its table the page would seem to hold nothing. It is asked again.
        let page = self.page_asked_for(ask);
        if !self.has_pages(cx, page.into_iter()) {
            return;
        }
        let Some(session) = &self.session else { return };
        let Some(asked) = session.asked.get(&ask) else { return };
        let step = match (&asked.wanted, session.untold, session.cursor) {
            (Some(wanted), ..) => {
                let ((volume, chunk), most) = (wanted.page, wanted.most);
                let mut granules = self.replica.held(wanted.page, &wanted.granules);
                // The others are asked for with the next question.
                granules.truncate(granules_that_fit(&granules));
                Step::Want { ask, volume, chunk, most, granules }
            }
            (None, None, Some((volume, chunk))) => {
                Step::Next { ask, since: session.base, volume, chunk }
            }
            (None, from, _) => Step::Open { from: from.unwrap_or_default() },
        };
        let (to, id) = (session.leader, session.id);
        self.send_pages(cx, to, id, step);
    }

    /// Asks again for what was not answered, and gives a session up that does not hold any more.
    pub fn tick_session(&mut self, cx: &mut Cx<'_>) {
        if self.session.is_none() {
            return;
        }
        if !self.session_holds() {
            self.end_session(cx);
            return;
        }
        let Some(session) = &mut self.session else { return };
        let tick = cx.shared.tick;
        let patience = u64::from(cx.shared.timing.election_ticks);
        let mut again = Vec::new();
        for (ask, asked) in session.asked.iter_mut().filter(|(_, asked)| asked.again_at <= tick) {
            (asked.tries, asked.again_at) = (asked.tries + 1, tick + patience);
            again.push((*ask, asked.tries));
        }
        if again.iter().any(|(_, tries)| *tries >= TRIES_MAX) {
            mark!("leader answers no questions");
            self.end_session(cx);
            return;
        }
        again.into_iter().for_each(|(ask, _)| self.send_ask(cx, ask));
        self.stay_known(cx);
        self.ask_more(cx);
    }

    /// Asks again where a session of the metadata group began, while the control plane fetches: a leader that
    /// hears nothing forgets the session, and does not keep the log for it.
    fn stay_known(&self, cx: &mut Cx<'_>) {
        let Some(session) = self.session.as_ref().filter(|s| s.is_told() && !s.finished) else {
            return;
        };
        let due = cx.shared.tick.is_multiple_of(u64::from(cx.shared.timing.election_ticks));
        if self.id == GroupId::METADATA && due {
            self.send_pages(cx, session.leader, session.id, Step::Open { from: VolumeId(0) });
        }
    }

    /// Takes the members that the state will have; gives the session up if this replica is none of them, or
    /// if it was told others before.
    fn takes_members(&mut self, cx: &mut Cx<'_>, members: Membership) -> bool {
        let Some(session) = &mut self.session else { return false };
        let differ = session.start.is_some() && session.members != members;
        if differ || !members.all().contains(&cx.shared.me) {
            mark!("pages for no member");
            self.end_session(cx);
            return false;
        }
        let keeps = cx.shared.planted.is(Bug::MembersNotCopied);
        session.members = if keeps { self.members.clone() } else { members };
        true
    }

    fn session_begun(
        &mut self,
        cx: &mut Cx<'_>,
        start: (LogIndex, Term),
        members: Membership,
        from: VolumeId,
        more: bool,
        volumes: Vec<(VolumeId, VolumeRecord)>,
    ) {
        if !self.takes_members(cx, members) {
            return;
        }
        let Some(session) = &mut self.session else { return };
        if session.untold != Some(from) {
            return;
        }
        if start.1 > session.term || session.start.is_some_and(|known| known != start) {
            self.end_session(cx);
            return;
        }
        if start.0 <= session.base {
            // The leader does not know what is held here: what said so was lost on its way.
            mark!("session that leads nowhere");
            self.end_session(cx);
            self.started_over(start.0.0);
            self.acknowledge_restored(cx, start.0.0);
            return;
        }
        session.start = Some(start);
        let next = volumes.last().and_then(|(id, _)| id.0.checked_add(1)).map(VolumeId);
        session.untold = next.filter(|_| more);
        session.volumes.extend(volumes);
        session.asked.clear();
        if self.id == GroupId::METADATA {
            let from = session.leader.node;
            self.ask_for_state(cx, from, start.0);
            self.ask_more(cx);
            return;
        }
        self.ask(cx, None);
    }

    fn offered(
        &mut self,
        cx: &mut Cx<'_>,
        ask: u32,
        at: LogIndex,
        more: bool,
        pages: Vec<PageDigests>,
    ) {
        let Some(session) = &mut self.session else { return };
        let next = session.asked.get(&ask).is_some_and(|asked| asked.wanted.is_none());
        let told = session.is_told() && session.start.is_some_and(|(start, _)| at >= start);
        if !next || !told {
            return;
        }
        session.asked.remove(&ask);
        let last = pages.last().map(|page| (page.volume, page.chunk + 1));
        session.cursor = last.filter(|_| more);
        self.replica.note_ahead(at);
        for page in pages {
            let granules = self.replica.compare(&page, at);
            self.want(page.volume, page.chunk, &granules);
        }
        self.ask_more(cx);
    }

    /// Puts granules of a page behind those that are to be asked for.
    fn want(&mut self, volume: VolumeId, chunk: u64, granules: &[u8]) {
        let Some(session) = &mut self.session else { return };
        let (page, most) = ((volume, chunk), 0);
        let parts = granules.chunks(WANT_GRANULES_MAX);
        session.todo.extend(parts.map(|part| Wanted { page, granules: part.to_vec(), most }));
    }

    /// Asks what may be asked now; notices the end.
    pub(in crate::consensus) fn ask_more(&mut self, cx: &mut Cx<'_>) {
        while let Some(session) = &mut self.session
            && session.is_told()
            && session.asked.len() + session.fills.len() < ASKS_MAX
        {
            if let Some(page) = session.todo.front().map(|wanted| wanted.page)
                && !self.has_pages(cx, std::iter::once(page))
            {
                return;
            }
            let Some(session) = &mut self.session else { return };
            if let Some(wanted) = session.todo.pop_front() {
                if !cx.shared.pace.may() {
                    session.todo.push_front(wanted);
                    return;
                }
                // What finds no room here is asked for when there is some.
                let Some(most) = blocks_with_room(cx) else {
                    mark!("pages without room");
                    session.todo.push_front(wanted);
                    return;
                };
                self.ask(cx, Some(Wanted { most, ..wanted }));
            } else if session.cursor.is_some()
                && session.asked.values().all(|asked| asked.wanted.is_some())
            {
                self.ask(cx, None);
            } else {
                break;
            }
        }
        let complete = |session: &&Session| session.is_done() && self.has_state_for(cx, session);
        if self.session.as_ref().filter(|s| !s.finished).is_some_and(|s| complete(&s)) {
            cx.shared.sessions -= self.counted(1);
            self.session.iter_mut().for_each(|session| session.finished = true);
        }
    }

    fn take_blocks(
        &mut self,
        cx: &mut Cx<'_>,
        ask: u32,
        mut told: ToldPage,
        blocks: Vec<(u16, u32)>,
        payload: Payload,
    ) {
        let Some(session) = &mut self.session else { return };
        let asked = session.asked.get(&ask).and_then(|asked| asked.wanted.as_ref());
        let Some(wanted) =
            asked.filter(|wanted| fits((&wanted.granules, wanted.most), &told.granules, &blocks))
        else {
            return;
        };
        if session.start.is_none_or(|(start, _)| told.at < start) {
            return;
        }
        let sums: Vec<u32> = blocks.iter().map(|(_, sum)| *sum).collect();
        let verify = !cx.shared.planted.is(Bug::RebuildFromCorrupt);
        if payload.len() != sums.len() * BLOCK_BYTES || verify && !blocks_match(&payload, &sums) {
            // It is asked for again.
            mark!("damaged block from the leader");
            return;
        }
        told.page = wanted.page;
        told.left = wanted.granules[told.granules.len()..].to_vec();
        session.asked.remove(&ask);
        if blocks.is_empty() {
            self.install_told(told);
        } else {
            self.write_fill(cx, told, blocks, payload);
        }
        self.ask_more(cx);
    }

    /// Puts granules in their places whose blocks are all here. The others are asked for again.
    fn install_told(&mut self, told: ToldPage) {
        let ToldPage { page, at, changed_at, granules, left } = told;
        let mut again = Vec::new();
        for granule in granules {
            if !self.replica.install(page, &granule, changed_at, at) {
                again.push(granule.number);
            }
        }
        again.extend(left);
        self.want(page.0, page.1, &again);
    }

    fn write_fill(
        &mut self,
        cx: &mut Cx<'_>,
        told: ToldPage,
        blocks: Vec<(u16, u32)>,
        payload: Payload,
    ) {
        cx.shared.moved.blocks_taken += blocks.len() as u64;
        cx.shared.page_bytes += payload.len() as u64;
        cx.shared.pace.take(payload.len());
        let seq = self.record_blocks(cx, told.page, &blocks, payload);
        let Some(session) = &mut self.session else { return };
        session.fills.push_back(Fill { seq, location: None, told, blocks });
    }

    /// Records blocks of a page that came from another replica, with their places in it and their checksums.
    pub(in crate::consensus) fn record_blocks(
        &self,
        cx: &mut Cx<'_>,
        (volume, chunk): (VolumeId, u64),
        blocks: &[(u16, u32)],
        payload: Payload,
    ) -> RecordSeq {
        let first = chunk * CHUNK_BLOCKS;
        let moved = |(block, checksum): &(u16, u32)| MovedBlock {
            volume,
            block: first + u64::from(*block),
            checksum: *checksum,
            from: None,
        };
        let moved: Vec<MovedBlock> = blocks.iter().map(moved).collect();
        let record = Record::Moved { group: self.id, data: encode_moved(&moved), payload };
        cx.shared.record(record, Written { group: self.slot, entry: None })
    }

    /// Notes where blocks from the leader stand.
    pub fn fill_placed(&mut self, seq: RecordSeq, location: Location) {
        self.copy_placed(seq, location);
        self.recovered_placed(seq, location);
        let Some(session) = &mut self.session else { return };
        if let Some(fill) = session.fills.iter_mut().find(|fill| fill.seq == seq) {
            fill.location = Some(location);
        }
    }

    /// Points the index at blocks from the leader that are durable.
    pub(crate) fn install_fills(&mut self, cx: &mut Cx<'_>) {
        if self.session.as_ref().is_none_or(|session| session.fills.is_empty()) {
            return;
        }
        if !self.session_holds() {
            self.end_session(cx);
            return;
        }
        while let Some(fill) = self.session.as_ref().and_then(|session| session.fills.front())
            && fill.seq <= cx.shared.durable
        {
            let page = fill.told.page;
            if !self.has_pages(cx, std::iter::once(page)) {
                return;
            }
            let Some(session) = &mut self.session else { break };
            let Some(fill) = session.fills.pop_front() else { break };
            let Fill { location, told, blocks, .. } = fill;
            let location = location.expect("a durable record has its place");
            self.replica.stage(told.page, &blocks, location);
            self.install_told(told);
        }
        self.ask_more(cx);
    }

    /// Whether the replica is ready to go over to a state that came in pages: none of its records is
    /// on its way any more.
    pub fn may_restore(&self, cx: &Cx<'_>) -> bool {
        let finished = self.session.as_ref().is_some_and(|session| session.finished);
        let settled = self.last_seq <= cx.shared.durable && self.held.is_empty();
        finished && settled && self.session_holds()
    }

    /// The next checkpoint, whose place in the log is noted now, begins with this replica's going over
    /// if it is ready.
    pub fn promise_restore(&mut self, cx: &Cx<'_>) {
        let may = self.may_restore(cx);
        if let Some(session) = &mut self.session {
            session.promised = may;
        }
    }

    /// The next checkpoint has older entries replayed than was noted. What is held here beyond the state
    /// would be taken for a part of the log again: then the promise does not hold. Nor does it for one that
    /// was here before, since nothing is known here of what the log holds of that.
    pub fn withdraw_restore(&mut self) {
        let returned = self.returned;
        let last = self.raft.as_ref().map_or(0, |raft| raft.store().last());
        if let Some(session) = &mut self.session {
            let holds = session.start.is_some_and(|(start, _)| last < start.0);
            session.promised &= holds && !returned;
        }
    }

    /// Whether the next checkpoint begins with this replica's going over.
    pub fn will_restore(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.promised)
    }

    /// Goes over to the state that came in pages, if that was promised and still makes sense.
    pub fn restore_as_promised(&mut self, cx: &mut Cx<'_>) {
        if !self.will_restore() {
            return;
        }
        let holds = self.session_holds();
        let Some(session) = self.session.take() else { return };
        let Some((start, term)) = session.start.filter(|_| holds) else {
            self.replica.unstage();
            return;
        };
        let snapshot = snapshot(start, term, &session.members);
        self.incoming = Incoming { volumes: session.volumes, members: session.members };
        self.guard(cx, |group, cx| {
            let raft = &mut group.raft.as_mut().expect("seen by the guard").raft;
            if raft.state != StateRole::Follower {
                let (term, nobody) = (raft.term, raft::INVALID_ID);
                raft.become_follower(term, nobody);
            }
            // The library refuses a state that its own log leads to anyway.
            if raft.restore(snapshot) {
                group.ready(cx);
            }
        });
    }

    /// The library goes over to the state as of an entry: log and volumes follow.
    pub(crate) fn go_over(&mut self, cx: &mut Cx<'_>, index: u64, term: u64) {
        mark!("replica restored from pages");
        let Incoming { volumes, members } = std::mem::take(&mut self.incoming);
        // The entries that made them the members are not in the log: the checkpoint tells who they are.
        mark_change(&self.members, &members);
        self.set_members(members);
        self.members_durable = false;
        self.forget_former_members(cx);
        let raft = self.raft.as_mut().expect("only a panic stops it");
        raft.mut_store().start_at(index + 1, term);
        self.waits.stop();
        self.replica.start_at(LogIndex(index), &volumes);
        self.started_over(index);
        while let Some(pending) = self.pending.pop_back() {
            pending.unknown(cx, self.id);
        }
        self.limbo = Some(index);
        cx.shared.moved.restored += 1;
        if cx.shared.planted.is(Bug::RestoredTooEarly) {
            self.acknowledge_restored(cx, index);
        }
    }

    /// The state that came in pages is durable: the leader may count on it.
    pub fn restored_durably(&mut self, cx: &mut Cx<'_>) {
        let Some(index) = self.limbo.take() else { return };
        self.guard(cx, |group, cx| group.release(cx));
        self.acknowledge_restored(cx, index);
    }

    /// Tells the leader that everything up to an entry is held. It speaks in the present term, which may be
    /// younger than the checkpoint and not durable yet: then it waits behind what waits for that already.
    pub(crate) fn acknowledge_restored(&mut self, cx: &mut Cx<'_>, index: u64) {
        let Some(leader) = self.leader().filter(|leader| *leader != self.me) else { return };
        let commit = self.raft.as_ref().map_or(0, |raft| raft.raft.raft_log.committed);
        let mut message = eraftpb::Message {
            to: u64::from(leader.0),
            from: u64::from(self.me.0),
            term: self.term().0,
            index,
            commit,
            ..Default::default()
        };
        message.set_msg_type(MessageType::MsgAppendResponse);
        self.guard(cx, |group, cx| group.send_in_order(cx, message));
    }
}

/// Blocks for which there is room, as many as are asked for at a time or fewer.
pub(in super::super) fn blocks_with_room(cx: &Cx<'_>) -> Option<u16> {
    let piece = cx.shared.pace.piece().min(cx.shared.segment_bytes / 4);
    let mut most = (piece / BLOCK_BYTES).clamp(1, WANT_BLOCKS_MAX);
    while most > 0 && !cx.shared.log.has_room_in_reserve(most as u32, false) {
        most /= 2;
    }
    (most > 0).then_some(most as u16)
}

/// Whether an answer is one to a question: the first of the granules asked for, no more blocks than may
/// come, all of them in these granules.
pub(in super::super) fn fits(
    (wanted, most): (&[u8], u16),
    granules: &[GranuleSums],
    blocks: &[(u16, u32)],
) -> bool {
    let numbers = granules.iter().map(|granule| granule.number);
    let told =
        |block: u16| granules.iter().any(|g| u16::from(g.number) == block / GRANULE_BLOCKS as u16);
    granules.len() <= wanted.len()
        && numbers.eq(wanted.iter().copied().take(granules.len()))
        && blocks.len() <= usize::from(most)
        && blocks.iter().all(|(block, _)| told(*block))
}

fn mark_change(before: &Membership, after: &Membership) {
    if before != after {
        mark!("members changed by pages");
    }
}

/// The library's word for a state as of an entry.
fn snapshot(index: LogIndex, term: Term, members: &Membership) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (index.0, term.0);
    metadata.set_conf_state(conf_state(members));
    snapshot
}
