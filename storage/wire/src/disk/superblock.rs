//! The superblock: who a device belongs to, how it is cut up, and how often it was opened.
//!
//! One block, in two copies. An update writes one copy, waits until it is durable, then writes the
//! other, so at every instant at least one of them is whole; the valid one with the higher boot
//! generation counts.
//!
//! | bytes | field | why |
//! | --- | --- | --- |
//! | 0..8 | magic | tells a Basalt device from anything else |
//! | 8..12 | CRC-32C of bytes 12..4096 | the update may be torn |
//! | 12..14 | version | another layout is refused, by number |
//! | 14..16 | shard | an image of another shard is refused |
//! | 16..24 | cluster | a device of another cluster is refused |
//! | 24..28 | node | a device of another node is refused |
//! | 28..32 | zero | |
//! | 32..40 | device id | stands in every batch header: content of an earlier life is foreign |
//! | 40..48 | segment_bytes | the cut is fixed when the device is formatted |
//! | 48..56 | device_bytes | a device that shrank or was swapped is refused |
//! | 56..64 | boot generation | stands in every batch header: a dropped tail is told from new batches |
//! | 64..4096 | zero | |

use super::{
    DiskFormatError, FORMAT_VERSION, SEGMENT_BYTES_MAX, SEGMENT_BYTES_UNIT, field, is_blank,
    segment_count,
};
use crate::block::{BLOCK_BYTES, crc32c};
use crate::buffer::IoBuf;
use crate::ids::{ClusterId, NodeId, ShardId};

/// `BASALTSB` in ASCII.
const MAGIC: u64 = u64::from_le_bytes(*b"BASALTSB");

/// Who a device belongs to, and how it is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// Drawn when the device was formatted; every batch header carries it.
    pub device: u64,
    /// Bytes in a segment.
    pub segment_bytes: u64,
    /// Bytes of device that belong to the shard.
    pub device_bytes: u64,
    /// How often the device was opened for writing.
    pub boot: u64,
}

impl Superblock {
    /// The block that says this.
    pub fn encode(&self) -> IoBuf {
        let mut b = IoBuf::zeroed(BLOCK_BYTES);
        field::put_u64(&mut b, 0, MAGIC);
        field::put_u16(&mut b, 12, FORMAT_VERSION);
        field::put_u16(&mut b, 14, self.shard.0);
        field::put_u64(&mut b, 16, self.cluster.0);
        field::put_u32(&mut b, 24, self.node.0);
        field::put_u64(&mut b, 32, self.device);
        field::put_u64(&mut b, 40, self.segment_bytes);
        field::put_u64(&mut b, 48, self.device_bytes);
        field::put_u64(&mut b, 56, self.boot);
        let crc = crc32c(&b[12..]);
        field::put_u32(&mut b, 8, crc);
        b
    }

    /// Reads and validates a block.
    pub fn decode(b: &[u8]) -> Result<Superblock, DiskFormatError> {
        if b.len() != BLOCK_BYTES {
            return Err(DiskFormatError::Short(BLOCK_BYTES as u32));
        }
        if field::u64(b, 0) != MAGIC {
            return Err(if is_blank(b) {
                DiskFormatError::Blank
            } else {
                DiskFormatError::Foreign
            });
        }
        if field::u32(b, 8) != crc32c(&b[12..]) {
            return Err(DiskFormatError::Checksum);
        }
        let version = field::u16(b, 12);
        if version != FORMAT_VERSION {
            return Err(DiskFormatError::Version(version));
        }
        let superblock = Superblock {
            cluster: ClusterId(field::u64(b, 16)),
            node: NodeId(field::u32(b, 24)),
            shard: ShardId(field::u16(b, 14)),
            device: field::u64(b, 32),
            segment_bytes: field::u64(b, 40),
            device_bytes: field::u64(b, 48),
            boot: field::u64(b, 56),
        };
        superblock.validate()?;
        Ok(superblock)
    }

    fn validate(&self) -> Result<(), DiskFormatError> {
        let bytes = self.segment_bytes;
        if bytes == 0 || !bytes.is_multiple_of(SEGMENT_BYTES_UNIT) || bytes > SEGMENT_BYTES_MAX {
            return Err(DiskFormatError::Field("segment_bytes"));
        }
        if segment_count(self.device_bytes, bytes) == 0 {
            return Err(DiskFormatError::Field("device_bytes"));
        }
        Ok(())
    }

    /// Whether two copies belong to the same device, whatever their boot generations.
    pub fn same_device(&self, other: &Superblock) -> bool {
        Superblock { boot: 0, ..*self } == Superblock { boot: 0, ..*other }
    }
}

/// The superblock that counts, of two copies read from a device, or a sentence why there is none.
/// An unreadable copy is passed as an error.
pub fn choose(copies: &[Result<Superblock, DiskFormatError>; 2]) -> Result<Superblock, String> {
    match copies {
        [Ok(a), Ok(b)] if !a.same_device(b) => Err(format!(
            "the two superblocks belong to different devices (ids {:016x} and {:016x})",
            a.device, b.device
        )),
        [Ok(a), Ok(b)] => Ok(if a.boot >= b.boot { *a } else { *b }),
        [Ok(one), Err(_)] | [Err(_), Ok(one)] => Ok(*one),
        [Err(DiskFormatError::Blank), Err(DiskFormatError::Blank)] => {
            Err("the device is blank: it was never formatted".into())
        }
        [Err(a), Err(b)] => Err(format!("neither superblock is valid: {a}; {b}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            cluster: ClusterId(7),
            node: NodeId(2),
            shard: ShardId(1),
            device: 0x1234_5678_9abc_def0,
            segment_bytes: 1 << 20,
            device_bytes: 9 << 20,
            boot: 3,
        }
    }

    #[test]
    fn survives_a_round_trip() {
        assert_eq!(Superblock::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let good = sample().encode();
        for bit in 0..BLOCK_BYTES * 8 {
            let mut bad = IoBuf::copy_from(&good);
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&bad).is_err(), "bit {bit} was flipped and not noticed");
        }
    }

    #[test]
    fn the_higher_boot_of_two_counts() {
        let (old, new) = (sample(), Superblock { boot: 4, ..sample() });
        assert_eq!(choose(&[Ok(old), Ok(new)]), Ok(new));
        assert_eq!(choose(&[Ok(old), Err(DiskFormatError::Checksum)]), Ok(old));
        let other = Superblock { device: 1, ..sample() };
        assert!(choose(&[Ok(old), Ok(other)]).is_err());
        let blank = Err(DiskFormatError::Blank);
        assert!(choose(&[blank, blank]).is_err_and(|e| e.contains("never formatted")));
    }
}
