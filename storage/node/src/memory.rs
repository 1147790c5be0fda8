//! Memory that was freed and is still held.
//!
//! The allocator gives it back to the system as a thread goes on allocating, so a thread that rests after much work
//! would keep all of it. Threads therefore give it back when they rest.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How often a thread gives memory back: it walks all that the thread holds.
const EVERY: Duration = Duration::from_secs(1);

thread_local! {
    static DONE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Whether this thread gave nothing back within the last second. If so, it is expected to do it now.
pub(crate) fn is_due() -> bool {
    let now = Instant::now();
    let due = DONE.get().is_none_or(|done| now.duration_since(done) >= EVERY);
    if due {
        DONE.set(Some(now));
    }
    due
}

/// Gives memory that this thread has freed back to the system.
pub(crate) fn give_back() {
    // SAFETY: any thread may call it at any time; it touches nothing but what the allocator holds and nobody uses.
    unsafe { libmimalloc_sys::mi_collect(false) }
}

/// Gives memory that this thread has freed back to the system, unless it did so within the last second: for a thread
/// that is about to rest.
pub fn give_back_memory() {
    if is_due() {
        give_back();
    }
}
