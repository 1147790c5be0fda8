//! Nodes that an operator adds, drains and removes. The calls change the cluster's record; what follows from
//! it, the moves of groups, goes on without them.

use crate::bootstrap::{self, describe};
use crate::daemon::Daemon;
use crate::engine::Engine;
use crate::services::status_of;
use basalt_api::v1::{
    AddNodeRequest, ClusterSpec, DescribeResponse, DrainNodeRequest, ErrorReason, Member, Node,
    RemoveNodeRequest, RemoveNodeResponse,
};
use basalt_api::{dial, error};
use basalt_meta::{AddMember, DrainMember, Op, Outcome, RemoveMember, layout};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Status;

/// How long it may take until the metadata group has left a node that is removed.
const LEAVING: Duration = Duration::from_secs(60);

/// Adds a node; what was done before it broke off is not done again.
///
/// # Errors
/// If the node can not be reached or used, or the record does not allow it.
pub async fn add(daemon: &Arc<Daemon>, request: AddNodeRequest) -> Result<Node, Status> {
    let member = admit(&daemon.engine()?, request).await?;
    shown(daemon, member).await
}

/// Adds a node, and tells what it is from now on.
///
/// # Errors
/// As [`add`].
pub(crate) async fn admit(engine: &Arc<Engine>, request: AddNodeRequest) -> Result<Member, Status> {
    engine.metadata.barrier().await?;
    let described = describe(&request.address).await?;
    let spec = record(engine)?;
    if let Some(known) = membership(&spec, &described, &request.address)? {
        start(&request.address, &spec, &known).await?;
        return Ok(known);
    }
    check_version(&described, &request.address)?;
    bootstrap::check_awaited(described.only_cluster, spec.id)?;
    let asked = Member {
        name: described.name.clone(),
        grpc_address: described.grpc_address.clone(),
        data_address: described.data_address.clone(),
        nbd_address: described.nbd_address.clone(),
        location: described.location.clone(),
        ..Member::default()
    };
    let replaces = replaced(&spec, &request.replaces, &asked)?;
    let op = Op::AddMember(AddMember { member: Some(asked), replaces });
    let member = member_of(engine.metadata.change("", op).await?)?;
    // The node begins with the record as it is after its entry.
    let spec = record(engine)?;
    start(&request.address, &spec, &member).await?;
    tracing::info!(node = member.node, name = %member.name, replaces, "node added");
    Ok(member)
}

/// Has a node begin as the member that it is; one that has begun is left alone.
async fn start(address: &str, spec: &ClusterSpec, member: &Member) -> Result<(), Status> {
    bootstrap::join(address, spec, member.node, false).await.map_err(|status| {
        let message = format!(
            "the node '{}' is a member with number {}, but could not start as one ({}); set that \
             right and give the same command again, or take it out (basalt node drain {}, then \
             basalt node remove {})",
            member.name,
            member.node,
            dial::plain(&status),
            member.name,
            member.name
        );
        let reason = error::reason_of(&status).unwrap_or(ErrorReason::NodeUnreachable);
        error::status(reason, message, &[("node", member.name.clone())])
    })
}

/// Has a node's groups go to the others, or calls that off.
///
/// # Errors
/// If there is no such node, or too few others.
pub async fn drain(daemon: &Arc<Daemon>, request: DrainNodeRequest) -> Result<Node, Status> {
    let engine = daemon.engine()?;
    engine.metadata.barrier().await?;
    let node = find(&record(&engine)?, &request.node)?.node;
    let op = Op::DrainMember(DrainMember { node, cancel: request.cancel });
    let member = member_of(engine.metadata.change("", op).await?)?;
    shown(daemon, member).await
}

/// Takes a node out, and returns when it is no member any more.
///
/// # Errors
/// If there is no such node, or something is still on it.
pub async fn remove(
    daemon: &Arc<Daemon>,
    request: RemoveNodeRequest,
) -> Result<RemoveNodeResponse, Status> {
    let engine = daemon.engine()?;
    engine.metadata.barrier().await?;
    let spec = record(&engine)?;
    let member = find(&spec, &request.node)?;
    let node = member.node;
    if node == engine.node.0 {
        return elsewhere(&spec, node).await;
    }
    let mut changes = engine.metadata.changes();
    let gone = async {
        loop {
            changes.mark_unchanged();
            let op = Op::RemoveMember(RemoveMember { node });
            match engine.metadata.change("", op).await? {
                Outcome::Nothing => return Ok(()),
                Outcome::Member(_) => {}
                // Whoever carries out the moves was faster.
                Outcome::Refused(refused) if refused.reason == ErrorReason::NodeNotFound => {
                    return Ok(());
                }
                Outcome::Refused(refused) => return Err(status_of(refused)),
                other => {
                    return Err(Status::internal(format!("removing a node came to {other:?}")));
                }
            }
            while is_placed(&engine, node) {
                if changes.changed().await.is_err() {
                    return Err(Status::unavailable("the node is stopping"));
                }
            }
        }
    };
    match timeout(LEAVING, gone).await {
        Ok(done) => done.map(|()| {
            tracing::info!(node, name = %member.name, "node removed");
            RemoveNodeResponse {}
        }),
        Err(_) => Err(still_leaving(member)),
    }
}

/// A node that leaves does not see the end of it, so another one is asked.
async fn elsewhere(spec: &ClusterSpec, node: u32) -> Result<RemoveNodeResponse, Status> {
    let others = spec.members.iter().filter(|m| m.node != node && !m.leaving);
    let addresses: Vec<String> = others.map(|m| m.grpc_address.clone()).collect();
    if addresses.is_empty() {
        let message = "the last node of a cluster can not be removed";
        return Err(error::status(ErrorReason::TooFewNodes, message, &[]));
    }
    let request = RemoveNodeRequest { node: node.to_string() };
    let cluster = dial::Cluster::new(addresses, LEAVING + Duration::from_secs(5));
    let request = &request;
    cluster
        .call(|mut client| {
            let request = request.clone();
            async move { client.remove_node(request).await }
        })
        .await
}

/// Whether any group is, or may still be, on a node that is a member.
fn is_placed(engine: &Engine, node: u32) -> bool {
    engine.metadata.look(|state| {
        let Some(spec) = state.cluster() else { return false };
        let groups = (0..spec.group_count).chain([layout::METADATA_GROUP]);
        let mut placements = groups.map(|group| layout::placement_of(spec, group));
        placements.any(|placement| layout::names(&placement, node))
    })
}

pub(crate) fn record(engine: &Engine) -> Result<ClusterSpec, Status> {
    engine.metadata.look(|state| state.cluster().cloned()).ok_or_else(|| {
        let message = "the cluster's record is not written yet; ask again";
        error::status(ErrorReason::NotBootstrapped, message, &[])
    })
}

/// The member that a described node is already, if it belongs to this cluster.
fn membership(
    spec: &ClusterSpec,
    described: &DescribeResponse,
    address: &str,
) -> Result<Option<Member>, Status> {
    let Some(cluster) = &described.cluster else { return Ok(None) };
    let known = spec.members.iter().find(|m| m.node == described.node && !m.leaving);
    let why = match known {
        Some(known) if cluster.id == spec.id => return Ok(Some(known.clone())),
        _ if cluster.id == spec.id => "was a member of this cluster, and was removed".to_owned(),
        _ => format!("belongs to cluster {:016x}", cluster.id),
    };
    let message = format!(
        "the node '{}' at {address} {why}; to add it, stop it and give it a new data directory and a \
         blank device",
        described.name
    );
    let facts = [("node", described.name.clone()), ("address", address.to_owned())];
    Err(error::status(ErrorReason::AlreadyBootstrapped, message, &facts))
}

fn check_version(described: &DescribeResponse, address: &str) -> Result<(), Status> {
    let own = env!("CARGO_PKG_VERSION");
    if described.version == own {
        return Ok(());
    }
    let message = format!(
        "the node '{}' at {address} runs version {}, and this cluster {own}; start it with that",
        described.name, described.version
    );
    Err(error::invalid("address", message))
}

/// The number of the node that is replaced; 0 if none is, or if it is gone already and only the new one's start
/// was left to be done.
fn replaced(spec: &ClusterSpec, name: &str, asked: &Member) -> Result<u32, Status> {
    if name.is_empty() {
        return Ok(0);
    }
    // One that leaves already first: the new one may have its name.
    let named = |m: &&Member| m.name == name || m.node.to_string() == name;
    let mut found = spec.members.iter().filter(named);
    if let Some(old) = found.clone().find(|m| m.leaving).or_else(|| found.next()) {
        return Ok(old.node);
    }
    let is_asked = |m: &Member| m.name == asked.name && m.grpc_address == asked.grpc_address;
    if spec.members.iter().any(is_asked) {
        return Ok(0);
    }
    Err(no_such_node(name))
}

/// The member of a name or number. Of two of one name it is the one that stays.
pub(crate) fn find<'a>(spec: &'a ClusterSpec, name: &str) -> Result<&'a Member, Status> {
    let named = |m: &&Member| m.name == name || m.node.to_string() == name;
    let mut found = spec.members.iter().filter(named);
    let best = found.clone().find(|m| !m.leaving).or_else(|| found.next());
    best.ok_or_else(|| no_such_node(name))
}

fn no_such_node(name: &str) -> Status {
    let shown = name.escape_debug().to_string();
    let message =
        format!("the cluster has no node '{shown}'; 'basalt node list' shows those that it has");
    error::status(ErrorReason::NodeNotFound, message, &[("node", shown)])
}

fn still_leaving(member: &Member) -> Status {
    let message = format!(
        "the node '{}' is leaving, but the metadata group is still on it after {} s; it goes as soon \
         as that has moved. 'basalt cluster status' tells what holds it up",
        member.name,
        LEAVING.as_secs()
    );
    error::status(ErrorReason::NodeInUse, message, &[("node", member.name.clone())])
}

fn member_of(outcome: Outcome) -> Result<Member, Status> {
    match outcome {
        Outcome::Member(member) => Ok(member),
        Outcome::Refused(refused) => Err(status_of(refused)),
        other => Err(Status::internal(format!("a change of a member came to {other:?}"))),
    }
}

/// A member as the status shows it.
async fn shown(daemon: &Arc<Daemon>, member: Member) -> Result<Node, Status> {
    let cluster = crate::status::cluster(daemon).await?;
    let found = cluster.nodes.into_iter().find(|node| node.id == member.node);
    Ok(found.unwrap_or_else(|| crate::status::node_of(&member)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u32, name: &str) -> Member {
        let grpc_address = format!("127.0.0.1:{}", 7000 + node);
        Member { node, name: name.to_owned(), grpc_address, ..Member::default() }
    }

    fn spec() -> ClusterSpec {
        let old = Member { leaving: true, draining: true, ..member(2, "b") };
        let members = vec![member(1, "a"), old, member(3, "c"), member(4, "b")];
        ClusterSpec { id: 9, members, ..ClusterSpec::default() }
    }

    #[test]
    fn nodes_are_found_by_name_and_number() {
        let spec = spec();
        for (name, node) in [("a", 1), ("3", 3), ("b", 4), ("2", 2)] {
            assert_eq!(find(&spec, name).expect(name).node, node, "{name}");
        }
        let missing = find(&spec, "x\n").expect_err("no such node");
        assert_eq!(error::reason_of(&missing), Some(ErrorReason::NodeNotFound));
        // In the place of the one that leaves, though the new one has its name.
        assert_eq!(replaced(&spec, "b", &member(0, "b")).expect("there"), 2);
        assert_eq!(replaced(&spec, "", &member(0, "b")).expect("none"), 0);
        assert!(replaced(&spec, "x", &member(0, "d")).is_err());
        // What it replaced is gone, and its own start is left to be done.
        assert_eq!(replaced(&spec, "x", &member(3, "c")).expect("gone"), 0);
    }

    #[test]
    fn a_node_that_belongs_elsewhere_is_not_added() {
        let spec = spec();
        let described = |cluster: u64, node: u32| DescribeResponse {
            name: "d".to_owned(),
            cluster: (cluster != 0).then(|| ClusterSpec { id: cluster, ..ClusterSpec::default() }),
            node,
            ..DescribeResponse::default()
        };
        let judge = |cluster, node| membership(&spec, &described(cluster, node), "x:1");
        assert!(judge(0, 0).expect("a new one").is_none());
        assert_eq!(judge(9, 3).expect("done already"), Some(member(3, "c")));
        for (cluster, node, named) in
            [(8, 3, "0000000000000008"), (9, 2, "removed"), (9, 7, "removed")]
        {
            let status = judge(cluster, node).expect_err("of another");
            assert!(status.message().contains(named), "{status}");
            assert_eq!(error::reason_of(&status), Some(ErrorReason::AlreadyBootstrapped));
        }
        let old = DescribeResponse { version: "0.0.1".to_owned(), ..described(0, 0) };
        assert!(check_version(&old, "x:1").expect_err("old").message().contains("0.0.1"));
    }
}
