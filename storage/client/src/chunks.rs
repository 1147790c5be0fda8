//! What a session remembers of each chunk: the floor of its reads, and which of its blocks are being
//! written.
//!
//! The floor of a chunk is the highest index, in the log of the chunk's group, of anything that this
//! session has seen of the chunk: an acknowledged write or the index of a read. A read is served only
//! by a replica that has applied it. Kept per chunk and not per group, it holds up no read of a
//! follower that is a few entries behind on other chunks; and as each block is linearizable by
//! itself, so is the volume.
//!
//! Writes of the same blocks go one after another: see [`crate::retry`] for the reason.

use crate::slab::Slab;
use basalt_wire::command::BlockRange;
use basalt_wire::ids::LogIndex;

/// Chunks in a page of the table, 4 GiB of volume: pages are made when they are first touched.
const PAGE_CHUNKS: u64 = 1024;
const NO_LOCKS: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Chunk {
    floor: LogIndex,
    locks: u32,
}

const FRESH: Chunk = Chunk { floor: LogIndex(0), locks: NO_LOCKS };

/// Floors and locks of all chunks of a volume.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    pages: Vec<Option<Box<[Chunk]>>>,
    locks: Slab<Locks>,
    /// Emptied lock lists, kept for their memory.
    spare: Vec<Locks>,
}

/// A part and the blocks that it is about.
#[derive(Clone, Copy, Debug)]
struct Holder {
    range: BlockRange,
    part: u32,
}

#[derive(Debug, Default)]
struct Locks {
    held: Vec<Holder>,
    waiting: Vec<Holder>,
}

fn overlap(a: BlockRange, b: BlockRange) -> bool {
    a.block < b.block + u64::from(b.count) && b.block < a.block + u64::from(a.count)
}

impl Chunks {
    /// The floor of a chunk, zero if it was never seen.
    pub fn floor(&self, chunk: u64) -> LogIndex {
        let page = self.pages.get((chunk / PAGE_CHUNKS) as usize).and_then(Option::as_ref);
        page.map_or(LogIndex(0), |page| page[(chunk % PAGE_CHUNKS) as usize].floor)
    }

    /// Raises the floor of a chunk.
    pub fn raise(&mut self, chunk: u64, index: LogIndex) {
        let chunk = self.chunk(chunk);
        chunk.floor = chunk.floor.max(index);
    }

    /// Takes the blocks for a part. If it has to wait, it is among those that a later
    /// [`Chunks::unlock`] gives.
    pub fn lock(&mut self, chunk: u64, range: BlockRange, part: u32) -> bool {
        let mut at = self.chunk(chunk).locks;
        if at == NO_LOCKS {
            at = self.locks.insert(self.spare.pop().unwrap_or_default());
            self.chunk(chunk).locks = at;
        }
        let locks = &mut self.locks[at];
        let holder = Holder { range, part };
        // Those that wait count too, so that nobody waits for ever.
        let taken = locks.held.iter().chain(&locks.waiting).any(|h| overlap(h.range, range));
        if taken {
            locks.waiting.push(holder)
        } else {
            locks.held.push(holder)
        }
        !taken
    }

    /// Gives back the blocks of a part; those that held the blocks up to now may go on are added to
    /// `started`.
    pub fn unlock(&mut self, chunk: u64, part: u32, started: &mut Vec<u32>) {
        let at = self.chunk(chunk).locks;
        let locks = &mut self.locks[at];
        let place = locks.held.iter().position(|h| h.part == part).expect("the part holds a lock");
        locks.held.swap_remove(place);
        if !locks.waiting.is_empty() {
            locks.start_waiting(started);
        }
        if locks.held.is_empty() {
            assert!(locks.waiting.is_empty(), "a part waits for nobody");
            let locks = self.locks.remove(at);
            self.chunk(chunk).locks = NO_LOCKS;
            if self.spare.len() < 64 {
                self.spare.push(locks);
            }
        }
    }

    fn chunk(&mut self, chunk: u64) -> &mut Chunk {
        let page = (chunk / PAGE_CHUNKS) as usize;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page]
            .get_or_insert_with(|| vec![FRESH; PAGE_CHUNKS as usize].into_boxed_slice());
        &mut page[(chunk % PAGE_CHUNKS) as usize]
    }
}

impl Locks {
    /// Starts, in order, each that overlaps neither a holder nor one that waits before it.
    fn start_waiting(&mut self, started: &mut Vec<u32>) {
        let mut still = 0;
        for i in 0..self.waiting.len() {
            let holder = self.waiting[i];
            let mut before = self.held.iter().chain(&self.waiting[..still]);
            if before.any(|h| overlap(h.range, holder.range)) {
                self.waiting[still] = holder;
                still += 1;
            } else {
                self.held.push(holder);
                started.push(holder.part);
            }
        }
        self.waiting.truncate(still);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(block: u64, count: u32) -> BlockRange {
        BlockRange { block, count }
    }

    #[test]
    fn overlapping_writes_go_one_after_another_in_order() {
        let mut chunks = Chunks::default();
        assert!(chunks.lock(7, range(0, 4), 1));
        assert!(chunks.lock(7, range(4, 4), 2));
        assert!(!chunks.lock(7, range(3, 2), 3));
        assert!(!chunks.lock(7, range(3, 1), 4), "waits behind 3");
        assert!(chunks.lock(8, range(3, 1), 5), "another chunk");
        let mut started = Vec::new();
        chunks.unlock(7, 1, &mut started);
        assert!(started.is_empty());
        chunks.unlock(7, 2, &mut started);
        assert_eq!(started, [3]);
        chunks.unlock(7, 3, &mut started);
        assert_eq!(started, [3, 4]);
        chunks.unlock(7, 4, &mut started);
        chunks.unlock(8, 5, &mut started);
        assert_eq!(chunks.locks.len(), 0);
    }

    #[test]
    fn floors_only_rise() {
        let mut chunks = Chunks::default();
        assert_eq!(chunks.floor(1 << 20), LogIndex(0));
        chunks.raise(1 << 20, LogIndex(5));
        chunks.raise(1 << 20, LogIndex(3));
        assert_eq!(chunks.floor(1 << 20), LogIndex(5));
        assert_eq!(chunks.floor(0), LogIndex(0));
    }
}
