//! One page: the places of a chunk's 1024 blocks.

use super::usage::{Dying, Usage};
use crate::log::Location;
use basalt_wire::block::CHUNK_BLOCKS;
use basalt_wire::disk::checkpoint::{GRANULE_BLOCKS, Granule};
use basalt_wire::ids::{LogIndex, SegmentId};

const BLOCKS: usize = CHUNK_BLOCKS as usize;

/// Where a block stands, and the checksum of its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockPlace {
    /// The segment.
    pub segment: SegmentId,
    /// The block within the segment.
    pub block: u32,
    /// CRC-32C of the content; travels with the pointer, so that a wrong block is noticed.
    pub checksum: u32,
}

#[derive(Clone, Copy)]
struct Packed {
    segment: u32,
    block: u32,
    checksum: u32,
}

/// Blocks of a segment are counted from 0 and far fewer than this, so it can mean "not mapped".
const UNMAPPED: u32 = u32::MAX;

/// The places of a chunk's blocks.
#[derive(Default)]
pub struct Page {
    changed_at: LogIndex,
    mapped: u32,
    /// Granules that changed since they were given to a checkpoint.
    dirty: u64,
    /// Granules that a checkpoint holds.
    stored: u64,
    table: Option<Box<[Packed; BLOCKS]>>,
}

impl Page {
    /// Bytes of the table of a page that maps anything.
    pub const TABLE_BYTES: u64 = size_of::<[Packed; BLOCKS]>() as u64;

    /// The index of the entry that changed the page last.
    pub fn changed_at(&self) -> LogIndex {
        self.changed_at
    }

    /// Blocks that are mapped.
    pub fn mapped_blocks(&self) -> u32 {
        self.mapped
    }

    /// Where a block stands; nothing if it reads as zeros.
    pub fn get(&self, block: usize) -> Option<BlockPlace> {
        let packed = self.table.as_ref()?[block];
        (packed.block != UNMAPPED).then_some(BlockPlace {
            segment: SegmentId(packed.segment),
            block: packed.block,
            checksum: packed.checksum,
        })
    }

    /// The mapped blocks with their places, in order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, BlockPlace)> + '_ {
        let blocks = if self.table.is_some() { BLOCKS } else { 0 };
        (0..blocks).filter_map(|block| self.get(block).map(|place| (block, place)))
    }

    pub(super) fn map(
        &mut self,
        block: usize,
        first: BlockPlace,
        sums: impl Iterator<Item = u32>,
        at: LogIndex,
        usage: &mut Usage,
    ) {
        let table = self.table.get_or_insert_with(empty_table);
        let (mut count, mut fresh) = (0, 0);
        let mut dying = Dying::new(usage);
        for (i, (slot, checksum)) in table[block..].iter_mut().zip(sums).enumerate() {
            if slot.block == UNMAPPED {
                fresh += 1;
            } else {
                dying.push(slot.segment);
            }
            *slot = Packed { segment: first.segment.0, block: first.block + i as u32, checksum };
            count = i + 1;
        }
        dying.finish();
        usage.add(first.segment, count as u32);
        self.mapped += fresh;
        self.changed_at = at;
        self.dirty |= granules(block, count);
    }

    pub(super) fn unmap(&mut self, block: usize, count: usize, at: LogIndex, usage: &mut Usage) {
        if let Some(table) = &mut self.table {
            let mut dying = Dying::new(usage);
            for slot in &mut table[block..block + count] {
                if slot.block != UNMAPPED {
                    self.mapped -= 1;
                    dying.push(slot.segment);
                    slot.block = UNMAPPED;
                }
            }
            dying.finish();
        }
        if self.mapped == 0 {
            self.table = None;
        }
        self.changed_at = at;
        self.dirty |= granules(block, count);
    }

    /// Points a block at another place with the same content, if it still stands at `from`. For those
    /// who read the volume nothing changes: the page keeps the index of its last change.
    pub(super) fn relocate(
        &mut self,
        block: usize,
        from: BlockPlace,
        to: Location,
        usage: &mut Usage,
    ) -> bool {
        if self.get(block) != Some(from) {
            return false;
        }
        if let Some(table) = &mut self.table {
            table[block].segment = to.segment.0;
            table[block].block = to.block;
        }
        usage.sub(from.segment, 1);
        usage.add(to.segment, 1);
        self.dirty |= granules(block, 1);
        true
    }

    /// Notes a change of which only the entry is known. Says whether that is news.
    pub(super) fn touch(&mut self, at: LogIndex) -> bool {
        let news = at > self.changed_at;
        if news {
            self.changed_at = at;
            self.dirty |= 1;
        }
        news
    }

    /// Whether it changed since it was given to a checkpoint.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty != 0
    }

    /// The next granule to be given to a checkpoint, and whether none holds it yet.
    pub fn take_dirty(&mut self) -> Option<(u8, bool, Granule)> {
        let number = self.dirty.trailing_zeros();
        if self.dirty == 0 {
            return None;
        }
        let bit = 1 << number;
        self.dirty &= !bit;
        let fresh = self.stored & bit == 0;
        self.stored |= bit;
        let mut granule = Granule { changed_at: self.changed_at, ..Granule::default() };
        let first = number as usize * GRANULE_BLOCKS;
        for (i, place) in granule.places.iter_mut().enumerate() {
            *place = self.get(first + i).map(|p| (p.segment, p.block, p.checksum));
        }
        Some((number as u8, fresh, granule))
    }

    /// Takes a granule from a checkpoint.
    pub(super) fn restore(&mut self, number: u8, granule: &Granule, usage: &mut Usage) {
        let first = usize::from(number) * GRANULE_BLOCKS;
        self.stored |= 1 << number;
        self.changed_at = self.changed_at.max(granule.changed_at);
        for (i, place) in granule.places.iter().enumerate() {
            let Some((segment, block, checksum)) = *place else { continue };
            let slot = &mut self.table.get_or_insert_with(empty_table)[first + i];
            if slot.block == UNMAPPED {
                self.mapped += 1;
            } else {
                usage.sub(SegmentId(slot.segment), 1);
            }
            *slot = Packed { segment: segment.0, block, checksum };
            usage.add(segment, 1);
        }
    }

    /// Mapped blocks and tables held, for the accounts of the index.
    pub(super) fn footprint(&self) -> (u64, u64) {
        (u64::from(self.mapped), u64::from(self.table.is_some()))
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page({} mapped, changed at {})", self.mapped, self.changed_at)
    }
}

/// The granules that hold some blocks, a bit for each.
fn granules(first: usize, count: usize) -> u64 {
    if count == 0 {
        return 0;
    }
    let (low, high) = (first / GRANULE_BLOCKS, (first + count - 1) / GRANULE_BLOCKS);
    (u64::MAX >> (63 - (high - low))) << low
}

const _: () = assert!(BLOCKS / GRANULE_BLOCKS == 64, "a page has a bit for each granule");

fn empty_table() -> Box<[Packed; BLOCKS]> {
    let table = vec![Packed { segment: 0, block: UNMAPPED, checksum: 0 }; BLOCKS];
    let Ok(table) = table.into_boxed_slice().try_into() else {
        unreachable!("the vector was made with the length of a table")
    };
    table
}
