//! An offline checker: walks a device with the decoders of this module, not with the engine.
//!
//! It reads the heads of all segments, follows the chain of batches from the oldest use of a segment that
//! leads to the newest without one missing, looks for batches behind a place where the chain breaks,
//! verifies payload against the checksums in the commands, and tells what it saw. What stands in segments
//! of older uses and in copy segments, it can not tell: only a checkpoint says whether they are needed. It
//! decides nothing and writes nothing.

use super::batch::{BatchHeader, Descriptor, FLAG_PREDECESSOR_LOST, FLAG_SEAL, bytes_needed};
use super::superblock::{Superblock, choose};
use super::{DiskFormatError, SUPERBLOCK_OFFSETS, block_offset, segment_count};
use crate::block::{BLOCK_BYTES, crc32c};
use crate::ids::GroupId;
use std::collections::{BTreeMap, BTreeSet};

/// Reads a range of the device: `(offset, buffer)`. An error is a place that can not be read.
pub type ReadAt<'a> = dyn FnMut(u64, &mut [u8]) -> Result<(), String> + 'a;

/// What was found on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// The superblock that counts.
    pub superblock: Option<Superblock>,
    /// Batches of the chain.
    pub batches: u64,
    /// Batches among them that hold no records (seals and closings).
    pub empty_batches: u64,
    /// Records in them.
    pub records: u64,
    /// Blocks of payload that were verified.
    pub blocks_verified: u64,
    /// Blocks of payload whose checksum does not match, or that could not be read.
    pub blocks_bad: u64,
    /// Blocks of payload that were moved from elsewhere on the device, or came from a peer.
    pub blocks_moved: u64,
    /// The last batch.
    pub last_seq: u64,
    /// The highest durable mark.
    pub durable: u64,
    /// Whether the log was sealed: nothing stands behind the durable mark but the seal.
    pub sealed: bool,
    /// The use of a segment with which the chain begins, counted over the whole device from 1.
    pub first_use: u64,
    /// Segments that the chain visits.
    pub segments_used: u32,
    /// Segments that begin with a batch of copies, needed or not.
    pub copy_segments: u32,
    /// The last index seen of each group.
    pub last_index: BTreeMap<GroupId, u64>,
    /// Everything that is not as it should be, a line each.
    pub findings: Vec<String>,
}

/// Walks a device. `payload` says whether block data is read and verified too.
pub fn inspect(read: &mut ReadAt<'_>, payload: bool) -> Inspection {
    let mut found = Inspection::default();
    let copies = SUPERBLOCK_OFFSETS.map(|offset| {
        let mut block = vec![0; BLOCK_BYTES];
        match read(offset, &mut block) {
            Ok(()) => Superblock::decode(&block),
            Err(_) => Err(DiskFormatError::Unreadable),
        }
    });
    for (n, copy) in copies.iter().enumerate() {
        if let Err(error) = copy {
            found.findings.push(format!("superblock {n}: {error}"));
        }
    }
    match choose(&copies) {
        Err(reason) => found.findings.push(reason),
        Ok(superblock) => {
            found.superblock = Some(superblock);
            Walk::new(read, superblock, payload).run(&mut found);
        }
    }
    found
}

struct Walk<'a, 'r> {
    read: &'a mut ReadAt<'r>,
    superblock: Superblock,
    segments: u32,
    segment_blocks: u32,
    payload: bool,
    place: (u32, u32),
    seq: u64,
    segment_seq: u64,
    boot: u64,
    /// Nothing if the predecessor is lost.
    crc: Option<u32>,
    /// Places where the chain broke.
    missing: Vec<u64>,
    /// Segments by the use of which their heads are, of the latest boot generation that began it.
    uses: BTreeMap<u64, (u64, u32)>,
    /// Segments whose heads are damaged or can not be read.
    damaged: Vec<u32>,
    visited: BTreeSet<u32>,
    copy_segments: u32,
}

impl<'a, 'r> Walk<'a, 'r> {
    fn new(read: &'a mut ReadAt<'r>, superblock: Superblock, payload: bool) -> Walk<'a, 'r> {
        Walk {
            read,
            superblock,
            segments: segment_count(superblock.device_bytes, superblock.segment_bytes),
            segment_blocks: (superblock.segment_bytes / BLOCK_BYTES as u64) as u32,
            payload,
            place: (0, 0),
            seq: 1,
            segment_seq: 1,
            boot: 0,
            crc: Some(0),
            missing: Vec::new(),
            uses: BTreeMap::new(),
            damaged: Vec::new(),
            visited: BTreeSet::new(),
            copy_segments: 0,
        }
    }

    /// Reads the heads of all segments.
    fn survey(&mut self) {
        for segment in 0..self.segments {
            match self.header(segment, 0) {
                Ok(header) if header.holds_copies() => self.copy_segments += 1,
                Ok(header) => {
                    let place = (header.fields.boot, segment);
                    let known = self.uses.entry(header.fields.segment_seq).or_insert(place);
                    *known = place.max(*known);
                }
                Err(why) if why == BLANK || why == OTHER_LIFE => {}
                Err(_) => self.damaged.push(segment),
            }
        }
    }

    /// Where the walk begins: with the first batch of all, unless segments were used again.
    fn begin(&mut self) {
        let Some(mut first) = self.uses.keys().next_back().copied() else { return };
        if first <= u64::from(self.segments) && self.copy_segments == 0 {
            return;
        }
        while self.uses.contains_key(&(first - 1)) {
            first -= 1;
        }
        let (_, segment) = self.uses[&first];
        if let Ok(header) = self.header(segment, 0) {
            self.place = (segment, 0);
            self.segment_seq = first;
            self.seq = header.fields.seq;
            self.boot = header.fields.boot;
            self.crc = None;
        }
    }

    fn run(&mut self, found: &mut Inspection) {
        self.survey();
        self.begin();
        found.first_use = self.segment_seq;
        found.copy_segments = self.copy_segments;
        while let Some(header) = self.next(found) {
            let f = header.fields;
            found.batches += 1;
            found.records += u64::from(header.record_count());
            found.empty_batches += u64::from(header.record_count() == 0);
            found.last_seq = f.seq;
            found.durable = found.durable.max(f.durable);
            found.sealed = f.flags & FLAG_SEAL != 0 && f.durable + 1 == f.seq;
            self.visited.insert(f.segment);
            found.segments_used = self.visited.len() as u32;
            self.records(&header, found);
            self.seq = f.seq + 1;
            self.boot = f.boot;
            self.crc = Some(header.crc);
            self.place = if header.is_closing() {
                self.segment_seq = f.segment_seq + 1;
                (f.next_segment, 0)
            } else {
                self.segment_seq = f.segment_seq;
                (f.segment, f.block + header.blocks())
            };
        }
        for seq in &self.missing {
            found.findings.push(if *seq <= found.durable {
                format!("batch {seq} had been durable: it is lost")
            } else {
                format!("batch {seq} and those behind it are a torn tail: not known to be durable")
            });
        }
    }

    /// The next batch of the chain, or the first one behind a place where it breaks.
    fn next(&mut self, found: &mut Inspection) -> Option<BatchHeader> {
        let (segment, block) = self.place;
        let here = self.header(segment, block);
        let why = match here {
            Ok(header) if self.follows(&header) => return Some(header),
            Ok(header) => format!("a header of batch {} that does not fit", header.fields.seq),
            Err(why) => why,
        };
        let later = self.search()?;
        let f = later.fields;
        found.findings.push(format!(
            "segment {segment} block {block}: batch {} is missing ({why}); the next valid one is \
             {} at segment {} block {}",
            self.seq, f.seq, f.segment, f.block
        ));
        self.missing.push(self.seq);
        if f.seq == self.seq + 1 && f.flags & FLAG_PREDECESSOR_LOST == 0 {
            for summary in &later.summaries {
                found.findings.push(format!("it held of group {}: {summary:?}", summary.group));
            }
        }
        Some(later)
    }

    fn follows(&self, header: &BatchHeader) -> bool {
        let f = &header.fields;
        !header.holds_copies()
            && f.seq == self.seq
            && f.segment_seq == self.segment_seq
            && f.boot >= self.boot
            && self.crc.is_none_or(|crc| crc == f.previous_crc)
    }

    /// The nearest batch behind the current place that can belong to this log: in the rest of the
    /// segment, else at the head of a segment of a later use or anywhere in one whose head is damaged.
    fn search(&mut self) -> Option<BatchHeader> {
        let (here, from) = self.place;
        let start = from.saturating_add(1);
        if let Some(header) = self.search_segment(here, start, self.segment_seq) {
            return Some(header);
        }
        let later: Vec<u32> =
            self.uses.range(self.segment_seq + 1..).map(|(_, (_, segment))| *segment).collect();
        let heads = later.into_iter().map(|segment| (segment, 1));
        let all = self.damaged.iter().map(|segment| (*segment, self.segment_blocks));
        let mut nearest: Option<BatchHeader> = None;
        for (segment, blocks) in heads.chain(all).collect::<Vec<_>>() {
            for block in 0..blocks {
                let Ok(header) = self.header(segment, block) else { continue };
                let near = nearest.as_ref().is_none_or(|n| header.fields.seq < n.fields.seq);
                if near && self.is_later(&header) && header.fields.segment_seq > self.segment_seq {
                    nearest = Some(header);
                }
            }
        }
        nearest
    }

    fn search_segment(&mut self, segment: u32, from: u32, used: u64) -> Option<BatchHeader> {
        (from..self.segment_blocks).find_map(|block| {
            let header = self.header(segment, block).ok()?;
            (header.fields.segment_seq == used && self.is_later(&header)).then_some(header)
        })
    }

    fn is_later(&self, header: &BatchHeader) -> bool {
        let lost = header.fields.flags & FLAG_PREDECESSOR_LOST != 0;
        let behind = header.fields.seq > self.seq || lost && header.fields.seq == self.seq;
        behind && header.fields.boot >= self.boot && !header.holds_copies()
    }

    /// A valid header that says that it stands at this place.
    fn header(&mut self, segment: u32, block: u32) -> Result<BatchHeader, String> {
        if segment >= self.segments || block >= self.segment_blocks {
            return Err("the end of the segment".into());
        }
        let offset = block_offset(self.superblock.segment_bytes, segment, block);
        let mut bytes = vec![0; BLOCK_BYTES];
        (self.read)(offset, &mut bytes)?;
        let needed = match bytes_needed(&bytes) {
            Ok(needed) => needed,
            Err(DiskFormatError::Blank) => return Err(BLANK.into()),
            Err(error) => return Err(error.to_string()),
        };
        let room = (self.segment_blocks - block) as usize * BLOCK_BYTES;
        if needed > room {
            return Err("the header would cross the segment's end".into());
        }
        if needed > BLOCK_BYTES {
            bytes.resize(needed, 0);
            (self.read)(offset, &mut bytes)?;
        }
        let header = BatchHeader::decode(&bytes).map_err(|e| e.to_string())?;
        let f = &header.fields;
        if f.device != self.superblock.device {
            return Err(OTHER_LIFE.into());
        }
        if (f.segment, f.block) != (segment, block) {
            return Err(format!("a header of segment {} block {}", f.segment, f.block));
        }
        if header.blocks() > self.segment_blocks - block {
            return Err("the batch would cross the segment's end".into());
        }
        Ok(header)
    }

    fn records(&mut self, header: &BatchHeader, found: &mut Inspection) {
        let f = header.fields;
        let payload_at = f.block + header.header_blocks();
        for record in header.records() {
            let what = match &record {
                Descriptor::Entry { group, index, .. } => {
                    found.last_index.insert(*group, index.0);
                    format!("batch {} group {group} entry {index}", f.seq)
                }
                Descriptor::Moved { group, payload_blocks, .. } => {
                    found.blocks_moved += u64::from(*payload_blocks);
                    format!("batch {} group {group} moved blocks", f.seq)
                }
                Descriptor::HardState { .. } => continue,
            };
            if let Some((block, count)) = record.payload()
                && self.payload
                && count > 0
            {
                let start = (f.segment, payload_at + block);
                self.blocks(start, count, &record.payload_checksums(), &what, found);
            }
        }
    }

    fn blocks(
        &mut self,
        (segment, block): (u32, u32),
        count: u32,
        checksums: &[u32],
        what: &str,
        found: &mut Inspection,
    ) {
        if checksums.len() != count as usize {
            found.findings.push(format!(
                "{what}: {count} blocks of payload, {} checksums for them",
                checksums.len()
            ));
            return;
        }
        let mut bytes = vec![0; BLOCK_BYTES];
        for (i, checksum) in (0..count).zip(checksums.iter().copied()) {
            let at = block + i;
            let offset = block_offset(self.superblock.segment_bytes, segment, at);
            let error = match (self.read)(offset, &mut bytes) {
                Err(error) => error,
                Ok(()) if crc32c(&bytes) != checksum => "its checksum does not match".into(),
                Ok(()) => {
                    found.blocks_verified += 1;
                    continue;
                }
            };
            found.blocks_bad += 1;
            found.findings.push(format!("{what}: segment {segment} block {at}: {error}"));
        }
    }
}

const BLANK: &str = "blank";
const OTHER_LIFE: &str = "a header of another device or an earlier life of this one";
