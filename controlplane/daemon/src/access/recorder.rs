//! What becomes of a call is recorded, allowed or denied.
//!
//! A record is with the system before the call is answered, and on the disk within a second: a process that is
//! killed loses none, a power cut those of the last second. A record that can not be written stops no call: the
//! log says so, and the next record tells how many are missing.

use basalt_security::audit::{Call, Log};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Calls of unknown callers that are recorded at once, and in a second: they must not push out what counts.
const STRANGERS_MAX: f64 = 100.0;
const STRANGERS_A_SECOND: f64 = 10.0;
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The records of a node.
pub struct Recorder {
    folder: PathBuf,
    state: Mutex<State>,
}

struct State {
    log: Log,
    /// Strangers that may be recorded now, as of a moment.
    allowance: (f64, Instant),
    /// Calls that were not recorded since the last record.
    suppressed: u64,
}

impl Recorder {
    /// Opens the records in a folder.
    ///
    /// # Errors
    /// If they can not be read or written.
    pub fn open(folder: &Path) -> std::io::Result<Recorder> {
        let log = Log::open(folder)?;
        let allowance = (STRANGERS_MAX, Instant::now());
        let state = Mutex::new(State { log, allowance, suppressed: 0 });
        Ok(Recorder { folder: folder.to_owned(), state })
    }

    /// The folder of the records.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a call; one by an unknown caller only if there are not too many.
    pub fn record(&self, mut call: Call) {
        let mut state = self.state();
        if call.principal.is_empty() && !state.admits_stranger(Instant::now()) {
            state.suppressed += 1;
            return;
        }
        call.suppressed = state.suppressed;
        match state.log.append(call) {
            Ok(()) => state.suppressed = 0,
            Err(error) => {
                state.suppressed += 1;
                tracing::error!(
                    "a call is not in the audit: {} can not be written: {error}",
                    self.folder.display()
                );
            }
        }
    }

    /// Writes what was recorded to the disk, again and again, as long as the process lives.
    pub fn keep_synced(recorder: &Arc<Recorder>) {
        let recorder = recorder.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SYNC_EVERY).await;
                let recorder = recorder.clone();
                let synced = tokio::task::spawn_blocking(move || recorder.state().log.sync()).await;
                if let Ok(Err(error)) = synced {
                    tracing::error!("the audit is not on the disk: {error}");
                }
            }
        });
    }

    /// The last of it, before the process ends.
    pub fn sync(&self) {
        if let Err(error) = self.state().log.sync() {
            tracing::error!("the audit is not on the disk: {error}");
        }
    }
}

impl State {
    fn admits_stranger(&mut self, now: Instant) -> bool {
        let (left, since) = self.allowance;
        let passed = now.saturating_duration_since(since).as_secs_f64();
        let left = (left + passed * STRANGERS_A_SECOND).min(STRANGERS_MAX);
        let admitted = left >= 1.0;
        self.allowance = (if admitted { left - 1.0 } else { left }, now);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_security::audit::{Chain, Place, read};

    #[test]
    fn strangers_push_nothing_out() {
        let folder = std::env::temp_dir().join(format!("basalt-recorder-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let recorder = Recorder::open(&folder).expect("opened");
        let known = Call { principal: "certificate:me".to_owned(), ..Call::default() };
        let before = Instant::now();
        (0..1000).for_each(|_| recorder.record(Call::default()));
        recorder.record(known.clone());
        recorder.record(known);
        recorder.sync();
        let more = (before.elapsed().as_secs_f64() * STRANGERS_A_SECOND) as usize + 1;
        let (lines, _) = read(&folder, Place::default(), usize::MAX).expect("readable");
        let mut chain = Chain::new();
        lines.iter().for_each(|line| chain.take(line.as_ref()).expect("whole"));
        assert!((102..=102 + more).contains(&lines.len()), "{} records", lines.len());
        let of = |at: usize| lines[at].as_ref().expect("a record").suppressed;
        let (last, all) = (lines.len() - 1, lines.len() as u64 - 2);
        let told: u64 = (0..lines.len()).map(of).sum();
        assert_eq!((told, of(last)), (1000 - all, 0));
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
