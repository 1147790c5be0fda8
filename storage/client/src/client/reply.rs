//! What a reply means for the part that it answers.

use super::{Out, VolumeClient};
use crate::part::{
    Control, NONE, PartKind, Runs, SentFor, Verb, block_checksums, matches_checksums,
};
use crate::types::BlockError;
use basalt_wire::buffer::Payload;
use basalt_wire::frame::{Refusal, Reply, ReplyResult};
use basalt_wire::ids::{Address, GroupId, LogIndex, NodeId, Term};

const MALFORMED: BlockError = BlockError::Io("a replica refused the request as malformed");
const NO_SNAPSHOT: BlockError = BlockError::Io("there is no such snapshot");
const TOO_MANY: BlockError = BlockError::Io("the volume has as many snapshots as it may have");
const HAS_CLONES: BlockError = BlockError::Io("clones hang on the volume or snapshot");
const TOO_DEEP: BlockError = BlockError::Io("the snapshot is that of a clone of too many clones");
const EXISTS: BlockError = BlockError::Io("there is such a volume already");
const GATE_LOST: BlockError = BlockError::Io("a group did not wait for the others");
const NOT_PERMITTED: BlockError =
    BlockError::Io("the ticket of this client does not allow it: attach the volume anew");
const CHANGED: BlockError = BlockError::Io("the data changed in memory while it was written");

/// Who answers: the link, and its replica's place among the group's voters.
#[derive(Clone, Copy)]
struct Replier {
    link: u16,
    voter: usize,
}

impl VolumeClient {
    pub(super) fn on_reply(&mut self, from: Address, mut reply: Reply, out: &mut Out) {
        let Some(link) = self.find_link(from) else { return };
        // What is not waited for was asked over an earlier link, or answered before.
        let Some(slot) = self.find_sent(reply.id) else { return };
        if self.sent[slot].link != link {
            return;
        }
        let sent = self.sent.remove(slot);
        self.links[usize::from(link)].answered(sent.bytes, &self.tuning, self.now);
        self.drop_answered(link);
        if let (Some(weight), ReplyResult::Data { .. }) = (sent.read, &reply.result) {
            self.note_read(link, self.now.since(sent.at), weight);
        }
        match sent.what {
            SentFor::Part(id) => {
                let part = &mut self.parts[id];
                part.sent = NONE;
                if let Some(watch) = &mut part.watch {
                    watch.answered(reply.trace.take());
                }
                self.on_part_reply(id, link, reply, out);
            }
            SentFor::Leader(group, voter) => {
                self.group(group).asked.remove(voter);
                self.group(group).full.remove(voter);
                match reply.result {
                    ReplyResult::Refused(Refusal::NoSpace) => self.voter_is_full(group, voter, out),
                    ReplyResult::Leader { leader: Some(node), term } => {
                        self.learn(group, node, term);
                    }
                    ReplyResult::Refused(Refusal::Fenced) => self.end(BlockError::Fenced, out),
                    // A session that goes on asks others: one node may not know of the latest secret.
                    ReplyResult::Refused(Refusal::NotPermitted) if self.is_beginning() => {
                        self.end(NOT_PERMITTED, out);
                    }
                    _ => {}
                }
            }
            SentFor::Nobody => {}
        }
        if !self.is_over() {
            self.pump(link, out);
        }
    }

    /// Drops what is answered from the front of the link's list.
    fn drop_answered(&mut self, link: u16) {
        while let Some((id, _)) = self.links[usize::from(link)].sent.front() {
            if self.find_sent(*id).is_some() {
                break;
            }
            self.links[usize::from(link)].sent.pop_front();
        }
    }

    fn on_part_reply(&mut self, id: u32, link: u16, reply: Reply, out: &mut Out) {
        let part = &self.parts[id];
        let voters = &self.groups[part.group.0 as usize].voters;
        let voter = voters.iter().position(|l| *l == link);
        let (Some(voter), true) = (voter, reply.group == part.group) else {
            // The replica left the group, or answers for another one.
            return self.lose_copy(id);
        };
        let from = Replier { link, voter };
        match (part.is_read(), reply.result) {
            (_, ReplyResult::Refused(Refusal::Fenced)) => self.end(BlockError::Fenced, out),
            (_, ReplyResult::Refused(Refusal::Invalid)) => self.fail_part(id, MALFORMED, out),
            (_, ReplyResult::Refused(Refusal::NotPermitted)) => {
                self.fail_part(id, NOT_PERMITTED, out);
            }
            (_, ReplyResult::Refused(Refusal::LateDuplicate)) => self.overtaken(id, link, out),
            (false, ReplyResult::Done { index }) => self.on_done(id, index, out),
            (false, ReplyResult::Refused(refusal)) => self.on_refused(id, from, refusal, out),
            (false, ReplyResult::Leader { leader, term }) => {
                self.on_denied(id, from, leader, term);
            }
            (false, ReplyResult::Unknown) => {
                self.forget_leader(id, voter);
                self.lose_copy(id);
            }
            (true, ReplyResult::Data { index, checksums, payload }) => {
                self.on_data(id, from, index, &checksums, payload, out);
            }
            (true, ReplyResult::Extents { index, runs }) => {
                self.on_extents(id, from, index, runs, out);
            }
            (true, ReplyResult::Refused(refusal)) => {
                self.on_read_refused(id, voter, Some(refusal), out);
            }
            (true, other) => {
                if let ReplyResult::Leader { leader: Some(node), term } = other {
                    self.learn(self.parts[id].group, node, term);
                }
                self.on_read_refused(id, voter, None, out);
            }
            // An answer to another question: nothing is known about what was asked.
            (false, ReplyResult::Data { .. } | ReplyResult::Extents { .. }) => self.lose_copy(id),
        }
    }

    /// A replica can not take part in electing a leader, for want of room. With a majority of them
    /// there will be none: what waits for one ends here.
    fn voter_is_full(&mut self, number: GroupId, voter: usize, out: &mut Out) {
        let group = self.group(number);
        group.full.insert(voter);
        if group.leader.is_some() || group.full.len() <= group.voters.len() / 2 {
            return;
        }
        let waiting: Vec<u32> = std::mem::take(&mut group.waiting).into();
        for id in waiting {
            match self.parts[id].kind {
                PartKind::Write { .. } | PartKind::Unmap | PartKind::Fill(_) => {
                    self.fail_part(id, BlockError::NoSpace, out);
                }
                _ => self.group(number).waiting.push_back(id),
            }
        }
    }

    /// The copy's outcome is not known; another is sent when that is safe.
    fn lose_copy(&mut self, id: u32) {
        self.parts[id].copies.lose();
        self.todo.push(id);
    }

    fn forget_leader(&mut self, id: u32, voter: usize) {
        let group = self.parts[id].group;
        if self.group(group).leader == Some(voter) {
            self.group(group).leader = None;
        }
    }

    // ---- what changes blocks ----

    fn on_done(&mut self, id: u32, index: LogIndex, out: &mut Out) {
        let group = self.parts[id].group;
        self.group(group).went_well();
        match self.parts[id].kind {
            PartKind::Fence => {
                self.finish_part(id, out, |_, _| {});
                self.fenced(group, index, out);
            }
            PartKind::Control(control) => {
                if let Control::Revert(_) = control {
                    // No replica that has not reverted may serve a read from here on.
                    let state = self.group(group);
                    state.fence_index = state.fence_index.max(index);
                }
                self.finish_part(id, out, |_, _| {});
            }
            _ => {
                self.chunks.raise(self.parts[id].chunk(), index);
                self.finish_part(id, out, |_, _| {});
            }
        }
    }

    /// The replica does not lead, so the copy had no effect.
    fn on_denied(&mut self, id: u32, from: Replier, leader: Option<NodeId>, term: Term) {
        self.parts[id].copies.refused();
        let number = self.parts[id].group;
        let node = self.links[usize::from(from.link)].address.node;
        if leader == Some(node) && term <= self.group(number).term {
            // It leads after all, but not yet with all that it takes.
            return self.back_off(id);
        }
        self.forget_leader(id, from.voter);
        if let Some(leader) = leader {
            self.learn(number, leader, term);
        }
        self.todo.push(id);
    }

    fn on_refused(&mut self, id: u32, from: Replier, refusal: Refusal, out: &mut Out) {
        self.parts[id].copies.refused();
        match refusal {
            Refusal::NoSpace if !self.parts[id].must_come_through() => {
                self.fail_part(id, BlockError::NoSpace, out);
            }
            // It may have led once, and have no room to take part in electing who leads now.
            Refusal::NoSpace => {
                self.forget_leader(id, from.voter);
                self.back_off(id);
            }
            Refusal::Frozen => {
                // Submitted again in the session's generation. If that is frozen too, a snapshot was
                // begun without the session: it goes on behind it.
                let carried = self.parts[id].generation;
                if carried == self.config.generation {
                    self.config.generation.0 = carried.0.saturating_add(1);
                }
                self.todo.push(id);
            }
            Refusal::NoSnapshot => self.fail_part(id, NO_SNAPSHOT, out),
            Refusal::GateLost => self.fail_part(id, GATE_LOST, out),
            Refusal::TooManySnapshots => self.fail_part(id, TOO_MANY, out),
            Refusal::HasClones => self.fail_part(id, HAS_CLONES, out),
            Refusal::TooDeep => self.fail_part(id, TOO_DEEP, out),
            Refusal::Exists => self.fail_part(id, EXISTS, out),
            Refusal::NotHere | Refusal::Unavailable => {
                self.forget_leader(id, from.voter);
                self.todo.push(id);
            }
            Refusal::NotAttached => {
                self.fence_again(self.parts[id].group);
                self.back_off(id);
            }
            Refusal::BadChecksum => match &self.parts[id].kind {
                PartKind::Write { payload, checksums }
                    if !matches_checksums(payload, checksums) =>
                {
                    self.fail_part(id, CHANGED, out);
                }
                _ => self.back_off(id),
            },
            Refusal::Busy => {
                self.stats.busy += 1;
                self.back_off(id);
            }
            _ => self.back_off(id),
        }
    }

    fn back_off(&mut self, id: u32) {
        let (number, tuning, now) = (self.parts[id].group, self.tuning, self.now);
        self.group(number).busy(&tuning, now);
        self.todo.push(id);
    }

    /// A replica has seen a higher incarnation of this session. None of this client's can be, so it
    /// is one of a life before a restart with the same epoch: jumps ahead until it is passed.
    fn overtaken(&mut self, id: u32, link: u16, out: &mut Out) {
        self.parts[id].copies.refused();
        self.todo.push(id);
        self.incarnations += self.leap;
        self.leap = self.leap.saturating_mul(2).min(1 << 40);
        self.reset(link, out);
    }

    // ---- reads ----

    fn on_data(
        &mut self,
        id: u32,
        from: Replier,
        index: LogIndex,
        checksums: &[u32],
        payload: Payload,
        out: &mut Out,
    ) {
        let part = &self.parts[id];
        let count = part.range.count as usize;
        let local = self.config.local == Some(self.links[usize::from(from.link)].address.node);
        let sound = checksums.len() == count
            && payload.len() == count * basalt_wire::block::BLOCK_BYTES
            && ((local && !self.tuning.verify_local) || matches_checksums(&payload, checksums));
        if !sound {
            // Damaged on the way, so another try with the same replica later may do.
            self.stats.damaged += 1;
            return self.on_read_refused(id, from.voter, None, out);
        }
        self.chunks.raise(part.chunk(), index);
        let payload = match &self.config.cipher {
            Some(cipher) => cipher.decrypt(part.range.block, &payload),
            None => payload,
        };
        match &part.kind {
            PartKind::Read { skip, len } => {
                let (skip, len) = (*skip as usize, *len as usize);
                let data = if len == payload.len() { payload } else { payload.slice(skip, len) };
                self.finish_part(id, out, |op, part| {
                    if let Verb::Read(order, whole) = &mut op.verb {
                        order.put(part.number, data, |data| whole.append(data));
                    }
                });
            }
            PartKind::Change(change) => {
                let mut payload = change.apply(&payload);
                if let Some(cipher) = &self.config.cipher {
                    payload = cipher.encrypt(part.range.block, &payload);
                }
                let checksums = block_checksums(&payload);
                let part = &mut self.parts[id];
                part.kind = PartKind::Write { payload, checksums };
                if let Some(watch) = &mut part.watch {
                    watch.read_first(self.now);
                }
                self.todo.push(id);
            }
            _ => self.on_read_refused(id, from.voter, None, out),
        }
    }

    fn on_extents(&mut self, id: u32, from: Replier, index: LogIndex, runs: Runs, out: &mut Out) {
        let part = &self.parts[id];
        let total: u64 = runs.iter().map(|(count, _)| u64::from(*count)).sum();
        let asked = matches!(part.kind, PartKind::Extents { .. });
        if !asked || total != u64::from(part.range.count) {
            return self.on_read_refused(id, from.voter, None, out);
        }
        self.chunks.raise(part.chunk(), index);
        self.finish_part(id, out, |op, part| {
            let PartKind::Extents { skip, len, .. } = part.kind else { return };
            if let Verb::Extents(order, sum, _) = &mut op.verb {
                order.put(part.number, (runs, u64::from(skip), len), |(runs, skip, len)| {
                    sum.add(&runs, skip, len);
                });
                if sum.full {
                    op.cursor.stop();
                }
            }
        });
    }

    /// This replica can not serve the read now: another may.
    fn on_read_refused(&mut self, id: u32, voter: usize, refusal: Option<Refusal>, out: &mut Out) {
        if refusal == Some(Refusal::NoSnapshot) {
            return self.fail_part(id, NO_SNAPSHOT, out);
        }
        let part = &mut self.parts[id];
        part.tried.insert(voter);
        match refusal {
            Some(Refusal::Behind) => self.stats.behind += 1,
            Some(Refusal::Busy) => self.stats.busy += 1,
            Some(Refusal::Damaged) => {
                part.damaged.insert(voter);
                self.stats.damaged += 1;
            }
            _ => {}
        }
        let (tried, group) = (part.tried.len(), part.group);
        // One replica may not know of the session yet; if none does, it has to be told again.
        if refusal == Some(Refusal::NotAttached) && tried == self.group(group).voters.len() {
            self.fence_again(group);
        }
        self.todo.push(id);
    }
}
