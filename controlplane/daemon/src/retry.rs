//! When to try again to serve a volume that could not be served.

use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// The pause after the first failure; it doubles with every further one.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30);
/// A volume that was served for so long begins anew.
const HEALTHY: Duration = Duration::from_secs(60);

/// One volume's failures in a row.
struct Retry {
    failures: u32,
    not_before: Instant,
}

/// Volumes whose last attempt failed, by number.
#[derive(Default)]
pub struct Retries {
    volumes: BTreeMap<u64, Retry>,
}

impl Retries {
    /// An attempt failed, or what it led to has ended. The pause is drawn between half of its length
    /// and all of it, so that volumes which failed together are not tried together. `random` is any
    /// number. Gives the pause.
    pub fn failed(&mut self, volume: u64, now: Instant, random: u64) -> Duration {
        let entry = self.volumes.entry(volume);
        let retry = entry.or_insert(Retry { failures: 0, not_before: now });
        if now.saturating_duration_since(retry.not_before) >= HEALTHY {
            retry.failures = 0;
        }
        let pause = FIRST.saturating_mul(1 << retry.failures.min(10)).min(LONGEST);
        let pause = pause.mul_f64(0.5 + (random % 1024) as f64 / 2048.0);
        retry.failures += 1;
        retry.not_before = now + pause;
        pause
    }

    /// Whether the volume may be tried now.
    pub fn may(&self, volume: u64, now: Instant) -> bool {
        self.volumes.get(&volume).is_none_or(|retry| retry.not_before <= now)
    }

    /// When the first of those that wait may be tried.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.volumes.values().map(|retry| retry.not_before).filter(|at| *at > now).min()
    }

    /// Whether one of those that waited may be tried now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.volumes.values().any(|retry| retry.not_before <= now)
    }

    /// Forgets volumes that are not wanted any more.
    pub fn retain(&mut self, wanted: impl Fn(u64) -> bool) {
        self.volumes.retain(|volume, _| wanted(*volume));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_end_with_health() {
        let (mut retries, mut now) = (Retries::default(), Instant::now());
        assert!(retries.may(7, now));
        let mut last = Duration::ZERO;
        for _ in 0..12 {
            let pause = retries.failed(7, now, 0);
            assert!(pause >= last && pause <= LONGEST, "{pause:?} after {last:?}");
            assert!(!retries.may(7, now) && retries.may(8, now));
            assert_eq!(retries.next(now), Some(now + pause));
            now += pause;
            assert!(retries.may(7, now) && retries.next(now).is_none());
            last = pause;
        }
        assert_eq!(last, LONGEST / 2, "random 0 is the shortest draw");
        assert!(retries.failed(7, now + HEALTHY, 1023) < FIRST, "it was well for long enough");
        retries.retain(|_| false);
        assert!(retries.may(7, now));
    }
}
