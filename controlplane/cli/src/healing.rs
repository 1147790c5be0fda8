//! What becomes of nodes that fail, and where replicas go: `basalt cluster plan` and
//! `basalt cluster failure-domain`.

use crate::options::{Domain, Options, WhatIf};
use crate::output;
use crate::{Failure, call};
use basalt_api::dial::Cluster;
use basalt_api::random::request_id;
use basalt_api::size::show;
use basalt_api::v1::{
    Attachment, Failover, FailureDomain, GetClusterRequest, Location, MemberState, Node,
    PlacementScore, PlanPlacementRequest, PlanPlacementResponse, PlannedMove,
    SetFailureDomainRequest, Volume,
};
use serde_json::{Value, json};

/// What becomes of a volume's attachment when its node is down, in a word.
pub(crate) fn failover(volume: &Volume) -> &'static str {
    match volume.failover() {
        Failover::Unspecified | Failover::None => "none",
        Failover::Node => "node",
    }
}

pub(crate) async fn set_domain(
    options: &Options,
    cluster: &Cluster,
    domain: Domain,
) -> Result<(), Failure> {
    let failure_domain = domain.value().into();
    let request = SetFailureDomainRequest { failure_domain, request_id: request_id("cli") };
    let found = call!(cluster, set_failure_domain, request)?;
    let name = domain_name(found.failure_domain());
    output::write(options.output, &json!({ "failure_domain": name }), || {
        format!(
            "replicas are kept apart by {name}; groups move until they are ('basalt cluster plan' shows which)"
        )
    })
}

/// What the planner would do.
pub(crate) async fn plan(
    options: &Options,
    cluster: &Cluster,
    what_if: &WhatIf,
) -> Result<(), Failure> {
    let request = PlanPlacementRequest {
        without: what_if.without.clone(),
        drain: what_if.drain.clone(),
        failure_domain: what_if.failure_domain.map_or(0, |domain| domain.value().into()),
    };
    let found = call!(cluster, plan_placement, request)?;
    let nodes = call!(cluster, get_cluster, GetClusterRequest {})?.nodes;
    output::write(options.output, &document(&found, &nodes), || text(&found, &nodes))
}

fn names(of: &[u32], nodes: &[Node]) -> Vec<String> {
    let name = |number: &u32| match nodes.iter().find(|node| node.id == *number) {
        Some(node) => node.name.clone(),
        None => number.to_string(),
    };
    of.iter().map(name).collect()
}

fn document(plan: &PlanPlacementResponse, nodes: &[Node]) -> Value {
    let planned = |planned: &PlannedMove| {
        json!({
            "group": planned.group,
            "to": names(&planned.to, nodes),
            "from": names(&planned.from, nodes),
            "reason": planned.reason,
            "bytes": planned.bytes,
        })
    };
    json!({
        "moves": plan.moves.iter().map(planned).collect::<Vec<_>>(),
        "bytes": plan.moves.iter().map(|m| m.bytes).sum::<u64>(),
        "before": score(&plan.before.unwrap_or_default()),
        "after": score(&plan.after.unwrap_or_default()),
        "unmet": plan.unmet,
    })
}

fn score(score: &PlacementScore) -> Value {
    json!({
        "misplaced": score.misplaced,
        "shared_domains": score.shared_domains,
        "overfull_bytes": score.overfull_bytes,
        "replica_spread": score.replica_spread,
        "byte_spread": score.byte_spread,
        "leader_spread": score.leader_spread,
    })
}

fn text(plan: &PlanPlacementResponse, nodes: &[Node]) -> String {
    let list = |of: &[u32]| match of.is_empty() {
        true => "-".to_owned(),
        false => names(of, nodes).join(","),
    };
    let row = |planned: &PlannedMove| {
        vec![
            planned.group.clone(),
            list(&planned.from),
            list(&planned.to),
            show(planned.bytes),
            planned.reason.clone(),
        ]
    };
    let mut text = match plan.moves.is_empty() {
        true => "nothing would move\n".to_owned(),
        false => {
            let bytes = plan.moves.iter().map(|m| m.bytes).sum();
            let rows: Vec<_> = plan.moves.iter().map(row).collect();
            format!(
                "{}\n{} moves, {} to copy\n",
                output::table(&["GROUP", "FROM", "TO", "BYTES", "BECAUSE"], &rows),
                rows.len(),
                show(bytes)
            )
        }
    };
    let (before, after) = (plan.before.unwrap_or_default(), plan.after.unwrap_or_default());
    let of = |what: &str, values: [u64; 2], words: &dyn Fn(u64) -> String| {
        vec![what.to_owned(), words(values[0]), words(values[1])]
    };
    let number = |value: u64| value.to_string();
    let rows = [
        of("replicas missing or misplaced", [before.misplaced, after.misplaced], &number),
        of("replicas that share a domain", [before.shared_domains, after.shared_domains], &number),
        of("over what devices take", [before.overfull_bytes, after.overfull_bytes], &show),
        of("replicas, most to fewest", [before.replica_spread, after.replica_spread], &number),
        of("data, most to least", [before.byte_spread, after.byte_spread], &show),
        of("leaders, most to fewest", [before.leader_spread, after.leader_spread], &number),
    ];
    text.push('\n');
    text.push_str(&output::table(&["", "NOW", "THEN"], &rows));
    for sentence in &plan.unmet {
        text.push_str(&format!("\n{sentence}\n"));
    }
    text
}

/// What the cluster makes of a node, in a word.
pub(crate) fn member_state(node: &Node) -> &'static str {
    match node.member_state() {
        MemberState::Up | MemberState::Unspecified => "up",
        MemberState::Suspect => "suspect",
        MemberState::Down => "down",
        MemberState::Failed => "failed",
    }
}

/// Whether a host that is no node lives, in a word.
pub(crate) fn host_state(attachment: &Attachment) -> &'static str {
    match attachment.host_state() {
        MemberState::Up => "up",
        MemberState::Down => "down",
        _ => "unknown",
    }
}

/// Where a node stands.
pub(crate) fn location(node: &Node) -> String {
    let Location { region, zone, rack } = node.location.clone().unwrap_or_default();
    let parts = [("region", region), ("zone", zone), ("rack", rack)];
    let given = parts.iter().filter(|(_, value)| !value.is_empty());
    given.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

pub(crate) fn domain_name(domain: FailureDomain) -> &'static str {
    match domain {
        FailureDomain::Unspecified | FailureDomain::Host => "host",
        FailureDomain::Rack => "rack",
        FailureDomain::Zone => "zone",
        FailureDomain::Region => "region",
    }
}
