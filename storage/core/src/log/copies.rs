//! Copy segments: what the cleaner copies stands apart from what is written anew.
//!
//! What was copied once has lived long, and is likely to live on; what was just written is likely to be
//! overwritten soon. Where the two share segments, each of these keeps a part that must be copied again and
//! again, and none is ever all garbage.
//!
//! A copy segment is no part of the log. Its batches have the form of the log's, say that they hold copies, and
//! are not chained to anything: each becomes durable by itself, and replay never looks at them. Nothing needs
//! to tell a start of them: the place from which a block was copied is given up only by a checkpoint that holds
//! the new one, and that checkpoint names the copy segments that are in use. A copy segment that no durable
//! checkpoint names is free at the next start, and each block stands again where it was copied from.

use super::place::Geometry;
use super::segments::Segments;
use super::{Location, TOKEN_COPIES, token};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::{IoBuf, Payload};
use basalt_wire::disk::batch::{self, BatchFields, Descriptor, FLAG_COPIES};
use basalt_wire::disk::blocks_of;
use basalt_wire::disk::moved::{MovedBlock, encode_moved, moved_bytes};
use basalt_wire::ids::{GroupId, SegmentId};
use basalt_wire::io::{DiskOp, DiskOpKind};
use bytes::Bytes;
use std::collections::VecDeque;

/// Blocks of a group with their content, which are copied.
pub type Copied = (GroupId, Vec<MovedBlock>, Payload);

/// Copies that were handed to the device.
#[derive(Debug)]
pub struct CopiesWritten {
    /// The number of the write: [`super::LogEvent::CopiesDurable`] tells its end.
    pub number: u64,
    /// Blocks of a group, and where the first of them stands.
    pub blocks: Vec<(GroupId, Vec<MovedBlock>, Location)>,
    /// Bytes that are written.
    pub(super) bytes: u64,
}

/// Where the log is when copies are written.
#[derive(Clone, Copy)]
pub struct Around {
    /// How the device is cut up.
    pub geometry: Geometry,
    /// The boot generation.
    pub boot: u64,
    /// The segment where the log goes on.
    pub segment: u32,
    /// The number of the log's next batch.
    pub seq: u64,
    /// The use of a segment in which the log is known to be durable.
    pub durable_use: Option<u64>,
    /// Whether writes must ask for durability.
    pub durably: bool,
}

/// Writes copies.
#[derive(Default)]
pub struct Copies {
    /// The copy segment that is being filled, and its first free block.
    filling: Option<(u32, u32)>,
    /// Writes under way, and to which segments.
    in_flight: VecDeque<(u64, u32)>,
    number: u64,
    /// Copy segments that were taken.
    taken: u64,
}

/// What one batch takes of the copies that wait.
struct Plan {
    /// Whole records, and blocks of the next one.
    records: usize,
    blocks: usize,
    header_blocks: u32,
    payload_blocks: u32,
}

impl Copies {
    /// The segment that is being filled, and its first free block.
    pub fn filling(&self) -> Option<(u32, u32)> {
        self.filling
    }

    /// Copy segments that were taken since the log was opened.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether so many blocks can be written, headers included, if so many segments must stay free.
    pub fn has_room(&self, table: &Segments, around: &Around, blocks: u32, leave: u32) -> bool {
        let segment_blocks = around.geometry.segment_blocks;
        let rest = self.filling.map_or(0, |(_, block)| segment_blocks - block);
        let fits_fresh = || next_segment(table, around, leave).is_some();
        rest >= blocks || rest + segment_blocks >= blocks && fits_fresh()
    }

    /// Takes as many of the copies as one batch holds and writes them; nothing if so many segments must stay
    /// free that none can be had for them.
    pub fn write(
        &mut self,
        table: &mut Segments,
        around: &Around,
        leave: u32,
        copies: &mut VecDeque<Copied>,
        out: &mut Vec<DiskOp>,
    ) -> Option<CopiesWritten> {
        let segment_blocks = around.geometry.segment_blocks;
        let plan = self.filling.and_then(|(_, block)| plan(copies, segment_blocks - block));
        let plan = match plan {
            Some(plan) => plan,
            None => {
                let plan = plan_of_fresh(copies, segment_blocks)?;
                let (next, seq) = next_segment(table, around, leave)?;
                self.close(table);
                table.note_copies(next, seq, true);
                self.filling = Some((next, 0));
                self.taken += 1;
                plan
            }
        };
        let taken = take(copies, &plan);
        let (segment, block) = self.filling?;
        let used = table.use_of(segment)?;
        let (data, blocks) = encode(around, (segment, used, block), &plan, taken);
        self.filling = Some((segment, block + plan.header_blocks + plan.payload_blocks));
        self.number += 1;
        self.in_flight.push_back((self.number, segment));
        let bytes = data.len() as u64;
        out.push(DiskOp {
            token: token(TOKEN_COPIES, self.number),
            kind: DiskOpKind::Write {
                offset: around.geometry.offset(segment, block),
                data,
                durable: around.durably,
            },
        });
        Some(CopiesWritten { number: self.number, blocks, bytes })
    }

    /// A write ended well.
    pub fn written(&mut self, table: &mut Segments, number: u64) {
        let Some(at) = self.in_flight.iter().position(|(under_way, _)| *under_way == number) else {
            return;
        };
        let Some((_, segment)) = self.in_flight.remove(at) else { return };
        if self.filling.is_none_or(|(filling, _)| filling != segment) {
            self.finish(table, segment);
        }
    }

    /// Nothing more is written to the segment that is being filled.
    pub fn close(&mut self, table: &mut Segments) {
        if let Some((segment, _)) = self.filling.take() {
            self.finish(table, segment);
        }
    }

    fn finish(&self, table: &mut Segments, segment: u32) {
        if !self.in_flight.iter().any(|(_, at)| *at == segment) {
            table.finish_copies(segment);
        }
    }
}

/// The segment that would be the next to be filled, and its use.
fn next_segment(table: &Segments, around: &Around, leave: u32) -> Option<(u32, u64)> {
    let seq = around.durable_use.filter(|_| table.free() > leave)?;
    Some((table.next_for_copies(around.segment, seq)?, seq))
}

fn plan_of_fresh(copies: &VecDeque<Copied>, segment_blocks: u32) -> Option<Plan> {
    let plan = plan(copies, segment_blocks);
    assert!(copies.is_empty() || plan.is_some(), "a segment that holds no block with its header");
    plan
}

/// As many of the copies, in order, as a batch of so many blocks holds; nothing if it holds none.
fn plan(copies: &VecDeque<Copied>, room: u32) -> Option<Plan> {
    let header = |records, blocks| {
        let data = records * moved_bytes(0) + blocks * (moved_bytes(1) - moved_bytes(0));
        blocks_of(batch::header_bytes(0, records, data))
    };
    let fits = |records, blocks| header(records, blocks) + blocks as u32 <= room;
    let (mut records, mut before, mut part) = (0, 0, 0);
    for (_, blocks, _) in copies {
        if fits(records + 1, before + blocks.len()) {
            before += blocks.len();
            records += 1;
            continue;
        }
        part = (1..blocks.len()).rev().find(|n| fits(records + 1, before + n)).unwrap_or(0);
        break;
    }
    let (in_all, blocks) = (records + usize::from(part > 0), before + part);
    (in_all > 0).then(|| Plan {
        records,
        blocks: part,
        header_blocks: header(in_all, blocks),
        payload_blocks: blocks as u32,
    })
}

/// Takes what was planned. Of a record that is taken in part, the rest stays the first.
fn take(copies: &mut VecDeque<Copied>, plan: &Plan) -> Vec<Copied> {
    let mut taken: Vec<Copied> = copies.drain(..plan.records).collect();
    if let Some((group, blocks, payload)) = copies.front_mut().filter(|_| plan.blocks > 0) {
        let rest = blocks.split_off(plan.blocks);
        let first = std::mem::replace(blocks, rest);
        let bytes = plan.blocks * BLOCK_BYTES;
        let content = payload.slice(0, bytes);
        *payload = payload.slice(bytes, payload.len() - bytes);
        taken.push((*group, first, content));
    }
    taken
}

/// The bytes of a batch at a place (segment, use, block), and where its blocks stand.
fn encode(
    around: &Around,
    (segment, segment_seq, block): (u32, u64, u32),
    plan: &Plan,
    copies: Vec<Copied>,
) -> (Bytes, Vec<(GroupId, Vec<MovedBlock>, Location)>) {
    let header_len = plan.header_blocks as usize * BLOCK_BYTES;
    let mut buf = IoBuf::alloc(header_len + plan.payload_blocks as usize * BLOCK_BYTES);
    let (mut at, mut payload_block) = (header_len, 0);
    let (mut descriptors, mut placed) = (Vec::new(), Vec::new());
    for (group, blocks, payload) in copies {
        assert_eq!(payload.len(), blocks.len() * BLOCK_BYTES, "a block without its content");
        payload.copy_to(&mut buf[at..at + payload.len()]);
        at += payload.len();
        let payload_blocks = blocks.len() as u32;
        let data = encode_moved(&blocks);
        descriptors.push(Descriptor::Moved { group, payload_block, payload_blocks, data });
        let first = block + plan.header_blocks + payload_block;
        placed.push((group, blocks, Location { segment: SegmentId(segment), block: first }));
        payload_block += payload_blocks;
    }
    assert_eq!(payload_block, plan.payload_blocks, "copies differ from what was planned");
    let fields = BatchFields {
        flags: FLAG_COPIES,
        device: around.geometry.device,
        segment_seq,
        segment,
        block,
        seq: around.seq,
        boot: around.boot,
        payload_blocks: plan.payload_blocks,
        ..BatchFields::default()
    };
    batch::encode(&fields, &[], &descriptors, &mut buf[..header_len]);
    (buf.freeze(), placed)
}
