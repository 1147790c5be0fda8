//! What clients write: every unit of data names the write that it comes from.
//!
//! A unit is the register of the checker: 4096 bytes, or 512 in a world with sub-block writes. Its
//! first 32 bytes say magic, client, volume, unit number, operation and a checksum of these; the rest
//! is a pattern drawn from them. So each value is unique, a misplaced one is recognised, and a read
//! can be judged without knowing what was expected.

use crate::rng::mix;
use basalt_wire::block::crc32c;

const MAGIC: u32 = 0x5a17_b10c;
/// Bytes of a stamp at the start of a unit.
pub const STAMP_BYTES: usize = 32;

/// The number of an operation in the run, from 1; it names the write that a unit comes from.
pub type OpId = u32;

/// What a stamp says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The client that wrote.
    pub client: u32,
    /// The volume.
    pub volume: u64,
    /// The unit's number in the volume.
    pub unit: u64,
    /// The write.
    pub op: OpId,
}

/// What a unit holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros only.
    Zero,
    /// A whole value.
    Value(Stamp),
    /// Neither.
    Garbage,
}

fn word_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn long_at(b: &[u8], at: usize) -> u64 {
    u64::from(word_at(b, at)) | u64::from(word_at(b, at + 4)) << 32
}

impl Stamp {
    /// Fills a unit.
    pub fn fill(&self, unit: &mut [u8]) {
        unit[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        unit[4..8].copy_from_slice(&self.client.to_le_bytes());
        unit[8..16].copy_from_slice(&self.volume.to_le_bytes());
        unit[16..24].copy_from_slice(&self.unit.to_le_bytes());
        unit[24..28].copy_from_slice(&self.op.to_le_bytes());
        let crc = crc32c(&unit[..28]);
        unit[28..32].copy_from_slice(&crc.to_le_bytes());
        let pattern = self.pattern();
        for (i, word) in unit[STAMP_BYTES..].chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&pattern.wrapping_add(i as u64).to_le_bytes());
        }
    }

    /// The stamp at the start of a unit, if there is one. The rest of the unit is not looked at.
    pub fn peek(unit: &[u8]) -> Option<Stamp> {
        if unit.len() < STAMP_BYTES || word_at(unit, 0) != MAGIC {
            return None;
        }
        (crc32c(&unit[..28]) == word_at(unit, 28)).then(|| Stamp {
            client: word_at(unit, 4),
            volume: long_at(unit, 8),
            unit: long_at(unit, 16),
            op: word_at(unit, 24),
        })
    }

    fn pattern(&self) -> u64 {
        mix(self.unit ^ (u64::from(self.op) << 32) ^ self.volume.rotate_left(17))
    }
}

/// Judges a whole unit, every byte of it.
pub fn judge(unit: &[u8]) -> Content {
    let Some(stamp) = Stamp::peek(unit) else {
        let zero = unit.chunks_exact(8).all(|w| w == [0; 8]);
        return if zero { Content::Zero } else { Content::Garbage };
    };
    let pattern = stamp.pattern();
    let whole = unit[STAMP_BYTES..]
        .chunks_exact(8)
        .enumerate()
        .all(|(i, w)| w == pattern.wrapping_add(i as u64).to_le_bytes());
    if whole { Content::Value(stamp) } else { Content::Garbage }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_judged() {
        for bytes in [512, 4096] {
            let stamp = Stamp { client: 3, volume: 9, unit: 77, op: 12 };
            let mut unit = vec![0; bytes];
            assert_eq!(judge(&unit), Content::Zero);
            stamp.fill(&mut unit);
            assert_eq!(judge(&unit), Content::Value(stamp));
            for at in [0, 5, 9, 17, 25, 29, 40, bytes - 1] {
                unit[at] ^= 4;
                assert_eq!(judge(&unit), Content::Garbage, "byte {at}");
                unit[at] ^= 4;
            }
        }
    }
}
