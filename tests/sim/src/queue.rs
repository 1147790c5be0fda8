//! The event heap: what happens next in simulated time.

use crate::rng::Rng;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Nanoseconds of simulated time since the world began. Nodes and clients never see it: each has a
/// clock of its own, with its own origin and drift.
pub type Instant = u64;

/// A microsecond.
pub const MICRO: u64 = 1_000;
/// A millisecond.
pub const MILLI: u64 = 1_000_000;
/// A second.
pub const SECOND: u64 = 1_000_000_000;

struct Entry<E> {
    at: Instant,
    /// Random, so that events of one instant come in any order; unique in its low half.
    tie: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Reversed: the heap gives its greatest item first.
        (other.at, other.tie).cmp(&(self.at, self.tie))
    }
}

/// A heap of events keyed by time and a tiebreak drawn from the seed.
pub struct Queue<E> {
    heap: BinaryHeap<Entry<E>>,
    rng: Rng,
    pushed: u64,
    now: Instant,
}

impl<E> Queue<E> {
    /// An empty heap at time zero.
    pub fn new(rng: Rng) -> Queue<E> {
        Queue { heap: BinaryHeap::with_capacity(256), rng, pushed: 0, now: 0 }
    }

    /// The time of the event taken last.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Lets time pass up to an instant before which nothing happens.
    pub fn advance(&mut self, to: Instant) {
        assert!(self.next_at().is_none_or(|at| at >= to), "an event was skipped");
        self.now = self.now.max(to);
    }

    /// Adds an event; one in the past happens now.
    pub fn push(&mut self, at: Instant, event: E) {
        self.pushed += 1;
        let tie = (self.rng.bits() & !0xffff_ffff) | (self.pushed & 0xffff_ffff);
        self.heap.push(Entry { at: at.max(self.now), tie, event });
    }

    /// Adds an event that happens `delay` from now.
    pub fn push_in(&mut self, delay: u64, event: E) {
        self.push(self.now.saturating_add(delay), event);
    }

    /// The next event, if there is one.
    pub fn pop(&mut self) -> Option<(Instant, E)> {
        let entry = self.heap.pop()?;
        self.now = entry.at;
        Some((entry.at, entry.event))
    }

    /// When the next event happens.
    pub fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|e| e.at)
    }

    /// Events waiting.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether nothing is left to happen.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_repeat_with_the_seed() {
        let run = |seed| {
            let mut q = Queue::new(Rng::stream(seed, "heap", 0));
            for i in 0..50u64 {
                q.push(i / 10, i);
            }
            std::iter::from_fn(|| q.pop()).collect::<Vec<_>>()
        };
        let first = run(1);
        assert!(first.windows(2).all(|w| w[0].0 <= w[1].0));
        assert_eq!(first, run(1));
        assert_ne!(first, run(2));
    }

    #[test]
    fn the_past_is_now() {
        let mut q = Queue::new(Rng::stream(1, "heap", 0));
        q.push(10, 'a');
        q.pop();
        q.push(3, 'b');
        assert_eq!(q.pop(), Some((10, 'b')));
    }
}
