//! Bounds on what a session may do in a second, and what it may do at once after it did less.
//!
//! Two bounds, on requests and on bytes, each by the generic cell rate algorithm (ITU-T I.371): one time says
//! until when
//! what was done is paid for at the rate of the bound. A request may begin while that time is no further ahead than
//! the burst takes; what it costs moves the time on. So a request larger than the burst is not refused for ever, and
//! what follows waits for it. There is no tick: the time at which the next request may begin is known exactly.

use crate::types::{BlockOp, RateLimits};
use basalt_wire::time::Time;
use std::time::Duration;

/// Bytes of a request that count as one.
const REQUEST_BYTES: u64 = 32 << 10;
/// The burst of a bound for which none is given, as a part of a second.
const BURST_PART: u64 = 10;
const SECOND: u128 = 1_000_000_000;

/// What a request counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    requests: u64,
    bytes: u64,
}

impl Cost {
    /// Requests that it counts as.
    pub fn requests(self) -> u64 {
        self.requests
    }

    /// What a request counts; nothing for one that no bound is meant for.
    pub fn of(op: &BlockOp) -> Option<Cost> {
        let moved = |bytes: u64| Cost { requests: bytes.div_ceil(REQUEST_BYTES).max(1), bytes };
        match op {
            BlockOp::Read { len, .. } => Some(moved(u64::from(*len))),
            BlockOp::Write { data, .. } => Some(moved(data.len() as u64)),
            // It moves no data, however long it is.
            BlockOp::Unmap { .. } => Some(Cost { requests: 1, bytes: 0 }),
            _ => None,
        }
    }
}

/// One bound.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    /// Units a second; 0: no bound.
    rate: u64,
    /// How far what was done may be ahead.
    tolerance: Duration,
    /// Until when it is paid for.
    paid_until: Time,
}

impl Bucket {
    pub fn set(&mut self, rate: u64, burst: u64) {
        let burst = if burst == 0 { (rate / BURST_PART).max(1) } else { burst };
        self.rate = rate;
        // The first of a burst begins when everything is paid for.
        self.tolerance = if rate == 0 { Duration::ZERO } else { time_of(burst - 1, rate) };
    }

    /// Units a second; 0: no bound.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// A debt made under another rate is not carried far into this one.
    pub fn forgive(&mut self, now: Time) {
        self.paid_until = self.paid_until.min(now + self.tolerance.max(A_SECOND));
    }

    /// When the next request may begin.
    pub fn opens_at(&self) -> Time {
        let tolerance = u64::try_from(self.tolerance.as_nanos()).unwrap_or(u64::MAX);
        match self.rate {
            0 => Time::ZERO,
            _ => Time(self.paid_until.0.saturating_sub(tolerance)),
        }
    }

    pub fn spend(&mut self, now: Time, units: u64) {
        if self.rate > 0 {
            self.paid_until = self.paid_until.max(now) + time_of(units, self.rate);
        }
    }
}

/// How long so many units take at a rate.
fn time_of(units: u64, rate: u64) -> Duration {
    let nanos = u128::from(units) * SECOND / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The bounds of a session, and what was done of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limiter {
    requests: Bucket,
    bytes: Bucket,
}

impl Limiter {
    /// The bounds from now on. What was done before stays done.
    pub fn set(&mut self, now: Time, limits: RateLimits) {
        self.requests.set(limits.iops_max, limits.iops_burst);
        self.bytes.set(limits.bandwidth_max, limits.bandwidth_burst);
        for bucket in [&mut self.requests, &mut self.bytes] {
            bucket.forgive(now);
        }
    }

    /// Whether there is any bound.
    pub fn bounds(&self) -> bool {
        self.requests.rate > 0 || self.bytes.rate > 0
    }

    /// When the next request may begin.
    pub fn opens_at(&self) -> Time {
        self.requests.opens_at().max(self.bytes.opens_at())
    }

    /// A request begins.
    pub fn spend(&mut self, now: Time, cost: Cost) {
        self.requests.spend(now, cost.requests);
        self.bytes.spend(now, cost.bytes);
    }
}

const A_SECOND: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limiter(iops_max: u64, iops_burst: u64, bandwidth_max: u64) -> Limiter {
        let mut limiter = Limiter::default();
        let limits = RateLimits { iops_max, iops_burst, bandwidth_max, ..RateLimits::default() };
        limiter.set(Time::ZERO, limits);
        limiter
    }

    fn cost(bytes: u64) -> Cost {
        Cost::of(&BlockOp::Read { offset: 0, len: bytes as u32 }).expect("it counts")
    }

    /// How many requests begin in so many milliseconds if there are always more.
    fn begun(limiter: &mut Limiter, from_ms: u64, ms: u64, bytes: u64) -> u64 {
        let mut now = Time(from_ms * 1_000_000);
        let end = Time((from_ms + ms) * 1_000_000);
        let mut count = 0;
        loop {
            now = now.max(limiter.opens_at());
            if now >= end {
                return count;
            }
            limiter.spend(now, cost(bytes));
            count += 1;
        }
    }

    #[test]
    fn requests_are_counted_by_their_size() {
        assert_eq!(cost(512).requests, 1);
        assert_eq!(cost(32 << 10).requests, 1);
        assert_eq!(cost((32 << 10) + 1).requests, 2);
        assert_eq!(cost(1 << 20), Cost { requests: 32, bytes: 1 << 20 });
        let unmap = Cost::of(&BlockOp::Unmap { offset: 0, len: 1 << 40 });
        assert_eq!(unmap, Some(Cost { requests: 1, bytes: 0 }));
        assert_eq!(Cost::of(&BlockOp::Flush), None);
    }

    #[test]
    fn a_bound_holds_and_bursts_are_paid_for() {
        let mut limiter = limiter(1000, 500, 0);
        // The burst, and then the rate.
        assert_eq!(begun(&mut limiter, 0, 1000, 4096), 500 + 999);
        assert_eq!(begun(&mut limiter, 1000, 1000, 4096), 1000);
        // After a rest the burst is there again, and no more than that.
        assert_eq!(begun(&mut limiter, 60_000, 1000, 4096), 500 + 999);
    }

    #[test]
    fn both_bounds_hold() {
        let mut limiter = limiter(1000, 1, 1 << 20);
        let in_ten_seconds = begun(&mut limiter, 0, 10_000, 64 << 10);
        assert!((160..165).contains(&in_ten_seconds), "{in_ten_seconds}");
        let mut limiter = super::tests::limiter(100, 1, 1 << 30);
        let in_ten_seconds = begun(&mut limiter, 0, 10_000, 64 << 10);
        assert!((500..=502).contains(&in_ten_seconds), "{in_ten_seconds}");
    }

    #[test]
    fn a_request_larger_than_the_burst_begins_and_the_next_waits() {
        let mut limiter = limiter(0, 0, 1 << 20);
        assert_eq!(limiter.opens_at(), Time::ZERO);
        limiter.spend(Time::ZERO, cost(32 << 20));
        let opens = limiter.opens_at().since(Time::ZERO);
        assert!(opens > Duration::from_secs(31) && opens <= Duration::from_secs(32), "{opens:?}");
        // A larger bound does not have to pay the debt of a smaller one.
        limiter.set(Time::ZERO, RateLimits { bandwidth_max: 1 << 30, ..RateLimits::default() });
        assert!(limiter.opens_at().since(Time::ZERO) <= Duration::from_secs(1));
        limiter.set(Time::ZERO, RateLimits::default());
        assert!(!limiter.bounds() && limiter.opens_at() == Time::ZERO);
    }

    proptest! {
        /// Whatever comes, and however it is cut, in no span more is done than rate and burst allow, but for the one
        /// request that used the burst up.
        #[test]
        fn no_span_has_more_than_its_share(
            rate in 1..100_000u64,
            burst in 1..1000u64,
            gaps in proptest::collection::vec(0..50_000_000u64, 1..200),
        ) {
            let mut limiter = limiter(rate, burst, 0);
            let (mut now, mut done) = (Time::ZERO, Vec::new());
            for gap in gaps {
                now = Time(now.0 + gap).max(limiter.opens_at());
                limiter.spend(now, cost(4096));
                done.push(now);
            }
            for (first, from) in done.iter().enumerate() {
                for (last, to) in done.iter().enumerate().skip(first) {
                    let span = to.since(*from).as_secs_f64();
                    let allowed = span * rate as f64 + burst as f64 + 1.0;
                    prop_assert!((last - first) as f64 <= allowed + 1e-3, "{} in {span} s", last - first + 1);
                }
            }
        }
    }
}
