//! Whether to spin for a moment before going to sleep.
//!
//! A sleep and its wake-up cost some 3 to 25 µs of CPU; spinning costs what it lasts. So it pays
//! exactly while the next event usually comes sooner than that. The time from the end of one turn to
//! the next event is averaged; the reactor spins for twice the average, and not at all when that is
//! beyond the bound. Spins that end in vain push the average up, so a reactor that falls idle stops
//! spinning after a few of them; a few sleeps that turn out short bring it back.

use std::time::Duration;

/// The weight of a new gap in the average, as a shift: 1/8.
const SHIFT: u32 = 3;

pub(crate) struct Spinner {
    max: u64,
    /// The average gap, in nanoseconds.
    gap: u64,
}

impl Spinner {
    pub(crate) fn new(max: Duration) -> Spinner {
        let max = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Spinner { max, gap: max.saturating_mul(4) }
    }

    /// How long to spin now; nothing for going to sleep at once.
    pub(crate) fn plan(&self) -> Option<Duration> {
        let wanted = self.gap.saturating_mul(2);
        (self.max > 0 && wanted <= self.max).then(|| Duration::from_nanos(wanted.max(1000)))
    }

    /// The next event came after this time.
    pub(crate) fn note(&mut self, gap: Duration) {
        let gap = u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX);
        // One long pause must not take many short ones to be forgotten.
        let gap = gap.min(self.max.saturating_mul(8));
        self.gap = self.gap - (self.gap >> SHIFT) + (gap >> SHIFT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(30);

    #[test]
    fn it_spins_only_while_events_come_quickly() {
        let mut spinner = Spinner::new(MAX);
        assert_eq!(spinner.plan(), None);
        for _ in 0..30 {
            spinner.note(Duration::from_micros(5));
        }
        let plan = spinner.plan().unwrap();
        assert!(plan >= Duration::from_micros(9) && plan <= MAX, "{plan:?}");
        let mut idle = 0;
        while spinner.plan().is_some() {
            spinner.note(Duration::from_millis(100));
            idle += 1;
        }
        assert!(idle <= 4, "{idle} vain spins");
    }

    #[test]
    fn never_means_never() {
        let mut spinner = Spinner::new(Duration::ZERO);
        for _ in 0..100 {
            spinner.note(Duration::ZERO);
        }
        assert_eq!(spinner.plan(), None);
    }
}
