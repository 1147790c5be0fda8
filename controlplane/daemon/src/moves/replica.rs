//! The node's side: what is stated about its replicas is remembered, then carried out by the shard.
//!
//! A statement may be late, or come from a leader of the metadata group that is none any more. Those about
//! members do no harm: the group's leader decides by what its log says. To end a replica does when it has
//! become a voter again meanwhile; so the node asks the metadata group itself before it does.

use crate::engine::{Engine, address_of, config_of};
use basalt_api::error;
use basalt_api::v1::state_replica_request::What;
use basalt_api::v1::{ClusterSpec, ErrorReason, JoinGroup, Members, StateReplicaRequest};
use basalt_core::event::Event;
use basalt_meta::layout;
use basalt_store::ReplicaRecord;
use basalt_wire::ids::GroupId;
use std::collections::BTreeSet;
use std::sync::Arc;
use tonic::Status;

/// Takes a statement. That it is taken does not mean that it is so: the node's report tells.
///
/// # Errors
/// If it makes no sense, is of another cluster, or can not be remembered; then nothing happens.
pub(crate) async fn take(
    engine: &Arc<Engine>,
    statement: StateReplicaRequest,
) -> Result<(), Status> {
    engine.check_cluster(statement.cluster)?;
    let (group, spec) = (GroupId(statement.group), engine.spec());
    if group != GroupId::METADATA && statement.group >= spec.group_count {
        let message = format!("there is no group {}, only {}", group.0, spec.group_count);
        return Err(error::invalid("group", message));
    }
    match statement.what {
        Some(What::Configure(members)) => configure(engine, group, &members),
        Some(What::Join(join)) => begin(engine, &spec, group, &join).await,
        Some(What::Retire(_)) => end(engine, group).await,
        None => Err(error::invalid("what", "nothing is stated that this version knows".to_owned())),
    }
}

fn configure(engine: &Engine, group: GroupId, members: &Members) -> Result<(), Status> {
    let all: Vec<u32> = members.voters.iter().chain(&members.learners).copied().collect();
    let distinct: BTreeSet<u32> = all.iter().copied().collect();
    if members.voters.is_empty() || distinct.len() < all.len() || all.len() > layout::NODES_MAX {
        let message = format!(
            "a group has 1 to {} different members and at least one voter",
            layout::NODES_MAX
        );
        return Err(error::invalid("configure", message));
    }
    let addresses = |nodes: &[u32]| nodes.iter().map(|node| address_of(*node)).collect();
    let (voters, learners) = (addresses(&members.voters), addresses(&members.learners));
    engine.reactor.event(Event::Configure { group, voters, learners });
    Ok(())
}

async fn begin(
    engine: &Arc<Engine>,
    spec: &ClusterSpec,
    group: GroupId,
    join: &JoinGroup,
) -> Result<(), Status> {
    let record = ReplicaRecord { group: group.0, term: join.term, index: join.index };
    let config = config_of(spec, &record).filter(|config| {
        let founders: Vec<u32> = config.voters.iter().map(|address| address.node.0).collect();
        founders == join.founders
    });
    if config.is_none() || join.term == 0 {
        let message = format!("group {} was not begun by nodes {:?}", group.0, join.founders);
        return Err(error::invalid("join", message));
    }
    let _one = engine.replicas.lock().await;
    let record = remember(engine, move |engine| engine.store.hold(record)).await?;
    let config = config_of(spec, &record).expect("the same group");
    engine.reactor.event(Event::Join(config));
    Ok(())
}

/// Before the shard hears of it: a founder that came back empty at the next start would vote as if it had
/// never promised anything.
async fn end(engine: &Arc<Engine>, group: GroupId) -> Result<(), Status> {
    engine.metadata.barrier().await?;
    let _one = engine.replicas.lock().await;
    let placement = engine.metadata.look(|state| {
        let spec = state.cluster()?;
        Some(layout::placement_of(spec, group.0))
    });
    let node = engine.node.0;
    let is_stray = placement.is_some_and(|placement| {
        let named = placement.voters.contains(&node) || placement.learners.contains(&node);
        !placement.moving && !named
    });
    if !is_stray {
        let message = format!("group {} stays: the cluster's records place it here", group.0);
        return Err(error::status(ErrorReason::NodeInUse, message, &[]));
    }
    remember(engine, move |engine| engine.store.release(group.0)).await?;
    engine.reactor.event(Event::Retire(group));
    Ok(())
}

async fn remember<T: Send + 'static>(
    engine: &Arc<Engine>,
    write: impl FnOnce(&Engine) -> Result<T, basalt_store::StoreError> + Send + 'static,
) -> Result<T, Status> {
    let engine = engine.clone();
    let written = tokio::task::spawn_blocking(move || write(&engine)).await;
    let written = written.map_err(|e| Status::internal(e.to_string()))?;
    written.map_err(|e| Status::internal(format!("the replica can not be remembered: {e}")))
}
