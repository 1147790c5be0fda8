//! Reads for recovery: a few large ones in flight ahead of where recovery looks.
//!
//! Recovery asks for a range of blocks again and again until it is there. It reads ahead while headers
//! stand close together, more of it the longer that lasts, to the end of the segment; while payload is
//! jumped over it reads only what it is asked for. A range that the device does not give in
//! [`ATTEMPTS_MAX`] attempts is unreadable. Beside that it probes the heads of segments, many at a time.

use super::place::Geometry;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::IoBuf;
use basalt_wire::io::{DiskDone, DiskOp, DiskOpKind};
use std::collections::VecDeque;

/// Read around a header that is jumped to.
const JUMP_BLOCKS: u32 = 4;
const PIECE_BLOCKS_FIRST: u32 = 64;
/// 1 MiB: larger reads save nothing on any device.
const PIECE_BLOCKS_MAX: u32 = 256;
/// Pieces in flight or not looked at yet.
const PIECES_MAX: usize = 8;
/// Distance between headers above which jumping over payload beats reading it: about what a device
/// transfers in the time that one more read takes.
const NEAR_BLOCKS: u32 = 96;

/// Reads of a range before it counts as unreadable.
const ATTEMPTS_MAX: u32 = 5;
/// Failed ranges that are remembered.
const FAILED_MAX: usize = 32;

/// A range of blocks, as far as it is known.
pub enum View<'a> {
    /// Its content.
    Have(&'a [u8]),
    /// The device returned an error each time.
    Unreadable,
    /// A read was started; ask again when it ended.
    Pending,
}

/// A run of blocks within a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    segment: u32,
    block: u32,
    blocks: u32,
}

impl Range {
    fn holds(&self, other: &Range) -> bool {
        self.segment == other.segment
            && self.block <= other.block
            && other.block + other.blocks <= self.block + self.blocks
    }

    fn ends_before(&self, block: u32) -> bool {
        self.block + self.blocks <= block
    }
}

struct Piece {
    range: Range,
    number: u64,
    /// Nothing while the read is in flight.
    content: Option<IoBuf>,
}

/// The part of the device that recovery sees.
pub struct Window {
    /// Of the segment that was asked for last, in order of their places.
    pieces: VecDeque<Piece>,
    /// A range that was asked for outside of them: behind them, across two of them, or once more.
    single: Option<Piece>,
    /// Ranges whose reads failed, the latest first, and how often.
    failed: Vec<(Range, u32)>,
    /// Up to this block of a segment nothing more is read than what is asked for.
    careful_until: (u32, u32),
    /// The place that was asked for last, and how far apart such places stand on average.
    last: Option<(u32, u32)>,
    distance: u32,
    /// How much is read ahead now.
    piece_blocks: u32,
    ahead: usize,
    /// Heads of segments.
    probes: Vec<Probe>,
    tokens: u64,
    next: u64,
}

struct Probe {
    segment: u32,
    blocks: u32,
    number: u64,
    /// Its content, or nothing if the read failed, once it ended.
    content: Option<Option<IoBuf>>,
}

impl Window {
    /// Nothing read yet. Operations get `tokens` plus a number.
    pub fn new(tokens: u64, first_number: u64) -> Window {
        Window {
            pieces: VecDeque::new(),
            single: None,
            failed: Vec::new(),
            careful_until: (0, 0),
            last: None,
            distance: 0,
            piece_blocks: PIECE_BLOCKS_FIRST,
            ahead: 1,
            probes: Vec::new(),
            tokens,
            next: first_number,
        }
    }

    /// The content of a range within a segment, or a read for it.
    pub fn view(
        &mut self,
        geometry: &Geometry,
        (segment, block, blocks): (u32, u32, u32),
        out: &mut Vec<DiskOp>,
    ) -> View<'_> {
        assert!(block + blocks <= geometry.segment_blocks, "a range beyond its segment");
        let range = Range { segment, block, blocks };
        self.follow(segment, block);
        if let Some(at) = self.pieces.iter().position(|piece| piece.range.holds(&range)) {
            self.read_ahead(geometry, out);
            return match &self.pieces[at].content {
                Some(content) => View::Have(part(content, &self.pieces[at].range, &range)),
                None => View::Pending,
            };
        }
        if self.tries(&range) >= ATTEMPTS_MAX {
            return View::Unreadable;
        }
        if self.single.as_ref().is_none_or(|single| !single.range.holds(&range)) {
            self.start(geometry, range, out);
            return View::Pending;
        }
        match &self.single {
            Some(Piece { content: Some(content), range: whole, .. }) => {
                View::Have(part(content, whole, &range))
            }
            _ => View::Pending,
        }
    }

    fn tries(&self, range: &Range) -> u32 {
        self.failed.iter().find(|(failed, _)| failed == range).map_or(0, |(_, tries)| *tries)
    }

    /// Notes where recovery looks: what lies before, or in another segment, is not needed any more.
    fn follow(&mut self, segment: u32, block: u32) {
        let near = match self.last {
            Some((last, from)) if last == segment => {
                if block <= from {
                    return;
                }
                block - from
            }
            // The rest of a segment is not counted: it holds nothing that had to be jumped over.
            _ => {
                self.pieces.clear();
                block.max(1)
            }
        };
        self.distance = (self.distance * 7 + near.min(PIECE_BLOCKS_MAX * 8)) / 8;
        self.last = Some((segment, block));
        let is_read = |piece: &Piece| piece.content.is_some();
        while self.pieces.front().is_some_and(|p| is_read(p) && p.range.ends_before(block)) {
            self.pieces.pop_front();
            // One more piece was of use.
            self.ahead = (self.ahead * 2).min(PIECES_MAX);
            self.piece_blocks = (self.piece_blocks * 2).min(PIECE_BLOCKS_MAX);
        }
        if self.distance > NEAR_BLOCKS {
            self.ahead = 1;
            self.piece_blocks = PIECE_BLOCKS_FIRST;
        }
    }

    /// Goes on reading behind the last piece.
    fn read_ahead(&mut self, geometry: &Geometry, out: &mut Vec<DiskOp>) {
        while self.distance <= NEAR_BLOCKS
            && self.pieces.len() < self.ahead
            && let Some(last) = self.pieces.back()
        {
            let (segment, block) = (last.range.segment, last.range.block + last.range.blocks);
            if block >= geometry.segment_blocks {
                break;
            }
            let blocks = self.piece_blocks.min(geometry.segment_blocks - block);
            let range = Range { segment, block, blocks };
            let number = self.submit(geometry, range, out);
            self.pieces.push_back(Piece { range, number, content: None });
        }
    }

    fn start(&mut self, geometry: &Geometry, range: Range, out: &mut Vec<DiskOp>) {
        let careful = range.segment == self.careful_until.0 && range.block < self.careful_until.1;
        let forward = self.last == Some((range.segment, range.block))
            && self.pieces.back().is_none_or(|last| last.range.ends_before(range.block));
        if forward && !careful {
            // The walk goes on here: what it had in sight is behind it. Reads in flight end unseen.
            self.pieces.clear();
            let wide = if self.distance > NEAR_BLOCKS { JUMP_BLOCKS } else { self.piece_blocks };
            let blocks = wide.max(range.blocks).min(geometry.segment_blocks - range.block);
            let range = Range { blocks, ..range };
            let number = self.submit(geometry, range, out);
            self.pieces.push_back(Piece { range, number, content: None });
            self.read_ahead(geometry, out);
            return;
        }
        let number = self.submit(geometry, range, out);
        self.single = Some(Piece { range, number, content: None });
    }

    /// Starts to read the first blocks of a segment, once.
    pub fn probe(&mut self, geometry: &Geometry, segment: u32, blocks: u32, out: &mut Vec<DiskOp>) {
        let number = self.submit(geometry, Range { segment, block: 0, blocks }, out);
        self.probes.push(Probe { segment, blocks, number, content: None });
    }

    /// Probes that were started and not taken.
    pub fn probes(&self) -> usize {
        self.probes.len()
    }

    /// Takes a probe that ended: its segment, and what stands there unless the read failed.
    pub fn take_probed(&mut self) -> Option<(u32, Option<IoBuf>)> {
        let at = self.probes.iter().position(|probe| probe.content.is_some())?;
        let probe = self.probes.swap_remove(at);
        Some((probe.segment, probe.content.flatten()))
    }

    fn submit(&mut self, geometry: &Geometry, range: Range, out: &mut Vec<DiskOp>) -> u64 {
        let number = self.next;
        self.next += 1;
        out.push(DiskOp {
            token: self.tokens + number,
            kind: DiskOpKind::Read {
                offset: geometry.offset(range.segment, range.block),
                buf: IoBuf::alloc(range.blocks as usize * BLOCK_BYTES),
            },
        });
        number
    }

    /// A read ended. A read that nobody waits for any more is left alone.
    pub fn done(&mut self, number: u64, done: DiskDone) {
        let content = match (done.result, done.buf) {
            (Ok(()), Some(buf)) => Some(buf),
            _ => None,
        };
        let fits =
            |piece: &Piece, buf: &IoBuf| buf.len() == piece.range.blocks as usize * BLOCK_BYTES;
        if let Some(single) = self.single.as_mut().filter(|single| single.number == number) {
            single.content = content.filter(|buf| fits(single, buf));
            if single.content.is_none() {
                let range = single.range;
                self.single = None;
                self.note_failure(range);
            }
            return;
        }
        if let Some(probe) = self.probes.iter_mut().find(|probe| probe.number == number) {
            let blocks = probe.blocks as usize;
            probe.content = Some(content.filter(|buf| buf.len() == blocks * BLOCK_BYTES));
            return;
        }
        let Some(at) = self.pieces.iter().position(|piece| piece.number == number) else { return };
        let content = content.filter(|buf| fits(&self.pieces[at], buf));
        if content.is_none() {
            // What it would have held is asked for range by range, for most of it may be readable.
            let range = self.pieces[at].range;
            self.careful_until = (range.segment, range.block + range.blocks);
            self.pieces.truncate(at);
            self.ahead = 1;
            return;
        }
        self.pieces[at].content = content;
    }

    fn note_failure(&mut self, range: Range) {
        match self.failed.iter_mut().find(|(failed, _)| *failed == range) {
            Some((_, tries)) => *tries += 1,
            None => {
                self.failed.truncate(FAILED_MAX - 1);
                self.failed.insert(0, (range, 1));
            }
        }
    }

    /// Nothing that was read counts any more: what is asked for next is read again.
    pub fn read_anew(&mut self) {
        self.pieces.clear();
        self.single = None;
        self.last = None;
    }

    /// Recovery goes back to a place before the one that it asked for last, and walks on from there.
    pub fn go_back(&mut self) {
        self.pieces.clear();
        self.last = None;
    }
}

fn part<'a>(content: &'a IoBuf, whole: &Range, range: &Range) -> &'a [u8] {
    let from = (range.block - whole.block) as usize * BLOCK_BYTES;
    &content[from..from + range.blocks as usize * BLOCK_BYTES]
}
