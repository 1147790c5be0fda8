//! How long the requests of a session's user take, from their submission to their answer, in histograms.

use std::time::Duration;

/// Upper bounds of the buckets but for the last, which has none: powers of two of 16 µs.
pub const BUCKETS: usize = 20;
/// The upper bound of the first bucket.
const FIRST: Duration = Duration::from_nanos(1 << FIRST_SHIFT);
const FIRST_SHIFT: u32 = 14;

/// The times of requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Requests by how long they took: bucket n is up to `upper_bound(n)`, the last one has what took longer.
    pub buckets: [u64; BUCKETS + 1],
    /// All of these times together, in nanoseconds.
    pub sum_ns: u64,
    /// Bytes of all these requests.
    pub bytes: u64,
    /// Requests that ended badly; they are counted above too.
    pub failed: u64,
}

impl Histogram {
    /// The longest time that a bucket counts.
    pub fn upper_bound(bucket: usize) -> Duration {
        FIRST * (1 << bucket)
    }

    /// Requests.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Counts a request.
    pub(crate) fn add(&mut self, took: Duration, bytes: u64, failed: bool) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // Rounded up to the next power of two of the first bound.
        let above = u64::BITS - (ns.saturating_sub(1) >> FIRST_SHIFT).leading_zeros();
        self.buckets[(above as usize).min(BUCKETS)] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
        self.bytes = self.bytes.saturating_add(bytes);
        self.failed += u64::from(failed);
    }
}

/// The times of all kinds of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Reads.
    pub read: Histogram,
    /// Writes.
    pub write: Histogram,
    /// Discards and writes of zeroes.
    pub unmap: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_first_bucket_that_may_hold_it() {
        let bucket = |ns: u64| {
            let mut histogram = Histogram::default();
            histogram.add(Duration::from_nanos(ns), 4096, false);
            histogram.buckets.iter().position(|count| *count == 1).expect("counted")
        };
        for n in 0..BUCKETS {
            let bound = Histogram::upper_bound(n).as_nanos() as u64;
            assert_eq!((bucket(bound), bucket(bound + 1)), (n, n + 1));
        }
        assert_eq!((bucket(0), bucket(1)), (0, 0));
        assert_eq!(bucket(u64::MAX), BUCKETS);
        assert_eq!(Histogram::upper_bound(BUCKETS - 1).as_secs(), 8);
    }

    #[test]
    fn sums_are_kept() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::from_micros(100), 4096, false);
        histogram.add(Duration::from_secs(100), 512, true);
        assert_eq!((histogram.count(), histogram.bytes, histogram.failed), (2, 4608, 1));
        assert_eq!(histogram.sum_ns, 100_000 + 100_000_000_000);
    }
}
