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
/// Windows in a row after which a slow node is sound: at first, and at most. With windows of a quarter of
/// a second these are 10 seconds and 10 minutes.
const SOUND_AFTER: u32 = 40;
const SOUND_AFTER_MAX: u32 = 2_400;
/// A node that was sound for so long starts anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(1_800);

/// What is thought of one node.
#[derive(Debug)]
pub struct Verdict {
    slow_since: Option<Time>,
    sound_since: Option<Time>,
    /// Windows in a row that speak for a change.
    run: u32,
    /// Sound windows that it takes to be sound.
    patience: u32,
}

impl Default for Verdict {
    fn default() -> Verdict {
        Verdict { slow_since: None, sound_since: None, run: 0, patience: SOUND_AFTER }
    }
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
        self.run = if speaks_for_change { self.run + 1 } else { 0 };
        match self.slow_since {
            None if self.run >= SLOW_AFTER => {
                mark!("node found slow");
                self.slow_since = Some(now);
                self.run = 0;
                self.patience = match self.sound_since.take() {
                    Some(since) if now.since(since) < FORGIVEN_AFTER => {
                        mark!("node found slow again");
                        (self.patience * 2).min(SOUND_AFTER_MAX)
                    }
                    _ => SOUND_AFTER,
                };
            }
            Some(_) if self.run >= self.patience => {
                mark!("slow node is sound again");
                self.slow_since = None;
                self.sound_since = Some(now);
                self.run = 0;
            }
            _ => {}
        }
    }

    /// Since when the node is slow.
    pub fn slow_since(&self) -> Option<Time> {
        self.slow_since
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
                let before = self.verdict.slow_since().is_some();
                self.verdict.window(nanos, others, self.now);
                self.turns += u32::from(before != self.verdict.slow_since().is_some());
            }
            self.verdict.slow_since().is_some()
        }
    }

    #[test]
    fn slow_within_a_second_and_sound_after_ten() {
        let mut watch = Watch::new();
        assert!(!watch.windows(1, 7 * MS, 70_000));
        assert!(watch.windows(1, 7 * MS, 70_000));
        assert!(watch.windows(39, 70_000, 70_000));
        assert!(!watch.windows(1, 70_000, 70_000));
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
            let slow = watch.verdict.slow_since().is_some();
            watch.windows(1, if slow { MS } else { 70 * MS }, MS);
        }
        assert!(watch.turns <= 2 * (144 + 6), "{} changes in a day", watch.turns);
        assert!(watch.turns > 100, "it was not the worst: {} changes", watch.turns);
    }
}
