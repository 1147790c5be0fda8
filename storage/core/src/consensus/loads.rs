//! Tables of pages on their way from the store into memory, and who waits for them.
//!
//! Who needs a table that is out of memory asks for it here, and looks again when it has come. Tables leave
//! memory meanwhile, for others. So that somebody who needs several at once gets them, nothing goes that was
//! asked for or held since the oldest of those who wait began to: each of them has its tables after it has
//! asked once for each, whatever the others do.

use crate::replica::{PageKey, Replica};
use basalt_wire::ids::{GroupId, SegmentId, VolumeId};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// Times that a table is asked for before the store is given up.
const TRIES_MAX: u32 = 3;

/// A page of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId {
    /// The group.
    pub group: GroupId,
    /// The volume.
    pub volume: VolumeId,
    /// The chunk that the page is of.
    pub chunk: u64,
}

impl PageId {
    /// The page in its group.
    pub fn key(&self) -> PageKey {
        (self.volume, self.chunk)
    }
}

/// What was done since the shard was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadCounts {
    /// Tables that came into memory.
    pub loaded: u64,
    /// Tables that left it.
    pub left: u64,
    /// Pages that the store had lost and that came from other replicas.
    pub recovered: u64,
}

/// The tables that are asked for.
#[derive(Debug, Default)]
pub struct Loads {
    /// Turns of the shard.
    pub clock: u64,
    /// Asked for and not come, with the times that the store failed.
    under_way: BTreeMap<PageId, u32>,
    /// To be asked for.
    queue: Vec<PageId>,
    /// Those that the store does not give: they come from other replicas.
    lost: BTreeSet<PageId>,
    /// Whether some of these have come, or are not needed any more, since this was asked last.
    found: bool,
    /// What was done.
    pub counts: LoadCounts,
    /// Segments with copies of blocks whose pages are on their way: they are not given up.
    settling: Vec<SegmentId>,
}

impl Loads {
    /// Asks for a table.
    pub fn want(&mut self, page: PageId) {
        if self.lost.contains(&page) {
            return;
        }
        if let Entry::Vacant(entry) = self.under_way.entry(page) {
            entry.insert(0);
            self.queue.push(page);
        }
    }

    /// Asks that pages of a group stay in memory, and for the tables that are not there; says whether all are.
    pub fn hold(
        &mut self,
        replica: &Replica,
        group: GroupId,
        pages: impl Iterator<Item = PageKey>,
    ) -> bool {
        let mut all = true;
        for (volume, chunk) in pages {
            if !replica.hold((volume, chunk), self.clock) {
                all = false;
                self.want(PageId { group, volume, chunk });
            }
        }
        all
    }

    /// The same for those who ask only which places in the log the pages refer to.
    pub fn hold_places(
        &mut self,
        replica: &Replica,
        group: GroupId,
        pages: impl Iterator<Item = PageKey>,
    ) -> bool {
        let mut all = true;
        for (volume, chunk) in pages {
            if !replica.hold_places((volume, chunk), self.clock) {
                all = false;
                self.want(PageId { group, volume, chunk });
            }
        }
        all
    }

    /// The store does not give a page, and is not asked for it again.
    pub fn lose(&mut self, page: PageId) {
        self.under_way.remove(&page);
        self.queue.retain(|other| *other != page);
        self.lost.insert(page);
    }

    /// A lost page has come from another replica, or is not needed any more.
    pub fn find(&mut self, page: PageId) {
        self.found |= self.lost.remove(&page);
    }

    /// Pages that the store has lost and that have not come from elsewhere.
    pub fn lost(&self) -> usize {
        self.lost.len()
    }

    /// Whether lost pages have come since this was asked last.
    pub fn take_found(&mut self) -> bool {
        std::mem::take(&mut self.found)
    }

    /// What is to be asked of the store now.
    pub fn take_queue(&mut self) -> Vec<PageId> {
        std::mem::take(&mut self.queue)
    }

    /// A table came.
    pub fn came(&mut self, page: &PageId) {
        self.counts.loaded += u64::from(self.under_way.remove(page).is_some());
    }

    /// The store could not give a table: says whether it is asked again.
    pub fn failed(&mut self, page: PageId) -> bool {
        let tries = self.under_way.entry(page).or_default();
        *tries += 1;
        let again = *tries < TRIES_MAX;
        if again {
            self.queue.push(page);
        }
        again
    }

    /// Whether a table is asked for and has not come.
    pub fn is_under_way(&self, page: &PageId) -> bool {
        self.under_way.contains_key(page)
    }

    /// Tables that are on their way.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// A group is gone, and nobody asks for its pages.
    pub fn forget(&mut self, group: GroupId) {
        self.under_way.retain(|page, _| page.group != group);
        self.queue.retain(|page| page.group != group);
        self.lost.retain(|page| page.group != group);
    }

    /// Notes the segments with copies that the index does not point at yet.
    pub fn set_settling(&mut self, segments: BTreeSet<SegmentId>) {
        self.settling = segments.into_iter().collect();
    }

    /// Whether a segment holds such copies.
    pub fn is_settling(&self, segment: SegmentId) -> bool {
        self.settling.binary_search(&segment).is_ok()
    }
}
