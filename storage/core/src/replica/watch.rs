//! Watching one page: which of its granules were commands applied to meanwhile?
//!
//! What a page was as of an entry tells what a granule of it is now only if no later command was about
//! that granule, whether the command made a difference here or not.

use super::Replica;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::command::{BlockRange, CommandView};
use basalt_wire::disk::checkpoint::GRANULE_BLOCKS;
use basalt_wire::ids::VolumeId;

/// A page under watch, and a bit for each of its granules that commands were applied to.
#[derive(Debug, Default)]
pub(super) struct Watch(Option<((VolumeId, u64), u64)>);

impl Watch {
    /// Notes a command that is applied.
    #[inline]
    pub(super) fn note(&mut self, command: &CommandView<'_>) {
        if let Some((page, touched)) = &mut self.0 {
            *touched |= touches(*page, command);
        }
    }
}

/// The granules of a page that a command is about.
fn touches((id, chunk): (VolumeId, u64), command: &CommandView<'_>) -> u64 {
    match *command {
        CommandView::Write { volume, range, .. } | CommandView::Unmap { volume, range, .. } => {
            if volume == id {
                granules(chunk, range)
            } else {
                0
            }
        }
        // What they do may reach from one volume into those that began as its clones.
        CommandView::Delete { .. }
        | CommandView::DropSnapshot { .. }
        | CommandView::Revert { .. }
        | CommandView::Clone { .. }
        | CommandView::Fill { .. }
        | CommandView::Detach { .. } => u64::MAX,
        // They say what becomes of blocks that change later, and change none.
        CommandView::Fence { .. } | CommandView::Freeze { .. } => 0,
    }
}

/// The granules of a chunk that a range of one chunk lies in.
fn granules(chunk: u64, range: BlockRange) -> u64 {
    if range.block / CHUNK_BLOCKS != chunk || range.count == 0 {
        return 0;
    }
    let first = range.block % CHUNK_BLOCKS;
    let last = (first + u64::from(range.count) - 1).min(CHUNK_BLOCKS - 1);
    let granule = |block: u64| block / GRANULE_BLOCKS as u64;
    (granule(first)..=granule(last)).fold(0, |bits, number| bits | 1 << number)
}

impl Replica {
    /// Watches a page from now on, and no other one.
    pub fn watch(&mut self, page: (VolumeId, u64)) {
        self.watch = Watch(Some((page, 0)));
    }

    /// Watches no page any more.
    pub fn unwatch(&mut self) {
        self.watch = Watch(None);
    }

    /// A bit for each granule of the page that commands were applied to since it is watched.
    pub fn touched(&self) -> u64 {
        self.watch.0.map_or(0, |(_, touched)| touched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_wire::ids::{Epoch, Generation};

    #[test]
    fn commands_touch_the_granules_that_they_are_about() {
        let (volume, other) = (VolumeId(7), VolumeId(8));
        let page = (volume, 2);
        let unmap = |volume, block, count| CommandView::Unmap {
            volume,
            epoch: Epoch(1),
            generation: Generation(1),
            range: BlockRange { block, count },
        };
        for (block, count, bits) in [
            (2048, 1, 1),
            (2048 + 15, 2, 0b11),
            (2048 + 1023, 1, 1 << 63),
            (2048, 1024, u64::MAX),
            (1024, 1024, 0),
            (3072, 8, 0),
        ] {
            assert_eq!(touches(page, &unmap(volume, block, count)), bits, "{count} at {block}");
            assert_eq!(touches(page, &unmap(other, block, count)), 0);
        }
        let generation = Generation(3);
        let whole = |volume| CommandView::DropSnapshot { volume, generation };
        assert_eq!([volume, other].map(|id| touches(page, &whole(id))), [u64::MAX; 2]);
        assert_eq!(touches(page, &CommandView::Freeze { volume, generation }), 0);
    }
}
