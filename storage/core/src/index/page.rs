//! One page: the places of a chunk's 1024 blocks.

use basalt_wire::block::CHUNK_BLOCKS;
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
    ) {
        let table = self.table.get_or_insert_with(empty_table);
        for (i, (slot, checksum)) in table[block..].iter_mut().zip(sums).enumerate() {
            self.mapped += u32::from(slot.block == UNMAPPED);
            *slot = Packed { segment: first.segment.0, block: first.block + i as u32, checksum };
        }
        self.changed_at = at;
    }

    pub(super) fn unmap(&mut self, block: usize, count: usize, at: LogIndex) {
        if let Some(table) = &mut self.table {
            for slot in &mut table[block..block + count] {
                self.mapped -= u32::from(slot.block != UNMAPPED);
                slot.block = UNMAPPED;
            }
        }
        if self.mapped == 0 {
            self.table = None;
        }
        self.changed_at = at;
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

fn empty_table() -> Box<[Packed; BLOCKS]> {
    let table = vec![Packed { segment: 0, block: UNMAPPED, checksum: 0 }; BLOCKS];
    let Ok(table) = table.into_boxed_slice().try_into() else {
        unreachable!("the vector was made with the length of a table")
    };
    table
}
