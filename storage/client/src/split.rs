//! A request cut into parts: whole blocks of one chunk, at most [`COMMAND_BLOCKS_MAX`] of them for
//! reads and writes, or a piece of one block that has to be read, changed and written.

use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS, COMMAND_BLOCKS_MAX};
use basalt_wire::command::BlockRange;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks of a part of a fill: few enough that those who write meanwhile do not wait for it.
const FILL_BLOCKS_MAX: u64 = 64;

/// How a request is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// A read: blocks that are only touched at an edge are read whole.
    Read,
    /// A write.
    Write,
    /// An unmap; as it carries no data it may cover a chunk.
    Unmap,
    /// A question; the same.
    Extents,
    /// A fill: whole blocks, for the blocks do not come from here.
    Fill,
}

/// A part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The blocks it touches.
    pub range: BlockRange,
    /// Bytes of the first block before it.
    pub skip: u32,
    /// Its bytes.
    pub len: u64,
    /// Its place in the request.
    pub at: u64,
}

impl Piece {
    /// Whether it is whole blocks.
    pub fn is_whole(&self) -> bool {
        self.len == u64::from(self.range.count) * BLOCK
    }
}

/// What is left of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    cut: Cut,
    start: u64,
    next: u64,
    end: u64,
}

impl Cursor {
    /// The range must not overflow.
    pub fn new(cut: Cut, offset: u64, len: u64) -> Cursor {
        Cursor { cut, start: offset, next: offset, end: offset + len }
    }

    pub fn is_done(&self) -> bool {
        self.next == self.end
    }

    /// Leaves the rest out.
    pub fn stop(&mut self) {
        self.end = self.next;
    }

    pub fn piece(&mut self) -> Option<Piece> {
        if self.is_done() {
            return None;
        }
        let (block, skip) = (self.next / BLOCK, self.next % BLOCK);
        let left = self.end - self.next;
        let room = CHUNK_BLOCKS - block % CHUNK_BLOCKS;
        let (count, len) = match self.cut {
            Cut::Read | Cut::Extents | Cut::Fill => {
                let count = (skip + left).div_ceil(BLOCK).min(room).min(self.cut.blocks_max());
                (count, left.min(count * BLOCK - skip))
            }
            Cut::Write | Cut::Unmap if skip > 0 || left < BLOCK => (1, left.min(BLOCK - skip)),
            Cut::Write | Cut::Unmap => {
                let count = (left / BLOCK).min(room).min(self.cut.blocks_max());
                (count, count * BLOCK)
            }
        };
        let at = self.next - self.start;
        self.next += len;
        let range = BlockRange { block, count: count as u32 };
        Some(Piece { range, skip: skip as u32, len, at })
    }
}

impl Cut {
    fn blocks_max(self) -> u64 {
        match self {
            Cut::Fill => FILL_BLOCKS_MAX,
            Cut::Read | Cut::Write => u64::from(COMMAND_BLOCKS_MAX),
            Cut::Unmap | Cut::Extents => CHUNK_BLOCKS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(cut: Cut, offset: u64, len: u64) -> Vec<(u64, u32, u32, u64)> {
        let mut cursor = Cursor::new(cut, offset, len);
        std::iter::from_fn(|| cursor.piece())
            .map(|p| (p.range.block, p.range.count, p.skip, p.len))
            .collect()
    }

    #[test]
    fn cuts() {
        assert_eq!(pieces(Cut::Write, 4096, 8192), [(1, 2, 0, 8192)]);
        assert_eq!(
            pieces(Cut::Write, 512, 8192),
            [(0, 1, 512, 3584), (1, 1, 0, 4096), (2, 1, 0, 512)]
        );
        assert_eq!(pieces(Cut::Write, 1024, 512), [(0, 1, 1024, 512)]);
        assert_eq!(pieces(Cut::Read, 512, 8192), [(0, 3, 512, 8192)]);
        assert_eq!(
            pieces(Cut::Read, 1022 * BLOCK, 4 * BLOCK),
            [(1022, 2, 0, 8192), (1024, 2, 0, 8192)]
        );
        assert_eq!(pieces(Cut::Write, 0, 1 << 20).len(), 1);
        assert_eq!(pieces(Cut::Write, 4096, 1 << 22).len(), 5);
        assert_eq!(pieces(Cut::Unmap, 0, 1 << 24).len(), 4);
    }

    proptest! {
        #[test]
        fn pieces_cover_the_range(
            cut in prop_oneof![
                Just(Cut::Read), Just(Cut::Write), Just(Cut::Unmap), Just(Cut::Extents)
            ],
            offset in 0..1u64 << 24,
            len in 1..1u64 << 24,
        ) {
            let mut cursor = Cursor::new(cut, offset, len);
            let mut covered = 0;
            while let Some(piece) = cursor.piece() {
                prop_assert_eq!(piece.at, covered);
                prop_assert_eq!(piece.range.block * BLOCK + u64::from(piece.skip), offset + covered);
                let count = u64::from(piece.range.count);
                prop_assert!(piece.range.block % CHUNK_BLOCKS + count <= CHUNK_BLOCKS);
                prop_assert!(count <= cut.blocks_max());
                prop_assert!(u64::from(piece.skip) + piece.len <= count * BLOCK);
                if matches!(cut, Cut::Write | Cut::Unmap) {
                    prop_assert!(piece.is_whole() || count == 1);
                }
                covered += piece.len;
            }
            prop_assert_eq!(covered, len);
        }
    }
}
