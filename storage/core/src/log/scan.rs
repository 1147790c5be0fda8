//! What lies behind a place where the expected batch is missing.
//!
//! The rest of the segment is searched block by block, then the heads of the following segments,
//! and whole segments behind a head that is not blank. The search ends early once a valid batch
//! proves that the missing one had been durable.

use super::place::{Geometry, Tail};
use super::window::{View, Window};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::DiskFormatError;
use basalt_wire::disk::batch::{BatchHeader, FLAG_PREDECESSOR_LOST, bytes_needed};
use basalt_wire::disk::blocks_of;
use basalt_wire::io::DiskOp;

/// Segments searched behind the one in which a batch is missing. Only if the heads of so many
/// segments were lost together would a later batch stay unseen.
const SCAN_SEGMENTS: u32 = 64;

/// A header at a place, as far as it is known.
pub enum HeaderView {
    /// A valid header that says that it stands here.
    Good(BatchHeader),
    /// No valid header.
    Bad(DiskFormatError),
    /// The device does not give it.
    Unreadable,
    /// A read was started.
    Pending,
}

/// Reads and validates the header at a place.
pub fn read_header(
    window: &mut Window,
    geometry: &Geometry,
    segment: u32,
    block: u32,
    out: &mut Vec<DiskOp>,
) -> HeaderView {
    let room = geometry.segment_blocks - block;
    let needed = match window.view(geometry, (segment, block, 1), out) {
        View::Pending => return HeaderView::Pending,
        View::Unreadable => return HeaderView::Unreadable,
        View::Have(first) => match bytes_needed(first) {
            Ok(bytes) => bytes,
            Err(error) => return HeaderView::Bad(error),
        },
    };
    let blocks = blocks_of(needed);
    if blocks > room {
        return HeaderView::Bad(DiskFormatError::Length(needed as u32));
    }
    let bytes = match window.view(geometry, (segment, block, blocks), out) {
        View::Pending => return HeaderView::Pending,
        View::Unreadable => return HeaderView::Unreadable,
        View::Have(bytes) => bytes,
    };
    debug_assert_eq!(bytes.len(), blocks as usize * BLOCK_BYTES);
    match BatchHeader::decode(bytes) {
        Err(error) => HeaderView::Bad(error),
        Ok(header) if !stands_at(&header, geometry, segment, block) => {
            HeaderView::Bad(DiskFormatError::Foreign)
        }
        Ok(header) => HeaderView::Good(header),
    }
}

/// Whether a valid header is of this device, says that it stands here, and fits here.
pub fn stands_at(header: &BatchHeader, geometry: &Geometry, segment: u32, block: u32) -> bool {
    let f = &header.fields;
    f.device == geometry.device
        && f.segment == segment
        && f.block == block
        && header.blocks() <= geometry.segment_blocks - block
        && (!header.is_closing() || f.next_segment < geometry.segments)
}

/// A valid batch behind the missing one.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Segment and block.
    pub place: (u32, u32),
    /// The use of the segment.
    pub segment_seq: u64,
    /// Its number.
    pub seq: u64,
    boot: u64,
    mark: u64,
}

/// A search under way.
pub struct Scan {
    /// The missing batch.
    seq: u64,
    boot: u64,
    first: (u32, u64),
    at: (u32, u32),
    /// Whether the segment is searched as a whole.
    whole: bool,
    found: Vec<Candidate>,
}

impl Scan {
    /// Searches for batches behind the one missing at `tail`, written in generation `boot` or later.
    pub fn behind(tail: &Tail, boot: u64) -> Scan {
        Scan {
            seq: tail.seq,
            boot,
            first: (tail.segment, tail.segment_seq),
            at: (tail.segment, tail.block.saturating_add(1)),
            whole: true,
            found: Vec::new(),
        }
    }

    /// Goes on; true when the search is over.
    pub fn advance(
        &mut self,
        window: &mut Window,
        geometry: &Geometry,
        out: &mut Vec<DiskOp>,
    ) -> bool {
        loop {
            let (segment, block) = self.at;
            if segment >= geometry.segments || segment > self.first.0 + SCAN_SEGMENTS {
                return true;
            }
            if block >= geometry.segment_blocks {
                self.at = (segment + 1, 0);
                self.whole = false;
                continue;
            }
            let view = read_header(window, geometry, segment, block, out);
            match view {
                HeaderView::Pending => return false,
                HeaderView::Good(header) => {
                    let candidate = self.candidate(&header);
                    self.whole |= candidate.is_some();
                    self.found.extend(candidate);
                    if self.highest_mark() >= self.seq {
                        return true;
                    }
                }
                HeaderView::Bad(DiskFormatError::Blank) => {}
                HeaderView::Bad(_) | HeaderView::Unreadable => self.whole = true,
            }
            self.at = if self.whole { (segment, block + 1) } else { (segment + 1, 0) };
        }
    }

    /// A batch that can stand behind the missing one.
    fn candidate(&self, header: &BatchHeader) -> Option<Candidate> {
        let f = &header.fields;
        let predecessor_lost = f.flags & FLAG_PREDECESSOR_LOST != 0;
        let behind = f.seq > self.seq || (f.seq == self.seq && predecessor_lost);
        let use_fits = f.segment_seq == self.first.1 + u64::from(f.segment - self.first.0);
        (behind && use_fits && f.boot >= self.boot).then_some(Candidate {
            place: (f.segment, f.block),
            segment_seq: f.segment_seq,
            seq: f.seq,
            boot: f.boot,
            mark: f.durable,
        })
    }

    /// The highest durable mark found.
    pub fn highest_mark(&self) -> u64 {
        self.found.iter().map(|c| c.mark).max().unwrap_or(0)
    }

    /// The highest boot generation found.
    pub fn highest_boot(&self) -> u64 {
        self.found.iter().map(|c| c.boot).max().unwrap_or(0)
    }

    /// The first batch found that no batch of a later boot generation supersedes: those belong to
    /// a tail that was dropped and written anew.
    pub fn next(&self) -> Option<Candidate> {
        let superseded =
            |c: &Candidate| self.found.iter().any(|d| d.boot > c.boot && d.seq <= c.seq);
        self.found.iter().copied().find(|c| !superseded(c))
    }
}
