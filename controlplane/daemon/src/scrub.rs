//! Scrubs that a user asks for.

use crate::daemon::Daemon;
use basalt_api::v1::{ErrorReason, Member, ScrubRequest, StartScrubResponse};
use basalt_api::{dial, error};
use basalt_core::event::Event;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::Status;

/// How long a node may take to begin.
const BEGIN: Duration = Duration::from_secs(5);

/// Has this node look at all of its blocks.
///
/// # Errors
/// If it belongs to no cluster yet.
pub fn begin(daemon: &Daemon) -> Result<(), Status> {
    daemon.engine()?.reactor.event(Event::Scrub);
    Ok(())
}

/// Has one node, or all, look at all of their blocks.
///
/// # Errors
/// If there is no such node.
pub async fn start(daemon: &Arc<Daemon>, only: &str) -> Result<StartScrubResponse, Status> {
    let engine = daemon.engine()?;
    let mut members = engine.spec().members;
    members.retain(|m| only.is_empty() || m.name == only || m.node.to_string() == only);
    if members.is_empty() {
        let text = format!("the cluster has no node '{only}'");
        return Err(error::status(ErrorReason::InvalidField, text, &[]));
    }
    let mut asked = JoinSet::new();
    for member in members {
        let daemon = daemon.clone();
        let here = member.node == engine.node.0;
        asked.spawn(async move {
            let began = if here { begin(&daemon) } else { ask(&member).await };
            (member.name, began)
        });
    }
    let mut answer = StartScrubResponse::default();
    while let Some(began) = asked.join_next().await {
        let (name, began) = began.map_err(|e| Status::internal(e.to_string()))?;
        match began {
            Ok(()) => answer.started.push(name),
            Err(status) => {
                answer.problems.insert(name, dial::plain(&status));
            }
        }
    }
    answer.started.sort_unstable();
    Ok(answer)
}

async fn ask(member: &Member) -> Result<(), Status> {
    dial::peer(&member.grpc_address, BEGIN)?.scrub(ScrubRequest {}).await?;
    Ok(())
}
