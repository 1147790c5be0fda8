//! The standard health service: a service is SERVING while it can do its work here.

use crate::daemon::Daemon;
use basalt_wire::ids::GroupId;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::sleep;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The service that answers for the whole: it serves if this node knows a leader of the metadata group.
pub const ADMIN: &str = "basalt.v1.Admin";
/// What other nodes ask of this one. It serves as long as the process does.
pub const PEER: &str = "basalt.v1.Peer";

/// Keeps what the health service tells up to date.
pub async fn run(daemon: Weak<Daemon>, reporter: HealthReporter) {
    reporter.set_service_status(PEER, ServingStatus::Serving).await;
    let mut last = None;
    while let Some(daemon) = daemon.upgrade() {
        let now = match is_usable(&daemon) {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        drop(daemon);
        if last != Some(now) {
            reporter.set_service_status("", now).await;
            reporter.set_service_status(ADMIN, now).await;
            last = Some(now);
        }
        sleep(LOOK).await;
    }
}

fn is_usable(daemon: &Arc<Daemon>) -> bool {
    let Ok(engine) = daemon.engine() else { return false };
    engine.metadata.leader(GroupId::METADATA).is_some_and(|leader| leader.node.is_some())
}
