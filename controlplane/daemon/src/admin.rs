//! The administrative API.

use crate::clones::complete;
use crate::cuts;
use crate::daemon::Daemon;
use crate::metadata::Metadata;
use crate::services::{self, status_of};
use crate::snapshots;
use crate::volumes;
use basalt_api::error;
use basalt_api::v1::admin_server::Admin;
use basalt_api::v1::{
    AddNodeRequest, AttachVolumeRequest, AttachVolumeResponse, Attachment, BackupMetadataRequest,
    BootstrapRequest, Cluster, CreateCutRequest, CreateSnapshotRequest, CreateVolumeRequest, Cut,
    DeleteCutRequest, DeleteCutResponse, DeleteSnapshotRequest, DeleteVolumeRequest,
    DetachVolumeRequest, DrainNodeRequest, ExplainLatencyRequest, ExplainLatencyResponse,
    FlattenVolumeRequest, GetClusterRequest, GetCutRequest, GetPoolMapRequest, GetSnapshotRequest,
    GetVolumeRequest, IssueTicketRequest, LinkTicket, ListChangesRequest, ListChangesResponse,
    ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, Node,
    PlanPlacementRequest, PlanPlacementResponse, PoolMap, RemoveNodeRequest, RemoveNodeResponse,
    ResizeVolumeRequest, RevertVolumeRequest, SetFailureDomainRequest, Snapshot, StartScrubRequest,
    StartScrubResponse, UpdateVolumeRequest, Volume, volume,
};
use basalt_meta::{
    AttachVolume, CloneSource, CreateSnapshot, CreateVolume, DeleteSnapshot, DeleteVolume,
    DetachVolume, FlattenVolume, Op, Outcome, Refused, ResizeVolume, RevertVolume, Shared,
    SnapshotRecord, VolumeRecord, etag_of,
};
use std::sync::Arc;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

const PREFIX: &str = "volumes/";

/// The service.
pub struct AdminService {
    daemon: Arc<Daemon>,
}

impl AdminService {
    /// Of this node.
    pub fn new(daemon: Arc<Daemon>) -> AdminService {
        AdminService { daemon }
    }

    async fn change(&self, request_id: &str, op: Op) -> Result<Shared<VolumeRecord>, Status> {
        match services::change(&self.daemon, request_id, op).await? {
            Outcome::Volume(volume) => Ok(volume),
            other => Err(Status::internal(format!("a change of a volume came to {other:?}"))),
        }
    }

    /// As a change left it, with what follows from other records.
    fn shown(&self, record: &VolumeRecord) -> Result<Response<Volume>, Status> {
        let metadata = self.daemon.engine()?.metadata.clone();
        Ok(Response::new(metadata.look(|state| complete(state, record))))
    }

    async fn change_snapshot(&self, request_id: &str, op: Op) -> Result<SnapshotRecord, Status> {
        match services::change(&self.daemon, request_id, op).await? {
            Outcome::Snapshot(snapshot) => Ok(snapshot),
            other => Err(Status::internal(format!("a change of a snapshot came to {other:?}"))),
        }
    }

    async fn change_cut(&self, request_id: &str, op: Op) -> Result<u64, Status> {
        match services::change(&self.daemon, request_id, op).await? {
            Outcome::Cut(snapshots) => Ok(cuts::number_in(&snapshots)),
            other => Err(Status::internal(format!("a change of a cut came to {other:?}"))),
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn bootstrap(
        &self,
        request: Request<BootstrapRequest>,
    ) -> Result<Response<Cluster>, Status> {
        crate::bootstrap::bootstrap(&self.daemon, request.into_inner()).await?;
        Ok(Response::new(crate::bootstrap::settled(&self.daemon).await?))
    }

    async fn get_cluster(
        &self,
        _request: Request<GetClusterRequest>,
    ) -> Result<Response<Cluster>, Status> {
        Ok(Response::new(crate::status::cluster(&self.daemon).await?))
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        let op = Op::CreateVolume(CreateVolume {
            id: request.volume_id,
            size_bytes: request.size_bytes,
            labels: request.labels,
            source: source_of(&request.source_snapshot)?,
            storage_class: volumes::class_of(&request.storage_class)?,
            qos: request.qos,
            failover: request.failover,
            encrypted: request.encrypted,
        });
        let volume = match request.validate_only {
            true => volumes::changed(services::rehearse(&self.daemon, op).await?)?,
            false => self.change(&request.request_id, op).await?,
        };
        self.shown(&volume)
    }

    async fn get_volume(
        &self,
        request: Request<GetVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let id = id_of(&request.get_ref().name)?;
        let engine = self.daemon.engine()?;
        engine.metadata.barrier().await?;
        let mut volume = find(&engine.metadata, id)?;
        crate::clones::ask_progress(&engine, &mut volume).await;
        Ok(Response::new(volume))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        volumes::list(&self.daemon, request.into_inner()).await.map(Response::new)
    }

    async fn update_volume(
        &self,
        request: Request<UpdateVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let volume = volumes::update(&self.daemon, request.into_inner()).await?;
        self.shown(&volume)
    }

    async fn resize_volume(
        &self,
        request: Request<ResizeVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        let op = Op::ResizeVolume(ResizeVolume {
            id: id_of(&request.name)?.to_owned(),
            size_bytes: request.size_bytes,
            etag: request.etag,
        });
        let volume = self.change(&request.request_id, op).await?;
        self.shown(&volume)
    }

    async fn flatten_volume(
        &self,
        request: Request<FlattenVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        let op = Op::FlattenVolume(FlattenVolume {
            id: id_of(&request.name)?.to_owned(),
            etag: request.etag,
            cancel: request.cancel,
        });
        let volume = self.change(&request.request_id, op).await?;
        self.shown(&volume)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        let id = id_of(&request.name)?.to_owned();
        let (etag, with_snapshots) = (request.etag, request.with_snapshots);
        let op = Op::DeleteVolume(DeleteVolume { id, etag, with_snapshots });
        let volume = self.change(&request.request_id, op).await?;
        self.shown(&volume)
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let request = request.into_inner();
        let op = Op::CreateSnapshot(CreateSnapshot {
            volume: id_of(&request.parent)?.to_owned(),
            id: request.snapshot_id,
            labels: request.labels,
        });
        let snapshot = self.change_snapshot(&request.request_id, op).await?;
        let engine = self.daemon.engine()?;
        let snapshot = snapshots::completed(&engine, snapshot, request.wait_ms).await;
        Ok(Response::new(snapshots::shown(&snapshot)))
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let metadata = self.daemon.engine()?.metadata.clone();
        metadata.barrier().await?;
        snapshots::get(&metadata, &request.get_ref().name).map(Response::new)
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let metadata = self.daemon.engine()?.metadata.clone();
        metadata.barrier().await?;
        snapshots::list(&metadata, request.get_ref()).map(Response::new)
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<Snapshot>, Status> {
        let request = request.into_inner();
        let (volume, id) = snapshots::ids_of(&request.name)?;
        let op = Op::DeleteSnapshot(DeleteSnapshot {
            volume: volume.to_owned(),
            id: id.to_owned(),
            etag: request.etag,
            alone: request.alone,
        });
        let snapshot = self.change_snapshot(&request.request_id, op).await?;
        snapshots::gone(&self.daemon.engine()?.metadata, &snapshot, request.wait_ms).await;
        Ok(Response::new(snapshots::shown(&snapshot)))
    }

    async fn create_cut(
        &self,
        request: Request<CreateCutRequest>,
    ) -> Result<Response<Cut>, Status> {
        let request = request.into_inner();
        let (id, wait_ms) = (request.request_id.clone(), request.wait_ms);
        let made = self.change_cut(&id, cuts::creation(request)?).await?;
        let metadata = &self.daemon.engine()?.metadata;
        Ok(Response::new(cuts::completed(metadata, made, wait_ms).await?))
    }

    async fn get_cut(&self, request: Request<GetCutRequest>) -> Result<Response<Cut>, Status> {
        let metadata = self.daemon.engine()?.metadata.clone();
        metadata.barrier().await?;
        cuts::get(&metadata, &request.get_ref().name).map(Response::new)
    }

    async fn delete_cut(
        &self,
        request: Request<DeleteCutRequest>,
    ) -> Result<Response<DeleteCutResponse>, Status> {
        let request = request.into_inner();
        let cut = self.change_cut(&request.request_id, cuts::deletion(&request.name)?).await?;
        cuts::gone(&self.daemon.engine()?.metadata, cut, request.wait_ms).await;
        Ok(Response::new(DeleteCutResponse {}))
    }

    async fn revert_volume(
        &self,
        request: Request<RevertVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        let op = Op::RevertVolume(RevertVolume {
            id: id_of(&request.name)?.to_owned(),
            snapshot: request.snapshot_id,
            drop_later: request.drop_later,
            etag: request.etag,
        });
        let volume = self.change(&request.request_id, op).await?;
        let metadata = &self.daemon.engine()?.metadata;
        let mut last = volume;
        let reverted = metadata.wait_for(request.wait_ms, |state| {
            match state.volume(&last.id).filter(|v| v.number == last.number) {
                Some(found) => last = Shared::new(found.clone()),
                None => last.revert = None,
            }
            last.revert.is_none()
        });
        reverted.await;
        self.shown(&last)
    }

    type BackupMetadataStream = crate::state::Backup;

    async fn backup_metadata(
        &self,
        _request: Request<BackupMetadataRequest>,
    ) -> Result<Response<crate::state::Backup>, Status> {
        Ok(Response::new(crate::state::backup(&*self.daemon.engine()?).await?))
    }

    type ListChangesStream = ReceiverStream<Result<ListChangesResponse, Status>>;

    async fn list_changes(
        &self,
        request: Request<ListChangesRequest>,
    ) -> Result<Response<ReceiverStream<Result<ListChangesResponse, Status>>>, Status> {
        let engine = self.daemon.engine()?;
        engine.metadata.barrier().await?;
        let answers = crate::changes::list(&engine, request.get_ref())?;
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn attach_volume(
        &self,
        request: Request<AttachVolumeRequest>,
    ) -> Result<Response<AttachVolumeResponse>, Status> {
        let request = request.into_inner();
        let op = Op::AttachVolume(AttachVolume {
            id: id_of(&request.name)?.to_owned(),
            host: request.host,
            r#move: request.r#move,
            renew: request.renew,
            etag: request.etag,
            expected_epoch: 0,
        });
        let volume = self.change(&request.request_id, op).await?;
        let volume = self.shown(&volume)?.into_inner();
        let epoch = volume.attachment.as_ref().map_or(0, |attachment| attachment.epoch);
        let engine = self.daemon.engine()?;
        let host = volume.attachment.as_ref().map_or("", |attachment| &attachment.host);
        let ticket = crate::links::attached(engine.cluster(), volume.id, host, epoch)?;
        let map = Some(engine.map());
        Ok(Response::new(AttachVolumeResponse { volume: Some(volume), epoch, map, ticket }))
    }

    async fn issue_ticket(
        &self,
        request: Request<IssueTicketRequest>,
    ) -> Result<Response<LinkTicket>, Status> {
        Ok(Response::new(crate::links::issue(&self.daemon, request.get_ref()).await?))
    }

    async fn detach_volume(
        &self,
        request: Request<DetachVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        let op = Op::DetachVolume(DetachVolume {
            id: id_of(&request.name)?.to_owned(),
            host: request.host,
            epoch: request.epoch,
            etag: request.etag,
        });
        let volume = self.change(&request.request_id, op).await?;
        self.shown(&volume)
    }

    async fn get_pool_map(
        &self,
        request: Request<GetPoolMapRequest>,
    ) -> Result<Response<PoolMap>, Status> {
        let engine = self.daemon.engine()?;
        engine.hosts.note(request.into_inner().sessions);
        Ok(Response::new(engine.map()))
    }

    async fn start_scrub(
        &self,
        request: Request<StartScrubRequest>,
    ) -> Result<Response<StartScrubResponse>, Status> {
        Ok(Response::new(crate::scrub::start(&self.daemon, &request.into_inner().node).await?))
    }

    async fn add_node(&self, request: Request<AddNodeRequest>) -> Result<Response<Node>, Status> {
        Ok(Response::new(crate::nodes::add(&self.daemon, request.into_inner()).await?))
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<Node>, Status> {
        Ok(Response::new(crate::nodes::drain(&self.daemon, request.into_inner()).await?))
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        Ok(Response::new(crate::nodes::remove(&self.daemon, request.into_inner()).await?))
    }

    async fn set_failure_domain(
        &self,
        request: Request<SetFailureDomainRequest>,
    ) -> Result<Response<Cluster>, Status> {
        let request = request.into_inner();
        let op = crate::placement::setting(&request);
        services::change(&self.daemon, &request.request_id, op).await?;
        Ok(Response::new(crate::status::cluster(&self.daemon).await?))
    }

    async fn plan_placement(
        &self,
        request: Request<PlanPlacementRequest>,
    ) -> Result<Response<PlanPlacementResponse>, Status> {
        Ok(Response::new(crate::placement::plan(&self.daemon, request.get_ref()).await?))
    }

    async fn explain_latency(
        &self,
        request: Request<ExplainLatencyRequest>,
    ) -> Result<Response<ExplainLatencyResponse>, Status> {
        let id = id_of(&request.get_ref().name)?;
        let engine = self.daemon.engine()?;
        engine.metadata.barrier().await?;
        let volume = find(&engine.metadata, id)?;
        Ok(Response::new(crate::why::explain(&self.daemon, volume).await?))
    }
}

/// A volume as the API shows it.
pub fn volume_of(record: &VolumeRecord) -> Volume {
    let state = match record {
        VolumeRecord { deleting: true, .. } => volume::State::Deleting,
        VolumeRecord { cloning: true, .. } => volume::State::Creating,
        VolumeRecord { revert: Some(_), .. } => volume::State::Reverting,
        _ => volume::State::Ready,
    };
    let source = record.parent.as_ref();
    let attachment = record.attachment.as_ref().map(|a| Attachment {
        host: a.host.clone(),
        epoch: a.epoch,
        since_ms: a.since_ms,
        host_state: a.host_state,
        host_state_since_ms: a.host_state_since_ms,
    });
    Volume {
        name: format!("{PREFIX}{}", record.id),
        id: record.number,
        size_bytes: record.size_bytes,
        lineage: record.lineage,
        epoch: record.epoch,
        generation: record.generation,
        state: state.into(),
        labels: record.labels.clone(),
        attachment,
        create_time_ms: record.create_time_ms,
        etag: etag_of(record),
        source_snapshot: source
            .map_or_else(String::new, |of| snapshots::path_of(&of.volume_id, &of.snapshot_id)),
        clone_depth: u32::from(record.parent.is_some()),
        storage_class: match record.storage_class.as_str() {
            "" => String::new(),
            class => format!("storageClasses/{class}"),
        },
        qos: record.qos,
        reconciling: state != volume::State::Ready || record.flattening,
        revision: record.revision,
        failover: record.failover,
        encrypted: record.encryption.is_some(),
        cipher: record.encryption.as_ref().map_or_else(String::new, |e| e.cipher.clone()),
        key_version: record.encryption.as_ref().map_or(0, |e| e.key_version),
        ..Volume::default()
    }
}

/// The snapshot that a volume is to be a clone of, if it is to be one.
pub(crate) fn source_of(name: &str) -> Result<Option<CloneSource>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    let (volume, snapshot) = snapshots::ids_of(name)?;
    Ok(Some(CloneSource { volume: volume.to_owned(), snapshot: snapshot.to_owned() }))
}

fn find(metadata: &Metadata, id: &str) -> Result<Volume, Status> {
    metadata
        .look(|state| state.volume(id).map(|volume| complete(state, volume)))
        .ok_or_else(|| status_of(Refused::volume_not_found(id)))
}

pub(crate) fn id_of(name: &str) -> Result<&str, Status> {
    match name.strip_prefix(PREFIX) {
        Some(id) if !id.is_empty() && !id.contains('/') => Ok(id),
        _ => Err(error::invalid(
            "name",
            format!("'{}' does not name a volume; write volumes/demo", name.escape_debug()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(id_of("volumes/demo").expect("a name"), "demo");
        for bad in ["", "demo", "volumes/", "volumes/a/b"] {
            assert!(id_of(bad).is_err(), "{bad}");
        }
    }
}
