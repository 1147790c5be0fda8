//! Memory that a socket is received into.
//!
//! The kernel fills a chunk from its start; what was filled is shared out as [`Bytes`] while the
//! rest is still being filled. When nobody holds a part of it any more, the chunk is filled again
//! from its start, so that a busy connection whose data is used up within the turn lives on one
//! piece of warm memory.
//!
//! Invariant: bytes before `filled` are never written while a view of them lives; bytes from
//! `filled` on are seen by nobody but the kernel.

use basalt_wire::buffer::IoBuf;
use bytes::Bytes;
use std::sync::Arc;

/// The smallest chunk, for idle connections.
pub(crate) const CHUNK_MIN: usize = 4 << 10;
/// The largest chunk, for busy ones.
pub(crate) const CHUNK_MAX: usize = 256 << 10;

struct Memory {
    start: *mut u8,
    /// Owns the memory; never looked at through this while views live.
    _buf: IoBuf,
}

// SAFETY: the memory is owned by this value, and is read through views and written by the kernel
// under the module's invariant; nothing about it is tied to a thread.
unsafe impl Send for Memory {}
// SAFETY: as above; shared access only reads bytes that are not written any more.
unsafe impl Sync for Memory {}

struct View {
    memory: Arc<Memory>,
    from: usize,
    len: usize,
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range was filled (and initialised before, as all of an `IoBuf` is), lies
        // within the memory that the `Arc` keeps alive, and is not written while this view lives.
        unsafe { std::slice::from_raw_parts(self.memory.start.add(self.from), self.len) }
    }
}

/// One chunk of receive memory.
pub(crate) struct Chunk {
    memory: Arc<Memory>,
    filled: usize,
    capacity: usize,
}

impl Chunk {
    pub(crate) fn new(capacity: usize) -> Chunk {
        let mut buf = IoBuf::alloc(capacity);
        let start = buf.as_mut_ptr();
        Chunk { memory: Arc::new(Memory { start, _buf: buf }), filled: 0, capacity }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that can be received yet.
    pub(crate) fn room(&self) -> usize {
        self.capacity - self.filled
    }

    /// Starts over if nobody holds a part of the chunk. Must not be called while a receive is in
    /// the kernel.
    pub(crate) fn rewind_if_free(&mut self) {
        if Arc::get_mut(&mut self.memory).is_some() {
            self.filled = 0;
        }
    }

    /// Where the kernel may write [`Chunk::room`] bytes.
    pub(crate) fn target(&mut self) -> *mut u8 {
        // SAFETY: `filled` is at most the capacity, so the pointer stays within the allocation or
        // one past its end.
        unsafe { self.memory.start.add(self.filled) }
    }

    /// Shares the next `len` bytes, which the kernel has written.
    pub(crate) fn take(&mut self, len: usize) -> Bytes {
        assert!(len <= self.room(), "{len} bytes received into room for {}", self.room());
        let from = self.filled;
        self.filled += len;
        Bytes::from_owner(View { memory: self.memory.clone(), from, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(chunk: &mut Chunk, bytes: &[u8]) -> Bytes {
        assert!(bytes.len() <= chunk.room());
        // SAFETY: there is room, and no receive is in the kernel.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), chunk.target(), bytes.len()) };
        chunk.take(bytes.len())
    }

    #[test]
    fn parts_are_shared_while_the_rest_is_filled() {
        let mut chunk = Chunk::new(4096);
        let a = fill(&mut chunk, b"abc");
        let b = fill(&mut chunk, b"defg");
        assert_eq!((&a[..], &b[..]), (&b"abc"[..], &b"defg"[..]));
        assert_eq!(chunk.room(), 4096 - 7);
    }

    #[test]
    fn a_chunk_starts_over_only_when_nobody_holds_a_part() {
        let mut chunk = Chunk::new(4096);
        let a = fill(&mut chunk, b"abc");
        let part = a.slice(1..);
        drop(a);
        chunk.rewind_if_free();
        assert_eq!(chunk.room(), 4096 - 3);
        drop(part);
        chunk.rewind_if_free();
        assert_eq!(chunk.room(), 4096);
    }
}
