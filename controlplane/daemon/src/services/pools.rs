//! Pools: there is one.

use super::paging::Page;
use super::{id_in, linearized};
use crate::daemon::Daemon;
use basalt_api::error;
use basalt_api::v1::pools_server::Pools;
use basalt_api::v1::{
    Cluster, ErrorReason, GetPoolRequest, ListPoolsRequest, ListPoolsResponse, Pool,
};
use basalt_meta::{MetaState, layout};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The last part of its name.
const DEFAULT: &str = "default";

/// The service.
pub struct PoolsService {
    daemon: Arc<Daemon>,
}

impl PoolsService {
    /// Of this node.
    pub fn new(daemon: Arc<Daemon>) -> PoolsService {
        PoolsService { daemon }
    }

    async fn pool(&self) -> Result<Pool, Status> {
        let metadata = linearized(&self.daemon).await?;
        let observed = crate::status::cluster(&self.daemon).await?;
        Ok(metadata.look(|state| shown(state, &observed)))
    }
}

fn shown(state: &MetaState, observed: &Cluster) -> Pool {
    let spec = state.cluster().cloned().unwrap_or_default();
    let voters = |group| layout::placement_of(&spec, group).voters.len() as u64;
    let replicas = (0..spec.group_count).map(voters).max().unwrap_or(0);
    let spaces = || observed.nodes.iter().filter_map(|node| node.space.as_ref());
    let copies = replicas.max(1);
    Pool {
        name: format!("pools/{DEFAULT}"),
        replicas: replicas as u32,
        group_count: spec.group_count,
        nodes: spec.members.iter().map(|m| format!("nodes/{}", m.name)).collect(),
        provisioned_bytes: state.provisioned_bytes(),
        capacity_bytes: spaces().map(|space| space.capacity_bytes).sum::<u64>() / copies,
        used_bytes: spaces().map(|space| space.live_bytes).sum::<u64>() / copies,
    }
}

#[tonic::async_trait]
impl Pools for PoolsService {
    async fn get_pool(&self, request: Request<GetPoolRequest>) -> Result<Response<Pool>, Status> {
        let id = id_in("pools", &request.get_ref().name)?;
        if id != DEFAULT {
            let shown = id.escape_debug().to_string();
            let message = format!("there is no pool '{shown}'; there is '{DEFAULT}'");
            return Err(error::status(ErrorReason::PoolNotFound, message, &[("pool", shown)]));
        }
        self.pool().await.map(Response::new)
    }

    async fn list_pools(
        &self,
        request: Request<ListPoolsRequest>,
    ) -> Result<Response<ListPoolsResponse>, Status> {
        let request = request.into_inner();
        let page = Page::asked(request.page_size, &request.page_token, &[])?;
        let pools = match page.after {
            None => vec![self.pool().await?],
            Some(_) => Vec::new(),
        };
        Ok(Response::new(ListPoolsResponse { pools, next_page_token: String::new() }))
    }
}
