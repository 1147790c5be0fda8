//! Hosts that are no nodes and serve volumes: what this node has heard of them. It is soft state, and the leader
//! of the
//! metadata group asks for it with every sign of life.

use basalt_api::v1::{HostSession, VolumeLatency};
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
pub struct HostsHeard(Mutex<Heard>);

/// When each session was heard of last, and where the time of its requests went then, by volume and epoch.
type Heard = BTreeMap<(String, u64), (Instant, Option<VolumeLatency>)>;

/// The most kinds of requests, and stages of one, of which a host is heard.
const KINDS_MAX: usize = 3;
const STAGES_MAX: usize = 1_000;

impl HostsHeard {
    fn all(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host says what it serves.
    pub fn note(&self, sessions: Vec<HostSession>) {
        if sessions.is_empty() {
            return;
        }
        let (now, mut all) = (Instant::now(), self.all());
        all.retain(|_, (at, _)| now - *at < KEPT);
        for session in sessions {
            let known = basalt_meta::check_volume_id(&session.volume).is_ok();
            if known && all.len() < SESSIONS_MAX {
                let latency = session.latency.filter(is_bounded);
                all.insert((session.volume, session.epoch), (now, latency));
            }
        }
    }

    /// What was heard lately.
    pub fn list(&self) -> Vec<HostSession> {
        let now = Instant::now();
        let told = self.all();
        let lately = told.iter().filter(|(_, (at, _))| now - *at < KEPT);
        let session = |((volume, epoch), (at, _)): (&(String, u64), &(Instant, _))| HostSession {
            volume: volume.clone(),
            epoch: *epoch,
            age_ms: (now - *at).as_millis() as u64,
            latency: None,
        };
        lately.map(session).collect()
    }

    /// Where the time of a session's requests went, as its host said lately.
    pub fn latency(&self, volume: &str, epoch: u64) -> Option<VolumeLatency> {
        let all = self.all();
        let (at, latency) = all.get(&(volume.to_owned(), epoch))?;
        latency.clone().filter(|_| at.elapsed() < KEPT)
    }
}

/// Whether a host says no more than there can be to say.
fn is_bounded(latency: &VolumeLatency) -> bool {
    let short = |of: &basalt_api::v1::RequestLatency| {
        let bands = [&of.all, &of.middle, &of.slowest];
        let parts = bands.into_iter().flatten().map(|band| band.parts.len()).max();
        of.stages.len().max(parts.unwrap_or(0)) <= STAGES_MAX && of.findings.is_empty()
    };
    latency.requests.len() <= KINDS_MAX && latency.requests.iter().all(short)
}
