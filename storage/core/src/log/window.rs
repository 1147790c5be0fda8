//! Reads for recovery: one window of the device at a time.
//!
//! Recovery asks for a range of blocks again and again until it is there. What is not in the window
//! is read; a range that the device does not give in
//! [`ATTEMPTS_MAX`] attempts is unreadable. Windows grow while headers
//! stand close together and shrink while payload is jumped over.

use super::place::Geometry;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::IoBuf;
use basalt_wire::io::{DiskDone, DiskOp, DiskOpKind};

const WINDOW_BLOCKS_MIN: u32 = 4;
const WINDOW_BLOCKS_FIRST: u32 = 64;
/// 1 MiB: larger reads save nothing on any device.
const WINDOW_BLOCKS_MAX: u32 = 256;

/// Reads of a range before it counts as unreadable.
const ATTEMPTS_MAX: u32 = 5;

/// A range of blocks, as far as it is known.
pub enum View<'a> {
    /// Its content.
    Have(&'a [u8]),
    /// The device returned an error each time.
    Unreadable,
    /// A read was started; ask again when it ended.
    Pending,
}

/// The part of the device that recovery sees.
pub struct Window {
    segment: u32,
    block: u32,
    blocks: u32,
    content: Option<IoBuf>,
    /// Asked for and failed: (segment, block, blocks, attempts).
    failed: Option<(u32, u32, u32, u32)>,
    next_blocks: u32,
    /// Ranges served from the current window.
    served: u32,
    token: u64,
}

impl Window {
    /// Nothing read yet.
    pub fn new(token: u64) -> Window {
        Window {
            segment: 0,
            block: 0,
            blocks: 0,
            content: None,
            failed: None,
            next_blocks: WINDOW_BLOCKS_FIRST,
            served: 0,
            token,
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
        let inside = segment == self.segment
            && block >= self.block
            && block + blocks <= self.block + self.blocks;
        if inside && self.content.is_some() {
            self.served += 1;
            let from = (block - self.block) as usize * BLOCK_BYTES;
            let content = self.content.as_deref().unwrap_or_default();
            return View::Have(&content[from..from + blocks as usize * BLOCK_BYTES]);
        }
        let mut attempts = 0;
        if let Some((s, b, n, tries)) = self.failed
            && (s, b, n) == (segment, block, blocks)
        {
            if tries >= ATTEMPTS_MAX {
                return View::Unreadable;
            }
            attempts = tries;
        }
        self.start(geometry, (segment, block, blocks), attempts, out);
        View::Pending
    }

    fn start(
        &mut self,
        geometry: &Geometry,
        (segment, block, blocks): (u32, u32, u32),
        attempts: u32,
        out: &mut Vec<DiskOp>,
    ) {
        self.adapt();
        // A retry asks for no more than what is needed: the error may lie behind it.
        let wide = if attempts == 0 { self.next_blocks } else { blocks };
        let blocks_read = wide.max(blocks).min(geometry.segment_blocks - block);
        self.failed = Some((segment, block, blocks, attempts + 1));
        (self.segment, self.block, self.blocks) = (segment, block, blocks_read);
        out.push(DiskOp {
            token: self.token,
            kind: DiskOpKind::Read {
                offset: geometry.offset(segment, block),
                buf: IoBuf::alloc(blocks_read as usize * BLOCK_BYTES),
            },
        });
        self.content = None;
    }

    fn adapt(&mut self) {
        if self.content.is_some() {
            self.next_blocks = match self.served {
                0..=2 => (self.next_blocks / 2).max(WINDOW_BLOCKS_MIN),
                3..=8 => self.next_blocks,
                _ => (self.next_blocks * 2).min(WINDOW_BLOCKS_MAX),
            };
        }
        self.served = 0;
    }

    /// A read ended.
    pub fn done(&mut self, done: DiskDone) {
        let wanted = self.blocks as usize * BLOCK_BYTES;
        match (done.result, done.buf) {
            (Ok(()), Some(buf)) if buf.len() == wanted => {
                self.content = Some(buf);
                self.failed = None;
            }
            // The failure stays noted; the next request for the range retries or gives up.
            _ => self.content = None,
        }
    }
}
