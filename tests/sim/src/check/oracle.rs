//! The acknowledgement oracle: when an answer leaves a node, the write is on the media of a majority.
//!
//! Only a simulator can ask that question. It needs no lucky power cut to notice an engine that
//! answers before the flush, and no knowledge of the log's format: every unit that a client writes
//! carries a stamp, so what reached the media is read off the written blocks themselves. Of an encrypted one no stamp
//! is seen, and its first bytes name it as well: they are those of no other write.

use crate::stamp::{OpId, Stamp};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::Payload;
use rustc_hash::FxHashMap;

/// Which disks durably hold which write.
#[derive(Default)]
pub struct Oracle {
    /// One bit for each disk, by write and unit.
    held: FxHashMap<(OpId, u64), u8>,
    unit_bytes: usize,
    encrypted: bool,
}

fn key(stamp: &Stamp) -> (OpId, u64) {
    (stamp.op, stamp.volume << 40 | stamp.unit)
}

impl Oracle {
    /// An oracle over units of this size, of volumes that are encrypted or are not.
    pub fn new(unit_bytes: usize, encrypted: bool) -> Oracle {
        Oracle { held: FxHashMap::default(), unit_bytes, encrypted }
    }

    /// Log data that became durable on a disk.
    pub fn durable(&mut self, disk: usize, data: &[u8]) {
        for block in data.chunks_exact(BLOCK_BYTES) {
            if self.encrypted {
                *self.held.entry(cipher_key(block)).or_default() |= 1 << disk;
            }
            for unit in block.chunks_exact(self.unit_bytes) {
                if let Some(stamp) = Stamp::peek(unit) {
                    *self.held.entry(key(&stamp)).or_default() |= 1 << disk;
                }
            }
        }
    }

    /// A write with this payload is acknowledged. Every value in it must be held by `majority` disks.
    pub fn acknowledged(&self, payload: &Payload, majority: u32) -> Result<(), String> {
        if self.encrypted {
            return self.cipher_acknowledged(payload, majority);
        }
        for unit in payload.contiguous().chunks_exact(self.unit_bytes) {
            let Some(stamp) = Stamp::peek(unit) else { continue };
            let disks = self.held.get(&key(&stamp)).copied().unwrap_or(0);
            if disks.count_ones() < majority {
                return Err(format!(
                    "write {} of unit {} in volume {} is acknowledged, but durable on {} of the \
                     {majority} disks needed (mask {disks:#b})",
                    stamp.op,
                    stamp.unit,
                    stamp.volume,
                    disks.count_ones(),
                ));
            }
        }
        Ok(())
    }

    fn cipher_acknowledged(&self, payload: &Payload, majority: u32) -> Result<(), String> {
        for block in payload.contiguous().chunks_exact(BLOCK_BYTES) {
            let disks = self.held.get(&cipher_key(block)).copied().unwrap_or(0);
            if disks.count_ones() < majority {
                return Err(format!(
                    "an encrypted block is acknowledged, but durable on {} of the {majority} disks needed (mask \
                     {disks:#b})",
                    disks.count_ones(),
                ));
            }
        }
        Ok(())
    }
}

/// What names a block of which no stamp is seen: no write has the number 0.
fn cipher_key(block: &[u8]) -> (OpId, u64) {
    let mut first = [0; 8];
    first.copy_from_slice(&block[..8]);
    (0, u64::from_le_bytes(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_majority_is_asked_for() {
        let mut block = vec![0; BLOCK_BYTES];
        Stamp { client: 1, volume: 2, unit: 3, op: 4 }.fill(&mut block);
        let payload = Payload::from(Bytes::from(block.clone()));
        let mut oracle = Oracle::new(BLOCK_BYTES, false);
        oracle.durable(0, &block);
        oracle.durable(0, &block);
        assert!(oracle.acknowledged(&payload, 2).is_err());
        oracle.durable(2, &block);
        assert_eq!(oracle.acknowledged(&payload, 2), Ok(()));
        assert_eq!(oracle.acknowledged(&Payload::from(Bytes::from(vec![0; 4096])), 2), Ok(()));
    }
}
