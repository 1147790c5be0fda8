//! The block: 4096 bytes, the unit of mapping, checksum and atomicity.

use crate::ids::GroupId;

/// Bytes in a block.
pub const BLOCK_BYTES: usize = 4096;
/// Blocks in a chunk, the unit of placement (4 MiB of a volume's address space).
pub const CHUNK_BLOCKS: u64 = 1024;
/// The most blocks that one command may carry (1 MiB): larger requests are split by the client, so
/// that none holds up the small ones behind it.
pub const COMMAND_BLOCKS_MAX: u32 = 256;

const _: () = assert!(CHUNK_BLOCKS.is_multiple_of(COMMAND_BLOCKS_MAX as u64));

/// CRC-32C (Castagnoli) of `bytes`, as used for blocks, frames and headers.
pub fn crc32c(bytes: &[u8]) -> u32 {
    // The result of a 32-bit algorithm fits 32 bits by definition.
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The group that holds a chunk: a hash of the volume's lineage and the chunk's number, over the
/// pool's `group_count` groups (a power of two). The hash is the finalizer of splitmix64 (Steele,
/// Lea and Flood, "Fast splittable pseudorandom number generators", 2014); it is part of the
/// cluster's format and may never change.
pub fn group_of_chunk(lineage: u64, chunk: u64, group_count: u32) -> GroupId {
    assert!(group_count.is_power_of_two(), "group count {group_count} is not a power of two");
    let mut z = lineage.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(chunk);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    GroupId((z as u32) & (group_count - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn chunks_spread_over_groups() {
        let mut counts = [0u32; 16];
        for chunk in 0..16_000 {
            counts[group_of_chunk(7, chunk, 16).0 as usize] += 1;
        }
        assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
    }
}
