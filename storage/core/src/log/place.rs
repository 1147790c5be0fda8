//! How the device is cut up, and where the log goes on.

use super::writer::summaries_of;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::batch::{BatchHeader, GroupSummary};
use basalt_wire::disk::superblock::Superblock;
use basalt_wire::disk::{block_offset, segment_count};

/// How the device is cut up.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// The device's id.
    pub device: u64,
    /// Segments on it.
    pub segments: u32,
    /// Blocks in each.
    pub segment_blocks: u32,
    /// Bytes in each.
    pub segment_bytes: u64,
}

impl Geometry {
    /// As a validated superblock says.
    pub fn of(superblock: &Superblock) -> Geometry {
        let segment_bytes = superblock.segment_bytes;
        Geometry {
            device: superblock.device,
            segments: segment_count(superblock.device_bytes, segment_bytes),
            // At most 2^18: the superblock's validator bounds the size of a segment.
            segment_blocks: (segment_bytes / BLOCK_BYTES as u64) as u32,
            segment_bytes,
        }
    }

    /// The byte where a block of a segment stands on the device.
    pub fn offset(&self, segment: u32, block: u32) -> u64 {
        block_offset(self.segment_bytes, segment, block)
    }
}

/// Where the next batch goes, and what it is chained to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The segment.
    pub segment: u32,
    /// Its use.
    pub segment_seq: u64,
    /// The first free block.
    pub block: u32,
    /// The next batch's number.
    pub seq: u64,
    /// Checksum of the last batch's header.
    pub crc: u32,
    /// What the last batch held.
    pub summaries: Vec<GroupSummary>,
    /// Whether the last batch is lost, so that the chain starts anew.
    pub predecessor_lost: bool,
}

impl Tail {
    /// The start of an empty log.
    pub fn start() -> Tail {
        Tail {
            segment: 0,
            segment_seq: 1,
            block: 0,
            seq: 1,
            crc: 0,
            summaries: Vec::new(),
            predecessor_lost: false,
        }
    }

    /// Behind a batch.
    pub fn after(header: &BatchHeader) -> Tail {
        let f = &header.fields;
        let (segment, segment_seq, block) = if header.is_closing() {
            (f.next_segment, f.segment_seq + 1, 0)
        } else {
            (f.segment, f.segment_seq, f.block + header.blocks())
        };
        Tail {
            segment,
            segment_seq,
            block,
            seq: f.seq + 1,
            crc: header.crc,
            summaries: summaries_of(header),
            predecessor_lost: false,
        }
    }
}
