//! The standard health service: a service is SERVING while it can do its work here.

use crate::daemon::Daemon;
use basalt_wire::ids::GroupId;
use std::sync::Weak;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The service that answers for the whole: it serves if this node knows a leader of the metadata group.
pub const ADMIN: &str = "basalt.v1.Admin";
/// What other nodes ask of this one. It serves as long as the process does.
pub const PEER: &str = "basalt.v1.Peer";

/// Keeps what the health service tells up to date.
pub async fn run(daemon: Weak<Daemon>, reporter: HealthReporter) {
    reporter.set_service_status(PEER, ServingStatus::Serving).await;
    tell(&reporter, false).await;
    let Some(mut engines) = daemon.upgrade().map(|daemon| daemon.engines()) else { return };
    let Ok(engine) = engines.wait_for(Option::is_some).await.map(|engine| engine.clone()) else {
        return;
    };
    let Some(metadata) = engine.map(|engine| engine.metadata.clone()) else { return };
    let mut elections = metadata.elections();
    loop {
        elections.mark_unchanged();
        let leader = metadata.leader(GroupId::METADATA);
        tell(&reporter, leader.is_some_and(|leader| leader.node.is_some())).await;
        if elections.changed().await.is_err() {
            return;
        }
    }
}

async fn tell(reporter: &HealthReporter, usable: bool) {
    let now = if usable { ServingStatus::Serving } else { ServingStatus::NotServing };
    reporter.set_service_status("", now).await;
    reporter.set_service_status(ADMIN, now).await;
}
