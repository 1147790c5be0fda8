//! How long the operations of a device take, as the shard sees it: from the turn that asked for one to
//! the turn that heard of its end.

use basalt_wire::io::OpToken;
use basalt_wire::time::Time;

/// Operations that are measured at a time; what is started beyond is not.
const MEASURED_MAX: usize = 16;
/// Operations without which a window is not over.
const OPERATIONS_MIN: u64 = 4;
/// Windows of which the middle one counts: what is seen in one or two of them is chance.
const WINDOWS: usize = 5;
/// Bytes whose transfer counts as much as the operation itself: a large operation may take longer.
const BYTES_WEIGHT: u64 = 128 << 10;

/// Measures one kind of operation.
#[derive(Debug, Default)]
pub struct Meter {
    under_way: Vec<Operation>,
    count: u64,
    sum: u64,
    highest: u64,
    /// Means of the latest windows.
    means: [u64; WINDOWS],
    windows: usize,
    worst: u64,
    best: u64,
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    token: OpToken,
    began: Time,
    bytes: u64,
}

impl Operation {
    /// Nanoseconds that it took until `now`, as if it were a small one. Of these `late` are the shard's.
    fn nanos(&self, now: Time, late: u64) -> u64 {
        let age = now.0.saturating_sub(self.began.0);
        per_operation(age.saturating_sub(late).max(1), self.bytes)
    }
}

/// The part of a time that does not come from the number of bytes moved meanwhile.
pub fn per_operation(nanos: u64, bytes: u64) -> u64 {
    let weighted = u128::from(nanos) * u128::from(BYTES_WEIGHT);
    // No more than `nanos`, which fits.
    (weighted / u128::from(BYTES_WEIGHT + bytes)) as u64
}

impl Meter {
    /// An operation is started.
    pub fn began(&mut self, token: OpToken, bytes: usize, now: Time) {
        if self.under_way.len() < MEASURED_MAX {
            self.under_way.push(Operation { token, began: now, bytes: bytes as u64 });
        }
    }

    /// An operation ended. The shard may hear of it `late` nanoseconds later than it could.
    pub fn ended(&mut self, token: OpToken, now: Time, late: u64) {
        if let Some(at) = self.under_way.iter().position(|op| op.token == token) {
            let nanos = self.under_way.swap_remove(at).nanos(now, late);
            self.add(nanos);
        }
    }

    fn add(&mut self, nanos: u64) {
        self.count += 1;
        self.sum = self.sum.saturating_add(nanos);
        self.highest = self.highest.max(nanos);
    }

    /// Ends a window of so many nanoseconds, if it has enough in it. An operation that is under way for
    /// longer than the window says as much as many that ended.
    pub fn close(&mut self, now: Time, window_nanos: u64, late: u64) -> bool {
        let ages = self.under_way.iter().map(|op| op.nanos(now, late));
        let overdue: Vec<u64> = ages.filter(|nanos| *nanos >= window_nanos).collect();
        if self.count < OPERATIONS_MIN && overdue.is_empty() {
            return false;
        }
        overdue.into_iter().for_each(|nanos| self.add(nanos));
        let mean = (self.sum / self.count).max(1);
        self.means[self.windows % WINDOWS] = mean;
        self.best = if self.best == 0 { mean } else { self.best.min(mean) };
        self.windows += 1;
        self.worst = self.highest;
        (self.count, self.sum, self.highest) = (0, 0, 0);
        true
    }

    /// Mean nanoseconds of an operation in the middle one of the latest windows; 0 if there was none.
    pub fn mean(&self) -> u64 {
        let mut means = self.means;
        let known = &mut means[..self.windows.min(WINDOWS)];
        known.sort_unstable();
        known.get(known.len() / 2).copied().unwrap_or(0)
    }

    /// The lowest mean of any window: what the device can do; 0 if there was none.
    pub fn best(&self) -> u64 {
        self.best
    }

    /// Nanoseconds of the longest operation in the last window.
    pub fn worst(&self) -> u64 {
        self.worst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 250_000_000;

    fn measured(nanos: &[u64]) -> Meter {
        let mut meter = Meter::default();
        for (token, nanos) in (0..).zip(nanos) {
            meter.began(token, 0, Time(1_000));
            meter.ended(token, Time(1_000 + nanos), 0);
        }
        meter
    }

    #[test]
    fn a_window_needs_some_operations() {
        let mut meter = measured(&[100, 200, 300]);
        assert!(!meter.close(Time(5_000), WINDOW, 0));
        meter.began(9, 0, Time(0));
        meter.ended(9, Time(1_400), 0);
        assert!(meter.close(Time(5_000), WINDOW, 0));
        assert_eq!((meter.mean(), meter.worst()), (500, 1_400));
        assert!(!meter.close(Time(6_000), WINDOW, 0), "the next window is empty");
        assert_eq!(meter.mean(), 500, "the last figure stands");
    }

    #[test]
    fn an_operation_that_never_ends_counts() {
        let mut meter = measured(&[100]);
        meter.began(9, 0, Time(0));
        assert!(!meter.close(Time(WINDOW - 1), WINDOW, 0));
        assert!(meter.close(Time(WINDOW), WINDOW, 0));
        assert!(meter.mean() > WINDOW / 3);
        assert!(meter.close(Time(3 * WINDOW), WINDOW, 0), "again and again");
        assert_eq!((meter.mean(), meter.worst()), (3 * WINDOW, 3 * WINDOW));
    }

    #[test]
    fn one_window_in_three_is_chance() {
        let mut meter = Meter::default();
        for window in 0..30 {
            let nanos = if window % 3 == 2 { 900_000 } else { 100 + window };
            for token in 0..4 {
                meter.began(token, 0, Time(0));
                meter.ended(token, Time(nanos), 0);
            }
            assert!(meter.close(Time(1), WINDOW, 0));
            assert!(meter.mean() < 200, "window {window}");
        }
        assert_eq!(meter.best(), 100);
    }

    #[test]
    fn what_the_shard_was_late_is_not_the_devices_time() {
        let mut meter = Meter::default();
        for (token, (took, late)) in
            (0..).zip([(9_000, 8_000), (3_000, 2_000), (50, 900), (999, 0)])
        {
            meter.began(token, 0, Time(0));
            meter.ended(token, Time(took), late);
        }
        assert!(meter.close(Time(WINDOW), WINDOW, 0));
        assert_eq!((meter.mean(), meter.worst()), (750, 1_000));
        meter.began(9, 0, Time(0));
        assert!(!meter.close(Time(WINDOW + 5), WINDOW, 6), "it may have ended long ago");
        assert!(meter.close(Time(WINDOW + 6), WINDOW, 6));
    }

    #[test]
    fn large_operations_do_not_look_slow() {
        assert_eq!(per_operation(1_000, 0), 1_000);
        assert_eq!(per_operation(1_000, 128 << 10), 500);
        assert_eq!(per_operation(u64::MAX, 1 << 40), u64::MAX / ((1 << 23) + 1));
    }

    #[test]
    fn what_is_measured_is_bounded() {
        let mut meter = Meter::default();
        (0..1_000).for_each(|token| meter.began(token, 0, Time(0)));
        (0..1_000).for_each(|token| meter.ended(token, Time(10), 0));
        assert!(meter.close(Time(20), WINDOW, 0));
        assert_eq!(meter.mean(), 10);
        assert!(meter.under_way.is_empty());
    }
}
