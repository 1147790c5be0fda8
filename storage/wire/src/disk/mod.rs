//! The structures on a device: superblock, batch header, records.
//!
//! A device begins with an area for two superblocks; the rest is cut into segments of equal size,
//! each filled with batches from its start. A batch is header blocks followed by payload blocks.
//! `docs/on-disk.md` shows every byte, with the reasons and the crash argument.
//!
//! * [`superblock`]: who the device belongs to, and how often it was opened;
//! * [`batch`]: the header of a batch, which names its records and summarises its predecessor;
//! * [`moved`]: the data of a record of blocks that were moved;
//! * [`checkpoint`]: the records of an index checkpoint, which stand in the node's store;
//! * [`inspect`]: an offline checker that shares the decoders with the engine and nothing else.
//!
//! All integers are little endian. Every decoder validates before any field is used: what a device
//! returns is data.

pub mod batch;
pub mod checkpoint;
pub mod inspect;
pub mod moved;
pub mod superblock;

use crate::block::BLOCK_BYTES;
use crate::command::{Command, decode_commands};
use bytes::Bytes;

/// Version of everything in this module. A device of another version is refused.
pub const FORMAT_VERSION: u16 = 2;
/// Bytes at the start of a device that hold the superblocks; the first segment follows. The second
/// copy stands well away from the first, so that one bad spot does not take both.
pub const SUPERBLOCK_AREA_BYTES: u64 = 128 << 10;
/// Byte offsets of the two superblocks.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 64 << 10];
/// Segment sizes are multiples of this.
pub const SEGMENT_BYTES_UNIT: u64 = 64 << 10;
/// The largest segment: 1 GiB.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// The most segments of a device: their table fits in memory whatever a record says.
pub const SEGMENTS_MAX: u32 = 1 << 22;

const _: () = assert!(SUPERBLOCK_OFFSETS[1] + BLOCK_BYTES as u64 <= SUPERBLOCK_AREA_BYTES);

/// Why bytes were not accepted as a structure of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskFormatError {
    /// The device returned an error.
    #[error("the device does not give it")]
    Unreadable,
    /// All zeros: never written.
    #[error("the block is blank")]
    Blank,
    /// The magic number is another one.
    #[error("the magic number is not of this structure")]
    Foreign,
    /// The header's length is impossible.
    #[error("the length {0} is impossible")]
    Length(u32),
    /// More bytes must be read before it can be decoded.
    #[error("{0} bytes are needed")]
    Short(u32),
    /// The checksum does not match.
    #[error("the checksum does not match")]
    Checksum,
    /// The checksum matches but the version is unknown.
    #[error("the version is {0}, known is {FORMAT_VERSION}")]
    Version(u16),
    /// The checksum matches but a field has an impossible value.
    #[error("the field {0} has an impossible value")]
    Field(&'static str),
}

/// Segments on a device of `device_bytes`; what is beyond [`SEGMENTS_MAX`] of them stays unused.
pub fn segment_count(device_bytes: u64, segment_bytes: u64) -> u32 {
    if segment_bytes == 0 {
        return 0;
    }
    let count = device_bytes.saturating_sub(SUPERBLOCK_AREA_BYTES) / segment_bytes;
    u32::try_from(count).unwrap_or(u32::MAX).min(SEGMENTS_MAX)
}

/// The byte at which a block of a segment stands on the device.
pub fn block_offset(segment_bytes: u64, segment: u32, block: u32) -> u64 {
    SUPERBLOCK_AREA_BYTES
        + u64::from(segment) * segment_bytes
        + u64::from(block) * BLOCK_BYTES as u64
}

/// Blocks that hold `bytes`.
pub fn blocks_of(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX)
}

/// The checksums of an entry's payload blocks in order, from its packed commands. Empty if the data
/// is not packed commands.
pub fn payload_checksums(data: &Bytes) -> Vec<u32> {
    let Ok(commands) = decode_commands(data) else { return Vec::new() };
    let mut all = Vec::new();
    for command in commands {
        if let Command::Write { checksums, .. } | Command::Fill { checksums, .. } = command {
            all.extend(checksums);
        }
    }
    all
}

/// Whether a block was never written. Compared as a whole, which is many times faster than byte by
/// byte, for the unused rest of a segment is searched at each opening.
pub(crate) fn is_blank(block: &[u8]) -> bool {
    static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    *block == ZEROS
}

/// Little-endian fields at fixed places of a structure whose length was checked.
pub(crate) mod field {
    pub fn u16(b: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([b[at], b[at + 1]])
    }
    pub fn u32(b: &[u8], at: usize) -> u32 {
        u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
    }
    pub fn u64(b: &[u8], at: usize) -> u64 {
        u64::from(u32(b, at)) | u64::from(u32(b, at + 4)) << 32
    }
    pub fn put_u16(b: &mut [u8], at: usize, v: u16) {
        b[at..at + 2].copy_from_slice(&v.to_le_bytes());
    }
    pub fn put_u32(b: &mut [u8], at: usize, v: u32) {
        b[at..at + 4].copy_from_slice(&v.to_le_bytes());
    }
    pub fn put_u64(b: &mut [u8], at: usize, v: u64) {
        b[at..at + 8].copy_from_slice(&v.to_le_bytes());
    }
}
