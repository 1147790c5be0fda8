//! Whether a node is slow: found quickly, taken back slowly, and the slower the more often it was found.

use crate::mark;
use basalt_wire::time::Time;
use std::time::Duration;

/// How many times slower than others a node must be.
const FACTOR: u64 = 8;
/// And by how much. A shard hears of a device's end only in its next turn, and turns of a busy leader
/// take longer than those of its followers.
const MARGIN_NANOS: u64 = 2_000_000;
/// At most so many times slower, a node that was slow is sound.
const SOUND_FACTOR: u64 = 3;
/// Windows in a row after which a node is slow. The figures change only when most of the latest windows
/// do, so that it takes five in all.
const SLOW_AFTER: u32 = 2;
/// Windows in a row after which a slow node is sound: two seconds, with windows of a quarter of one.
const SOUND_AFTER: u32 = 8;
/// Windows in a row without news after which a slow node counts as sound: five seconds. What nobody
/// measures any more is not known to be slow.
const STALE_AFTER: u32 = 20;
/// A node that was slow is trusted with leadership so long after it became sound: at first, and at most. It
/// doubles each time that it is found slow again.
const PROBATION_MIN: Duration = Duration::from_secs(8);
const PROBATION_MAX: Duration = Duration::from_secs(600);
/// A node that was sound for so long starts anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(1_800);

/// What is thought of one node.
#[derive(Debug, Default)]
pub struct Verdict {
    slow_since: Option<Time>,
    /// When it was found sound last, after it had been slow.
    sound_since: Option<Time>,
    /// Windows in a row that speak for a change.
    run: u32,
    /// Windows in a row that brought no news.
    silent: u32,
    /// How long it is not trusted after it is sound.
    probation: Duration,
}

/// Whether one figure is so much above another that it matters.
pub fn much_slower(nanos: u64, others: u64) -> bool {
    nanos >= others.saturating_mul(FACTOR) && nanos - others >= MARGIN_NANOS
}

fn sound(nanos: u64, others: u64) -> bool {
    nanos <= others.saturating_mul(SOUND_FACTOR) || nanos <= others.saturating_add(MARGIN_NANOS / 2)
}

impl Verdict {
    /// Takes a window's figures: the node's own, and what the others offer.
    pub fn window(&mut self, nanos: u64, others: u64, now: Time) {
        let speaks_for_change = match self.slow_since {
            None => much_slower(nanos, others),
            Some(_) => sound(nanos, others),
        };
        self.silent = 0;
        self.run = if speaks_for_change { self.run + 1 } else { 0 };
        match self.slow_since {
            None if self.run >= SLOW_AFTER => self.find_slow(now),
            Some(_) if self.run >= SOUND_AFTER => self.find_sound(now),
            _ => {}
        }
    }

    /// Takes a window in which nothing was heard of the node.
    pub fn silence(&mut self, now: Time) {
        self.silent = self.silent.saturating_add(1);
        if self.silent >= STALE_AFTER {
            self.rest(now);
        }
    }

    /// Nobody measures any more: what was slow is not known to be so now.
    pub fn rest(&mut self, now: Time) {
        self.run = 0;
        if self.slow_since.is_some() {
            mark!("verdict of slowness is too old");
            self.find_sound(now);
        }
    }

    fn find_slow(&mut self, now: Time) {
        mark!("node found slow");
        self.slow_since = Some(now);
        self.run = 0;
        self.probation = match self.sound_since.take() {
            Some(since) if now.since(since) < FORGIVEN_AFTER => {
                mark!("node found slow again");
                (self.probation * 2).min(PROBATION_MAX)
            }
            _ => PROBATION_MIN,
        };
    }

    fn find_sound(&mut self, now: Time) {
        mark!("slow node is sound again");
        self.slow_since = None;
        self.sound_since = Some(now);
        self.run = 0;
    }

    /// Since when the node is slow.
    pub fn slow_since(&self) -> Option<Time> {
        self.slow_since
    }

    /// Whether it was sound for long enough to lead again.
    pub fn is_trusted(&self, now: Time) -> bool {
        let proven = self.sound_since.is_none_or(|since| now >= since + self.probation);
        self.slow_since.is_none() && proven
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    struct Watch {
        verdict: Verdict,
        now: Time,
        turns: u32,
    }

    impl Watch {
        fn new() -> Watch {
            Watch { verdict: Verdict::default(), now: Time(0), turns: 0 }
        }

        fn windows(&mut self, count: u32, nanos: u64, others: u64) -> bool {
            for _ in 0..count {
                self.now = self.now + Duration::from_millis(250);
                let before = self.verdict.is_trusted(self.now);
                self.verdict.window(nanos, others, self.now);
                self.turns += u32::from(before != self.verdict.is_trusted(self.now));
            }
            self.verdict.slow_since().is_some()
        }
    }

    #[test]
    fn slow_within_a_second_sound_after_two_and_trusted_after_ten() {
        let mut watch = Watch::new();
        assert!(!watch.windows(1, 7 * MS, 70_000));
        assert!(watch.windows(1, 7 * MS, 70_000));
        assert!(watch.windows(7, 70_000, 70_000));
        assert!(!watch.windows(1, 70_000, 70_000));
        watch.windows(31, 70_000, 70_000);
        assert!(!watch.verdict.is_trusted(watch.now));
        watch.windows(1, 70_000, 70_000);
        assert!(watch.verdict.is_trusted(watch.now));
    }

    #[test]
    fn a_verdict_without_news_ends_and_is_no_trust() {
        let mut watch = Watch::new();
        assert!(watch.windows(2, 7 * MS, 70_000));
        for _ in 0..STALE_AFTER - 1 {
            watch.verdict.silence(watch.now);
        }
        assert!(watch.windows(1, 7 * MS, 70_000), "this was news");
        for _ in 0..STALE_AFTER {
            assert!(watch.verdict.slow_since().is_some());
            watch.verdict.silence(watch.now);
        }
        assert!(watch.verdict.slow_since().is_none() && !watch.verdict.is_trusted(watch.now));
        assert!(watch.verdict.is_trusted(watch.now + PROBATION_MIN));
        assert!(!watch.windows(1, 7 * MS, 70_000));
        assert!(watch.windows(1, 7 * MS, 70_000), "it is found again as quickly");
        watch.verdict.rest(watch.now);
        assert!(!watch.verdict.is_trusted(watch.now + PROBATION_MIN), "and trusted later");
    }

    #[test]
    fn what_does_not_matter_or_is_shared_is_not_slow() {
        let mut watch = Watch::new();
        assert!(!watch.windows(100, 200_000, 20_000), "ten times nothing is nothing");
        assert!(!watch.windows(100, 500 * MS, 400 * MS), "all are slow");
        assert!(!watch.windows(100, 14 * MS, 2 * MS), "seven times");
        for _ in 0..100 {
            assert!(!watch.windows(1, 900 * MS, MS), "not for long enough");
            assert!(!watch.windows(1, MS, MS));
        }
    }

    #[test]
    fn who_flaps_is_slow_for_longer_and_longer() {
        let mut watch = Watch::new();
        // An hour of four seconds slow and eleven seconds fast.
        for _ in 0..240 {
            watch.windows(16, 70 * MS, MS);
            watch.windows(44, MS, MS);
        }
        assert!(watch.turns <= 3, "{} changes in an hour", watch.turns);
        // A day of the worst that can be done: slow whenever it was found sound, and the other way round.
        let mut watch = Watch::new();
        while watch.now < Time(0) + Duration::from_secs(86_400) {
            let trusted = watch.verdict.is_trusted(watch.now);
            watch.windows(1, if trusted { 70 * MS } else { MS }, MS);
        }
        assert!(watch.turns <= 2 * (144 + 6), "{} changes in a day", watch.turns);
        assert!(watch.turns > 100, "it was not the worst: {} changes", watch.turns);
    }
}
