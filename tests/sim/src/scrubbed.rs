//! Damage that is looked for: what a scrub must have made of the devices.

use crate::event::Who;
use crate::options::Family;
use crate::report::Class;
use crate::rng::Rng;
use crate::world::World;
use basalt_core::event::Event;
use basalt_core::shard::{GroupRole, ScrubStatus};
use basalt_wire::block::{BLOCK_BYTES, crc32c};
use basalt_wire::disk::batch::BatchHeader;
use basalt_wire::disk::moved::MovedBlock;
use basalt_wire::disk::{block_offset, segment_count};
use basalt_wire::ids::GroupId;
use std::collections::BTreeMap;

impl World {
    /// What a node says of its scrub; nothing if it does not take part.
    pub fn scrub_status(&self, n: Who) -> Option<ScrubStatus> {
        let node = &self.nodes[n];
        (!node.lost).then_some(node.shard.as_ref()?.status().scrub)
    }

    /// Has all nodes look at all of their blocks.
    pub fn ask_scrubs(&mut self) {
        for n in 0..self.nodes.len() {
            let status = self.scrub_status(n).unwrap_or_default();
            self.nodes[n].scrubs = (status.scrub.asked, status.survey.asked);
            self.give(n, Event::Scrub, 0);
        }
    }

    /// Whether all nodes have looked at all of their blocks since they were asked to, and nothing waits for
    /// a repair or for another node's page. On a device that may be full there is no room for repairs.
    pub fn scrubs_are_over(&self) -> bool {
        let doubts = |n| self.scrub_status(n).is_some_and(|status| status.differing_pages > 0);
        let agree = self.diverged.is_empty()
            || self.is_converged()
                && self.difference().is_none()
                && !(0..self.nodes.len()).any(doubts);
        agree
            && (0..self.nodes.len()).all(|n| {
                self.scrub_status(n).is_none_or(|status| {
                    let (scrubs, surveys) = self.nodes[n].scrubs;
                    let looked = status.scrub.asked > scrubs && status.survey.asked > surveys;
                    let repaired = status.repairs.waiting == 0 || self.declares_full();
                    looked && repaired && self.lost_pages(n) == 0
                })
            })
    }

    /// Pages that the store of a node has lost and that are not here again.
    fn lost_pages(&self, n: Who) -> u64 {
        self.nodes[n].shard.as_ref().map_or(0, |shard| shard.status().index.lost)
    }

    /// The live blocks of a node, and where each stands on its disk.
    pub fn live_places(&self, n: Who) -> Vec<(MovedBlock, u64)> {
        let segment = self.options.segment;
        let store = &self.nodes[n].store;
        let stored = |page| store.page(&page).unwrap_or_default();
        let places = self.nodes[n].shard.as_ref().map_or(Vec::new(), |shard| shard.places(stored));
        let offset = |block: &MovedBlock| {
            let (id, at) = block.from.expect("a live block stands somewhere");
            block_offset(segment, id.0, at)
        };
        places.into_iter().map(|(_, block)| (block, offset(&block))).collect()
    }

    /// The live blocks of a node that do not have their checksum, and where they stand.
    pub fn damaged_places(&self, n: Who) -> Vec<(MovedBlock, u64)> {
        let mut places = self.live_places(n);
        places.retain(|(block, offset)| {
            let content = self.nodes[n].disk.content_at(*offset);
            content.is_none_or(|content| crc32c(&content) != block.checksum)
        });
        places
    }

    /// Every live block of every replica must have its checksum now.
    pub fn judge_places(&mut self) {
        for n in 0..self.nodes.len() {
            if self.declares_full() || self.scrub_status(n).is_none() {
                continue;
            }
            if let Some((block, offset)) = self.damaged_places(n).first() {
                let text = format!("node {n} is not repaired: {block:?} at {offset}");
                self.fail(Class::Content, text);
            }
        }
    }

    /// Makes a replica forget some blocks, as a fault of memory or program would. Says how many.
    pub fn forget_blocks(&mut self, n: Who, holds: impl Fn(GroupId, &MovedBlock) -> bool) -> usize {
        let node = &mut self.nodes[n];
        let (store, Some(shard)) = (&node.store, &mut node.shard) else { return 0 };
        let places = shard.places(|page| store.page(&page).unwrap_or_default());
        let mut some: Vec<_> = places.into_iter().filter(|(g, b)| holds(*g, b)).collect();
        some.retain(|(group, block)| shard.forget_block(*group, block.volume, block.block));
        if !some.is_empty() {
            self.trace(|| format!("node {n} forgets {some:?}"));
            self.diverged.push((n, self.nodes[n].boot));
        }
        some.len()
    }

    /// At the end of some runs one replica of each group forgets a few blocks: it must come to hold again
    /// what the others hold, before it is asked for anything.
    pub fn diverge_at_the_end(&mut self) {
        let mut rng = Rng::stream(self.options.seed, "divergence", 0);
        let sound = |w: &World, n: Who| w.scrub_status(n).is_some();
        let all = (0..self.nodes.len()).all(|n| sound(self, n));
        // A page of which another copy is damaged as well may be beyond help.
        let harmed = self.damaged || self.options.families.has(Family::Damage);
        let free = self.diverged.is_empty() && !self.scripted && !harmed && !self.declares_full();
        if !all || !free || rng.chance(0.5) {
            return;
        }
        for group in (0..self.options.groups).map(GroupId) {
            let voters = self.voters_of(group);
            if voters.len() < 3 {
                continue;
            }
            let n = *rng.pick(&voters);
            let (every, at) = (rng.within(1, 20), rng.below(20));
            self.forget_blocks(n, |g, block| g == group && (block.block + at) % every == 0);
        }
    }

    /// The nodes that vote in a group, as its leader says.
    fn voters_of(&self, group: GroupId) -> Vec<Who> {
        let statuses = self.nodes.iter().filter_map(|node| Some(node.shard.as_ref()?.status()));
        let mut groups = statuses.flat_map(|status| status.groups);
        let led = groups.find(|g| g.group == group && g.role == GroupRole::Leader);
        let voters = led.map_or(Vec::new(), |g| g.members.voters);
        voters.into_iter().map(crate::node::node_of).collect()
    }

    /// Every replica that was made to differ must have been mended, and no other one.
    pub fn judge_mended(&mut self) {
        for n in 0..self.nodes.len() {
            let boot = self.nodes[n].boot;
            let Some(status) = self.scrub_status(n) else { continue };
            let diverged = self.diverged.iter().any(|d| d.0 == n);
            let now = self.diverged.contains(&(n, boot));
            if now && status.mended.pages == 0 || !diverged && status.mended.pages > 0 {
                let text = format!("node {n} was made to differ: {diverged}, and is {status:?}");
                self.fail(Class::Content, text);
            }
        }
    }

    /// The headers of batches in the closed segments of a node, the closing ones not, and where each stands on its
    /// disk.
    pub fn closed_headers(&self, n: Who) -> Vec<(BatchHeader, u64)> {
        let (o, disk) = (&self.options, &self.nodes[n].disk);
        let blocks = (o.segment / BLOCK_BYTES as u64) as u32;
        let mut all = Vec::new();
        for segment in 0..segment_count(o.device, o.segment) {
            let (mut found, mut at) = (Vec::new(), 0);
            while at < blocks {
                let offset = block_offset(o.segment, segment, at);
                let pieces = (0..(blocks - at).min(8))
                    .map_while(|i| disk.content_at(offset + u64::from(i) * BLOCK_BYTES as u64));
                let bytes: Vec<u8> = pieces.flat_map(|piece| piece.to_vec()).collect();
                let Ok(header) = BatchHeader::decode(&bytes) else { break };
                at += header.blocks();
                found.push((header, offset));
            }
            // What stands behind the closing batch, or behind copies, is of an earlier use.
            let end = found.iter().position(|(header, _)| header.is_closing());
            found.truncate(end.unwrap_or(0));
            all.extend(found.into_iter().filter(|(header, _)| !header.holds_copies()));
        }
        all
    }

    /// The headers of a node's copies of which something is live, and where they stand on the disk.
    pub fn headers_of_copies(&self, n: Who) -> Vec<(BatchHeader, u64)> {
        let (disk, mut all) = (&self.nodes[n].disk, BTreeMap::new());
        for (block, _) in self.live_places(n) {
            let (segment, at) = block.from.expect("a live block stands somewhere");
            // It is one of those that the nearest header before it tells of.
            let headers = (0..at).rev().filter_map(|at| {
                let offset = block_offset(self.options.segment, segment.0, at);
                let header = BatchHeader::decode(&disk.content_at(offset)?).ok()?;
                (header.fields.block == at).then_some((header, offset))
            });
            let holds = |(header, _): &(BatchHeader, u64)| {
                header.holds_copies() && header.fields.block + header.blocks() > at
            };
            if let Some((header, offset)) = headers.take(1).find(holds) {
                all.insert(offset, header);
            }
        }
        all.into_iter().map(|(offset, header)| (header, offset)).collect()
    }
}
