//! Damage that is looked for: what a scrub must have made of the devices.

use crate::event::Who;
use crate::report::Class;
use crate::world::World;
use basalt_core::event::Event;
use basalt_core::shard::ScrubStatus;
use basalt_wire::block::crc32c;
use basalt_wire::disk::block_offset;
use basalt_wire::disk::moved::MovedBlock;

impl World {
    /// What a node says of its scrub; nothing if it does not take part.
    pub fn scrub_status(&self, n: Who) -> Option<ScrubStatus> {
        let node = &self.nodes[n];
        let takes_part = !node.mute && !node.lost;
        takes_part.then_some(node.shard.as_ref()?.status().scrub)
    }

    /// Has all nodes look at all of their blocks.
    pub fn ask_scrubs(&mut self) {
        for n in 0..self.nodes.len() {
            self.nodes[n].scrubs = self.scrub_status(n).map_or(0, |status| status.scrub.asked);
            self.give(n, Event::Scrub, 0);
        }
    }

    /// Whether all nodes have looked at all of their blocks since they were asked to, and nothing waits for
    /// a repair. On a device that may be full there is no room for repairs.
    pub fn scrubs_are_over(&self) -> bool {
        (0..self.nodes.len()).all(|n| {
            self.scrub_status(n).is_none_or(|status| {
                let looked = status.scrub.asked > self.nodes[n].scrubs;
                let repaired = status.repairs.waiting == 0 || self.declares_full();
                looked && repaired
            })
        })
    }

    /// The live blocks of a node, and where each stands on its disk.
    pub fn live_places(&self, n: Who) -> Vec<(MovedBlock, u64)> {
        let segment = self.options.segment;
        let places = self.nodes[n].shard.as_ref().map_or(Vec::new(), |shard| shard.places());
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
}
