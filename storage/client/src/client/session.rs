//! The session as a whole: its beginning (fencing), its links, the map, its end.

use super::{Out, Phase, VolumeClient, blocks_of};
use crate::group::{FenceState, Group, VOTERS_MAX, VoterSet};
use crate::link::{Link, LinkState};
use crate::part::{Control, NONE, PartKind, SentFor};
use crate::slab::Slab;
use crate::types::{BlockError, ClientEffect, PoolMap};
use basalt_wire::block::{CHUNK_BLOCKS, group_of_chunk};
use basalt_wire::command::BlockRange;
use basalt_wire::ids::{Address, Generation, GroupId, Incarnation, LogIndex};
use std::sync::Arc;

/// No blocks: what a fence or a delete is about.
const NOWHERE: BlockRange = BlockRange { block: 0, count: 0 };

impl VolumeClient {
    pub(super) fn begin(&mut self, out: &mut Out) {
        let map = self.config.map.clone();
        if !is_sound(&map) {
            return self.end(BlockError::Io("the map of the pool is malformed"), out);
        }
        self.groups.resize_with(map.groups.len(), Group::default);
        self.place_voters(&map, out);
        self.fence_needed();
        self.check_ready(out);
        self.run(out);
    }

    /// Fences every group that holds chunks of the volume and is not fenced yet.
    fn fence_needed(&mut self) {
        let chunks = blocks_of(self.config.size_bytes).div_ceil(CHUNK_BLOCKS);
        let count = self.config.map.group_count;
        // With so many chunks no group is without one; a group fenced in vain does no harm.
        if chunks >= 32 * u64::from(count) {
            (0..count).for_each(|group| self.fence(GroupId(group)));
        } else {
            for chunk in 0..chunks {
                self.fence(group_of_chunk(self.config.lineage, chunk, count));
            }
        }
    }

    pub(super) fn fence(&mut self, group: GroupId) {
        if self.view {
            self.group(group).fence = FenceState::Done;
        } else if self.group(group).fence == FenceState::NotNeeded {
            self.group(group).fence = FenceState::Pending;
            let part = self.new_part(NONE, group, NOWHERE, PartKind::Fence);
            self.start_part(part);
        }
    }

    pub(super) fn fenced(&mut self, group: GroupId, index: LogIndex, out: &mut Out) {
        let state = self.group(group);
        state.fence = FenceState::Done;
        state.fence_index = state.fence_index.max(index);
        self.wake(group);
        self.check_ready(out);
    }

    /// A replica has not heard of the session: fences its group again.
    pub(super) fn fence_again(&mut self, group: GroupId) {
        if self.group(group).fence == FenceState::Done {
            self.group(group).fence = FenceState::NotNeeded;
            self.fence(group);
        }
    }

    /// Whether the session has not begun yet.
    pub(super) fn is_beginning(&self) -> bool {
        self.phase == Phase::Fencing
    }

    fn check_ready(&mut self, out: &mut Out) {
        let pending = self.groups.iter().any(|group| group.fence == FenceState::Pending);
        if self.phase != Phase::Fencing || pending {
            return;
        }
        self.phase = Phase::Ready;
        out.push(ClientEffect::Ready);
        while let Some((tag, op)) = self.backlog.pop_front() {
            self.submit(tag, op, out);
        }
    }

    /// Does something to the volume as a whole: in every group for a delete, else in those that the
    /// session has to do with. A snapshot moves the session to the next generation at once.
    pub(super) fn start_control(&mut self, op: u32, control: Control) {
        if let (Control::Freeze(generation), false) = (control, self.view) {
            let next = Generation(generation.0.saturating_add(1));
            self.config.generation = self.config.generation.max(next);
        }
        for group in (0..self.config.map.group_count).map(GroupId) {
            if control == Control::Delete {
                self.fence(group);
            }
            if self.group(group).fence != FenceState::NotNeeded {
                let part = self.new_part(op, group, NOWHERE, PartKind::Control(control));
                self.start_part(part);
            }
        }
    }

    /// The volume grew. Groups that held nothing of it are fenced, and what is asked of them waits for
    /// that. A volume never gets smaller, so a lower size is one of the past.
    ///
    /// A snapshot that was begun before the volume grew does not freeze those groups. So the session
    /// leaves the snapshot's generation before it writes there.
    pub(super) fn resize(&mut self, size_bytes: u64, generation: Generation) {
        if size_bytes <= self.config.size_bytes {
            return;
        }
        self.config.generation = self.config.generation.max(generation);
        self.config.size_bytes = size_bytes;
        self.fence_needed();
    }

    /// Takes a newer map. The number of groups can not change, for it decides where chunks are.
    pub(super) fn new_map(&mut self, map: Arc<PoolMap>, out: &mut Out) {
        let newer = map.version > self.config.map.version;
        if !newer || !is_sound(&map) || map.group_count != self.config.map.group_count {
            return;
        }
        self.place_voters(&map, out);
        self.config.map = map;
        // Places in the lists of voters have another meaning now.
        for id in self.parts.keys().collect::<Vec<_>>() {
            self.parts[id].tried.clear();
            self.parts[id].damaged.clear();
        }
        for id in self.sent.keys().collect::<Vec<_>>() {
            if matches!(self.sent[id].what, SentFor::Leader(..)) {
                self.sent[id].what = SentFor::Nobody;
            }
        }
        for group in (0..self.groups.len() as u32).map(GroupId) {
            if let Some((node, term)) = self.group(group).unplaced.take() {
                self.learn(group, node, term);
            }
            self.wake(group);
        }
    }

    fn place_voters(&mut self, map: &PoolMap, out: &mut Out) {
        for (number, voters) in map.groups.iter().enumerate() {
            let links = voters.iter().map(|address| self.link_to(*address, out)).collect();
            let group = &mut self.groups[number];
            let leader = group.leader.map(|voter| group.voters[voter]);
            group.voters = links;
            group.leader = group.voters.iter().position(|link| Some(*link) == leader);
            group.local = voters.iter().position(|address| Some(address.node) == self.config.local);
            group.asked = VoterSet::default();
        }
        for link in 0..self.links.len() as u16 {
            let used = self.groups.iter().any(|group| group.voters.contains(&link));
            self.links[usize::from(link)].used = used;
        }
    }

    fn link_to(&mut self, address: Address, out: &mut Out) -> u16 {
        self.find_link(address).unwrap_or_else(|| {
            out.push(ClientEffect::Dial { to: address });
            self.links.push(Link::new(address, &self.tuning, self.now));
            (self.links.len() - 1) as u16
        })
    }

    pub(super) fn find_link(&self, address: Address) -> Option<u16> {
        self.links.iter().position(|link| link.address == address).map(|link| link as u16)
    }

    pub(super) fn link_up(&mut self, to: Address, credit_bytes: u32, credit_requests: u32) {
        let Some(link) = self.find_link(to) else { return };
        if self.links[usize::from(link)].is_up() {
            self.take_back(link);
        }
        self.incarnations += 1;
        let incarnation = Incarnation(self.incarnations);
        self.links[usize::from(link)].up(incarnation, credit_bytes, credit_requests, self.now);
        for i in 0..self.listed.len() {
            let group = self.listed[i];
            if self.group(group).voters.contains(&link) {
                self.group(group).next_at = self.now;
            }
        }
    }

    pub(super) fn link_down(&mut self, to: Address) {
        let Some(link) = self.find_link(to) else { return };
        self.links[usize::from(link)].down(&self.tuning, self.now);
        self.take_back(link);
    }

    /// Drops a link and makes it anew. Everything on it is sent again, over a new incarnation.
    pub(super) fn reset(&mut self, link: u16, out: &mut Out) {
        self.stats.resets += 1;
        let state = &mut self.links[usize::from(link)];
        state.state = LinkState::Dialling(self.now + self.tuning.dial_timeout);
        out.push(ClientEffect::Reset { to: state.address });
        self.take_back(link);
    }

    /// Takes back everything that is unanswered or queued on a link which broke.
    fn take_back(&mut self, link: u16) {
        let state = &mut self.links[usize::from(link)];
        let queue = std::mem::take(&mut state.queue);
        let ids = std::mem::take(&mut state.sent);
        self.todo.extend(queue);
        for (id, _) in ids {
            let Some(slot) = self.find_sent(id) else { continue };
            match self.sent.remove(slot).what {
                SentFor::Part(part) => {
                    self.parts[part].copies.lose();
                    self.parts[part].sent = NONE;
                    self.todo.push(part);
                }
                SentFor::Leader(group, voter) => self.group(group).asked.remove(voter),
                SentFor::Nobody => {}
            }
        }
    }

    /// The session is over.
    pub(super) fn end(&mut self, error: BlockError, out: &mut Out) {
        self.phase = Phase::Over(error);
        for id in self.ops.keys() {
            out.push(ClientEffect::Complete { tag: self.ops[id].tag, result: Err(error) });
        }
        let limited = self.limited.drain(..).map(|limited| limited.tag);
        for tag in self.backlog.drain(..).map(|(tag, _)| tag).chain(limited) {
            out.push(ClientEffect::Complete { tag, result: Err(error) });
        }
        self.ops = Slab::default();
        self.parts = Slab::default();
        self.sent = Slab::default();
        self.chunks = Default::default();
        self.links.clear();
        self.groups.clear();
        self.listed.clear();
        self.todo.clear();
        self.stats.write_bytes = 0;
        out.push(ClientEffect::Lost(error));
    }
}

fn is_sound(map: &PoolMap) -> bool {
    let voters = |voters: &Vec<Address>| (1..=VOTERS_MAX).contains(&voters.len());
    map.group_count.is_power_of_two()
        && map.groups.len() == map.group_count as usize
        && map.groups.iter().all(voters)
}
