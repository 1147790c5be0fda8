//! Appends on their way to one follower: the content joins its entries again.
//!
//! What a follower needs is usually in memory. A follower that is far behind is served from the log:
//! its messages wait here, in order, for their reads, and only a few of them are under way at a time.

use super::members::check_content;
use super::shared::{Cx, LogRead};
use super::table::Table;
use crate::mark;
use basalt_wire::buffer::Payload;
use basalt_wire::frame::{Frame, RaftEntry, RaftMessage};
use basalt_wire::ids::{Address, GroupId, LogIndex, Term};
use bytes::Bytes;
use raft::eraftpb::Entry;
use std::collections::VecDeque;

/// Payload after which a message is cut.
const PAYLOAD_MAX: usize = 2 << 20;
/// Data after which a message is cut.
const DATA_MAX: usize = 512 << 10;
/// Bytes that a message with content from the log counts at least.
const DATA_MIN: usize = 64 << 10;
/// Messages with content from the log that may be read or on their way at a time.
const FETCHED_MAX: usize = 4;

/// Election timeouts without an acknowledgement after which what was sent counts as lost.
const LOST_AFTER: u64 = 4;

/// Appends that wait for content.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<Waiting>,
    /// Last index of each message that was sent with content from the log, until acknowledged.
    unacknowledged: VecDeque<u64>,
    /// The tick at which there was room for another message last, or one was acknowledged.
    progress_at: u64,
    /// The entry that the follower needs and that can not be read here.
    stuck: Option<u64>,
    /// The highest commit index that the follower was told.
    pub(super) told: u64,
    /// Last index and bytes of each message that was sent, until acknowledged, and the sum of the bytes.
    under_way: VecDeque<(u64, usize)>,
    under_way_bytes: usize,
    /// The tick at which there was nothing under way last, or some of it was acknowledged.
    acknowledged_at: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    message: RaftMessage,
    last: u64,
    started: bool,
    reads: u32,
    /// Entries before the first that could not be read.
    readable: usize,
}

/// Hands the appends of one group to one follower.
pub struct Courier<'a> {
    /// The group's position in the shard.
    pub group: usize,
    /// The follower.
    pub to: Address,
    /// The group's entries.
    pub table: &'a Table,
    /// The follower's outbox.
    pub outbox: &'a mut Outbox,
}

impl Courier<'_> {
    /// Sends an append with the content of `entries`, now or when it was read.
    pub fn append(mut self, cx: &mut Cx<'_>, head: RaftMessage, entries: &[Entry]) {
        self.restart_if_behind(head.index.0);
        self.restart_if_stalled(cx);
        if entries.is_empty() && !self.outbox.waiting.is_empty() {
            return;
        }
        let mut rest = entries;
        let mut message = head;
        loop {
            let (part, after) = rest.split_at(self.part(rest));
            let mut next = None;
            if let (Some(last), false) = (part.last(), after.is_empty()) {
                let (index, log_term) = (LogIndex(last.index), Term(last.term));
                next = Some(RaftMessage { index, log_term, ..message.clone() });
            }
            self.dispatch(cx, message, part);
            rest = after;
            match next {
                Some(head) => message = head,
                None => break,
            }
        }
        self.advance(cx);
    }

    /// The library went back: what waits was sent in vain.
    fn restart_if_behind(&mut self, previous: u64) {
        let expected = self.outbox.waiting.back().map(|waiting| waiting.last);
        if expected.is_some_and(|last| last != previous) {
            mark!("outbox restarted");
            self.outbox.waiting.clear();
        }
        if self.outbox.unacknowledged.back().is_some_and(|last| *last > previous) {
            self.outbox.unacknowledged.clear();
        }
        while self.outbox.under_way.back().is_some_and(|(last, _)| *last > previous) {
            let (_, bytes) = self.outbox.under_way.pop_back().expect("seen above");
            self.outbox.under_way_bytes -= bytes;
        }
    }

    /// Messages can be lost. When nothing of what was sent is acknowledged for long, what waits is
    /// given up: the follower rejects the next append, and the library goes back.
    fn restart_if_stalled(&mut self, cx: &Cx<'_>) {
        let outbox = &mut self.outbox;
        let patience = u64::from(cx.shared.timing.election_ticks);
        if outbox.unacknowledged.len() < FETCHED_MAX {
            outbox.progress_at = cx.shared.tick;
        } else if cx.shared.tick >= outbox.progress_at + patience {
            mark!("outbox stalled");
            outbox.waiting.clear();
            outbox.unacknowledged.clear();
        }
    }

    /// How many of the entries go into one message.
    fn part(&self, entries: &[Entry]) -> usize {
        let (mut payload, mut data) = (0, 0);
        for (i, entry) in entries.iter().enumerate() {
            let blocks = self.table.slot(entry.index).map_or(0, |slot| slot.blocks);
            payload += blocks as usize * basalt_wire::block::BLOCK_BYTES;
            data += self.table.content(entry.index).map_or(0, |content| content.data.len());
            if i > 0 && (payload > PAYLOAD_MAX || data > DATA_MAX) {
                return i;
            }
        }
        entries.len()
    }

    fn dispatch(&mut self, cx: &mut Cx<'_>, mut message: RaftMessage, entries: &[Entry]) {
        let mut complete = true;
        message.entries.reserve_exact(entries.len());
        for entry in entries {
            let content = self.table.content(entry.index);
            let (blocks, kind) =
                self.table.slot(entry.index).map_or((0, 0), |slot| (slot.blocks, slot.kind));
            let payload = content.and_then(|content| content.payload.clone());
            complete &= content.is_some() && (payload.is_some() || blocks == 0);
            message.entries.push(RaftEntry {
                kind,
                term: Term(entry.term),
                index: LogIndex(entry.index),
                data: content.map_or(Bytes::new(), |content| content.data.clone()),
                payload: payload.unwrap_or_default(),
            });
        }
        let last = entries.last().map_or(message.index.0, |entry| entry.index);
        let choked = !entries.is_empty() && cx.shared.choked.contains(&self.to.node);
        if complete && !choked && self.outbox.waiting.is_empty() {
            self.outbox.sent(last, &message);
            cx.send(self.to, Frame::Raft(message));
            return;
        }
        if choked {
            // What waits for a slow follower must not keep its content in memory: it is fetched later.
            mark!("append held back from a follower that lags");
            complete = false;
            for entry in &mut message.entries {
                (entry.data, entry.payload) = (Bytes::new(), Payload::empty());
            }
        }
        // An outbox may be replaced while reads for it are under way: their answers must not be taken
        // for those of another message.
        cx.shared.messages += 1;
        let number = cx.shared.messages;
        let (started, readable) = (complete, usize::MAX);
        let waiting = Waiting { number, message, last, started, reads: 0, readable };
        self.outbox.waiting.push_back(waiting);
    }

    /// What is under way for long may be lost: then the follower finds out by what follows.
    fn forget_lost(&mut self, cx: &Cx<'_>) {
        let patience = LOST_AFTER * u64::from(cx.shared.timing.election_ticks);
        if self.outbox.under_way.is_empty() {
            self.outbox.acknowledged_at = cx.shared.tick;
        } else if cx.shared.tick >= self.outbox.acknowledged_at + patience {
            self.outbox.under_way.clear();
            self.outbox.under_way_bytes = 0;
        }
    }

    /// Starts the reads of the first messages that wait, and sends those that are complete.
    pub fn advance(&mut self, cx: &mut Cx<'_>) {
        self.forget_lost(cx);
        while let Some(front) = self.outbox.waiting.front() {
            if !front.started || front.reads > 0 {
                break;
            }
            let front = self.outbox.waiting.pop_front().expect("seen above");
            let gone =
                front.message.entries.first().is_some_and(|entry| {
                    entry.index.0 < self.table.first().0 && entry.data.is_empty()
                });
            if gone {
                mark!("entries for a follower left the log");
                self.outbox.waiting.clear();
                self.outbox.unacknowledged.clear();
                return;
            }
            let intact = front.readable.min(self.verified(&front.message));
            if intact < front.message.entries.len() {
                self.stop_at(cx, front.message, intact);
                return;
            }
            self.outbox.stuck = None;
            self.outbox.unacknowledged.push_back(front.last);
            self.outbox.sent(front.last, &front.message);
            cx.send(self.to, Frame::Raft(front.message));
        }
        let room = FETCHED_MAX.saturating_sub(self.outbox.unacknowledged.len());
        for at in 0..self.outbox.waiting.len().min(room) {
            let free =
                !cx.shared.choked.contains(&self.to.node) || self.outbox.under_way.is_empty();
            if !self.outbox.waiting[at].started && cx.shared.catch_up_bytes > 0 && free {
                self.start(cx, at);
            }
        }
    }

    /// The entries before the first that is damaged: nothing damaged is handed on as good.
    fn verified(&self, message: &RaftMessage) -> usize {
        if message.group == GroupId::METADATA {
            return message.entries.len();
        }
        let intact = |e: &&RaftEntry| check_content(e.kind, &e.data, &e.payload, true).is_ok();
        message.entries.iter().take_while(intact).count()
    }

    /// An entry is damaged here: those before it are sent all the same, so that another leader, where
    /// another entry may be damaged, can go on behind them.
    fn stop_at(&mut self, cx: &mut Cx<'_>, mut message: RaftMessage, intact: usize) {
        mark!("entry for a follower is damaged");
        let damaged = message.entries[intact].index;
        if self.outbox.stuck.replace(damaged.0) != Some(damaged.0) {
            let (group, to) = (message.group, self.to.node);
            let text = format!(
                "group {group}: entry {damaged} can not be read for node {to}: damaged here"
            );
            cx.notice(true, text);
        }
        self.outbox.waiting.clear();
        message.entries.truncate(intact);
        if let Some(last) = message.entries.last() {
            mark!("entries before a damaged one are sent");
            self.outbox.unacknowledged.push_back(last.index.0);
            cx.send(self.to, Frame::Raft(message));
        }
    }

    fn start(&mut self, cx: &mut Cx<'_>, at: usize) {
        let waiting = &mut self.outbox.waiting[at];
        waiting.started = true;
        let entries = waiting.message.entries.iter();
        let blocks = entries.filter_map(|e| Some(self.table.slot(e.index.0)?.blocks as usize));
        let bytes = (blocks.sum::<usize>() * basalt_wire::block::BLOCK_BYTES).max(DATA_MIN);
        cx.shared.catch_up_bytes = cx.shared.catch_up_bytes.saturating_sub(bytes);
        for (ordinal, entry) in waiting.message.entries.iter_mut().enumerate() {
            let Some(slot) = self.table.slot(entry.index.0) else {
                waiting.readable = waiting.readable.min(ordinal);
                return;
            };
            let what = LogRead::Entry {
                group: self.group,
                peer: self.to.node,
                message: waiting.number,
                entry: ordinal,
            };
            let content = self.table.content(entry.index.0);
            match content {
                Some(content) => entry.data = content.data.clone(),
                None => {
                    waiting.reads += 1;
                    cx.read_data(what, slot.data_at);
                }
            }
            match content.and_then(|content| content.payload.clone()) {
                Some(payload) => entry.payload = payload,
                None if slot.blocks > 0 => {
                    waiting.reads += 1;
                    cx.read(what, slot.location, slot.blocks);
                }
                None => {}
            }
        }
    }

    /// Takes what a read brought: data or payload of an entry, or nothing if it failed.
    pub fn fill(
        &mut self,
        cx: &mut Cx<'_>,
        (number, ordinal): (u64, usize),
        data: Option<Bytes>,
        payload: Option<Bytes>,
    ) {
        let mut all = self.outbox.waiting.iter_mut();
        let Some(waiting) = all.find(|waiting| waiting.number == number) else { return };
        waiting.reads -= 1;
        match (data, payload) {
            (Some(data), _) => waiting.message.entries[ordinal].data = data,
            (_, Some(blocks)) => waiting.message.entries[ordinal].payload = Payload::from(blocks),
            _ => waiting.readable = waiting.readable.min(ordinal),
        }
        self.advance(cx);
    }
}

impl Outbox {
    /// Whether nothing waits here.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.unacknowledged.is_empty() && self.under_way.is_empty()
    }

    /// The entry that the follower needs and that can not be read here.
    pub fn stuck(&self) -> Option<u64> {
        self.stuck
    }

    /// Bytes sent and not acknowledged.
    pub fn under_way_bytes(&self) -> usize {
        self.under_way_bytes
    }

    fn sent(&mut self, last: u64, message: &RaftMessage) {
        let entries = message.entries.iter();
        let bytes = entries.map(|entry| entry.payload.len() + entry.data.len()).sum();
        if bytes > 0 {
            self.under_way.push_back((last, bytes));
            self.under_way_bytes += bytes;
        }
    }

    /// The follower holds everything up to here.
    pub fn acknowledged(&mut self, matched: u64, tick: u64) {
        while let Some((_, bytes)) = self.under_way.pop_front_if(|(last, _)| *last <= matched) {
            self.under_way_bytes -= bytes;
            self.acknowledged_at = tick;
        }
        while self.unacknowledged.front().is_some_and(|last| *last <= matched) {
            self.unacknowledged.pop_front();
            self.progress_at = tick;
        }
    }
}
