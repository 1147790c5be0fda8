//! The calls that nodes make to each other.

use crate::bootstrap::own_member;
use crate::daemon::Daemon;
use basalt_api::error;
use basalt_api::v1::peer_server::Peer;
use basalt_api::v1::propose_response::Result as ProposeResult;
use basalt_api::v1::{
    AwaitSnapshotRequest, AwaitSnapshotResponse, BeatRequest, BeatResponse, DescribeRequest,
    DescribeResponse, GetHeldRequest, GetHeldResponse, GetMetadataStateRequest, GetReportRequest,
    JoinRequest, JoinResponse, NodeReport, ProposeRequest, ProposeResponse, ScrubRequest,
    ScrubResponse, StateReplicaRequest, StateReplicaResponse, TellLatencyRequest,
    TellLatencyResponse,
};
use basalt_core::event::ProposeError;
use basalt_wire::disk::SUPERBLOCK_AREA_BYTES;
use bytes::Bytes;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The longest metadata entry taken.
const ENTRY_MAX: usize = 256 << 10;

/// The service.
pub struct PeerService {
    daemon: Arc<Daemon>,
}

impl PeerService {
    /// Of this node.
    pub fn new(daemon: Arc<Daemon>) -> PeerService {
        PeerService { daemon }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn tell_latency(
        &self,
        request: Request<TellLatencyRequest>,
    ) -> Result<Response<TellLatencyResponse>, Status> {
        let engine = self.daemon.engine()?;
        engine.check_cluster(request.get_ref().cluster)?;
        let latency = crate::why::here(&engine, &request.get_ref().volume).await;
        Ok(Response::new(TellLatencyResponse { latency }))
    }

    async fn describe(
        &self,
        _request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let node = self.daemon.node();
        let own = own_member(&self.daemon.options, node).map_err(Status::internal)?;
        let device = self.daemon.options.device_path();
        let begun = self.daemon.has_begun();
        Ok(Response::new(DescribeResponse {
            name: own.name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            grpc_address: own.grpc_address,
            data_address: own.data_address,
            nbd_address: own.nbd_address,
            device_bytes: device.metadata().map_or(0, |meta| meta.len()),
            cluster: self.daemon.spec(),
            node,
            begun,
            blank: !begun && is_blank(device.clone()).await,
            only_cluster: self.daemon.options.only_cluster.unwrap_or(0),
            location: own.location,
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        let spec = request.cluster.unwrap_or_default();
        self.daemon.join(spec, request.node, request.prepare).await?;
        Ok(Response::new(JoinResponse {}))
    }

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeResponse>, Status> {
        let request = request.into_inner();
        let engine = self.daemon.engine()?;
        engine.check_cluster(request.cluster)?;
        if request.entry.len() > ENTRY_MAX {
            return Err(error::invalid("entry", format!("longer than {ENTRY_MAX} bytes")));
        }
        basalt_meta::decode(&request.entry).map_err(|problem| error::invalid("entry", problem))?;
        let mut answer = ProposeResponse::default();
        let result = match engine.metadata.propose_here(Bytes::from(request.entry)).await {
            Ok(index) => {
                answer.index = index.0;
                ProposeResult::Committed
            }
            Err(ProposeError::NotLeader(leader)) => {
                answer.leader = leader.map_or(0, |node| node.0);
                ProposeResult::NotLeader
            }
            Err(ProposeError::Unknown) => ProposeResult::Unknown,
            Err(ProposeError::Unavailable) => ProposeResult::Unavailable,
        };
        answer.set_result(result);
        Ok(Response::new(answer))
    }

    async fn get_report(
        &self,
        _request: Request<GetReportRequest>,
    ) -> Result<Response<NodeReport>, Status> {
        Ok(Response::new(crate::status::report(&self.daemon).await?))
    }

    async fn scrub(
        &self,
        _request: Request<ScrubRequest>,
    ) -> Result<Response<ScrubResponse>, Status> {
        crate::scrub::begin(&self.daemon)?;
        Ok(Response::new(ScrubResponse {}))
    }

    type GetMetadataStateStream = crate::state::Pieces;

    async fn get_metadata_state(
        &self,
        request: Request<GetMetadataStateRequest>,
    ) -> Result<Response<crate::state::Pieces>, Status> {
        let engine = self.daemon.engine()?;
        Ok(Response::new(crate::state::give(&engine, request.into_inner()).await?))
    }

    async fn get_held(
        &self,
        request: Request<GetHeldRequest>,
    ) -> Result<Response<GetHeldResponse>, Status> {
        let engine = self.daemon.engine()?;
        engine.check_cluster(request.into_inner().cluster)?;
        let groups = crate::recovery::held(&engine).await?;
        Ok(Response::new(GetHeldResponse { groups }))
    }

    async fn state_replica(
        &self,
        request: Request<StateReplicaRequest>,
    ) -> Result<Response<StateReplicaResponse>, Status> {
        crate::moves::take(&self.daemon.engine()?, request.into_inner()).await?;
        Ok(Response::new(StateReplicaResponse {}))
    }

    async fn beat(&self, request: Request<BeatRequest>) -> Result<Response<BeatResponse>, Status> {
        let engine = self.daemon.engine()?;
        engine.check_cluster(request.into_inner().cluster)?;
        Ok(Response::new(crate::liveness::beat(&engine).await?))
    }

    async fn await_snapshot(
        &self,
        request: Request<AwaitSnapshotRequest>,
    ) -> Result<Response<AwaitSnapshotResponse>, Status> {
        let AwaitSnapshotRequest { cluster, volume, generation, wait_ms } = request.into_inner();
        let engine = self.daemon.engine()?;
        engine.check_cluster(cluster)?;
        let kept = crate::kept::known_within(&engine, (volume, generation), wait_ms).await;
        Ok(Response::new(AwaitSnapshotResponse { kept }))
    }
}

/// Whether a device was never used, or is not made yet. One that can not be read may have been.
async fn is_blank(device: PathBuf) -> bool {
    tokio::task::spawn_blocking(move || looks_blank(&device)).await.unwrap_or(false)
}

fn looks_blank(device: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(device)
        .and_then(|file| file.take(SUPERBLOCK_AREA_BYTES).read_to_end(&mut start));
    match read {
        Ok(_) => start.iter().all(|byte| *byte == 0),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}
