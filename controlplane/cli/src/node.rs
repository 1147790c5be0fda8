//! `basalt node`.

use crate::options::{Format, NodeCommand, NodeShow, Options};
use crate::output::{self, Progress};
use crate::{Failure, call, healing};
use basalt_api::dial;
use basalt_api::error::status;
use basalt_api::size::show;
use basalt_api::v1::{
    AddNodeRequest, Cluster, DrainNodeRequest, ErrorReason, GetClusterRequest, Node,
    RemoveNodeRequest,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(500);
/// A node that is added formats its device, and one that is removed waits for the metadata group.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) async fn run(
    options: &Options,
    cluster: &dial::Cluster,
    command: &NodeCommand,
) -> Result<(), Failure> {
    let patient = patient(options, cluster);
    match command {
        NodeCommand::List => {
            let found = ask(cluster).await?;
            let document = json!({ "nodes": found.nodes.iter().map(document).collect::<Vec<_>>() });
            output::write(options.output, &document, || text(&found.nodes))
        }
        NodeCommand::Show(NodeShow::Show { node }) => {
            let found = ask(cluster).await?;
            let named = |n: &&Node| n.name == *node || n.id.to_string() == *node;
            let Some(found) = found.nodes.iter().find(named) else {
                let text = format!(
                    "the cluster has no node '{node}'; 'basalt node list' shows those that it has"
                );
                let facts = [("node", node.clone())];
                return Err(status(ErrorReason::NodeNotFound, text, &facts).into());
            };
            output::write(options.output, &document(found), || one(found))
        }
        NodeCommand::Add { address, replaces, wait } => {
            let replaces = replaces.clone().unwrap_or_default();
            let request = AddNodeRequest { address: address.clone(), replaces };
            let node = call!(patient, add_node, request)?;
            wait_for_share(options, cluster, node, *wait).await
        }
        NodeCommand::Token { ttl } => crate::token::join(options, cluster, *ttl).await,
        NodeCommand::Drain { node, cancel, wait } => {
            let request = DrainNodeRequest { node: node.clone(), cancel: *cancel };
            let mut node = call!(cluster, drain_node, request)?;
            if let Some(patience) = wait {
                let until = Wait::UntilEmpty(node.groups_going);
                node = watch(options.output, cluster, node, *patience, &until).await?;
            }
            said(options.output, &node)
        }
        NodeCommand::Remove { node } => {
            let mut progress = Progress::start(options.output);
            progress.show(|| format!("taking '{node}' out of the cluster"));
            call!(patient, remove_node, RemoveNodeRequest { node: node.clone() })?;
            drop(progress);
            output::write(options.output, &json!({ "removed": node }), || {
                format!(
                    "'{node}' is removed; stop it, and give it a blank device before it is added again"
                )
            })
        }
    }
}

/// The cluster, asked for what takes a while.
pub(crate) fn patient(options: &Options, cluster: &dial::Cluster) -> dial::Cluster {
    dial::Cluster::new(cluster.addresses().to_vec(), options.timeout.max(PATIENCE))
}

/// Waits until a node that came has its share, if it is to be waited for, and tells of the node.
pub(crate) async fn wait_for_share(
    options: &Options,
    cluster: &dial::Cluster,
    mut node: Node,
    wait: Option<Duration>,
) -> Result<(), Failure> {
    if let Some(patience) = wait {
        node = watch(options.output, cluster, node, patience, &Wait::ForShare).await?;
    }
    said(options.output, &node)
}

async fn ask(cluster: &dial::Cluster) -> Result<Cluster, Failure> {
    let answer =
        cluster.call(|mut client| async move { client.get_cluster(GetClusterRequest {}).await });
    Ok(answer.await?)
}

/// What is waited for.
enum Wait {
    /// The node has as many groups as the others.
    ForShare,
    /// All of so many groups are gone.
    UntilEmpty(u32),
}

impl Wait {
    /// Whether it is over, and how far it is, in words.
    fn judge(&self, node: &Node, found: &Cluster) -> (bool, String) {
        match self {
            Wait::UntilEmpty(all) => {
                let left = node.groups_going;
                let all = left.max(*all);
                // Who answers may not have heard yet that the node is drained, and shows nothing that goes.
                let heard = node.draining || node.leaving;
                (heard && left == 0, format!("{} of {all} groups moved", all - left))
            }
            Wait::ForShare => {
                let active = |n: &&Node| !n.draining && !n.leaving;
                let nodes = found.nodes.iter().filter(active).count().max(1) as u32;
                let replicas: u32 = found.nodes.iter().map(|n| n.groups_placed).sum();
                let share = replicas / nodes;
                let there = node.groups_placed.saturating_sub(node.groups_coming);
                let moves = found.groups.iter().any(|group| group.moving);
                let others = found.nodes.iter().any(|n| n.leaving || n.groups_going > 0);
                let well = node.reachable && node.groups_placed >= share && !moves && !others;
                (well, format!("{there} of {share} groups moved"))
            }
        }
    }
}

/// Waits for a node's groups to move. A node that is gone by then has none left.
async fn watch(
    format: Format,
    cluster: &dial::Cluster,
    mut node: Node,
    patience: Duration,
    until: &Wait,
) -> Result<Node, Failure> {
    let deadline = Instant::now() + patience;
    let mut progress = Progress::start(format);
    let mut how_far = "no answer yet".to_owned();
    loop {
        if let Ok(found) = ask(cluster).await {
            let Some(now) = found.nodes.iter().find(|n| n.id == node.id) else { return Ok(node) };
            node = now.clone();
            let (done, words) = until.judge(&node, &found);
            if done {
                return Ok(node);
            }
            how_far = words;
        }
        progress.show(|| how_far.clone());
        if Instant::now() >= deadline {
            let text = format!(
                "'{}' is not done after {} s: {how_far}. It goes on by itself; 'basalt cluster status' \
                 tells what holds it up",
                node.name,
                patience.as_secs()
            );
            return Err(Failure::Timeout(text));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn said(format: Format, node: &Node) -> Result<(), Failure> {
    output::write(format, &document(node), || text(std::slice::from_ref(node)))
}

fn live_bytes(node: &Node) -> Option<u64> {
    node.space.as_ref().map(|space| space.live_bytes)
}

fn document(node: &Node) -> Value {
    json!({
        "id": node.id,
        "name": node.name,
        "state": state(node),
        "reachable": node.reachable,
        "problem": node.problem,
        "groups": node.groups_placed,
        "coming": node.groups_coming,
        "going": node.groups_going,
        "leaders": node.leaderships,
        "live_bytes": live_bytes(node),
        "draining": node.draining,
        "leaving": node.leaving,
        "member_state": healing::member_state(node),
        "member_state_since": output::time(node.member_state_since_ms),
        "member_state_why": node.member_state_why,
        "evacuated": node.evacuated,
        "stopping_since": node.stopping_since_ms.gt(&0).then(|| output::time(node.stopping_since_ms)),
        "rebuild_at": node.rebuild_at_ms.gt(&0).then(|| output::time(node.rebuild_at_ms)),
        "location": healing::location(node),
        "version": node.version,
        "grpc_address": node.grpc_address,
        "data_address": node.data_address,
        "nbd_address": node.nbd_address,
    })
}

/// What a node is doing, and what is to become of it.
fn state(node: &Node) -> String {
    let now = match (healing::member_state(node), node.reachable) {
        (judged @ ("down" | "failed"), _) => judged.to_owned(),
        (_, false) if node.stopping_since_ms != 0 => "stopped as planned".to_owned(),
        (_, true) if node.stopping_since_ms != 0 => "stopping as planned".to_owned(),
        ("suspect", true) => format!("{}; suspect", node.state),
        (_, true) => node.state.clone(),
        (_, false) => "unreachable".to_owned(),
    };
    let plan = match (node.leaving, node.draining, node.groups_going) {
        (true, _, left) => format!("leaving, {left} left"),
        (_, false, 0) if node.evacuated => "given up for now".to_owned(),
        (_, false, left) if node.evacuated => format!("given up for now, {left} left"),
        (_, true, 0) => "drained".to_owned(),
        (_, true, left) => format!("draining, {left} left"),
        _ if node.groups_coming > 0 => format!("{} coming", node.groups_coming),
        _ => return now,
    };
    if now == "running" { plan } else { format!("{now}; {plan}") }
}

fn one(node: &Node) -> String {
    let since = match node.member_state_since_ms {
        0 => String::new(),
        since => format!(" since {}", output::time(since)),
    };
    let why = match node.member_state_why.is_empty() {
        true => String::new(),
        false => format!(": {}", node.member_state_why),
    };
    let place = healing::location(node);
    let rows = [
        ("name", format!("{} (number {})", node.name, node.id)),
        ("judged", format!("{}{since}{why}", healing::member_state(node))),
        ("state", state(node)),
        ("location", if place.is_empty() { "not said".to_owned() } else { place }),
        (
            "groups",
            format!(
                "{}, {} coming, {} going",
                node.groups_placed, node.groups_coming, node.groups_going
            ),
        ),
        ("leads", node.leaderships.to_string()),
        ("data", live_bytes(node).map_or_else(|| "-".to_owned(), show)),
        (
            "serving",
            if node.serving.is_empty() { "nothing".to_owned() } else { node.serving.join(", ") },
        ),
        ("grpc", node.grpc_address.clone()),
        ("data path", node.data_address.clone()),
        (
            "nbd",
            if node.nbd_address.is_empty() { "-".to_owned() } else { node.nbd_address.clone() },
        ),
        ("version", node.version.clone()),
    ];
    rows.iter().map(|(key, value)| format!("{key:<9} {value}\n")).collect()
}

fn text(nodes: &[Node]) -> String {
    let row = |node: &Node| {
        let nbd = if node.nbd_address.is_empty() { "-" } else { &node.nbd_address };
        vec![
            node.id.to_string(),
            node.name.clone(),
            state(node),
            node.groups_placed.to_string(),
            node.leaderships.to_string(),
            live_bytes(node).map_or_else(|| "-".to_owned(), show),
            node.grpc_address.clone(),
            node.data_address.clone(),
            nbd.to_owned(),
        ]
    };
    output::table(
        &["NODE", "NAME", "STATE", "GROUPS", "LEADS", "DATA", "GRPC", "DATA PATH", "NBD"],
        &nodes.iter().map(row).collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_api::v1::Group;

    fn node(id: u32, placed: u32, coming: u32, going: u32) -> Node {
        Node {
            id,
            name: format!("n{id}"),
            state: "running".to_owned(),
            reachable: true,
            groups_placed: placed,
            groups_coming: coming,
            groups_going: going,
            ..Node::default()
        }
    }

    #[test]
    fn a_drain_is_over_when_nothing_is_left() {
        let found = Cluster::default();
        let until = Wait::UntilEmpty(12);
        let draining = |going| Node { draining: true, ..node(1, going, 0, going) };
        let judge = |going| until.judge(&draining(going), &found);
        assert_eq!(judge(12), (false, "0 of 12 groups moved".to_owned()));
        assert_eq!(judge(5), (false, "7 of 12 groups moved".to_owned()));
        assert!(judge(0).0);
        assert!(!until.judge(&node(1, 12, 0, 0), &found).0, "it has not heard of the drain");
        assert_eq!(judge(13).1, "0 of 13 groups moved", "one came in the meantime");
    }

    #[test]
    fn a_new_node_has_its_share_when_nothing_moves() {
        let judge = |placed, coming, going, moving| {
            let new = node(4, placed, coming, 0);
            let nodes = vec![
                node(1, 12, 0, going),
                node(2, 12, 0, 0),
                node(3, 24 - placed, 0, 0),
                new.clone(),
            ];
            let groups = vec![Group { moving, ..Group::default() }];
            Wait::ForShare.judge(&new, &Cluster { nodes, groups, ..Cluster::default() })
        };
        assert_eq!(judge(4, 3, 3, true), (false, "1 of 12 groups moved".to_owned()));
        assert!(!judge(4, 0, 0, false).0, "between two moves");
        assert!(!judge(12, 1, 0, true).0);
        assert!(judge(12, 0, 0, false).0);
    }

    #[test]
    fn states_say_what_becomes_of_a_node() {
        assert_eq!(state(&node(1, 4, 0, 0)), "running");
        assert_eq!(state(&node(1, 4, 2, 0)), "2 coming");
        let stopping = Node { stopping_since_ms: 1, ..node(1, 4, 0, 0) };
        assert_eq!(state(&stopping), "stopping as planned");
        assert_eq!(state(&Node { reachable: false, ..stopping }), "stopped as planned");
        let draining = Node { draining: true, ..node(1, 4, 0, 4) };
        assert_eq!(state(&draining), "draining, 4 left");
        assert_eq!(state(&Node { draining: true, ..node(1, 0, 0, 0) }), "drained");
        let lost = Node { leaving: true, reachable: false, ..draining };
        assert_eq!(state(&lost), "unreachable; leaving, 4 left");
    }
}
