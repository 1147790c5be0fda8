//! What the machine itself does meanwhile: how long one durable write takes beside the cluster's, and
//! how late a sleeping thread wakes. No stall can be shorter than what the machine does to everybody.

use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const EVERY: Duration = Duration::from_millis(10);

#[repr(align(4096))]
struct Page([u8; PAGE]);

#[derive(Default)]
struct Seen {
    end: AtomicBool,
    write_us: AtomicU64,
    wake_us: AtomicU64,
}

/// A thread that writes a page and sleeps, in turns.
pub struct Probe {
    seen: Arc<Seen>,
    threads: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Starts with a file in `folder`.
    ///
    /// # Errors
    /// If the file can not be made.
    pub fn start(folder: &Path) -> Result<Probe> {
        let path = folder.join("probe");
        std::fs::write(&path, [0; PAGE]).with_context(|| path.display().to_string())?;
        let flags = libc::O_DSYNC | libc::O_DIRECT;
        let open = |flags| OpenOptions::new().write(true).custom_flags(flags).open(&path);
        // Not every file system has O_DIRECT.
        let file = open(flags).or_else(|_| open(libc::O_DSYNC))?;
        file.sync_all()?;
        let seen = Arc::new(Seen::default());
        let (one, other) = (seen.clone(), seen.clone());
        let threads = vec![
            std::thread::spawn(move || write(&file, &one)),
            std::thread::spawn(move || sleep(&other)),
        ];
        Ok(Probe { seen, threads })
    }

    /// The longest write and the latest waking since this was asked last.
    pub fn take(&self) -> (Duration, Duration) {
        let take = |cell: &AtomicU64| Duration::from_micros(cell.swap(0, Ordering::Relaxed));
        (take(&self.seen.write_us), take(&self.seen.wake_us))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.seen.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Both only measure; a panic of theirs was printed.
            let _ = thread.join();
        }
    }
}

fn write(file: &File, seen: &Seen) {
    let page = Page([7; PAGE]);
    while !seen.end.load(Ordering::Relaxed) {
        let began = Instant::now();
        if file.write_all_at(&page.0, 0).is_err() {
            return;
        }
        note(&seen.write_us, began.elapsed());
        std::thread::sleep(EVERY);
    }
}

fn sleep(seen: &Seen) {
    while !seen.end.load(Ordering::Relaxed) {
        let began = Instant::now();
        std::thread::sleep(EVERY);
        note(&seen.wake_us, began.elapsed().saturating_sub(EVERY));
    }
}

fn note(cell: &AtomicU64, time: Duration) {
    cell.fetch_max(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
}
