//! Hosts that are no nodes and serve volumes: what this node has heard of them. It is soft state, and the leader
//! of the
//! metadata group asks for it with every sign of life.

use basalt_api::v1::HostSession;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long is told of a session after it was heard of last.
const KEPT: Duration = Duration::from_secs(30);
/// The most sessions that are remembered: as many as there can be volumes.
const SESSIONS_MAX: usize = 10_000;

/// What was heard lately, by volume and epoch.
#[derive(Default)]
pub struct HostsHeard(Mutex<BTreeMap<(String, u64), Instant>>);

impl HostsHeard {
    fn all(&self) -> MutexGuard<'_, BTreeMap<(String, u64), Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host says what it serves.
    pub fn note(&self, sessions: Vec<HostSession>) {
        if sessions.is_empty() {
            return;
        }
        let (now, mut all) = (Instant::now(), self.all());
        all.retain(|_, at| now - *at < KEPT);
        for session in sessions {
            let known = basalt_meta::check_volume_id(&session.volume).is_ok();
            if known && all.len() < SESSIONS_MAX {
                all.insert((session.volume, session.epoch), now);
            }
        }
    }

    /// What was heard lately.
    pub fn list(&self) -> Vec<HostSession> {
        let now = Instant::now();
        let told = self.all();
        let lately = told.iter().filter(|(_, at)| now - **at < KEPT);
        let session = |((volume, epoch), at): (&(String, u64), &Instant)| HostSession {
            volume: volume.clone(),
            epoch: *epoch,
            age_ms: (now - *at).as_millis() as u64,
        };
        lately.map(session).collect()
    }
}
