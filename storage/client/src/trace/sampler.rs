//! Which requests are traced: one in a period, and which one of those in it does not depend on when it came.
//!
//! Who is first after a pause waits for nobody, so that the first of each period would tell of a queue that is always
//! empty. So a number is drawn, of requests to let pass, about as many as came in the period before.

use basalt_wire::time::Time;
use std::time::Duration;

/// The most requests that are let pass.
const PASSED_MAX: u64 = 1 << 20;
/// Periods after which a request is traced however few came.
const PATIENCE: u32 = 10;

/// Decides request by request.
#[derive(Debug)]
pub(crate) struct Sampler {
    period: Duration,
    /// Requests that pass before the next that is traced, and those that passed since the last.
    left: u64,
    passed: u64,
    last: Time,
    overdue: Time,
    state: u64,
}

impl Sampler {
    /// Traces a request in each period, or all of them if it is no time at all. The same seed draws the same.
    pub fn new(period: Duration, seed: u64, now: Time) -> Sampler {
        Sampler { period, left: 0, passed: 0, last: now, overdue: now, state: seed }
    }

    /// Whether the request that comes now is traced.
    #[inline]
    pub fn takes(&mut self, now: Time) -> bool {
        if self.left > 0 && now < self.overdue {
            self.left -= 1;
            self.passed += 1;
            return false;
        }
        self.draw(now)
    }

    #[cold]
    fn draw(&mut self, now: Time) -> bool {
        if self.period.is_zero() {
            return true;
        }
        let since = now.since(self.last);
        // More came than were expected: none more than a few times in a period.
        let early = since < self.period / 4 && self.passed > 0;
        let since = since.max(self.period / 4);
        let came = u128::from(self.passed + 1);
        let expected = came * self.period.as_nanos() / since.as_nanos();
        let expected = u64::try_from(expected).unwrap_or(u64::MAX).clamp(1, PASSED_MAX);
        self.left = self.random() % (2 * expected - 1);
        self.overdue = now + self.period * PATIENCE;
        if !early {
            (self.last, self.passed) = (now, 0);
        }
        !early
    }

    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(100);

    /// Requests traced in ten seconds, of `burst` at once and every so many microseconds, by their place in it.
    fn traced(burst: usize, every_us: u64) -> Vec<u64> {
        let mut sampler = Sampler::new(PERIOD, 7, Time::ZERO);
        let mut places = vec![0; burst];
        for turn in 0..10_000_000 / every_us {
            let now = Time(turn * every_us * 1_000);
            for place in &mut places {
                *place += u64::from(sampler.takes(now));
            }
        }
        places
    }

    #[test]
    fn about_one_in_a_period_is_traced() {
        for (burst, every) in [(1, 10), (1, 1_000), (32, 100), (1, 90_000)] {
            let count: u64 = traced(burst, every).iter().sum();
            assert!((50..=200).contains(&count), "{count} of {burst} each {every} us");
        }
        // Who comes seldom is traced nearly each time.
        let count: u64 = traced(1, 500_000).iter().sum();
        assert!((18..=20).contains(&count), "{count}");
    }

    #[test]
    fn no_place_in_a_burst_is_preferred() {
        let places = traced(16, 20_000);
        let (most, all) = (*places.iter().max().expect("some"), places.iter().sum::<u64>());
        assert!(most * 4 < all, "{places:?}");
        assert!(places.iter().filter(|count| **count > 0).count() > 8, "{places:?}");
    }

    #[test]
    fn with_no_period_all_are() {
        let mut sampler = Sampler::new(Duration::ZERO, 7, Time::ZERO);
        assert!((0..100).all(|_| sampler.takes(Time(5))));
    }
}
