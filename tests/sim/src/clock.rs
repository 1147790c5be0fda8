//! Clocks of nodes and clients: each has its own origin and its own speed.

use crate::queue::Instant;
use basalt_wire::time::Time;

/// A monotonic clock that need not run as fast as the world does.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    shown: u64,
    rate: f64,
}

impl Clock {
    /// A clock that shows `shown` at `origin` and then runs at `rate`.
    pub fn new(origin: Instant, shown: u64, rate: f64) -> Clock {
        Clock { origin, shown, rate }
    }

    /// What it shows at an instant.
    pub fn read(&self, at: Instant) -> Time {
        let passed = at.saturating_sub(self.origin);
        let passed = if self.rate == 1.0 { passed } else { (passed as f64 * self.rate) as u64 };
        Time(self.shown + passed)
    }

    /// The first instant at which it shows `time` or later.
    pub fn when(&self, time: Time) -> Instant {
        let ahead = time.0.saturating_sub(self.shown);
        if self.rate == 1.0 {
            return self.origin.saturating_add(ahead);
        }
        let mut at = self.origin.saturating_add((ahead as f64 / self.rate) as u64);
        while self.read(at) < time && at < u64::MAX / 2 {
            at += 1;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_not_early() {
        for rate in [0.5, 0.999, 1.0, 1.5] {
            let clock = Clock::new(1_000, 77, rate);
            for shown in [0, 77, 78, 1_000_003, 9_000_000_001] {
                let at = clock.when(Time(shown));
                assert!(clock.read(at) >= Time(shown), "rate {rate} shown {shown}");
                assert!(at <= 1_000 || clock.read(at - 2) < Time(shown.max(78)));
            }
        }
    }
}
