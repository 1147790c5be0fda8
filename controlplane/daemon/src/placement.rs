//! Plans of where groups go, for people: shown before they run, and what no plan can set right.

use crate::daemon::Daemon;
use crate::{moves, nodes, status};
use basalt_api::v1::{
    ClusterSpec, FailureDomain, NodeReport, PlanPlacementRequest, PlanPlacementResponse,
    PlannedMove, Replica, SetFailureDomainRequest,
};
use basalt_meta::layout::{self, METADATA_GROUP};
use basalt_meta::planner::{self, Forecast, Outlook, Why};
use basalt_meta::{Op, SetFailureDomain};
use std::sync::Arc;
use tonic::Status;

/// The change that a request asks for.
pub(crate) fn setting(request: &SetFailureDomainRequest) -> Op {
    Op::SetFailureDomain(SetFailureDomain { failure_domain: request.failure_domain })
}

/// What the planner would do, now or if something were otherwise.
///
/// # Errors
/// If a node is named that there is not, or too few would be left.
pub(crate) async fn plan(
    daemon: &Arc<Daemon>,
    request: &PlanPlacementRequest,
) -> Result<PlanPlacementResponse, Status> {
    let engine = daemon.engine()?;
    engine.metadata.barrier().await?;
    let mut spec = nodes::record(&engine)?;
    let mut outlook = moves::outlook(&engine, &spec).await;
    suppose(&mut spec, &mut outlook, request)?;
    Ok(shown(&spec, &planner::forecast(&spec, &outlook, moves::IN_FLIGHT), &outlook))
}

/// Makes the record what it would be.
fn suppose(
    spec: &mut ClusterSpec,
    outlook: &mut Outlook,
    request: &PlanPlacementRequest,
) -> Result<(), Status> {
    for name in &request.without {
        let node = nodes::find(spec, name)?.node;
        outlook.up.remove(&node);
        let member = spec.members.iter_mut().find(|m| m.node == node);
        if let Some(member) = member {
            member.state = basalt_api::v1::MemberState::Down.into();
            member.evacuated = true;
        }
    }
    for name in &request.drain {
        let node = nodes::find(spec, name)?.node;
        let member = spec.members.iter_mut().find(|m| m.node == node);
        member.into_iter().for_each(|member| member.draining = true);
    }
    if request.failure_domain() != FailureDomain::Unspecified {
        spec.failure_domain = request.failure_domain;
    }
    Ok(())
}

fn shown(spec: &ClusterSpec, forecast: &Forecast, outlook: &Outlook) -> PlanPlacementResponse {
    let moves = forecast.moves.iter().map(|(planned, before)| {
        let to = &planned.to;
        let then: Vec<u32> = to.voters.iter().chain(&to.learners).copied().collect();
        let now: Vec<u32> = before.voters.iter().chain(&before.learners).copied().collect();
        let new: Vec<u32> = then.iter().copied().filter(|node| !now.contains(node)).collect();
        let bytes = outlook.bytes.get(&to.group).copied().unwrap_or(0);
        PlannedMove {
            group: match to.group {
                METADATA_GROUP => status::METADATA.to_owned(),
                number => number.to_string(),
            },
            bytes: bytes * new.len() as u64,
            from: now.iter().copied().filter(|node| !then.contains(node)).collect(),
            to: new,
            reason: reason(spec, planned.why),
        }
    });
    PlanPlacementResponse {
        moves: moves.collect(),
        before: Some(forecast.scores.0),
        after: Some(forecast.scores.1),
        unmet: forecast.unmet.clone(),
    }
}

/// Why a group moves, in words.
pub(crate) fn reason(spec: &ClusterSpec, why: Why) -> String {
    let member = |node: u32| spec.members.iter().find(|m| m.node == node);
    let name = |node: u32| member(node).map_or_else(|| node.to_string(), |m| m.name.clone());
    match why {
        Why::Records => "every node holds the records, and some vote".to_owned(),
        Why::Missing => "it has fewer replicas than it can have".to_owned(),
        Why::Leaves(node) => {
            let what = match member(node) {
                Some(m) if m.leaving => "leaves",
                Some(m) if m.evacuated => "is lost",
                Some(m) if !layout::is_active(m) => "is drained",
                _ => "is no member",
            };
            format!("'{}' {what}", name(node))
        }
        Why::Domains => {
            let domain = match spec.failure_domain() {
                FailureDomain::Rack => "rack",
                FailureDomain::Zone => "zone",
                FailureDomain::Region => "region",
                FailureDomain::Host | FailureDomain::Unspecified => "host",
            };
            format!("two of its replicas are in one {domain}")
        }
        Why::Overfull(node) => format!("the device of '{}' is too full", name(node)),
        Why::Replicas(node) => format!("'{}' has more replicas than others", name(node)),
        Why::Bytes(node) => format!("'{}' has more data than others", name(node)),
    }
}

/// Takes what a node that works reports into what is planned with: who is there and holds the records, how many bytes
/// each group has, and how many of them a device takes.
pub(crate) fn note(outlook: &mut Outlook, node: u32, replicas: &[Replica], capacity: u64) {
    if replicas.iter().any(|replica| replica.group == status::METADATA) {
        outlook.up.insert(node);
    }
    if capacity > 0 {
        outlook.capacity.insert(node, capacity);
    }
    for replica in replicas {
        let Ok(group) = replica.group.parse() else { continue };
        // One that is being filled has less than the others.
        let most = outlook.bytes.entry(group).or_default();
        *most = replica.live_bytes.max(*most);
    }
}

/// What no move sets right, in words that follow a sentence.
pub(crate) fn shortage(spec: &ClusterSpec, reports: &[NodeReport]) -> String {
    let mut outlook = Outlook::default();
    for report in reports {
        let Some(node) = report.node.as_ref().filter(|node| status::works(node)) else { continue };
        let capacity = node.space.as_ref().map_or(0, |space| space.capacity_bytes);
        note(&mut outlook, node.id, &report.replicas, capacity);
    }
    let unmet = planner::unmet(spec, &outlook);
    unmet.into_iter().map(|sentence| format!("; {sentence}")).collect()
}
