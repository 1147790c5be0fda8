//! Making a cluster of nodes that belong to none.
//!
//! The asked node describes all others and plans the layout. Then every node is *prepared*: it remembers the
//! plan and does nothing. Only when all are, they begin, one after the other. An attempt that broke off is
//! continued with the same plan by asking again with the same list.
//!
//! So once a node has begun, every one of them was prepared; one that knows nothing of it then has lost its
//! store. It may have voted before, and must not do so a second time: it is refused here, and
//! replaced by a node of another number instead.

use crate::daemon::Daemon;
use crate::options::Options;
use basalt_api::random::random;
use basalt_api::v1::{
    BootstrapRequest, Cluster, ClusterSpec, DescribeRequest, DescribeResponse, ErrorReason, Health,
    JoinRequest, Member,
};
use basalt_api::{dial, error};
use basalt_meta::layout;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tonic::Status;

const ASK: Duration = Duration::from_secs(5);
/// Joining formats a device.
const JOIN: Duration = Duration::from_secs(60);
/// How long the new cluster may take until its first record is committed.
const FIRST_RECORD: Duration = Duration::from_secs(20);
/// How long bootstrap waits for the first leaders.
const SETTLED: Duration = Duration::from_secs(10);

/// This node as a member.
///
/// # Errors
/// If its options do not give it addresses that others can use.
pub fn own_member(options: &Options, node: u32) -> Result<Member, String> {
    let nbd_address = options.nbd_listen.as_ref().map(ToString::to_string).unwrap_or_default();
    Ok(Member {
        node,
        name: options.node_name()?,
        grpc_address: options.advertised(options.listen)?,
        data_address: options.advertised(options.data_listen)?,
        nbd_address,
        location: options.healing.location(),
        ..Member::default()
    })
}

/// Whether a member is what a node says of itself, which knows nothing of what is to become of it.
pub fn is_same(member: &Member, own: &Member) -> bool {
    *member == basalt_meta::healing::with_record_of(member, own.clone())
}

/// Makes the cluster, and returns when its first record is committed.
///
/// # Errors
/// Says which node is the obstacle and what to do.
pub async fn bootstrap(daemon: &Arc<Daemon>, request: BootstrapRequest) -> Result<(), Status> {
    if request.nodes.is_empty() || request.nodes.len() > layout::NODES_MAX {
        let message = format!(
            "give the gRPC addresses of 1 to {} nodes, not {}",
            layout::NODES_MAX,
            request.nodes.len()
        );
        return Err(error::invalid("nodes", message));
    }
    let mut described = Vec::new();
    for address in &request.nodes {
        described.push(describe(address).await?);
    }
    let spec = match described.iter().find_map(|d| d.cluster.clone()) {
        Some(planned) => go_on(planned, &request.nodes, &described)?,
        None => fresh(&request, &described)?,
    };
    if !spec.members.iter().any(|m| m.name == daemon.name()) {
        let message = format!(
            "this node, '{}', is not in the list of nodes; ask one that is, or add this one",
            daemon.name()
        );
        return Err(error::invalid("nodes", message));
    }
    for prepare in [true, false] {
        for (address, member) in request.nodes.iter().zip(&spec.members) {
            join(address, &spec, member.node, prepare).await?;
        }
    }
    first_record(daemon).await
}

/// What a node says of itself.
///
/// # Errors
/// If it does not answer.
pub async fn describe(address: &str) -> Result<DescribeResponse, Status> {
    let answer = dial::peer(address, ASK)?.describe(DescribeRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|status| unreachable(address, &status))
}

fn fresh(
    request: &BootstrapRequest,
    described: &[DescribeResponse],
) -> Result<ClusterSpec, Status> {
    let members = described.iter().zip(1..).map(|(node, number)| Member {
        node: number,
        name: node.name.clone(),
        grpc_address: node.grpc_address.clone(),
        data_address: node.data_address.clone(),
        nbd_address: node.nbd_address.clone(),
        location: node.location.clone(),
        ..Member::default()
    });
    let group_count = match request.group_count {
        0 => layout::GROUPS_DEFAULT,
        count => count,
    };
    let spec = layout::plan(random().max(1), members.collect(), group_count);
    let spec = spec.map_err(|problem| error::invalid("nodes", problem))?;
    Ok(ClusterSpec { failure_domain: request.failure_domain, ..spec })
}

fn go_on(
    planned: ClusterSpec,
    addresses: &[String],
    described: &[DescribeResponse],
) -> Result<ClusterSpec, Status> {
    let belongs = |node: &DescribeResponse| {
        node.cluster.as_ref().is_none_or(|cluster| cluster.id == planned.id)
    };
    let same = planned.members.len() == described.len()
        && planned.members.iter().zip(described).all(|(m, d)| m.name == d.name && belongs(d));
    let has_begun = described.iter().any(|d| d.begun);
    let lost = addresses.iter().zip(described).find(|(_, d)| has_begun && d.cluster.is_none());
    match lost {
        Some((address, node)) if same => return Err(lost_its_store(&planned, address, node)),
        None if same => return Ok(planned),
        _ => {}
    }
    let who: Vec<String> = addresses
        .iter()
        .zip(described)
        .filter_map(|(address, d)| {
            let cluster = d.cluster.as_ref()?;
            Some(format!("'{}' at {address} (cluster {:016x})", d.name, cluster.id))
        })
        .collect();
    let message = format!(
        "{} already belong(s) to a cluster with other members, or in another order. To go on with a \
         bootstrap that broke off, give exactly its list; to take a node elsewhere, stop it and give \
         it a new data directory and a blank device",
        who.join(", ")
    );
    Err(error::status(ErrorReason::AlreadyBootstrapped, message, &[]))
}

fn lost_its_store(spec: &ClusterSpec, address: &str, node: &DescribeResponse) -> Status {
    let name = &node.name;
    let message = format!(
        "the node '{name}' at {address} is a member of cluster {:016x}, which has begun, and knows nothing of \
         it: it has lost its data directory, and with it the votes that it may have given. It can not go on \
         as the member that it was; bring it back as a new one in its place (basalt node add {address} \
         --replaces {name})",
        spec.id
    );
    error::status(ErrorReason::NodeExists, message, &[("node", name.clone())])
}

/// Refuses a cluster for a node that waits for another one; 0 waits for any.
///
/// # Errors
/// Names both.
pub fn check_awaited(only: u64, cluster: u64) -> Result<(), Status> {
    if only == 0 || only == cluster {
        return Ok(());
    }
    let message = format!(
        "the node waits for cluster {only:016x} (--only-cluster), and this is cluster {cluster:016x}; start it \
         without that, or with this cluster's id"
    );
    Err(error::invalid("cluster", message))
}

/// Has a node begin as a member, or only remember that it is to become one.
///
/// # Errors
/// As the node says, or if it does not answer.
pub async fn join(
    address: &str,
    spec: &ClusterSpec,
    node: u32,
    prepare: bool,
) -> Result<(), Status> {
    let request = JoinRequest { cluster: Some(spec.clone()), node, prepare };
    match dial::peer(address, JOIN)?.join(request).await {
        Ok(_) => Ok(()),
        Err(status) if error::reason_of(&status).is_some() => Err(status),
        Err(status) => Err(unreachable(address, &status)),
    }
}

async fn first_record(daemon: &Arc<Daemon>) -> Result<(), Status> {
    let deadline = Instant::now() + FIRST_RECORD;
    let engine = daemon.engine()?;
    let mut last = None;
    while Instant::now() < deadline {
        match engine.metadata.barrier().await {
            Ok(_) if engine.metadata.look(|state| state.cluster().is_some()) => return Ok(()),
            Ok(_) => {}
            Err(status) => last = Some(status),
        }
        sleep(Duration::from_millis(50)).await;
    }
    Err(last.unwrap_or_else(|| {
        let message = "the nodes joined, but the cluster's record is not committed yet; look at \
                       'basalt cluster status'";
        error::status(ErrorReason::NoQuorum, message, &[])
    }))
}

/// The new cluster as soon as all of it works, or as it is when that takes too long.
///
/// # Errors
/// As [`crate::status::cluster`].
pub async fn settled(daemon: &Arc<Daemon>) -> Result<Cluster, Status> {
    let deadline = Instant::now() + SETTLED;
    loop {
        let cluster = crate::status::cluster(daemon).await?;
        if cluster.health() == Health::Ok || Instant::now() >= deadline {
            return Ok(cluster);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn unreachable(address: &str, status: &Status) -> Status {
    let message = format!(
        "the node at {address} can not be asked ({}); is basaltd running there, with --listen \
         {address}?",
        dial::plain(status)
    );
    error::status(ErrorReason::NodeUnreachable, message, &[("address", address.to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(name: &str, cluster: Option<u64>, begun: bool) -> DescribeResponse {
        let cluster = cluster.map(|id| spec(id, &["a", "b", "c"]));
        DescribeResponse { name: name.to_owned(), cluster, begun, ..DescribeResponse::default() }
    }

    fn spec(id: u64, names: &[&str]) -> ClusterSpec {
        let member = |(node, name): (u32, &&str)| Member {
            node,
            name: (*name).to_owned(),
            ..Member::default()
        };
        ClusterSpec { id, members: (1..).zip(names).map(member).collect(), ..Default::default() }
    }

    fn judge(nodes: [DescribeResponse; 3]) -> Result<ClusterSpec, ErrorReason> {
        let addresses: Vec<String> = (1..=3).map(|n| format!("127.0.0.1:{n}")).collect();
        let planned = spec(7, &["a", "b", "c"]);
        go_on(planned, &addresses, &nodes).map_err(|s| error::reason_of(&s).expect("a reason"))
    }

    #[test]
    fn what_broke_off_goes_on_and_a_node_that_may_have_voted_does_not_begin_anew() {
        let planned = Ok(spec(7, &["a", "b", "c"]));
        let [prepared, begun] = [false, true].map(|b| move |name| described(name, Some(7), b));
        let blank = |name| described(name, None, false);
        // Broke off while nodes were prepared: none has promised anything.
        assert_eq!(judge([prepared("a"), blank("b"), blank("c")]), planned);
        assert_eq!(judge([blank("a"), blank("b"), prepared("c")]), planned);
        // Broke off while they began, or did not break off at all.
        assert_eq!(judge([begun("a"), prepared("b"), prepared("c")]), planned);
        assert_eq!(judge([begun("a"), begun("b"), begun("c")]), planned);
        // Somebody has begun, so all had been prepared.
        assert_eq!(judge([begun("a"), begun("b"), blank("c")]), Err(ErrorReason::NodeExists));
        assert_eq!(judge([blank("a"), prepared("b"), begun("c")]), Err(ErrorReason::NodeExists));
        let other = described("c", Some(8), false);
        let elsewhere = judge([begun("a"), begun("b"), other]);
        assert_eq!(elsewhere, Err(ErrorReason::AlreadyBootstrapped));
        let order = judge([begun("b"), begun("a"), begun("c")]);
        assert_eq!(order, Err(ErrorReason::AlreadyBootstrapped));
    }
}
