//! The API's records as the data path wants them. What comes from a server is checked first.

use basalt_api::v1;
use basalt_client::{PoolMap, RateLimits, VolumeConfig};
use basalt_nbd::{DoorCommand, DoorError};
use basalt_node::Routes;
use basalt_wire::ids::{Address, ClusterId, Epoch, Generation, NodeId, ShardId, VolumeId};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

/// The map of the pool, without addresses.
///
/// # Errors
/// If the groups are not a power of two, or one has no voters.
pub fn pool_map(map: &v1::PoolMap) -> Result<PoolMap, String> {
    let count = map.groups.len();
    if !count.is_power_of_two() || map.groups.iter().any(|group| group.voters.is_empty()) {
        return Err(format!("the map of the pool is not usable: {count} groups"));
    }
    let groups = map.groups.iter().map(|group| group.voters.iter().map(address).collect());
    let groups: Result<Vec<Vec<Address>>, String> = groups.collect();
    let group_count = u32::try_from(count).map_err(|_| "too many groups".to_owned())?;
    Ok(PoolMap { version: map.version, group_count, groups: groups? })
}

/// Where each reactor is reached. Host names are resolved, which may block.
///
/// # Errors
/// If an address can not be understood or resolved.
pub fn routes(map: &v1::PoolMap) -> Result<Routes, String> {
    let mut routes = Routes::new();
    for node in &map.nodes {
        let resolved = resolve(&node.name, &node.data_address)?;
        for voter in map.groups.iter().flat_map(|group| &group.voters) {
            if voter.node == node.node {
                routes.insert(address(voter)?, resolved);
            }
        }
    }
    Ok(routes)
}

/// The address of the node `name`. A host name is looked up, which may block.
///
/// # Errors
/// If it can not be understood or resolved.
pub fn resolve(name: &str, address: &str) -> Result<SocketAddr, String> {
    let mut found =
        address.to_socket_addrs().map_err(|e| format!("the address '{address}' of {name}: {e}"))?;
    found.next().ok_or_else(|| format!("'{address}' of {name} has no address"))
}

/// The cluster of a map.
pub fn cluster_id(map: &v1::PoolMap) -> ClusterId {
    ClusterId(map.cluster)
}

/// A session with a volume.
pub fn volume_config(
    volume: &v1::Volume,
    epoch: u64,
    map: Arc<PoolMap>,
    local: Option<NodeId>,
) -> VolumeConfig {
    VolumeConfig {
        volume: VolumeId(volume.id),
        epoch: Epoch(epoch),
        generation: Generation(volume.generation),
        lineage: volume.lineage,
        size_bytes: volume.size_bytes,
        map,
        local,
        limits: limits(volume),
        cipher: None,
    }
}

/// The bounds that hold for a volume.
pub fn limits(volume: &v1::Volume) -> RateLimits {
    let qos = volume.effective_qos.unwrap_or_default();
    RateLimits {
        iops_max: qos.iops_max,
        iops_burst: qos.iops_burst,
        iops_min: qos.iops_min,
        bandwidth_max: qos.bandwidth_max,
        bandwidth_burst: qos.bandwidth_burst,
    }
}

/// Tells the door what the session of an export may do in a second from now on.
pub fn limit_command(name: &str, epoch: u64, limits: RateLimits) -> DoorCommand {
    let shown = name.to_owned();
    let reply = move |result: Result<(), DoorError>| match result {
        Ok(()) => tracing::info!(volume = %shown, ?limits, "other bounds"),
        // The session is over; the next one begins with them.
        Err(problem) => tracing::info!(volume = %shown, "no other bounds: {problem}"),
    };
    let (name, reply) = (name.to_owned(), Box::new(reply));
    DoorCommand::Limit { name, epoch: Epoch(epoch), limits, reply }
}

/// The line that an NBD client is shown of a volume.
pub fn description(name: &str, size_bytes: u64) -> String {
    format!("Basalt volume {name}, {}", basalt_api::size::show(size_bytes))
}

fn address(replica: &v1::ReplicaAddress) -> Result<Address, String> {
    let shard = u16::try_from(replica.shard)
        .map_err(|_| format!("the map names shard {}, which can not be", replica.shard))?;
    Ok(Address { node: NodeId(replica.node), shard: ShardId(shard) })
}
