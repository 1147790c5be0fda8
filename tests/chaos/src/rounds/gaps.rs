//! Stalls, from fio's list of completions.
//!
//! A stall is the longest time in which no request of fio was completed although it offered some. fio
//! always does while it writes: it sends a request each millisecond as long as fewer than its depth
//! are unanswered, so that a group which answers nothing soon has all of them. The slowest request
//! stands beside it; it is as long or longer.

use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

/// What the completions after a moment tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// The longest time without a completion that ended after the moment.
    pub stall: Duration,
    /// When it began, in milliseconds from the moment on; before it if negative.
    pub began_ms: i64,
    /// The slowest of the requests that were completed after the moment.
    pub slowest: Duration,
    /// The longest time without a completion until the moment.
    pub before: Duration,
}

/// Reads a file of lines `time since 1970 in ms, latency in ns, ...`.
///
/// # Errors
/// If it can not be read, or is no such file.
pub fn read(path: &Path, moment_ms: i64) -> Result<Gaps> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut all = Vec::new();
    for line in text.lines() {
        let mut words = line.split(',').map(str::trim);
        let mut number = || words.next().and_then(|word| word.parse::<i64>().ok());
        let (Some(at), Some(latency)) = (number(), number()) else {
            anyhow::bail!("{}: no completion: {line}", path.display());
        };
        all.push((at, latency));
    }
    Ok(gaps(&mut all, moment_ms))
}

fn gaps(completions: &mut [(i64, i64)], moment: i64) -> Gaps {
    completions.sort_unstable();
    let mut found = Gaps::default();
    for pair in completions.windows(2) {
        let (from, to) = (pair[0].0, pair[1].0);
        let gap = duration((to - from) * 1_000_000);
        if to <= moment {
            found.before = found.before.max(gap);
            continue;
        }
        if gap > found.stall {
            (found.stall, found.began_ms) = (gap, from - moment);
        }
        found.slowest = found.slowest.max(duration(pair[1].1));
    }
    found
}

fn duration(nanos: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_after_the_fault_is_the_stall() {
        // Completions at 0, 50, 100, 102, 402 and 405 ms; the fault at 101.
        let mut all: Vec<(i64, i64)> =
            [405, 0, 50, 402, 102, 100].iter().map(|at| (*at, 1_000_000)).collect();
        all[3].1 = 310_000_000;
        let found = gaps(&mut all, 101);
        let ms = Duration::from_millis;
        assert_eq!((found.stall, found.began_ms), (ms(300), 1));
        assert_eq!((found.slowest, found.before), (ms(310), ms(50)));
        assert_eq!(gaps(&mut [], 5), Gaps::default());
    }
}
