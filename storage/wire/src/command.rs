//! What a Raft entry of a volume group says.
//!
//! A leader packs everything that arrived in one turn into one entry: a list of [`Command`]s. Their
//! block data travels beside the entry, in the order of the commands.

use crate::ids::{Epoch, Generation, VolumeId};

/// A run of blocks of one volume: what a command or a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// The first block, counted from the start of the volume.
    pub block: u64,
    /// Blocks; 1 or more. A range never crosses a chunk.
    pub count: u32,
}

/// One command of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Replace blocks. The entry's payload holds `range.count` blocks for it.
    Write {
        /// The volume.
        volume: VolumeId,
        /// The writer's epoch; refused when applied if a higher one was fenced in.
        epoch: Epoch,
        /// The generation in which the write was submitted.
        generation: Generation,
        /// Where.
        range: BlockRange,
        /// CRC-32C of each block.
        checksums: Vec<u32>,
    },
    /// Make blocks read as zeros and give back their space (discard, write-zeroes).
    Unmap {
        /// The volume.
        volume: VolumeId,
        /// The writer's epoch.
        epoch: Epoch,
        /// The generation in which it was submitted.
        generation: Generation,
        /// Where.
        range: BlockRange,
    },
    /// From here on, refuse every lower epoch of the volume (invariant I3).
    Fence {
        /// The volume.
        volume: VolumeId,
        /// The new epoch.
        epoch: Epoch,
    },
    /// Give back every block of the volume and refuse all its epochs for good.
    Delete {
        /// The volume.
        volume: VolumeId,
    },
}

impl Command {
    /// Blocks of payload that belong to the command.
    pub fn payload_blocks(&self) -> u32 {
        match self {
            Command::Write { range, .. } => range.count,
            Command::Unmap { .. } | Command::Fence { .. } | Command::Delete { .. } => 0,
        }
    }
}
