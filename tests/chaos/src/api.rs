//! The API as a program uses it: one connection, and no process for each call.

use anyhow::{Context, Result, ensure};
use basalt_api::dial;
use basalt_api::dial::Channel;
use basalt_api::error::reason_of;
use basalt_api::random::request_id;
use basalt_api::v1::admin_client::AdminClient;
use basalt_api::v1::{
    CreateCutRequest, CreateSnapshotRequest, CutMember, DeleteSnapshotRequest, ErrorReason,
    snapshot::State,
};
use basalt_interop::cluster::{Cluster, PATIENCE};
use basalt_security::credentials::CredentialOptions;
use basalt_security::{Credentials, Role};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::{Code, Status};

/// The credentials of a holder of the secret of the tests.
pub(crate) fn credentials(role: Role) -> Result<Credentials> {
    let secret_file = Some(basalt_interop::process::secret_file());
    let options = CredentialOptions { secret_file, ..CredentialOptions::default() };
    Ok(options.credentials("chaos", role)?)
}

/// Has all calls of this process show that of an administrator.
pub(crate) fn present() -> Result<()> {
    dial::present(credentials(Role::Admin)?);
    Ok(())
}

pub(crate) struct Api {
    runtime: Runtime,
    client: AdminClient<Channel>,
}

impl Api {
    pub(crate) fn new(cluster: &Cluster) -> Result<Api> {
        present()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = {
            let _inside = runtime.enter();
            dial::admin(&cluster.nodes[0].address(), PATIENCE)?
        };
        Ok(Api { runtime, client })
    }

    /// Creates a snapshot and waits until it is complete.
    pub(crate) fn create(&self, volume: &str, id: &str) -> Result<()> {
        let mut client = self.client.clone();
        let request = CreateSnapshotRequest {
            parent: format!("volumes/{volume}"),
            snapshot_id: id.to_owned(),
            request_id: request_id("chaos"),
            wait_ms: PATIENCE.as_millis() as u32,
            ..CreateSnapshotRequest::default()
        };
        let found = self.runtime.block_on(client.create_snapshot(request))?.into_inner();
        ensure!(found.state() == State::Ready, "{id} is not complete");
        Ok(())
    }

    /// Takes snapshots of volumes together, and waits until they are complete. Whether they are: they may be
    /// given up, and then none is kept. A call that is not answered is made again, under the same id.
    pub(crate) fn cut(&self, volumes: &[&str], id: &str) -> Result<bool> {
        let member = |volume: &&str| CutMember {
            parent: format!("volumes/{volume}"),
            snapshot_id: id.to_owned(),
        };
        let request = CreateCutRequest {
            snapshots: volumes.iter().map(member).collect(),
            request_id: request_id("chaos"),
            wait_ms: 5_000,
            ..CreateCutRequest::default()
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut client = self.client.clone();
            let answer = self.runtime.block_on(client.create_cut(request.clone()));
            match answer.map(tonic::Response::into_inner) {
                Ok(cut) if cut.snapshots.iter().all(|s| s.state() == State::Ready) => {
                    return Ok(true);
                }
                Ok(cut) => ensure!(Instant::now() < deadline, "{cut:?} comes to no end"),
                Err(status) if reason_of(&status) == Some(ErrorReason::CutGivenUp) => {
                    return Ok(false);
                }
                Err(status) if Instant::now() >= deadline || !may_repeat(&status) => {
                    return Err(status).context("a cut");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Deletes a snapshot and waits until it is gone.
    pub(crate) fn delete(&self, volume: &str, id: &str) -> Result<()> {
        let mut client = self.client.clone();
        let name = format!("volumes/{volume}/snapshots/{id}");
        let request = DeleteSnapshotRequest {
            name: name.clone(),
            request_id: request_id("chaos"),
            wait_ms: PATIENCE.as_millis() as u32,
            ..DeleteSnapshotRequest::default()
        };
        self.runtime.block_on(client.delete_snapshot(request)).with_context(|| name)?;
        Ok(())
    }
}

/// Whether another attempt may have an answer: the metadata group was without a leader.
fn may_repeat(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}
