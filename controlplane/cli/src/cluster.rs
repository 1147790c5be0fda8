//! `basalt cluster`.

use crate::Failure;
use crate::options::{ClusterCommand, Format, Options, Placement};
use crate::output::{self, Progress};
use crate::{healing, scrub};
use basalt_api::dial;
use basalt_api::error::status;
use basalt_api::size::show;
use basalt_api::v1::{
    BootstrapRequest, Cluster, ErrorReason, FailureDomain, GetClusterRequest, Group, Health, Node,
    Score,
};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(200);

pub(crate) async fn run(
    options: &Options,
    cluster: &dial::Cluster,
    command: &ClusterCommand,
) -> Result<(), Failure> {
    match command {
        ClusterCommand::Backup(command) => crate::backup::run(options, cluster, command).await,
        ClusterCommand::Restore(command) => crate::restore::run(options, command).await,
        ClusterCommand::Orphans(command) => {
            crate::restore::orphans(options, cluster, command).await
        }
        ClusterCommand::Bootstrap { nodes, groups, domain } => {
            bootstrap(options, nodes, *groups, domain.failure_domain.value()).await
        }
        ClusterCommand::Placement(Placement::Plan { what_if }) => {
            healing::plan(options, cluster, what_if).await
        }
        ClusterCommand::Placement(Placement::FailureDomain { domain }) => {
            healing::set_domain(options, cluster, *domain).await
        }
        ClusterCommand::Status { groups, check, wait } => {
            let found = match wait {
                Some(patience) => wait_for_health(cluster, *patience, options.output).await?,
                None => ask(cluster).await?,
            };
            output::write(options.output, &document(&found), || text(&found, *groups))?;
            let well = found.health() == Health::Ok;
            if well || (!check && wait.is_none()) {
                return Ok(());
            }
            let failed = tonic::Status::failed_precondition(found.health_sentence.clone());
            Err(Failure::Status(failed))
        }
    }
}

async fn bootstrap(
    options: &Options,
    nodes: &[String],
    groups: u32,
    failure_domain: FailureDomain,
) -> Result<(), Failure> {
    let failure_domain = failure_domain.into();
    let request = BootstrapRequest { nodes: nodes.to_vec(), group_count: groups, failure_domain };
    // The first of the nodes does it; bootstrap may take longer than other calls.
    let first =
        dial::Cluster::new(nodes[..1].to_vec(), options.timeout.max(Duration::from_secs(90)));
    let request = &request;
    let mut progress = Progress::start(options.output);
    progress.show(|| format!("making a cluster of {} nodes, which formats devices", nodes.len()));
    let made = first
        .call(|mut client| {
            let request = request.clone();
            async move { client.bootstrap(request).await }
        })
        .await?;
    drop(progress);
    output::write(options.output, &document(&made), || {
        format!("cluster {} has {} nodes\n\n{}", made.id, made.nodes.len(), text(&made, false))
    })
}

async fn ask(cluster: &dial::Cluster) -> Result<Cluster, Failure> {
    let answer =
        cluster.call(|mut client| async move { client.get_cluster(GetClusterRequest {}).await });
    Ok(answer.await?)
}

async fn wait_for_health(
    cluster: &dial::Cluster,
    patience: Duration,
    format: Format,
) -> Result<Cluster, Failure> {
    let deadline = Instant::now() + patience;
    let mut progress = Progress::start(format);
    loop {
        let found = ask(cluster).await;
        progress.show(|| match &found {
            Ok(found) => found.health_sentence.clone(),
            Err(failure) => failure.text(),
        });
        let well = found.as_ref().is_ok_and(|found| found.health() == Health::Ok);
        if well || Instant::now() >= deadline {
            return found.map_err(|last| {
                let text = format!("no answer within {} s: {}", patience.as_secs(), last.text());
                Failure::Status(status(ErrorReason::NodeUnreachable, text, &[]))
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

fn score(score: &Score) -> Value {
    json!({
        "node": score.node,
        "write_microseconds": score.write_microseconds,
        "read_microseconds": score.read_microseconds,
        "way_microseconds": score.way_microseconds,
        "slow": score.slow,
        "slow_seconds": score.slow_seconds,
    })
}

fn document(cluster: &Cluster) -> Value {
    let node = |node: &Node| {
        json!({
            "id": node.id,
            "name": node.name,
            "grpc_address": node.grpc_address,
            "data_address": node.data_address,
            "nbd_address": node.nbd_address,
            "reachable": node.reachable,
            "problem": node.problem,
            "state": node.state,
            "version": node.version,
            "uptime_seconds": node.uptime_seconds,
            "boots": node.boots,
            "device_bytes": node.device_bytes,
            "free_bytes": node.free_bytes,
            "replayed_bytes": node.replayed_bytes,
            "opened_from_checkpoint": node.opened_from_checkpoint,
            "opening_milliseconds": node.opening_milliseconds,
            "checkpoint": node.checkpoint,
            "log": node.log.map(|log| json!({
                "batches": log.batches,
                "records": log.records,
                "payload_bytes": log.payload_bytes,
                "bytes": log.bytes,
            })),
            "resync": node.resync.map(|resync| json!({
                "pages_offered": resync.pages_offered,
                "bytes_sent": resync.bytes_sent,
                "bytes_taken": resync.bytes_taken,
                "replicas_restored": resync.replicas_restored,
            })),
            "links": node.links,
            "scores": node.scores.iter().map(score).collect::<Vec<_>>(),
            "leaderships": node.leaderships,
            "serving": node.serving,
            "not_serving": node.not_serving,
            "scrub": node.scrub.as_ref().map(scrub::document),
            "groups_placed": node.groups_placed,
            "groups_coming": node.groups_coming,
            "groups_going": node.groups_going,
            "draining": node.draining,
            "leaving": node.leaving,
            "member_state": healing::member_state(node),
            "evacuated": node.evacuated,
            "stopping_since_ms": node.stopping_since_ms,
            "rebuild_at_ms": node.rebuild_at_ms,
            "location": healing::location(node),
        })
    };
    let group = |group: &Group| {
        json!({
            "id": group.id,
            "voters": group.voters,
            "leader": group.leader,
            "term": group.term,
            "commit": group.commit,
            "voters_reachable": group.voters_reachable,
            "entries_behind": group.entries_behind,
            "former": group.former,
            "learners": group.learners,
            "moving": group.moving,
        })
    };
    json!({
        "id": cluster.id,
        "health": word(cluster.health()),
        "health_sentence": cluster.health_sentence,
        "volume_count": cluster.volume_count,
        "failure_domain": healing::domain_name(cluster.failure_domain()),
        "nodes": cluster.nodes.iter().map(node).collect::<Vec<_>>(),
        "groups": cluster.groups.iter().map(group).collect::<Vec<_>>(),
    })
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Unspecified => "unknown",
        Health::Ok => "ok",
        Health::Degraded => "degraded",
        Health::Unavailable => "unavailable",
        Health::Unbootstrapped => "unbootstrapped",
    }
}

fn text(cluster: &Cluster, all_groups: bool) -> String {
    let mut text = format!("health: {}: {}\n", word(cluster.health()), cluster.health_sentence);
    if !cluster.id.is_empty() {
        let (id, volumes) = (&cluster.id, cluster.volume_count);
        // Writing to a string does not fail.
        let _ = writeln!(text, "cluster: {id}, {volumes} volumes, {} groups", cluster.groups.len());
    }
    text.push('\n');
    text.push_str(&output::table(
        &["NODE", "NAME", "STATE", "GRPC", "DATA", "NBD", "FREE", "LEADS", "LINKS", "SERVING"],
        &cluster.nodes.iter().map(node_row).collect::<Vec<_>>(),
    ));
    let majority = |group: &Group| group.voters_reachable as usize > group.voters.len() / 2;
    let whole = |group: &Group| majority(group) && group.leader != 0 && !group.moving;
    let shown: Vec<Vec<String>> = cluster
        .groups
        .iter()
        .filter(|group| all_groups || !whole(group))
        .map(|group| group_row(group, majority(group)))
        .collect();
    if !shown.is_empty() {
        text.push('\n');
        text.push_str(&output::table(
            &["GROUP", "LEADER", "TERM", "COMMIT", "VOTERS", "QUORUM", "MOVES"],
            &shown,
        ));
    }
    text
}

fn node_row(node: &Node) -> Vec<String> {
    let state = if node.reachable { node.state.clone() } else { "no answer".to_owned() };
    let free = match node.device_bytes {
        0 => "-".to_owned(),
        all => format!("{} of {}", show(node.free_bytes), show(all)),
    };
    let list = |names: &[String]| if names.is_empty() { "-".to_owned() } else { names.join(",") };
    vec![
        node.id.to_string(),
        node.name.clone(),
        state,
        node.grpc_address.clone(),
        node.data_address.clone(),
        if node.nbd_address.is_empty() { "-".to_owned() } else { node.nbd_address.clone() },
        free,
        node.leaderships.to_string(),
        list(&node.links),
        list(&node.serving),
    ]
}

fn group_row(group: &Group, majority: bool) -> Vec<String> {
    let voters: Vec<String> = group.voters.iter().map(ToString::to_string).collect();
    vec![
        group.id.clone(),
        if group.leader == 0 { "none".to_owned() } else { group.leader.to_string() },
        group.term.to_string(),
        group.commit.to_string(),
        voters.join(","),
        if majority { "yes".to_owned() } else { "NO".to_owned() },
        if group.moving { "yes".to_owned() } else { "-".to_owned() },
    ]
}
