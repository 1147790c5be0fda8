//! Going through a segment: its batches say which block stands where.
//!
//! The segment is read from its start in large pieces; payload in which nothing is live is jumped over. A
//! header that is damaged hides what its batch holds: the search goes on block by block behind it, and
//! what was hidden stays where it is.

use crate::log::Location;
use basalt_wire::block::{BLOCK_BYTES, crc32c};
use basalt_wire::command::CommandReader;
use basalt_wire::disk::batch::{BatchHeader, Descriptor};
use basalt_wire::disk::moved::{MovedBlock, decode_moved};
use basalt_wire::disk::{DiskFormatError, blocks_of};
use basalt_wire::ids::{GroupId, SegmentId, VolumeId};
use bytes::Bytes;
use std::collections::VecDeque;

/// Blocks that are read at a time: 512 KiB. Their copies stand before what is written next.
pub const PIECE_BLOCKS: u32 = 128;

/// A live block and its content.
#[derive(Clone, Debug)]
pub struct Live {
    /// Its group.
    pub group: GroupId,
    /// Which block it is, and where it stands.
    pub block: MovedBlock,
    /// The content, which has the block's checksum.
    pub content: Bytes,
}

/// What the rest of the shard knows.
pub trait Judge {
    /// Whether the index refers to this block.
    fn is_live(&self, group: GroupId, block: &MovedBlock) -> bool;
    /// The header at a place, if a valid one of the segment's present use stands there.
    fn header(&self, bytes: &[u8], at: Location) -> Result<BatchHeader, DiskFormatError>;
}

/// A segment on its way through the cleaner.
#[derive(Clone, Debug)]
pub struct Walk {
    /// The segment.
    pub segment: SegmentId,
    /// The sequence of its use.
    pub seq: u64,
    /// Live blocks whose content does not have their checksum, or can not be read.
    pub bad: u32,
    /// Those met since they were taken last.
    pub damaged: Vec<(GroupId, MovedBlock)>,
    /// Up to here only what is needed is read at once: more could not be read.
    careful: u32,
    segment_blocks: u32,
    /// The next block that is of interest.
    at: u32,
    /// The least that must be read there.
    need: u32,
    /// Live blocks of the batch before `end` that were not come to yet.
    wanted: VecDeque<(GroupId, MovedBlock)>,
    end: u32,
    listed: bool,
}

impl Walk {
    /// At the start of a segment.
    pub fn new(segment: SegmentId, seq: u64, segment_blocks: u32) -> Walk {
        let wanted = VecDeque::new();
        let damaged = Vec::new();
        Walk {
            segment,
            seq,
            bad: 0,
            damaged,
            careful: 0,
            segment_blocks,
            at: 0,
            need: 1,
            wanted,
            end: 0,
            listed: false,
        }
    }

    /// Through these live blocks of a segment, in the order of their places.
    pub fn listed(
        segment: SegmentId,
        seq: u64,
        segment_blocks: u32,
        live: VecDeque<(GroupId, MovedBlock)>,
    ) -> Walk {
        let new = Walk::new(segment, seq, segment_blocks);
        let mut walk = Walk { wanted: live, end: segment_blocks, listed: true, ..new };
        walk.jump();
        walk
    }

    /// Whether the live blocks were known when it began.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// The next piece to be read: its first block and its blocks. Nothing at the end of the segment.
    pub fn next_read(&self) -> Option<(u32, u32)> {
        let rest = self.segment_blocks - self.at;
        let piece = if self.at < self.careful { 1 } else { PIECE_BLOCKS };
        (rest > 0).then(|| (self.at, piece.max(self.need).min(rest)))
    }

    /// Takes the piece that was to be read, and gives the live blocks in it. If `lenient` a block that does
    /// not have its checksum is given as well, with that of its content (a planted bug).
    pub fn take(&mut self, piece: &Bytes, judge: &impl Judge, lenient: bool) -> Vec<Live> {
        let (first, mut found) = (self.at, Vec::new());
        let end = first + (piece.len() / BLOCK_BYTES) as u32;
        self.need = 1;
        while self.at < end {
            let rest = (self.at - first) as usize * BLOCK_BYTES;
            match self.wanted.pop_front() {
                Some((group, block)) => {
                    let content = piece.slice(rest..rest + BLOCK_BYTES);
                    self.verify(group, block, content, lenient, &mut found);
                    self.jump();
                }
                None => {
                    let before = self.at;
                    self.enter(&piece[rest..], judge);
                    if self.at == before {
                        break;
                    }
                }
            }
        }
        found
    }

    /// The piece that was to be read can not be read: it is read block by block, and a block that can not
    /// be read then is passed over.
    pub fn unreadable(&mut self) {
        let Some((at, blocks)) = self.next_read() else { return };
        if self.at >= self.careful && blocks > self.need {
            self.careful = at + blocks;
            return;
        }
        self.need = 1;
        match self.wanted.pop_front() {
            Some(wanted) => {
                self.bad += 1;
                self.damaged.push(wanted);
                self.jump();
            }
            None => self.at += 1,
        }
    }

    fn verify(
        &mut self,
        group: GroupId,
        block: MovedBlock,
        content: Bytes,
        lenient: bool,
        found: &mut Vec<Live>,
    ) {
        let checksum = crc32c(&content);
        if checksum == block.checksum {
            found.push(Live { group, block, content });
            return;
        }
        self.bad += 1;
        self.damaged.push((group, block));
        if lenient {
            found.push(Live { group, block: MovedBlock { checksum, ..block }, content });
        }
    }

    /// To the next live block of the batch, or behind it.
    fn jump(&mut self) {
        let next = self.wanted.front().and_then(|(_, block)| block.from);
        self.at = next.map_or(self.end, |(_, block)| block);
    }

    /// Looks at the batch that should begin here.
    fn enter(&mut self, bytes: &[u8], judge: &impl Judge) {
        let at = Location { segment: self.segment, block: self.at };
        match judge.header(bytes, at) {
            Ok(header) if header.is_closing() => self.at = self.segment_blocks,
            Ok(header) => {
                self.end = self.at + header.blocks();
                let payload = self.at + header.header_blocks();
                for record in header.records() {
                    self.want(&record, payload, judge);
                }
                self.jump();
            }
            Err(DiskFormatError::Short(bytes))
                if blocks_of(bytes as usize) <= self.segment_blocks - self.at =>
            {
                self.need = blocks_of(bytes as usize);
            }
            Err(_) => self.at += 1,
        }
    }

    /// Notes the live blocks of a record.
    fn want(&mut self, record: &Descriptor<Bytes>, payload: u32, judge: &impl Judge) {
        let (group, blocks) = match record {
            Descriptor::Entry { group, data, .. } => (*group, written(data)),
            Descriptor::Moved { group, data, .. } => {
                let blocks = decode_moved(data).unwrap_or_default();
                (*group, blocks.iter().map(|b| (b.volume, b.block, b.checksum)).collect())
            }
            Descriptor::HardState { .. } => return,
        };
        let Some((first, count)) = record.payload().filter(|_| !blocks.is_empty()) else { return };
        if blocks.len() != count as usize {
            return;
        }
        for (place, (volume, block, checksum)) in (payload + first..).zip(blocks) {
            let from = Some((self.segment, place));
            let block = MovedBlock { volume, block, checksum, from };
            if judge.is_live(group, &block) {
                self.wanted.push_back((group, block));
            }
        }
    }
}

/// The blocks that an entry's commands write, in the order of its payload. None for an entry of the
/// metadata group, which has no payload either.
fn written(data: &Bytes) -> Vec<(VolumeId, u64, u32)> {
    let mut blocks = Vec::new();
    let Ok(reader) = CommandReader::new(data) else { return blocks };
    for command in reader {
        let Ok(command) = command else { return Vec::new() };
        blocks.extend(command.payload());
    }
    blocks
}
