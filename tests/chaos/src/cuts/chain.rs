//! A writer that goes from volume to volume: any point in time of all of them shows what it had done.

use crate::nbd::NbdClient;
use anyhow::{Context, Result, bail, ensure};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(super) const BLOCK: usize = 4096;
/// Blocks of each volume that are counted on, two in each chunk.
pub(super) const BLOCKS: u64 = 16;
pub(super) const STRIDE: u64 = 2 << 20;

/// Counts: round after round writes its number into a block of one volume, then of the next, and so on,
/// each when the one before is acknowledged. Any point in time shows at most two numbers, the higher before
/// the lower.
pub(super) struct Chain {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    end: AtomicBool,
    begun: AtomicU64,
    acknowledged: AtomicU64,
    latencies: Mutex<Vec<Duration>>,
}

impl Chain {
    /// Begins, over one connection to each volume.
    pub(super) fn start(volumes: Vec<NbdClient>) -> Result<Chain> {
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("chain".to_owned())
            .spawn(move || own.count(volumes))
            .context("a thread for the chain")?;
        Ok(Chain { shared, thread: Some(thread) })
    }

    /// The last round whose first write is acknowledged.
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
        ensure!(!ended, "the chain met an error");
        Ok(())
    }

    /// # Errors
    /// The one that it met.
    pub(super) fn stop(mut self) -> Result<()> {
        self.shared.end.store(true, Ordering::SeqCst);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.context("the chain"),
            _ => bail!("the chain panicked"),
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn count(&self, mut volumes: Vec<NbdClient>) -> Result<()> {
        let mut round: u64 = 0;
        while !self.end.load(Ordering::SeqCst) {
            round += 1;
            self.begun.store(round, Ordering::SeqCst);
            let data = round.to_le_bytes().repeat(BLOCK / 8);
            for block in 0..BLOCKS {
                for (at, volume) in volumes.iter_mut().enumerate() {
                    let began = Instant::now();
                    volume.write(block * STRIDE, &data)?;
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

/// The first count that images of the volumes show, in the order in which they are written.
///
/// # Errors
/// If they are no one point in time.
pub(super) fn prefix(images: &[Vec<u8>]) -> Result<u64> {
    let mut found = Vec::new();
    for block in 0..BLOCKS {
        for (volume, image) in images.iter().enumerate() {
            let at = (block * STRIDE) as usize;
            let (words, _) = image[at..at + BLOCK].as_chunks::<8>();
            let same = words.iter().all(|word| *word == words[0]);
            ensure!(same, "block {block} of volume {volume} is torn");
            found.push(u64::from_le_bytes(words[0]));
        }
    }
    let (first, last) = (found[0], found[found.len() - 1]);
    let falls = found.windows(2).all(|pair| pair[0] >= pair[1]);
    ensure!(falls && first - last <= 1, "they are no one point in time: {found:?}");
    Ok(first)
}
