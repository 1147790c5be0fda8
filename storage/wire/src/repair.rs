//! Repairing a block that is damaged on one replica with what another one holds.
//!
//! Content is asked for by its checksum, not by an index of the log: whatever has that checksum and stood
//! for the block once is what the damaged place held.

use crate::buffer::Payload;
use crate::ids::{GroupId, VolumeId};

/// A question for one block, or the answer, between the replicas of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Repair {
    /// The group.
    pub group: GroupId,
    /// The question, numbered by the one who asks.
    pub request: u64,
    /// What is said.
    pub step: RepairStep,
}

/// What a message about a repair says.
#[derive(Clone, Debug, PartialEq)]
pub enum RepairStep {
    /// "Do you have this block with this content, as it is or in a snapshot?"
    Want {
        /// The volume.
        volume: VolumeId,
        /// The block, counted from the start of the volume.
        block: u64,
        /// CRC-32C of the content.
        checksum: u32,
    },
    /// The content: one block.
    Have {
        /// The block.
        content: Payload,
    },
    /// Not here, or damaged here as well.
    HaveNot,
}
