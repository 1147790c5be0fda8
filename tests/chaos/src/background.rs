//! Random overwrites and reads on a thread of their own, while something else is done to the cluster.

use crate::load::Load;
use anyhow::{Context, Result, anyhow};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The load and how long each of its writes took.
pub(crate) type Ended = (Load, Vec<Duration>);

/// A load that goes on until it is told to stop.
pub(crate) struct Background {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Ended>>,
}

impl Background {
    /// Begins: so many writes and then so many reads, again and again.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(crate) fn start(mut load: Load, (writes, reads): (u64, u64)) -> Result<Background> {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let thread = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || {
                let mut took = Vec::new();
                while !asked.load(Ordering::Relaxed) {
                    took.extend(load.overwrite(writes)?.1);
                    load.sample(reads)?;
                }
                Ok((load, took))
            })
            .context("a thread for the load")?;
        Ok(Background { stop, thread })
    }

    /// Ends it.
    ///
    /// # Errors
    /// The one that it met: a request that failed, or a block that is not what was written last.
    pub(crate) fn stop(self) -> Result<Ended> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the load panicked"))?
    }
}
