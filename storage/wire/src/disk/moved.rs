//! The data of a record of moved blocks: which blocks its payload holds, and where they stood.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..1 | version |
//! | 1..4 | zero |
//! | 4..8 | number of blocks |
//! | 8.. | for each block of the payload, in order, 28 bytes |
//!
//! A block: volume 8, block in the volume 8, CRC-32C of its content 4, the segment where it stood 4, the
//! block in that segment 4. A block that stood nowhere here, because a peer gave it, has `u32::MAX`
//! twice. The record says nothing that must be kept: the index, at most, follows it.

use super::{DiskFormatError, SEGMENTS_MAX, field};
use crate::codec::BLOCK_END_MAX;
use crate::ids::{SegmentId, VolumeId};
use bytes::{BufMut, Bytes, BytesMut};

/// Version of the data.
pub const MOVED_VERSION: u8 = 1;
/// The most blocks of a record: its payload has at most 16 MiB.
pub const MOVED_BLOCKS_MAX: usize = 4096;

const FIXED_BYTES: usize = 8;
const BLOCK_BYTES: usize = 28;
const NOWHERE: u32 = u32::MAX;

/// One block of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedBlock {
    /// The volume.
    pub volume: VolumeId,
    /// The block, counted from the start of the volume.
    pub block: u64,
    /// CRC-32C of its content.
    pub checksum: u32,
    /// Where it stood: a segment, and a block in it. Nothing if it stood nowhere on this device.
    pub from: Option<(SegmentId, u32)>,
}

/// Bytes of the data for so many blocks.
pub fn moved_bytes(blocks: usize) -> usize {
    FIXED_BYTES + blocks * BLOCK_BYTES
}

/// The data for these blocks: 1 to [`MOVED_BLOCKS_MAX`] of them.
pub fn encode_moved(blocks: &[MovedBlock]) -> Bytes {
    assert!((1..=MOVED_BLOCKS_MAX).contains(&blocks.len()), "{} moved blocks", blocks.len());
    let mut out = BytesMut::with_capacity(moved_bytes(blocks.len()));
    out.put_slice(&[MOVED_VERSION, 0, 0, 0]);
    out.put_u32_le(blocks.len() as u32);
    for b in blocks {
        let (segment, block) = b.from.map_or((NOWHERE, NOWHERE), |(s, block)| (s.0, block));
        out.put_u64_le(b.volume.0);
        out.put_u64_le(b.block);
        out.put_u32_le(b.checksum);
        out.put_u32_le(segment);
        out.put_u32_le(block);
    }
    out.freeze()
}

/// Reads and validates the data of a record.
pub fn decode_moved(data: &[u8]) -> Result<Vec<MovedBlock>, DiskFormatError> {
    let Some((head, body)) = data.split_at_checked(FIXED_BYTES) else {
        return Err(DiskFormatError::Length(data.len() as u32));
    };
    if head[0] != MOVED_VERSION {
        return Err(DiskFormatError::Version(u16::from(head[0])));
    }
    let count = field::u32(head, 4) as usize;
    if count == 0 || count > MOVED_BLOCKS_MAX || body.len() != count * BLOCK_BYTES {
        return Err(DiskFormatError::Field("number of moved blocks"));
    }
    body.chunks_exact(BLOCK_BYTES).map(moved_block).collect()
}

fn moved_block(b: &[u8]) -> Result<MovedBlock, DiskFormatError> {
    let block = field::u64(b, 8);
    if block >= BLOCK_END_MAX {
        return Err(DiskFormatError::Field("moved block"));
    }
    let from = match (field::u32(b, 20), field::u32(b, 24)) {
        (NOWHERE, NOWHERE) => None,
        (segment, block) if segment < SEGMENTS_MAX && block != NOWHERE => {
            Some((SegmentId(segment), block))
        }
        _ => return Err(DiskFormatError::Field("place of a moved block")),
    };
    let volume = VolumeId(field::u64(b, 0));
    Ok(MovedBlock { volume, block, checksum: field::u32(b, 16), from })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blocks() -> impl Strategy<Value = MovedBlock> {
        let from = prop::option::of((0..SEGMENTS_MAX, 0u32..1 << 18));
        (any::<u64>(), 0..BLOCK_END_MAX, any::<u32>(), from).prop_map(
            |(volume, block, checksum, from)| MovedBlock {
                volume: VolumeId(volume),
                block,
                checksum,
                from: from.map(|(segment, block)| (SegmentId(segment), block)),
            },
        )
    }

    proptest! {
        #[test]
        fn moved_blocks_survive_a_round_trip(all in prop::collection::vec(blocks(), 1..50)) {
            let data = encode_moved(&all);
            prop_assert_eq!(data.len(), moved_bytes(all.len()));
            prop_assert_eq!(decode_moved(&data), Ok(all));
        }

        #[test]
        fn any_bytes_are_refused_or_decoded(mut data in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(version) = data.first_mut() {
                *version = MOVED_VERSION;
            }
            if let Ok(all) = decode_moved(&data) {
                let again = decode_moved(&encode_moved(&all));
                prop_assert_eq!(again, Ok(all));
            }
        }
    }

    #[test]
    fn impossible_values_are_refused() {
        let good = MovedBlock {
            volume: VolumeId(1),
            block: 2,
            checksum: 3,
            from: Some((SegmentId(4), 5)),
        };
        let data = encode_moved(&[good]);
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = data.to_vec();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            decode_moved(&bad)
        };
        assert_eq!(with(0, &[9]), Err(DiskFormatError::Version(9)));
        assert!(with(4, &2u32.to_le_bytes()).is_err());
        assert!(with(4, &0u32.to_le_bytes()).is_err());
        assert!(with(16, &u64::MAX.to_le_bytes()).is_err());
        assert!(with(28, &u32::MAX.to_le_bytes()).is_err());
        assert!(with(32, &u32::MAX.to_le_bytes()).is_err());
        assert!(decode_moved(&data[..data.len() - 1]).is_err());
    }
}
