//! Snapshots that every group keeps, known before the records say so.
//!
//! A snapshot is there for good from the moment at which its last group keeps it: whoever leads the metadata
//! group asks the groups again what is not settled, and hears the same. So who waits for it need not wait until
//! that is written down. What is known here is in memory only, and forgotten when it is written down.

use crate::engine::Engine;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Volumes by their numbers, with the generations that every group keeps.
#[derive(Default)]
pub(crate) struct Kept(watch::Sender<BTreeSet<(u64, u32)>>);

impl Kept {
    /// Every group keeps it.
    pub(crate) fn tell(&self, volume: u64, generation: u32) {
        self.0.send_modify(|kept| {
            kept.insert((volume, generation));
        });
    }

    /// The records say so, or it is dropped.
    pub(crate) fn settled(&self, volume: u64, generation: u32) {
        self.0.send_if_modified(|kept| kept.remove(&(volume, generation)));
    }

    /// The node does not lead: others know better.
    pub(crate) fn forget(&self) {
        self.0.send_if_modified(|kept| !std::mem::take(kept).is_empty());
    }

    async fn known(&self, volume: u64, generation: u32) -> bool {
        let mut kept = self.0.subscribe();
        kept.wait_for(|kept| kept.contains(&(volume, generation))).await.is_ok()
    }
}

/// Whether every group keeps a snapshot, as far as this node hears of it within so many milliseconds.
pub(crate) async fn known_within(
    engine: &Engine,
    (volume, generation): (u64, u32),
    wait_ms: u32,
) -> bool {
    let known = engine.kept.known(volume, generation);
    let recorded = |snapshot: &basalt_meta::SnapshotRecord| snapshot.ready;
    if engine.metadata.look(|state| state.snapshot_of(volume, generation).is_some_and(recorded)) {
        return true;
    }
    timeout(Duration::from_millis(wait_ms.into()), known).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_hears_of_it_once_it_is_told_and_not_after_it_is_written_down() {
        let kept = Kept::default();
        let (told, heard) = (async { kept.tell(7, 3) }, kept.known(7, 3));
        assert!(tokio::join!(heard, told).0);
        kept.settled(7, 3);
        for (volume, generation) in [(7, 3), (7, 4), (8, 3)] {
            let heard = kept.known(volume, generation);
            assert!(futures_now(heard).is_none(), "{volume}@{generation}");
        }
        kept.tell(7, 4);
        kept.forget();
        assert!(futures_now(kept.known(7, 4)).is_none());
    }

    /// What a future comes to without any waiting.
    fn futures_now<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}
