//! How fast reads over a link are, and whether it is left alone because of that.
//!
//! As long as reads are fast nothing is compared and nothing changes. If those of the usual replica are
//! slow, a few reads go to others, to see whether they are faster there. If they are by far, the link is
//! avoided, and one read in many goes to it to see whether it has recovered. No read is sent twice.

use basalt_wire::time::Time;
use std::time::Duration;

/// Reads after which a link's pace is known.
const KNOWN_AFTER: u32 = 4;
/// A pace without news for so long is not known any more.
const FRESH: Duration = Duration::from_secs(10);
/// How many times slower than the best of the others a link is that is avoided, and by how much.
const FACTOR: u64 = 4;
const MARGIN_NANOS: u64 = 2_000_000;
/// At most so many times slower, it is avoided no more.
const SOUND_FACTOR: u64 = 2;
/// One read in so many goes to a link whose pace is not known, while the usual one is slow.
pub(crate) const LEARN_EVERY: u64 = 4;
/// One read in so many goes to a link that is avoided, and none sooner than so long after the one before.
pub(crate) const PROBE_EVERY: u64 = 256;
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// Bytes that count as much as a read itself, and as what other requests on the link count for: a read
/// that is large, or one of many, may take longer.
const BYTES_WEIGHT: u64 = 128 << 10;
const REQUEST_WEIGHT: u64 = 8 << 10;

/// What is known of one link.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    nanos: u64,
    reads: u32,
    last_at: Time,
    /// Whether reads go elsewhere.
    pub avoided: bool,
    probe_after: Time,
}

/// What a read weighs, of so many bytes, with so many requests unanswered before it.
pub(crate) fn weight(bytes: usize, unanswered: usize) -> u64 {
    bytes as u64 + unanswered as u64 * REQUEST_WEIGHT
}

impl Pace {
    /// Takes a read's time, from its request to its data, and what it weighed.
    pub fn read(&mut self, took: Duration, weight: u64, now: Time) {
        let nanos = took.as_nanos() * u128::from(BYTES_WEIGHT) / u128::from(BYTES_WEIGHT + weight);
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        if !self.is_fresh(now) {
            self.reads = 0;
        }
        self.nanos = match self.reads {
            0 => nanos,
            // Each read by which it is tried tells much.
            _ if self.avoided => self.nanos / 2 + nanos / 2,
            _ => self.nanos - self.nanos / 8 + nanos / 8,
        };
        self.reads = self.reads.saturating_add(1);
        self.last_at = now;
    }

    fn is_fresh(&self, now: Time) -> bool {
        self.avoided || now.since(self.last_at) < FRESH
    }

    /// Nanoseconds of a read, if they are known.
    pub fn known(&self, now: Time) -> Option<u64> {
        (self.reads >= KNOWN_AFTER && self.is_fresh(now)).then_some(self.nanos)
    }

    /// Whether reads take so long that others may be faster by far.
    pub fn is_long(&self) -> bool {
        self.reads >= KNOWN_AFTER && self.nanos >= MARGIN_NANOS
    }

    /// Decides whether the link is avoided, given the best of the others. Gives whether that changed.
    pub fn judge(&mut self, best_other: Option<u64>, now: Time) -> bool {
        let before = self.avoided;
        self.avoided = match (self.known(now), best_other) {
            (Some(own), Some(best)) if before => {
                let sound = own <= best.saturating_mul(SOUND_FACTOR)
                    || own <= best.saturating_add(MARGIN_NANOS / 2);
                !sound
            }
            (Some(own), Some(best)) => {
                own >= best.saturating_mul(FACTOR) && own - best >= MARGIN_NANOS
            }
            // There is nothing better.
            _ => false,
        };
        if self.avoided && !before {
            self.probe_after = now + PROBE_PAUSE;
        }
        self.avoided != before
    }

    /// Whether a read may go to the avoided link, to see how it is; if so, the next may only later.
    pub fn probes(&mut self, now: Time) -> bool {
        let may = self.avoided && now >= self.probe_after;
        if may {
            self.probe_after = now + PROBE_PAUSE;
        }
        may
    }

    /// A new link: nothing is known of it.
    pub fn forget(&mut self) {
        *self = Pace::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn paced(reads: u32, each: Duration) -> Pace {
        let mut pace = Pace::default();
        (0..reads).for_each(|_| pace.read(each, 0, Time(1)));
        pace
    }

    #[test]
    fn a_link_is_avoided_when_another_is_known_to_be_faster_by_far() {
        let now = Time(2);
        let mut slow = paced(4, MS * 8);
        assert!(slow.is_long());
        assert!(!slow.judge(None, now) && !slow.avoided, "nothing is better");
        assert!(!slow.judge(Some(2_100_000), now) && !slow.avoided, "not by far");
        assert!(slow.judge(Some(200_000), now) && slow.avoided);
        assert!(!slow.judge(Some(3_000_000), now), "it stays so until it is nearly as good");
        assert!(slow.judge(Some(4_000_000), now) && !slow.avoided);
        let mut fast = paced(4, MS / 2);
        assert!(!fast.is_long() && !fast.judge(Some(1), now), "too little to matter");
        assert_eq!(paced(3, MS * 8).known(now), None);
        assert_eq!(paced(4, MS).known(now + FRESH), None, "what is old is not known");
    }

    #[test]
    fn an_avoided_link_is_tried_now_and_then() {
        let now = Time(2);
        let mut pace = paced(8, MS * 8);
        assert!(!pace.probes(now), "it is in use");
        pace.judge(Some(100_000), now);
        assert!(!pace.probes(now), "not at once");
        let later = now + PROBE_PAUSE;
        assert!(pace.probes(later) && !pace.probes(later), "one at a time");
        (0..3).for_each(|_| pace.read(MS / 10, 0, later));
        assert!(pace.judge(Some(100_000), later) && !pace.avoided, "three good reads are enough");
    }

    #[test]
    fn large_reads_and_long_queues_are_not_slow() {
        let mut pace = Pace::default();
        (0..8).for_each(|_| pace.read(MS * 4, weight(4096, 127), Time(1)));
        assert!(!pace.is_long());
        let mut pace = Pace::default();
        (0..8).for_each(|_| pace.read(MS * 4, weight(1 << 20, 0), Time(1)));
        assert!(!pace.is_long());
    }
}
