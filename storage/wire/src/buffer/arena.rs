//! One mapping from which a thread takes its buffers, so that a ring can register it once.
//!
//! A buddy system over blocks of 4 KiB: a piece is a power of two of them at a multiple of its own
//! size, and is merged with its neighbour again as soon as both are free. So no history of large
//! and small buffers can wear the arena out; when it is full, buffers come from the allocator.
//!
//! Only the thread that installed the arena takes pieces. A piece that another thread frees waits
//! in a list until the owner runs short.

use std::cell::RefCell;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

const BLOCK_SHIFT: u32 = 12;
/// Orders of pieces: 4 KiB to 4 MiB.
const ORDERS: usize = 11;
/// Huge pages of the processor; the arena is a whole number of them, and of the largest piece.
const HUGE_BYTES: usize = 2 << 20;
const LARGEST_BYTES: usize = 1 << (BLOCK_SHIFT as usize + ORDERS - 1);

const _: () = assert!(LARGEST_BYTES.is_multiple_of(HUGE_BYTES));

/// A mapping of which buffers are made. It stays mapped while this handle, the thread that
/// installed it, or any buffer in it lives.
#[derive(Clone)]
pub struct Arena(Arc<Mapping>);

struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Pieces freed by other threads: block and order.
    returned: Mutex<Vec<(usize, usize)>>,
}

// SAFETY: the mapping is only memory; who may touch which part of it is decided by the buffers that
// own the pieces.
unsafe impl Send for Mapping {}
// SAFETY: as above; the list of returned pieces has its lock.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this start and length, and nobody holds a piece any more: every piece
        // holds a reference to the mapping. A failure would only keep the memory.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

thread_local! {
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
}

struct Local {
    arena: Arena,
    buddies: Buddies,
}

impl Arena {
    /// Maps `bytes` (rounded up to 4 MiB), on huge pages where the kernel has them, and lets this
    /// thread's buffers come from it. An arena that the thread had before serves no more.
    pub fn install(bytes: usize) -> io::Result<Arena> {
        let len = bytes.max(1).next_multiple_of(LARGEST_BYTES);
        let arena = Arena(Arc::new(map(len)?));
        let local = Local { arena: arena.clone(), buddies: Buddies::new(len >> BLOCK_SHIFT) };
        LOCAL.with(|slot| slot.replace(Some(local)));
        Ok(arena)
    }

    /// Where the mapping starts.
    pub fn start(&self) -> *mut u8 {
        self.0.start.as_ptr()
    }

    /// Bytes mapped.
    pub fn bytes(&self) -> usize {
        self.0.len
    }

    /// A piece of `capacity` bytes (a power of two) from this thread's arena, if it has one with
    /// room.
    pub(super) fn take(capacity: usize) -> Option<(NonNull<u8>, Arena)> {
        let order = order_of(capacity)?;
        LOCAL
            .try_with(|slot| {
                let mut slot = slot.borrow_mut();
                let local = slot.as_mut()?;
                let block = local.take(order)?;
                let offset = block << BLOCK_SHIFT;
                assert!(offset + capacity <= local.arena.0.len, "a piece beyond its arena");
                // SAFETY: within the mapping, as just checked.
                let memory = unsafe { local.arena.0.start.add(offset) };
                Some((memory, local.arena.clone()))
            })
            .ok()
            .flatten()
    }

    /// Gives a piece back.
    pub(super) fn give_back(&self, memory: NonNull<u8>, capacity: usize) {
        let order = order_of(capacity).expect("only pieces of an order are taken");
        let block = (memory.addr().get() - self.0.start.addr().get()) >> BLOCK_SHIFT;
        let mine = LOCAL.try_with(|slot| {
            let mut slot = slot.borrow_mut();
            let local = slot.as_mut().filter(|local| Arc::ptr_eq(&local.arena.0, &self.0));
            local.map(|local| local.buddies.free(block, order)).is_some()
        });
        if mine != Ok(true) {
            let mut returned = self.0.returned.lock().unwrap_or_else(PoisonError::into_inner);
            returned.push((block, order));
        }
    }
}

impl Local {
    fn take(&mut self, order: usize) -> Option<usize> {
        if let Some(block) = self.buddies.take(order) {
            return Some(block);
        }
        let returned = {
            let mut list = self.arena.0.returned.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *list)
        };
        returned.into_iter().for_each(|(block, order)| self.buddies.free(block, order));
        self.buddies.take(order)
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arena({} bytes)", self.0.len)
    }
}

fn order_of(capacity: usize) -> Option<usize> {
    let order = (capacity.trailing_zeros() as usize).checked_sub(BLOCK_SHIFT as usize)?;
    (capacity.is_power_of_two() && order < ORDERS).then_some(order)
}

fn map(len: usize) -> io::Result<Mapping> {
    // One huge page more, so that the part that is kept can start at a multiple of one.
    let reserved = len + HUGE_BYTES;
    // SAFETY: a new anonymous mapping at a place of the kernel's choice touches nothing that exists.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            reserved,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let head = address.addr().next_multiple_of(HUGE_BYTES) - address.addr();
    let tail = reserved - head - len;
    let start: *mut u8 = address.cast();
    // SAFETY: `start..start + reserved` was just mapped and nothing points into it yet: its unaligned
    // ends are given back, the part between is kept. Both the advice and giving back the ends may
    // fail without harm.
    unsafe {
        if head > 0 {
            libc::munmap(address, head);
        }
        if tail > 0 {
            libc::munmap(start.add(head + len).cast(), tail);
        }
        libc::madvise(start.add(head).cast(), len, libc::MADV_HUGEPAGE);
    }
    // SAFETY: within the mapping of `reserved` bytes.
    let start = NonNull::new(unsafe { start.add(head) }).expect("a mapping is not at address 0");
    Ok(Mapping { start, len, returned: Mutex::default() })
}

/// Which pieces are free.
struct Buddies {
    orders: [FreeBits; ORDERS],
}

impl Buddies {
    fn new(blocks: usize) -> Buddies {
        let mut buddies = Buddies { orders: std::array::from_fn(|o| FreeBits::new(blocks >> o)) };
        let largest = &mut buddies.orders[ORDERS - 1];
        (0..blocks >> (ORDERS - 1)).for_each(|n| largest.set(n));
        buddies
    }

    /// The first block of a piece of 2^order blocks.
    fn take(&mut self, order: usize) -> Option<usize> {
        let from = (order..ORDERS).find(|o| self.orders[*o].count > 0)?;
        let mut number = self.orders[from].take_lowest();
        for lower in (order..from).rev() {
            // Of a split piece the first half is used and the second is free.
            number *= 2;
            self.orders[lower].set(number + 1);
        }
        Some(number << order)
    }

    fn free(&mut self, block: usize, order: usize) {
        let mut number = block >> order;
        let mut order = order;
        assert!(number << order == block, "block {block} starts no piece of order {order}");
        while order + 1 < ORDERS && self.orders[order].is_set(number ^ 1) {
            self.orders[order].clear(number ^ 1);
            number /= 2;
            order += 1;
        }
        self.orders[order].set(number);
    }
}

/// The free pieces of one order.
struct FreeBits {
    words: Vec<u64>,
    count: usize,
    /// No word before this one has a bit.
    lowest: usize,
}

impl FreeBits {
    fn new(pieces: usize) -> FreeBits {
        FreeBits { words: vec![0; pieces.div_ceil(64)], count: 0, lowest: 0 }
    }

    fn is_set(&self, number: usize) -> bool {
        self.words.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn set(&mut self, number: usize) {
        assert!(!self.is_set(number), "piece {number} is freed twice");
        self.words[number / 64] |= 1 << (number % 64);
        self.count += 1;
        self.lowest = self.lowest.min(number / 64);
    }

    fn clear(&mut self, number: usize) {
        self.words[number / 64] &= !(1 << (number % 64));
        self.count -= 1;
    }

    fn take_lowest(&mut self) -> usize {
        while self.words[self.lowest] == 0 {
            self.lowest += 1;
        }
        let number = self.lowest * 64 + self.words[self.lowest].trailing_zeros() as usize;
        self.clear(number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::super::IoBuf;
    use super::*;

    fn within(arena: &Arena, buf: &IoBuf) -> bool {
        let offset = buf.as_ptr().addr().wrapping_sub(arena.start().addr());
        offset < arena.bytes()
    }

    /// Tests share no thread with each other's arenas.
    fn alone(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| scope.spawn(test).join().expect("the test passes"));
    }

    #[test]
    fn pieces_are_apart_and_merge_again() {
        let mut random = 12345u64;
        let mut buddies = Buddies::new(2048);
        let mut used = vec![false; 2048];
        let mut held: Vec<(usize, usize)> = Vec::new();
        for _ in 0..20_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let order = (random >> 8) as usize % ORDERS;
            if random % 5 < 3 {
                if let Some(block) = buddies.take(order) {
                    let piece = &mut used[block..block + (1 << order)];
                    assert!(piece.iter().all(|used| !used), "{block} is given out twice");
                    piece.fill(true);
                    held.push((block, order));
                }
            } else if !held.is_empty() {
                let (block, order) = held.swap_remove(random as usize % held.len());
                used[block..block + (1 << order)].fill(false);
                buddies.free(block, order);
            }
        }
        held.into_iter().for_each(|(block, order)| buddies.free(block, order));
        assert_eq!(buddies.orders.map(|o| o.count), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn buffers_come_from_the_arena_while_it_has_room() {
        alone(|| {
            let arena = Arena::install(1).unwrap();
            assert_eq!(arena.bytes(), 4 << 20);
            assert!(arena.start().addr().is_multiple_of(HUGE_BYTES));
            let small: Vec<IoBuf> = (0..1024).map(|_| IoBuf::zeroed(4000)).collect();
            assert!(small.iter().all(|buf| within(&arena, buf)));
            let outside = IoBuf::zeroed(4096);
            assert!(!within(&arena, &outside), "a full arena gave a piece");
            drop((small, outside));
            // Small pieces have merged: the largest fits again. Larger ones never came from it.
            let large = IoBuf::alloc(3 << 20);
            assert!(within(&arena, &large) && !within(&arena, &IoBuf::alloc(5 << 20)));
        });
    }

    #[test]
    fn pieces_freed_elsewhere_come_back_and_outlive_their_thread() {
        alone(|| {
            let arena = Arena::install(4 << 20).unwrap();
            let whole = IoBuf::zeroed(4 << 20);
            assert!(within(&arena, &whole));
            std::thread::scope(|scope| {
                scope.spawn(move || drop(whole.freeze()));
            });
            let again = IoBuf::zeroed(4 << 20);
            assert!(within(&arena, &again));
            drop((again, arena));
            let survivor = std::thread::scope(|scope| {
                let made = scope.spawn(|| {
                    Arena::install(4 << 20).unwrap();
                    IoBuf::copy_from(&[7; 5000])
                });
                made.join().unwrap()
            });
            assert!(survivor.iter().all(|byte| *byte == 7));
        });
    }
}
