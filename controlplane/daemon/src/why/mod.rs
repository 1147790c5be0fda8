//! Where the time of a volume's requests goes: who serves the volume is asked, and what it says is held against what
//! the nodes' devices can do.
//!
//! It is nobody's record: the session that serves the volume has it in memory. A node's own door is asked, another
//! node is, and of a host that is no node what it said with its last sign of life.

mod verdict;

use crate::daemon::Daemon;
use crate::engine::{DOOR, Engine};
use crate::status;
use basalt_api::dial;
use basalt_api::v1::{
    ExplainLatencyResponse, Member, NodeReport, NodeSpeed, TellLatencyRequest, Volume,
    VolumeLatency,
};
use basalt_attach::latency;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::Status;

/// How long another node may take to answer.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Where the time of the requests of a volume goes that is served here.
pub async fn here(engine: &Arc<Engine>, volume: &str) -> Option<VolumeLatency> {
    latency::of_export(&engine.reactor, DOOR, volume).await
}

/// Where the time of a volume's requests goes.
///
/// # Errors
/// If this node waits for bootstrap.
pub async fn explain(
    daemon: &Arc<Daemon>,
    volume: Volume,
) -> Result<ExplainLatencyResponse, Status> {
    let engine = daemon.engine()?;
    let nodes = speeds(daemon, &engine).await;
    let name = volume.name.clone();
    let attachment = volume.attachment.clone().unwrap_or_default();
    let host = attachment.host.clone();
    let mut answer = ExplainLatencyResponse { name, host, nodes, ..Default::default() };
    if answer.host.is_empty() {
        answer.unknown =
            "the volume is not attached: only the host that has it knows where its time goes"
                .into();
        return Ok(answer);
    }
    match ask(&engine, &volume, (&attachment.host, attachment.epoch)).await {
        Ok(latency) if !latency.requests.is_empty() => {
            answer.requests = latency.requests;
            verdict::judge(&mut answer, &volume);
        }
        Ok(_) => {
            answer.unknown = format!("'{}' served no request in the last minute", answer.host);
        }
        Err(why) => answer.unknown = why,
    }
    Ok(answer)
}

/// What whoever has the volume knows, or why nothing is known.
async fn ask(
    engine: &Arc<Engine>,
    volume: &Volume,
    (host, epoch): (&str, u64),
) -> Result<VolumeLatency, String> {
    let id = volume.name.strip_prefix("volumes/").unwrap_or(&volume.name);
    let spec = engine.spec();
    match spec.members.iter().find(|member| member.name == host) {
        Some(member) if member.node == engine.node.0 => {
            here(engine, id).await.ok_or_else(|| format!("'{host}' does not serve it"))
        }
        Some(member) => {
            let request = TellLatencyRequest { cluster: spec.id, volume: id.to_owned() };
            let told = ask_node(member, request).await;
            let told = told.map_err(|status| {
                format!("'{host}', which has it, does not answer: {}", dial::plain(&status))
            })?;
            told.ok_or_else(|| format!("'{host}' does not serve it"))
        }
        None => engine.hosts.latency(id, epoch).ok_or_else(|| {
            format!(
                "'{host}', which has it, has said nothing to this node lately; ask again in some seconds, or \
                 another node"
            )
        }),
    }
}

async fn ask_node(
    member: &Member,
    request: TellLatencyRequest,
) -> Result<Option<VolumeLatency>, Status> {
    let mut client = dial::peer(&member.grpc_address, PATIENCE)?;
    Ok(client.tell_latency(request).await?.into_inner().latency)
}

/// What the nodes that answer say of their devices.
async fn speeds(daemon: &Arc<Daemon>, engine: &Arc<Engine>) -> Vec<NodeSpeed> {
    let mut asked = JoinSet::new();
    for member in engine.spec().members {
        let (daemon, here) = (daemon.clone(), member.node == engine.node.0);
        asked.spawn(async move {
            let report =
                if here { status::report(&daemon).await } else { status::ask(&member).await };
            (member, report.ok())
        });
    }
    let answers = asked.join_all().await;
    let mut speeds: Vec<NodeSpeed> =
        answers.iter().map(|(member, report)| speed(member, report.as_ref())).collect();
    for (_, report) in &answers {
        let scores = report.iter().flat_map(|report| &report.node).flat_map(|node| &node.scores);
        for score in scores.filter(|score| score.slow) {
            let found = speeds.iter_mut().find(|speed| speed.node == score.node);
            found.into_iter().for_each(|speed| speed.slow = true);
        }
    }
    speeds.sort_by_key(|speed| speed.node);
    speeds
}

fn speed(member: &Member, report: Option<&NodeReport>) -> NodeSpeed {
    let scores = report.and_then(|report| report.node.as_ref()).map(|node| &node.scores);
    let own = scores.and_then(|all| all.iter().find(|score| score.node == member.node));
    let own = own.cloned().unwrap_or_default();
    NodeSpeed {
        node: member.node,
        name: member.name.clone(),
        write_us: own.write_microseconds,
        write_best_us: own.write_best_microseconds,
        read_us: own.read_microseconds,
        read_best_us: own.read_best_microseconds,
        slow: false,
    }
}
