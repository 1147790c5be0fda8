//! Memory that was freed and is still held.
//!
//! The allocator gives it back to the system as a thread goes on allocating, so a thread that rests after much work
//! would keep all of it. Threads therefore give it back when they rest.
//!
//! What was given back and is needed again comes as zeros. In pages of 4 KiB that takes a moment each time; a huge
//! page is 512 of them at once, for which a reactor stood still for 3 to 10 ms where a hypervisor had to find the
//! memory, too. So the heap has no huge pages: its allocator is built not to ask for them. The arena of the buffers
//! asks, and keeps what it got.

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

/// From Linux 6.18 on: only what asks for huge pages gets any.
const PR_THP_DISABLE_EXCEPT_ADVISED: libc::c_ulong = 1 << 1;

/// Has the system give this process huge pages only where it asks for them, also if it is set to give them to all
/// programs (`always` in `/sys/kernel/mm/transparent_hugepage/enabled`). Kernels that do not know of this go on as they
/// are set.
pub fn huge_pages_where_asked_for() {
    let none: libc::c_ulong = 0;
    // SAFETY: it takes numbers, and changes nothing but how this process' memory is mapped. A refusal leaves things as
    // they were.
    unsafe {
        let except = PR_THP_DISABLE_EXCEPT_ADVISED;
        libc::prctl(libc::PR_SET_THP_DISABLE, 1 as libc::c_ulong, except, none, none);
    }
}
