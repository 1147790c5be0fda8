//! The minimum that a volume is guaranteed: which requests are within it, and whether the volume gets it.
//!
//! A request is within the minimum if the generic cell rate algorithm, at the rate of the minimum, lets it begin at
//! once. The volume is behind if over an interval it was not idle, did less than its minimum, and had enough
//! under way that it could have had more: who asks for one request at a time can not have more than its latency
//! allows, however little others do.

use crate::limit::{Bucket, Cost};
use crate::types::RateLimits;
use basalt_wire::frame::Priority;
use basalt_wire::time::Time;
use std::time::Duration;

/// What is measured before it is said that the volume is behind.
const INTERVAL: Duration = Duration::from_millis(100);
/// Requests that an interval must have room for, for the measurement to be one.
const INTERVAL_REQUESTS: u64 = 20;
/// An interval is never longer than this.
const INTERVAL_MAX: Duration = Duration::from_secs(1);
/// The part of an interval in which the volume may be idle.
const IDLE_PART: u32 = 10;
/// What a request takes where nobody is in its way: a minimum can not be asked for with less under way.
const UNHINDERED: Duration = Duration::from_micros(250);

/// A guaranteed minimum, and how it was kept.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Minimum {
    bucket: Bucket,
    /// Requests a second that are aimed at.
    aim: u64,
    began: Time,
    /// Units done in this interval.
    done: u64,
    under_way: u64,
    /// When that changed last; how long nothing was under way, and requests times time.
    changed: Time,
    idle: Duration,
    area: Duration,
    behind: bool,
}

impl Minimum {
    /// The minimum from now on.
    pub fn set(&mut self, now: Time, limits: RateLimits) {
        let iops = limits.iops_min;
        self.bucket.set(iops, 0);
        // A tenth more is aimed at, so that what is had goes up and down above the minimum; a bound comes first.
        let most = if limits.iops_max == 0 { u64::MAX } else { limits.iops_max };
        self.aim = iops.saturating_add(iops / 10).min(most);
        self.bucket.forgive(now);
        self.behind = false;
        self.start(now);
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.bucket.rate() > 0
    }

    /// A request begins. Whether it is within the minimum.
    pub fn begin(&mut self, now: Time, cost: Cost) -> bool {
        self.note(now);
        self.under_way += 1;
        let within = self.bucket.opens_at() <= now;
        if within {
            self.bucket.spend(now, cost.requests());
        }
        within
    }

    /// A request that began ended.
    pub fn end(&mut self, now: Time, cost: Cost) {
        self.note(now);
        self.under_way = self.under_way.saturating_sub(1);
        self.done += cost.requests();
    }

    /// What is said of a request that is within the minimum, or not.
    pub fn priority(&self, within: bool) -> Priority {
        match (within, self.behind) {
            (false, _) => Priority::BestEffort,
            (true, false) => Priority::Guaranteed,
            (true, true) => Priority::Behind,
        }
    }

    /// Counts the time since the last change, and judges an interval that is over.
    fn note(&mut self, now: Time) {
        let passed = now.since(self.changed);
        self.changed = now;
        if self.under_way == 0 {
            self.idle += passed;
        }
        self.area += passed.saturating_mul(u32::try_from(self.under_way).unwrap_or(u32::MAX));
        let length = now.since(self.began);
        if length >= self.interval() {
            let owed = units_in(self.bucket.rate(), length);
            let asked = self.idle <= length / IDLE_PART
                && self.area >= UNHINDERED.saturating_mul(u32::try_from(owed).unwrap_or(u32::MAX));
            let aimed = units_in(self.aim, length);
            self.behind = asked && self.done < aimed - aimed / 20;
            self.start(now);
        }
    }

    fn interval(&self) -> Duration {
        let rate = self.bucket.rate().max(1);
        let room = Duration::from_nanos(INTERVAL_REQUESTS * 1_000_000_000 / rate);
        room.clamp(INTERVAL, INTERVAL_MAX)
    }

    fn start(&mut self, now: Time) {
        (self.began, self.changed) = (now, now);
        (self.done, self.idle, self.area) = (0, Duration::ZERO, Duration::ZERO);
    }
}

/// Units that a rate comes to in a time.
fn units_in(rate: u64, length: Duration) -> u64 {
    let units = u128::from(rate) * length.as_nanos() / 1_000_000_000;
    u64::try_from(units).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::BlockOp;

    fn promised(iops_min: u64) -> RateLimits {
        RateLimits { iops_min, ..RateLimits::default() }
    }

    #[test]
    fn no_more_is_aimed_at_than_the_bound_allows() {
        let mut minimum = Minimum::default();
        minimum.set(Time::ZERO, RateLimits { iops_max: 1000, ..promised(1000) });
        assert_eq!(minimum.aim, 1000);
        minimum.set(Time::ZERO, promised(1000));
        assert_eq!(minimum.aim, 1100);
    }

    fn cost() -> Cost {
        Cost::of(&BlockOp::Read { offset: 0, len: 4096 }).expect("it counts")
    }

    /// A volume with `depth` requests under way of which each takes `takes`, after which it pauses for `pause`,
    /// for two seconds: how many were within the minimum, and whether it is behind.
    fn run(iops: u64, depth: u64, takes: Duration, pause: Duration) -> (u64, bool) {
        let mut minimum = Minimum::default();
        minimum.set(Time::ZERO, promised(iops));
        let (mut now, mut within) = (Time::ZERO, 0);
        while now < Time(2_000_000_000) {
            for _ in 0..depth {
                within += u64::from(minimum.begin(now, cost()));
            }
            now = now + takes;
            (0..depth).for_each(|_| minimum.end(now, cost()));
            now = now + pause;
        }
        (within, is_behind(&minimum))
    }

    fn is_behind(minimum: &Minimum) -> bool {
        minimum.priority(true) == Priority::Behind
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_within_the_minimum_is_as_much_as_it_comes_to() {
        let (within, behind) = run(1000, 8, MS, Duration::ZERO);
        assert!((2000..2110).contains(&within), "{within}");
        assert!(!behind, "8,000 a second are more than 1,000");
    }

    #[test]
    fn who_asks_for_it_and_does_not_get_it_is_behind() {
        assert!(run(1000, 1, 4 * MS, Duration::ZERO).1, "250 a second");
        assert!(run(4000, 4, 2 * MS, Duration::ZERO).1, "2,000 a second");
        assert!(!run(1000, 9, 8 * MS, Duration::ZERO).1, "1,125 a second");
        assert!(
            run(1000, 8, 8 * MS, Duration::ZERO).1,
            "1,000 a second: a little more is aimed at"
        );
    }

    #[test]
    fn who_does_not_ask_for_it_is_not_behind() {
        assert!(!run(1000, 1, MS, 4 * MS).1, "it is idle most of the time");
        assert!(!run(100_000, 1, MS, Duration::ZERO).1, "one at a time can not be so many");
        assert!(!run(0, 1, 50 * MS, Duration::ZERO).1, "it is promised nothing");
    }

    #[test]
    fn what_was_measured_under_one_minimum_says_nothing_of_another() {
        let mut minimum = Minimum::default();
        minimum.set(Time::ZERO, promised(1000));
        minimum.begin(Time::ZERO, cost());
        minimum.end(Time(500_000_000), cost());
        minimum.begin(Time(500_000_000), cost());
        assert!(is_behind(&minimum));
        minimum.set(Time(500_000_001), promised(10));
        assert!(!is_behind(&minimum));
    }
}
