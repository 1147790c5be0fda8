//! Bytes received and not yet understood, kept in the chunks in which they arrived.

use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::{IoBuf, Payload};
use bytes::{Buf, Bytes};
use std::collections::VecDeque;

/// Bytes left of a chunk that are copied rather than kept with it.
const LEFT_OVER_MAX: usize = 256;

/// A queue of received chunks, read as one stream.
#[derive(Default)]
pub(crate) struct Input {
    chunks: VecDeque<Bytes>,
    len: usize,
}

impl Input {
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.len += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The next `N` bytes, left in place; `None` until they have arrived.
    pub fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        if self.len < N {
            return None;
        }
        if let Some(head) = self.chunks.front().and_then(|chunk| chunk.first_chunk::<N>()) {
            return Some(*head);
        }
        let mut head = [0; N];
        let mut at = 0;
        for chunk in &self.chunks {
            let take = chunk.len().min(N - at);
            head[at..at + take].copy_from_slice(&chunk[..take]);
            at += take;
            if at == N {
                break;
            }
        }
        Some(head)
    }

    /// Drops the next `count` bytes, which must have arrived.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len, "{count} bytes dropped of {}", self.len);
        self.len -= count;
        let mut left = count;
        while left > 0 {
            let front = self.chunks.front_mut().expect("the length counts the chunks' bytes");
            if front.len() > left {
                front.advance(left);
                return;
            }
            left -= front.len();
            self.chunks.pop_front();
        }
    }

    /// The next `count` bytes in one piece, copied only if they arrived in several.
    pub fn take(&mut self, count: usize) -> Bytes {
        assert!(count <= self.len, "{count} bytes taken of {}", self.len);
        if let Some(front) = self.chunks.front_mut()
            && front.len() >= count
        {
            self.len -= count;
            let piece = front.split_to(count);
            if front.is_empty() {
                self.chunks.pop_front();
            }
            return piece;
        }
        let mut whole = IoBuf::alloc(count);
        self.fill(&mut whole);
        whole.freeze()
    }

    /// The next `count` bytes as the data of a write at byte `offset`. Pieces end on block
    /// boundaries: a block that arrived in one chunk is shared, one that straddles chunks is copied.
    pub fn take_blocks(&mut self, count: usize, offset: u64) -> Payload {
        assert!(count <= self.len, "{count} bytes taken of {}", self.len);
        if self.chunks.front().is_none_or(|front| front.len() >= count) {
            return Payload::from(self.take(count));
        }
        let mut payload = Payload::empty();
        let mut left = count;
        let mut phase = (offset % BLOCK_BYTES as u64) as usize;
        while left > 0 {
            let here = self.chunks.front().map_or(0, Bytes::len).min(left);
            let whole = (phase + here) / BLOCK_BYTES * BLOCK_BYTES;
            let take = if here == left {
                left
            } else if whole > phase {
                whole - phase
            } else {
                (BLOCK_BYTES - phase).min(left)
            };
            payload.push(self.take(take));
            left -= take;
            phase = 0;
        }
        payload
    }

    /// Lets go of a received chunk of which only a few bytes are left to be read.
    pub fn let_go(&mut self) {
        if let [rest] = self.chunks.make_contiguous()
            && rest.len() <= LEFT_OVER_MAX
        {
            *rest = Bytes::copy_from_slice(rest);
        }
    }

    /// Forgets everything received.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.len = 0;
    }

    fn fill(&mut self, target: &mut [u8]) {
        let mut at = 0;
        while at < target.len() {
            let front = self.chunks.front().expect("the caller compared the length");
            let take = front.len().min(target.len() - at);
            target[at..at + take].copy_from_slice(&front[..take]);
            at += take;
            self.advance(take);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_chunk_is_shared() {
        let chunk = Bytes::from(vec![7; 10_000]);
        let mut input = Input::default();
        input.push(chunk.clone());
        input.advance(28);
        let data = input.take_blocks(8192, 0);
        assert_eq!(data.pieces()[0].as_ptr(), chunk[28..].as_ptr());
        assert_eq!(input.len(), 10_000 - 28 - 8192);
    }

    proptest! {
        #[test]
        fn blocks_never_straddle_pieces(
            cuts in proptest::collection::vec(1usize..9000, 1..12),
            phase in 0u64..8,
        ) {
            let total: usize = cuts.iter().sum();
            let all: Vec<u8> = (0..total).map(|i| (i * 31 / 7) as u8).collect();
            let mut input = Input::default();
            let mut at = 0;
            for cut in cuts {
                input.push(Bytes::copy_from_slice(&all[at..at + cut]));
                at += cut;
            }
            let offset = phase * 512;
            let payload = input.take_blocks(total, offset);
            prop_assert_eq!(input.len(), 0);
            prop_assert_eq!(&payload.contiguous()[..], &all[..]);
            let mut end = offset;
            for piece in &payload.pieces()[..payload.pieces().len() - 1] {
                end += piece.len() as u64;
                prop_assert_eq!(end % BLOCK_BYTES as u64, 0);
            }
        }
    }
}
