//! `basalt device`: each node has one.

use crate::node;
use crate::options::{DeviceCommand, Options};
use crate::output;
use crate::{Failure, call};
use basalt_api::dial;
use basalt_api::error::status;
use basalt_api::size::show;
use basalt_api::v1::{AddNodeRequest, ErrorReason, GetClusterRequest, Node};
use serde_json::{Value, json};

pub(crate) async fn run(
    options: &Options,
    cluster: &dial::Cluster,
    command: &DeviceCommand,
) -> Result<(), Failure> {
    let found = cluster
        .call(|mut client| async move { client.get_cluster(GetClusterRequest {}).await })
        .await?;
    match command {
        DeviceCommand::List => {
            let devices: Vec<Value> = found.nodes.iter().map(document).collect();
            output::write(options.output, &json!({ "devices": devices }), || text(&found.nodes))
        }
        DeviceCommand::Replace { node: name, wait } => {
            let old = judge(&found.nodes, name).map_err(Failure::Status)?;
            let (address, replaces) = (old.grpc_address.clone(), old.id.to_string());
            let patient = node::patient(options, cluster);
            let new = call!(patient, add_node, AddNodeRequest { address, replaces })?;
            node::wait_for_share(options, cluster, new, *wait).await
        }
    }
}

/// The member whose device is to be replaced: it must not be at work, as its replicas would be lost.
fn judge<'a>(nodes: &'a [Node], name: &str) -> Result<&'a Node, tonic::Status> {
    let named = |n: &&Node| n.name == name || n.id.to_string() == name;
    let found = nodes.iter().filter(named);
    // One that leaves is replaced already.
    let found = found.clone().find(|n| !n.leaving).or_else(|| found.clone().next());
    let facts = [("node", name.to_owned())];
    let Some(node) = found else {
        let message = format!(
            "the cluster has no node '{name}'; 'basalt device list' shows those that it has"
        );
        return Err(status(ErrorReason::NodeNotFound, message, &facts));
    };
    if !node.reachable {
        return Ok(node);
    }
    let message = match node.state.starts_with("failed") || node.state == "suspect" {
        true => format!(
            "the node '{name}' still runs with the device that failed: stop it, move its data directory \
             away, give it a blank device, start it, and give this command again"
        ),
        false => format!(
            "the device of '{name}' is at work ({}); to exchange it, drain and remove the node first \
             (basalt node drain {name} --wait 3600), so that nothing is lost meanwhile",
            node.state
        ),
    };
    Err(status(ErrorReason::NodeInUse, message, &facts))
}

/// What a device does: its node's part but for what becomes of the node.
fn state(node: &Node) -> &str {
    if node.reachable { &node.state } else { "unreachable" }
}

/// Whether its own node finds it much slower than the others'.
fn is_slow(node: &Node) -> bool {
    node.scores.iter().any(|score| score.node == node.id && score.slow)
}

fn document(node: &Node) -> Value {
    let space = node.space.as_ref();
    json!({
        "node": node.name,
        "id": node.id,
        "state": state(node),
        "problem": node.problem,
        "slow": is_slow(node),
        "bytes": node.device_bytes,
        "free_bytes": node.free_bytes,
        "live_bytes": space.map(|space| space.live_bytes),
        "checkpoint": node.checkpoint,
    })
}

fn text(nodes: &[Node]) -> String {
    let size = |node: &Node, bytes: u64| if node.reachable { show(bytes) } else { "-".to_owned() };
    let row = |node: &Node| {
        let live = node.space.as_ref().map_or(0, |space| space.live_bytes);
        let slow = if is_slow(node) { "; slow" } else { "" };
        vec![
            node.name.clone(),
            format!("{}{slow}", state(node)),
            size(node, node.device_bytes),
            size(node, live),
            size(node, node.free_bytes),
            if node.problem.is_empty() { "-".to_owned() } else { node.problem.clone() },
        ]
    };
    output::table(
        &["NODE", "STATE", "SIZE", "DATA", "FREE", "PROBLEM"],
        &nodes.iter().map(row).collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32, reachable: bool, state: &str) -> Node {
        let (name, state) = (format!("n{id}"), state.to_owned());
        Node { id, name, reachable, state, ..Node::default() }
    }

    #[test]
    fn a_device_at_work_is_not_replaced() {
        let leaving = Node { leaving: true, ..node(4, false, "") };
        let again = Node { name: "n4".to_owned(), ..node(5, false, "") };
        let nodes = [
            node(1, true, "running"),
            node(2, true, "failed: no such device"),
            node(3, false, ""),
            leaving,
            again,
        ];
        let refused = |name: &str| judge(&nodes, name).expect_err(name).message().to_owned();
        assert!(refused("n1").contains("at work"), "{}", refused("n1"));
        assert!(refused("2").contains("blank device"), "{}", refused("2"));
        assert!(refused("n9").contains("no node"), "{}", refused("n9"));
        assert_eq!(judge(&nodes, "n3").expect("it is down").id, 3);
        assert_eq!(judge(&nodes, "n4").expect("the one that stays").id, 5);
    }

    #[test]
    fn devices_say_what_they_do() {
        let slow = basalt_api::v1::Score { node: 1, slow: true, ..Default::default() };
        let mut device = node(1, true, "running");
        device.scores.push(slow);
        assert!(text(&[device.clone()]).contains("running; slow"));
        device.reachable = false;
        assert!(text(&[device]).contains("unreachable"));
    }
}
