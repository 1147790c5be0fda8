//! Reads of block data and of entry data.

use super::place::Geometry;
use super::{DataLocation, Location, LogEvent, TOKEN_READ, token};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::IoBuf;
use basalt_wire::disk::DiskFormatError;
use basalt_wire::disk::batch::{BatchHeader, Descriptor};
use basalt_wire::disk::blocks_of;
use basalt_wire::ids::SegmentId;
use basalt_wire::io::{DiskDone, DiskError, DiskOp, DiskOpKind};
use bytes::Bytes;
use rustc_hash::FxHashMap;

/// Blocks of a header read at first; most headers are no longer.
const HEADER_BLOCKS_FIRST: u32 = 2;

/// Reads in flight.
#[derive(Default)]
pub struct Reads {
    geometry: Option<Geometry>,
    pending: FxHashMap<u64, (SegmentId, Pending)>,
    next: u64,
    refused: Vec<LogEvent>,
}

enum Pending {
    Blocks { token: u64 },
    Data { token: u64, at: DataLocation, blocks: u32 },
}

impl Reads {
    /// Sets how the device is cut up, once it is open.
    pub fn geometry(&mut self, geometry: Geometry) {
        self.geometry = Some(geometry);
    }

    /// Hands out the ends of reads that were refused without asking the device.
    pub fn refused(&mut self, events: &mut Vec<LogEvent>) {
        events.append(&mut self.refused);
    }

    /// Whether a read of a segment is under way.
    pub fn is_reading(&self, segment: SegmentId) -> bool {
        self.pending.values().any(|(at, _)| *at == segment)
    }

    /// Starts a read of blocks; `held` says whether the log gave them to a record.
    pub fn read(
        &mut self,
        token: u64,
        at: Location,
        blocks: u32,
        held: bool,
        out: &mut Vec<DiskOp>,
    ) {
        if !held || !self.start(Pending::Blocks { token }, at, blocks, out) {
            let result = Err(DiskError::OutOfRange);
            self.refused.push(LogEvent::Read { token, result });
        }
    }

    /// Starts a read of a record's data.
    pub fn read_data(&mut self, token: u64, at: DataLocation, held: bool, out: &mut Vec<DiskOp>) {
        if !held || !self.start_data(token, at, HEADER_BLOCKS_FIRST, out) {
            self.refused.push(LogEvent::ReadData { token, result: None });
        }
    }

    fn start_data(
        &mut self,
        token: u64,
        at: DataLocation,
        blocks: u32,
        out: &mut Vec<DiskOp>,
    ) -> bool {
        let Some(geometry) = self.geometry else { return false };
        let Some(room) = geometry.segment_blocks.checked_sub(at.block) else { return false };
        let blocks = blocks.min(room);
        let place = Location { segment: at.segment, block: at.block };
        self.start(Pending::Data { token, at, blocks }, place, blocks, out)
    }

    fn start(
        &mut self,
        pending: Pending,
        at: Location,
        blocks: u32,
        out: &mut Vec<DiskOp>,
    ) -> bool {
        let Some(geometry) = self.geometry else { return false };
        self.next += 1;
        self.pending.insert(self.next, (at.segment, pending));
        out.push(DiskOp {
            token: token(TOKEN_READ, self.next),
            kind: DiskOpKind::Read {
                offset: geometry.offset(at.segment.0, at.block),
                buf: IoBuf::alloc(blocks as usize * BLOCK_BYTES),
            },
        });
        true
    }

    /// A read ended.
    pub fn on_disk(
        &mut self,
        number: u64,
        done: DiskDone,
        out: &mut Vec<DiskOp>,
        events: &mut Vec<LogEvent>,
    ) {
        let buf = match (done.result, done.buf) {
            (Ok(()), Some(buf)) => Ok(buf),
            (Ok(()), None) => Err(DiskError::Gone),
            (Err(error), _) => Err(error),
        };
        match self.pending.remove(&number).map(|(_, pending)| pending) {
            Some(Pending::Blocks { token }) => {
                events.push(LogEvent::Read { token, result: buf.map(IoBuf::freeze) });
            }
            Some(Pending::Data { token, at, blocks }) => {
                let result = match buf {
                    Ok(buf) => self.data_of(&buf, at),
                    Err(_) => Err(None),
                };
                match result {
                    Ok(data) => events.push(LogEvent::ReadData { token, result: Some(data) }),
                    Err(Some(more)) if more > blocks && self.start_data(token, at, more, out) => {}
                    Err(_) => events.push(LogEvent::ReadData { token, result: None }),
                }
            }
            None => {}
        }
    }

    /// The data of a record in a header, or the number of blocks that the header has if it is
    /// longer than what was read.
    fn data_of(&self, bytes: &[u8], at: DataLocation) -> Result<Bytes, Option<u32>> {
        let geometry = self.geometry.ok_or(None)?;
        let header = match BatchHeader::decode(bytes) {
            Ok(header) => header,
            Err(DiskFormatError::Short(needed)) => return Err(Some(blocks_of(needed as usize))),
            Err(_) => return Err(None),
        };
        if !super::scan::stands_at(&header, &geometry, at.segment.0, at.block) {
            return Err(None);
        }
        match header.record(u32::from(at.record)) {
            Some(Descriptor::Entry { data, .. }) => Ok(data),
            _ => Err(None),
        }
    }
}
