//! Aligned memory for device transfers, and block data in pieces.
//!
//! An [`IoBuf`] is owned, mutable and 4096-aligned; it is filled by a device read or by a log batch
//! and then frozen into shared, immutable [`Bytes`]. Ownership moves with the operation, so memory
//! that a device still uses cannot be touched.

use bytes::Bytes;
use smallvec::SmallVec;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

mod arena;
pub use arena::Arena;

/// Alignment of every buffer, enough for O_DIRECT on every device.
pub const ALIGN: usize = 4096;

const CLASS_MIN_SHIFT: u32 = 12;
const CLASS_MAX_SHIFT: u32 = 22;
/// Bytes that a thread keeps for reuse; a buffer freed beyond this goes back to the allocator.
const POOL_BYTES_MAX: usize = 32 << 20;

/// Owned, mutable, zero-initialised memory, aligned to [`ALIGN`].
///
/// Buffers come from size classes (powers of two from 4 KiB to 4 MiB) that each thread recycles, for
/// a fresh mapping costs a page fault a page. A thread with an [`Arena`] takes them from there while
/// it has room. A recycled buffer holds whatever it held before.
pub struct IoBuf {
    memory: NonNull<u8>,
    len: usize,
    capacity: usize,
    /// The arena that the memory belongs to; without one it is the allocator's.
    arena: Option<Arena>,
}

// SAFETY: the memory is owned exclusively by this value; nothing about it is tied to a thread.
unsafe impl Send for IoBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for IoBuf {}

#[derive(Default)]
struct Pool {
    classes: [Vec<NonNull<u8>>; (CLASS_MAX_SHIFT - CLASS_MIN_SHIFT + 1) as usize],
    bytes: usize,
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (class, list) in self.classes.iter().enumerate() {
            for memory in list {
                let layout = layout_of(1 << (class as u32 + CLASS_MIN_SHIFT));
                // SAFETY: each pointer in a class was allocated by `IoBuf::alloc` with this layout
                // and is owned by the pool alone.
                unsafe { dealloc(memory.as_ptr(), layout) };
            }
        }
    }
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

fn layout_of(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, ALIGN).expect("buffer sizes are far below isize::MAX")
}

fn class_of(capacity: usize) -> Option<usize> {
    let shift = capacity.trailing_zeros();
    (capacity.is_power_of_two() && (CLASS_MIN_SHIFT..=CLASS_MAX_SHIFT).contains(&shift))
        .then(|| (shift - CLASS_MIN_SHIFT) as usize)
}

impl IoBuf {
    /// A buffer of `len` bytes with unspecified (but initialised) content.
    pub fn alloc(len: usize) -> IoBuf {
        let capacity = if len <= 1 << CLASS_MAX_SHIFT {
            len.next_power_of_two().max(1 << CLASS_MIN_SHIFT)
        } else {
            len.next_multiple_of(ALIGN)
        };
        if let Some((memory, arena)) = Arena::take(capacity) {
            return IoBuf { memory, len, capacity, arena: Some(arena) };
        }
        let recycled = class_of(capacity).and_then(|class| {
            POOL.try_with(|pool| {
                let mut pool = pool.borrow_mut();
                let memory = pool.classes[class].pop();
                if memory.is_some() {
                    pool.bytes -= capacity;
                }
                memory
            })
            .ok()
            .flatten()
        });
        let memory = recycled.unwrap_or_else(|| {
            let layout = layout_of(capacity);
            // SAFETY: the layout has a size above zero: capacity is at least 4096.
            let memory = unsafe { alloc_zeroed(layout) };
            NonNull::new(memory).unwrap_or_else(|| std::alloc::handle_alloc_error(layout))
        });
        IoBuf { memory, len, capacity, arena: None }
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> IoBuf {
        let mut buf = IoBuf::alloc(len);
        buf.fill(0);
        buf
    }

    /// A buffer holding a copy of `bytes`.
    pub fn copy_from(bytes: &[u8]) -> IoBuf {
        let mut buf = IoBuf::alloc(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Shortens or lengthens the buffer within its capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "length {len} beyond the capacity {}", self.capacity);
        self.len = len;
    }

    /// Bytes that the buffer can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Shares the buffer; its memory is recycled when the last reference is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        if let Some(arena) = &self.arena {
            arena.give_back(self.memory, self.capacity);
            return;
        }
        let kept = class_of(self.capacity).is_some_and(|class| {
            POOL.try_with(|pool| {
                let mut pool = pool.borrow_mut();
                let room = pool.bytes + self.capacity <= POOL_BYTES_MAX;
                if room {
                    pool.bytes += self.capacity;
                    pool.classes[class].push(self.memory);
                }
                room
            })
            .unwrap_or(false)
        });
        if !kept {
            // SAFETY: allocated by `alloc` with this layout; not given to the pool.
            unsafe { dealloc(self.memory.as_ptr(), layout_of(self.capacity)) };
        }
    }
}

impl Deref for IoBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity` initialised bytes (allocated or mapped as zeros) owned by this
        // value.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for IoBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len)
    }
}

/// Block data in shared pieces, in order; what a frame or a log record carries beside its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// One piece is by far the usual case, and takes no memory of its own.
    pieces: SmallVec<[Bytes; 1]>,
    len: usize,
}

impl Payload {
    /// No data.
    pub fn empty() -> Payload {
        Payload::default()
    }

    /// Appends a piece.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push(piece);
        }
    }

    /// Appends all pieces of `other`.
    pub fn append(&mut self, other: Payload) {
        self.len += other.len;
        self.pieces.extend(other.pieces);
    }

    /// Bytes in all pieces together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no data.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, none of them empty.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// Copies all data into `target`, whose length must equal [`Payload::len`].
    pub fn copy_to(&self, target: &mut [u8]) {
        assert_eq!(target.len(), self.len, "the target's length differs from the payload's");
        let mut at = 0;
        for piece in &self.pieces {
            target[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
    }

    /// The data as one piece; copies only if it stands in several.
    pub fn contiguous(&self) -> Bytes {
        match self.pieces.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            _ => {
                let mut buf = IoBuf::alloc(self.len);
                self.copy_to(&mut buf);
                buf.freeze()
            }
        }
    }

    /// The part `from..from + len`, sharing memory with this payload.
    pub fn slice(&self, from: usize, len: usize) -> Payload {
        assert!(from + len <= self.len, "slice {from}+{len} of a payload of {}", self.len);
        let mut out = Payload::empty();
        let (mut skip, mut want) = (from, len);
        for piece in &self.pieces {
            if want == 0 {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let take = want.min(piece.len() - skip);
            out.push(piece.slice(skip..skip + take));
            want -= take;
            skip = 0;
        }
        out
    }
}

impl From<Bytes> for Payload {
    fn from(piece: Bytes) -> Payload {
        let mut payload = Payload::empty();
        payload.push(piece);
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_recycled() {
        let a = IoBuf::zeroed(5000);
        assert_eq!(a.as_ptr() as usize % ALIGN, 0);
        assert_eq!((a.len(), a.capacity()), (5000, 8192));
        let memory = a.as_ptr();
        drop(a.freeze());
        assert_eq!(IoBuf::alloc(8000).as_ptr(), memory);
    }

    #[test]
    fn payload_slices_across_pieces() {
        let mut p = Payload::from(Bytes::from_static(b"abcd"));
        p.push(Bytes::from_static(b"efgh"));
        assert_eq!(&p.slice(2, 4).contiguous()[..], b"cdef");
        assert_eq!(p.slice(4, 4).pieces().len(), 1);
        assert_eq!(p.slice(8, 0).len(), 0);
    }
}
