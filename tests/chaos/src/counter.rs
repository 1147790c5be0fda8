//! A writer of whom every point in time of all that it writes to shows what it had done.

use crate::nbd::NbdClient;
use anyhow::{Context, Result, bail, ensure};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a place.
pub(crate) const BLOCK: usize = 4096;

/// Counts: round after round writes its number into block after block, and at each into one volume after the
/// other, each when the one before is acknowledged. Any point in time shows at most two numbers, the higher one
/// before the lower.
pub(crate) struct Counter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    end: AtomicBool,
    /// The round whose first write was sent last, and the last round that is acknowledged in its first block.
    begun: AtomicU64,
    acknowledged: AtomicU64,
    latencies: Mutex<Vec<Duration>>,
}

impl Counter {
    /// Begins, over one connection to each volume, with blocks at these offsets.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(crate) fn start(volumes: Vec<NbdClient>, offsets: Vec<u64>) -> Result<Counter> {
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("counter".to_owned())
            .spawn(move || own.count(volumes, &offsets))
            .context("a thread for the counter")?;
        Ok(Counter { shared, thread: Some(thread) })
    }

    /// The last round whose first write is acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// The last round of which anything may have been written.
    pub(crate) fn begun(&self) -> u64 {
        self.shared.begun.load(Ordering::SeqCst)
    }

    /// How long each write since the last call took.
    pub(crate) fn latencies(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.shared.latencies.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// # Errors
    /// If it has ended.
    pub(crate) fn check(&self) -> Result<()> {
        let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        ensure!(!ended, "the counter met an error");
        Ok(())
    }

    /// # Errors
    /// The one that it met.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.shared.end.store(true, Ordering::SeqCst);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.context("the counter"),
            _ => bail!("the counter panicked"),
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn count(&self, mut volumes: Vec<NbdClient>, offsets: &[u64]) -> Result<()> {
        let mut round: u64 = 0;
        while !self.end.load(Ordering::SeqCst) {
            round += 1;
            self.begun.store(round, Ordering::SeqCst);
            let data = round.to_le_bytes().repeat(BLOCK / 8);
            for (block, offset) in offsets.iter().enumerate() {
                for (at, volume) in volumes.iter_mut().enumerate() {
                    let began = Instant::now();
                    volume.write(*offset, &data)?;
                    let took = began.elapsed();
                    if (block, at) == (0, 0) {
                        self.acknowledged.store(round, Ordering::SeqCst);
                    }
                    self.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(took);
                }
            }
        }
        Ok(())
    }
}

/// The first count that blocks show, in the order in which they are written.
///
/// # Errors
/// If they are no point in time of what was written.
pub(crate) fn prefix<'a>(blocks: impl IntoIterator<Item = &'a [u8]>) -> Result<u64> {
    let mut found = Vec::new();
    for (number, block) in blocks.into_iter().enumerate() {
        let (words, _) = block.as_chunks::<8>();
        let first = words.first().context("an empty block")?;
        ensure!(words.iter().all(|word| word == first), "block {number} is torn");
        found.push(u64::from_le_bytes(*first));
    }
    let (first, last) = (found.first().context("no blocks")?, found[found.len() - 1]);
    let falls = found.windows(2).all(|pair| pair[0] >= pair[1]);
    ensure!(falls && first - last <= 1, "it is no point in time: {found:?}");
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(counts: &[u64]) -> Result<u64> {
        let blocks: Vec<Vec<u8>> = counts.iter().map(|n| n.to_le_bytes().repeat(8)).collect();
        prefix(blocks.iter().map(Vec::as_slice))
    }

    #[test]
    fn a_point_in_time_is_told_from_what_is_none() {
        assert_eq!(of(&[7, 7, 7]).unwrap(), 7);
        assert_eq!(of(&[8, 7, 7]).unwrap(), 8);
        for none in [&[7, 8, 7][..], &[7, 7, 8], &[9, 8, 7], &[9, 7, 7], &[]] {
            assert!(of(none).is_err(), "{none:?}");
        }
        let mut torn = 7_u64.to_le_bytes().repeat(8);
        torn[9] = 1;
        assert!(prefix([torn.as_slice()]).is_err());
    }
}
