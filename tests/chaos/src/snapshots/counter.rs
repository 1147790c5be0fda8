//! A writer of whom every point in time shows what it had done.

use super::{LOAD_BYTES, VOLUME_BYTES};
use crate::nbd::NbdClient;
use anyhow::{Context, Result, bail, ensure};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
/// Blocks that are counted on. They lie far apart, so that the counts of a round go to many groups.
const BLOCKS: u64 = 64;
const STRIDE: u64 = (VOLUME_BYTES - LOAD_BYTES) / BLOCKS;

/// Counts: round after round writes its number into block after block, each when the one before is
/// acknowledged. Any point in time shows at most two numbers, the higher one before the lower.
pub(super) struct Counter {
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
    pub(super) fn start(client: NbdClient) -> Result<Counter> {
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("counter".to_owned())
            .spawn(move || own.count(client))
            .context("a thread for the counter")?;
        Ok(Counter { shared, thread: Some(thread) })
    }

    /// The last round of which the first block is acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// The last round of which anything may have been written.
    pub(super) fn begun(&self) -> u64 {
        self.shared.begun.load(Ordering::SeqCst)
    }

    /// How long each write since the last call took.
    pub(super) fn latencies(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.shared.latencies.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// # Errors
    /// If it has ended.
    pub(super) fn check(&self) -> Result<()> {
        let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        ensure!(!ended, "the counter met an error");
        Ok(())
    }

    /// # Errors
    /// The one that it met.
    pub(super) fn stop(mut self) -> Result<()> {
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
    fn count(&self, mut client: NbdClient) -> Result<()> {
        let mut round: u64 = 0;
        while !self.end.load(Ordering::SeqCst) {
            round += 1;
            self.begun.store(round, Ordering::SeqCst);
            for block in 0..BLOCKS {
                let began = Instant::now();
                client.write(offset_of(block), &round.to_le_bytes().repeat(BLOCK / 8))?;
                let took = began.elapsed();
                if block == 0 {
                    self.acknowledged.store(round, Ordering::SeqCst);
                }
                self.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(took);
            }
        }
        Ok(())
    }
}

fn offset_of(block: u64) -> u64 {
    LOAD_BYTES + block * STRIDE
}

/// The first count that an export shows.
///
/// # Errors
/// If it is no point in time of what was written.
pub(super) fn prefix(client: &mut NbdClient) -> Result<u64> {
    let mut found = Vec::new();
    for block in 0..BLOCKS {
        let data = client.read(offset_of(block), BLOCK as u32)?;
        let (words, _) = data.as_chunks::<8>();
        let first = words.first().context("an empty block")?;
        ensure!(words.iter().all(|word| word == first), "block {block} is torn");
        found.push(u64::from_le_bytes(*first));
    }
    let (first, last) = (found[0], found[found.len() - 1]);
    let falls = found.windows(2).all(|pair| pair[0] >= pair[1]);
    ensure!(falls && first - last <= 1, "it is no point in time: {found:?}");
    Ok(first)
}
