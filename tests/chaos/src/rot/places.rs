//! Where the blocks of a volume stand on a device, from the log's batches alone: nothing is asked of the
//! daemon, and none of its checkpoint is believed.

use super::disk::Disk;
use anyhow::Result;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::command::{Command, decode_commands};
use basalt_wire::disk::batch::{BatchHeader, Descriptor, bytes_needed};
use basalt_wire::disk::moved::decode_moved;
use basalt_wire::disk::{block_offset, segment_count};
use basalt_wire::ids::VolumeId;
use std::collections::{BTreeMap, HashMap};

/// A segment and a block in it.
type Place = (u32, u32);

/// The place of each content that was ever written to each block of a volume, as far as it still stands
/// in a segment.
pub(super) struct Places {
    segment_bytes: u64,
    /// By number of the block and checksum of the content: where it was put last.
    last: HashMap<(u64, u32), Place>,
    /// Batches of the log that were read, by number: where their headers stand.
    pub(super) headers: BTreeMap<u64, BatchHeader>,
}

impl Places {
    /// Reads the batches of all segments.
    pub(super) fn read(disk: &Disk, volume: u64) -> Result<Places> {
        let segment_bytes = disk.superblock.segment_bytes;
        // Copies carry the number of the batch that the log wrote next.
        let order = |header: &BatchHeader| {
            let f = header.fields;
            (f.seq, !header.holds_copies(), f.segment_seq, f.segment, f.block)
        };
        let mut headers = BTreeMap::new();
        for segment in 0..segment_count(disk.bytes(), segment_bytes) {
            let offset = block_offset(segment_bytes, segment, 0);
            let bytes = disk.read(offset, segment_bytes as usize)?;
            for header in batches(&bytes, segment, disk.superblock.device) {
                headers.insert(order(&header), header);
            }
        }
        let mut places = Places { segment_bytes, last: HashMap::new(), headers: BTreeMap::new() };
        for header in headers.into_values() {
            places.batch(&header, VolumeId(volume));
            if !header.holds_copies() {
                places.headers.insert(header.fields.seq, header);
            }
        }
        Ok(places)
    }

    /// Where on the device a header begins.
    pub(super) fn header_offset(&self, header: &BatchHeader) -> u64 {
        block_offset(self.segment_bytes, header.fields.segment, header.fields.block)
    }

    /// Where on the device a content of a block was put last.
    pub(super) fn offset(&self, block: u64, checksum: u32) -> Option<u64> {
        let (segment, at) = self.last.get(&(block, checksum))?;
        Some(block_offset(self.segment_bytes, *segment, *at))
    }

    fn batch(&mut self, header: &BatchHeader, volume: VolumeId) {
        let f = header.fields;
        for record in header.records() {
            let Some((payload, _)) = record.payload() else { continue };
            let first = f.block + header.header_blocks() + payload;
            match record {
                Descriptor::Entry { data, .. } => {
                    let commands = decode_commands(&data).unwrap_or_default();
                    self.commands(&commands, volume, (f.segment, first));
                }
                Descriptor::Moved { data, .. } => {
                    for (at, moved) in (first..).zip(decode_moved(&data).unwrap_or_default()) {
                        let key = (moved.block, moved.checksum);
                        let from = moved.from.map(|(segment, at)| (segment.0, at));
                        // The index follows only a record that says where the block stood. The segment
                        // of that place may have been used again since.
                        let known = self.last.get(&key).copied();
                        let follows = from.is_none() || known.is_none() || from == known;
                        if moved.volume == volume && follows {
                            self.last.insert(key, (f.segment, at));
                        }
                    }
                }
                Descriptor::HardState { .. } => {}
            }
        }
    }

    fn commands(&mut self, commands: &[Command], of: VolumeId, (segment, mut at): Place) {
        for command in commands {
            if let Command::Write { volume, range, checksums, .. } = command
                && *volume == of
            {
                for (n, checksum) in (0..).zip(checksums) {
                    let key = (range.block + n, *checksum);
                    self.last.insert(key, (segment, at + n as u32));
                }
            }
            at += command.payload_blocks();
        }
    }
}

/// The batches of a segment's current use, from its start. One whose header is damaged is passed over.
fn batches(bytes: &[u8], segment: u32, device: u64) -> Vec<BatchHeader> {
    let mut found: Vec<BatchHeader> = Vec::new();
    let mut block = 0;
    while let Some(rest) = bytes.get(block * BLOCK_BYTES..).filter(|rest| !rest.is_empty()) {
        block += 1;
        if bytes_needed(rest).is_err() {
            continue;
        }
        let Ok(header) = BatchHeader::decode(rest) else { continue };
        let f = &header.fields;
        let here = (f.device, f.segment, f.block as usize) == (device, segment, block - 1);
        let later = found.last().is_none_or(|before| {
            let (last, copies) = (before.fields, header.holds_copies());
            let behind = f.seq > last.seq || copies && f.seq == last.seq;
            let same_use = f.segment_seq == last.segment_seq && copies == before.holds_copies();
            same_use && behind && f.boot >= last.boot
        });
        if here && later {
            block += header.blocks() as usize - 1;
            found.push(header);
        }
    }
    found
}
