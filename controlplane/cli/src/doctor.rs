//! What is wrong with a cluster, and what to do about it.

use crate::options::{DoctorArgs, Options};
use crate::{Failure, call, call_of, output};
use basalt_api::dial::Cluster as Nodes;
use basalt_api::longrunning::ListOperationsRequest;
use basalt_api::longrunning::operations_client::OperationsClient;
use basalt_api::size::show;
use basalt_api::v1::encryption_client::EncryptionClient;
use basalt_api::v1::{
    Cluster, EncryptionStatus, GetClusterRequest, GetEncryptionStatusRequest, Health,
    ListVolumesRequest, Node, OperationMetadata, Volume,
};
use prost::Message;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// An operation that takes longer is looked at.
const LONG_SECONDS: i64 = 600;
/// A device of which less is free is looked at: one part in so many.
const FREE_PART: u64 = 10;

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Good,
    Warning,
    Error,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    severity: Severity,
    what: String,
    /// What to do about it.
    advice: String,
}

fn good(what: impl Into<String>) -> Finding {
    Finding { severity: Severity::Good, what: what.into(), advice: String::new() }
}

fn warning(what: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { severity: Severity::Warning, what: what.into(), advice: advice.into() }
}

fn error(what: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { severity: Severity::Error, what: what.into(), advice: advice.into() }
}

pub(crate) async fn run(
    options: &Options,
    cluster: &Nodes,
    asked: &DoctorArgs,
) -> Result<(), Failure> {
    let found = call!(cluster, get_cluster, GetClusterRequest {})?;
    let mut findings = examine(&found);
    if found.health() != Health::Unbootstrapped {
        findings.extend(match volumes(cluster).await {
            Ok(volumes) => examine_volumes(&found, &volumes),
            Err(failure) => vec![unasked("volumes", &failure)],
        });
        findings.extend(match operations(cluster).await {
            Ok(operations) => examine_operations(&operations, now_seconds()),
            Err(failure) => vec![unasked("operations", &failure)],
        });
        findings.extend(match keys(cluster).await {
            Ok(status) => examine_keys(&status),
            Err(failure) => vec![unasked("keys of encrypted volumes", &failure)],
        });
    }
    findings.retain(|finding| asked.all || finding.severity > Severity::Good);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let documents: Vec<Value> = findings.iter().map(document).collect();
    output::write(options.output, &json!({ "findings": documents }), || text(&findings))?;
    match findings.iter().any(|finding| finding.severity > Severity::Good) {
        true => Err(Failure::Shown),
        false => Ok(()),
    }
}

async fn keys(cluster: &Nodes) -> Result<EncryptionStatus, Failure> {
    let request = GetEncryptionStatusRequest {};
    Ok(call_of!(cluster, EncryptionClient, get_encryption_status, request)?)
}

/// Whether keys are wrapped under the secret that signs, so that others may go.
fn examine_keys(status: &EncryptionStatus) -> Vec<Finding> {
    let lacks = status.secrets.iter().any(|secret| !secret.held);
    let old = status.secrets.iter().any(|secret| !secret.signs && secret.keys > 0);
    vec![match (lacks, old) {
        (true, _) => error(
            status.sentence.as_str(),
            "put the secret back into the file of all nodes; a backup of the file has it",
        ),
        (_, true) => warning(
            status.sentence.as_str(),
            "they are wrapped anew within seconds once all nodes have the secret that signs first in their \
             files; look again",
        ),
        _ => good(status.sentence.as_str()),
    }]
}

fn unasked(what: &str, failure: &Failure) -> Finding {
    let what = format!("the {what} could not be asked for: {}", failure.text());
    error(what, "see what is said of the nodes and of the metadata group")
}

fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

async fn volumes(cluster: &Nodes) -> Result<Vec<Volume>, Failure> {
    let (mut volumes, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListVolumesRequest { page_size: 1000, page_token, ..Default::default() };
        let page = call!(cluster, list_volumes, request)?;
        volumes.extend(page.volumes);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(volumes);
        }
    }
}

async fn operations(cluster: &Nodes) -> Result<Vec<(String, OperationMetadata)>, Failure> {
    let filter = "done = false".to_owned();
    let request = ListOperationsRequest { filter, page_size: 1000, ..Default::default() };
    let page = call_of!(cluster, OperationsClient, list_operations, request)?;
    let told = page.operations.into_iter().filter_map(|operation| {
        let metadata = OperationMetadata::decode(&*operation.metadata?.value).ok()?;
        Some((operation.name, metadata))
    });
    Ok(told.collect())
}

fn examine(cluster: &Cluster) -> Vec<Finding> {
    let mut found = vec![match cluster.health() {
        Health::Ok => good(&cluster.health_sentence),
        Health::Degraded => warning(
            &cluster.health_sentence,
            "'basalt cluster status' shows which groups and nodes",
        ),
        Health::Unbootstrapped => error(
            &cluster.health_sentence,
            "make a cluster of the nodes: 'basalt cluster bootstrap --node ...'",
        ),
        _ => error(&cluster.health_sentence, "'basalt cluster status' shows which groups wait"),
    }];
    cluster.nodes.iter().for_each(|node| examine_node(node, &mut found));
    let versions: BTreeSet<&str> =
        cluster.nodes.iter().map(|n| n.version.as_str()).filter(|v| !v.is_empty()).collect();
    match versions.len() {
        0 | 1 => found.push(good("all nodes run the same version")),
        _ => found.push(warning(
            format!("the nodes run several versions: {}", join(versions)),
            "finish the upgrade: stop and start the older ones, one after the other",
        )),
    }
    let members = cluster.nodes.iter().filter(|node| !node.leaving).count();
    if (1..3).contains(&members) {
        found.push(warning(
            format!("there are {members} nodes: with fewer than three nothing can fail"),
            "add nodes: 'basalt node add ADDRESS'",
        ));
    }
    found
}

fn join<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    parts.into_iter().collect::<Vec<_>>().join(", ")
}

fn examine_node(node: &Node, found: &mut Vec<Finding>) {
    let name = &node.name;
    if !node.reachable {
        found.push(error(
            format!("the node {name} can not be asked: {}", node.problem),
            format!(
                "is basaltd running there? If the machine is lost: 'basalt node add ADDRESS --replaces {name}'"
            ),
        ));
        return;
    }
    if node.state.starts_with("failed") || node.state == "suspect" {
        found.push(error(
            format!("the device of {name} is not in use: {}", node.state),
            format!("look at the device and the node's log; to put in another: 'basalt device replace {name}'"),
        ));
    }
    for (volume, why) in &node.not_serving {
        found.push(error(
            format!("{name} does not serve the volume {volume}: {why}"),
            "it is tried again by itself; 'basalt cluster status' tells what else is wrong",
        ));
    }
    examine_space(node, found);
    examine_scrub(node, found);
    for score in node.scores.iter().filter(|score| score.slow && score.node == node.id) {
        found.push(warning(
            format!(
                "the device of {name} has been much slower than the others for {} s",
                score.slow_seconds
            ),
            "it leads no group meanwhile; if it stays so, drain the node and look at the device",
        ));
    }
}

fn examine_space(node: &Node, found: &mut Vec<Finding>) {
    let Some(space) = &node.space else { return };
    if space.capacity_bytes == 0 {
        return;
    }
    let left = space.capacity_bytes.saturating_sub(space.live_bytes);
    let advice = "delete volumes or snapshots, discard what is not needed in them, or add nodes ('basalt node add')";
    let what = format!(
        "{} of {} are left on the device of {}",
        show(left),
        show(space.capacity_bytes),
        node.name
    );
    found.push(match left {
        0 => error(format!("{what}: writes that need room fail"), advice),
        left if left < space.capacity_bytes / FREE_PART => warning(what, advice),
        _ => good(what),
    });
}

fn examine_scrub(node: &Node, found: &mut Vec<Finding>) {
    let Some(scrub) = &node.scrub else { return };
    let name = &node.name;
    if scrub.blocks_lost > 0 {
        found.push(error(
            format!(
                "{} damaged blocks on {name} could not be repaired: no replica has them",
                scrub.blocks_lost
            ),
            "bring nodes back that are away; then 'basalt scrub start'",
        ));
    }
    if scrub.undecided_pages > 0 {
        found.push(error(
            format!(
                "{} pages on {name} differ, and no majority holds the same",
                scrub.undecided_pages
            ),
            "bring nodes back that are away; 'basalt scrub status'",
        ));
    }
    let repaired = scrub.blocks_repaired + scrub.mended_blocks;
    if repaired > 0 {
        found.push(warning(
            format!(
                "{repaired} blocks on {name} were damaged since it was started, and are repaired"
            ),
            "look at the device (smartctl, nvme smart-log): healthy ones lose nothing",
        ));
    }
    if scrub.blocks_lost == 0 && scrub.undecided_pages == 0 && repaired == 0 {
        found.push(good(format!("no damage is known on {name}")));
    }
}

fn examine_volumes(cluster: &Cluster, volumes: &[Volume]) -> Vec<Finding> {
    let mut found = Vec::new();
    let unreachable = |host: &str| cluster.nodes.iter().any(|n| n.name == host && !n.reachable);
    for volume in volumes {
        let Some(attachment) = &volume.attachment else { continue };
        if unreachable(&attachment.host) {
            let id = volume.name.trim_start_matches("volumes/");
            found.push(error(
                format!(
                    "the volume {id} is attached to {}, which can not be asked",
                    attachment.host
                ),
                format!(
                    "'basalt volume attach {id} --host OTHER --move' shuts the old one out for good"
                ),
            ));
        }
    }
    if found.is_empty() {
        found.push(good(format!(
            "none of {} volumes is attached to a node that is away",
            volumes.len()
        )));
    }
    found
}

fn examine_operations(operations: &[(String, OperationMetadata)], now: i64) -> Vec<Finding> {
    let age = |of: &OperationMetadata| now - of.create_time.as_ref().map_or(now, |t| t.seconds);
    let long = operations.iter().filter(|(_, of)| age(of) > LONG_SECONDS);
    let mut found: Vec<Finding> = long
        .map(|(name, of)| {
            warning(
                format!("{name} ({} {}) takes {} s already", of.verb, of.target, age(of)),
                of.sentence.clone(),
            )
        })
        .collect();
    if found.is_empty() {
        found.push(good(format!("none of {} operations under way takes long", operations.len())));
    }
    found
}

fn document(finding: &Finding) -> Value {
    let severity = format!("{:?}", finding.severity).to_ascii_lowercase();
    json!({ "severity": severity, "what": finding.what, "advice": finding.advice })
}

fn text(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is wrong".to_owned();
    }
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.severity {
            Severity::Good => "ok      ",
            Severity::Warning => "warning ",
            Severity::Error => "error   ",
        };
        text.push_str(&format!("{mark} {}\n", finding.what));
        if !finding.advice.is_empty() {
            text.push_str(&format!("         {}\n", finding.advice));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_api::v1::{Attachment, Scrub, Space};
    use prost_types::Timestamp;

    fn node(name: &str) -> Node {
        let space = Space { capacity_bytes: 100 << 20, live_bytes: 1 << 20, ..Space::default() };
        Node {
            name: name.to_owned(),
            reachable: true,
            state: "running".to_owned(),
            version: "1".to_owned(),
            space: Some(space),
            scrub: Some(Scrub::default()),
            ..Node::default()
        }
    }

    fn healthy() -> Cluster {
        let nodes = ["a", "b", "c"].map(node).into();
        Cluster { health: Health::Ok.into(), nodes, ..Cluster::default() }
    }

    fn bad(findings: Vec<Finding>) -> Vec<String> {
        findings.into_iter().filter(|f| f.severity > Severity::Good).map(|f| f.what).collect()
    }

    #[test]
    fn a_healthy_cluster_has_nothing_wrong() {
        assert!(bad(examine(&healthy())).is_empty());
        assert!(bad(examine_volumes(&healthy(), &[Volume::default()])).is_empty());
        assert!(bad(examine_operations(&[], 0)).is_empty());
    }

    #[test]
    fn what_is_wrong_is_found_and_comes_with_advice() {
        let mut cluster = healthy();
        cluster.nodes[0].reachable = false;
        cluster.nodes[1].space.as_mut().expect("set").live_bytes = 95 << 20;
        cluster.nodes[1].version = "2".to_owned();
        let scrub = cluster.nodes[2].scrub.as_mut().expect("set");
        (scrub.blocks_lost, scrub.blocks_repaired) = (2, 3);
        cluster.nodes[2].not_serving = [("demo".to_owned(), "why".to_owned())].into();
        let found = examine(&cluster);
        assert!(found.iter().all(|f| (f.severity > Severity::Good) != f.advice.is_empty()));
        let found = bad(found).join("\n");
        for part in [
            "a can not be asked",
            "5 MiB of 100 MiB are left on the device of b",
            "several versions: 1, 2",
            "2 damaged blocks on c could not be repaired",
            "3 blocks on c were damaged",
            "c does not serve the volume demo",
        ] {
            assert!(found.contains(part), "{part}: {found}");
        }
        let attachment = Some(Attachment { host: "a".to_owned(), ..Attachment::default() });
        let volume = Volume { name: "volumes/db".to_owned(), attachment, ..Volume::default() };
        assert_eq!(bad(examine_volumes(&cluster, &[volume])).len(), 1);
    }

    #[test]
    fn long_operations_are_found() {
        let create_time = Some(Timestamp { seconds: 1000, nanos: 0 });
        let of = OperationMetadata { create_time, ..OperationMetadata::default() };
        let operations = [("operations/7".to_owned(), of)];
        assert!(bad(examine_operations(&operations, 1000 + LONG_SECONDS)).is_empty());
        assert_eq!(bad(examine_operations(&operations, 1001 + LONG_SECONDS)).len(), 1);
    }
}
